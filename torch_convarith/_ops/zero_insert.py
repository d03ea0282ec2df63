"""The guide's stretched, padded input, and its adjoint. Each is the other's derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..geometry import GeometryError
from .conv import Ints, pairs

_ops = torch.ops.torch_convarith


class _ZeroInsert(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, stride: Ints, padding: Ints) -> Tensor:
        return _ops.zero_insert(x, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, *ctx.rest = inputs
        ctx.size = tuple(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return zero_remove(grad, ctx.size, *ctx.rest), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: None) -> Tensor:
        return zero_insert(dx, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, stride: Ints, padding: Ints) -> tuple[Tensor, int]:
        return zero_insert(x.movedim(in_dims[0], 0), stride, padding), 0


class _ZeroRemove(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, size: Ints, stride: Ints, padding: Ints) -> Tensor:
        return _ops.zero_remove(x, size, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, *ctx.rest = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return zero_insert(grad, *ctx.rest), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_rest: None) -> Tensor:
        return zero_remove(dx, ctx.size, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, size: Ints, stride: Ints, padding: Ints) -> tuple[Tensor, int]:
        return zero_remove(x.movedim(in_dims[0], 0), (info.batch_size, *size), stride, padding), 0


@torch.compiler.allow_in_graph  # pure, one operator: see conv.py
def zero_insert(x: Tensor, stride: Ints, padding: Ints) -> Tensor:
    """``stride - 1`` zeros between units along the last ``len(stride)`` axes, then ``padding`` (lo and hi per axis)."""
    return _ZeroInsert.apply(x, stride, padding)


@torch.compiler.allow_in_graph
def zero_remove(x: Tensor, size: Ints, stride: Ints, padding: Ints) -> Tensor:
    """The adjoint: picks the units out again, into shape ``size``; units that padding cropped away get 0."""
    return _ZeroRemove.apply(x, size, stride, padding)


def _stretched(size: Ints, stride: Ints, padding: Ints) -> tuple[int, ...]:
    leading = len(size) - len(stride)
    sizes = []
    for units, s, (lo, hi) in zip(size[leading:], stride, pairs(padding), strict=True):
        if s < 1:
            raise GeometryError(f"non-positive stride is not supported: stride {s}")
        sizes.append(((units - 1) * s + 1 if units > 0 else 0) + lo + hi)
        if sizes[-1] < 0:
            raise GeometryError(
                f"padding {(lo, hi)} crops more than the {sizes[-1] - lo - hi} units of the stretched input"
            )
    return (*size[:leading], *sizes)


@torch.library.register_fake("torch_convarith::zero_insert")
def _fake_zero_insert(x: Tensor, stride: Ints, padding: Ints) -> Tensor:
    return x.new_empty(_stretched(x.shape, stride, padding))


@torch.library.register_fake("torch_convarith::zero_remove")
def _fake_zero_remove(x: Tensor, size: Ints, stride: Ints, padding: Ints) -> Tensor:
    if tuple(x.shape) != _stretched(size, stride, padding):
        raise GeometryError(
            f"expected a stretched tensor of shape {_stretched(size, stride, padding)}, not {tuple(x.shape)}"
        )
    return x.new_empty(tuple(size))


for _name, _function in (("zero_insert", _ZeroInsert), ("zero_remove", _ZeroRemove)):
    torch.library.register_autograd(
        f"torch_convarith::{_name}", _function.backward, setup_context=_function.setup_context
    )
