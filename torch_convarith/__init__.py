"""Convolution arithmetic for PyTorch: a convolution is a sparse matrix, and every size obeys the guide."""

from . import backends, functional, models
from ._ops import build_info
from .analysis import explain, lint, nearest_valid_sizes, receptive_field, solve, trace, valid_sizes
from .backends import explain_kernel
from .convert import convert, plan_conversion, revert
from .functional import zero_insert
from .geometry import (
    Axis,
    Geometry,
    GeometryError,
    Relationship,
    TransposedAxis,
    output_size,
    pooling_output_size,
    relationship,
    relationships,
    transposed_output_size,
)
from .matrix import ConvMatrix, conv_matrix
from .modules import (
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
from .pattern import Pattern

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "Conv1dExplicit",
    "Conv2dExplicit",
    "Conv3dExplicit",
    "ConvMatrix",
    "ConvTranspose1dExplicit",
    "ConvTranspose2dExplicit",
    "ConvTranspose3dExplicit",
    "Geometry",
    "GeometryError",
    "LazyConv1dExplicit",
    "LazyConv2dExplicit",
    "LazyConv3dExplicit",
    "LazyConvTranspose1dExplicit",
    "LazyConvTranspose2dExplicit",
    "LazyConvTranspose3dExplicit",
    "Pattern",
    "Relationship",
    "TransposedAxis",
    "backends",
    "build_info",
    "conv_matrix",
    "convert",
    "explain",
    "explain_kernel",
    "functional",
    "lint",
    "models",
    "nearest_valid_sizes",
    "output_size",
    "plan_conversion",
    "pooling_output_size",
    "receptive_field",
    "relationship",
    "relationships",
    "revert",
    "solve",
    "trace",
    "transposed_output_size",
    "valid_sizes",
    "zero_insert",
]
