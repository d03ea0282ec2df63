"""Convolution arithmetic for PyTorch: a convolution is a sparse matrix, and every size obeys the guide."""

from . import backends, functional
from ._ops import build_info
from .backends import explain_kernel
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
    "Pattern",
    "Relationship",
    "TransposedAxis",
    "backends",
    "build_info",
    "conv_matrix",
    "explain_kernel",
    "functional",
    "output_size",
    "pooling_output_size",
    "relationship",
    "relationships",
    "transposed_output_size",
    "zero_insert",
]
