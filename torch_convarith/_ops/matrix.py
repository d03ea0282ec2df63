"""C's compressed rows, from the weight and back: ``csr`` and its adjoint ``csr_weight``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry, GeometryError
from .conv import Ints, pairs

_ops = torch.ops.torch_convarith

# What both operators share behind the tensor (and the weight's size): input_size, stride, padding, dilation, groups,
# padding_mode, transposed.


def _with_groups(rest: Sequence[Any], factor: int) -> tuple[Any, ...]:
    *geometry, groups, padding_mode, transposed = rest
    return (*geometry, groups * factor, padding_mode, transposed)


class _Csr(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.csr(w, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        w, *ctx.rest = inputs
        ctx.size = tuple(w.shape)
        ctx.crow, ctx.col = output[:2]
        ctx.mark_non_differentiable(ctx.crow, ctx.col)

    @staticmethod
    def backward(ctx: Any, _crow: Any, _col: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (csr_weight(grad, ctx.size, *ctx.rest), *(None,) * len(ctx.rest))

    @staticmethod
    def jvp(ctx: Any, dw: Tensor, *_rest: None) -> tuple[None, None, Tensor]:
        return None, None, csr(dw, *ctx.rest)[2]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, w: Tensor, *rest: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple]:
        # As groups, the weights of a batch give their matrices' values one after the other; the first is the structure.
        w = w.movedim(in_dims[0], 0)
        batch = info.batch_size
        crow, col, values = csr(w.flatten(0, 1), *_with_groups(rest, batch))
        rows, nnz = (crow.shape[0] - 1) // batch, values.shape[0] // batch
        return (crow[: rows + 1], col[:nnz], values.unflatten(0, (batch, nnz))), (None, None, 0)


class _CsrWeight(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, size: Ints, *rest: Any) -> Tensor:
        return _ops.csr_weight(values, size, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, *ctx.rest = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (csr(grad, *ctx.rest)[2], *(None,) * (1 + len(ctx.rest)))

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor, *_rest: None) -> Tensor:
        return csr_weight(dvalues, ctx.size, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, values: Tensor, size: Ints, *rest: Any) -> tuple[Tensor, int]:
        batch = info.batch_size
        values = values.movedim(in_dims[0], 0).flatten()
        w = csr_weight(values, (batch * size[0], *size[1:]), *_with_groups(rest, batch))
        return w.unflatten(0, (batch, size[0])), 0


@torch.compiler.allow_in_graph  # pure, one operator: see conv.py
def csr(w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, values) of C, or of C^T: rows sorted, 32-bit indices where they fit, else 64-bit.

    ``rest``: input_size, stride, padding (lo and hi per axis), dilation, groups, padding_mode, transposed.
    """
    return _Csr.apply(w, *rest)


@torch.compiler.allow_in_graph
def csr_weight(values: Tensor, size: Ints, *rest: Any) -> Tensor:
    """The adjoint of a weight's map to ``values``: each weight of shape ``size`` gets the sum of its entries."""
    return _CsrWeight.apply(values, size, *rest)


def _counts(size: Sequence[int], *rest: Any) -> tuple[int, int, int]:
    """(rows, columns, nnz)."""
    input_size, stride, padding, dilation, groups, padding_mode, transposed = rest
    geometry = Geometry.of(tuple(input_size), tuple(size[2:]), tuple(stride), pairs(padding), tuple(dilation))
    if groups < 1 or size[0] % groups:
        raise GeometryError(f"weight {tuple(size)} and groups {groups} do not fit")
    rows, columns = size[0], size[1] * groups
    for axis in geometry:
        rows, columns = rows * axis.output, columns * axis.input
    nnz = size[0] * size[1] * geometry.count_entries(padding_mode)
    return (columns, rows, nnz) if transposed else (rows, columns, nnz)


@torch.library.register_fake("torch_convarith::csr")
def _fake_csr(w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    counts = _counts(w.shape, *rest)
    index = torch.int32 if max(counts) < 2**31 else torch.int64
    rows, _, nnz = counts
    return w.new_empty(rows + 1, dtype=index), w.new_empty(nnz, dtype=index), w.new_empty(nnz)


@torch.library.register_fake("torch_convarith::csr_weight")
def _fake_csr_weight(values: Tensor, size: Ints, *rest: Any) -> Tensor:
    *_, nnz = _counts(size, *rest)
    if values.dim() != 1 or values.shape[0] != nnz:
        raise GeometryError(f"expected {nnz} values, one per entry of the matrix, got {tuple(values.shape)}")
    return values.new_empty(tuple(size))


def _csr_context(ctx: Any, inputs: tuple, output: Any) -> None:
    w, *ctx.rest = inputs
    ctx.size = tuple(w.shape)


torch.library.register_autograd("torch_convarith::csr", _Csr.backward, setup_context=_csr_context)
torch.library.register_autograd(
    "torch_convarith::csr_weight", _CsrWeight.backward, setup_context=_CsrWeight.setup_context
)
