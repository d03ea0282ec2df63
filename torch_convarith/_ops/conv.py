"""The three bilinear operators. One rule serves all of them, in every method.

``phi(x, w, y) = <y, C(w) x>`` is linear in each argument. An operator takes two of the three tensors and gives the
derivative in the third: conv gives y, conv_transpose x, conv_weight w. So its own derivatives are again such operators:

    >>> TAKES["y"], TAKES["x"], TAKES["w"]  # what gives y, what gives x, what gives w
    (('x', 'w'), ('y', 'w'), ('x', 'y'))

Shapes, with the labels of an einsum and ``g`` for groups: x (n, g c, *input), w (g k, c, *kernel), y (n, g k, *output).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry, GeometryError

Ints = Sequence[int]

TAKES = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}
NAMES = {"y": "conv", "x": "conv_transpose", "w": "conv_weight"}
METHODS = {"pattern": "", "matrix": "_csr"}
"""How the same values are computed, and the suffix of the operators that do: with C in compressed form (its pattern and
the weights), or with C assembled."""

LABELS = {"x": "ngc", "w": "gkc", "y": "ngk"}
"""The dimensions in front of the axes; ``g`` and the label behind it share one dimension."""


def _operator(gives: str, method: str) -> Any:
    return getattr(torch.ops.torch_convarith, NAMES[gives] + METHODS[method])


def _call(gives: str, method: str, a: Tensor, b: Tensor, size: Ints | None, *geometry: Any) -> Tensor:
    """The raw operator. ``size`` is what it cannot derive: conv_transpose's input_size, conv_weight's kernel_size."""
    sizes = () if gives == "y" else (size,)
    return _operator(gives, method)(a, b, *sizes, *geometry)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # vmap knows no memory formats


# Derivatives -------------------------------------------------------------------------------------------------------


def derivatives(
    gives: str,
    method: str,
    operands: tuple[Tensor, Tensor],
    grad: Tensor,
    needs: tuple[bool, bool],
    geometry: Sequence[Any],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the two operands: with the gradient in place of what the operator gives, what gives each."""
    (a, b), (first, second) = operands, TAKES[gives]
    if (_is_channels_last(a) or _is_channels_last(b)) and not _is_wrapped(grad):
        # Gradients come in the operands' format, as torch's do, whatever the strides of what came from behind.
        grad = grad.contiguous(memory_format=_CHANNELS_LAST[grad.dim()])

    def derivative(of: str, like: Tensor, other: str, other_tensor: Tensor) -> Tensor:
        known = {gives: grad, other: other_tensor.conj()}
        return _contract(of, method, *(known[role] for role in TAKES[of]), like.shape[2:], *geometry)

    return (
        derivative(first, a, second, b) if needs[0] else None,
        derivative(second, b, first, a) if needs[1] else None,
    )


class _Contract(torch.autograd.Function):
    """forward(gives, method, a, b, size, stride, padding, dilation, groups); the operands are a and b."""

    @staticmethod
    def forward(gives: str, method: str, a: Tensor, b: Tensor, size: Ints | None, *geometry: Any) -> Tensor:
        if type(a).__name__ == "DTensor" or type(b).__name__ == "DTensor":
            from . import sharding

            sharding.register()
        return _call(gives, method, a, b, size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.gives, ctx.method, a, b, ctx.size, *ctx.geometry = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:4]
        grads = derivatives(ctx.gives, ctx.method, ctx.saved_tensors, grad, needs, ctx.geometry)
        return (None, None, *grads, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, _gives: None, _method: None, da: Tensor | None, db: Tensor | None, *_rest: None) -> Tensor:
        a, b = ctx.saved_tensors
        terms = [
            _contract(ctx.gives, ctx.method, *operands, ctx.size, *ctx.geometry)
            for operands in ((da, b), (a, db))
            if operands[0] is not None and operands[1] is not None
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, gives: str, method: str, a: Tensor, b: Tensor, size: Ints | None, *geometry: Any
    ) -> tuple[Tensor, int]:
        *geometry, groups = geometry  # type: ignore[assignment]
        batch, dims = info.batch_size, in_dims[2:4]
        first, second = TAKES[gives]
        if None in dims:
            # The batch multiplies the label that the batched operand does not share with the other one.
            batched, other = (first, second) if dims[1] is None else (second, first)
            (label,) = set(LABELS[batched]) - set(LABELS[other])
        else:
            label = "g"
        if dims[0] is not None:
            a = _fold(a, dims[0], first, label, groups)
        if dims[1] is not None:
            b = _fold(b, dims[1], second, label, groups)
        folded_groups = groups * batch if label == "g" else groups
        result = _contract(gives, method, a, b, size, *geometry, folded_groups)
        return _unfold(result, batch, gives, label, groups), 0


def _split_groups(t: Tensor, role: str, groups: int, offset: int = 0) -> Tensor:
    """One dimension per label; ``offset`` dimensions stand in front."""
    dim = LABELS[role].index("g") + offset
    return t.unflatten(dim, (groups, t.shape[dim] // groups))


def _join_groups(t: Tensor, role: str, offset: int = 0) -> Tensor:
    dim = LABELS[role].index("g") + offset
    return t.flatten(dim, dim + 1)


def _fold(t: Tensor, batch_dim: int, role: str, label: str, groups: int) -> Tensor:
    """The batch dimension of vmap, multiplied into ``label``'s."""
    t = _split_groups(t.movedim(batch_dim, 0), role, groups, offset=1)
    dim = LABELS[role].index(label)
    return _join_groups(t.movedim(0, dim).flatten(dim, dim + 1), role)


def _unfold(t: Tensor, batch: int, role: str, label: str, groups: int) -> Tensor:
    """The batch dimension taken out of ``label``'s again, and put in front."""
    t = _split_groups(t, role, groups * batch if label == "g" else groups)
    dim = LABELS[role].index(label)
    t = t.unflatten(dim, (batch, t.shape[dim] // batch)).movedim(dim, 0)
    return _join_groups(t, role, offset=1)


# Dynamo may keep this call whole: it is pure, takes tensors, integers and strings, and its body is one operator.
@torch.compiler.allow_in_graph
def _contract(gives: str, method: str, a: Tensor, b: Tensor, size: Ints | None, *geometry: Any) -> Tensor:
    if _functorch_layer() is None:
        # Function.apply without a look at forward's signature for defaults, which takes longer than a small operator.
        return _apply(gives, method, a, b, size, *geometry)
    return _Contract.apply(gives, method, a, b, size, *geometry)


_functorch_layer = torch._C._functorch.peek_interpreter_stack
_apply = super(torch.autograd.Function, _Contract).apply


# Registration ------------------------------------------------------------------------------------------------------


def pairs(padding: Ints) -> tuple[tuple[int, int], ...]:
    """(lo, hi) per axis from the operators' flat list."""
    return tuple(zip(padding[::2], padding[1::2], strict=True))


def _is_channels_last(t: Tensor) -> bool:
    """What C++ suggest_memory_format() asks: whether the strides ascend from channels over the last axis to the first.

    Where sizes of 1 leave it open, strides that are also those of a plain tensor count as plain.
    """
    if t.dim() not in _CHANNELS_LAST:
        return False
    smallest = 0
    for dim in (1, *range(t.dim() - 1, 1, -1), 0):
        size, stride = t.shape[dim], t.stride(dim)
        if size == 0 or stride < smallest or (dim == 0 and smallest == t.stride(1)):
            return False
        smallest = stride * size if size > 1 else stride
    return t.stride(1) != 0


def _empty(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """channels_last if either operand is, as checks.h's output_format."""
    out = a.new_empty(size)
    if _is_channels_last(a) or _is_channels_last(b):
        return out.to(memory_format=_CHANNELS_LAST[a.dim()])
    return out


def _check_operands(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype:
        raise RuntimeError(f"expected operands of the same dtype, got {a.dtype} and {b.dtype}")
    if a.dim() != b.dim() or not 3 <= a.dim() <= 5:
        raise RuntimeError(
            f"expected operands with 3, 4 or 5 dimensions each, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def _check(x: Sequence[int], w: Sequence[int], y: Sequence[int] | None, *geometry: Any) -> tuple[int, ...]:
    """The shape of y by relationship 15. make_problem() in checks.h says the same to the kernels."""
    stride, padding, dilation, groups = geometry
    out = Geometry.of(tuple(x[2:]), tuple(w[2:]), tuple(stride), pairs(padding), tuple(dilation)).output_size
    expected = (x[0], w[0], *out)
    if groups < 1 or w[0] % groups or x[1] != w[1] * groups:
        raise GeometryError(f"input {tuple(x)}, weight {tuple(w)} and groups {groups} do not fit")
    if y is not None and tuple(y) != expected:
        raise GeometryError(f"relationship 15 gives an output of shape {expected}, not {tuple(y)}")
    return expected


def _fake_conv(x: Tensor, w: Tensor, *geometry: Any) -> Tensor:
    _check_operands(x, w)
    return _empty(x, w, _check(x.shape, w.shape, None, *geometry))


def _fake_conv_transpose(y: Tensor, w: Tensor, input_size: Ints, *geometry: Any) -> Tensor:
    _check_operands(y, w)
    x = (y.shape[0], w.shape[1] * geometry[-1], *input_size)
    _check(x, w.shape, y.shape, *geometry)
    return _empty(y, w, x)


def _fake_conv_weight(x: Tensor, y: Tensor, kernel_size: Ints, *geometry: Any) -> Tensor:
    _check_operands(x, y)
    w = (y.shape[1], x.shape[1] // geometry[-1], *kernel_size)
    _check(x.shape, w, y.shape, *geometry)
    return _empty(x, y, w)


def _register(gives: str, method: str, fake: Any) -> None:
    name = f"torch_convarith::{NAMES[gives]}{METHODS[method]}"

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, b, *rest = inputs
        ctx.geometry = rest[-4:]
        ctx.others = (None,) * len(rest)
        ctx.save_for_backward(a, b)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = derivatives(gives, method, ctx.saved_tensors, grad, ctx.needs_input_grad[:2], ctx.geometry)
        return (*grads, *ctx.others)

    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)


for _method in METHODS:
    _register("y", _method, _fake_conv)
    _register("x", _method, _fake_conv_transpose)
    _register("w", _method, _fake_conv_weight)


# What the other rooms call -----------------------------------------------------------------------------------------


def conv(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, method: str = "pattern"
) -> Tensor:
    """Y = C(w) x, (N, K, *output), from x (N, C, *input) and w (K, C/groups, *kernel); ``padding``: lo, hi per axis."""
    return _contract("y", method, x, w, None, stride, padding, dilation, groups)


def conv_transpose(
    y: Tensor,
    w: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    method: str = "pattern",
) -> Tensor:
    """X = C(w)^T y, (N, C, *input_size); the geometry is the convolution's, which takes ``input_size`` to y's size."""
    return _contract("x", method, y, w, input_size, stride, padding, dilation, groups)


def conv_weight(
    x: Tensor,
    y: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    method: str = "pattern",
) -> Tensor:
    """The derivative of <y, C(w) x> in w, (K, C/groups, *kernel_size)."""
    return _contract("w", method, x, y, kernel_size, stride, padding, dilation, groups)
