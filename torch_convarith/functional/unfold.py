"""unfold and fold with torch.nn.functional's signatures, in 1, 2 and 3 dimensions, padded as you like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..geometry import Geometry, GeometryError, per_axis
from .conv import _refuse_negative


def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """What each output sees through each tap, as torch.nn.functional.unfold and in 1 and 3 dimensions.

    Args:
        input: (N, C, *spatial) or (C, *spatial).
        kernel_size: one per axis, which says how many axes there are; an int stands for two axes (for three, if the
            input has five dimensions).
        dilation: an int or one per axis.
        padding: zeros on each side, an int, one per axis, or ``(lo, hi)`` per axis.
        stride: an int or one per axis.

    Returns:
        (N, C * taps, outputs) or (C * taps, outputs): taps and outputs in row-major order.

    Raises:
        GeometryError: the kernel does not fit.

    >>> unfold(torch.arange(4.0).reshape(1, 1, 4), (3,), padding=((1, 0),)).tolist()  # asymmetric: one zero in front
    [[[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    """
    axes = len(kernel_size) if isinstance(kernel_size, Sequence) and len(kernel_size) > 0 else max(2, input.dim() - 2)
    kernel = per_axis(kernel_size, axes, "kernel_size")
    if not 1 <= axes <= 3 or input.dim() not in (axes + 1, axes + 2):
        raise GeometryError(
            f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to unfold with kernel_size "
            f"{kernel_size}, but got input of size: {list(input.shape)}"
        )
    _refuse(padding)
    geometry, _ = remembered(_raw)(tuple(input.shape[-axes:]), kernel, stride, padding, dilation)
    columns = _ops.unfold(input, *geometry)
    return columns.flatten(-3, -2)


def fold(
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    average: bool = False,
) -> Tensor:
    """The adjoint of :func:`unfold`: sums what the windows hold, each where it was seen; as torch.nn.functional.fold.

    Args:
        input: (N, C * taps, outputs) or (C * taps, outputs).
        output_size: spatial sizes, one per axis, which says how many axes there are; an int stands for two.
        kernel_size: an int or one per axis.
        dilation: an int or one per axis.
        padding: an int, one per axis, or ``(lo, hi)`` per axis.
        stride: an int or one per axis.
        average: whether to divide by the number of windows that see an element, so that ``fold(unfold(x))`` is x.
            What no window sees is 0.

    Returns:
        (N, C, *output_size) or (C, *output_size).

    Raises:
        GeometryError: the kernel does not fit, or the input's size is another.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> fold(unfold(x, 2), 3, 2)[0, 0].tolist()
    [[0.0, 2.0, 2.0], [6.0, 16.0, 10.0], [6.0, 14.0, 8.0]]
    >>> torch.equal(fold(unfold(x, 2), 3, 2, average=True), x)
    True
    """
    axes = len(output_size) if isinstance(output_size, Sequence) else 2
    size, kernel = per_axis(output_size, axes, "output_size"), per_axis(kernel_size, axes, "kernel_size")
    if not 1 <= axes <= 3 or input.dim() not in (2, 3):
        raise GeometryError(
            f"Expected 2D (unbatched) or 3D (batched) input to fold and 1 to 3 output sizes, but got input of size: "
            f"{list(input.shape)} and output_size {output_size}"
        )
    _refuse(padding)
    geometry, windows = remembered(_raw)(size, kernel, stride, padding, dilation)
    taps, outputs = math.prod(kernel), math.prod(windows)
    if input.shape[-2] % taps or input.shape[-1] != outputs:
        raise GeometryError(
            f"fold with output_size {size} and kernel_size {kernel} expects C * {taps} rows of {outputs} columns, one "
            f"per window (relationship 15), but got input of size {list(input.shape)}"
        )
    columns = input.reshape(*input.shape[:-2], input.shape[-2] // taps, taps, outputs)
    x = _ops.fold(columns, size, *geometry)
    if not average:
        return x
    seen = _ops.fold(torch.ones(taps, outputs, dtype=x.dtype, device=x.device), size, *geometry)
    return x / seen.clamp(min=1)


def remembered(function: Any) -> Callable[..., Any]:
    """A cached function of sizes, or the function itself where it is traced or a size is a symbol or a list."""

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return function.__wrapped__(*args)
        try:
            return function(*args)
        except TypeError:
            return function.__wrapped__(*args)

    return call


@lru_cache(maxsize=256)
def _raw(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Any, ...]:
    """kernel_size, stride, padding and dilation as the operators take them; and the windows along each axis."""
    geometry = Geometry.of(size, kernel, stride, padding, dilation)
    sides = tuple(side for pair in geometry.padding for side in pair)
    return (geometry.kernel_size, geometry.stride, sides, geometry.dilation), geometry.output_size


def _refuse(padding: Any) -> None:
    for p in padding if isinstance(padding, Sequence) and not isinstance(padding, str) else (padding,):
        _refuse_negative(p)
