"""Receptive fields of whole models: size, jump, start and padding by arithmetic, and the exact sets of pixels.

Two computations, each exact:

- Along one axis, as if the input went on for ever: for every node the set of input offsets that an output sees, with
  the period after which it repeats. Its span is the receptive field ``r``, its pace the jump ``j``, its centre the
  start. For a chain of convolutions these are the recurrences of the guide's literature: ``j' = j*s``,
  ``r' = r + (k-1)*d*j``, ``start' = start + ((k-1)*d/2 - p)*j``.
- On the grid itself, borders and all: the mask of input pixels that an output pixel depends on, sent back through the
  graph one axis at a time. Unions of branches need not be rectangles, and are not rounded up to any.

After A. Araujo, W. Norris, J. Sim, *Computing receptive fields of convolutional neural networks*, Distill, 2019,
extended to sets of pixels, transposed layers, resizing and axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor, nn

from .capture import capture, example_input
from .graph import Edge, Graph, Node
from .relation import Relation

__all__ = ["Misalignment", "NodeField", "ReceptiveFields", "Region", "receptive_field"]


# Offsets along one axis --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offsets:
    """The input positions that each output sees: ``(o // period) * shift + offset``, offsets being bits of an integer.

    ``phases[n] = (base, bits)``: bit ``b`` set means offset ``base + b``; ``(0, 0)`` is the empty set. An aperiodic one
    lists all outputs.
    """

    period: int
    shift: int
    phases: tuple[tuple[int, int], ...]
    jump: Fraction
    aperiodic: bool = False

    def at(self, output: int) -> tuple[int, int]:
        """(base, bits) of one output."""
        if self.aperiodic:
            return self.phases[output] if 0 <= output < len(self.phases) else (0, 0)
        turn, phase = divmod(output, self.period)
        base, bits = self.phases[phase]
        return base + turn * self.shift, bits

    @property
    def constant(self) -> bool:
        """Whether all outputs see the same."""
        return self.shift == 0 and self.period == 1

    @property
    def end(self) -> Fraction:
        """Last position that output 0 sees; over several phases the mean."""
        ends = [base + bits.bit_length() - 1 - n * self.jump for n, (base, bits) in enumerate(self.phases) if bits]
        return sum(ends, Fraction(0)) / max(1, len(ends))

    @property
    def size(self) -> int:
        """The widest span."""
        return max((bits.bit_length() for _, bits in self.phases), default=0)

    @property
    def holes(self) -> bool:
        """Whether some position within the span is not seen."""
        return any(bits & (bits + 1) for _, bits in self.phases)

    @property
    def start(self) -> Fraction:
        """Centre of output 0 in the input, the first pixel's being 1/2; over several phases the mean."""
        centres = [
            base + Fraction(bits.bit_length() - 1, 2) - phase * self.jump
            for phase, (base, bits) in enumerate(self.phases)
            if bits
        ]
        if not centres:
            return Fraction(1, 2)
        return sum(centres, Fraction(0)) / len(centres) + Fraction(1, 2)


def single_pixel() -> Offsets:
    """An input's: each pixel sees itself."""
    return Offsets(1, 1, ((0, 1),), Fraction(1))


def _union(sets: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Of (base, bits), the base being that of the lowest bit."""
    known = [(base, bits) for base, bits in sets if bits]
    if not known:
        return 0, 0
    low = min(base for base, _ in known)
    result = 0
    for base, bits in known:
        result |= bits << (base - low)
    return low, result


def through(relation: Relation, offsets: Offsets) -> Offsets:
    """What the outputs of ``relation`` see, its inputs seeing ``offsets``."""
    if relation.is_identity:
        return offsets
    listed = relation.clips or offsets.aperiodic
    if listed:
        period, shift = max(1, relation.output), 0
    else:
        turns = offsets.period // math.gcd(offsets.period, relation.shift) if relation.shift else 1
        period = relation.period * turns
        shift = offsets.shift * (turns * relation.shift // offsets.period)
        if period > relation.output > 0:
            period, listed = relation.output, True
    phases = []
    for output in range(period):
        places: Iterable[int] = relation.unbounded(output)
        if relation.clips:
            places = [place for place in places if 0 <= place < relation.input]
        elif listed:
            places = relation.seen(output) if offsets.aperiodic else places
        phases.append(_union(offsets.at(place) for place in places))
    return Offsets(period, shift, tuple(phases), offsets.jump * relation.pace, listed and period > 1)


def merge_offsets(branches: Sequence[Offsets], outputs: int) -> Offsets:
    """The union of branches."""
    if len(set(branches)) == 1:
        return branches[0]
    moving = [b for b in branches if not b.constant]
    jump = moving[0].jump if moving else Fraction(0)
    paces = {Fraction(b.shift, b.period) for b in branches}
    if len(paces) == 1 and not any(b.aperiodic for b in branches):
        period = math.lcm(*(b.period for b in branches))
        if period <= max(1, outputs):
            shift = branches[0].shift * period // branches[0].period
            phases = tuple(_union(b.at(o) for b in branches) for o in range(period))
            return Offsets(period, shift, phases, jump)
    rows = tuple(_union(b.at(o) for b in branches) for o in range(outputs))
    return Offsets(max(1, outputs), 0, rows or ((0, 0),), jump, True)


# Results -----------------------------------------------------------------------------------------------------------


def _plain(value: Fraction) -> int | Fraction:
    return int(value) if value.denominator == 1 else value


@dataclass(frozen=True, slots=True)
class Misalignment:
    """Branches that meet at ``node`` with different centres or jumps along one axis.

    Attributes:
        node: where they meet.
        axis: number of the spatial axis.
        branches: name, start and jump of each.
        causal: their fields end at the same place, as those of causal convolutions are meant to.
    """

    node: str
    axis: int
    branches: tuple[tuple[str, float, float], ...]
    causal: bool = False

    def __str__(self) -> str:
        told = ", ".join(f"{name} (start {start:g}, jump {jump:g})" for name, start, jump in self.branches)
        return f"{self.node}, spatial axis {self.axis}: {told}"


class Region:
    """A set of positions on a grid.

    Attributes:
        mask: bool, of the grid's size.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    @cached_property
    def box(self) -> tuple[tuple[int, int], ...] | None:
        """(first, last) along each axis; None of the empty set."""
        found = self.mask.nonzero()
        if not len(found):
            return None
        return tuple(zip(found.amin(0).tolist(), found.amax(0).tolist(), strict=True))

    @property
    def pixels(self) -> set[tuple[int, ...]]:
        """The positions."""
        return {tuple(p) for p in self.mask.nonzero().tolist()}

    @property
    def is_full_box(self) -> bool:
        """Whether it has no holes."""
        return self.box is None or math.prod(hi - lo + 1 for lo, hi in self.box) == len(self)

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __contains__(self, position: Any) -> bool:
        place = (position,) if isinstance(position, int) else tuple(position)
        return all(0 <= p < n for p, n in zip(place, self.mask.shape, strict=True)) and bool(self.mask[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and torch.equal(self.mask, other.mask)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Region({len(self)} of {self.mask.numel()} positions, box {self.box})"

    def __str__(self) -> str:
        if self.mask.dim() > 2 or self.box is None:
            return repr(self)
        rows = self.mask if self.mask.dim() == 2 else self.mask[None]
        (top, bottom), (left, right) = self.box if self.mask.dim() == 2 else ((0, 0), *self.box)
        return "\n".join(
            "".join("#" if p else "." for p in row) for row in rows[top : bottom + 1, left : right + 1].tolist()
        )


@dataclass(frozen=True)
class NodeField:
    """The receptive field of one node, per spatial axis, in pixels of the input.

    ``size``, ``jump``, ``start`` and ``padding`` are the arithmetic of the windows, as if the input went on for ever:
    normalisation's statistics are not among them.

    Attributes:
        name: of the node.
        output: the node's sizes.
        size: ``r``, from the first input seen to the last; of the output that sees most.
        jump: ``j``, input pixels from one output to the next; an int, or a Fraction below transposed layers.
        start: centre of the first output, that of the first pixel being 0.5. Where outputs differ (below a transposed
            layer), the mean.
        padding: effective padding (lo, hi): how far the first output's field reaches beyond the input's beginning, and
            the last one's beyond its end. Negative: never reached.
        holes: whether the field along the axis has holes.
    """

    name: str
    output: tuple[int, ...]
    size: tuple[int, ...]
    jump: tuple[int | Fraction, ...]
    start: tuple[float, ...]
    padding: tuple[tuple[int, int], ...]
    holes: tuple[bool, ...]
    _fields: ReceptiveFields
    _offsets: tuple[Offsets, ...]

    def offsets(self, axis: int, output: int = 0) -> tuple[int, ...]:
        """The positions along ``axis`` that ``output`` sees, as if the input went on for ever."""
        base, bits = self._offsets[axis].at(output)
        return tuple(base + n for n in range(bits.bit_length()) if bits >> n & 1)

    def input_region(self, index: int | Sequence[int] | None = None) -> Region:
        """The input pixels that the output at ``index`` depends on; the middle one by default."""
        return self._fields.input_region(self.name, index)

    def output_region(self, pixel: int | Sequence[int]) -> Region:
        """The outputs of this node that depend on the input ``pixel``."""
        return self._fields.output_region(self.name, pixel)

    @property
    def mask(self) -> Tensor:
        """What the middle output sees, cut to its box: holes and branches that are no rectangle show."""
        region = self.input_region()
        if region.box is None:
            return region.mask[:0]
        return region.mask[tuple(slice(lo, hi + 1) for lo, hi in region.box)]

    def __repr__(self) -> str:
        def text(values: Iterable[Any]) -> str:
            return "x".join(str(v) for v in values)

        pads = ", ".join(f"{lo}/{hi}" for lo, hi in self.padding)
        return (
            f"{self.name}: output {text(self.output)}, r {text(self.size)}, j {text(self.jump)}, "
            f"start {text(f'{s:g}' for s in self.start)}, padding {pads}{', with holes' if any(self.holes) else ''}"
        )


class ReceptiveFields(Mapping[str, NodeField]):
    """The receptive fields of all nodes of a model, by name, in the order in which they ran.

    Attributes:
        graph: the captured model.
        misaligned: branches whose centres or jumps differ where they meet.
    """

    def __init__(self, graph: Graph, source: Node | None = None, statistics: bool = True) -> None:
        self.graph = graph
        self.source = source or graph.inputs[0]
        self.statistics = statistics
        self.misaligned: list[Misalignment] = []
        self._offsets: dict[int, tuple[Offsets, ...]] = {}
        self._compute()
        self._fields = {n.name: self._field(n) for n in graph.nodes if id(n) in self._offsets}

    def __getitem__(self, name: str | None) -> NodeField:
        node = self.graph[name]
        if node.name not in self._fields:
            raise KeyError(f"{node.name} does not depend on {self.source.name}")
        return self._fields[node.name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._fields.values()))

    def _compute(self) -> None:
        self._offsets[id(self.source)] = (single_pixel(),) * self.graph.axes
        for node in self.graph.nodes:
            edges = [e for e in node.edges if id(e.node) in self._offsets and not e.statistics]
            if not edges:
                continue
            result = []
            for axis in range(self.graph.axes):
                branches = [through(e.relations[axis], self._offsets[id(e.node)][axis]) for e in edges]
                self._compare(node, axis, edges, branches)
                result.append(merge_offsets(branches, node.sizes[axis]))
            self._offsets[id(node)] = tuple(result)

    def _compare(self, node: Node, axis: int, edges: list[Edge], branches: list[Offsets]) -> None:
        met = {
            (e.node.name, float(b.start), float(b.jump))
            for e, b in zip(edges, branches, strict=True)
            if not b.constant and not e.relations[axis].clips and node.sizes[axis] > 1
        }
        if len({(start, jump) for _, start, jump in met}) > 1:
            causal = len({(b.end, b.jump) for b in branches if not b.constant}) == 1
            self.misaligned.append(Misalignment(node.name, axis, tuple(sorted(met)), causal))

    def _field(self, node: Node) -> NodeField:
        offsets = self._offsets[id(node)]
        padding = []
        for o, outputs, inputs in zip(offsets, node.sizes, self.source.sizes, strict=True):
            reached = [o.at(n) for n in {0, max(0, outputs - 1), *range(min(outputs, o.period))}]
            last = [o.at(max(0, outputs - 1 - n)) for n in range(min(outputs, o.period))]
            lo = -min((base for base, bits in reached if bits), default=0)
            hi = max((base + bits.bit_length() - 1 for base, bits in [*last, *reached] if bits), default=0) - (
                inputs - 1
            )
            padding.append((lo, hi))
        return NodeField(
            node.name,
            node.sizes,
            tuple(o.size for o in offsets),
            tuple(_plain(o.jump) for o in offsets),
            tuple(float(o.start) for o in offsets),
            tuple(padding),
            tuple(o.holes for o in offsets),
            self,
            offsets,
        )

    # Regions

    def _edges(self, node: Node) -> list[Edge]:
        return [e for e in node.edges if self.statistics or not e.statistics]

    def input_region(self, node: str | None = None, index: int | Sequence[int] | None = None) -> Region:
        """The exact set of input pixels that one output pixel of ``node`` depends on, in any of its channels.

        Args:
            node: its name; the model's first output by default.
            index: position on the node's grid; the middle one by default.

        Raises:
            IndexError: no such position.
        """
        target = self.graph[node]
        place = self._place(target, index)
        start = torch.zeros(target.sizes)
        start[place] = 1
        masks: dict[int, Tensor] = {id(target): start}
        for current in reversed(self.graph.nodes):
            mask = masks.get(id(current))
            if mask is None or current is self.source:
                continue
            del masks[id(current)]
            for edge in self._edges(current):
                back = _apply(mask, edge.relations, backwards=True)
                known = masks.get(id(edge.node))
                masks[id(edge.node)] = back if known is None else torch.maximum(known, back)
        found = masks.get(id(self.source))
        return Region(torch.zeros(self.source.sizes, dtype=torch.bool) if found is None else found > 0)

    def output_region(self, node: str | None, pixel: int | Sequence[int]) -> Region:
        """The exact set of outputs of ``node`` that depend on one input pixel.

        Raises:
            IndexError: no such pixel.
        """
        target = self.graph[node]
        start = torch.zeros(self.source.sizes)
        start[self._place(self.source, pixel)] = 1
        masks: dict[int, Tensor] = {id(self.source): start}
        for current in self.graph.nodes:
            for edge in self._edges(current):
                mask = masks.get(id(edge.node))
                if mask is not None:
                    ahead = _apply(mask, edge.relations, backwards=False)
                    known = masks.get(id(current))
                    masks[id(current)] = ahead if known is None else torch.maximum(known, ahead)
            if current is target:
                break
        found = masks.get(id(target))
        return Region(torch.zeros(target.sizes, dtype=torch.bool) if found is None else found > 0)

    def _place(self, node: Node, index: int | Sequence[int] | None) -> tuple[int, ...]:
        if index is None:
            return tuple(size // 2 for size in node.sizes)
        place = (index,) * len(node.sizes) if isinstance(index, int) else tuple(index)
        if len(place) != len(node.sizes):
            raise IndexError(f"{node.name} has {len(node.sizes)} spatial axes, but the position is {place}")
        if not all(-n <= p < n for p, n in zip(place, node.sizes, strict=True)):
            raise IndexError(f"position {place} lies outside {node.name}, whose sizes are {node.sizes}")
        return place


def _apply(mask: Tensor, relations: tuple[Relation, ...], backwards: bool) -> Tensor:
    """The image of a mask (0.0 or 1.0), or with ``backwards`` its preimage, one axis after the other."""
    for axis, relation in enumerate(relations):
        if relation.is_identity:
            continue
        matrix = relation.matrix()
        moved = mask.movedim(axis, -1) @ (matrix if backwards else matrix.t())
        mask = (moved > 0).to(mask.dtype).movedim(-1, axis)
    return mask


@overload
def receptive_field(
    model: nn.Module, input_size: Any, node: None = None, *, statistics: bool = True, input: int = 0
) -> ReceptiveFields: ...


@overload
def receptive_field(
    model: nn.Module, input_size: Any, node: str, *, statistics: bool = True, input: int = 0
) -> NodeField: ...


def receptive_field(
    model: nn.Module, input_size: Any, node: str | None = None, *, statistics: bool = True, input: int = 0
) -> ReceptiveFields | NodeField:
    """The receptive field of every node of a model, or of one.

    Convolution, transposed convolution, pooling, dense layers, resizing, adaptive pooling, padding, slices, sums and
    concatenations are followed exactly, per axis; what is not known is taken to see everything, and its node's ``note``
    says so. Channels are not told apart: a pixel counts if any channel of it counts. Maximum pooling depends on
    all of its window.

    Args:
        model: a torch.nn.Module of torch.nn's layers, ours, and function calls.
        input_size: spatial sizes, (C, *spatial), the whole shape, or a tensor; of several inputs a list of these.
        node: a node's name, as in :func:`trace`'s table; None for all.
        statistics: whether pixel sets include what only the mean and variance of group, instance or layer normalisation
            carry. Batch normalisation is taken as in eval mode: element by element.
        input: which of several inputs.

    Returns:
        :class:`ReceptiveFields`, a mapping from names to :class:`NodeField`; or, with ``node``, one of these.

    Raises:
        CaptureError: the model does not run on that size.
        KeyError: no such node.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    >>> field = receptive_field(net, 5, node="1")
    >>> field
    1: output 2x2, r 7x7, j 4x4, start 0.5x0.5, padding 3/3, 3/3
    >>> field.input_region((0, 0)).box
    ((0, 3), (0, 3))
    """
    several = isinstance(input_size, list)
    sizes = input_size if several else [input_size]
    inputs = [s if several else example_input(model, s) for s in sizes]
    graph = capture(model, *inputs)
    fields = ReceptiveFields(graph, graph.inputs[input], statistics)
    return fields if node is None else fields[node]
