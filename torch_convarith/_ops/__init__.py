"""The only door to C++: differentiable operators. Importing this loads the extension, which registers its schemas.

Each operator is registered four times over, because each way alone fails somewhere (torch 2.13):

1. schema and kernels in C++;
2. ``register_fake``: sizes under torch.compile and torch.export, from geometry.py;
3. a ``torch.autograd.Function`` with ``setup_context``, ``backward``, ``jvp`` and ``vmap``, behind a function that
   Dynamo is told to keep whole: eager autograd, forward AD, torch.func, torch.compile;
4. ``register_autograd`` with the same rule: the raw ``torch.ops`` operator, opcheck, strict export.

Alone, 4 gives silently wrong forward AD and 3 cannot be compiled or exported whole.
"""

try:
    from .. import _C
except ImportError as error:
    raise ImportError(
        f"torch_convarith's C++ extension could not be loaded ({error}). "
        "Build it for the installed torch: pip install --no-build-isolation ."
    ) from error

build_info = _C.build_info
# Straight into C++ for the plain case, None in every other: see csrc/direct_call.cpp.
direct_avg_pool, direct_conv, direct_conv_transpose = _C.avg_pool, _C.conv, _C.conv_transpose

from .conv import METHODS, conv, conv_transpose, conv_weight  # noqa: E402
from .kernels import (  # noqa: E402
    explain_kernel,
    forced_algorithm,
    forced_cuda_kernel,
    set_winograd,
    winograd_enabled,
)
from .matrix import csr, csr_weight  # noqa: E402
from .normalization import lrn  # noqa: E402
from .pooling import (  # noqa: E402
    avg_pool,
    avg_pool_transpose,
    lp_pool,
    max_pool,
    max_pool_ties,
    max_pool_with_indices,
    max_pool_with_taps,
    pool_scatter,
    pool_select,
    tap_scatter,
    tap_select,
    taps_pay,
)
from .unfold import fold, unfold  # noqa: E402
from .zero_insert import zero_insert, zero_remove  # noqa: E402

__all__ = [
    "METHODS",
    "avg_pool",
    "avg_pool_transpose",
    "build_info",
    "conv",
    "conv_transpose",
    "conv_weight",
    "csr",
    "csr_weight",
    "direct_avg_pool",
    "direct_conv",
    "direct_conv_transpose",
    "explain_kernel",
    "fold",
    "forced_algorithm",
    "forced_cuda_kernel",
    "lp_pool",
    "lrn",
    "max_pool",
    "max_pool_ties",
    "max_pool_with_indices",
    "max_pool_with_taps",
    "pool_scatter",
    "pool_select",
    "set_winograd",
    "tap_scatter",
    "tap_select",
    "taps_pay",
    "unfold",
    "winograd_enabled",
    "zero_insert",
    "zero_remove",
]
