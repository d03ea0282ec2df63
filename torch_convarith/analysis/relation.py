"""Which input positions an output position depends on, along one axis: the pattern of one layer, taps summed up.

Every layer here repeats itself: ``period`` outputs further on, it sees the same offsets ``shift`` inputs further on. A
convolution has period 1 and shift s; a transposed convolution period s and shift 1; resizing by the fraction n/m has
period n and shift m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from ..geometry import source_index

__all__ = ["Relation"]


@dataclass(frozen=True, slots=True)
class Relation:
    """Output ``o`` sees the inputs ``(o // period) * shift + offset`` for ``offset`` in ``offsets[o % period]``.

    Args:
        input: input size.
        output: output size.
        period: outputs after which the offsets repeat.
        shift: inputs by which they have then moved.
        offsets: of each phase, those of the inputs seen, ascending; they may fall outside the input.
        border: what stands outside the input: "zeros" (nothing), "replicate", "reflect" or "circular".
        clips: outside the input there is another tensor (concatenation), not padding.
        scale: inputs per output, where the outputs are listed one by one; else ``shift / period``.

    >>> Relation.window(5, 3, kernel=3, stride=2, lo=1).seen(0)
    [0, 1]
    """

    input: int
    output: int
    period: int
    shift: int
    offsets: tuple[tuple[int, ...], ...]
    border: str = "zeros"
    clips: bool = False
    scale: Fraction | None = None

    @property
    def pace(self) -> Fraction:
        """Inputs per output."""
        return Fraction(self.shift, self.period) if self.scale is None else self.scale

    def unbounded(self, output: int) -> list[int]:
        """The positions that ``output`` sees, as if the input went on for ever."""
        turn, phase = divmod(output, self.period)
        return [turn * self.shift + offset for offset in self.offsets[phase]]

    def seen(self, output: int) -> list[int]:
        """The inputs that ``output`` sees."""
        places = (source_index(place, self.input, self.border) for place in self.unbounded(output))
        return sorted({place for place in places if place is not None})

    @property
    def is_identity(self) -> bool:
        """Whether every output sees the input at its own place, and nothing else."""
        return self.input == self.output and self.period == self.shift == 1 and self.offsets == ((0,),)

    def matrix(self) -> Tensor:
        """``M[o, i]``: 1.0 where output ``o`` sees input ``i``."""
        return _matrix(self)

    # Kinds of layers

    @classmethod
    def identity(cls, size: int) -> Relation:
        """Element by element."""
        return cls(size, size, 1, 1, ((0,),))

    @classmethod
    def full(cls, input: int, output: int) -> Relation:
        """Every output sees every input."""
        return cls(input, output, 1, 0, (tuple(range(input)),))

    @classmethod
    def broadcast(cls, output: int) -> Relation:
        """One input, seen by all outputs."""
        return cls(1, output, 1, 0, ((0,),))

    @classmethod
    def window(
        cls,
        input: int,
        output: int,
        kernel: int,
        stride: int = 1,
        lo: int = 0,
        dilation: int = 1,
        border: str = "zeros",
    ) -> Relation:
        """A convolution or a pooling window."""
        return cls(input, output, 1, stride, (tuple(t * dilation - lo for t in range(kernel)),), border)

    @classmethod
    def transposed(
        cls, input: int, output: int, kernel: int, stride: int = 1, lo: int = 0, dilation: int = 1
    ) -> Relation:
        """The transpose of :meth:`window`: input ``i`` is stamped on the outputs ``i*stride + t*dilation - lo``."""
        phases = []
        for phase in range(stride):
            places = (phase + lo - t * dilation for t in range(kernel))
            phases.append(tuple(sorted(place // stride for place in places if place % stride == 0)))
        return cls(input, output, stride, 1, tuple(phases))

    @classmethod
    def shifted(cls, input: int, output: int, offset: int, step: int = 1, border: str = "zeros") -> Relation:
        """Output ``o`` sees input ``o*step + offset``: slices, padding, concatenation, flips."""
        return cls(input, output, 1, step, ((offset,),), border)

    @classmethod
    def listed(cls, input: int, rows: Iterable[Iterable[int]]) -> Relation:
        """Output ``o`` sees the inputs ``rows[o]``."""
        offsets = tuple(tuple(sorted(set(row))) for row in rows)
        return cls(input, len(offsets), max(1, len(offsets)), 0, offsets or ((),))

    @classmethod
    def adaptive(cls, input: int, output: int) -> Relation:
        """Adaptive pooling: from ``floor(o*i/n)`` to ``ceil((o+1)*i/n)``, as torch splits an axis."""
        return cls._periodic(
            input, output, Fraction(input, output), lambda o: range(o * input // output, -(-(o + 1) * input // output))
        )

    @classmethod
    def nearest(cls, input: int, output: int, scale: Fraction, exact: bool = False) -> Relation:
        """Nearest neighbour: ``floor(o*scale)``, or ``floor((o + 1/2)*scale)``; ``scale`` in inputs per output."""
        half = Fraction(1, 2) if exact else Fraction(0)
        return cls._periodic(input, output, scale, lambda o: (math.floor((o + half) * scale),))

    @classmethod
    def interpolated(cls, input: int, output: int, scale: Fraction, align_corners: bool, taps: int) -> Relation:
        """Linear (2 taps) or cubic (4 taps) interpolation; a tap of weight 0 is not seen."""

        def seen(o: int) -> Iterable[int]:
            place = o * scale if align_corners else (o + Fraction(1, 2)) * scale - Fraction(1, 2)
            # torch clamps the place itself for linear interpolation, and the taps' places for both.
            first = math.floor(place)
            if place == first:
                return (first,)
            return range(first - taps // 2 + 1, first + taps // 2 + 1)

        return cls._periodic(input, output, scale, seen, "replicate")

    @classmethod
    def _periodic(
        cls, input: int, output: int, scale: Fraction, seen: Callable[[int], Iterable[int]], border: str = "zeros"
    ) -> Relation:
        if input == 1:  # whatever lies beyond is the same element again
            return cls(1, output, 1, 0, ((0,),), scale=scale)
        period, shift = scale.denominator, scale.numerator
        if period > output:
            period, shift = max(1, output), 0
        return cls(input, output, period, shift, tuple(tuple(seen(o)) for o in range(period)), border, scale=scale)


@lru_cache(maxsize=512)
def _matrix(relation: Relation) -> Tensor:
    matrix = torch.zeros(relation.output, relation.input)
    if not relation.output or not relation.input:
        return matrix
    outputs, inputs = [], []
    for phase in range(min(relation.period, relation.output)):
        rows = torch.arange(phase, relation.output, relation.period)
        offsets = torch.tensor(relation.offsets[phase], dtype=torch.long)
        places = (rows // relation.period)[:, None] * relation.shift + offsets
        outputs.append(rows[:, None].expand_as(places).reshape(-1))
        inputs.append(places.reshape(-1))
    rows, places = torch.cat(outputs), torch.cat(inputs)
    if relation.border != "zeros":
        found = {p: source_index(p, relation.input, relation.border) for p in set(places.tolist())}
        places = torch.tensor([found[p] for p in places.tolist()], dtype=torch.long)
    inside = (places >= 0) & (places < relation.input)
    matrix[rows[inside], places[inside]] = 1.0
    return matrix
