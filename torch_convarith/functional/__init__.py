"""torch.nn.functional's signatures on the explicit operators: checks, bias, autocast."""

from .conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    zero_insert,
)
from .local import locally_connected, locally_connected_transpose
from .normalization import local_response_norm
from .pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    median_pool1d,
    median_pool2d,
    median_pool3d,
    min_pool1d,
    min_pool2d,
    min_pool3d,
    pattern_pool,
)
from .unfold import fold, unfold

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fold",
    "local_response_norm",
    "locally_connected",
    "locally_connected_transpose",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "median_pool1d",
    "median_pool2d",
    "median_pool3d",
    "min_pool1d",
    "min_pool2d",
    "min_pool3d",
    "pattern_pool",
    "unfold",
    "zero_insert",
]
