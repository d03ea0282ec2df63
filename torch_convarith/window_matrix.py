"""Matrices of the other things that are done with a pattern: means, unfolding, selection, free values.

As ConvMatrix: entries come from the pattern, products from the operators, and each is the other's proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from . import _ops
from .geometry import Axis, Geometry, GeometryError
from .pattern import Pattern

__all__ = ["WindowMatrix"]

Map = Callable[[Tensor], Tensor]


class WindowMatrix:
    """A sparse matrix by its entries, and as an operator; made by the layers' ``matrix()``.

    Rows are outputs, columns inputs, each flattened in row-major order, channels first.

    Attributes:
        row, column, values: of the entries, (nnz,) each.
        in_shape, out_shape: what a column and a row of the matrix run over, before they are flattened.
    """

    def __init__(
        self,
        row: Tensor,
        column: Tensor,
        values: Tensor,
        out_shape: Iterable[int],
        in_shape: Iterable[int],
        apply: Map,
        apply_transpose: Map,
    ) -> None:
        self.row, self.column, self.values = row, column, values
        self.out_shape, self.in_shape = tuple(out_shape), tuple(in_shape)
        self._apply, self._apply_transpose = apply, apply_transpose

    @cached_property
    def T(self) -> WindowMatrix:
        """The transpose; ``M.T.T is M``."""
        transpose = WindowMatrix(
            self.column, self.row, self.values, self.in_shape, self.out_shape, self._apply_transpose, self._apply
        )
        transpose.__dict__["T"] = self
        return transpose

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    @property
    def nnz(self) -> int:
        """Entries, whatever their values."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """``nnz`` over rows times columns; 0 for an empty matrix."""
        return self.nnz / max(1, math.prod(self.shape))

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """That of the values."""
        return self.values.device

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"WindowMatrix({rows} x {columns}: nnz {self.nnz}, density {self.density:.3g}, {self.dtype})"

    def __matmul__(self, x: Tensor) -> Tensor:
        """``M @ x`` by the operator: (rows,) from (columns,), or (rows, n) from (columns, n)."""
        if not isinstance(x, Tensor):
            return NotImplemented
        if x.dim() not in (1, 2) or x.shape[0] != self.shape[1]:
            raise GeometryError(
                f"a {self.shape[0]} x {self.shape[1]} matrix multiplies vectors of {self.shape[1]} elements or "
                f"matrices of {self.shape[1]} rows, not a tensor of shape {tuple(x.shape)}"
            )
        columns = (x if x.dim() == 2 else x[:, None]).t().reshape(-1, *self.in_shape)
        product = self._apply(columns).flatten(1).t()
        return product if x.dim() == 2 else product[:, 0]

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """``x @ M`` for a row vector or a matrix of rows."""
        if not isinstance(x, Tensor):
            return NotImplemented
        return (self.T @ x.t()).t() if x.dim() == 2 else self.T @ x

    def to_dense(self) -> Tensor:
        """A dense tensor of :attr:`shape`, differentiable with respect to the values."""
        rows, columns = self.shape
        place = self.row * columns + self.column
        return self.values.new_zeros(rows * columns).index_add(0, place, self.values).reshape(rows, columns)

    def to_sparse(self, layout: torch.layout = torch.sparse_csr) -> Tensor:
        """A sparse tensor of :attr:`shape`: torch.sparse_csr, sparse_csc or sparse_coo (coalesced)."""
        if layout not in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
            raise ValueError(f"layout must be torch.sparse_csr, sparse_csc or sparse_coo, not {layout}")
        entries = torch.stack((self.row, self.column))
        coo = torch.sparse_coo_tensor(entries, self.values, self.shape, check_invariants=False).coalesce()
        return coo if layout == torch.sparse_coo else coo.to_sparse(layout=layout)


def _per_channel(index: Tensor, size: int, channels: int) -> Tensor:
    """The same entries in every channel, whose rows (or columns) are ``size`` each."""
    return (torch.arange(channels)[:, None] * size + index).flatten()


def _divisor_counts(axis: Axis, end: int, count_include_pad: bool) -> list[int]:
    """What each window counts along an axis: its taps before ``end``, or its inputs."""
    stop = end if count_include_pad else axis.input
    start = -axis.lo if count_include_pad else 0
    return [
        max(1, sum(start <= o * axis.stride + t * axis.dilation - axis.lo < stop for t in range(axis.kernel)))
        for o in range(axis.output)
    ]


def average_matrix(
    geometry: Geometry,
    padding: tuple[tuple[int, int], ...],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels: int,
    dtype: torch.dtype | None,
) -> WindowMatrix:
    """Average pooling. ``geometry`` has the windows, ``padding`` is what the caller asked for."""
    pattern = Pattern(geometry)
    share = torch.ones((), dtype=torch.float64)
    for axis, (_, hi) in zip(geometry, padding, strict=True):
        counts = _divisor_counts(axis, axis.input + hi, count_include_pad)
        share = share[..., None] / torch.tensor(counts, dtype=torch.float64)
    if divisor_override is not None:
        share = torch.full_like(share, 1 / divisor_override)
    values = share.flatten()[pattern.output].to(dtype or torch.get_default_dtype()).repeat(channels)
    rest = (
        geometry.kernel_size,
        geometry.stride,
        [side for pair in padding for side in pair],
        geometry.dilation,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return WindowMatrix(
        _per_channel(pattern.output, math.prod(geometry.output_size), channels),
        _per_channel(pattern.input, math.prod(geometry.input_size), channels),
        values,
        (channels, *geometry.output_size),
        (channels, *geometry.input_size),
        lambda x: _ops.avg_pool(x, *rest),
        lambda y: _ops.avg_pool_transpose(y, geometry.input_size, *rest),
    )


def unfold_matrix(geometry: Geometry, channels: int, dtype: torch.dtype | None) -> WindowMatrix:
    """Unfolding: a 1 where an input is seen; rows are (channel, tap, output)."""
    pattern = Pattern(geometry)
    taps, outputs = math.prod(geometry.kernel_size), math.prod(geometry.output_size)
    padding = [side for pair in geometry.padding for side in pair]
    rest = (geometry.kernel_size, geometry.stride, padding, geometry.dilation)
    return WindowMatrix(
        _per_channel(pattern.tap * outputs + pattern.output, taps * outputs, channels),
        _per_channel(pattern.input, math.prod(geometry.input_size), channels),
        torch.ones(len(pattern) * channels, dtype=dtype or torch.get_default_dtype()),
        (channels, taps, outputs),
        (channels, *geometry.input_size),
        lambda x: _ops.unfold(x, *rest),
        lambda y: _ops.fold(y, geometry.input_size, *rest),
    )


def selection_matrix(x: Tensor, indices: Tensor, axes: int) -> WindowMatrix:
    """What max pooling is at x (*leading, *input): a 1 where indices (*leading, *output) say that a maximum stands."""
    first = x.dim() - axes
    inputs, outputs = math.prod(x.shape[first:]), math.prod(indices.shape[first:])
    planes = indices.numel() // max(1, outputs)
    plane = torch.arange(planes, device=x.device).repeat_interleave(outputs)
    return WindowMatrix(
        torch.arange(planes * outputs, device=x.device),
        plane * inputs + indices.reshape(-1),
        torch.ones(planes * outputs, dtype=x.dtype, device=x.device),
        indices.shape,
        x.shape,
        lambda v: _ops.pool_select(v, indices.expand(v.shape[0], *indices.shape), axes),
        lambda v: _ops.pool_scatter(v, tuple(x.shape[first:]), indices.expand(v.shape[0], *indices.shape), axes),
    )


def local_matrix(
    weight: Tensor, geometry: Geometry, groups: int, padding_mode: str, apply: Map, apply_transpose: Map
) -> WindowMatrix:
    """A locally connected layer: the pattern with free values. weight (K, C/groups, *kernel, *output)."""
    axes = len(geometry)
    pattern = Pattern(geometry, padding_mode)
    tap, out, place = (index.to(weight.device) for index in (pattern.tap, pattern.output, pattern.input))
    free = weight.flatten(2 + axes).flatten(2, 1 + axes)  # (K, C/g, taps, outputs)
    (k, c), outputs, inputs = free.shape[:2], math.prod(geometry.output_size), math.prod(geometry.input_size)
    out_channel = torch.arange(k, device=weight.device)[:, None, None]
    in_channel = out_channel // (k // groups) * c + torch.arange(c, device=weight.device)[:, None]
    return WindowMatrix(
        (out_channel * outputs + out).expand(k, c, -1).flatten(),
        (in_channel * inputs + place).flatten(),
        free[:, :, tap, out].flatten(),
        (k, *geometry.output_size),
        (c * groups, *geometry.input_size),
        apply,
        apply_transpose,
    )
