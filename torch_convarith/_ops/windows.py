"""What pooling, unfold and fold share: operators on the last axes, every dimension in front of them a plane of its own.

So vmap only moves its dimension to the front, and a linear operator and its adjoint are each other's derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..geometry import GeometryError, pooling_output_size
from .conv import Ints, _is_channels_last, pairs

Operator = Callable[..., Tensor]


def batched(info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The arguments of a vmap rule, every tensor with the batch in front."""

    def lead(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

    return [lead(arg, dim) for arg, dim in zip(args, in_dims, strict=True)]


def keep(ctx: Any, *args: Any) -> None:
    """Saves arguments, tensors where autograd and forward AD look after them."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    ctx.save_for_backward(*tensors)
    if hasattr(ctx, "save_for_forward"):  # register_autograd's context has none
        ctx.save_for_forward(*tensors)
    ctx.kept = [None if isinstance(a, Tensor) else (a,) for a in args]


def kept(ctx: Any) -> list[Any]:
    """What :func:`keep` saved."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if a is None else a[0] for a in ctx.kept]


def apply(function: type[torch.autograd.Function], operator: Operator, *args: Any) -> Any:
    """``function.apply``; where nothing watches, the operator itself: the Function costs more than a small pooling."""
    if _C.is_plain(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)
    return function.apply(*args)


def register_autograd(name: str, function: type[torch.autograd.Function]) -> None:
    """The raw operator's rule: that of its Function."""
    torch.library.register_autograd(f"torch_convarith::{name}", function.backward, setup_context=function.setup_context)


def adjoint_pair(name: str, adjoint_name: str, axes: Callable[..., int]) -> tuple[Operator, Operator]:
    """``name(x, *rest)``, linear in x, and ``adjoint_name(y, input_size, *rest)``, as differentiable functions.

    ``axes(*rest)`` says how many of x's last dimensions ``input_size`` replaces. Tensors in ``rest`` have no gradient.
    """
    operator = getattr(torch.ops.torch_convarith, name)
    adjoint_operator = getattr(torch.ops.torch_convarith, adjoint_name)

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, *rest: Any) -> Tensor:
            return operator(x, *rest)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            x, *rest = inputs
            keep(ctx, tuple(x.shape[x.dim() - axes(*rest) :]), *rest)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            size, *rest = kept(ctx)
            return (adjoint(grad, size, *rest), *(None,) * len(rest))

        @staticmethod
        def jvp(ctx: Any, dx: Tensor, *_rest: Any) -> Tensor:
            return forward(dx, *kept(ctx)[1:])

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
            return forward(*batched(info, in_dims, args)), 0

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(y: Tensor, size: Ints, *rest: Any) -> Tensor:
            return adjoint_operator(y, size, *rest)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            keep(ctx, *inputs[1:])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            _size, *rest = kept(ctx)
            return (forward(grad, *rest), *(None,) * len(ctx.kept))

        @staticmethod
        def jvp(ctx: Any, dy: Tensor, *_rest: Any) -> Tensor:
            return adjoint(dy, *kept(ctx))

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
            return adjoint(*batched(info, in_dims, args)), 0

    @torch.compiler.allow_in_graph  # pure, one operator: see conv.py
    def forward(x: Tensor, *rest: Any) -> Tensor:
        return apply(Forward, operator, x, *rest)

    @torch.compiler.allow_in_graph
    def adjoint(y: Tensor, size: Ints, *rest: Any) -> Tensor:
        return apply(Adjoint, adjoint_operator, y, size, *rest)

    register_autograd(name, Forward)
    register_autograd(adjoint_name, Adjoint)
    return forward, adjoint


# Fake kernels ------------------------------------------------------------------------------------------------------


def pooled(size: Sequence[int], kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> tuple:
    """Shape of y from that of x."""
    axes = len(kernel)
    if not 1 <= axes <= 3 or len(size) < axes:
        raise GeometryError(f"expected a kernel of 1 to 3 axes, got kernel {tuple(kernel)} and shape {tuple(size)}")
    leading = len(size) - axes
    geometry = (tuple(kernel), tuple(stride), pairs(padding), tuple(dilation))
    return (*size[:leading], *pooling_output_size(tuple(size[leading:]), *geometry, ceil_mode))


def empty(like: Tensor, size: Sequence[int], axes: int, dtype: torch.dtype | None = None) -> Tensor:
    """channels_last where ``like`` is a batch (N, C, *axes) in that format, as window_checks.h's window_format."""
    out = like.new_empty(size, dtype=dtype or like.dtype)
    if like.dim() == axes + 2 and _is_channels_last(like):
        return out.to(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
    return out


def check_shape(t: Tensor, name: str, expected: Sequence[int]) -> None:
    """Raises where a tensor's shape is another."""
    if tuple(t.shape) != tuple(expected):
        raise GeometryError(f"expected {name} of shape {tuple(expected)}, got {tuple(t.shape)}")
