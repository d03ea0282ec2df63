"""What the C++ engine says of itself: the choice of a kernel, and its switches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .. import _C

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes that the engine has fast kernels for, as C++ numbers them."""

PASSES = {"conv": 0, "conv_transpose": 1, "conv_weight": 2}

ALGORITHMS = ("reference", "offset", "outer", "dot", "winograd")

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
) -> dict[str, Any]:
    """algorithm, scratch_bytes, phases and multiplications of an operator on contiguous CPU tensors."""
    return _C.explain_kernel(
        PASSES[operator],
        DTYPES.get(dtype, -1),
        list(x),
        list(w),
        list(stride),
        list(padding),
        list(dilation),
        groups,
    )


@contextmanager
def forced_algorithm(name: str) -> Iterator[None]:
    """Every operator by one algorithm, where it can: for tests and benchmarks; one thread at a time."""
    _C._force_algorithm(name)
    try:
        yield
    finally:
        _C._force_algorithm("auto")
