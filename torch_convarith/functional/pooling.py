"""Pooling with torch.nn.functional's signatures, and pooling that torch does not have.

Each function checks its arguments against relationship 7 (with padding and ``ceil_mode`` as torch rules them) before
anything is allocated. Input is (N, C, *spatial) or (C, *spatial), output likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _ops
from ..geometry import Axis, Geometry, GeometryError, _per_axis_numbers, per_axis, pooling_output_size
from .unfold import remembered

TIES = ("first", "all", "split")


def max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "first",
) -> Any:
    """1-D max pooling; see :func:`max_pool2d`."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, ties, False)


def min_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """1-D min pooling: :func:`max_pool1d` of the other end, arguments and errors alike."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, "first", True)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "first",
) -> Any:
    """2-D max pooling, as torch.nn.functional.max_pool2d.

    Args:
        input: (N, C, H, W) or (C, H, W); any real dtype.
        kernel_size: the window, an int or one per axis.
        stride: between windows; the window's size by default.
        padding: on each side, at most half the kernel, as torch rules it; what is padded is never the maximum.
        dilation: spacing of the window's taps.
        ceil_mode: whether a last, incomplete window counts.
        return_indices: whether to return, too, where in its plane each maximum stands; int64.
        ties: where the gradient goes if several inputs are the maximum: to the ``"first"``, as in torch; to ``"all"``
            of them, each in full; or ``"split"`` into equal shares. Values are the same. A NaN is a maximum.

    Returns:
        (N, C, H', W'), H' = floor((H + 2p - k - (k-1)(d-1)) / s) + 1; or that and the indices.

    Raises:
        GeometryError: a window that does not fit, or padding of more than half of it.
        RuntimeError: a window that lies wholly in the padding: it has no maximum.

    >>> x = torch.tensor([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
    >>> max_pool2d(x[None], 3, stride=1)[0].tolist()  # the guide's figure 1.6
    [[3, 3, 3], [3, 3, 3], [3, 2, 3]]
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, ties, False)


def min_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """2-D min pooling: :func:`max_pool2d` of the other end, arguments and errors alike.

    >>> min_pool2d(torch.tensor([[[3, 1], [2, 4]]]), 2).tolist()
    [[[1]]]
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, "first", True)


def max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "first",
) -> Any:
    """3-D max pooling; see :func:`max_pool2d`."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, ties, False)


def min_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """3-D min pooling: :func:`max_pool3d` of the other end, arguments and errors alike."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, "first", True)


def avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    dilation: Any = 1,
) -> Tensor:
    """1-D average pooling; see :func:`avg_pool2d`."""
    return _avg_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
) -> Tensor:
    """2-D average pooling, as torch.nn.functional.avg_pool2d, and with dilation.

    Args:
        input: (N, C, H, W) or (C, H, W). Means of integers are truncated.
        kernel_size: the window, an int or one per axis.
        stride: between windows; the window's size by default.
        padding: zeros on each side, at most half the window.
        ceil_mode: whether a last, incomplete window counts.
        count_include_pad: whether padding counts in the divisor; what ``ceil_mode`` adds never does.
        divisor_override: in place of the count, not 0.
        dilation: spacing of the window's taps.

    Raises:
        GeometryError: a window that does not fit, or padding of more than half of it.
        RuntimeError: a dtype or divisor that cannot be; without ``count_include_pad``, a window of padding alone.

    >>> x = torch.tensor([[3.0, 3, 2], [0, 0, 1], [3, 1, 2]])
    >>> avg_pool2d(x[None], 3)  # 15 / 9, the guide's figure 1.5
    tensor([[[1.6667]]])
    """
    return _avg_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
) -> Tensor:
    """3-D average pooling; see :func:`avg_pool2d`."""
    return _avg_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    signed: bool = True,
) -> Tensor:
    """1-D L^p pooling; see :func:`lp_pool2d`."""
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode, signed)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    signed: bool = True,
) -> Tensor:
    """2-D L^p pooling.

    Args:
        input: (N, C, H, W) or (C, H, W).
        norm_type: ``p``; with ``signed=False`` any real ``p >= 1``, or infinity (the largest ``|x|``).
        kernel_size: the window, an int or one per axis.
        stride: between windows; the window's size by default.
        ceil_mode: whether a last, incomplete window counts.
        signed: True computes what torch.nn.functional.lp_pool2d does, ``(sum x^p)^(1/p)``, which is NaN where an odd
            ``p`` meets a negative sum, and scales an incomplete window as if it were whole. False computes the norm,
            ``(sum |x|^p)^(1/p)``, of what a window has. Its gradient, ``(sum |x|^p)^(1/p - 1) |x|^(p-1) sign(x)``, is
            0 where the sum is 0.

    Raises:
        GeometryError: a window that does not fit.
        ValueError: ``signed=False`` with ``p < 1``.

    >>> x = torch.tensor([[[-3.0, 4.0], [0.0, 0.0]]])
    >>> lp_pool2d(x, 2, 2).item(), lp_pool2d(x, float("inf"), 2, signed=False).item()
    (5.0, 4.0)
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode, signed)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    signed: bool = True,
) -> Tensor:
    """3-D L^p pooling; see :func:`lp_pool2d`."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode, signed)


def median_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """1-D median pooling; see :func:`median_pool2d`."""
    return _median_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode)


def median_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """2-D median pooling: the median of what each window sees, padding left out.

    Of an even count the lower of the two middle values, as torch.median; a NaN makes the median NaN.
    Arguments and errors are :func:`max_pool2d`'s.

    >>> median_pool2d(torch.tensor([[[9, 1], [2, 4]]]), 2).tolist()
    [[[2]]]
    """
    return _median_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode)


def median_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """3-D median pooling; see :func:`median_pool2d`."""
    return _median_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode)


def pattern_pool(
    x: Tensor,
    fn: Callable[[Tensor], Tensor],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    pad_value: float = 0.0,
) -> Tensor:
    """Pooling by any differentiable function of a window.

    Args:
        x: (N, C, *spatial) or, with a ``kernel_size`` per axis, (C, *spatial); 1 to 3 axes.
        fn: takes a window, (m,), to a scalar. It is mapped by torch.func.vmap, and so written of torch's functions.
        kernel_size: an int, or one per axis: m is their product, taps in row-major order.
        stride: between windows; the window's size by default.
        padding: an int or one per axis, at most half the kernel, as torch rules it.
        dilation: spacing of the window's taps.
        ceil_mode: whether a last, incomplete window counts.
        pad_value: what a window sees outside the input.

    Raises:
        GeometryError: a window that does not fit, or ``fn`` that does not give a scalar.

    >>> x = torch.arange(6.0).reshape(1, 1, 6)
    >>> pattern_pool(x, lambda window: window.logsumexp(0), 2)
    tensor([[[1.3133, 3.3133, 5.3133]]])
    """
    axes = len(kernel_size) if isinstance(kernel_size, Sequence) else x.dim() - 2
    if not 1 <= axes <= 3:
        raise GeometryError(f"x must be (N, C, *spatial) with 1 to 3 axes, got shape {tuple(x.shape)}")
    geometry = _check("pattern_pool", axes, x, kernel_size, stride, padding, dilation, ceil_mode)
    windows = _windows(x, geometry, pad_value)  # (..., *output, m)
    result = torch.func.vmap(fn)(windows.reshape(-1, windows.shape[-1]))
    if result.dim() != 1:
        raise GeometryError(f"fn must take a window to a scalar, it gave shape {tuple(result.shape[1:])}")
    return result.reshape(windows.shape[:-1])


# What they share -----------------------------------------------------------------------------------------------------


def pooling_geometry(
    input_size: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Geometry:
    """The windows as a :class:`~torch_convarith.Geometry`: where ``ceil_mode`` adds a window, padding at the end does.

    >>> pooling_geometry(6, 3, 2, ceil_mode=True)[0].padding
    (0, 1)
    """
    stride = _stride(stride, kernel_size)
    outputs = pooling_output_size(input_size, kernel_size, stride, padding, dilation, ceil_mode)
    numbers = _per_axis_numbers(input_size, kernel_size, stride, padding, dilation)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    axes = []
    for (i, k, s, (lo, hi), d, name), o in zip(numbers, outputs, strict=True):
        last = (o - 1) * s + k + (k - 1) * (d - 1)
        axes.append(Axis(i, k, s, (lo, max(hi, last - i - lo)), d, name=name))
    return Geometry(tuple(axes))


def _stride(stride: Any, kernel_size: Any) -> Any:
    """None and an empty sequence stand for the window's size."""
    return kernel_size if stride is None or (isinstance(stride, Sequence) and not stride) else stride


def _raw_geometry(
    name: str,
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> tuple[Any, ...]:
    """kernel_size, stride, padding (lo and hi per axis), dilation and ceil_mode as the operators take them."""
    if input.dim() not in (axes + 1, axes + 2):
        raise GeometryError(
            f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to {name}, but got input of size: "
            f"{list(input.shape)}"
        )
    return remembered(_window_geometry)(
        name, tuple(input.shape), axes, kernel_size, stride, padding, dilation, ceil_mode
    )


@lru_cache(maxsize=256)
def _window_geometry(
    name: str, shape: tuple, axes: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Any, ...]:
    size = shape[-axes:]
    if any(i == 0 for i in size):
        raise GeometryError(f"{name} needs inputs along every axis, got input of size {list(shape)}")
    kernel = per_axis(kernel_size, axes, "kernel_size")
    stride = per_axis(_stride(stride, kernel_size), axes, "stride")
    pads = [p if isinstance(p, Sequence) else (p, p) for p in per_axis(padding, axes, "padding")]
    dilation = per_axis(dilation, axes, "dilation")
    pooling_output_size(size, kernel, stride, tuple(pads), dilation, ceil_mode)  # checks
    return kernel, stride, tuple(side for pair in pads for side in pair), dilation, ceil_mode


def full_precision_under_autocast(input: Tensor) -> Tensor:
    """On the CPU, torch's autocast has 3-D pooling compute, and return, float32."""
    if input.dtype not in (torch.float16, torch.bfloat16) or input.device.type != "cpu":
        return input
    return input.float() if torch.is_autocast_enabled("cpu") else input


def _max_pool(
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
    ties: str,
    minimum: bool,
) -> Any:
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}")
    name = f"{'min' if minimum else 'max'}_pool{axes}d"
    geometry = _raw_geometry(name, axes, input, kernel_size, stride, padding, dilation, ceil_mode)
    if axes == 3 and not return_indices:  # with indices torch keeps the dtype
        input = full_precision_under_autocast(input)
    if ties != "first":
        y = _ops.max_pool_ties(input, ties == "split", *geometry, minimum)
        return (y, _ops.max_pool_with_indices(input.detach(), *geometry, minimum)[1]) if return_indices else y
    if return_indices:
        return _ops.max_pool_with_indices(input, *geometry, minimum)
    # Each operator has every derivative; where a backward pass is due, it is quicker to keep where the maxima stand.
    if not (input.requires_grad and torch.is_grad_enabled()):
        return _ops.max_pool(input, *geometry, minimum)
    max_pool = _ops.max_pool_with_taps if _ops.taps_pay(input, *geometry[:2]) else _ops.max_pool_with_indices
    return max_pool(input, *geometry, minimum)[0]


def _avg_pool(
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    if not is_compiling():
        options = (ceil_mode, count_include_pad, divisor_override)
        y = _ops.direct_avg_pool(axes, input, kernel_size, stride, padding, dilation, *options)
        if y is not None:
            return y
    geometry = _raw_geometry(f"avg_pool{axes}d", axes, input, kernel_size, stride, padding, dilation, ceil_mode)
    if divisor_override == 0:
        raise GeometryError("divisor must be not zero")
    if axes == 3:
        input = full_precision_under_autocast(input)
    return _ops.avg_pool(input, *geometry, count_include_pad, divisor_override)


def _lp_pool(
    axes: int, input: Tensor, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool, signed: bool
) -> Tensor:
    if not signed and not norm_type >= 1:
        raise ValueError(f"L^p pooling with signed=False needs p >= 1, not {norm_type}")
    if norm_type == 0:
        raise ValueError("L^p pooling needs a norm_type other than 0")
    geometry = _raw_geometry(f"lp_pool{axes}d", axes, input, kernel_size, stride, 0, 1, ceil_mode)
    if axes == 3:
        input = full_precision_under_autocast(input)
    if math.isinf(norm_type):  # of -infinity: the smallest |x|
        return _max_pool(axes, input.abs(), kernel_size, stride, 0, 1, ceil_mode, False, "first", minimum=norm_type < 0)
    if not input.is_floating_point():  # torch's formula as it stands: its mean of integers is truncated
        if not signed:
            raise TypeError(f"lp_pool{axes}d with signed=False takes floating-point input, not {input.dtype}")
        mean = _ops.avg_pool(input.pow(norm_type), *geometry, True, None)
        return (mean.sign() * mean.abs().relu()).mul(math.prod(geometry[0])).pow(1.0 / norm_type)
    return _ops.lp_pool(input, float(norm_type), signed, *geometry)


def _windows(x: Tensor, geometry: Geometry, pad_value: Any) -> Tensor:
    """What each window sees, (..., *output, taps)."""
    axes = len(geometry)
    first = x.dim() - axes
    pads = [side for pair in reversed(geometry.padding) for side in pair]
    x = torch.nn.functional.pad(x, pads, value=pad_value) if any(pads) else x
    for n, a in enumerate(geometry):
        place = torch.arange(a.output, device=x.device)[:, None] * a.stride + (
            torch.arange(a.kernel, device=x.device) * a.dilation
        )
        x = (
            x.index_select(first + n, place.flatten())
            .unflatten(first + n, (a.output, a.kernel))
            .movedim(first + n + 1, -1)
        )
    return x.flatten(-axes)


def _check(
    name: str,
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Geometry:
    _raw_geometry(name, axes, input, kernel_size, stride, padding, dilation, ceil_mode)
    kernel = per_axis(kernel_size, axes, "kernel_size")
    return pooling_geometry(tuple(input.shape[-axes:]), kernel, _stride(stride, kernel), padding, dilation, ceil_mode)


def _median_pool(
    axes: int, input: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Tensor:
    name = f"median_pool{axes}d"
    geometry = _check(name, axes, input, kernel_size, stride, padding, dilation, ceil_mode)
    for a in geometry:
        for o in range(a.output):
            if all(a.input_index(o, tap) is None for tap in range(a.kernel)):
                raise GeometryError(f"{name}: window {o} of {a} lies wholly in the padding, it has no median")
    is_floating = input.is_floating_point()
    last = math.inf if is_floating else torch.iinfo(input.dtype).max
    count = _windows(torch.ones(geometry.input_size, dtype=torch.long, device=input.device), geometry, 0).sum(-1)
    windows = _windows(input, geometry, last).sort(-1).values  # padding comes last, and behind it NaN
    middle = ((count - 1) // 2).expand(windows.shape[:-1]).unsqueeze(-1)
    median = windows.gather(-1, middle).squeeze(-1)
    if not is_floating:
        return median
    greatest = windows[..., -1]
    return torch.where(greatest.isnan(), greatest, median)
