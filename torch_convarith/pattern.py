"""The pattern: which input each output sees through which tap, as index arrays. Geometry only, no weights."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .geometry import Geometry, check_padding_mode, source_index


class Pattern:
    """The 0/1 array ``S[t, o, i]``: 1 where input ``i`` contributes to output ``o`` through tap ``t``.

    The matrix of a convolution is the sum over taps of weight[:, :, t] (x) S[t]. Spatial positions are flattened in
    row-major order, as x.flatten() does. S is kept as three arrays of its entries, :attr:`tap`, :attr:`output` and
    :attr:`input`, ordered by output, then tap.

    Args:
        geometry: one axis per dimension.
        padding_mode: what a window sees outside the input: "zeros" (nothing), "reflect", "replicate" or "circular".

    >>> from torch_convarith import Geometry
    >>> pattern = Pattern(Geometry.of(4, 3))
    >>> pattern.output.tolist(), pattern.tap.tolist(), pattern.input.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 3])
    """

    def __init__(self, geometry: Geometry, padding_mode: str = "zeros") -> None:
        for axis in geometry:
            check_padding_mode(axis, padding_mode)
        self.geometry = geometry
        self.padding_mode = padding_mode

    def __repr__(self) -> str:
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        return f"Pattern({self.geometry}{mode})"

    def __len__(self) -> int:
        """Entries (t, o, i): multiplications of one channel pair."""
        return self.output.numel()

    def source(self, axis: int) -> Tensor:
        """The input at each place of the padded axis, from ``-lo`` on: (padded size,), -1 for a zero."""
        a = self.geometry[axis]
        found = (source_index(i, a.input, self.padding_mode) for i in range(-a.lo, a.input + a.hi))
        return torch.tensor([-1 if i is None else i for i in found], dtype=torch.long)

    def table(self, axis: int) -> Tensor:
        """Along one axis: the input that output ``o`` sees through tap ``t``, (output, kernel), -1 for a zero.

        >>> from torch_convarith import Geometry
        >>> Pattern(Geometry.of(5, 3, stride=2, padding=1)).table(0).tolist()
        [[-1, 0, 1], [1, 2, 3], [3, 4, -1]]
        """
        a = self.geometry[axis]
        place = torch.arange(a.output)[:, None] * a.stride + torch.arange(a.kernel) * a.dilation
        return self.source(axis)[place]

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Input sizes with the padding."""
        return tuple(axis.input + axis.lo + axis.hi for axis in self.geometry)

    def pad(self, x: Tensor) -> Tensor:
        """(..., *input) -> (..., *padded), by copies of inputs; so not for padding mode zeros."""
        for n, dim in enumerate(range(-len(self.geometry), 0)):
            x = x.index_select(dim, self.source(n).to(x.device))
        return x

    def unpad(self, x: Tensor) -> Tensor:
        """(..., *padded) -> (..., *input), the adjoint of :meth:`pad`: what padding repeated is added up again.

        >>> from torch_convarith import Geometry
        >>> pattern = Pattern(Geometry.of(3, 3, padding=1), "circular")
        >>> pattern.pad(torch.tensor([1, 2, 3])).tolist()
        [3, 1, 2, 3, 1]
        >>> pattern.unpad(torch.tensor([1, 10, 100, 1000, 10000])).tolist()
        [10010, 100, 1001]
        """
        for n, (dim, axis) in enumerate(zip(range(-len(self.geometry), 0), self.geometry, strict=True)):
            size = list(x.shape)
            size[dim] = axis.input
            x = x.new_zeros(size).index_add(dim, self.source(n).to(x.device), x)
        return x

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        # The product of the axes' tables, an axis at a time; a mixed-radix index grows with each.
        output = tap = input = torch.zeros(1, dtype=torch.long)
        for n, axis in enumerate(self.geometry):
            table = self.table(n)
            o, t = (table >= 0).nonzero(as_tuple=True)
            output = (output[:, None] * axis.output + o).flatten()
            tap = (tap[:, None] * axis.kernel + t).flatten()
            input = (input[:, None] * axis.input + table[o, t]).flatten()
        taps = torch.tensor(self.geometry.kernel_size).prod()
        order = (output * taps + tap).argsort()
        return tap[order], output[order], input[order]

    @property
    def tap(self) -> Tensor:
        """Tap of each entry, (len(self),)."""
        return self._entries[0]

    @property
    def output(self) -> Tensor:
        """Output of each entry, (len(self),)."""
        return self._entries[1]

    @property
    def input(self) -> Tensor:
        """Input of each entry, (len(self),)."""
        return self._entries[2]

    def to_dense(self) -> Tensor:
        """``S`` itself, bool, (taps, outputs, inputs)."""
        sizes = (self.geometry.kernel_size, self.geometry.output_size, self.geometry.input_size)
        dense = torch.zeros([int(torch.tensor(size).prod()) for size in sizes], dtype=torch.bool)
        dense[self.tap, self.output, self.input] = True
        return dense
