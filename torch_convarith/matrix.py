"""A convolution as the matrix it is: ``C``, explicit or as an operator.

Entries come from the pattern, products from the convolution operators: each is the other's proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import _ops
from .geometry import Geometry, GeometryError
from .pattern import Pattern

__all__ = ["ConvMatrix", "SymbolicMatrix", "conv_matrix"]


def conv_matrix(
    weight: Tensor,
    input_size: int | Iterable[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> ConvMatrix:
    """The matrix ``C`` of a convolution: ``(C @ x.flatten()) == conv(x, weight).flatten()``.

    The guide, section 4.1, for any stride, padding, dilation, groups and for 1, 2 or 3 axes. Nothing is materialised
    until :meth:`~ConvMatrix.to_dense`, :meth:`~ConvMatrix.to_sparse` or :meth:`~ConvMatrix.to_scipy` is called.

    Args:
        weight: (K, C/groups, *kernel): K out channels, C in channels; any dtype that the operators take.
        input_size: spatial sizes of the input; an integer serves all axes.
        stride: an int or one per axis.
        padding: an int, one per axis, ``(lo, hi)`` per axis, ``"same"`` or ``"valid"``.
        dilation: an int or one per axis.
        groups: C and K are split into this many groups that do not see each other.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Returns:
        A :class:`ConvMatrix` of shape (K * prod(output), C * prod(input)), differentiable with respect to ``weight``.

    Raises:
        GeometryError: the kernel does not fit, or groups do not divide the channels.

    >>> C = conv_matrix(torch.ones(1, 1, 3, 3), (4, 4))
    >>> C
    ConvMatrix(4 x 16: kernel 3x3 on 4x4 -> 2x2, nnz 36, density 0.562, torch.float32)
    >>> (C @ torch.arange(16.0)).tolist()
    [45.0, 54.0, 81.0, 90.0]
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, not {type(weight).__name__}")
    if not 3 <= weight.dim() <= 5:
        raise GeometryError(
            "weight must be (out channels, in channels / groups, *kernel) with 1 to 3 axes, "
            f"got shape {tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise GeometryError(f"groups {groups} must be positive and divide the {weight.shape[0]} out channels")
    kernel_size = tuple(weight.shape[2:])
    size = tuple(input_size) if isinstance(input_size, Iterable) else input_size
    geometry = Geometry.of(size, kernel_size, stride, padding, dilation)
    if len(geometry) != len(kernel_size):
        raise GeometryError(
            f"input size {size} has {len(geometry)} axes, the kernel {kernel_size} has {len(kernel_size)}"
        )
    return ConvMatrix(weight, geometry, groups, padding_mode)


class ConvMatrix:
    """The matrix of a convolution, or of its transpose; made by :func:`conv_matrix` and ``layer.matrix(input_size)``.

    Rows are outputs, columns inputs, each flattened in row-major order, channels first. ``C @ x`` runs the convolution
    and materialises nothing, so a matrix of 10^10 entries can be multiplied.

    Attributes:
        weight: (K, C/groups, *kernel).
        geometry: one :class:`~torch_convarith.Axis` per dimension.
        groups: see :func:`conv_matrix`.
        padding_mode: see :func:`conv_matrix`.
        pattern: the :class:`~torch_convarith.Pattern`, which says where the entries stand.
        is_transposed: whether this is C^T.
    """

    def __init__(self, weight: Tensor, geometry: Geometry, groups: int = 1, padding_mode: str = "zeros") -> None:
        self.weight = weight
        self.geometry = geometry
        self.groups = groups
        self.padding_mode = padding_mode
        self.pattern = Pattern(geometry, padding_mode)
        self.is_transposed = False

    @cached_property
    def T(self) -> ConvMatrix:
        """The transpose, again a ConvMatrix; ``C.T.T is C``."""
        transpose = ConvMatrix(self.weight, self.geometry, self.groups, self.padding_mode)
        transpose.pattern = self.pattern
        transpose.is_transposed = not self.is_transposed
        transpose.__dict__["T"] = self
        return transpose

    @property
    def _in_shape(self) -> tuple[int, ...]:
        """(C, *input) of the convolution."""
        return (self.weight.shape[1] * self.groups, *self.geometry.input_size)

    @property
    def _out_shape(self) -> tuple[int, ...]:
        """(K, *output) of the convolution."""
        return (self.weight.shape[0], *self.geometry.output_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        shape = math.prod(self._out_shape), math.prod(self._in_shape)
        return shape[::-1] if self.is_transposed else shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the weight."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """That of the weight."""
        return self.weight.device

    @cached_property
    def nnz(self) -> int:
        """Structural non-zeros: an entry counts even where its weight happens to be 0."""
        return self.weight.shape[0] * self.weight.shape[1] * self.geometry.count_entries(self.padding_mode)

    @property
    def density(self) -> float:
        """``nnz`` over rows times columns; 0 for an empty matrix."""
        return self.nnz / max(1, math.prod(self.shape))

    def __repr__(self) -> str:
        def times(sizes: Iterable[int]) -> str:
            return "x".join(map(str, sizes))

        rows, columns = self.shape
        g = self.geometry
        return (
            f"ConvMatrix({rows} x {columns}: {'transpose of ' if self.is_transposed else ''}"
            f"kernel {times(g.kernel_size)} on {times(g.input_size)} -> {times(g.output_size)}, "
            f"nnz {self.nnz}, density {self.density:.3g}, {self.dtype}"
            f"{'' if self.device.type == 'cpu' else f' on {self.device}'})"
        )

    # Products: the convolution operators

    def __matmul__(self, x: Tensor) -> Tensor:
        """``C @ x``: (rows,) from (columns,), or (rows, n) from (columns, n)."""
        if not isinstance(x, Tensor):
            return NotImplemented
        if x.dim() not in (1, 2) or x.shape[0] != self.shape[1]:
            raise GeometryError(
                f"a {self.shape[0]} x {self.shape[1]} matrix multiplies vectors of {self.shape[1]} elements or "
                f"matrices of {self.shape[1]} rows, not a tensor of shape {tuple(x.shape)}"
            )
        shape = self._out_shape if self.is_transposed else self._in_shape
        columns = (x if x.dim() == 2 else x[:, None]).t().reshape(-1, *shape)
        product = (self._apply_transpose if self.is_transposed else self._apply)(columns).flatten(1).t()
        return product if x.dim() == 2 else product[:, 0]

    def __rmatmul__(self, x: Tensor) -> Tensor:
        """``x @ C`` for a row vector or a matrix of rows."""
        if not isinstance(x, Tensor):
            return NotImplemented
        return (self.T @ x.t()).t() if x.dim() == 2 else self.T @ x

    def _operands(self) -> dict[str, Any]:
        g, is_padded = self.geometry, self.padding_mode != "zeros"  # by copies, before the operator
        return {
            "stride": g.stride,
            "padding": [0, 0] * len(g) if is_padded else g.flat_padding,
            "dilation": g.dilation,
            "groups": self.groups,
        }

    def _apply(self, x: Tensor) -> Tensor:
        """Conv of (n, C, *input)."""
        if self.padding_mode != "zeros":
            x = self.pattern.pad(x)
        return _ops.conv(x, self.weight, **self._operands())

    def _apply_transpose(self, y: Tensor) -> Tensor:
        """Conv's transpose of (n, K, *output)."""
        if self.padding_mode == "zeros":
            return _ops.conv_transpose(y, self.weight, self.geometry.input_size, **self._operands())
        x = _ops.conv_transpose(y, self.weight, self.pattern.padded_size, **self._operands())
        return self.pattern.unpad(x)

    # Entries: the pattern

    def to_dense(self) -> Tensor:
        """``C`` as a dense tensor of :attr:`shape`, differentiable with respect to the weight.

        >>> conv_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), 4).to_dense().tolist()
        [[1.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
        """
        (k, *output), (c, *input) = self._out_shape, self._in_shape
        g, outputs, inputs = self.groups, math.prod(output), math.prod(input)
        tap, out, place = (
            index.to(self.device) for index in (self.pattern.tap, self.pattern.output, self.pattern.input)
        )
        values = self.weight.flatten(2)[:, :, tap]  # (K, C/g, entries)
        blocks = self.weight.new_zeros(k, c // g, outputs * inputs).index_add(2, out * inputs + place, values)
        blocks = blocks.reshape(g, k // g, c // g, outputs, inputs).permute(1, 3, 2, 4, 0)  # (K/g, O, C/g, I, g)
        dense = torch.diag_embed(blocks).permute(4, 0, 1, 5, 2, 3).reshape(k * outputs, c * inputs)
        return dense.t() if self.is_transposed else dense

    def _csr(self, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
        g = self.geometry
        return _ops.csr(
            self.weight, g.input_size, g.stride, g.flat_padding, g.dilation, self.groups, self.padding_mode, transposed
        )

    def to_sparse(self, layout: torch.layout = torch.sparse_csr, blocksize: tuple[int, int] | None = None) -> Tensor:
        """``C`` as a sparse tensor of :attr:`shape`, differentiable with respect to the weight.

        Args:
            layout: torch.sparse_csr, torch.sparse_csc, torch.sparse_coo (coalesced) or torch.sparse_bsr. The first two
                are assembled straight into their arrays, with 32-bit indices where they fit.
            blocksize: of torch.sparse_bsr, and only there: (rows, columns) of a block, which must divide
                :attr:`shape`. A block is kept where any of its entries is structural.

        Raises:
            GeometryError: ``blocksize`` does not divide the shape.
            ValueError: an unknown layout.

        >>> C = conv_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), 4).to_sparse()
        >>> C.crow_indices().tolist(), C.col_indices().tolist(), C.values().tolist()
        ([0, 3, 6], [0, 1, 2, 1, 2, 3], [1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
        """
        if (blocksize is not None) != (layout == torch.sparse_bsr):
            raise ValueError(f"layout torch.sparse_bsr, and no other, needs a blocksize; got {layout} and {blocksize}")
        if layout == torch.sparse_csc:
            ccol, row, values = self._csr(not self.is_transposed)
            return torch.sparse_csc_tensor(ccol, row, values, self.shape, check_invariants=False)
        if layout not in (torch.sparse_csr, torch.sparse_coo, torch.sparse_bsr):
            raise ValueError(f"layout must be torch.sparse_csr, sparse_csc, sparse_coo or sparse_bsr, not {layout}")
        crow, col, values = self._csr(self.is_transposed)
        if layout == torch.sparse_csr:
            return torch.sparse_csr_tensor(crow, col, values, self.shape, check_invariants=False)
        row = torch.repeat_interleave(torch.arange(self.shape[0], device=self.device), crow.diff().long())
        if layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(
                torch.stack((row, col.long())), values, self.shape, is_coalesced=True, check_invariants=False
            )
        assert blocksize is not None
        return self._block_sparse(row, col.long(), values, *blocksize)

    def _block_sparse(self, row: Tensor, col: Tensor, values: Tensor, height: int, width: int) -> Tensor:
        rows, columns = self.shape
        if height < 1 or width < 1 or rows % height or columns % width:
            raise GeometryError(f"blocks of {height} x {width} do not tile a {rows} x {columns} matrix")
        across = columns // width
        block, index = torch.unique((row // height) * across + col // width, return_inverse=True)
        place = (index * height + row % height) * width + col % width
        blocks = values.new_zeros(block.numel() * height * width).index_add(0, place, values)
        count = torch.bincount(block // across, minlength=rows // height)
        crow = torch.cat((count.new_zeros(1), count.cumsum(0)))
        return torch.sparse_bsr_tensor(
            crow, block % across, blocks.unflatten(0, (-1, height, width)), self.shape, check_invariants=False
        )

    def to_scipy(self) -> Any:
        """``C`` as a scipy.sparse.csr_array that shares no gradient; needs ``pip install torch_convarith[scipy]``."""
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError("to_scipy() needs SciPy: pip install torch_convarith[scipy]") from error
        if self.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(f"SciPy has no sparse arrays of {self.dtype}; convert the weight to torch.float32 first")
        crow, col, values = (t.detach().cpu().numpy() for t in self._csr(self.is_transposed))
        return csr_array((values, col, crow), shape=self.shape)

    def symbolic(self) -> SymbolicMatrix:
        """``C`` with symbols for weights: ``w`` and the tap's index; of several channels, out and in channel first.

        >>> print(conv_matrix(torch.ones(1, 1, 2, 2), (2, 3)).symbolic())
        w00 w01   0 w10 w11   0
          0 w00 w01   0 w10 w11
        """
        size = self.weight.shape if self.weight.shape[:2] != (1, 1) else self.weight.shape[2:]
        separator = "" if max(size) <= 10 else "_"
        names = ["w" + separator.join(map(str, index)) for index in torch.ones(*size).nonzero().tolist()]
        index = torch.arange(self.weight.numel(), device="cpu").reshape(self.weight.shape).flatten(2)
        (k, *output), (c, *input) = self._out_shape, self._in_shape
        outputs, inputs, per_group = math.prod(output), math.prod(input), self.weight.shape[1]
        rows = [[""] * (c * inputs) for _ in range(k * outputs)]
        entries = list(
            zip(*(t.tolist() for t in (self.pattern.tap, self.pattern.output, self.pattern.input)), strict=True)
        )
        for out_channel in range(k):
            first = out_channel // (k // self.groups) * per_group
            for channel in range(per_group):
                for tap, o, i in entries:
                    name = names[int(index[out_channel, channel, tap])]
                    row, column = out_channel * outputs + o, (first + channel) * inputs + i
                    rows[row][column] += f"+{name}" if rows[row][column] else name
        if self.is_transposed:
            rows = [list(column) for column in zip(*rows, strict=True)]
        return SymbolicMatrix(tuple(entry or "0" for entry in row) for row in rows)


class SymbolicMatrix(tuple):  # type: ignore[type-arg]
    """Rows of strings, printed with aligned columns."""

    __slots__ = ()

    def __str__(self) -> str:
        width = max((len(entry) for row in self for entry in row), default=0)
        return "\n".join(" ".join(entry.rjust(width) for entry in row) for row in self)
