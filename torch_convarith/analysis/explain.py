"""The page of the guide for one layer, with its own numbers put in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..geometry import Axis, Geometry, Relationship, TransposedAxis, pooling_relationship
from .capture import capture, example_shape
from .graph import Node

__all__ = ["Explanation", "explain"]

_LARGEST_PICTURE = 24


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; printing it gives the page.

    Attributes:
        text: the page.
        geometry: the axes; of a transposed layer, those of the convolution that it transposes.
        relationships: one per axis.
        transposed: whether the layer is a transposed convolution.
        shape: (rows, columns) of the layer's matrix, all channels.
        nnz: its structural non-zeros.
    """

    text: str
    geometry: Geometry
    relationships: tuple[Relationship, ...]
    transposed: bool
    shape: tuple[int, int]
    nnz: int

    @property
    def density(self) -> float:
        """``nnz`` over rows times columns."""
        return self.nnz / max(1, math.prod(self.shape))

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def explain(layer_or_axis: Any, input_size: int | Sequence[int] | None = None) -> Explanation:
    """Explains one layer on an input of one size: its relationship, its formula with numbers, its matrix, its picture.

    Args:
        layer_or_axis: a convolution, transposed convolution or pooling layer of torch.nn or of ours; an
            :class:`~torch_convarith.Axis`, a :class:`~torch_convarith.TransposedAxis`, a tuple of either, or a
            :class:`~torch_convarith.Geometry`.
        input_size: the layer's spatial input sizes; axes and geometries have their own.

    Raises:
        GeometryError: the sizes do not fit.
        TypeError: a layer of another kind.

    >>> from torch_convarith import Axis
    >>> print(explain(Axis(6, kernel=3, stride=2, padding=1)))
    A convolution of 6 inputs: k = 3, s = 2, p = 1, d = 1.
    <BLANKLINE>
    It is relationship 6 of the guide, any padding, any stride (d = 1):
      o = floor((i + 2p - k) / s) + 1
        = floor((6 + 2*1 - 3) / 2) + 1 = 3
    The last window ends a = (i + 2p - k) mod s = (6 + 2*1 - 3) mod 2 = 1 short of the end of the padded input:
      inputs of sizes 5 and 6 give the same output size 3.
      That 1 is padding: no input is lost.
    <BLANKLINE>
    As a matrix, C has 3 rows (outputs) and 6 columns (inputs), and 8 of its 18 entries are structural non-zeros
      (density 0.444). Of the 9 taps of all windows, 1 falls on padding.
    <BLANKLINE>
    The padded input, the first window's taps in brackets:
      [o][x][x] x  x  x  x  .
      x an input, o a padded zero, . not reached by any window
    """
    if isinstance(layer_or_axis, (Axis, TransposedAxis)):
        layer_or_axis = (layer_or_axis,)
    if isinstance(layer_or_axis, (Geometry, tuple)):
        if input_size is not None:
            raise TypeError("an axis or a geometry has its own input size: pass no other")
        axes = tuple(layer_or_axis)
        transposed = all(isinstance(axis, TransposedAxis) for axis in axes)
        if not axes or not (transposed or all(isinstance(axis, Axis) for axis in axes)):
            raise TypeError("axes must all be Axis or all be TransposedAxis")
        geometry = Geometry(tuple(axis.axis for axis in axes) if transposed else axes)
        return _page(geometry, transposed, "conv_transpose" if transposed else "conv", 1, 1, 1, "zeros")
    if not isinstance(layer_or_axis, nn.Module):
        raise TypeError(f"explain() takes a layer, an Axis or a Geometry, not {type(layer_or_axis).__name__}")
    if input_size is None:
        raise ValueError("give the layer's spatial input size")
    node = _layer_node(layer_or_axis, input_size)
    assert node.geometry is not None
    inputs, outputs = node.channels or (node.edges[0].node.shape[1], node.shape[1])
    groups = node.groups if node.channels else inputs
    return _page(node.geometry, node.kind == "conv_transpose", node.kind, inputs, outputs, groups, node.padding_mode)


def _layer_node(layer: nn.Module, input_size: int | Sequence[int]) -> Node:
    kernel = getattr(layer, "kernel_size", None)
    axes = next((n for n in (1, 2, 3) if f"{n}d" in type(layer).__name__.lower()), None)
    if kernel is None or axes is None:
        raise TypeError(f"explain() knows convolutions and pooling, not {type(layer).__name__}")
    sizes = (input_size,) * axes if isinstance(input_size, int) else tuple(input_size)
    shape = (1, 1, *sizes) if not hasattr(layer, "in_channels") else example_shape(layer, sizes)
    # capture() wraps torch's and our own errors; the cause names the axis and the rule
    graph = capture(layer, shape, computing=False, partial=True)
    if graph.error is not None:
        raise graph.error
    node = graph.nodes[-1]
    if node.geometry is None:
        raise TypeError(f"explain() knows convolutions and pooling, not {type(layer).__name__}")
    return node


# Words --------------------------------------------------------------------------------------------------------------


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _letter(name: str, values: Sequence[Any]) -> str:
    texts = [f"({v[0]}, {v[1]})" if isinstance(v, tuple) else str(v) for v in values]
    return f"{name} = {texts[0] if len(set(texts)) == 1 else 'x'.join(texts)}"


def _page(
    geometry: Geometry, transposed: bool, kind: str, inputs: int, outputs: int, groups: int, mode: str
) -> Explanation:
    letters = ", ".join(
        (
            _letter("k", geometry.kernel_size),
            _letter("s", geometry.stride),
            _letter("p", [lo if lo == hi else (lo, hi) for lo, hi in geometry.padding]),
            _letter("d", geometry.dilation),
        )
    )
    size = geometry.output_size if transposed else geometry.input_size
    what = {"conv": "A convolution", "conv_transpose": "A transposed convolution", "pool": "A pooling layer"}[kind]
    channels = f", {inputs} to {outputs} channels" if (inputs, outputs) != (1, 1) else ""
    channels += f" in {groups} groups" if groups > 1 and kind != "pool" else ""
    lines = [f"{what} of {_times(size)} inputs{channels}: {letters}.", ""]

    ups = geometry.transposed()
    relationships = tuple(
        up.relationship if transposed else pooling_relationship(axis) if kind == "pool" else axis.relationship
        for axis, up in zip(geometry, ups, strict=True)
    )
    seen: list[Any] = []
    for n, (axis, up) in enumerate(zip(geometry, ups, strict=True)):
        if axis in seen:
            continue
        seen.append(axis)
        if len(set(geometry)) > 1:
            same = [m for m, other in enumerate(geometry) if other == axis]
            lines.append(f"Along spatial axis {' and '.join(map(str, same))}:")
        lines += _transposed(up, relationships[n]) if transposed else _direct(axis, relationships[n], kind)
    lines += ["", *_matrix(geometry, transposed, inputs, outputs, groups, kind, mode)]
    lines += _picture(geometry, transposed, mode)
    pairs = inputs // groups * outputs
    nnz = pairs * geometry.count_entries(mode)
    shape = (outputs * math.prod(geometry.output_size), inputs * math.prod(geometry.input_size))
    if transposed:
        shape = (outputs * math.prod(geometry.input_size), inputs * math.prod(geometry.output_size))
    return Explanation("\n".join(lines), geometry, relationships, transposed, shape, nnz)


def _padding(axis: Axis) -> str:
    """2p with its number, or lo + hi where sides differ."""
    return f"2*{axis.lo}" if axis.lo == axis.hi else f"({axis.lo}+{axis.hi})"


def _numbers(number: int, axis: Axis) -> str:
    """The right-hand side of the formula, letters replaced."""
    i, k, s, d, p = axis.input, axis.kernel, axis.stride, axis.dilation, _padding(axis)
    return {
        1: f"{i} - {k} + 1",
        2: f"{i} - {k} + {p} + 1",
        3: f"{i}",
        4: f"{i} + {k} - 1",
        5: f"floor(({i} - {k}) / {s}) + 1",
        6: f"floor(({i} + {p} - {k}) / {s}) + 1",
        7: f"floor(({i} - {k}) / {s}) + 1",
        15: f"floor(({i} + {p} - {k} - ({k} - 1)*({d} - 1)) / {s}) + 1",
    }[number]


def _direct(axis: Axis, rule: Relationship, kind: str) -> list[str]:
    numbers = _numbers(rule.number, axis)
    equal = f"  = {numbers}" if numbers == str(axis.output) else f"    = {numbers} = {axis.output}"
    lines = [
        f"It is relationship {rule.number} of the guide, {rule.title} ({rule.conditions}):",
        f"  {rule.formula}",
        f"  {equal}" if equal.startswith("  = ") else equal,
    ]
    if axis.dilation > 1 and axis.kernel > 1:
        lines.append(
            f"Dilation {axis.dilation} spreads the {axis.kernel} taps over k + (k-1)(d-1) = "
            f"{axis.effective_kernel} inputs: the effective kernel."
        )
    if axis.stride > 1:
        lines += _border(axis)
    if axis.stride > axis.effective_kernel:
        lines.append(
            f"The stride {axis.stride} is larger than the effective kernel {axis.effective_kernel}: "
            f"{axis.stride - axis.effective_kernel} inputs between windows are never read."
        )
    return lines


def _border(axis: Axis) -> list[str]:
    a = axis.unused
    if not a:
        return ["The last window ends exactly at the end of the padded input: a = 0, nothing is left over."]
    first = axis.input - a
    dilated = " - (k-1)(d-1)" if axis.effective_kernel > axis.kernel else ""
    minus = f" - {axis.effective_kernel - axis.kernel}" if dilated else ""
    sizes = [first + n for n in range(axis.stride) if first + n >= 0]
    told = f"{sizes[0]} and {sizes[1]}" if len(sizes) == 2 else f"{sizes[0]} to {sizes[-1]}"
    lost = max(0, a - max(0, axis.hi))
    kept = a - lost
    lines = [
        f"The last window ends a = (i + 2p - k{dilated}) mod s = "
        f"({axis.input} + {_padding(axis)} - {axis.kernel}{minus}) mod {axis.stride} = {a} short of the end "
        f"of the padded input:",
        f"  inputs of sizes {told} give the same output size {axis.output}.",
    ]
    if lost:
        rest = f" (the other {kept} is padding)" if kept == 1 else f" (the other {kept} are padding)" if kept else ""
        which = "The last input is" if lost == 1 else f"The last {lost} inputs are"
        lines.append(f"  {which} never read{rest}.")
    else:
        lines.append(f"  {'That 1 is' if a == 1 else f'Those {a} are'} padding: no input is lost.")
    return lines


def _transposed(up: TransposedAxis, rule: Relationship) -> list[str]:
    axis = up.axis
    i, s, k, a = up.input, axis.stride, axis.effective_kernel, up.a
    p = _padding(axis)
    numbers = {
        8: f"{i} + {k} - 1",
        9: f"{i} + ({k} - 1) - {p}",
        10: f"{i}",
        11: f"{i} - ({k} - 1)",
        12: f"{s}*({i} - 1) + {k}",
        13: f"{s}*({i} - 1) + {k} - {p}",
        14: f"{s}*({i} - 1) + {a} + {k} - {p}",
    }[rule.number]
    lo, hi = up.padding
    result = f"  {rule.formula}" if numbers == str(up.output) else f"  {rule.formula} = {numbers}"
    lines = [
        f"It is relationship {rule.number} of the guide, {rule.title}; {rule.conditions}:",
        f"{result} = {up.output}",
        f"It is the transpose of the convolution that takes {axis.input} inputs to {axis.output} outputs.",
        "The equivalent direct convolution, with the flipped kernel and channels exchanged:",
        f"  1. insert s - 1 = {s - 1} zeros between units: {i} + {s - 1}*({i} - 1) = {up.stretched}"
        if s > 1
        else f"  1. s = 1: no zeros are inserted between the {i} units",
        f"  2. pad with p' = k - p - 1 = {lo if lo == hi else f'{lo} and {hi}'} on either side"
        + (" (negative: crop)" if min(lo, hi) < 0 else ""),
    ]
    if a:
        lines.append(f"     and a = {a} more at the end only, for what the convolution's last window does not reach")
    lines.append(f"  3. convolve with k' = {axis.kernel}, s' = 1, d' = {axis.dilation}: {up.direct.output} outputs")
    if s > 1:
        inserted = up.direct.nnz - axis.nnz
        lines.append(
            f"  Of its {up.direct.nnz} multiplications along this axis {inserted} are by inserted zeros: "
            "C^T does not have those entries."
        )
    return lines


def _matrix(
    geometry: Geometry, transposed: bool, inputs: int, outputs: int, groups: int, kind: str, mode: str
) -> Iterator[str]:
    pairs = inputs // groups * outputs
    rows, columns = outputs * math.prod(geometry.output_size), inputs * math.prod(geometry.input_size)
    nnz = pairs * geometry.count_entries(mode)
    taps = pairs * math.prod(geometry.kernel_size) * math.prod(geometry.output_size)
    if transposed:
        rows, columns = outputs * math.prod(geometry.input_size), inputs * math.prod(geometry.output_size)
    name = "C^T" if transposed else "C"
    pooled = ", of fixed pattern," if kind == "pool" else ""
    yield (
        f"As a matrix, {name}{pooled} has {rows:,} rows (outputs) and {columns:,} columns (inputs), and {nnz:,} of its "
        f"{rows * columns:,} entries are structural non-zeros"
    )
    lost = taps - nnz
    end = f"  (density {nnz / max(1, rows * columns):.3g})."
    if lost and mode == "zeros":
        if transposed:
            end += f" Of the {taps:,} products of an input and a tap, {lost:,} {'is' if lost == 1 else 'are'} cropped."
        else:
            end += f" Of the {taps:,} taps of all windows, {lost:,} {'falls' if lost == 1 else 'fall'} on padding."
    yield end


def _picture(geometry: Geometry, transposed: bool, mode: str) -> list[str]:
    """The padded (or stretched) input of up to two axes, with the first window marked."""
    axes = [up.direct for up in geometry.transposed()] if transposed else list(geometry)
    if len(axes) > 2 or any(a.input + a.lo + a.hi > _LARGEST_PICTURE or min(a.lo, a.hi) < 0 for a in axes):
        return []
    step = geometry.stride if transposed else (1,) * len(axes)
    cells: list[list[tuple[str, bool]]] = []
    for axis, s in zip(axes, step, strict=True):
        reached = {o * axis.stride + t * axis.dilation for o in range(axis.output) for t in range(axis.kernel)}
        taps = {t * axis.dilation for t in range(axis.kernel)}
        line = []
        for place in range(axis.input + axis.lo + axis.hi):
            inside = 0 <= place - axis.lo < axis.input
            mark = "." if place not in reached else "o" if not inside else "x" if (place - axis.lo) % s == 0 else "-"
            line.append((mark, place in taps))
        cells.append(line)

    def meet(first: str, second: str) -> str:
        """A place is an input only if it is one along both axes."""
        return next((mark for mark in (".", "o", "-") if mark in (first, second)), "x")

    rows = cells[0] if len(cells) == 2 else [("x", True)]
    lines = []
    for mark, row_tap in rows:
        cells_of_row = (
            f"[{m}]" if row_tap and tap else f" {m} "
            for m, tap in ((meet(mark, other), tap) for other, tap in cells[-1])
        )
        lines.append("  " + "".join(cells_of_row).rstrip())
    marks = set("".join(lines)) - set(" []")
    words = {
        "x": "x an input",
        "-": "- an inserted zero",
        "o": "o a padded zero" if mode == "zeros" else f"o an input repeated ({mode})",
        ".": ". not reached by any window",
    }
    legend = ", ".join(text for mark, text in words.items() if mark in marks)
    name = "stretched and padded input" if transposed else "padded input" if "o" in marks else "input"
    return ["", f"The {name}, the first window's taps in brackets:", *lines, f"  {legend}"]
