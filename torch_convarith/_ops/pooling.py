"""Pooling. Means are linear; a maximum's derivative picks inputs by place; L^p goes by two pointwise functions.

``geometry`` stands for kernel_size, stride, padding (lo and hi per axis), dilation, ceil_mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_exporting

from .conv import Ints, _is_channels_last
from .windows import Operator, adjoint_pair, apply, batched, check_shape, empty, keep, kept, pooled, register_autograd

_ops = torch.ops.torch_convarith

avg_pool, avg_pool_transpose = adjoint_pair("avg_pool", "avg_pool_transpose", lambda kernel, *_: len(kernel))
"""The mean of each window, ``avg_pool(x, *geometry, count_include_pad, divisor_override)``; and its adjoint."""

pool_select, pool_scatter = adjoint_pair("pool_select", "pool_scatter", lambda _indices, axes: axes)
"""``pool_select(x, indices, axes)`` picks what indices name in each plane; and its adjoint."""

tap_select, tap_scatter = adjoint_pair("tap_select", "tap_scatter", lambda _taps, kernel, *_: len(kernel))
"""``tap_select(x, taps, *geometry)`` picks what each window has at its tap, nothing on padding; and its adjoint."""

pool_ties, pool_ties_transpose = adjoint_pair(
    "pool_ties", "pool_ties_transpose", lambda _x, _y, kernel, *_: len(kernel)
)
"""``pool_ties(v, x, y, *geometry, split)`` sums v over the inputs x that equal their window's y; and its adjoint."""


@torch.library.register_fake("torch_convarith::avg_pool")
def _fake_avg_pool(x: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    return empty(x, pooled(x.shape, kernel, *rest[:4]), len(kernel))


@torch.library.register_fake("torch_convarith::avg_pool_transpose")
def _fake_avg_pool_transpose(y: Tensor, size: Ints, kernel: Ints, *rest: Any) -> Tensor:
    x = (*y.shape[: y.dim() - len(kernel)], *size)
    check_shape(y, "y", pooled(x, kernel, *rest[:4]))
    return empty(y, x, len(kernel))


@torch.library.register_fake("torch_convarith::pool_select")
def _fake_pool_select(x: Tensor, indices: Tensor, axes: int) -> Tensor:
    return empty(indices, indices.shape, axes, x.dtype)


@torch.library.register_fake("torch_convarith::pool_scatter")
def _fake_pool_scatter(y: Tensor, size: Ints, indices: Tensor, axes: int) -> Tensor:
    check_shape(y, "y", indices.shape)
    return empty(indices, (*y.shape[: y.dim() - axes], *size), axes, y.dtype)


@torch.library.register_fake("torch_convarith::tap_select")
def _fake_tap_select(x: Tensor, taps: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    check_shape(taps, "taps", pooled(x.shape, kernel, *rest))
    return empty(taps, taps.shape, len(kernel), x.dtype)


@torch.library.register_fake("torch_convarith::tap_scatter")
def _fake_tap_scatter(y: Tensor, size: Ints, taps: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    x = (*y.shape[: y.dim() - len(kernel)], *size)
    check_shape(y, "y", pooled(x, kernel, *rest))
    return empty(taps, x, len(kernel), y.dtype)


@torch.library.register_fake("torch_convarith::pool_ties")
def _fake_pool_ties(v: Tensor, x: Tensor, y: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    check_shape(v, "v", x.shape)
    return empty(x, pooled(x.shape, kernel, *rest[:4]), len(kernel))


@torch.library.register_fake("torch_convarith::pool_ties_transpose")
def _fake_pool_ties_transpose(v: Tensor, size: Ints, x: Tensor, y: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    check_shape(v, "v", y.shape)
    return empty(x, x.shape, len(kernel))


# Max and min -------------------------------------------------------------------------------------------------------


class _MaxPool(torch.autograd.Function):
    """forward(x, *geometry, minimum): the indices are found again where a derivative asks for them."""

    @staticmethod
    def forward(x: Tensor, *rest: Any) -> Tensor:
        return _ops.max_pool(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, *rest = kept(ctx)
        _, indices = max_pool_with_indices(x, kernel, *rest)
        size = tuple(x.shape[x.dim() - len(kernel) :])
        return (pool_scatter(grad, size, indices, len(kernel)), *(None,) * (1 + len(rest)))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> Tensor:
        x, kernel, *rest = kept(ctx)
        return pool_select(dx, max_pool_with_indices(x, kernel, *rest)[1], len(kernel))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return max_pool(*batched(info, in_dims, args)), 0


class _MaxPoolTies(torch.autograd.Function):
    """forward(x, split, *geometry, minimum): the gradient goes to all of equal maxima, with split in equal shares."""

    @staticmethod
    def forward(x: Tensor, split: bool, *rest: Any) -> Tensor:
        return _ops.max_pool(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, split, *geometry, _minimum = inputs
        keep(ctx, x, output, *geometry, split)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, kernel, *rest = kept(ctx)
        size = tuple(x.shape[x.dim() - len(kernel) :])
        return (pool_ties_transpose(grad, size, x, y, kernel, *rest), *(None,) * 7)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> Tensor:
        return pool_ties(dx, *kept(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return max_pool_ties(*batched(info, in_dims, args)), 0


@torch.compiler.allow_in_graph  # pure, one operator: see conv.py
def max_pool(x: Tensor, *rest: Any) -> Tensor:
    """The maximum of each window, ``rest`` being ``*geometry, minimum``."""
    return apply(_MaxPool, _ops.max_pool, x, *rest)


@torch.compiler.allow_in_graph
def max_pool_ties(x: Tensor, split: bool, *rest: Any) -> Tensor:
    """:func:`max_pool`, whose gradient goes to all of equal maxima: to each in full, or split among them."""
    return _MaxPoolTies.apply(x, split, *rest)


@torch.library.register_fake("torch_convarith::max_pool")
def _fake_max_pool(x: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    return empty(x, pooled(x.shape, kernel, *rest[:4]), len(kernel))


register_autograd("max_pool", _MaxPool)


def _max_pool_with(
    name: str, dtype: torch.dtype, select: Operator, scatter: Operator, rest_of: Callable[..., tuple]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """``name(x, *geometry, minimum)``: maxima and their places.

    ``select(dx, places, *rest_of(*geometry))`` picks what stands there, ``scatter`` is its adjoint.
    """
    operator = getattr(_ops, name)

    class MaxPoolWith(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            return operator(x, *rest)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
            x, kernel, *rest, _minimum = inputs
            if hasattr(ctx, "mark_non_differentiable"):  # register_autograd's context has none
                ctx.mark_non_differentiable(output[1])
            keep(ctx, tuple(x.shape[x.dim() - len(kernel) :]), output[1], *rest_of(kernel, *rest))

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _places: Any) -> tuple[Tensor | None, ...]:
            return (scatter(grad, *kept(ctx)), *(None,) * 6)

        @staticmethod
        def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> tuple[Tensor, None]:
            _size, *rest = kept(ctx)
            return select(dx, *rest), None

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
            return max_pool_with(*batched(info, in_dims, args)), (0, 0)

    @torch.compiler.allow_in_graph
    def max_pool_with(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return apply(MaxPoolWith, operator, x, *rest)

    @torch.library.register_fake(f"torch_convarith::{name}")
    def _fake(x: Tensor, kernel: Ints, *rest: Any) -> tuple[Tensor, Tensor]:
        size = pooled(x.shape, kernel, *rest[:4])
        return empty(x, size, len(kernel)), empty(x, size, len(kernel), dtype)

    register_autograd(name, MaxPoolWith)
    return max_pool_with


max_pool_with_indices = _max_pool_with(
    "max_pool_with_indices", torch.int64, pool_select, pool_scatter, lambda kernel, *_: (len(kernel),)
)
"""The maximum of each window, and where in its plane it stands: the first of equal ones."""

max_pool_with_taps = _max_pool_with(
    "max_pool_with_taps", torch.uint8, tap_select, tap_scatter, lambda *geometry: geometry
)
"""The maximum of each window, and its number in the window, in a byte: for windows of up to 256 elements."""


def taps_pay(x: Tensor, kernel: Ints, stride: Ints) -> bool:
    """Whether ``max_pool``'s backward pass is quicker by taps than by indices.

    By taps the CPU finds places in vectors, and reads a byte where an index has eight; it does so for windows of up to
    32 elements (csrc/cpu/pooling_scatter.h). Otherwise rows of inputs gather rows of outputs: some time for each row,
    and a comparison for each output and tap; the constants are measured. A GPU gathers by taps without more ado, where
    by indices it has to list the outputs of each input first.
    """
    taps = math.prod(kernel)
    if taps > 256 or is_exporting():  # an exported graph is for all sizes
        return False
    if x.device.type != "cpu":
        return True
    outputs = x.shape[-1] // stride[-1]  # of a row, or about as many
    if x.dim() == len(kernel) + 2 and _is_channels_last(x):
        outputs *= x.shape[1]
    elif taps <= 32:
        return True
    return 2 * outputs >= x.itemsize * (12 + taps)


# L^p ---------------------------------------------------------------------------------------------------------------
#
# y = (A |x|^p)^(1/p), A the sum over windows. With f(x) = |x|^(p-1) sign(x) and r(y) = y^(1-p), which is 0 at 0,
#     dy = r(y) A(f(x) dx)   and, its transpose,   gx = f(x) A^T(r(y) g).
# Signed, powers of x stand in the place of powers of |x|.


def _sum(v: Tensor, signed: bool, kernel: Ints, *rest: Any) -> Tensor:
    """A: signed, as torch has it, the mean of what ceil_mode leaves of a window times the whole window's count."""
    count = math.prod(kernel)
    return avg_pool(v, kernel, *rest, True, None) * count if signed else avg_pool(v, kernel, *rest, True, 1)


def _sum_transpose(v: Tensor, size: Ints, signed: bool, kernel: Ints, *rest: Any) -> Tensor:
    count = math.prod(kernel)
    if signed:
        return avg_pool_transpose(v, size, kernel, *rest, True, None) * count
    return avg_pool_transpose(v, size, kernel, *rest, True, 1)


def _power(v: Tensor, exponent: float) -> Tensor:
    """``v ** exponent``, and 0 at 0 where that is not finite."""
    if exponent >= 0:
        return v.pow(exponent)
    zero = v == 0
    return torch.where(zero, 0, torch.where(zero, 1, v).pow(exponent))


def _slope(x: Tensor, p: float, signed: bool) -> Tensor:
    """f: |x|^(p-1) sign(x)."""
    return _power(x, p - 1) if signed else _power(x.abs(), p - 1) * x.sign()


def _slope_derivative(x: Tensor, p: float, signed: bool) -> Tensor:
    return (p - 1) * _power(x if signed else x.abs(), p - 2)


def _inverse_slope(y: Tensor, p: float) -> Tensor:
    """r: y^(1-p), 0 where the sum is 0."""
    return torch.where(y == 0, 0, _power(y, 1 - p))


def _inverse_slope_derivative(y: Tensor, p: float) -> Tensor:
    return (1 - p) * _power(y, -p)


class _LpPool(torch.autograd.Function):
    """forward(x, p, signed, *geometry)."""

    @staticmethod
    def forward(x: Tensor, *rest: Any) -> Tensor:
        return _ops.lp_pool(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, *rest = inputs
        keep(ctx, x, output, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *rest = kept(ctx)
        return (lp_pool_backward(grad, x, y, *rest), *(None,) * len(rest))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> Tensor:
        x, y, p, signed, *geometry = kept(ctx)
        return _inverse_slope(y, p) * _sum(_slope(x, p, signed) * dx, signed, *geometry)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return lp_pool(*batched(info, in_dims, args)), 0


class _LpPoolBackward(torch.autograd.Function):
    """forward(g, x, y, p, signed, *geometry): f(x) A^T(r(y) g), a function of three tensors."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _ops.lp_pool_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, x, y, p, signed, kernel, *rest = kept(ctx)
        size = tuple(x.shape[x.dim() - len(kernel) :])
        needs_g, needs_x, needs_y = ctx.needs_input_grad[:3]
        dg = dx = dy = None
        if needs_g or needs_y:
            through = _sum(grad * _slope(x, p, signed), signed, kernel, *rest)
            dg = _inverse_slope(y, p) * through if needs_g else None
            dy = _inverse_slope_derivative(y, p) * g * through if needs_y else None
        if needs_x:
            spread = _sum_transpose(g * _inverse_slope(y, p), size, signed, kernel, *rest)
            dx = grad * _slope_derivative(x, p, signed) * spread
        return (dg, dx, dy, *(None,) * 7)

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, dy: Tensor | None, *_rest: Any) -> Tensor:
        g, x, y, p, signed, kernel, *rest = kept(ctx)
        size = tuple(x.shape[x.dim() - len(kernel) :])
        result = torch.zeros_like(x)
        if dg is not None:
            result = result + lp_pool_backward(dg, x, y, p, signed, kernel, *rest)
        if dx is not None:
            spread = _sum_transpose(g * _inverse_slope(y, p), size, signed, kernel, *rest)
            result = result + _slope_derivative(x, p, signed) * dx * spread
        if dy is not None:
            spread = _sum_transpose(g * _inverse_slope_derivative(y, p) * dy, size, signed, kernel, *rest)
            result = result + _slope(x, p, signed) * spread
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return lp_pool_backward(*batched(info, in_dims, args)), 0


@torch.compiler.allow_in_graph
def lp_pool(x: Tensor, *rest: Any) -> Tensor:
    """(sum |x|^p)^(1/p) of each window, ``rest`` being ``p, signed, *geometry``."""
    return apply(_LpPool, _ops.lp_pool, x, *rest)


@torch.compiler.allow_in_graph
def lp_pool_backward(g: Tensor, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """The gradient of <g, lp_pool(x)> in x; y is lp_pool(x)."""
    return apply(_LpPoolBackward, _ops.lp_pool_backward, g, x, y, *rest)


@torch.library.register_fake("torch_convarith::lp_pool")
def _fake_lp_pool(x: Tensor, p: float, signed: bool, kernel: Ints, *rest: Any) -> Tensor:
    return empty(x, pooled(x.shape, kernel, *rest), len(kernel))


@torch.library.register_fake("torch_convarith::lp_pool_backward")
def _fake_lp_pool_backward(g: Tensor, x: Tensor, y: Tensor, p: float, signed: bool, kernel: Ints, *rest: Any) -> Tensor:
    check_shape(g, "g", pooled(x.shape, kernel, *rest))
    check_shape(y, "y", g.shape)
    return empty(x, x.shape, len(kernel))


register_autograd("lp_pool", _LpPool)
register_autograd("lp_pool_backward", _LpPoolBackward)
