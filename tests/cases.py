"""Geometries that the tests share. A case prints as its own test id, which is also its repro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """One convolution: batch, channels, spatial sizes and options; ``padding`` is (lo, hi) per axis."""

    n: int
    c: int
    k: int
    input: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __str__(self) -> str:
        def join(values):
            return "x".join(map(str, values))

        pads = "x".join(f"{lo}" if lo == hi else f"{lo}:{hi}" for lo, hi in self.padding)
        return (
            f"n{self.n}c{self.c}k{self.k}_i{join(self.input)}_k{join(self.kernel)}_s{join(self.stride)}"
            f"_p{pads}_d{join(self.dilation)}_g{self.groups}"
        )

    @property
    def axes(self) -> int:
        return len(self.input)

    @property
    def flat_padding(self) -> list[int]:
        return [side for pair in self.padding for side in pair]

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(
            (i + lo + hi - d * (k - 1) - 1) // s + 1
            for i, k, s, (lo, hi), d in zip(
                self.input, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def options(self) -> dict[str, Any]:
        """For the operators and the oracle, but for the form of padding."""
        return {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}

    @property
    def geometry(self) -> tuple:
        """(stride, padding, dilation, groups) of a raw operator."""
        return self.stride, self.flat_padding, self.dilation, self.groups

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.input)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.k, *self.output)

    def tensors(self, dtype=torch.int64, seed=0, requires_grad=False):
        """Small x, w and y; integers for exact comparison, normal numbers for floating dtypes."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (self.x_shape, self.w_shape, self.y_shape)
        if dtype.is_floating_point or dtype.is_complex:
            return [torch.randn(s, dtype=dtype, generator=generator, requires_grad=requires_grad) for s in shapes]
        return [torch.randint(-4, 5, s, generator=generator).to(dtype) for s in shapes]


def case(n, c, k, input, kernel, stride=1, padding=0, dilation=1, groups=1) -> Case:
    """A Case from integers or tuples."""
    axes = len(input)

    def each(value):
        return value if isinstance(value, tuple) else (value,) * axes

    pads = tuple(p if isinstance(p, tuple) else (p, p) for p in each(padding))
    return Case(n, c, k, input, each(kernel), each(stride), pads, each(dilation), groups)


CASES = [
    case(1, 1, 1, (4, 4), 3),
    case(2, 3, 4, (5, 6), 3, padding=1),
    case(1, 2, 3, (6, 5), (3, 2), stride=2, padding=1),
    case(2, 4, 6, (7, 6), (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2),
    case(1, 4, 8, (5, 5), 3, padding=2, groups=4),  # depthwise, multiplier 2
    case(1, 1, 2, (5, 4), (3, 1), stride=(3, 2), padding=((2, 0), (0, 1))),  # asymmetric, pixels skipped
    case(1, 2, 1, (7, 7), 3, padding=-1),  # cropped
    case(2, 1, 1, (3, 3), 5, padding=2),  # kernel larger than the input
    case(2, 2, 2, (1, 1), 1),
    case(0, 2, 3, (4, 4), 3, padding=1),  # empty batch
    case(2, 3, 2, (9,), 4, stride=2, padding=3, dilation=2),
    case(1, 2, 4, (8,), 3, stride=3, groups=2),
    case(1, 2, 3, (4, 3, 5), (2, 3, 2), stride=(1, 2, 2), padding=1),
    case(2, 2, 2, (3, 4, 3), 2, padding=((1, 0), (0, 1), (1, 1)), dilation=(2, 1, 2), groups=2),
]


@st.composite
def cases(draw, max_axes: int = 3) -> Case:
    """Any small convolution that fits, crops and asymmetric padding included."""
    axes = draw(st.integers(1, max_axes))
    groups = draw(st.integers(1, 3))
    small = 7 if axes == 1 else 5 if axes == 2 else 4
    sizes, kernels, strides, paddings, dilations = [], [], [], [], []
    for _ in range(axes):
        kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        lo, hi = draw(st.integers(-1, 3)), draw(st.integers(-1, 3))
        least = max(1, (kernel - 1) * dilation + 1 - lo - hi, 1 - min(lo, 0) - min(hi, 0))
        sizes.append(draw(st.integers(least, least + small)))
        kernels.append(kernel)
        strides.append(draw(st.integers(1, 3)))
        paddings.append((lo, hi))
        dilations.append(dilation)
    return Case(
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        tuple(sizes),
        tuple(kernels),
        tuple(strides),
        tuple(paddings),
        tuple(dilations),
        groups,
    )
