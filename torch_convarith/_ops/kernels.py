"""What the C++ engine says of itself: the choice of a kernel, and its switches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .. import _C

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes that the CPU engine has fast kernels for, as C++ numbers them; CUDA's numbers begin alike."""

CUDA_OTHER_DTYPE = 4
"""Any other: it goes to the reference kernels."""

PASSES = {"conv": 0, "conv_transpose": 1, "conv_weight": 2}

ALGORITHMS = tuple(_C._ALGORITHMS)
"""The CPU engine's."""

HOPPER_MULTIPROCESSORS = 132
"""Of an H100 or H200, for whoever asks without having a GPU."""

set_winograd = _C.set_winograd
winograd_enabled = _C.winograd_enabled


def explain_kernel(
    operator: str,
    dtype: torch.dtype,
    x: Sequence[int],
    w: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
) -> dict[str, Any]:
    """algorithm, scratch_bytes, phases and multiplications of an operator; on CUDA also splits, and maybe the tile."""
    arguments = (list(x), list(w), list(stride), list(padding), list(dilation), groups, channels_last)
    if device.type == "cpu":
        return _C.explain_cpu_kernel(PASSES[operator], DTYPES.get(dtype, -1), *arguments)
    multiprocessors = HOPPER_MULTIPROCESSORS
    if torch.cuda.is_available():
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return _C.explain_cuda_kernel(PASSES[operator], DTYPES.get(dtype, CUDA_OTHER_DTYPE), *arguments, multiprocessors)


@contextmanager
def forced_algorithm(name: str) -> Iterator[None]:
    """Every operator on the CPU by one algorithm, where it can: for tests and benchmarks; one thread at a time."""
    _C._force_algorithm(name)
    try:
        yield
    finally:
        _C._force_algorithm("auto")


@contextmanager
def forced_cuda_kernel(name: str, splits: int = 0, packed_bytes: int = 0) -> Iterator[None]:
    """Likewise on CUDA: an algorithm, perhaps with a tile (``"tensor_core:64x64"``).

    Also how often a sum is split, and how many bytes of weights are packed at a time.
    """
    _C._force_cuda_kernel(name, splits, packed_bytes)
    try:
        yield
    finally:
        _C._force_cuda_kernel("auto", 0, 0)
