"""torch.nn's layers on the explicit operators."""

from .conv import (
    Conv1dExplicit,
    Conv2dExplicit,
    Conv3dExplicit,
    ConvTranspose1dExplicit,
    ConvTranspose2dExplicit,
    ConvTranspose3dExplicit,
    LazyConv1dExplicit,
    LazyConv2dExplicit,
    LazyConv3dExplicit,
    LazyConvTranspose1dExplicit,
    LazyConvTranspose2dExplicit,
    LazyConvTranspose3dExplicit,
)

__all__ = [
    "Conv1dExplicit",
    "Conv2dExplicit",
    "Conv3dExplicit",
    "ConvTranspose1dExplicit",
    "ConvTranspose2dExplicit",
    "ConvTranspose3dExplicit",
    "LazyConv1dExplicit",
    "LazyConv2dExplicit",
    "LazyConv3dExplicit",
    "LazyConvTranspose1dExplicit",
    "LazyConvTranspose2dExplicit",
    "LazyConvTranspose3dExplicit",
]
