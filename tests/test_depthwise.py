"""Depthwise kernels with lanes along the channels: both memory formats, strides, edges and remainders, exactly."""

import pytest
import torch
from test_kernels import OPS, by, integers

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


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("width", [9, 40])
def test_depthwise_confines_what_is_not_finite(value, width, last):
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 32)
    x, w, y = torch.rand(2, 32, 9, width) + 1, torch.rand(32, 1, 3, 3) + 1, torch.rand(2, 32, 9, width) + 1
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
