"""Depthwise kernels with lanes along the channels: both memory formats, strides, edges and remainders, exactly."""

import pytest
import torch
from test_kernels import ISAS, OPS, by, integers, plain_conv, run_with
from threads import threads_of

import torch_convarith as tc

# N, channels, input, kernel, stride, padding, dilation
CASES = [
    (2, 16, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (2, 37, (7, 9), (5, 3), (1, 1), (2, 2, 1, 1), (1, 1)),
    (1, 64, (14, 17), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (3, 48, (9, 12), (3, 5), (2, 3), (0, 1, 2, 0), (1, 1)),
    (1, 33, (6, 5), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
    (1, 20, (3, 2), (9, 9), (1, 1), (4, 4, 4, 4), (1, 1)),
    (2, 17, (19, 23), (3, 3), (1, 1), (2, 2, 3, 3), (2, 3)),
    (2, 40, (12, 11), (3, 3), (1, 2), (-1, -2, 1, -1), (1, 1)),
    (1, 32, (40, 70), (3, 3), (2, 1), (1, 1, 1, 1), (2, 1)),
]


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_depthwise_gives_the_integers_of_the_plain_kernels(case, dtype, last):
    n, channels, size, kernel, stride, padding, dilation = case
    largest = 1 if dtype is torch.bfloat16 else 3
    x = integers((n, channels, *size), 1, dtype, largest)
    w = integers((channels, 1, *kernel), 2, dtype, largest)
    geometry = (stride, padding, dilation, channels)
    y = by("reference", "conv", x, w, *geometry)
    gradient = integers(y.shape, 3, dtype, largest)
    dx = by("reference", "conv_transpose", gradient, w, size, *geometry)
    dw = by("reference", "conv_weight", x, gradient, kernel, *geometry)
    if last:
        x, gradient = (t.to(memory_format=torch.channels_last) for t in (x, gradient))
    assert torch.equal(by("depthwise", "conv", x, w, *geometry), y)
    assert torch.equal(by("depthwise", "conv_transpose", gradient, w, size, *geometry), dx)
    assert torch.equal(by("depthwise", "conv_weight", x, gradient, kernel, *geometry), dw)


# N, channels, channels per group, input, kernel, stride, padding, dilation: with lanes along the channels, in tiles or
# where pixels stand. 16 lanes of the widest vectors leave remainders of 1, 4 and 8 channels.
LAST_CASES = [
    (1, 33, 1, (9, 17), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (2, 49, 1, (13, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (1, 40, 1, (12, 15), (2, 3), (3, 4), (0, 1, 1, 0), (1, 2)),
    (1, 17, 1, (11, 21), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    (2, 72, 2, (9, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (1, 40, 2, (11, 9), (3, 5), (2, 3), (1, 0, 2, 1), (2, 1)),
    (2, 68, 4, (7, 23), (3, 3), (1, 1), (2, 2, 1, 1), (2, 1)),
    (1, 20, 4, (13, 10), (4, 3), (2, 2), (-1, 2, 1, 1), (1, 1)),
    (0, 32, 4, (5, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
]
# Two vectors of channels at once: rows of 3, 5 and 7 taps, a step of 1 or 2; outputs that fill blocks of 7, or leave
# some of one or are fewer; edges that one block meets both of, and columns of nothing but padding.
PAIR_CASES = [
    (2, channels, 1, size, kernel, (2 - stride % 2, stride), padding, (1, 1))
    for channels, size in ((32, (6, 7)), (80, (5, 15)), (97, (4, 29)), (160, (3, 4)))
    for kernel in ((3, 3), (2, 5), (5, 7))
    for stride in (1, 2)
    for padding in ((1, 1, kernel[1] // 2, kernel[1] // 2), (2, 1, 9, 0), (2, 2, -1, 11))
    if size[1] + sum(padding[2:]) >= kernel[1]
]


def lanes_along_channels(case, dtype):
    n, channels, members, size, kernel, stride, padding, dilation = case
    largest = 1 if dtype in (torch.bfloat16, torch.float16) else 3
    x = integers((n, channels, *size), 1, dtype, largest).to(memory_format=torch.channels_last)
    w = integers((channels, members, *kernel), 2, dtype, largest)
    geometry = (stride, padding, dilation, channels // members)
    y = torch.from_numpy(plain_conv(x.double().numpy(), w.double().numpy(), *geometry)).to(dtype)
    gradient = integers(y.shape, 3, dtype, largest).to(memory_format=torch.channels_last)
    return x, w, geometry, y, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LAST_CASES, ids=str)
def test_lanes_along_channels_give_the_plain_loops_integers(case, dtype):
    check_lanes_along_channels(case, dtype)


@pytest.mark.parametrize("case", PAIR_CASES, ids=str)
def test_two_vectors_of_channels_at_once_give_the_plain_loops_integers(case):
    check_lanes_along_channels(case, torch.bfloat16)


def check_lanes_along_channels(case, dtype):
    x, w, geometry, y, gradient = lanes_along_channels(case, dtype)
    dx = by("reference", "conv_transpose", gradient, w, x.shape[2:], *geometry)
    dw = by("reference", "conv_weight", x, gradient, w.shape[2:], *geometry)
    for count in (1, 2, 5):
        with threads_of(count):
            assert torch.equal(by("depthwise", "conv", x, w, *geometry), y)
            assert torch.equal(by("depthwise", "conv_transpose", gradient, w, x.shape[2:], *geometry), dx)
            assert torch.equal(by("depthwise", "conv_weight", x, gradient, w.shape[2:], *geometry), dw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("kernel", [3, 5])
def test_lanes_along_channels_give_the_same_bits_with_any_number_of_threads(kernel, members, dtype):
    x = torch.randn(2, 68, 19, 23).to(dtype).to(memory_format=torch.channels_last)
    w, bias = torch.randn(68, members, kernel, kernel).to(dtype), torch.randn(68).to(dtype)
    args = (x, w, bias, 1, kernel // 2, 1, 68 // members)
    backward = ((2, 1), (kernel // 2,) * 4, (1, 1), 68 // members)
    small = OPS.conv(x, w, *backward)
    results = []
    for count in (1, 2, 5):
        with threads_of(count):
            results.append(
                (tc.functional.conv2d(*args), by("depthwise", "conv_transpose", small, w, (19, 23), *backward))
            )
    exact = torch.nn.functional.conv2d(*(t.double() if isinstance(t, torch.Tensor) else t for t in args))
    torch.testing.assert_close(results[0][0].double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 2, 40)], ids=str)
@pytest.mark.parametrize("channels", [64, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lanes_along_channels_of_more_than_caches_hold(dtype, channels, padding):
    """Pixels that are asked for ahead, and columns of nothing but padding, for which there is nothing to ask."""
    largest = 1 if dtype is torch.bfloat16 else 3
    x = integers((32, channels, 61, 70), 1, largest=largest).to(memory_format=torch.channels_last)
    w = integers((channels, 1, 3, 3), 2, largest=largest)
    padded = torch.nn.functional.pad(x, (*padding[2:], *padding[:2]))
    (top, _, left, _), (height, width) = padding, x.shape[2:]
    for stride in (1, 2):
        geometry = ((stride, stride), padding, (1, 1), channels)
        y = torch.nn.functional.conv2d(padded, w, None, stride, 0, 1, channels)
        g = integers(y.shape, 3, largest=1).to(memory_format=torch.channels_last)
        arguments = ((stride, stride), (0, 0), (1, 1), False, (0, 0), channels, [True, True, False])
        dx, dw, _ = torch.ops.aten.convolution_backward(g, padded, w, None, *arguments)
        dx = dx[:, :, top : top + height, left : left + width]
        y, dx, dw = (t.to(dtype) for t in (y, dx, dw))
        narrow_x, narrow_w, g = (t.to(dtype) for t in (x, w, g))
        assert torch.equal(by("depthwise", "conv", narrow_x, narrow_w, *geometry), y)
        assert torch.equal(by("depthwise", "conv_transpose", g, narrow_w, (height, width), *geometry), dx)
        assert torch.equal(by("depthwise", "conv_weight", narrow_x, g, (3, 3), *geometry), dw)


@pytest.mark.parametrize("isa", ISAS[: ISAS.index(tc.build_info()["isa"])])
def test_lanes_along_channels_on_every_instruction_set(isa):
    script = f"""
import sys
sys.path.insert(0, {__file__.rsplit("/", 1)[0]!r})
import torch, test_depthwise as t
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for case in t.LAST_CASES:
        t.test_lanes_along_channels_give_the_plain_loops_integers(case, dtype)
    for case in t.PLANE_CASES[::3]:
        t.test_planes_give_the_integers_of_the_plain_kernels(case, dtype)
"""
    done = run_with(isa, script)
    assert done.returncode == 0, done.stderr


# Channels per group, input, kernel, stride, padding: rows that are read where they stand. One to five vectors of 16 or
# 8 lanes in a row, whole and in part, blocks that end within the image, first taps at each of the first three inputs;
# more rows than a box has; sides that differ, of more padding than a kernel sees, and of less than none.
IN_PLACE_CASES = [
    (members, size, kernel, stride, (padding,) * 4)
    for members in (1, 4)
    for size in ((9, 16), (13, 31), (5, 50), (34, 66), (3, 81))
    for kernel, strides, paddings in ((3, (1, 2), (0, 1, 2)), (5, (1,), (1, 2)), (7, (1,), (3, 6)))
    for stride in strides
    for padding in paddings
    if min(size) + 2 * padding >= kernel
] + [
    (members, size, kernel, 1, padding)
    for members in (1, 3)
    for size in ((71, 20), (10, 47))
    for kernel in (3, 5, 7)
    for padding in ((0, 3, 2, 0), (7, 0, 1, 4), (-1, -2, 0, 5), (2, 2, 18, 0), (1, 1, 2, 30), (0, 0, -3, -1))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", IN_PLACE_CASES, ids=str)
def test_rows_in_place_give_the_integers_of_the_plain_kernels(case, dtype):
    members, size, kernel, stride, padding = case
    geometry = ((stride,) * 2, padding, (1, 1), 2)
    x = integers((2, 2 * members, *size), 1, dtype, 1)
    w = integers((2 * members, members, kernel, kernel), 2, dtype, 1)
    y = by("reference", "conv", x, w, *geometry)
    gradient = integers(y.shape, 3, dtype, 1)
    dx = by("reference", "conv_transpose", gradient, w, size, *geometry)
    dw = by("reference", "conv_weight", x, gradient, (kernel, kernel), *geometry)
    assert torch.equal(by("depthwise", "conv", x, w, *geometry), y)
    assert torch.equal(by("depthwise", "conv_transpose", gradient, w, size, *geometry), dx)
    assert torch.equal(by("depthwise", "conv_weight", x, gradient, (kernel, kernel), *geometry), dw)


# Channels, input, kernel, stride, padding, dilation: planes that are transposed. Rows of 1 to 25 outputs, which blocks
# of 16 or 12 cut in every way; planes of fewer inputs or outputs than a vector has; runs of one to more taps than are
# taken together, of one residue of the columns or of several; inputs that no output sees; rows of nothing but padding;
# more rows than a tile has; more weights than a thread keeps; results that outgrow what they come from.
PLANE_CASES = (
    [
        (channels, (height, width), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
        for channels in (9, 24)
        for height, width in [(1 + i % 6, i) for i in range(1, 26)]
    ]
    + [
        (20, (9, 11), kernel, stride, (kernel[0] // 2, kernel[0] // 3, kernel[1] // 3, kernel[1] // 2), dilation)
        for kernel in ((1, 1), (2, 3), (3, 4), (5, 5), (7, 9), (1, 8), (9, 1))
        for stride in ((1, 1), (2, 2), (3, 1), (1, 3), (4, 5))
        for dilation in ((1, 1), (2, 3))
        if all((k - 1) * d < i + 2 * (k // 3) for k, d, i in zip(kernel, dilation, (9, 11), strict=True))
    ]
    + [
        (16, (7, 6), (3, 3), (2, 2), (-1, 0, -2, 1), (1, 1)),
        (18, (5, 8), (3, 5), (1, 1), (9, 2, 0, 12), (1, 1)),
        (17, (150, 18), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
        (16, (90, 30), (3, 3), (3, 3), (1, 1, 1, 1), (1, 1)),
        (1100, (5, 4), (8, 7), (1, 1), (4, 4, 3, 3), (1, 1)),
        (9, (160, 150), (12, 11), (12, 13), (0, 0, 0, 0), (1, 1)),
        (9, (2, 500), (2, 3), (1, 4), (0, 0, -300, -100), (1, 1)),
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", PLANE_CASES, ids=str)
def test_planes_give_the_integers_of_the_plain_kernels(case, dtype):
    channels, size, kernel, stride, padding, dilation = case
    geometry = (stride, padding, dilation, channels)
    x = integers((3, channels, *size), 1, dtype, 1)
    w = integers((channels, 1, *kernel), 2, dtype, 1)
    y = by("reference", "conv", x, w, *geometry)
    gradient = integers(y.shape, 3, dtype, 1)
    dx = by("reference", "conv_transpose", gradient, w, size, *geometry)
    dw = by("reference", "conv_weight", x, gradient, kernel, *geometry)
    for count in (1, 2, 5):
        with threads_of(count):
            assert torch.equal(by("depthwise", "conv", x, w, *geometry), y)
            assert torch.equal(by("depthwise", "conv_transpose", gradient, w, size, *geometry), dx)
            assert torch.equal(by("depthwise", "conv_weight", x, gradient, kernel, *geometry), dw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_planes_add_the_bias_and_read_views(dtype):
    """Channels that are a slice, weights that are transposed: planes that are dense all the same."""
    x, bias = integers((2, 40, 7, 9), 1, dtype, 2)[:, 7:31], integers((24,), 4, dtype)
    w = integers((24, 1, 5, 3), 2, dtype, 2).transpose(2, 3)
    expected = torch.nn.functional.conv2d(x.double(), w.double(), bias.double(), 1, 1, 1, 24)
    assert torch.equal(tc.functional.conv2d(x, w, bias, 1, 1, 1, 24).double(), expected)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("width", [9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_depthwise_confines_what_is_not_finite(dtype, value, width, last):
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 32)
    shapes = (2, 32, 9, width), (32, 1, 3, 3), (2, 32, 9, width)
    x, w, y = ((torch.rand(shape) + 1).to(dtype) for shape in shapes)
    if last:
        x, y = (t.to(memory_format=torch.channels_last) for t in (x, y))
    for tensor, place in ((x, (0, 3, 0, width - 1)), (y, (1, 5, 8, 0)), (w, (7, 0, 0, 0))):
        tensor[place] = value
        for operator, args in (
            ("conv", (x, w)),
            ("conv_transpose", (y, w, (9, width))),
            ("conv_weight", (x, y, (3, 3))),
        ):
            expected = by("reference", operator, *args, *geometry).isfinite()
            assert torch.equal(getattr(OPS, operator)(*args, *geometry).isfinite(), expected), operator
        tensor[place] = 1
