"""torch.nn's layers on the explicit operators."""

from .conv import (
    Conv1dExplicit,
    Conv2dExplicit,
    Conv3dExplicit,
    ConvTranspose1dExplicit,
    ConvTranspose2dExplicit,
    ConvTranspose3dExplicit,
)
from .local import (
    LocallyConnected1d,
    LocallyConnected2d,
    LocallyConnected3d,
    LocallyConnectedTranspose1d,
    LocallyConnectedTranspose2d,
    LocallyConnectedTranspose3d,
)
from .normalization import LocalResponseNormExplicit
from .pooling import (
    AvgPool1dExplicit,
    AvgPool2dExplicit,
    AvgPool3dExplicit,
    LPPool1dExplicit,
    LPPool2dExplicit,
    LPPool3dExplicit,
    MaxPool1dExplicit,
    MaxPool2dExplicit,
    MaxPool3dExplicit,
)
from .unfold import FoldExplicit, UnfoldExplicit

__all__ = [
    "AvgPool1dExplicit",
    "AvgPool2dExplicit",
    "AvgPool3dExplicit",
    "Conv1dExplicit",
    "Conv2dExplicit",
    "Conv3dExplicit",
    "ConvTranspose1dExplicit",
    "ConvTranspose2dExplicit",
    "ConvTranspose3dExplicit",
    "FoldExplicit",
    "LPPool1dExplicit",
    "LPPool2dExplicit",
    "LPPool3dExplicit",
    "LocalResponseNormExplicit",
    "LocallyConnected1d",
    "LocallyConnected2d",
    "LocallyConnected3d",
    "LocallyConnectedTranspose1d",
    "LocallyConnectedTranspose2d",
    "LocallyConnectedTranspose3d",
    "MaxPool1dExplicit",
    "MaxPool2dExplicit",
    "MaxPool3dExplicit",
    "UnfoldExplicit",
]
