"""The CUDA kernels, but for the convolutions', emulated on the CPU, against the CPU's operators and plain loops."""

import cuda_emulation
import kernels_under_test
import pytest
import test_cuda
import torch
from cases import CASES, case

OPS = torch.ops.torch_convarith
ORDERS = list(cuda_emulation.ORDERS)
NUMBERS = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip


def test_every_operator_has_cuda_kernels():
    """And its room is known, and its test on a GPU."""
    assert sorted(test_cuda.CALLS) == kernels_under_test.operators()
    assert sorted(cuda_emulation.ROOMS) == kernels_under_test.operators()
    assert set(cuda_emulation.ROOMS.values()) == set(cuda_emulation.rooms())
    for operator, room in cuda_emulation.ROOMS.items():
        cuda_emulation.operators(room)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_convarith_emulated::{operator}", "CPU")


@pytest.fixture(params=ORDERS)
def order(request):
    with cuda_emulation.order(request.param):
        yield


def integers(*shape, dtype=torch.float32, seed=0, largest=4):
    low = 0 if dtype == torch.uint8 else -largest
    return torch.randint(low, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(operator, *args, exact=True):
    """The emulated operator, over guarded tensors, against the CPU's."""
    emulated = getattr(cuda_emulation.operators(cuda_emulation.ROOMS[operator]), operator)
    expected = getattr(OPS, operator)(*args)
    with cuda_emulation.guarded():
        got = emulated(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
    several = isinstance(expected, tuple | list)
    for ours, theirs in zip(got if several else [got], expected if several else [expected], strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        if exact:
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    return got


# zero_insert --------------------------------------------------------------------------------------------------------

STRETCHES = [
    ((2, 3, 4, 5), (1, 1), (0, 0, 0, 0)),
    ((2, 3, 4, 5), (2, 3), (1, 2, 0, 3)),
    ((3, 7), (4,), (-2, -3)),
    ((2, 2, 3, 4, 3), (3, 1, 2), (2, 1, -1, 0, 0, -2)),
    ((300, 1, 1), (2, 2), (1, 1, 1, 1)),
    ((0, 2, 3), (2,), (1, 1)),
    ((2, 0), (2,), (1, 1)),
]


@pytest.mark.parametrize("stretch", STRETCHES, ids=str)
def test_zero_insert(stretch, order):
    size, stride, padding = stretch
    x = integers(*size)
    y = compare("zero_insert", x, stride, padding)
    compare("zero_remove", integers(*y.shape, seed=1), size, stride, padding)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_zero_insert_in_every_dtype(dtype):
    y = compare("zero_insert", integers(2, 3, 4, dtype=dtype), (2, 3), (1, -1, 0, 2))
    compare("zero_remove", y, (2, 3, 4), (2, 3), (1, -1, 0, 2))


# The explicit matrix ------------------------------------------------------------------------------------------------

MODES = ("zeros", "reflect", "replicate", "circular")
MORE_CASES = [
    case(3, 5, 7, (9, 11), 3, padding=1),  # several chunks of entries
    case(2, 1, 1, (40,), 3, stride=2, padding=((5, 0),)),
    case(1, 40, 2, (3, 3), 3, padding=1),  # more weights than a warp has lanes
]


def repeats(c, mode):
    """Whether the mode can make the padding."""
    limit = {"zeros": 10**9, "reflect": -1, "circular": 0, "replicate": 10**9}[mode]
    return all(max(pad) <= i + limit for i, pad in zip(c.input, c.padding, strict=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("c", CASES + MORE_CASES, ids=str)
def test_csr(c, mode, transposed):
    if not repeats(c, mode):
        return
    w = integers(*c.w_shape)
    rest = (c.input, *c.geometry, mode, transposed)
    _, _, values = compare("csr", w, *rest)
    compare("csr_weight", integers(*values.shape, seed=1), w.shape, *rest)


def test_csr_in_any_order(order):
    c = CASES[3]
    for transposed in (False, True):
        rest = (c.input, *c.geometry, "reflect", transposed)
        _, _, values = compare("csr", integers(*c.w_shape), *rest)
        compare("csr_weight", integers(*values.shape, seed=1), c.w_shape, *rest)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_csr_in_every_dtype(mode, dtype):
    c = CASES[1]
    _, _, values = compare("csr", integers(*c.w_shape, dtype=dtype), c.input, *c.geometry, mode, False)
    compare("csr_weight", values, c.w_shape, c.input, *c.geometry, mode, False)


def test_csr_of_a_weight_with_any_strides():
    w = integers(3, 3, 4, 6).permute(3, 2, 1, 0)
    compare("csr", w, (5, 6), (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", False)


@pytest.mark.parametrize("n", [1, 3, 17, 33, 150])
def test_products(n, order):
    c = case(n, 4, 6, (7, 6), (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    x, w, y = (integers(*shape, seed=i) for i, shape in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)


@pytest.mark.parametrize("c", CASES, ids=str)
def test_products_of_every_case(c):
    x, w, y = (integers(*shape, seed=i) for i, shape in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_products_in_every_dtype(dtype):
    c = CASES[2]
    x, w, y = (integers(*s, seed=i, dtype=dtype, largest=2) for i, s in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)


# Pooling --------------------------------------------------------------------------------------------------------------

FLOATING = NUMBERS[:4]
REAL = NUMBERS[:9]
# x's shape, kernel, stride, padding (lo, hi per axis), dilation, ceil_mode
WINDOWS = [
    ((2, 3, 7, 8), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False),
    ((2, 3, 7, 8), (2, 3), (3, 1), (0, 1, 1, 0), (1, 2), True),
    ((1, 2, 9, 5), (3, 2), (1, 3), (1, 0, 0, 1), (2, 1), True),
    ((3, 2, 17), (4,), (3,), (2, 1), (1,), True),
    ((2, 2, 5, 4, 6), (2, 2, 3), (2, 1, 2), (1, 0, 0, 1, 1, 1), (1, 2, 1), False),
    ((4, 5), (2,), (2,), (0, 0), (1,), False),
    ((2, 3, 4, 4), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), False),
    ((40, 9, 3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), False),
    ((2, 3, 6, 6), (2, 2), (2, 2), (-1, 0, 0, -2), (1, 1), False),
    ((1, 1, 5, 5), (2, 2), (5, 4), (0, 0, 1, 1), (1, 1), True),
    ((0, 2, 4, 4), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False),
]
GEOMETRIES = pytest.mark.parametrize("geometry", WINDOWS, ids=str)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])


def laid_out(t, channels_last):
    """channels_last where there is such a format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.to(memory_format=formats[t.dim()]) if channels_last and t.dim() in formats else t


@LAYOUTS
@GEOMETRIES
def test_max_pool(geometry, channels_last):
    size, *window = geometry
    x = laid_out(integers(*size, largest=3), channels_last)  # many ties
    axes = len(window[0])
    for minimum in (False, True):
        compare("max_pool", x, *window, minimum)
        y, indices = compare("max_pool_with_indices", x, *window, minimum)
        compare("pool_select", x, indices, axes)
        compare("pool_scatter", laid_out(integers(*y.shape, seed=1), channels_last), size[-axes:], indices, axes)
        _, taps = compare("max_pool_with_taps", x, *window, minimum)
        compare("tap_select", x, taps, *window)
        compare("tap_scatter", laid_out(integers(*y.shape, seed=1), channels_last), size[-axes:], taps, *window)
    for split in (False, True):
        compare("pool_ties", laid_out(integers(*size, seed=2), channels_last), x, y, *window, split, exact=not split)
        v = laid_out(integers(*y.shape, seed=3), channels_last)
        compare("pool_ties_transpose", v, size[-axes:], x, y, *window, split, exact=not split)


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_max_pool_in_every_dtype(dtype):
    size, *window = WINDOWS[1]
    x = integers(*size, dtype=dtype)
    y, indices = compare("max_pool_with_indices", x, *window, False)
    compare("max_pool", x, *window, True)
    compare("pool_select", x, indices, 2)
    compare("pool_scatter", y, size[-2:], indices, 2)
    _, taps = compare("max_pool_with_taps", x, *window, False)
    compare("tap_select", x, taps, *window)
    compare("tap_scatter", y, size[-2:], taps, *window)


def test_max_pool_with_nan():
    x = integers(2, 3, 7, 8)
    x[0, 1, 2:5, 3:6] = torch.nan
    window = WINDOWS[0][1:]
    for minimum in (False, True):
        cuda, cpu = (
            op(x, *window, minimum)
            for op in (cuda_emulation.operators("pooling").max_pool_with_indices, OPS.max_pool_with_indices)
        )
        assert torch.equal(cuda[1], cpu[1])
        torch.testing.assert_close(cuda[0], cpu[0], equal_nan=True, rtol=0, atol=0)
        taps = [
            op(x, *window, minimum)[1]
            for op in (cuda_emulation.operators("pooling").max_pool_with_taps, OPS.max_pool_with_taps)
        ]
        assert torch.equal(*taps)
    y = cpu[0]
    for operator, v in (("pool_ties", x.nan_to_num(1)), ("pool_ties_transpose", y.nan_to_num(1))):
        extra = ((7, 8),) if operator == "pool_ties_transpose" else ()
        compare(operator, v, *extra, x, y, *window, True, exact=False)


def test_scattering_sums_in_the_order_of_the_outputs(order):
    y = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    for most in (1, 3, 200):  # long lists and short ones
        indices = torch.randint(0, most, y.shape, generator=torch.Generator().manual_seed(1))
        compare("pool_scatter", y, (200,), indices, 1)


def test_indices_outside_of_the_plane_are_errors():
    emulated = cuda_emulation.operators("pooling")
    for index in (-1, 5):
        with pytest.raises(RuntimeError, match=r"device_check\(\) does not hold"):
            emulated.pool_select(torch.ones(2, 5), torch.full((2, 3), index), 1)
        with pytest.raises(RuntimeError, match=r"device_check\(\) does not hold"):
            emulated.pool_scatter(torch.ones(2, 3), (5,), torch.full((2, 3), index), 1)


def test_taps_that_no_window_has_are_errors():
    emulated, taps = cuda_emulation.operators("pooling"), torch.full((2, 3), 2, dtype=torch.uint8)
    window = ((2,), (2,), (0, 0), (1,), False)
    with pytest.raises(RuntimeError, match=r"device_check\(\) does not hold"):
        emulated.tap_select(torch.ones(2, 6), taps, *window)
    with pytest.raises(RuntimeError, match=r"device_check\(\) does not hold"):
        emulated.tap_scatter(torch.ones(2, 3), (6,), taps, *window)


def test_taps_on_padding_pick_nothing():
    x, window = torch.arange(1.0, 7).reshape(1, 6), ((3,), (2,), (1, 0), (1,), False)
    taps = torch.zeros(1, 3, dtype=torch.uint8)
    compare("tap_select", x, taps, *window)
    compare("tap_scatter", torch.ones(1, 3), (6,), taps, *window)


@LAYOUTS
@pytest.mark.parametrize("divisor", [(True, None), (False, None), (True, 2), (False, -4)], ids=str)
@GEOMETRIES
def test_avg_pool(geometry, divisor, channels_last):
    size, *window = geometry
    y = compare("avg_pool", laid_out(integers(*size), channels_last), *window, *divisor, exact=False)
    v = laid_out(integers(*y.shape, seed=1), channels_last)
    compare("avg_pool_transpose", v, size[-len(window[0]) :], *window, *divisor, exact=False)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_avg_pool_in_every_dtype(dtype):
    size, *window = WINDOWS[1]
    y = compare("avg_pool", integers(*size, dtype=dtype, largest=9), *window, True, None, exact=False)
    if y.is_floating_point() or y.is_complex():
        compare("avg_pool_transpose", y, size[-2:], *window, False, None, exact=False)


@LAYOUTS
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 2.5, 5.0, 40.0])
@pytest.mark.parametrize("geometry", WINDOWS[:5], ids=str)
def test_lp_pool(geometry, p, signed, channels_last):
    size, *window = geometry
    x = laid_out(torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64), channels_last)
    y = compare("lp_pool", x, p, signed, *window, exact=False)
    g = laid_out(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), channels_last)
    compare("lp_pool_backward", g, x, y, p, signed, *window, exact=False)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("p", [2.0, 2.5])
def test_lp_pool_in_every_dtype(p, dtype):
    size, *window = WINDOWS[0]
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = compare("lp_pool", x, p, False, *window, exact=False)
    compare("lp_pool_backward", torch.ones_like(y), x, y, p, False, *window, exact=False)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("p", [2.0, 3.0, 7.0])
def test_lp_pool_of_numbers_whose_powers_leave_their_range(p, scale):
    size, *window = WINDOWS[0]
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * scale
    y = compare("lp_pool", x, p, False, *window, exact=False)
    assert y.isfinite().all()
    assert y.any() or scale == 0
    gradient = cuda_emulation.operators("pooling").lp_pool_backward(torch.ones_like(y), x, y, p, False, *window)
    expected = OPS.lp_pool_backward(torch.ones_like(y).double(), x.double(), y.double(), p, False, *window)
    torch.testing.assert_close(gradient, expected.float())


# unfold and fold ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [w for w in WINDOWS if not w[-1]], ids=str)
def test_unfold(geometry):
    size, *window, _ = geometry
    y = compare("unfold", integers(*size), *window)
    compare("fold", integers(*y.shape, seed=1), size[-len(window[0]) :], *window)


@pytest.mark.parametrize("dtype", [*NUMBERS, torch.bool], ids=str)
def test_unfold_in_every_dtype(dtype):
    size, *window, _ = WINDOWS[0]
    y = compare("unfold", integers(*size, dtype=dtype), *window)
    compare("fold", y, size[-2:], *window)


# Local response normalisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("size", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (3, 70), (2, 20, 33), (0, 3, 2), (1, 1, 4)], ids=str)
def test_lrn(shape, size, beta):
    x, g = (torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2))
    compare("lrn", x, 1, size, 0.3, beta, 1.5, exact=False)
    compare("lrn_backward", g, x, 1, size, 0.3, beta, 1.5, exact=False)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_lrn_in_every_dtype(dtype, order):
    x, g = (torch.randn(2, 21, 6, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    for channel_dim in range(3):
        compare("lrn", x, channel_dim, 5, 1e-2, 0.75, 2.0, exact=False)
        compare("lrn_backward", g, x, channel_dim, 5, 1e-2, 0.75, 2.0, exact=False)


def test_lrn_over_more_channels_than_shared_memory_holds():
    x, g = (torch.randn(1, 193, 17, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2))
    compare("lrn_backward", g, x, 1, 170, 1e-3, 1.0, 1.0, exact=False)


# Tensors of 2^31 elements --------------------------------------------------------------------------------------------


def test_counting_in_64_bits():
    with cuda_emulation.wide_integers():
        for operator, args in test_cuda.CALLS.items():
            compare(operator, *args, exact=False)
