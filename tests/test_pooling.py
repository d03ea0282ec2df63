import itertools
import math
import statistics
from functools import partial

import numpy as np
import oracle_windows
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db
from windows_testing import distinct, flat, geometries, prove_compilable, prove_differentiable, same, small_integers

import torch_convarith as tc
from torch_convarith import _ops
from torch_convarith import functional as C
from torch_convarith import geometry as sizes

ops = torch.ops.torch_convarith
# torch.func.jvp scripts its decompositions on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
few = settings(max_examples=50, deadline=None, derandomize=True)
GUIDE = torch.tensor([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]]).double()
AXES = (1, 2, 3)
POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg") for n in AXES]


def of(kind, axes):
    return getattr(C, f"{kind}_pool{axes}d")


def info(name):
    return next(op for op in op_db if op.name == f"nn.functional.{name}")


# torch's values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLS)
def test_torch_samples(name):
    for sample in itertools.islice(info(name).sample_inputs("cpu", torch.float64, requires_grad=False), 0, None, 9):
        x, args, kwargs = sample.input, sample.args, sample.kwargs
        if kwargs.get("return_indices"):
            ours, theirs = getattr(C, name)(x, *args, **kwargs), getattr(F, name)(x, *args, **kwargs)
            assert torch.equal(ours[1], theirs[1])
        kwargs = {key: value for key, value in kwargs.items() if key != "return_indices"}
        same(lambda v: getattr(C, name)(v, *args, **kwargs), lambda v: getattr(F, name)(v, *args, **kwargs), x)  # noqa: B023


@pytest.mark.parametrize("name", POOLS)
def test_torch_errors(name):
    for error in info(name).error_inputs("cpu"):
        sample = error.sample_input
        if 0 in sample.input.shape and sample.input.numel() == 0 and 0 not in sample.input.shape[-int(name[-2]) :]:
            continue  # torch refuses a batch without channels
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            getattr(C, name)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_max_of_integers(dtype):
    x = small_integers(2, 3, 7, 8, dtype=torch.int64).to(dtype)
    ours, theirs = (f(x, 3, 2, 1, return_indices=True) for f in (C.max_pool2d, F.max_pool2d))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(
        C.min_pool2d(x.clamp(min=0), 2), F.max_pool2d(255 - x.clamp(min=0).long(), 2).sub(255).neg().to(dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_half_precision(kind, dtype):
    x = torch.randn(2, 3, 9, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    pool, torch_pool = of(kind, 2), getattr(F, f"{kind}_pool2d")
    # torch sums gradients of overlapping windows in half precision, we in float32
    same(lambda v: pool(v, 2), lambda v: torch_pool(v, 2), x)
    assert torch.equal(pool(x, 3, 2, 1), torch_pool(x, 3, 2, 1))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_is_torchs(axes, dtype):
    """Of half precision, torch pools in 3 dimensions to float32, but for maxima with indices."""
    x = torch.randn(1, 2, *(6,) * axes, generator=torch.Generator().manual_seed(axes)).to(dtype)
    for kind, args in (("max", (2,)), ("avg", (2,)), ("lp", (2, 2))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, theirs = of(kind, axes)(x, *args), getattr(F, f"{kind}_pool{axes}d")(x, *args)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)  # bfloat16 keeps 8 bits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(x, 2, return_indices=True) for f in (of("max", axes), getattr(F, f"max_pool{axes}d")))
    assert ours[0].dtype == theirs[0].dtype
    assert torch.equal(ours[1], theirs[1])


def test_average_of_integers_truncates():
    x = small_integers(1, 2, 6, 6, dtype=torch.int64, seed=3)
    assert torch.equal(C.avg_pool2d(x, 2), F.avg_pool2d(x, 2))


@given(geometries(), st.integers(0, 99))
@few
def test_max_against_loops_and_torch(geometry, seed):
    size, kernel, stride, padding, dilation, ceil_mode = geometry
    x = small_integers(2, 3, *size, seed=seed)
    table, out = oracle_windows.windows(size, kernel, stride, padding, dilation, ceil_mode)
    rest = (kernel, stride, padding, dilation, ceil_mode)
    if any(all(p is None for p in places) for places in table.values()):
        for kind in ("max", "min"):
            with pytest.raises(RuntimeError, match="lies wholly in the padding"):
                of(kind, len(size))(x, *rest)
        return
    for kind, reduce in (("max", max), ("min", min), ("median", statistics.median_low)):
        got = of(kind, len(size))(x, *rest)
        assert got.shape[2:] == out == sizes.pooling_output_size(size, kernel, stride, padding, dilation, ceil_mode)
        for plane, y in zip(x.flatten(0, 1), got.flatten(0, 1), strict=True):
            expected = oracle_windows.pool(plane.numpy(), reduce, kernel, stride, padding, dilation, ceil_mode)
            assert np.array_equal(y.numpy(), expected)
    y, indices = of("max", len(size))(x, *rest, return_indices=True)
    for n, c in itertools.product(range(2), range(3)):
        for output, places in table.items():
            seen = [np.ravel_multi_index(p, size) for p in places if p is not None]
            values = [x[n, c].flatten()[i].item() for i in seen]
            assert indices[(n, c, *output)] == seen[values.index(max(values))]
    assert torch.equal(x.flatten(2).gather(2, indices.flatten(2)).reshape(y.shape), y)
    if all(lo == hi for lo, hi in padding):
        lows = [lo for lo, _ in padding]
        theirs = getattr(F, f"max_pool{len(size)}d")(x, kernel, stride, lows, dilation, ceil_mode, return_indices=True)
        assert torch.equal(y, theirs[0])
        assert torch.equal(indices, theirs[1])


@given(geometries(), st.booleans(), st.integers(0, 99))
@few
def test_gradient_of_max_against_loops(geometry, minimum, seed):
    size, kernel, stride, padding, dilation, ceil_mode = geometry
    table, out = oracle_windows.windows(size, kernel, stride, padding, dilation, ceil_mode)
    assume(all(any(p is not None for p in places) for places in table.values()))
    best = min if minimum else max
    for dtype, layout in itertools.product((torch.float32, torch.float64, torch.bfloat16), ("contiguous", "last")):
        x = small_integers(2, 3, *size, dtype=dtype, seed=seed)
        if layout == "last" and len(size) > 1:
            x = x.to(memory_format=torch.channels_last if len(size) == 2 else torch.channels_last_3d)
        expected = torch.zeros(x.shape)
        g = small_integers(2, 3, *out, dtype=dtype, seed=seed + 1)
        for (output, places), n, c in itertools.product(table.items(), range(2), range(3)):
            seen = [p for p in places if p is not None]
            values = [x[(n, c, *p)].item() for p in seen]
            expected[(n, c, *seen[values.index(best(values))])] += g[(n, c, *output)].item()
        for max_pool in (_ops.max_pool, _ops.max_pool_with_indices, _ops.max_pool_with_taps):
            y = max_pool(x.requires_grad_(), kernel, stride, flat(padding), dilation, ceil_mode, minimum)
            (grad,) = torch.autograd.grad(y if max_pool is _ops.max_pool else y[0], x, g)
            assert torch.equal(grad.float(), expected)


@pytest.mark.parametrize("shape", [(1, 2, 3, 20), (2, 3, 40, 37), (1, 20, 5, 6), (1, 2, 7, 333)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "window",
    [
        (3, 1, 1, 1), (3, 2, 1, 1), (2, 3, 0, 1), (3, 1, 1, 2), (3, 2, 1, 2),
        (1, 2, 0, 1), (2, 2, 0, 1), (2, 2, 1, 1), (3, 2, 0, 1), (2, 2, 0, 3), (5, 2, 2, 1),
    ],
    ids=str,
)  # fmt: skip
def test_any_taps(window, dtype, shape):
    """Taps that no maximum has, on padding too, where there is nothing to pick; rows short and long."""
    kernel, stride, padding, dilation = window
    geometry = ((kernel,) * 2, (stride,) * 2, (padding,) * 4, (dilation,) * 2, True)
    table, out = oracle_windows.windows(
        shape[2:], geometry[0], geometry[1], ((padding,) * 2,) * 2, geometry[3], geometry[4]
    )
    x = small_integers(*shape, dtype=dtype)
    taps = torch.randint(kernel**2, (*shape[:2], *out), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    v = small_integers(*taps.shape, dtype=dtype, seed=1)
    selected, scattered = torch.zeros_like(v), torch.zeros_like(x)
    for output, places in table.items():
        for n, c in itertools.product(range(shape[0]), range(shape[1])):
            place = places[taps[(n, c, *output)]]
            if place is not None:
                selected[(n, c, *output)] = x[(n, c, *place)]
                scattered[(n, c, *place)] += v[(n, c, *output)]
    for memory in (torch.contiguous_format, torch.channels_last):
        x, v, taps = (t.to(memory_format=memory) for t in (x, v, taps))
        assert torch.equal(ops.tap_select(x, taps, *geometry), selected)
        assert torch.equal(ops.tap_scatter(v, shape[2:], taps, *geometry), scattered)


def test_where_the_backward_pass_goes_by_taps():
    """Where windows are small, or rows of outputs are long and a byte counts the window's elements; gradients are
    torch's either way."""
    for dtype, width in ((torch.float32, 96), (torch.float64, 192)):
        for shorter in (0, 2):
            x = distinct(1, 2, 8, width - shorter).to(dtype)
            assert _ops.taps_pay(x, (6, 6), (1, 1)) == (shorter == 0)
            same(lambda v: C.max_pool2d(v, 6, 1), lambda v: F.max_pool2d(v, 6, 1), x)
    for kernel in (2, 3, 5):
        for stride in (1, 2):
            x = distinct(3, 2, 14, 14).float()
            assert _ops.taps_pay(x, (kernel, kernel), (stride, stride))
            ours, theirs = (partial(m.max_pool2d, kernel_size=kernel, stride=stride) for m in (C, F))
            same(ours, theirs, x)
    for channels in (2, 20):
        x = distinct(1, channels, 8, 9).to(memory_format=torch.channels_last).float()
        assert _ops.taps_pay(x, (2, 2), (2, 2)) == (channels == 20)
    x = distinct(1, 1, 17, 600).float()
    assert _ops.taps_pay(x, (16, 16), (1, 1))
    assert not _ops.taps_pay(x, (16, 17), (1, 1))
    for kernel in ((16, 16), (16, 17)):
        same(lambda v: C.max_pool2d(v, kernel, 1), lambda v: F.max_pool2d(v, kernel, 1), x)  # noqa: B023


def test_last_tap_of_a_byte():
    corner = torch.zeros(1, 1, 16, 16)
    corner[..., -1, -1] = 1
    geometry = ((16, 16), (1, 1), (0, 0, 0, 0), (1, 1), False)
    taps = ops.max_pool_with_taps(corner, *geometry, False)[1]
    assert taps.item() == 255
    assert torch.equal(ops.tap_scatter(torch.ones(1, 1, 1, 1), [16, 16], taps, *geometry), corner)


def test_taps_are_checked():
    for size in (4, 64):
        window, x = ((2,), (1,), (0, 0), (1,), False), torch.zeros(1, size)
        taps = torch.zeros(1, size - 1, dtype=torch.uint8)
        for bad, message in (
            (lambda: ops.tap_select(x, taps.long(), *window), "uint8"),  # noqa: B023
            (lambda: ops.tap_scatter(taps.float(), [size + 1], taps, *window), "expected y of shape"),  # noqa: B023
            (lambda: ops.tap_select(x, taps[:, 1:], *window), "expected taps of shape"),  # noqa: B023
            (lambda: ops.max_pool_with_taps(torch.zeros(1, 300), (257,), *window[1:], False), "at most 256"),  # noqa: B023
        ):
            with pytest.raises(RuntimeError, match=message):
                bad()
        for place in (0, size - 2):
            wrong = taps.clone()
            wrong[0, place] = 2
            with pytest.raises(IndexError, match="taps must count"):
                ops.tap_select(x, wrong, *window)
            with pytest.raises(IndexError, match="taps must count"):
                ops.tap_scatter(taps.float(), [size], wrong, *window)


@given(geometries(), st.booleans(), st.sampled_from([None, 1, 3, -2]))
@few
def test_average_against_loops_and_torch(geometry, count_include_pad, divisor):
    size, kernel, stride, padding, dilation, ceil_mode = geometry
    axes = len(size)
    x = small_integers(2, 2, *size)
    counts = oracle_windows.average_divisors(size, kernel, stride, padding, dilation, ceil_mode, count_include_pad)
    assume(divisor is not None or counts.min() > 0)
    override = {} if axes == 1 else {"divisor_override": divisor}
    if axes > 1 and divisor is not None:
        counts = np.full_like(counts, divisor)
    got = of("avg", axes)(x, kernel, stride, padding, ceil_mode, count_include_pad, dilation=dilation, **override)
    for plane, y in zip(x.flatten(0, 1), got.flatten(0, 1), strict=True):
        total = oracle_windows.pool(plane.numpy(), sum, kernel, stride, padding, dilation, ceil_mode)
        np.testing.assert_allclose(y.numpy(), total / counts, rtol=1e-14)
    if all(lo == hi for lo, hi in padding) and set(dilation) == {1}:
        rest = (kernel, stride, [lo for lo, _ in padding], ceil_mode, count_include_pad)
        same(
            lambda v: of("avg", axes)(v, *rest, **override),
            lambda v: getattr(F, f"avg_pool{axes}d")(v, *rest, **override),
            x,
        )


WIDTHS = [5, 9, 14, 15, 29, 40]
"""Of rows that are taken two at a time, one by one, and as lines."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_means_are_quotients(width, scale):
    """Rounded once, of any magnitude, for divisors of each window or one for all; what is not finite stays so."""
    x = torch.randint(-(2**18), 2**18, (2, 3, 7, width), generator=torch.Generator().manual_seed(0)).float() * scale
    special = x.clone()
    special[0, 0, 0, 0], special[0, 1, 3, 2], special[1, 2, 6, -1] = math.inf, math.nan, -math.inf
    for kernel, stride, padding in ((3, 1, 1), (3, 2, 1), ((2, 3), (1, 2), 0), (5, 2, 2)):
        for v in (x, special):
            window = (kernel, stride, padding, True)
            total, count = (F.avg_pool2d(t, *window, divisor_override=1) for t in (v, torch.ones_like(v)))
            same_to_the_bit = {"rtol": 0, "atol": 0, "equal_nan": True}
            torch.testing.assert_close(C.avg_pool2d(v, *window, False), total / count, **same_to_the_bit)
            nines = C.avg_pool2d(v, *window, divisor_override=9)
            torch.testing.assert_close(nines, total / torch.full_like(total, 9), **same_to_the_bit)


def test_average_goes_straight_to_the_operator():
    """Python stands between where something has to be seen to, and gives the same."""
    x = small_integers(2, 3, 9, 8).requires_grad_()
    window = [(3, 2), None, 1, 1, True, False, 5]  # as torch.nn.functional has them, and as the operator
    ys = [_ops.direct_avg_pool(2, x, *window), _ops.avg_pool(x, (3, 2), (3, 2), (1,) * 4, (1, 1), True, False, 5)]
    g = small_integers(*ys[0].shape, seed=1)
    grads = [torch.autograd.grad(y, x, g)[0] for y in ys]
    assert torch.equal(*ys)
    assert torch.equal(*grads)
    for place, other in (
        (0, 0), (0, (3, 2, 1)), (0, "3"), (0, True), (1, 0), (1, ()), (2, -1), (2, 2), (2, ((1, 0), (1, 0))),
        (3, 0), (3, 9), (4, 1), (5, None), (6, 0), (6, 2.0),
    ):  # fmt: skip
        assert _ops.direct_avg_pool(2, x, *window[:place], other, *window[place + 1 :]) is None
    for axes, v in ((1, x), (2, x[0, 0]), (4, x), (2, x[..., :0]), (2, nn.Parameter(x.detach()).to("meta")), (2, 3.0)):
        assert _ops.direct_avg_pool(axes, v, 2, None, 0, 1, False, True, None) is None
    with torch.autocast("cpu"):
        assert _ops.direct_avg_pool(2, x, *window) is None


@given(geometries(), st.sampled_from([1, 1.5, 2, 2.5, 3, 4, 30]))
@few
def test_norm_against_loops(geometry, p):
    size, kernel, stride, _, _, ceil_mode = geometry
    axes, x = len(size), small_integers(1, 2, *size)
    got = of("lp", axes)(x, p, kernel, stride, ceil_mode, signed=False)
    ones = (1,) * axes
    for plane, y in zip(x.flatten(0, 1), got.flatten(0, 1), strict=True):
        expected = oracle_windows.pool(
            plane.numpy(),
            lambda v: sum(abs(e) ** p for e in v) ** (1 / p),
            kernel,
            stride,
            [(0, 0)] * axes,
            ones,
            ceil_mode,
        )
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-13)
    largest = of("lp", axes)(x, math.inf, kernel, stride, ceil_mode, signed=False)
    assert torch.equal(largest, of("max", axes)(x.abs(), kernel, stride, ceil_mode=ceil_mode))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("p", [1, 2, 3, 2.5, 4, 0.5, -2, math.inf, -math.inf])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_signed_norm_is_torchs(axes, p, ceil_mode):
    if math.isinf(p) and torch.__version__ < "2.13":
        pytest.skip("torch 2.11's own lp_pool has no infinite p: it gives 1")
    x = torch.randn(2, 2, *(7,) * axes, generator=torch.Generator().manual_seed(axes), dtype=torch.float64)
    x[0, 0] = x[0, 0].relu()  # windows of zeros, too
    if p < 0 or p == 0.5:
        x = x.abs() + 0.1
    theirs = getattr(F, f"lp_pool{axes}d")
    same(lambda v: of("lp", axes)(v, p, 3, 2, ceil_mode), lambda v: theirs(v, p, 3, 2, ceil_mode), x)
    same(lambda v: of("lp", axes)(v[0], p, 2), lambda v: theirs(v[0], p, 2), x)


# Edges ---------------------------------------------------------------------------------------------------------------


def test_guide():
    x = GUIDE[None, None]
    assert C.max_pool2d(x, 3, 1)[0, 0].tolist() == [[3, 3, 3], [3, 3, 3], [3, 2, 3]]
    assert torch.equal(
        C.avg_pool2d(x, 3, 1)[0, 0] * 9, torch.tensor([[15.0, 15, 15], [9, 11, 16], [10, 7, 12]]).double()
    )
    first = C.lp_pool2d(x, 2, 3, 1)[0, 0, 0]
    torch.testing.assert_close(first, torch.tensor([6.0828, 5.7446, 5.7446]).double(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maximum_of_nan_and_infinity(layout):
    g = torch.Generator().manual_seed(0)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])
    x = special[torch.randint(6, (2, 5, 9, 11), generator=g)]
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = x.to(memory_format=memory)
    for kernel, stride in ((2, 2), (3, 2), (3, 1), (4, 3)):
        ours, theirs = (f(x, kernel, stride, 1, return_indices=True) for f in (C.max_pool2d, F.max_pool2d))
        torch.testing.assert_close(ours[0], theirs[0], equal_nan=True, rtol=0, atol=0)
        finite = ~theirs[0].isnan()
        assert torch.equal(ours[1][finite], theirs[1][finite])
        if layout == "contiguous":
            assert torch.equal(ours[1], theirs[1])  # of several NaNs the last
        window = ((kernel,) * 2, (stride,) * 2, (1,) * 4, (1, 1), False)
        taps = ops.max_pool_with_taps(x, *window, False)[1]
        places = torch.arange(99.0).reshape(9, 11).expand(x.shape)
        picked = ops.tap_select(places.to(memory_format=memory), taps, *window)
        assert torch.equal(picked, ours[1].float())
        torch.testing.assert_close(C.max_pool2d(x, kernel, stride, 1), theirs[0], equal_nan=True, rtol=0, atol=0)
        least = C.min_pool2d(x, kernel, stride, 1)
        torch.testing.assert_close(least, -F.max_pool2d(-x, kernel, stride, 1), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("axes", [2, 3])
def test_channels_last(axes):
    size = (9, 8, 7)[:axes]
    memory = torch.channels_last if axes == 2 else torch.channels_last_3d
    x = distinct(2, 5, *size).requires_grad_()
    last = x.detach().to(memory_format=memory).requires_grad_()
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)):
        for fn in (
            lambda v: of("max", axes)(v, kernel, stride, padding),  # noqa: B023
            lambda v: of("avg", axes)(v, kernel, stride, padding),  # noqa: B023
            lambda v: of("lp", axes)(v, 2, kernel, stride),  # noqa: B023
            lambda v: of("lp", axes)(v, 2, kernel, stride, ceil_mode=True),  # noqa: B023
            lambda v: of("max", axes)(v, kernel, stride, padding, ties="split"),  # noqa: B023
        ):
            y, y_last = fn(x), fn(last)
            assert y_last.is_contiguous(memory_format=memory)
            torch.testing.assert_close(y_last, y)
            grads = [torch.autograd.grad(out.square().sum(), t)[0] for out, t in ((y, x), (y_last, last))]
            torch.testing.assert_close(grads[1], grads[0])
        assert torch.equal(
            of("max", axes)(last.detach(), kernel, stride, padding), of("max", axes)(x, kernel, stride, padding)
        )


def equal(name, x, *args, **options):
    """Values of small integers, and gradients, which are torch's to the last bit."""
    ys = [getattr(m, name)(x, *args, **options) for m in (C, F)]
    g = small_integers(*ys[1].shape, seed=1).to(x.dtype)
    grads = [torch.autograd.grad(y, x, g)[0] for y in ys]
    assert all(torch.equal(ours, theirs) for ours, theirs in (ys, grads))


@pytest.mark.parametrize("shape", [(2, 60, 131, 133), (2, 80, 131, 128), (700, 8, 22, 21), (2800, 8, 11, 11)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_caches_hold(dtype, layout, shape):
    """Results that are asked for ahead, wherever they begin; planes of all sizes."""
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        x = (
            small_integers(*shape)
            .to(dtype, memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
            .requires_grad_()
        )
        equal("avg_pool2d", x, kernel, stride, padding, divisor_override=1)
        equal("max_pool2d", x, kernel, stride, padding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_small_planes(dtype):
    """Planes that are gathered whole, by every step that a window and its stride may have."""
    for size, kernel, stride, padding in (
        ((14, 14), 2, 2, 0), ((13, 9), 3, 2, 1), ((7, 7), 3, 1, 1), ((4, 11), 3, 3, 0), ((6, 6), 2, 3, 1),
        ((1, 5), 1, 2, 0), ((28, 27), 3, 2, 0), ((3, 4, 5), 2, 2, 1),
    ):  # fmt: skip
        axes = len(size)
        if axes == 3 and dtype == torch.bfloat16:  # which torch has not
            continue
        x = small_integers(5, 13, *size).to(dtype).requires_grad_()
        for kind in ("avg", "max"):
            options = {"divisor_override": 1} if kind == "avg" and axes > 1 else {}
            equal(f"{kind}_pool{axes}d", x, kernel, stride, padding, **options)
            if kind == "avg" and dtype != torch.bfloat16:  # whose sums torch rounds
                ours, theirs = (
                    getattr(m, f"avg_pool{axes}d")(x, kernel, stride, padding, count_include_pad=False) for m in (C, F)
                )
                g = small_integers(*theirs.shape, seed=1).to(dtype)
                grads = [torch.autograd.grad(y, x, g)[0] for y in (ours, theirs)]
                torch.testing.assert_close(*grads)
        p = 2.5 if dtype == torch.float32 else 2
        if axes == 2 and dtype != torch.bfloat16:
            positive = (x.detach().abs() + 1).requires_grad_()
            grads = [torch.autograd.grad(m.lp_pool2d(positive, p, kernel, stride).sum(), positive)[0] for m in (C, F)]
            torch.testing.assert_close(*grads)


def test_planes_that_no_window_sees():
    """All taps beside the only input: zeros, forward and backward, of few planes and of many."""
    for planes in (2, 40):
        x = torch.ones(planes, 1, requires_grad=True)
        y = C.avg_pool1d(x, 2, stride=4, padding=1, dilation=2)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, torch.zeros(planes, 1))
        assert torch.equal(gradient, torch.zeros(planes, 1))


def test_window_wholly_in_the_padding_is_refused():
    with pytest.raises(RuntimeError, match="lies wholly in the padding"):
        C.max_pool1d(torch.zeros(1, 1, 1), 2, 1, 1, dilation=2)
    with pytest.raises(RuntimeError, match="lies wholly in the padding"):
        C.avg_pool1d(torch.zeros(1, 1, 1), 2, 1, 1, count_include_pad=False, dilation=2)
    with pytest.raises(RuntimeError, match="no median"):
        C.median_pool1d(torch.zeros(1, 1, 1), 2, 1, 1, dilation=2)


def test_arguments_are_checked():
    x = torch.zeros(1, 1, 6, 6)
    for bad, message in (
        (lambda: C.max_pool2d(x, 3, padding=2), "at most half"),
        (lambda: C.max_pool2d(x, 7), "does not fit input 6"),
        (lambda: C.max_pool2d(x, 2, stride=0), "non-positive stride"),
        (lambda: C.avg_pool2d(x, 2, padding=-1), "negative padding"),
        (lambda: C.avg_pool2d(x, 2, divisor_override=0), "not zero"),
        (lambda: C.max_pool2d(x[0, 0], 2), "Expected 3D"),
        (lambda: C.avg_pool2d(torch.zeros(1, 1, 0, 4), 2, padding=1), "needs inputs"),
        (lambda: C.max_pool2d(x, 2, ties="last"), "ties must be one of first, all, split"),
        (lambda: C.lp_pool2d(x, 0.5, 2, signed=False), "p >= 1"),
        (lambda: C.pattern_pool(x, lambda w: w, 2), "to a scalar"),
        (lambda: tc.MaxPool2dExplicit(2, ties="none"), "ties must be"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            bad()
    with pytest.raises(IndexError, match="indices must count"):
        ops.pool_scatter(torch.zeros(1, 1), [4], torch.full((1, 1), 4), 1)
    with pytest.raises(IndexError, match="indices must count"):
        ops.pool_select(torch.zeros(1, 4), torch.full((1, 1), -1), 1)


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 0, 6, 6)])
def test_empty_batches(shape):
    x = torch.zeros(shape, requires_grad=True)
    for y in (C.max_pool2d(x, 2), C.avg_pool2d(x, 2), C.lp_pool2d(x, 2, 2)):
        assert y.shape == (*shape[:2], 3, 3)
        y.sum().backward()
        assert x.grad.shape == shape


# Gradients -----------------------------------------------------------------------------------------------------------

DIFFERENTIABLE = {
    "max1d": lambda x: C.max_pool1d(x.flatten(1, 2), 3, 2, 1),
    "max2d": lambda x: C.max_pool2d(x, 3, 2, 1, 2, True),
    "max2d_indices": lambda x: C.max_pool2d(x, (2, 3), 1, return_indices=True)[0],
    "max2d_taps": lambda x: _ops.max_pool_with_taps(x, (3, 3), (2, 2), (1, 0, 1, 1), (1, 1), True, False)[0],
    "max2d_all": lambda x: C.max_pool2d(x, 3, 2, 1, ties="all"),
    "max2d_split": lambda x: C.max_pool2d(x, 3, 2, 1, ties="split"),
    "max3d": lambda x: C.max_pool3d(x[:, None], 2, 1),
    "min2d": lambda x: C.min_pool2d(x, 2),
    "avg1d": lambda x: C.avg_pool1d(x.flatten(1, 2), 3, 2, 1, dilation=2),
    "avg2d": lambda x: C.avg_pool2d(x, 3, 2, 1, True, False),
    "avg3d": lambda x: C.avg_pool3d(x[:, None], (1, 2, 3), 1, divisor_override=3),
    "lp2d_signed": lambda x: C.lp_pool2d(x, 2, 3, 2, True),
    "lp2d_1": lambda x: C.lp_pool2d(x, 1, 3, 1, signed=False),
    "lp2d_2": lambda x: C.lp_pool2d(x, 2, 3, 2, signed=False),
    "lp2d_2.5": lambda x: C.lp_pool2d(x, 2.5, 3, 1, signed=False),
    "lp2d_3": lambda x: C.lp_pool2d(x, 3, 2, 2, signed=False),
    "lp3d_inf": lambda x: C.lp_pool3d(x[:, None], math.inf, 2, signed=False),
    "median2d": lambda x: C.median_pool2d(x, 3, 2, 1),
    "pattern_pool": lambda x: C.pattern_pool(x, lambda w: w.logsumexp(0), 3, 2, 1, ceil_mode=True),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name):
    prove_differentiable(DIFFERENTIABLE[name], distinct(1, 2, 5, 4))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["max2d", "max2d_indices", "max2d_taps", "max2d_split", "avg2d", "lp2d_2", "median2d"])
def test_compile(name, dynamic):
    if name == "median2d" and dynamic:
        pytest.skip("its windows are looked up in a table of the input's size")
    prove_compilable(DIFFERENTIABLE[name], distinct(2, 2, 7, 9), dynamic)


def test_inductor():
    """The operators between generated kernels, which read and write their tensors by stride."""

    def network(x):
        x = C.max_pool2d(C.local_response_norm(x.sin(), 3, 0.9), 3, 1, 1).cos()
        x = C.lp_pool2d(C.avg_pool2d(x, 3, 2, 1).exp(), 2, 2, 1, signed=False) + 1
        return C.fold(C.unfold(x, 2).tanh(), x.shape[-2:], 2) * 2

    torch._dynamo.reset()
    x = distinct(2, 4, 9, 8)
    same(torch.compile(network, fullgraph=True), network, x)
    same(torch.compile(network, fullgraph=True), network, x.to(memory_format=torch.channels_last))


def raw_calls():
    x = distinct(2, 3, 6, 7)
    geometry = ((3, 2), (2, 2), (1, 1, 0, 1), (1, 1), True)
    y, indices = ops.max_pool_with_indices(x, *geometry, False)
    taps = ops.max_pool_with_taps(x, *geometry, False)[1]
    norm = ops.lp_pool(x, 2.0, False, *geometry)
    return {
        "max_pool": (x, *geometry, True),
        "max_pool_with_indices": (x, *geometry, False),
        "pool_select": (x, indices, 2),
        "pool_scatter": (y, [6, 7], indices, 2),
        "max_pool_with_taps": (x, *geometry, False),
        "tap_select": (x, taps, *geometry),
        "tap_scatter": (y, [6, 7], taps, *geometry),
        "pool_ties": (x, x.round(), ops.max_pool(x.round(), *geometry, False), *geometry, True),
        "pool_ties_transpose": (y, [6, 7], x.round(), ops.max_pool(x.round(), *geometry, False), *geometry, False),
        "avg_pool": (x, *geometry, True, None),
        "avg_pool_transpose": (y, [6, 7], *geometry, False, None),
        "lp_pool": (x, 2.5, False, *geometry),
        "lp_pool_backward": (y, x, norm, 2.0, False, *geometry),
    }


@pytest.mark.parametrize("name", raw_calls())
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(name, layout):
    def arrange(arg):
        if not isinstance(arg, torch.Tensor):
            return arg
        arg = arg.to(memory_format=torch.channels_last) if layout == "channels_last" else arg
        return arg.detach().clone().requires_grad_(arg.is_floating_point() and arg.shape == first.shape)

    args = raw_calls()[name]
    first = args[0]
    torch.library.opcheck(getattr(ops, name).default, tuple(arrange(a) for a in args))


def test_adjoints():
    x, geometry = distinct(2, 3, 6, 7), ((3, 2), (2, 2), (1, 1, 0, 1), (1, 2), True)
    y = ops.avg_pool(x, *geometry, True, None)
    u = distinct(*y.shape, seed=1)
    back = ops.avg_pool_transpose(u, [6, 7], *geometry, True, None)
    torch.testing.assert_close((y * u).sum(), (x * back).sum())
    ties = x.mul(2).round()
    best = ops.max_pool(ties, *geometry, False)
    taps = ops.max_pool_with_taps(x, *geometry, False)[1]
    back = ops.tap_scatter(u, [6, 7], taps, *geometry)
    torch.testing.assert_close((ops.tap_select(x, taps, *geometry) * u).sum(), (x * back).sum())
    forward = ops.pool_ties(x, ties, best, *geometry, True)
    back = ops.pool_ties_transpose(u, [6, 7], ties, best, *geometry, True)
    torch.testing.assert_close((forward * u).sum(), (x * back).sum())


def test_tie_policies():
    gradients = {}
    for ties in ("first", "all", "split"):
        x = torch.tensor([[[2.0, 2.0, 1.0, 2.0]]], requires_grad=True)
        y = C.max_pool1d(x, 4, ties=ties)
        assert y.item() == 2
        y.sum().backward()
        gradients[ties] = x.grad.flatten().tolist()
    assert gradients["first"] == [1, 0, 0, 0]
    assert gradients["all"] == [1, 1, 0, 1]
    torch.testing.assert_close(torch.tensor(gradients["split"]), torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))


@given(geometries(axes=2), st.booleans())
@few
def test_ties_against_loops(geometry, split):
    size, kernel, stride, padding, dilation, ceil_mode = geometry
    table, _ = oracle_windows.windows(size, kernel, stride, padding, dilation, ceil_mode)
    assume(all(any(p is not None for p in places) for places in table.values()))
    x = small_integers(1, 1, *size).clamp(-1, 1).requires_grad_()
    C.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, ties="split" if split else "all").sum().backward()
    expected = np.zeros(size)
    for places in table.values():
        seen = [p for p in places if p is not None]
        largest = max(x[0, 0][p].item() for p in seen)
        winners = [p for p in seen if x[0, 0][p] == largest]
        for p in winners:
            expected[p] += 1 / len(winners) if split else 1
    np.testing.assert_allclose(x.grad[0, 0].numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 7.5, math.inf])
def test_norm_of_negative_and_zero(p):
    x = torch.tensor([[[-1.0, -2.0, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    y = C.lp_pool1d(x, p, 2, signed=False)
    y.sum().backward()
    norm = 2.0 if p == math.inf else (1 + 2**p) ** (1 / p)
    torch.testing.assert_close(y, torch.tensor([[[norm, 0.0]]], dtype=torch.float64))
    slopes = [0.0, -1.0] if p == math.inf else [-(norm ** (1 - p)), -(norm ** (1 - p)) * 2 ** (p - 1)]
    torch.testing.assert_close(x.grad, torch.tensor([[[*slopes, 0.0, 0.0]]], dtype=torch.float64))


@pytest.mark.parametrize("p", [2, 2.5, 3, 40, 500])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norm_of_any_magnitude(p, scale):
    x = torch.tensor([[[-1.0, -1.0, 3.0, 0.5]]]) * scale
    y = C.lp_pool1d(x, p, 2, signed=False)
    expected = [2 ** (1 / p), (3.0**p + 0.5**p) ** (1 / p) if p < 500 else 3.0]
    torch.testing.assert_close(y / scale, torch.tensor([[expected]]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("p", [2, 2.5])
def test_norm_of_rows_of_any_magnitude(p, width):
    x = distinct(1, 2, 5, width).float() * torch.tensor([1, 1e-30, 1e30, 1e-30, 1])[:, None]
    for stride in (1, 2):
        y, expected = (C.lp_pool2d(v, p, (1, 2), (1, stride), signed=False) for v in (x, x.double()))
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)


def test_pattern_pool_is_any_pooling():
    x = distinct(2, 3, 7, 6)
    rest = (3, 2, 1, 1, True)
    assert torch.equal(C.pattern_pool(x, lambda w: w.amax(), *rest, pad_value=-math.inf), C.max_pool2d(x, *rest))
    torch.testing.assert_close(C.pattern_pool(x, torch.mean, 3, 2), C.avg_pool2d(x, 3, 2))
    assert torch.equal(C.pattern_pool(x[0], torch.sum, (2, 2)), C.pattern_pool(x[:1], torch.sum, 2)[0])


# Layers --------------------------------------------------------------------------------------------------------------

LAYERS = [
    (tc.MaxPool1dExplicit, nn.MaxPool1d, (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    (tc.MaxPool2dExplicit, nn.MaxPool2d, ((3, 2),), {"stride": 2, "dilation": (1, 2), "return_indices": True}),
    (tc.MaxPool3dExplicit, nn.MaxPool3d, (2,), {"padding": 1}),
    (tc.AvgPool1dExplicit, nn.AvgPool1d, (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    (tc.AvgPool2dExplicit, nn.AvgPool2d, ((3, 2),), {"stride": (2, 1), "padding": 1, "count_include_pad": False}),
    (tc.AvgPool3dExplicit, nn.AvgPool3d, (2,), {"divisor_override": 3}),
    (tc.LPPool1dExplicit, nn.LPPool1d, (2, 3), {"stride": 2, "ceil_mode": True}),
    (tc.LPPool2dExplicit, nn.LPPool2d, (2, (3, 2)), {}),
    (tc.LPPool3dExplicit, nn.LPPool3d, (2, 2), {"stride": 1}),
]


@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs"), LAYERS, ids=lambda v: getattr(v, "__name__", ""))
def test_layers(ours, theirs, args, kwargs):
    axes = int(theirs.__name__[-2])
    layer, reference = ours(*args, **kwargs), theirs(*args, **kwargs)
    assert isinstance(layer, theirs)
    assert layer.extra_repr() == reference.extra_repr()
    x = small_integers(2, 3, *(8, 7, 6)[:axes])
    got, expected = layer(x), reference(x)
    if isinstance(expected, tuple):
        assert torch.equal(got[1], expected[1])
        got, expected = got[0], expected[0]
    torch.testing.assert_close(got, expected)
    assert layer.geometry(x.shape[2:]).output_size == expected.shape[2:]
    if isinstance(layer, nn.modules.pooling._AvgPoolNd):
        m = layer.matrix(x.shape[2:], channels=3, dtype=torch.float64)
        torch.testing.assert_close(m.to_dense() @ x[0].flatten(), expected[0].flatten())
    elif isinstance(layer, nn.modules.pooling._MaxPoolNd):
        m = layer.matrix(x[0])
        assert torch.equal(m.to_dense() @ x[0].flatten(), expected[0].flatten())
        assert torch.equal(m.to_dense().sum(1), torch.ones(m.shape[0], dtype=torch.float64))
    else:
        return
    torch.testing.assert_close(m @ x[0].flatten(), m.to_dense() @ x[0].flatten())
    u = distinct(m.shape[0], 2)
    torch.testing.assert_close(m.T @ u, m.to_dense().t() @ u)
    torch.testing.assert_close(u.t() @ m, u.t() @ m.to_dense())
    assert torch.equal(m.to_sparse(torch.sparse_coo).to_dense(), m.to_dense())
    assert m.T.T is m
    assert m.nnz == int((m.to_dense() != 0).sum())


def test_layers_own_arguments():
    x = small_integers(1, 2, 6, 6)
    assert torch.equal(tc.AvgPool2dExplicit(2, dilation=2)(x), C.avg_pool2d(x, 2, dilation=2))
    assert torch.equal(tc.LPPool2dExplicit(3, 2, signed=False)(x), C.lp_pool2d(x, 3, 2, signed=False))
    assert "ties=split" in repr(tc.MaxPool2dExplicit(2, ties="split"))
    assert "dilation=2" in repr(tc.AvgPool2dExplicit(2, dilation=2))
    assert "signed=False" in repr(tc.LPPool2dExplicit(3, 2, signed=False))
    assert tc.MaxPool2dExplicit(3, 2, ceil_mode=True).geometry(6)[0].padding == (0, 1)
