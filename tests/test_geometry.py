"""Sizes: geometry.py, geometry.h, windows counted by hand and torch agree; the 15 relationships; refusals."""

import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_convarith import (
    _C,
    Axis,
    Geometry,
    GeometryError,
    output_size,
    pooling_output_size,
    relationship,
    relationships,
    transposed_output_size,
)
from torch_convarith.geometry import PADDING_MODES, pooling_relationship, same_padding, source_index

GRID = [
    (i, k, s, lo, hi, d)
    for i, k, s, lo, hi, d in itertools.product(
        range(1, 8), range(1, 5), range(1, 4), range(-1, 4), range(-1, 3), (1, 2, 3)
    )
    if i >= max(0, -lo) + max(0, -hi)
]


def test_grid_python_cpp_hand_and_torch_agree():
    fitting = 0
    for i, k, s, lo, hi, d in GRID:
        by_hand = oracle.windows(i, k, s, lo, hi, d)
        cpp = _C.Axis(i, k, s, lo, hi, d)
        assert _C.output_size(cpp) == len(by_hand)
        assert _C.fits(cpp) == bool(by_hand)
        if not by_hand:
            with pytest.raises(GeometryError, match=r"does not fit"):
                Axis(i, k, s, (lo, hi), d)
            continue
        fitting += 1
        axis = Axis(i, k, s, (lo, hi), d)
        assert axis.output == len(by_hand) == output_size((i,), k, s, ((lo, hi),), d)[0]
        assert _C.effective_kernel(cpp) == axis.effective_kernel == (k - 1) * d + 1
        line = oracle.padded(i, lo, hi)
        assert _C.unused(cpp) == axis.unused == len(line) - ((len(by_hand) - 1) * s + (k - 1) * d + 1)
        seen = [[axis.input_index(o, t) for t in range(k)] for o in range(axis.output)]
        assert seen == by_hand
        assert axis.nnz == sum(entry is not None for window in by_hand for entry in window)
        for t in range(k):
            meets = [o for o, window in enumerate(by_hand) if window[t] is not None]
            begin, end = _C.outputs_of_tap(cpp, len(by_hand), t)
            assert list(range(begin, end)) == meets
            for o in range(len(by_hand)):
                index = _C.input_index(cpp, o, t)
                assert (index if 0 <= index < i else None) == by_hand[o][t]
            for j in range(i):
                inverse = [o for o in meets if by_hand[o][t] == j]
                assert [_C.output_index(cpp, len(by_hand), j, t)] == (inverse or [-1])
        entries = {(o, t, j) for o, window in enumerate(by_hand) for t, j in enumerate(window) if j is not None}
        for transposed in (False, True):
            assert gathered(cpp, len(by_hand), transposed) == entries
    assert fitting > 3000  # the grid is not vacuous


def gathered(axis, outputs, transposed):
    """The entries (output, tap, input) of a C++ axis that its gathers have, each one once."""
    found = []
    for grid, stride, source, taps, shift, shift_step, first_tap, tap_step, first, step, pads in _C.gathers(
        axis, outputs, transposed
    ):
        reads = [(o, j, o * stride + shift + j * shift_step) for o in range(grid) for j in range(taps)]
        inside = [(first + o * step, first_tap + j * tap_step, i) for o, j, i in reads if 0 <= i < source]
        assert pads == (len(inside) < len(reads))
        found += [(i, t, place) if transposed else (place, t, i) for place, t, i in inside]
    assert len(found) == len(set(found))
    return set(found)


def test_division_by_multiplication():
    numbers = [0, 1, 2, 3, 6, 7, 100, 12345, 2**30, 2**31 - 2, 2**31 - 1]
    for d in [*range(1, 300), 641, 2**16 - 1, 2**16, 2**16 + 1, 2**30, 2**31 - 1]:
        for n in {*numbers, d - 1, d, 2**31 // d * d - 1}:
            assert _C.quotient(n, d) == n // d


def test_grid_against_torch_meta():
    compared = 0
    for i, k, s, lo, hi, d in GRID:
        if lo != hi or lo < 0 or i + 2 * lo < (k - 1) * d + 1:
            continue
        compared += 1
        x, w = torch.empty(1, 1, i, device="meta"), torch.empty(1, 1, k, device="meta")
        y = torch.nn.functional.conv1d(x, w, stride=s, padding=lo, dilation=d)
        assert output_size(i, k, s, lo, d) == y.shape[2]
        for a in range(max(s, d)):
            try:
                back = torch.nn.functional.conv_transpose1d(
                    y, w, stride=s, padding=lo, dilation=d, output_padding=a
                ).shape[2]
            except RuntimeError:
                with pytest.raises(GeometryError, match="relationship 14"):
                    transposed_output_size(y.shape[2], k, s, lo, d, a)
            else:
                assert transposed_output_size(y.shape[2], k, s, lo, d, a) == back
        axis = Axis(i, k, s, lo, d)
        assert transposed_output_size(axis.output, k, s, lo, d, axis.unused) == i
    assert compared > 400


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_size_is_torchs(ceil_mode):
    compared = refused = 0
    for i, k, s, p, d in itertools.product(range(1, 9), range(1, 5), range(1, 5), range(3), (1, 2)):
        x = torch.empty(1, 1, i, device="meta")
        try:
            expected = torch.nn.functional.max_pool2d(
                x[:, :, None], (1, k), (1, s), (0, p), (1, d), ceil_mode=ceil_mode
            ).shape[3]
        except RuntimeError:
            refused += 1
            with pytest.raises(GeometryError):
                pooling_output_size(i, k, s, p, d, ceil_mode)
        else:
            compared += 1
            assert pooling_output_size(i, k, s, p, d, ceil_mode) == expected
    assert compared > 300
    assert refused > 100


def test_pooling_stride_defaults_to_the_window():
    assert pooling_output_size(28, 2) == 14
    assert pooling_output_size((28, 27), (2, 3), ()) == (14, 9)
    with pytest.raises(GeometryError, match="pad should be at most half of kernel size"):
        pooling_output_size(8, 3, padding=2)
    with pytest.raises(GeometryError, match="negative padding"):
        pooling_output_size(8, 3, padding=-1)


def test_padding_modes_python_cpp_and_hand_agree():
    for size, reach, mode in itertools.product(range(1, 6), range(6), PADDING_MODES):
        line = oracle.padded(size, reach, reach, mode)
        assert [source_index(i, size, mode) for i in range(-reach, size + reach)] == line
        cpp = [_C.source_index(i, size, getattr(_C.PaddingMode, mode)) for i in range(-reach, size + reach)]
        assert [None if i < 0 else i for i in cpp] == line


# The guide's relationships

# number -> (i, k, s, p, d) -> o, as drawn in the guide's figures
FIGURES = {
    1: ((4, 3, 1, 0, 1), 2),
    2: ((5, 4, 1, 2, 1), 6),
    3: ((5, 3, 1, 1, 1), 5),
    4: ((5, 3, 1, 2, 1), 7),
    5: ((5, 3, 2, 0, 1), 2),
    6: ((6, 3, 2, 1, 1), 3),
    15: ((7, 3, 1, 0, 2), 3),
}
# number -> the convolution that is transposed, its output i', the stretched size, p', a
TRANSPOSED_FIGURES = {
    8: ((4, 3, 1, 0), 2, 2, 2, 0),
    9: ((5, 4, 1, 2), 6, 6, 1, 0),
    10: ((5, 3, 1, 1), 5, 5, 1, 0),
    11: ((5, 3, 1, 2), 7, 7, 0, 0),
    12: ((5, 3, 2, 0), 2, 3, 2, 0),
    13: ((5, 3, 2, 1), 3, 5, 1, 0),
    14: ((6, 3, 2, 1), 3, 5, 1, 1),
}


@pytest.mark.parametrize("number", FIGURES)
def test_figure(number):
    (i, k, s, p, d), o = FIGURES[number]
    axis = Axis(i, k, s, p, d)
    assert axis.relationship.number == number
    assert axis.output == axis.relationship.output(axis) == o


@pytest.mark.parametrize("number", TRANSPOSED_FIGURES)
def test_transposed_figure(number):
    convolution, size, stretched, padding, a = TRANSPOSED_FIGURES[number]
    axis = Axis(*convolution)
    up = axis.transposed()
    assert up.relationship.number == number
    assert (up.input, up.stretched, up.padding, up.a, up.stride) == (size, stretched, (padding, padding), a, 1)
    assert up.output == up.relationship.output(up) == up.direct.output == axis.input
    assert up.transposed() is axis


def test_seventh_relationship_speaks_of_pooling():
    assert pooling_relationship(Axis(5, 3)).number == 7
    assert relationship(7).output(Axis(5, 3, 2)) == 2
    assert pooling_relationship(Axis(5, 3, 2, 1)).number == 6


def test_every_relationship_agrees_with_the_general_ones_wherever_it_applies():
    applied = dict.fromkeys(range(1, 16), 0)
    for i, k, s, lo, hi, d in GRID:
        if not oracle.windows(i, k, s, lo, hi, d):
            continue
        axis = Axis(i, k, s, (lo, hi), d)
        for subject in (axis, axis.transposed()):
            for r in relationships():
                if r.applies(subject):
                    applied[r.number] += 1
                    assert r.output(subject) == subject.output
                else:
                    with pytest.raises(GeometryError, match=f"relationship {r.number} needs"):
                        r.output(subject)
        direct = axis.transposed().direct
        assert direct.output == axis.input
        assert direct.stride == 1
    assert min(applied.values()) > 10


def test_relationships_are_numbered_and_say_what_they_say():
    assert [r.number for r in relationships()] == list(range(1, 16))
    assert relationship(2).conditions == "s = 1"  # the guide's text says "and p = 0" there, which is a misprint
    assert all(r.formula.startswith("o' =" if r.transposed else "o =") for r in relationships())
    assert [r.number for r in relationships() if r.transposed] == list(range(8, 15))
    for wrong in (0, 16, -1):
        with pytest.raises(ValueError, match="relationships 1 to 15"):
            relationship(wrong)


# Forms and refusals


def test_geometry_from_every_form():
    assert Geometry.of((5, 6), (3, 2)).output_size == (3, 5)
    assert Geometry.of(5, (3, 2), padding="same").output_size == (5, 5)
    assert Geometry.of((5, 6), 3, padding="valid").output_size == (3, 4)
    assert Geometry.of((5, 6), 4, padding="same").padding == ((1, 2), (1, 2))
    assert Geometry.of((5, 6), 3, padding=((0, 1), (2, 0))).output_size == (4, 6)
    assert Geometry.of([5, 6], [3], stride=[2, 1]).output_size == (2, 4)
    g = Geometry.of((6, 5, 4), 3, (2, 1, 1), 1, (1, 2, 1))
    assert (g.input_size, g.kernel_size, g.stride) == ((6, 5, 4), (3, 3, 3), (2, 1, 1))
    assert (g.padding, g.dilation, len(g)) == (((1, 1),) * 3, (1, 2, 1), 3)
    assert [axis.output for axis in g] == list(g.output_size) == [3, 3, 4]
    assert [up.output for up in g.transposed()] == [6, 5, 4]


def test_axis_is_a_frozen_value():
    axis = Axis(5, 3, padding=1)
    assert axis == Axis(5, 3, 1, (1, 1), 1, name="anything")
    assert hash(axis) == hash(Axis(5, 3, 1, (1, 1), 1))
    with pytest.raises(AttributeError):
        axis.input = 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": 5, "kernel": 7}, r"kernel 7 does not fit input 5 with padding 0: relationship 6 needs i \+ 2p >= k"),
        ({"input": 2, "kernel": 3, "stride": 2}, "3 does not fit input 2"),  # // says 0 here, C++ says 1
        ({"input": 5, "kernel": 3, "dilation": 3}, r"effective kernel 7.*relationship 15 needs.*but 5 < 7"),
        ({"input": 5, "kernel": 3, "stride": 0}, "non-positive stride is not supported"),
        ({"input": 5, "kernel": 0}, "non-positive kernel is not supported"),
        ({"input": 5, "kernel": 3, "dilation": -1}, "non-positive dilation is not supported"),
        ({"input": -1, "kernel": 3, "padding": 5}, "input size -1 is negative"),
        ({"input": 5, "kernel": 3, "padding": (-2, -2)}, r"does not fit input 5 with padding -2"),
    ],
)
def test_axis_refuses(arguments, message):
    with pytest.raises(GeometryError, match=message) as error:
        Axis(**arguments)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, RuntimeError)


@pytest.mark.parametrize("value", [1.5, "3", None, True])
def test_axis_takes_integers_only(value):
    with pytest.raises(TypeError, match="kernel must be an integer"):
        Axis(5, value)


def test_numpy_integers_are_integers():
    import numpy as np

    axis = Axis(np.int64(5), np.int32(3), padding=np.uint8(1))
    assert (axis.output, type(axis.output)) == (5, int)


def test_geometry_names_the_axis():
    with pytest.raises(GeometryError, match=r"along axis 3 \(width\)"):
        Geometry.of((9, 5), 7)
    with pytest.raises(GeometryError, match=r"along axis 2 \(length\)"):
        Geometry.of((5,), (7,))
    with pytest.raises(GeometryError, match=r"along axis 2 \(depth\)"):
        Geometry.of((1, 9, 9), 2)
    with pytest.raises(GeometryError, match="3 entries for 2 axes"):
        Geometry.of((9, 9), 3, stride=(1, 1, 1))
    with pytest.raises(GeometryError, match="strided"):
        Geometry.of((9, 9), 3, stride=2, padding="same")
    with pytest.raises(GeometryError, match="should be one of 'valid', 'same'"):
        Geometry.of((9, 9), 3, padding="full")


def test_transposed_output_size_refuses():
    with pytest.raises(GeometryError, match=r"relationship 14 gives .* = 0, which must be at least 1"):
        transposed_output_size(1, 2, padding=1)
    with pytest.raises(GeometryError, match="negative output_padding"):
        transposed_output_size(4, 3, output_padding=-1)
    with pytest.raises(GeometryError, match="must be at least 1"):
        transposed_output_size(0, 3)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 8), st.integers(1, 4))
def test_transposing_twice_gives_the_same_sizes(i, k, s, p, d):
    if i + 2 * p < (k - 1) * d + 1:
        return
    axis = Axis(i, k, s, p, d)
    up = axis.transposed()
    assert transposed_output_size(up.input, k, s, p, d, up.a) == up.output == i
    assert output_size(up.output, k, s, p, d) == axis.output
    assert up.direct.output == i


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 40))
def test_same_padding_keeps_the_size(kernel, dilation, size):
    lo, hi = same_padding(kernel, dilation)
    assert output_size((size,), kernel, padding=((lo, hi),), dilation=dilation) == (size,)
    assert hi - lo in (0, 1)


def test_geometry_imports_no_torch():
    import subprocess
    import sys

    source = Geometry.__module__
    path = sys.modules[source].__file__
    code = f"import runpy, sys; runpy.run_path({path!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
