"""Sizes: the guide's arithmetic for integers, and for torch's SymInts, without importing torch.

The guide is V. Dumoulin and F. Visin, *A guide to convolution arithmetic for deep learning*, arXiv:1603.07285.
Its letters, along one axis: ``i`` input size, ``o`` output size, ``k`` kernel size, ``s`` stride, ``p`` zero padding,
``d`` dilation. Primes belong to the transposed convolution. Where the two sides are padded differently, read ``2p`` as
``lo + hi``: only the sum enters a size.

Everything starts from one map. Output ``o`` sees, through tap ``t`` of the kernel, the input ``i = o*s + t*d - lo``,
where that exists. An :class:`Axis` is this map along one axis and a :class:`Geometry` is one axis per dimension.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Axis",
    "Geometry",
    "GeometryError",
    "Relationship",
    "TransposedAxis",
    "output_size",
    "pooling_output_size",
    "pooling_relationship",
    "relationship",
    "relationships",
    "same_padding",
    "transposed_output_size",
]

AXIS_NAMES = {
    1: ("axis 2 (length)",),
    2: ("axis 2 (height)", "axis 3 (width)"),
    3: ("axis 2 (depth)", "axis 3 (height)", "axis 4 (width)"),
}
"""What an error calls the axes of a batch (N, C, *spatial)."""


class GeometryError(ValueError, RuntimeError):
    """Sizes that do not fit together. Both a ValueError and, as torch.nn.functional raises, a RuntimeError."""


def _integer(value: Any, what: str) -> int:
    """``value`` as an int; a torch SymInt passes through untouched, so that dynamic shapes stay dynamic."""
    if type(value) is int:
        return value
    if hasattr(value, "node"):  # SymInt: operator.index would pin it to today's size
        return value
    if isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, not bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None


def _pair(value: Any, what: str) -> tuple[int, int]:
    """Padding as (lo, hi): a pair stays, an integer goes to both sides."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise TypeError(f"{what} along one axis must be an integer or (lo, hi), not {value!r}")
        return _integer(value[0], what), _integer(value[1], what)
    return (_integer(value, what),) * 2


def _along(name: str) -> str:
    return f" along {name}" if name else ""


def _positive(value: int, what: str, name: str) -> None:
    if value < 1:
        raise GeometryError(
            f"non-positive {what} is not supported: {what} should be greater than zero, but got {value}{_along(name)}"
        )


def _show(padding: tuple[int, int]) -> str:
    return str(padding[0]) if padding[0] == padding[1] else str(padding)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a convolution: output ``o`` sees through tap ``t`` the input ``o*stride + t*dilation - lo``.

    An axis that exists fits: the constructor refuses sizes for which no window fits into the padded input.

    Args:
        input: input size ``i``, at least 0.
        kernel: number of taps ``k``, at least 1.
        stride: ``s``, at least 1.
        padding: zeros on each side, ``p`` or ``(lo, hi)``. Negative padding crops. Kept as ``(lo, hi)``.
        dilation: ``d``, at least 1.
        name: what errors call this axis, for example ``"axis 2 (height)"``.

    Raises:
        GeometryError: the kernel does not fit, or a stride, dilation or kernel is not positive.
        TypeError: something is not an integer.

    >>> axis = Axis(6, kernel=3, stride=2, padding=1)  # the guide's figure 2.7
    >>> axis.output, axis.unused, axis.relationship.number
    (3, 1, 6)
    """

    input: int
    kernel: int
    stride: int = 1
    padding: Any = 0
    dilation: int = 1
    name: str = field(default="", compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        store = object.__setattr__
        for what in ("input", "kernel", "stride", "dilation"):
            store(self, what, _integer(getattr(self, what), what))
        store(self, "padding", _pair(self.padding, "padding"))
        for what in ("kernel", "stride", "dilation"):
            _positive(getattr(self, what), what, self.name)
        if self.input < 0:
            raise GeometryError(f"input size {self.input}{_along(self.name)} is negative")
        if self.input + self.lo + self.hi < self.effective_kernel:
            raise GeometryError(self._does_not_fit())

    def _does_not_fit(self) -> str:
        dilated = self.dilation > 1
        kernel = f"kernel {self.kernel}"
        if dilated:
            kernel += f" with dilation {self.dilation} (effective kernel {self.effective_kernel})"
        number, need = (15, "i + 2p >= k + (k-1)(d-1)") if dilated else (6, "i + 2p >= k")
        return (
            f"{kernel} does not fit input {self.input} with padding {_show(self.padding)}{_along(self.name)}: "
            f"relationship {number} needs {need}, but {self.input + self.lo + self.hi} < {self.effective_kernel}. "
            "Kernel size can't be greater than actual input size"
        )

    @property
    def lo(self) -> int:
        """Padding before the first input."""
        return self.padding[0]

    @property
    def hi(self) -> int:
        """Padding after the last input."""
        return self.padding[1]

    @property
    def effective_kernel(self) -> int:
        """Inputs from the first tap to the last: ``k + (k-1)(d-1)`` (relationship 15)."""
        return self.kernel + (self.kernel - 1) * (self.dilation - 1)

    @property
    def output(self) -> int:
        """Number of windows: ``floor((i + 2p - k - (k-1)(d-1)) / s) + 1`` (relationship 15)."""
        return (self.input + self.lo + self.hi - self.effective_kernel) // self.stride + 1

    @property
    def unused(self) -> int:
        """The guide's ``a``: padded inputs past the last window, ``(i + 2p - effective kernel) mod s``."""
        return (self.input + self.lo + self.hi - self.effective_kernel) % self.stride

    def input_index(self, output: int, tap: int) -> int | None:
        """The input that ``output`` sees through ``tap``, or None where that falls on padding."""
        index = output * self.stride + tap * self.dilation - self.lo
        return index if 0 <= index < self.input else None

    @property
    def nnz(self) -> int:
        """Number of (output, tap) pairs that meet an input: non-zeros of this axis's matrix, padding left out.

        >>> Axis(4, kernel=3).nnz, Axis(5, kernel=3, padding=1).nnz
        (6, 13)
        """
        total = 0
        for tap in range(self.kernel):
            offset = tap * self.dilation - self.lo  # the input that output 0 sees
            first = max(0, -(offset // self.stride))
            last = min(self.output - 1, (self.input - 1 - offset) // self.stride)
            total += max(0, last - first + 1)
        return total

    def count_entries(self, padding_mode: str = "zeros") -> int:
        """Distinct (output, input) pairs: :attr:`nnz`, or what padding that repeats inputs makes of it.

        >>> Axis(5, kernel=3, padding=1).count_entries("circular")
        15
        """
        check_padding_mode(self, padding_mode)
        if padding_mode == "zeros":
            return self.nnz
        windows = (
            {
                source_index(o * self.stride + t * self.dilation - self.lo, self.input, padding_mode)
                for t in range(self.kernel)
            }
            for o in range(self.output)
        )
        return sum(map(len, windows))

    @property
    def relationship(self) -> Relationship:
        """The most specific of relationships 1 to 6 and 15 that applies."""
        return next(r for r in _MOST_SPECIFIC_FIRST if r.applies(self))

    def transposed(self) -> TransposedAxis:
        """The equivalent direct convolution of this convolution's transpose."""
        return TransposedAxis(self)


@dataclass(frozen=True, slots=True)
class TransposedAxis:
    """The transpose of a convolution, as the direct convolution that computes it (the guide's chapter 4).

    The transpose's input (``input`` = i' = the convolution's output) is *stretched* by ``s - 1`` zeros between units,
    padded by ``padding`` zeros on either side and by ``a`` zeros more at the end, and convolved with unit stride by the
    flipped kernel. Its output is the convolution's input size again.

    >>> up = Axis(6, kernel=3, stride=2, padding=1).transposed()  # the guide's figure 4.7
    >>> up.input, up.stretched, up.padding, up.a, up.output, up.relationship.number
    (3, 5, (1, 1), 1, 6, 14)
    """

    axis: Axis

    @property
    def input(self) -> int:
        """``i'``: the output size of the convolution."""
        return self.axis.output

    @property
    def stretched(self) -> int:
        """``i' + (s-1)(i'-1)``: size after inserting ``s - 1`` zeros between units."""
        return self.input + (self.axis.stride - 1) * (self.input - 1)

    @property
    def kernel(self) -> int:
        """``k' = k``."""
        return self.axis.kernel

    @property
    def dilation(self) -> int:
        """The flipped kernel keeps its dilation."""
        return self.axis.dilation

    @property
    def stride(self) -> int:
        """``s' = 1``."""
        return 1

    @property
    def padding(self) -> tuple[int, int]:
        """``p' = k - p - 1`` per side, with the effective kernel; negative where the stretched input is cropped."""
        reach = self.axis.effective_kernel - 1
        return reach - self.axis.lo, reach - self.axis.hi

    @property
    def a(self) -> int:
        """Zeros added once more, at the end only, for the inputs that no window of the convolution used."""
        return self.axis.unused

    @property
    def direct(self) -> Axis:
        """The direct convolution: stretched input, unit stride, ``padding`` and ``a`` together."""
        lo, hi = self.padding
        return Axis(self.stretched, self.kernel, 1, (lo, hi + self.a), self.dilation, name=self.axis.name)

    @property
    def output(self) -> int:
        """``o'``: the input size of the convolution."""
        return self.axis.input

    @property
    def relationship(self) -> Relationship:
        """The most specific of relationships 8 to 14 that applies; ``k`` reads as the effective kernel."""
        return next(r for r in _MOST_SPECIFIC_TRANSPOSED_FIRST if r.applies(self))

    def transposed(self) -> Axis:
        """The convolution again."""
        return self.axis


# The guide's 15 relationships ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relationship:
    """One of the guide's 15 relationships between sizes.

    Attributes:
        number: 1 to 15.
        title: what it is about.
        conditions: when it holds.
        formula: what it says.
        source: where the guide says it.
        transposed: whether it speaks of a :class:`TransposedAxis` (8 to 14) or of an :class:`Axis`.

    >>> print(relationship(6))
    relationship 6 (any padding, any stride): o = floor((i + 2p - k) / s) + 1
    >>> relationship(6).output(Axis(5, kernel=3, stride=2, padding=1))
    3
    """

    number: int
    title: str
    conditions: str
    formula: str
    source: str
    transposed: bool
    _condition: Callable[[Any], bool] = field(repr=False)
    _output: Callable[[Any], int] = field(repr=False)

    def __str__(self) -> str:
        return f"relationship {self.number} ({self.title}): {self.formula}"

    def applies(self, axis: Axis | TransposedAxis) -> bool:
        """Whether the conditions hold. A relationship of the other kind (direct, transposed) never applies."""
        return isinstance(axis, TransposedAxis) == self.transposed and bool(self._condition(axis))

    def output(self, axis: Axis | TransposedAxis) -> int:
        """The output size by this relationship's own formula.

        Raises:
            GeometryError: the conditions do not hold for ``axis``.
        """
        if not self.applies(axis):
            raise GeometryError(f"relationship {self.number} needs {self.conditions}, which {axis} does not meet")
        return self._output(axis)


def _plain(axis: Axis) -> bool:
    """No dilation; one tap alone cannot be dilated."""
    return axis.dilation == 1 or axis.kernel == 1


def _both(axis: Axis, padding: int) -> bool:
    return axis.lo == padding and axis.hi == padding


def _same(axis: Axis) -> bool:
    return axis.kernel % 2 == 1 and _both(axis, axis.kernel // 2)


def _sum(axis: Axis) -> int:
    return axis.lo + axis.hi


def _reach(up: TransposedAxis) -> int:
    return up.axis.effective_kernel


_RELATIONSHIPS = (
    Relationship(
        1, "no padding, unit stride", "s = 1 and p = 0", "o = i - k + 1", "guide, section 2.1", False,
        lambda x: _plain(x) and x.stride == 1 and _both(x, 0),
        lambda x: x.input - x.kernel + 1,
    ),
    Relationship(
        2, "padding, unit stride", "s = 1", "o = i - k + 2p + 1", "guide, section 2.2", False,
        lambda x: _plain(x) and x.stride == 1,
        lambda x: x.input - x.kernel + _sum(x) + 1,
    ),
    Relationship(
        3, "half (same) padding", "s = 1, k = 2n + 1 and p = n", "o = i", "guide, section 2.2.1", False,
        lambda x: _plain(x) and x.stride == 1 and _same(x),
        lambda x: x.input,
    ),
    Relationship(
        4, "full padding", "s = 1 and p = k - 1", "o = i + k - 1", "guide, section 2.2.2", False,
        lambda x: _plain(x) and x.stride == 1 and _both(x, x.kernel - 1),
        lambda x: x.input + x.kernel - 1,
    ),
    Relationship(
        5, "no padding, any stride", "p = 0", "o = floor((i - k) / s) + 1", "guide, section 2.3", False,
        lambda x: _plain(x) and _both(x, 0),
        lambda x: (x.input - x.kernel) // x.stride + 1,
    ),
    Relationship(
        6, "any padding, any stride", "d = 1", "o = floor((i + 2p - k) / s) + 1", "guide, section 2.4", False,
        _plain,
        lambda x: (x.input + _sum(x) - x.kernel) // x.stride + 1,
    ),
    Relationship(
        7, "pooling", "pooling with p = 0", "o = floor((i - k) / s) + 1", "guide, chapter 3", False,
        lambda x: _plain(x) and _both(x, 0),
        lambda x: (x.input - x.kernel) // x.stride + 1,
    ),
    Relationship(
        8, "no padding, unit stride, transposed", "the transpose of 1: k' = k, s' = s and p' = k - 1",
        "o' = i' + k - 1", "guide, section 4.3", True,
        lambda x: x.axis.stride == 1 and _both(x.axis, 0),
        lambda x: x.input + _reach(x) - 1,
    ),
    Relationship(
        9, "padding, unit stride, transposed", "the transpose of 2: k' = k, s' = s and p' = k - p - 1",
        "o' = i' + (k - 1) - 2p", "guide, section 4.4", True,
        lambda x: x.axis.stride == 1,
        lambda x: x.input + (_reach(x) - 1) - _sum(x.axis),
    ),
    Relationship(
        10, "half (same) padding, transposed", "the transpose of 3: k' = k, s' = s and p' = p",
        "o' = i'", "guide, section 4.4.1", True,
        lambda x: x.axis.stride == 1 and _reach(x) % 2 == 1 and _both(x.axis, _reach(x) // 2),
        lambda x: x.input,
    ),
    Relationship(
        11, "full padding, transposed", "the transpose of 4: k' = k, s' = s and p' = 0",
        "o' = i' - (k - 1)", "guide, section 4.4.2", True,
        lambda x: x.axis.stride == 1 and _both(x.axis, _reach(x) - 1),
        lambda x: x.input - (_reach(x) - 1),
    ),
    Relationship(
        12, "no padding, any stride, transposed",
        "the transpose of 5 where s divides i - k: i~' stretched, k' = k, s' = 1 and p' = k - 1",
        "o' = s(i' - 1) + k", "guide, section 4.5", True,
        lambda x: _both(x.axis, 0) and x.a == 0,
        lambda x: x.axis.stride * (x.input - 1) + _reach(x),
    ),
    Relationship(
        13, "any padding, any stride, transposed",
        "the transpose of 6 where s divides i + 2p - k: i~' stretched, k' = k, s' = 1 and p' = k - p - 1",
        "o' = s(i' - 1) + k - 2p", "guide, section 4.6", True,
        lambda x: x.a == 0,
        lambda x: x.axis.stride * (x.input - 1) + _reach(x) - _sum(x.axis),
    ),
    Relationship(
        14, "any input size, transposed",
        "the transpose of 6: as 13, with a = (i + 2p - k) mod s zeros more at the bottom and right",
        "o' = s(i' - 1) + a + k - 2p", "guide, section 4.6", True,
        lambda x: True,
        lambda x: x.axis.stride * (x.input - 1) + x.a + _reach(x) - _sum(x.axis),
    ),
    Relationship(
        15, "dilation", "any d", "o = floor((i + 2p - k - (k - 1)(d - 1)) / s) + 1", "guide, section 5.1", False,
        lambda x: True,
        lambda x: (x.input + _sum(x) - x.kernel - (x.kernel - 1) * (x.dilation - 1)) // x.stride + 1,
    ),
)  # fmt: skip

# 7 says of pooling what 5 says of convolution; pooling_relationship() answers it.
_MOST_SPECIFIC_FIRST = tuple(_RELATIONSHIPS[n - 1] for n in (1, 3, 4, 2, 5, 6, 15))
_MOST_SPECIFIC_TRANSPOSED_FIRST = tuple(_RELATIONSHIPS[n - 1] for n in (8, 10, 11, 9, 12, 13, 14))


def relationship(number: int) -> Relationship:
    """The guide's relationship ``number``, 1 to 15.

    >>> relationship(14).formula
    "o' = s(i' - 1) + a + k - 2p"
    """
    number = _integer(number, "number")
    if not 1 <= number <= len(_RELATIONSHIPS):
        raise ValueError(f"the guide has relationships 1 to {len(_RELATIONSHIPS)}, not {number}")
    return _RELATIONSHIPS[number - 1]


def relationships() -> tuple[Relationship, ...]:
    """All 15, in order."""
    return _RELATIONSHIPS


def pooling_relationship(axis: Axis) -> Relationship:
    """The relationship of a pooling window: 7 without padding, else what a convolution's would be.

    >>> pooling_relationship(Axis(28, kernel=2, stride=2)).number
    7
    """
    pooling = relationship(7)
    return pooling if pooling.applies(axis) else axis.relationship


# Several axes ------------------------------------------------------------------------------------------------------


def per_axis(value: Any, axes: int, what: str) -> tuple[Any, ...]:
    """One entry per axis: a sequence of that length (or of length 1), or one value for all."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 1:
            return (value[0],) * axes
        if len(value) != axes:
            raise GeometryError(f"{what} {tuple(value)} has {len(value)} entries for {axes} axes")
        return tuple(value)
    return (value,) * axes


def same_padding(kernel: int, dilation: int = 1) -> tuple[int, int]:
    """(lo, hi) that keeps the size at unit stride; of an odd total, the extra element goes to the end, as in torch.

    >>> same_padding(3), same_padding(4), same_padding(3, dilation=2)
    ((1, 1), (1, 2), (2, 2))
    """
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def strided_same_padding(input: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(lo, hi) that gives ``ceil(i / s)`` outputs, as TensorFlow rules "same"; at unit stride that is torch's rule.

    By relationship 15, ``o = ceil(i / s)`` needs ``2p >= (o - 1)s + k - i`` with the effective kernel ``k``; of an odd
    total the extra element goes to the end.

    >>> strided_same_padding(5, 3, 2), strided_same_padding(6, 3, 2), strided_same_padding(6, 1, 4)
    ((1, 1), (0, 1), (0, 0))
    """
    outputs = -(-input // stride)
    total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - input)
    return total // 2, total - total // 2


def padding_pairs(padding: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple:
    """(lo, hi) per axis from an int, one entry per axis, pairs, "valid" or "same"."""
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise GeometryError(f"Invalid padding string '{padding}': should be one of 'valid', 'same'")
        if any(s != 1 for s in stride):
            raise GeometryError(
                f"padding='same' is not supported for strided convolutions: relationship 3 needs s = 1, not {stride}"
            )
        return tuple(same_padding(k, d) for k, d in zip(kernel, dilation, strict=True))
    return tuple(_pair(p, "padding") for p in per_axis(padding, len(kernel), "padding"))


_AxisNumbers = tuple[int, int, int, tuple[int, int], int, str]


def _per_axis_numbers(input: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[_AxisNumbers]:
    """(input, kernel, stride, (lo, hi), dilation, name) of each axis, from whatever form the caller used."""
    axes = max(len(v) if isinstance(v, Sequence) else 1 for v in (input, kernel))
    inputs = tuple(_integer(i, "input") for i in per_axis(input, axes, "input size"))
    kernels = tuple(_integer(k, "kernel") for k in per_axis(kernel, axes, "kernel size"))
    strides = tuple(_integer(s, "stride") for s in per_axis(stride, axes, "stride"))
    dilations = tuple(_integer(d, "dilation") for d in per_axis(dilation, axes, "dilation"))
    paddings = padding_pairs(padding, kernels, strides, dilations)
    names = AXIS_NAMES.get(axes) or tuple(f"axis {n + 2}" for n in range(axes))
    return list(zip(inputs, kernels, strides, paddings, dilations, names, strict=True))


@dataclass(frozen=True, slots=True)
class Geometry:
    """One :class:`Axis` per dimension: everything about a convolution but its channels and weights.

    >>> g = Geometry.of((5, 6), kernel_size=3, stride=2, padding=1)
    >>> g.output_size, g.nnz, g[1].unused
    ((3, 3), 56, 1)
    """

    axes: tuple[Axis, ...]

    @classmethod
    def of(
        cls,
        input_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
    ) -> Geometry:
        """The axes of ``input_size`` and ``kernel_size``; an integer anywhere serves all axes.

        Args:
            input_size: spatial sizes; a single integer with a ``kernel_size`` of several axes is repeated.
            kernel_size: taps per axis.
            stride: per axis.
            padding: an int, one per axis, ``(lo, hi)`` per axis, ``"valid"`` or ``"same"``. A flat pair of ints is one
                entry per axis.
            dilation: per axis.

        Raises:
            GeometryError: numbers of axes that disagree, or sizes that do not fit; the axis is named.
        """
        numbers = _per_axis_numbers(input_size, kernel_size, stride, padding, dilation)
        return cls(tuple(Axis(i, k, s, p, d, name=name) for i, k, s, p, d, name in numbers))

    def __len__(self) -> int:
        return len(self.axes)

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __getitem__(self, index: int) -> Axis:
        return self.axes[index]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Spatial input sizes."""
        return tuple(axis.input for axis in self.axes)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps per axis."""
        return tuple(axis.kernel for axis in self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride per axis."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(lo, hi) per axis."""
        return tuple(axis.padding for axis in self.axes)

    @property
    def flat_padding(self) -> list[int]:
        """The lo and hi of each axis in turn, as the operators take them."""
        return [side for pair in self.padding for side in pair]

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation per axis."""
        return tuple(axis.dilation for axis in self.axes)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial output sizes."""
        return tuple(axis.output for axis in self.axes)

    @property
    def nnz(self) -> int:
        """Non-zeros of the matrix between one input and one output channel: the product of the axes'."""
        return math.prod(axis.nnz for axis in self.axes)

    def count_entries(self, padding_mode: str = "zeros") -> int:
        """:attr:`nnz` under any padding mode."""
        return math.prod(axis.count_entries(padding_mode) for axis in self.axes)

    def transposed(self) -> tuple[TransposedAxis, ...]:
        """The equivalent direct convolution of the transpose, per axis."""
        return tuple(axis.transposed() for axis in self.axes)


# Padding ---------------------------------------------------------------------------------------------------------

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def source_index(index: int, input: int, padding_mode: str) -> int | None:
    """The input that stands at ``index`` of the padded input, counted from the first real one; None for a zero.

    >>> [source_index(i, 4, "reflect") for i in range(-2, 6)], [source_index(i, 4, "circular") for i in range(-2, 6)]
    ([2, 1, 0, 1, 2, 3, 2, 1], [2, 3, 0, 1, 2, 3, 0, 1])
    """
    if 0 <= index < input:
        return index
    if padding_mode == "zeros":
        return None
    if padding_mode == "replicate":
        return 0 if index < 0 else input - 1
    if padding_mode == "circular":
        return index % input
    period = 2 * (input - 1)
    phase = index % period if period else 0
    return min(phase, period - phase)


def check_padding_mode(axis: Axis | None, padding_mode: str) -> None:
    """Raises where ``padding_mode`` is unknown, or asks for more inputs to repeat than the axis (if given) has."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, not {padding_mode!r}")
    if axis is None:
        return
    most = max(axis.lo, axis.hi)
    need, holds = {
        "zeros": ("", True),
        "reflect": ("p < i", most < axis.input),
        "replicate": ("i > 0", axis.input > 0),
        "circular": ("p <= i and i > 0", most <= axis.input and axis.input > 0),
    }[padding_mode]
    if not holds:
        raise GeometryError(
            f"padding_mode {padding_mode!r} needs {need}, but padding is {_show(axis.padding)} and input "
            f"{axis.input}{_along(axis.name)}"
        )


# Sizes alone -------------------------------------------------------------------------------------------------------


def _is_sequence(*values: Any) -> bool:
    return any(isinstance(v, Sequence) and not isinstance(v, str) for v in values)


def output_size(input: Any, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Any:
    """Output size of a convolution, by relationship 15 (which contains 1 to 6).

    Args:
        input: one size, or one per axis; the answer has the same form.
        kernel, stride, dilation: an int, or one per axis.
        padding: an int, one per axis, ``(lo, hi)`` per axis, ``"same"`` or ``"valid"``.

    Raises:
        GeometryError: the kernel does not fit.

    >>> output_size(5, 3, stride=2, padding=1), output_size((7, 224), (3, 7), padding=((1, 1), (3, 3)))
    (3, (7, 224))
    """
    sizes = Geometry.of(input, kernel, stride, padding, dilation).output_size
    return sizes if _is_sequence(input, kernel) else sizes[0]


def _transposed_output(
    input: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, name: str, a: int
) -> int:
    for value, what in ((kernel, "kernel"), (stride, "stride"), (dilation, "dilation")):
        _positive(value, what, name)
    if input < 1:
        raise GeometryError(f"input size {input}{_along(name)} must be at least 1")
    if a < 0:
        raise GeometryError(f"negative output_padding is not supported: output_padding {a}{_along(name)}")
    reach = kernel + (kernel - 1) * (dilation - 1)
    size = stride * (input - 1) + a + reach - padding[0] - padding[1]
    if size < 1:
        raise GeometryError(
            f"transposed output of input {input}, kernel {kernel}, stride {stride}, padding {_show(padding)}, "
            f"dilation {dilation} and output_padding {a}{_along(name)} is too small: "
            f"relationship 14 gives s(i' - 1) + a + k - 2p = {size}, which must be at least 1"
        )
    return size


def transposed_output_size(
    input: Any, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, output_padding: Any = 0
) -> Any:
    """Output size of a transposed convolution, by relationship 14 with ``a`` = ``output_padding``.

    ``kernel``, ``stride``, ``padding`` and ``dilation`` are those of the convolution that is transposed, as in
    torch.nn.ConvTranspose2d. ``output_padding`` chooses among the ``s`` input sizes that this convolution maps to the
    same output size.

    Raises:
        GeometryError: the size would be less than 1, or ``output_padding`` is negative.

    >>> transposed_output_size(3, 3, stride=2, padding=1), transposed_output_size(3, 3, 2, 1, output_padding=1)
    (5, 6)
    """
    numbers = _per_axis_numbers(input, kernel, stride, padding, dilation)
    extras = [_integer(a, "output_padding") for a in per_axis(output_padding, len(numbers), "output_padding")]
    sizes = tuple(_transposed_output(*axis, a) for axis, a in zip(numbers, extras, strict=True))
    return sizes if _is_sequence(input, kernel) else sizes[0]


def pooling_output_size(
    input: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """Output size of pooling: relationship 7, with padding and ceil_mode as torch rules them.

    With ``ceil_mode`` a last, incomplete window counts if it starts inside the input or its left padding, not if it
    would start in the right padding.

    Args:
        input: one size, or one per axis; the answer has the same form.
        kernel: the window.
        stride: that of the window; the kernel's size by default.
        padding: an int or one per axis, at most half the kernel.
        dilation: spacing of the window's taps.
        ceil_mode: round up instead of down.

    Raises:
        GeometryError: the window does not fit, or the padding exceeds half of it.

    >>> pooling_output_size(13, 3, 2), pooling_output_size(6, 3, 2), pooling_output_size(6, 3, 2, ceil_mode=True)
    (6, 2, 3)
    """
    if stride is None or (isinstance(stride, Sequence) and not stride):
        stride = kernel
    numbers = _per_axis_numbers(input, kernel, stride, padding, dilation)
    sizes = tuple(_pooling_output(*axis, ceil_mode) for axis in numbers)
    return sizes if _is_sequence(input, kernel) else sizes[0]


def _pooling_output(
    input: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, name: str, ceil_mode: bool
) -> int:
    for side in padding:
        if side < 0:
            raise GeometryError(f"negative padding is not supported: padding {side}{_along(name)}")
    # Rounding up is rounding down with s - 1 more elements at the end.
    extra = stride - 1 if ceil_mode and stride > 0 else 0
    axis = Axis(input, kernel, stride, (padding[0], padding[1] + extra), dilation, name=name)
    if 2 * max(padding) > kernel:  # torch's rule, which leaves dilation out
        raise GeometryError(
            f"pad should be at most half of kernel size, but got pad={max(padding)} and kernel_size={kernel}"
            f"{_along(name)}"
        )
    starts_inside = (axis.output - 1) * stride < input + padding[0]
    return axis.output if starts_inside or not ceil_mode else axis.output - 1
