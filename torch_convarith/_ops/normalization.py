"""Local response normalisation, ``y = x s^-beta`` with ``s = k + alpha W x^2``, W the sum over neighbouring channels.

Its Jacobian is J h = h s^-beta - 2 alpha beta x s^(-beta-1) W(x h); its transpose exchanges the order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .pooling import avg_pool, avg_pool_transpose
from .windows import apply, batched, check_shape, keep, kept, register_autograd

_ops = torch.ops.torch_convarith

# ``rest`` stands for channel_dim, size, alpha, beta, k; alpha multiplies the sum, it is not divided by size.


def _window(size: int) -> tuple[Any, ...]:
    """W as pooling of (channels, everything behind): the geometry of a sum."""
    return (size, 1), (1, 1), (size // 2, (size - 1) // 2, 0, 0), (1, 1), False, True, 1


def _as_plane(v: Tensor, channel_dim: int) -> Tensor:
    return v.reshape(*v.shape[: channel_dim + 1], -1)


def _channel_sum(v: Tensor, channel_dim: int, size: int) -> Tensor:
    """W."""
    return avg_pool(_as_plane(v, channel_dim), *_window(size)).reshape(v.shape)


def _channel_sum_transpose(v: Tensor, channel_dim: int, size: int) -> Tensor:
    plane = _as_plane(v, channel_dim)
    return avg_pool_transpose(plane, tuple(plane.shape[-2:]), *_window(size)).reshape(v.shape)


def _jacobian(x: Tensor, h: Tensor, channel_dim: int, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """J h."""
    s = k + alpha * _channel_sum(x * x, channel_dim, size)
    return h * s.pow(-beta) - 2 * alpha * beta * x * s.pow(-beta - 1) * _channel_sum(x * h, channel_dim, size)


def _hessian(
    g: Tensor, x: Tensor, h: Tensor, channel_dim: int, size: int, alpha: float, beta: float, k: float
) -> Tensor:
    """The derivative of J^T g in x, applied to h; it is symmetric."""
    s = k + alpha * _channel_sum(x * x, channel_dim, size)
    xh = _channel_sum(x * h, channel_dim, size)
    u = g * s.pow(-beta - 1)
    ds = -beta * u * h + 2 * alpha * beta * (beta + 1) * u / s * x * xh
    shared = u * xh + h * _channel_sum_transpose(u * x, channel_dim, size)
    return 2 * alpha * x * _channel_sum_transpose(ds, channel_dim, size) - 2 * alpha * beta * shared


def _next(info: Any, in_dims: tuple, args: tuple) -> list[Any]:
    """A vmap rule's arguments: the batch goes in front, so the channels stand one dimension later."""
    moved = batched(info, in_dims, args)
    tensors = sum(isinstance(a, Tensor) for a in moved)
    moved[tensors] += 1
    return moved


class _Lrn(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *rest: Any) -> Tensor:
        return _ops.lrn(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (lrn_backward(grad, *kept(ctx)), None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> Tensor:
        x, *rest = kept(ctx)
        return _jacobian(x, dx, *rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return lrn(*_next(info, in_dims, args)), 0


class _LrnBackward(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _ops.lrn_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        g, x, *rest = kept(ctx)
        needs_g, needs_x = ctx.needs_input_grad[:2]
        dg = _jacobian(x, grad, *rest) if needs_g else None
        dx = _hessian(g, x, grad, *rest) if needs_x else None
        return (dg, dx, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, *_rest: Any) -> Tensor:
        g, x, *rest = kept(ctx)
        result = torch.zeros_like(x)
        if dg is not None:
            result = result + lrn_backward(dg, x, *rest)
        return result if dx is None else result + _hessian(g, x, dx, *rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return lrn_backward(*_next(info, in_dims, args)), 0


@torch.compiler.allow_in_graph  # pure, one operator: see conv.py
def lrn(x: Tensor, *rest: Any) -> Tensor:
    """``x / (k + alpha * sum of x^2 over size channels)^beta``; ``rest``: channel_dim, size, alpha, beta, k."""
    return apply(_Lrn, _ops.lrn, x, *rest)


@torch.compiler.allow_in_graph
def lrn_backward(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """The gradient of <g, lrn(x)> in x."""
    return apply(_LrnBackward, _ops.lrn_backward, g, x, *rest)


@torch.library.register_fake("torch_convarith::lrn")
def _fake_lrn(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("torch_convarith::lrn_backward")
def _fake_lrn_backward(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    check_shape(g, "g", x.shape)
    return x.new_empty(x.shape)


register_autograd("lrn", _Lrn)
register_autograd("lrn_backward", _LrnBackward)
