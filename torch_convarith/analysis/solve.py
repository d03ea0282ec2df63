"""The relationships read backwards: which sizes, kernels, strides or paddings give the size you want."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..geometry import Axis, GeometryError, Relationship, TransposedAxis

__all__ = ["Solution", "Solutions", "nearest_valid_sizes", "solve", "valid_sizes"]


@dataclass(frozen=True, slots=True)
class Solution:
    """One assignment of all letters that satisfies the guide's arithmetic, along one axis.

    ``input`` and ``output`` are the layer's: of a transposed layer the convolution that it transposes has them the
    other way round.
    """

    input: int
    output: int
    kernel: int
    stride: int
    padding: int | tuple[int, int]
    dilation: int
    output_padding: int = 0
    transposed: bool = False

    @property
    def axis(self) -> Axis | TransposedAxis:
        """The axis itself, with everything that can be asked of it."""
        if not self.transposed:
            return Axis(self.input, self.kernel, self.stride, self.padding, self.dilation)
        lo, hi = _sides(self.padding)
        # As torch allows, output_padding may reach the stride where the dilation is larger: less padding at the end.
        extra = self.output_padding - self.output_padding % self.stride
        return Axis(self.output, self.kernel, self.stride, (lo, hi - extra), self.dilation).transposed()

    @property
    def relationship(self) -> Relationship:
        """The most specific of the guide's relationships that applies."""
        return self.axis.relationship

    def __str__(self) -> str:
        letters = [f"k={self.kernel}", f"s={self.stride}", f"p={self.padding}", f"d={self.dilation}"]
        if self.transposed:
            letters.append(f"a={self.output_padding}")
        return f"{self.input} -> {self.output}: {' '.join(letters)} (relationship {self.relationship.number})"


class Solutions(tuple):  # type: ignore[type-arg]
    """Every :class:`Solution`, smallest first; where there is none, :attr:`nearest` are those of the nearest sizes."""

    nearest: tuple[Solution, ...]

    def __new__(cls, found: Iterable[Solution], nearest: Iterable[Solution] = ()) -> Solutions:
        """A tuple of ``found`` that remembers ``nearest``."""
        solutions = super().__new__(cls, found)
        solutions.nearest = tuple(nearest)
        return solutions

    def __str__(self) -> str:
        if self:
            return "\n".join(map(str, self))
        if not self.nearest:
            return "no solution"
        return "\n".join(["no solution; the nearest sizes that have one:", *map(str, self.nearest)])


_LETTERS = ("input", "output", "kernel", "stride", "padding", "dilation", "output_padding")


def solve(
    input: int | None = None,
    output: int | None = None,
    kernel: int | None = None,
    stride: int | None = None,
    padding: int | tuple[int, int] | None = None,
    dilation: int | None = None,
    output_padding: int | None = None,
    transposed: bool = False,
) -> Solutions:
    """Every way to fill in the letters that are left open (None), along one axis.

    The search is exhaustive within what can matter: an open kernel spans at most the input (of a transposed layer: the
    output), an open padding is symmetric and at most ``k - 1`` (full padding; ``k`` the effective kernel), an open
    stride is at most the smallest one that leaves a single window, and one tap alone is not dilated.

    Args:
        input: the layer's input size ``i`` (of a transposed layer ``i'``).
        output: the layer's output size ``o`` (``o'``). One of ``input`` and ``output`` must be given.
        kernel: ``k``, taps.
        stride: ``s``.
        padding: ``p``, or ``(lo, hi)``.
        dilation: ``d``.
        output_padding: ``a`` of relationship 14; only with ``transposed``, where None leaves it open.
        transposed: whether the layer is a transposed convolution.

    Returns:
        :class:`Solutions`, ordered by kernel, dilation, stride, padding, ``a``, then size. Empty where nothing fits;
        its ``nearest`` are then the solutions at the nearest input size and at the nearest output size.

    Raises:
        ValueError: ``input`` and ``output`` both open, or ``output_padding`` without ``transposed``.
        GeometryError: a given letter is out of its range.

    >>> print(solve(output=3, kernel=3, stride=2, padding=1, dilation=1))  # which inputs give 3? (figures 2.6 and 2.7)
    5 -> 3: k=3 s=2 p=1 d=1 (relationship 6)
    6 -> 3: k=3 s=2 p=1 d=1 (relationship 6)
    >>> print(solve(input=7, output=14, stride=2, kernel=4, dilation=1, transposed=True))
    7 -> 14: k=4 s=2 p=1 d=1 a=0 (relationship 13)
    """
    _check(input, output, kernel, stride, padding, dilation, output_padding, transposed)
    given = dict(zip(_LETTERS, (input, output, kernel, stride, padding, dilation, output_padding), strict=True))
    found = _ordered(given, transposed)
    if found or input is None or output is None:
        return Solutions(found, () if found else _nearest_size(given, transposed))
    nearest = [*_nearest(given, "input", transposed), *_nearest(given, "output", transposed)]
    return Solutions(found, nearest)


def _check(
    input: Any,
    output: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any,
    transposed: bool,
) -> None:
    if input is None and output is None:
        raise ValueError("solve() needs the input size or the output size: with both open, every size is a solution")
    if output_padding is not None and not transposed:
        raise ValueError("output_padding belongs to a transposed convolution: pass transposed=True")
    least = {"input": 0, "output": 1, "kernel": 1, "stride": 1, "dilation": 1, "output_padding": 0}
    values = {"input": input, "output": output, "kernel": kernel, "stride": stride, "dilation": dilation}
    for name, value in {**values, "output_padding": output_padding}.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer or None, not {type(value).__name__}")
        if value < least[name]:
            raise GeometryError(f"{name} {value} must be at least {least[name]}")
    if padding is not None:
        sides = padding if isinstance(padding, tuple) else (padding,)
        if len(sides) != 1 + isinstance(padding, tuple) or any(
            isinstance(p, bool) or not isinstance(p, int) for p in sides
        ):
            raise TypeError(f"padding must be an integer, (lo, hi) or None, not {padding!r}")
        if transposed and any(p < 0 for p in sides):
            raise GeometryError(f"negative padding is not supported: padding {padding}")


def _sides(padding: int | tuple[int, int]) -> tuple[int, int]:
    return padding if isinstance(padding, tuple) else (padding, padding)


def _ordered(given: dict[str, Any], transposed: bool) -> list[Solution]:
    def size(s: Solution) -> tuple[int, ...]:
        return s.kernel, s.dilation, s.stride, sum(_sides(s.padding)), s.output_padding, s.input, s.output

    return sorted(_transposed(given) if transposed else _direct(given), key=size)


def _kernels(given: dict[str, Any], widest: int) -> Iterator[tuple[int, int, int]]:
    """(kernel, dilation, effective kernel) with an open one spanning at most ``widest``."""
    kernel, dilation = given["kernel"], given["dilation"]
    for k in range(1, max(1, widest) + 1) if kernel is None else (kernel,):
        if dilation is not None:
            dilations: Iterable[int] = (dilation,)
        else:
            dilations = (1,) if k == 1 else range(1, max(1, (widest - 1) // (k - 1)) + 1)
        for d in dilations:
            reach = k + (k - 1) * (d - 1)
            if kernel is not None or reach <= max(1, widest):
                yield k, d, reach


def _paddings(given: dict[str, Any], reach: int) -> Iterable[Any]:
    return range(reach) if given["padding"] is None else (given["padding"],)


def _strides(span: int, output: int | None) -> range:
    """Strides that turn ``span`` places for a window's start, the first left out, into ``output`` windows."""
    if output is None:
        return range(1, span + 2)
    if output == 1:
        return range(span + 1, span + 2)  # every larger stride gives the same single window
    return range(span // output + 1, span // (output - 1) + 1)


def _direct(given: dict[str, Any]) -> Iterator[Solution]:
    input, output = given["input"], given["output"]
    for k, d, reach in _kernels(given, output if input is None else input):
        for p in _paddings(given, reach):
            total = sum(_sides(p))
            if input is not None:
                span = input + total - reach
                if span < 0:
                    continue
                strides = _strides(span, output) if given["stride"] is None else (given["stride"],)
                for s in strides:
                    if output in (None, span // s + 1):
                        yield Solution(input, span // s + 1, k, s, p, d)
            else:
                for s in range(1, max(1, output) + 1) if given["stride"] is None else (given["stride"],):
                    first = s * (output - 1) + reach - total
                    for i in range(max(0, first), first + s):
                        yield Solution(i, output, k, s, p, d)


def _transposed(given: dict[str, Any]) -> Iterator[Solution]:
    input, output = given["input"], given["output"]
    if input == 0:
        return
    for k, d, reach in _kernels(given, input if output is None else output):
        for p in _paddings(given, reach):
            total = sum(_sides(p))
            most = max(2, input) if output is None else output + total
            for s in range(1, most + 1) if given["stride"] is None else (given["stride"],):
                extras = range(max(s, d)) if given["output_padding"] is None else (given["output_padding"],)
                for a in extras:
                    if a >= max(s, d):
                        continue
                    fixed = a + reach - total  # o' = s(i' - 1) + fixed
                    if input is not None:
                        result = s * (input - 1) + fixed
                        if result >= 1 and output in (None, result):
                            yield Solution(input, result, k, s, p, d, a, True)
                        if input == 1 and given["stride"] is None and s > max(d, a):
                            break
                    elif output >= fixed and (output - fixed) % s == 0:
                        yield Solution((output - fixed) // s + 1, output, k, s, p, d, a, True)


def _nearest(given: dict[str, Any], open_size: str, transposed: bool) -> list[Solution]:
    """Solutions with ``open_size`` freed, those at the least distance from what was asked."""
    wanted = given[open_size]
    found = _ordered({**given, open_size: None}, transposed)
    distance = min((abs(getattr(s, open_size) - wanted) for s in found), default=0)
    return [s for s in found if abs(getattr(s, open_size) - wanted) == distance]


def _nearest_size(given: dict[str, Any], transposed: bool) -> list[Solution]:
    """With one size open and nothing fitting: the given size moved as little as it takes."""
    name = "output" if given["input"] is None else "input"
    wanted = given[name]
    reach = (given["kernel"] or 1) * (given["dilation"] or 1) + sum(_sides(given["padding"] or 0))
    for step in range(1, 2 * reach + (given["stride"] or 1) + 2):
        for size in (wanted - step, wanted + step):
            if size >= 1:
                found = _ordered({**given, name: size}, transposed)
                if found:
                    return found
    return []


def valid_sizes(model: Any, sizes: Iterable[int], channels: int | None = None) -> list[int]:
    """The input sizes that survive an encoder-decoder exactly: the model runs, and its output is as large as its input.

    Every size is tried on the meta device, so no convolution is computed.

    Args:
        model: a torch.nn.Module.
        sizes: candidates, each used along all axes.
        channels: of the input; by default those that the model's first convolution takes.

    >>> import torch
    >>> up = torch.nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1)
    >>> valid_sizes(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2, padding=1), up), range(5, 12))
    [5, 7, 9, 11]
    """
    return [size for size in sizes if _survives(model, size, channels)]


def nearest_valid_sizes(model: Any, size: int, channels: int | None = None, within: int = 64) -> list[int]:
    """``[size]`` if it survives as :func:`valid_sizes` has it, else the nearest that do: one, or one on each side.

    Args:
        model: a torch.nn.Module.
        size: wanted, along all axes.
        channels: of the input; by default those that the model's first convolution takes.
        within: how far to look.

    Returns:
        At most two sizes, the smaller first; none where none is near.

    >>> import torch
    >>> up = torch.nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1)
    >>> nearest_valid_sizes(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2, padding=1), up), 10)
    [9, 11]
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1")
    for step in range(within + 1):
        found = [n for n in sorted({size - step, size + step}) if n >= 1 and _survives(model, n, channels)]
        if found:
            return found
    return []


def _survives(model: Any, size: int, channels: int | None) -> bool:
    from .capture import capture, example_shape  # it needs torch; solve alone does not

    shape = example_shape(model, size, channels)
    try:
        graph = capture(model, shape, computing=False)
    except (RuntimeError, ValueError):  # what torch and geometry.py raise where sizes do not fit
        return False
    return any(node.shape[2:] == shape[2:] for node in graph.outputs)
