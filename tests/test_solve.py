"""solve(): complete and correct against a search that tries every combination of letters."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_convarith.analysis.solve import Solution, nearest_valid_sizes, solve, valid_sizes
from torch_convarith.geometry import GeometryError


def windows(i, k, s, p, d):
    """Output size by sliding a window over a padded list."""
    starts = range(0, i + 2 * p, s)
    return sum(start + (k - 1) * d <= i + 2 * p - 1 for start in starts)


def stamped(i, k, s, p, d, a):
    """Size of a transposed output: reach of the last stamp, cropped by p on both sides, plus a."""
    return max(x * s + t * d for x in range(i) for t in range(k)) + 1 - 2 * p + a


def by_search(i, o, letters):
    """Every (k, s, p, d) within the documented bounds."""
    found = []
    for k, d in product(range(1, i + 1), range(1, i + 1)):
        reach = (k - 1) * d + 1
        if reach > i or (k == 1 and d > 1):
            continue
        for p in range(reach):
            most = i + 2 * p - reach + 1
            for s in range(1, most + 1):
                # of all strides that leave one window only the smallest is listed
                if windows(i, k, s, p, d) == o and (o > 1 or s == most):
                    found.append((k, s, p, d))
    return sorted(f for f in found if all(v in (None, w) for v, w in zip(letters, f, strict=True)))


@pytest.mark.parametrize(("i", "o"), [(1, 1), (2, 1), (5, 3), (6, 3), (7, 7), (8, 3), (8, 9), (6, 12)])
def test_all_open_is_complete(i, o):
    found = [(x.kernel, x.stride, x.padding, x.dilation) for x in solve(input=i, output=o)]
    assert sorted(found) == by_search(i, o, (None,) * 4)
    assert len(set(found)) == len(found)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_input_open_is_every_input(o, k, s, p, d):
    found = [x.input for x in solve(output=o, kernel=k, stride=s, padding=p, dilation=d)]
    assert found == [i for i in range(60) if windows(i, k, s, p, d) == o]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_transposed_output_open(i, k, s, p, d, a):
    found = solve(input=i, kernel=k, stride=s, padding=p, dilation=d, output_padding=a, transposed=True)
    size = stamped(i, k, s, p, d, a)
    if a < max(s, d) and size >= 1:
        (one,) = found
        assert one.output == size
        assert one.relationship.output(one.axis) == size
        layer = nn.ConvTranspose1d(1, 1, k, s, p, a, dilation=d, device="meta")
        assert layer(torch.empty(1, 1, i, device="meta")).shape[2] == size
    else:
        assert not found


def test_transposed_everything_open_is_right():
    found = solve(input=3, output=6, transposed=True)
    assert found
    assert all(stamped(x.input, x.kernel, x.stride, x.padding, x.dilation, x.output_padding) == 6 for x in found)
    assert any((x.kernel, x.stride, x.padding, x.output_padding) == (3, 2, 1, 1) for x in found)  # figure 4.7


def test_smallest_first_with_relationships():
    found = solve(input=5, output=5, stride=1, dilation=1)
    assert [(x.kernel, x.padding, x.relationship.number) for x in found] == [(1, 0, 1), (3, 1, 3), (5, 2, 3)]


def test_guides_figures():
    assert [x.relationship.number for x in solve(input=5, output=3, kernel=3, stride=2, padding=1, dilation=1)] == [6]
    (up,) = solve(input=3, output=6, kernel=3, stride=2, padding=1, dilation=1, transposed=True)
    assert (up.output_padding, up.relationship.number) == (1, 14)


def test_nearest_when_there_is_none():
    found = solve(input=5, output=10, kernel=3, stride=2, padding=1, dilation=1, output_padding=0, transposed=True)
    assert not found
    assert [(x.input, x.output) for x in found.nearest] == [(5, 9)]
    assert "nearest" in str(found)
    same = solve(input=8, output=8, kernel=4, stride=1, dilation=1)  # an even kernel has no half padding
    assert [(x.input, x.output, x.padding) for x in same.nearest] == [(9, 8, 1), (7, 8, 2), (8, 7, 1), (8, 9, 2)]
    small = solve(input=2, kernel=5, stride=1, padding=0, dilation=1)
    assert [(x.input, x.output) for x in small.nearest] == [(5, 1)]


def test_string():
    assert str(Solution(5, 3, 3, 2, 1, 1)) == "5 -> 3: k=3 s=2 p=1 d=1 (relationship 6)"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "both open"),
        ({"input": 5, "output_padding": 1}, ValueError, "transposed=True"),
        ({"input": 5, "kernel": 0}, GeometryError, "kernel 0"),
        ({"input": 5, "stride": True}, TypeError, "stride"),
        ({"input": 5, "padding": 1.0}, TypeError, "padding"),
        ({"input": 5, "padding": -1, "transposed": True}, GeometryError, "negative padding"),
    ],
)
def test_refuses(options, error, words):
    with pytest.raises(error, match=words):
        solve(**options)


class Skip(nn.Module):
    """Two poolings down, two transposed convolutions up, and skips that must meet."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3, padding=1)
        self.u = nn.ModuleList(nn.ConvTranspose2d(4, 4, 2, stride=2) for _ in range(2))

    def forward(self, x):
        a = self.c(x)
        b = nn.functional.max_pool2d(a, 2)
        c = nn.functional.max_pool2d(b, 2)
        return a + self.u[1](b + self.u[0](c))


def test_encoder_decoder_sizes():
    assert valid_sizes(Skip(), range(1, 21)) == [4, 8, 12, 16, 20]
    assert nearest_valid_sizes(Skip(), 12) == [12]
    assert nearest_valid_sizes(Skip(), 13) == [12]
    assert nearest_valid_sizes(Skip(), 14) == [12, 16]
    assert nearest_valid_sizes(Skip(), 1) == [4]
    assert nearest_valid_sizes(nn.Conv2d(1, 1, 3), 9, within=4) == []
    with pytest.raises(ValueError, match="at least 1"):
        nearest_valid_sizes(Skip(), 0)
