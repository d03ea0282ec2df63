"""Which kernels run: switches of the CPU's as torch.backends has them, and what would be chosen on either device.

``winograd`` (default True): convolutions whose kernels have several taps per step of the stride along one of the last
two axes or both, or along the first of three alone, their transposes and their weight gradients may run in float32 and
the half precisions by Winograd's F(m, r) [Lavin & Gray 2015, arXiv:1509.09308] along each of these axes: tiles of 5 to
8 products, whichever cost least, for m outputs of r taps, m + r being one more; for 3 x 3 a quarter to a fifth of the
multiplications. Kernels of more than 5 taps are sums of parts. It is deterministic and rounds differently. Against
float64 its largest error stays within ``WINOGRAD_BOUND`` of the largest magnitude that the sum could have had,
``conv(|x|, |w|)``. Magnitudes near the largest float overflow earlier. An infinity or a NaN in the input spreads over
the cells of every tile that sees it (a cell is one output, or one for each phase of a transposed stride); in the
weight's gradient, over all taps between the channels that it meets. Weights that are not finite go to the plain kernels
where there is padding. Switch it off for bitwise comparisons with the direct sum:

>>> import torch_convarith as tc
>>> tc.backends.winograd
True
>>> with flags(winograd=False):
...     explain_kernel((1, 64, 56, 56), (64, 64, 3, 3), padding=1).algorithm
'outer'
>>> explain_kernel((1, 64, 56, 56), (64, 64, 3, 3), padding=1).algorithm
'winograd'
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from . import _ops
from .geometry import Geometry

WINOGRAD_BOUND = 4e-5
"""Of ``|conv(x, w) - exact|`` in float32, relative to the largest entry of ``conv(|x|, |w|)``; so for the others.

Normally distributed data stay below 8e-6. What comes near the bound are numbers of one sign and about one size in a
transposed convolution of one or two pixels, whose outputs sum few of the products that a tile makes of them.
"""

winograd: bool


@dataclass(frozen=True)
class Kernel:
    """What an operator runs.

    Attributes:
        operator: ``"conv"``, ``"conv_transpose"`` or ``"conv_weight"``.
        algorithm: ``"reference"`` is plain C++, or one CUDA thread per element, for every dtype, and for very small
            sizes on the CPU. On the CPU, ``"outer"`` multiplies with vectors along the out channels (the in channels,
            for C^T), ``"offset"`` with vectors along the outputs; ``"dot"`` is the latter for the weight's gradient;
            ``"images"`` multiplies with vectors along the batch; ``"amx"`` multiplies bfloat16 in the processor's
            tiles; ``"depthwise"`` keeps the outputs of few channels per group in registers; ``"winograd"``. On CUDA,
            ``"tensor_core"`` (of float32: in tf32) and ``"multiply_add"`` are products of tiles, ``"direct"`` is for
            few channels per group.
        isa: instruction set: ``"baseline"``, ``"avx2"``, ``"avx512"``, ``"avx512_bf16"`` or ``"avx512_amx"``. The last
            two's own products of bfloat16 (all direct ones, and ``"amx"``) take subnormal operands for zeros, as
            torch's do there. ``"sm_80"`` on CUDA, for this and later ones.
        phases: separate convolutions: the phases of the stride of a transposed convolution, else 1, as for weights
            that outweigh the pixels, all of which multiply each and are then added up; 0 for ``"reference"``.
        multiplications: of two numbers, by the algorithm chosen and without its transforms.
        scratch_bytes: memory beside the operands, of all threads together; an upper bound.
        device: ``"cpu"`` or ``"cuda"``.
        tile: of a product on CUDA, ``"128x128"``, ``"128x32"`` or ``"64x64"``: columns (outputs; in the weight's
            gradient input channels times taps) by rows (channels).
        splits: parts of a sum that blocks on CUDA compute apart, and a second kernel adds up in order.
    """

    operator: str
    algorithm: str
    isa: str
    phases: int
    multiplications: int
    scratch_bytes: int
    device: str = "cpu"
    tile: str | None = None
    splits: int = 1


def explain_kernel(
    input_size: Sequence[int],
    weight: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    operator: str = "conv",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Kernel:
    """Which kernel a convolution runs, with the present number of threads or on the present GPU.

    Without a GPU, ``device="cuda"`` tells of an H100. Whether float32 may be tf32 there is
    ``torch.backends.cudnn.conv``'s to say.

    Args:
        input_size: (N, C, *input) of the convolution, also for ``operator="conv_transpose"``, whose result it is.
        weight: (K, C/groups, *kernel); a tensor of that shape, which gives the dtype as well; or a convolution layer,
            which gives all the rest but ``operator``.
        stride: an int or one per axis.
        padding: an int, one per axis, ``(lo, hi)`` per axis, or ``"same"`` or ``"valid"``.
        dilation: an int or one per axis.
        groups: number of groups.
        operator: ``"conv"``, ``"conv_transpose"`` (the gradient of the input) or ``"conv_weight"``.
        dtype: of the tensors.
        device: ``"cpu"`` or ``"cuda"``.
        memory_format: of the tensors: contiguous, or ``torch.channels_last`` or ``torch.channels_last_3d``.

    Raises:
        GeometryError: sizes that do not fit.
        ValueError: an unknown operator or device.

    >>> explain_kernel((1, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, operator="conv_transpose").phases
    4
    >>> explain_kernel((1, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64, device="cuda").algorithm
    'direct'
    """
    if operator not in _ops.kernels.PASSES:
        raise ValueError(f"operator must be one of {', '.join(_ops.kernels.PASSES)}, not {operator!r}")
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, not {device}")
    if isinstance(weight, torch.nn.Module):
        layer: Any = weight
        weight = layer.weight
        stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups
    if isinstance(weight, torch.Tensor):
        weight, dtype = tuple(weight.shape), weight.dtype
    geometry = Geometry.of(tuple(input_size[2:]), tuple(weight[2:]), stride, padding, dilation)
    found = _ops.explain_kernel(
        operator,
        dtype,
        input_size,
        weight,
        geometry.stride,
        [side for pair in geometry.padding for side in pair],
        geometry.dilation,
        groups,
        channels_last=memory_format in (torch.channels_last, torch.channels_last_3d),
        device=device,
    )
    isa = _ops.build_info()["isa"] if device.type == "cpu" else "sm_80"
    return Kernel(operator=operator, isa=isa, device=device.type, **found)


@contextmanager
def flags(*, winograd: bool) -> Iterator[None]:
    """The switches for the length of a ``with`` block; they are the process's, not the thread's."""
    before = _ops.winograd_enabled()
    _ops.set_winograd(winograd)
    try:
        yield
    finally:
        _ops.set_winograd(before)


class _Backends(ModuleType):
    """The module itself, with its switches as properties."""

    @property
    def winograd(self) -> bool:
        return _ops.winograd_enabled()

    @winograd.setter
    def winograd(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"winograd must be a bool, not {enabled!r}")
        _ops.set_winograd(enabled)


sys.modules[__name__].__class__ = _Backends
