"""Winograd: within its bound of float64, by every tile and pass; what it leaves to the plain kernels; its switch."""

import pytest
import torch
from test_kernels import OPS, by, integers
from threads import threads_of

import torch_convarith as tc
from torch_convarith import _ops, backends

# N, C, K, height, width, kernel, stride, padding, groups
WINOGRAD = [
    (1, 64, 64, 28, 28, (3, 3), (1, 1), (1, 1, 1, 1), 1),
    (3, 17, 33, 13, 7, (3, 3), (1, 1), (1, 1, 1, 1), 1),
    (2, 8, 8, 1, 1, (3, 3), (1, 1), (1, 1, 1, 1), 1),
    (2, 9, 70, 3, 50, (3, 3), (1, 1), (0, 0, 2, -1), 1),
    (1, 256, 16, 14, 14, (3, 3), (1, 1), (1, 1, 1, 1), 1),
    (2, 8, 12, 9, 9, (3, 3), (1, 1), (2, 0, 1, 1), 3),
    (1, 1, 1, 6, 67, (3, 3), (1, 1), (1, 1, 1, 1), 1),
    (40, 20, 70, 30, 30, (3, 3), (1, 1), (1, 1, 1, 1), 1),  # many boxes, in several shares of the gradient
    (3, 20, 40, 36, 36, (3, 3), (1, 1), (1, 1, 1, 1), 1),  # one share of two boxes
    (2, 130, 40, 15, 14, (5, 5), (1, 1), (2, 2, 2, 2), 1),
    (2, 10, 20, 20, 21, (2, 2), (1, 1), (1, 2, 0, 3), 1),
    (2, 10, 20, 20, 21, (4, 4), (1, 1), (3, 2, 1, 3), 1),
    (3, 20, 70, 16, 17, (4, 4), (2, 2), (1, 1, 1, 1), 1),
    (2, 20, 30, 17, 16, (3, 3), (2, 2), (1, 1, 1, 1), 2),
    (2, 10, 200, 5, 6, (4, 4), (2, 2), (-1, 2, 1, -1), 1),
    (2, 10, 20, 9, 11, (5, 5), (3, 3), (2, 1, 1, 3), 1),  # a chunk of 64 lanes ends within a channel's 9 residues
    (2, 10, 20, 20, 21, (5, 7), (2, 3), (1, 2, 0, 3), 1),
    (1, 3, 33, 67, 59, (11, 11), (4, 4), (0, 0, 0, 0), 1),
    # Channels that fill vectors: lanes are blocks of them.
    (3, 48, 32, 17, 18, (3, 3), (2, 2), (1, 1, 1, 1), 1),
    (2, 16, 48, 23, 8, (5, 5), (2, 2), (2, 1, 1, 0), 2),
    (1, 32, 20, 40, 64, (4, 4), (2, 2), (1, 1, 1, 1), 1),  # boxes of parts of a row
    (2, 16, 32, 9, 16, (3, 6), (1, 2), (1, 1, 1, 3), 1),  # rows of x follow each other, cells are of two of its columns
    (2, 16, 32, 20, 21, (8, 4), (4, 2), (3, 2, 1, 3), 1),
    (2, 16, 32, 20, 21, (5, 7), (2, 3), (1, 2, 0, 3), 1),  # a chunk ends within the residues of x
    (1, 32, 32, 30, 29, (7, 8), (4, 4), (3, 3, 2, 3), 1),  # a panel has two of the residues of x
]

# N, C, K, input, kernel, stride, padding, dilation, groups
WIDER_WINOGRAD = [
    (2, 20, 40, (28, 28), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    (1, 17, 33, (13, 31), (3, 3), (1, 1), (5, 2, -1, 3), (3, 1), 1),
    (2, 9, 12, (20, 21), (3, 6), (1, 2), (4, 5, 0, 1), (2, 1), 2),
    (1, 20, 20, (5, 30), (2, 2), (1, 1), (7, 7, 1, 1), (7, 4), 1),  # more phases than rows
    (1, 17, 33, (5, 13, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    (2, 10, 20, (7, 8, 11), (2, 3, 3), (1, 1, 1), (2, -1, 1, 1, 0, 1), (3, 2, 2), 2),
    (3, 8, 40, (4, 9, 14), (1, 3, 3), (1, 1, 1), (1, 0, 1, 1, 1, 1), (1, 1, 1), 1),
    (2, 8, 20, (3, 9, 14), (3, 4, 4), (1, 2, 2), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    (2, 16, 33, (5, 13, 9), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 2, 2), 1),
    (1, 32, 48, (4, 9, 14), (2, 4, 3), (1, 2, 2), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    (5, 16, 20, (40, 41), (3, 3), (1, 1), (3, 3, 3, 3), (3, 3), 1),  # boxes of some of the phases
    # Other taps along y than along x, or none to speak of.
    (2, 20, 40, (50,), (2,), (1,), (1, 1), (1,), 1),
    (3, 17, 33, (41,), (5,), (1,), (2, 2), (3,), 1),
    (1, 32, 48, (6000,), (2,), (1,), (3, 16), (16,), 1),  # boxes of all phases of a part of a row
    (1, 16, 33, (2500,), (3,), (1,), (500, 500), (500,), 1),  # of a tile of each
    (1, 16, 33, (3000,), (3,), (1,), (1000, 900), (1000,), 1),  # too many phases for a box
    (2, 32, 16, (33,), (16,), (8,), (4, 4), (1,), 1),  # a chunk and a panel end within the residues
    (2, 10, 20, (31,), (4,), (2,), (1, 1), (1,), 2),
    (2, 9, 20, (13, 21), (1, 3), (1, 1), (0, 0, 1, 1), (1, 1), 1),
    (2, 9, 20, (13, 21), (3, 1), (1, 1), (1, 2, 0, 0), (1, 1), 2),
    (2, 16, 33, (12, 17), (2, 5), (1, 1), (1, 0, 2, 2), (1, 1), 1),
    (2, 16, 20, (23, 41), (5, 10), (2, 2), (0, 0, 1, 0), (1, 1), 1),
    (2, 16, 20, (23, 41), (5, 2), (2, 2), (0, 0, 1, 0), (1, 1), 1),
    (1, 20, 17, (6, 9, 7), (3, 1, 1), (1, 1, 1), (1, 1, 0, 0, 0, 0), (1, 1, 1), 1),
    (1, 20, 17, (13, 9, 7), (4, 1, 1), (2, 1, 1), (1, 0, 0, 0, 0, 0), (1, 1, 1), 1),
    (2, 16, 17, (12, 5, 7), (2, 1, 1), (1, 1, 1), (3, 0, 0, 0, 0, 0), (3, 1, 1), 1),
    (2, 16, 17, (6, 5, 7), (2, 1, 3), (1, 1, 1), (1, 0, 0, 0, 1, 1), (1, 1, 1), 1),
    # Kernels of several parts.
    (2, 20, 40, (50,), (7,), (1,), (3, 3), (1,), 1),
    (1, 16, 48, (700,), (11,), (1,), (25, 25), (5,), 1),
    (2, 16, 20, (61,), (13,), (2,), (5, 7), (1,), 2),
    (2, 10, 20, (12, 19), (3, 7), (1, 1), (1, 1, 3, 3), (1, 1), 1),
    (2, 10, 20, (12, 19), (7, 1), (1, 1), (3, 2, 0, 0), (1, 1), 1),
    (1, 16, 33, (20, 21), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1), 1),
    (1, 12, 20, (20, 21), (9, 6), (1, 1), (4, 4, 3, 3), (1, 2), 1),
    (1, 16, 20, (31, 23), (11, 12), (2, 2), (5, 5, 5, 5), (1, 1), 1),
    (1, 12, 20, (4, 12, 19), (2, 3, 7), (1, 1, 1), (1, 0, 1, 1, 3, 3), (1, 1, 1), 1),
    (2, 304, 441, (9, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),  # a gradient that goes past the caches
]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", WINOGRAD, ids=lambda case: "x".join(map(str, (*case[:5], *case[5]))))
def test_winograd_stays_within_its_bound(case, memory):
    n, c, k, height, width, kernel, stride, padding, groups = case
    check_winograd(n, c, k, (height, width), kernel, (stride, padding, (1, 1), groups), memory)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 1), (5, 1), (8, 2), (9, 2), (13, 3)])
def test_winograd_stays_within_its_bound_where_outputs_sum_little_of_a_tile(kernel, stride):
    y, w = (1 + 0.01 * torch.rand(size) for size in ((5, 64, 2, 2), (64, 16, kernel, kernel)))
    size = (stride + kernel,) * 2
    geometry = ((stride, stride), (0,) * 4, (1, 1), 1)
    exact = by("outer", "conv_transpose", y.double(), w.double(), size, *geometry)
    error = (by("winograd", "conv_transpose", y, w, size, *geometry) - exact).abs().max()
    assert 0 < error <= backends.WINOGRAD_BOUND * exact.max()


CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # lines have no such order


@pytest.mark.parametrize(
    ("memory", "case"),
    [(torch.contiguous_format, case) for case in WIDER_WINOGRAD]
    + [(CHANNELS_LAST[len(case[3])], case) for case in WIDER_WINOGRAD if len(case[3]) > 1],
    ids=lambda v: "_".join("x".join(map(str, part)) for part in v[3:8]) if isinstance(v, tuple) else None,
)
def test_winograd_of_dilated_deeper_and_longer_kernels(memory, case):
    n, c, k, size, kernel, stride, padding, dilation, groups = case
    check_winograd(n, c, k, size, kernel, (stride, padding, dilation, groups), memory)


NORMAL_BOUND = 8e-6  # of normally distributed data, as the documentation of WINOGRAD_BOUND has it


def check_winograd(n, c, k, size, kernel, geometry, memory):
    stride, padding, dilation, groups = geometry
    sides = list(zip(padding[::2], padding[1::2], strict=True))
    layer = ((n, c * groups, *size), (k * groups, c, *kernel), stride, sides, dilation, groups)
    with _ops.forced_algorithm("winograd"):
        for operator in ("conv", "conv_transpose", "conv_weight"):
            assert tc.explain_kernel(*layer, operator=operator).algorithm == "winograd"
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, c * groups, *size, generator=generator).to(memory_format=memory)
    w = torch.randn(k * groups, c, *kernel, generator=generator)
    y = by("winograd", "conv", x, w, *geometry)
    gradient = torch.randn(y.shape, generator=generator).to(memory_format=memory)
    for operator, a, b, *sizes in (
        ("conv", x, w),
        ("conv_transpose", gradient, w, size),
        ("conv_weight", x, gradient, kernel),
    ):
        args = (*sizes, *geometry)
        exact = by("outer", operator, a.double(), b.double(), *args)
        scale = by("outer", operator, a.double().abs(), b.double().abs(), *args).max()
        result = by("winograd", operator, a, b, *args)
        assert (result - exact).abs().max() <= NORMAL_BOUND * scale
        for count in (1, 5):
            with threads_of(count):
                assert torch.equal(by("winograd", operator, a, b, *args), result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "case",
    [
        (2, 40, 70, (13, 17), (3, 3), (1, 1)),
        (3, 33, 20, (9, 12), (4, 4), (2, 2)),
        (1, 64, 96, (11, 10), (3, 3), (2, 2)),
        (1, 16, 33, (20, 21), (7, 7), (1, 1)),
    ],
    ids=str,
)
def test_winograd_of_half_precisions_is_float32s_rounded(case, memory, dtype):
    n, c, k, size, kernel, stride = case
    geometry = (stride, (1, 1, 1, 1), (1, 1), 1)
    x = integers((n, c, *size), 1, dtype).to(memory_format=memory)
    w = integers((k, c, *kernel), 2, dtype).to(memory_format=memory)
    y = integers(by("outer", "conv", x, w, *geometry).shape, 3, dtype).to(memory_format=memory)
    for operator, *args in (
        ("conv", x, w),
        ("conv_transpose", y, w, size),
        ("conv_weight", x, y, kernel),
    ):
        args += geometry
        wide = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
        expected = by("winograd", operator, *wide)
        result = by("winograd", operator, *args)
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected.to(dtype), atol=1e-4 * expected.abs().max().item(), rtol=2**-7)


@pytest.mark.parametrize("batch", [8, 11])
@pytest.mark.parametrize("channels", [1, 20])
@pytest.mark.parametrize(
    ("tile", "taps"), [(tile, taps) for tile in (5, 6, 7, 8) for taps in (2, 3, 4, 5) if taps < tile]
)
def test_winograd_of_every_tile_stays_within_its_bound(tile, taps, channels, batch):
    size = tile + 1 - taps  # one tile's outputs: what costs least
    layer = (batch, channels, size, size), (channels, channels, taps, taps)
    padding = [(taps // 2, (taps - 1) // 2)] * 2
    with _ops.forced_algorithm("winograd"):
        kernel = tc.explain_kernel(*layer, padding=padding)
    assert kernel.multiplications == tile * tile * batch * channels * channels
    flat = tuple(side for pair in padding for side in pair)
    check_winograd(
        batch, channels, channels, (size, size), (taps, taps), ((1, 1), flat, (1, 1), 1), torch.channels_last
    )


@pytest.mark.parametrize(
    ("layer", "products"),
    [  # the tile squared for every tile, in channel and out channel
        (("conv", (4, 64, 56, 56), (64, 64, 3, 3), 1, 1), 64 * 4 * 10 * 10),
        (("conv", (8, 96, 27, 27), (256, 96, 5, 5), 1, 2), 64 * 8 * 7 * 7),
        # 33 x 33 cells of 2 x 2, at the ends of which a phase has no output; 4 phases
        (("conv_transpose", (8, 64, 64, 64), (128, 64, 4, 4), 2, 1), 64 * 8 * 5 * 5 * 4),
        (("conv_weight", (8, 256, 13, 13), (384, 256, 3, 3), 1, 1), 49 * 8 * 3 * 3),
        # 2 x 2 residues of 1 or 2 taps along an axis, to which 6 or 7 products belong
        (("conv", (4, 256, 60, 60), (512, 256, 3, 3), 2, 1), 25 * 4 * 13 * 13),
        # 2 x 2 phases of the dilation, of 14 x 14 cells each
        (("conv", (2, 256, 28, 28), (256, 256, 3, 3), 1, 2, 2), 49 * 2 * 4 * 3 * 3),
        # 3 taps along z
        (("conv", (1, 32, 32, 32, 32), (64, 32, 3, 3, 3), 1, 1), 36 * 32 * 8 * 8 * 3),
    ],
    ids=["3x3", "5x5", "4x4-transposed", "3x3-gradient", "3x3-strided", "3x3-dilated", "3x3x3"],
)
def test_winograd_says_how_often_it_multiplies(layer, products):
    operator, x, w, *geometry = layer
    kernel = tc.explain_kernel(x, w, *geometry, operator=operator)
    assert kernel.algorithm == "winograd"
    assert kernel.multiplications == products * w[0] * w[1]
    assert kernel.scratch_bytes <= 64 << 20


def test_winograd_gradient_spreads_an_infinity_over_its_channels_only():
    x, y = torch.ones(1, 16, 12, 12), torch.ones(1, 16, 12, 12)
    x[0, 3, 5, 5] = float("inf")
    dw = by("winograd", "conv_weight", x, y, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    assert not dw[:, 3].isfinite().any()
    dw[:, 3] = 0
    assert dw.isfinite().all()


def test_winograd_is_a_switch():
    layer = (1, 64, 56, 56), (64, 64, 3, 3)
    assert backends.winograd
    assert tc.explain_kernel(*layer, padding=1).algorithm == "winograd"
    x, w = torch.randn(*layer[0]), torch.randn(*layer[1])
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    with backends.flags(winograd=False):
        assert not backends.winograd
        direct = tc.explain_kernel(*layer, padding=1).algorithm
        assert direct in ("offset", "outer")
        assert torch.equal(OPS.conv(x, w, *geometry), by(direct, "conv", x, w, *geometry))
    assert torch.equal(OPS.conv(x, w, *geometry), by("winograd", "conv", x, w, *geometry))
    try:
        backends.winograd = False
        assert tc.explain_kernel(*layer, padding=1).algorithm == direct
    finally:
        backends.winograd = True
    with pytest.raises(TypeError, match="must be a bool"):
        backends.winograd = 1
    # Where the sums must not change, it is never chosen.
    assert tc.explain_kernel(*layer, padding=1, dtype=torch.float64).algorithm in ("offset", "outer")


def test_winograd_spreads_an_infinity_over_its_tile_only():
    x, w = torch.ones(1, 8, 24, 24), torch.ones(8, 8, 3, 3)
    with _ops.forced_algorithm("winograd"):
        products = tc.explain_kernel(x.shape, w.shape, padding=1).multiplications // (8 * 8)
    (size,) = (m for m in (4, 5, 6) if products == ((m + 2) * -(-24 // m)) ** 2)  # one tile's outputs
    tile = slice(size, 2 * size)
    x[0, 0, size + size // 2, size + size // 2] = float("inf")
    y = by("winograd", "conv", x, w, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    finite = y.isfinite()
    assert not finite[..., tile, tile].any()
    finite[..., tile, tile] = True
    assert finite.all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize(
    "memory", [torch.contiguous_format, torch.channels_last], ids=["channels_first", "channels_last"]
)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_winograd_leaves_weights_that_are_not_finite_to_the_plain_kernels(kernel, stride, memory, value):
    geometry = ((stride, stride), (1, 1, 1, 1), (1, 1), 1)
    x, w = torch.randn(1, 70, 8, 8), torch.randn(40, 70, kernel, kernel)
    x, w = x.to(memory_format=memory), w.to(memory_format=memory)
    y = by("reference", "conv", x, w, *geometry)
    for place in [(0, 0, 0, 0), (39, 69, kernel - 1, kernel - 1), (17, 64, 1, 0)]:
        spoiled = w.clone()
        spoiled[place] = value
        for operator, arguments in [("conv", (x, spoiled)), ("conv_transpose", (y, spoiled, (8, 8)))]:
            result, expected = (by(a, operator, *arguments, *geometry) for a in ("winograd", "reference"))
            torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    for tensor, place in [(x, (0, 69, 7, 7)), (y, (0, 39, 0, 0))]:
        before, tensor[place] = tensor[place].clone(), value
        result, expected = (by(a, "conv_weight", x, y, (kernel, kernel), *geometry) for a in ("winograd", "reference"))
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        tensor[place] = before
