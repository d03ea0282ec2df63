"""The CPU engine: every algorithm, forced, on every instruction set, against plain loops over awkward shapes."""

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import threads_of

import torch_convarith as tc
from torch_convarith import _ops, backends

OPS = torch.ops.torch_convarith
GATHERS = ("outer", "offset", "images", "amx", "depthwise", "auto")
GRADIENTS = ("outer", "dot", "depthwise", "amx", "auto")


def plain_conv(x, w, stride, padding, dilation, groups):
    """y by definition: out of numpy loops over every output and tap; x (N, C, H, W) in float64 or int64."""
    n, _, *size = x.shape
    k, channels, *kernel = w.shape
    out = [
        (i + padding[2 * a] + padding[2 * a + 1] - (kernel[a] - 1) * dilation[a] - 1) // stride[a] + 1
        for a, i in enumerate(size)
    ]
    y = np.zeros((n, k, *out), dtype=x.dtype)
    for o in itertools.product(*(range(v) for v in out)):
        for t in itertools.product(*(range(v) for v in kernel)):
            i = [o[a] * stride[a] + t[a] * dilation[a] - padding[2 * a] for a in range(len(size))]
            if any(not 0 <= j < s for j, s in zip(i, size, strict=True)):
                continue
            for m in range(k):
                first = m // (k // groups) * channels
                y[(slice(None), m, *o)] += (
                    x[(slice(None), slice(first, first + channels), *i)] @ w[(m, slice(None), *t)]
                )
    return y


def integers(shape, seed, dtype=torch.float32, largest=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)


def by(algorithm, operator, *args):
    # Winograd rounds; "auto" is the choice among the others here.
    with _ops.forced_algorithm(algorithm), backends.flags(winograd=False):
        return getattr(OPS, operator)(*args)


# N, C per group, K per group, groups, input, kernel, stride, padding (lo, hi per axis), dilation
CASES = {
    "remainders": (2, 5, 11, 1, (9, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "primes": (3, 7, 13, 1, (17, 19), (5, 3), (1, 1), (2, 0, 1, 2), (1, 1)),
    "pixel": (5, 17, 33, 1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pixel-3x3": (2, 4, 9, 1, (1, 1), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "kernel-above-input": (2, 3, 4, 1, (3, 2), (5, 7), (1, 1), (3, 2, 4, 4), (1, 1)),
    "one-channel": (2, 1, 1, 1, (12, 31), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "groups-2": (2, 3, 5, 2, (8, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "groups-4": (1, 4, 4, 4, (11, 6), (3, 2), (2, 1), (1, 0, 0, 1), (1, 1)),
    "depthwise": (2, 1, 1, 19, (15, 33), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "depthwise-stride": (2, 1, 1, 8, (14, 35), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    "depthwise-multiplier": (2, 1, 3, 5, (10, 18), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "crop": (2, 3, 5, 1, (12, 14), (3, 3), (1, 1), (-2, -1, -1, 1), (1, 1)),
    "crop-stride": (2, 3, 5, 1, (12, 14), (3, 3), (3, 2), (-2, -1, 1, -3), (1, 1)),
    "dilation": (2, 4, 6, 1, (15, 17), (3, 3), (1, 1), (2, 2, 3, 3), (2, 3)),
    "dilation-stride": (2, 4, 6, 1, (15, 17), (3, 3), (2, 3), (2, 1, 0, 3), (2, 3)),
    "stride-above-kernel": (2, 3, 4, 1, (11, 13), (2, 2), (4, 3), (0, 1, 1, 0), (1, 1)),
    "first-layer": (1, 3, 24, 1, (33, 35), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    "whole-input": (7, 6, 20, 1, (5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise": (3, 40, 50, 1, (7, 7), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-groups": (2, 9, 40, 3, (5, 7), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-fewer": (2, 50, 6, 2, (5, 7), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-stride": (2, 20, 18, 1, (9, 10), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "deep": (1, 300, 10, 1, (4, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "wide-padding": (1, 2, 3, 1, (3, 4), (2, 2), (1, 1), (6, 0, 0, 7), (1, 1)),
    "outputs-of-padding-only": (5, 3, 9, 1, (3, 2), (2, 1), (1, 1), (4, 4, 5, 5), (1, 1)),
    "dilation-one-row": (2, 4, 4, 1, (8, 32), (3, 2), (1, 2), (-1, 0, 0, 0), (3, 1)),
    # Rows of a sweep and more, which end within a vector; of few channels out, padded and not, and of a row at its end.
    "wide": (2, 3, 11, 1, (5, 103), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "wide-unpadded": (2, 3, 11, 1, (6, 121), (3, 3), (2, 1), (0, 0, 0, 0), (1, 1)),
    "wide-stride": (2, 2, 19, 1, (7, 203), (3, 5), (1, 2), (1, 1, 2, 0), (1, 1)),
    "wide-one-row": (1, 5, 1, 1, (3, 131), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "wide-pointwise": (2, 21, 37, 1, (13, 83), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "longer-than-a-box": (1, 70, 9, 1, (4099,), (2,), (1,), (0, 0), (1,)),
    # Lanes along the images: of three vectors of them and a part of one, with padding that some rows do not see; phases
    # that end before the last cell; rows that are tasks of their own, and planes that are cropped.
    "images": (53, 3, 11, 1, (6, 5), (3, 3), (1, 1), (1, 1, 2, 0), (1, 1)),
    "images-stride": (35, 2, 5, 1, (9, 7), (3, 4), (2, 3), (1, 2, 0, 1), (1, 1)),
    "images-groups": (17, 3, 4, 2, (7, 6), (2, 3), (1, 2), (0, 1, 1, 1), (2, 1)),
    "images-crop": (33, 2, 3, 1, (9, 8), (2, 3), (3, 1), (-2, 4, -1, -2), (1, 2)),
    "images-large": (16, 9, 10, 1, (21, 33), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "1d-images": (40, 4, 5, 1, (19,), (5,), (2,), (2, 3), (1,)),
    "1d": (2, 5, 7, 1, (130,), (3,), (1,), (1, 1), (1,)),
    "1d-dilated-causal": (2, 8, 16, 1, (200,), (2,), (1,), (16, 0), (16,)),
    "1d-upsampling": (2, 6, 5, 1, (96,), (16,), (8,), (4, 4), (1,)),
    "3d": (1, 3, 5, 1, (5, 6, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
    "3d-crop": (4, 10, 6, 1, (9, 11, 27), (1, 1, 3), (1, 2, 1), (-1, -1, 2, 3, 2, 4), (1, 2, 1)),
    "3d-stride": (2, 3, 4, 1, (5, 6, 9), (2, 3, 3), (1, 2, 2), (0, 1, 1, 0, 1, 1), (2, 1, 1)),
    # Dots whose rows are read in place, and whose tile is the input itself; taps that are products of matrices.
    "long-rows": (2, 3, 9, 1, (5, 117), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "long-rows-of-vectors": (1, 2, 3, 2, (9, 128), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "raw-rows": (3, 2, 6, 1, (37, 41), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "time": (2, 20, 18, 1, (5, 10, 12), (3, 1, 1), (1, 1, 1), (1, 1, 0, 0, 0, 0), (1, 1, 1)),
    "column": (2, 9, 5, 2, (8, 100), (3, 1), (1, 1), (2, 1, 0, 0), (2, 1)),
    "column-crop": (1, 7, 20, 1, (9, 100), (2, 1), (1, 1), (-2, 3, 0, 0), (1, 1)),
    # Several boxes, of which those at the ends see padding and the others are read in place.
    "long-row": (1, 5, 20, 1, (2500,), (3,), (1,), (1, 1), (2,)),
    "large-planes": (1, 3, 18, 1, (4, 30, 40), (3, 1, 1), (1, 1, 1), (1, 1, 0, 0, 0, 0), (1, 1, 1)),
    # Pixels of two pairs of channels, and of one and a half.
    "pixels-of-3": (2, 3, 20, 1, (9, 37), (3, 3), (1, 1), (1, 1, 0, 2), (1, 1)),
    "pixels-of-4": (1, 4, 20, 1, (11, 29), (4, 3), (2, 2), (2, 1, 2, 1), (1, 1)),
    # Transposed, phases that see the same inputs: all of them, runs of 4, 3 and 9, and planes too.
    "2x2-phases": (2, 6, 10, 1, (8, 12), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    "2x2-phases-of-long-rows": (1, 3, 9, 1, (4, 150), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    "runs-of-phases": (2, 5, 7, 1, (12, 16), (8, 8), (4, 4), (2, 2, 2, 2), (1, 1)),
    "3-phases": (1, 30, 40, 2, (36,), (3,), (3,), (0, 0), (1,)),
    "9-phases": (1, 20, 3, 1, (2, 36), (2, 9), (1, 9), (0, 0, 0, 0), (1, 1)),
    "2x2x2-phases": (1, 5, 9, 1, (4, 6, 8), (2, 2, 2), (2, 2, 2), (0, 0, 0, 0, 0, 0), (1, 1, 1)),
    # Few rows of a single tap, read in place: whole runs, and runs whose rest is less than a vector, which are not.
    "few-rows": (2, 3, 65, 1, (50, 50), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "few-rows-short-rest": (4, 3, 240, 1, (27, 27), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "one-row": (1, 1, 40, 2, (600,), (1,), (1,), (0, 0), (1,)),
    # Transposed, phases of one tap each and of different sizes that see one tile; boxes that one phase has more of.
    "3x3-phases-of-one-tap": (2, 5, 70, 1, (29, 28), (3, 3), (3, 3), (0, 0, 0, 0), (2, 2)),
    "phases-of-odd-sizes": (3, 6, 9, 2, (15, 33), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "phases-and-rest": (1, 4, 300, 1, (61,), (2,), (4,), (0, 0), (1,)),
    # What pairs of outputs can be made of, for the weight's gradient in bfloat16: images, rows, planes, half rows; an
    # odd one out; or nothing. "one-channel" and others have odd numbers of channels.
    "4-images": (4, 3, 20, 1, (7, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3-images-10-rows": (3, 4, 6, 1, (20, 7), (3, 3), (2, 1), (1, 1, 2, 1), (1, 1)),
    "1-image-7-rows": (1, 4, 18, 1, (7, 35), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "1-image-6-rows": (1, 5, 3, 2, (12, 35), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "1-image-4-planes": (1, 3, 5, 1, (4, 3, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
    "1-image-64-columns": (1, 5, 7, 1, (64,), (3,), (1,), (1, 1), (1,)),
    "1-image-38-columns": (1, 5, 20, 1, (75,), (4,), (2,), (3, 1), (1,)),
    "1-image-37-columns": (1, 5, 7, 1, (37,), (3,), (1,), (1, 1), (1,)),
}


def tensors(case, dtype=torch.float32, largest=3):
    n, c, k, groups, size, kernel, stride, padding, dilation = case
    x = integers((n, c * groups, *size), 1, dtype, largest)
    w = integers((k * groups, c, *kernel), 2, dtype, largest)
    return x, w, (stride, padding, dilation, groups)


@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_gives_the_plain_loops_integers(name):
    x, w, geometry = tensors(CASES[name])
    expected = torch.from_numpy(plain_conv(x.double().numpy(), w.double().numpy(), *geometry)).float()
    y = integers(expected.shape, 3)
    # The adjoints by their definition: the derivatives of <y, C x>, by the plain kernels that the line above checks.
    assert torch.equal(by("reference", "conv", x, w, *geometry), expected)
    dx = by("reference", "conv_transpose", y, w, x.shape[2:], *geometry)
    dw = by("reference", "conv_weight", x, y, w.shape[2:], *geometry)
    assert (expected * y).sum() == (dx * x).sum() == (dw * w).sum()
    for algorithm in GATHERS:
        assert torch.equal(by(algorithm, "conv", x, w, *geometry), expected), algorithm
        assert torch.equal(by(algorithm, "conv_transpose", y, w, x.shape[2:], *geometry), dx), algorithm
    for algorithm in GRADIENTS:
        assert torch.equal(by(algorithm, "conv_weight", x, y, w.shape[2:], *geometry), dw), algorithm


# C, K, groups, input, kernel, stride, padding, dilation: of every family, and of every way to pack weights.
SLICED = {
    "outer": (24, 32, 1, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "phases": (16, 24, 1, (13, 15), (4, 4), (2, 2), (1, 1, 1, 1), (1, 1)),
    "merged-phases": (6, 20, 1, (12, 16), (8, 8), (4, 4), (2, 2, 2, 2), (1, 1)),
    "stride-above-kernel": (8, 20, 1, (14, 17), (2, 3), (4, 4), (0, 0, 0, 0), (1, 1)),
    "dilated-rows": (8, 16, 1, (12, 31), (1, 5), (2, 2), (0, 0, 2, 2), (1, 2)),
    "stored-directly": (3, 20, 1, (7, 67), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "pointwise": (40, 48, 1, (9, 11), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "one-pixel": (33, 40, 1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "whole-input": (6, 20, 1, (5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "groups": (12, 18, 3, (11, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "small-groups": (16, 16, 4, (11, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "depthwise": (20, 20, 20, (15, 33), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "dot": (5, 2, 1, (9, 35), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["offset", "end"])
@pytest.mark.parametrize("name", SLICED)
def test_weights_may_be_a_part_of_a_tensor(name, where, dtype):
    c, k, groups, size, kernel, *geometry = SLICED[name]
    x = integers((2, c, *size), 1, dtype)
    w = integers((k, c // groups, *kernel), 2, dtype)
    # Whatever stands beside the weights must not be seen: NaN would be, were it multiplied by 0 even.
    before = 5
    memory = torch.full((before + w.numel() + (0 if where == "end" else 7),), float("nan"), dtype=dtype)
    part = memory[before : before + w.numel()].view_as(w)
    part.copy_(w)
    assert part.storage_offset() == before
    y = by("auto", "conv", x, w, *geometry, groups)
    gradient = integers(y.shape, 3, dtype)
    for algorithm in ("auto", *GATHERS[:-1]):
        for weights in (w, part):
            assert torch.equal(by(algorithm, "conv", x, weights, *geometry, groups), y)
            dx = by(algorithm, "conv_transpose", gradient, weights, size, *geometry, groups)
            assert torch.equal(dx, by("reference", "conv_transpose", gradient, w, size, *geometry, groups))
    # What the weights are of the transposed convolution's derivative, the images are here: parts as well.
    images = torch.full((before + x.numel(),), float("nan"), dtype=dtype)[before:].view_as(x).copy_(x)
    gradients = torch.full((before + gradient.numel(),), float("nan"), dtype=dtype)[before:].view_as(gradient)
    gradients.copy_(gradient)
    dw = by("reference", "conv_weight", x, gradient, kernel, *geometry, groups)
    for algorithm in GRADIENTS:
        assert torch.equal(by(algorithm, "conv_weight", images, gradients, kernel, *geometry, groups), dw)
    assert memory.isnan().sum() == memory.numel() - w.numel()  # nor written


def pixels(t, before, beside):
    """`t` in channels_last, `before` numbers from where memory begins, `beside` others between pixels; all NaN."""
    n, c, *size = t.shape
    count = n * size[0] * size[1]
    memory = torch.full((before + count * (c + beside),), float("nan"), dtype=t.dtype)
    part = memory[before:].view(n, *size, c + beside)[..., :c].permute(0, 3, 1, 2)
    return part.copy_(t)


# Channels that are neighbours in memory, and whose pairs are words there or not: of even or odd numbers, from even or
# odd places on.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("before", "beside"), [(0, 0), (1, 0), (0, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("name", SLICED)
def test_pixels_may_be_parts_of_a_tensor(name, before, beside, dtype):
    c, k, groups, size, kernel, *geometry = SLICED[name]
    for channels, rows in ((c, k), (c + groups, k + groups)):
        x = integers((2, channels, *size), 1, dtype)
        w = integers((rows, channels // groups, *kernel), 2, dtype)
        y = by("reference", "conv", x, w, *geometry, groups)
        gradient = integers(y.shape, 3, dtype)
        dx = by("reference", "conv_transpose", gradient, w, size, *geometry, groups)
        dw = by("reference", "conv_weight", x, gradient, kernel, *geometry, groups)
        x, gradient = pixels(x, before, beside), pixels(gradient, before, beside)
        for weights in (w, pixels(w, before, beside)):
            for algorithm in GATHERS:
                assert torch.equal(by(algorithm, "conv", x, weights, *geometry, groups), y), algorithm
                got = by(algorithm, "conv_transpose", gradient, weights, size, *geometry, groups)
                assert torch.equal(got, dx), algorithm
        for algorithm in GRADIENTS:
            assert torch.equal(by(algorithm, "conv_weight", x, gradient, kernel, *geometry, groups), dw), algorithm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case[7][::2] == case[7][1::2] and min(case[7]) >= 0]
)
def test_a_bias_is_added_in_the_precision_of_the_sums(name, dtype):
    *_, stride, padding, dilation = CASES[name]
    x, w, geometry = tensors(CASES[name], torch.float64, largest=9)  # sums that bfloat16 must round
    axes, groups = x.dim() - 2, geometry[-1]
    y = OPS.conv(x, w, *geometry)
    conv, conv_transpose = getattr(tc.functional, f"conv{axes}d"), getattr(tc.functional, f"conv_transpose{axes}d")
    output_padding = [
        i - ((o - 1) * s + (k - 1) * d + 1 - 2 * p)
        for i, o, k, s, d, p in zip(x.shape[2:], y.shape[2:], w.shape[2:], stride, dilation, padding[::2], strict=True)
    ]
    small = integers(y.shape, 3, torch.float64, largest=9)
    for algorithm in ("reference", *GATHERS, "winograd"):
        tolerance = {"rtol": 1e-4, "atol": 1e-2} if algorithm == "winograd" else {"rtol": 0, "atol": 0}
        tolerance["rtol"] += torch.finfo(dtype).eps if algorithm == "winograd" else 0
        with _ops.forced_algorithm(algorithm), backends.flags(winograd=False):
            bias = integers(y.shape[1:2], 4, torch.float64, largest=100)
            got = conv(x.to(dtype), w.to(dtype), bias.to(dtype), stride, padding[::2], dilation, groups)
            expected = y + bias.view(-1, *(1,) * axes)
            torch.testing.assert_close(got, expected.to(dtype), **tolerance, msg=lambda m: f"{algorithm}: {m}")  # noqa: B023
            bias = integers(x.shape[1:2], 5, torch.float64, largest=100)
            got = conv_transpose(
                small.to(dtype), w.to(dtype), bias.to(dtype), stride, padding[::2], output_padding, groups, dilation
            )
            expected = OPS.conv_transpose(small, w, x.shape[2:], *geometry) + bias.view(-1, *(1,) * axes)
            torch.testing.assert_close(got, expected.to(dtype), **tolerance, msg=lambda m: f"{algorithm}: {m}")  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CASES)
def test_other_dtypes(name, memory, dtype):
    x, w, geometry = tensors(CASES[name], dtype, largest=1)
    if x.dim() == 4:
        x, w = x.to(memory_format=memory), w.to(memory_format=memory)
    for operator, algorithms in (("conv", GATHERS), ("conv_transpose", GATHERS), ("conv_weight", GRADIENTS)):
        y = by("reference", "conv", x, w, *geometry).sign()
        args = {"conv": (x, w), "conv_transpose": (y, w, x.shape[2:]), "conv_weight": (x, y, w.shape[2:])}[operator]
        expected = by("reference", operator, *args, *geometry)
        for algorithm in algorithms:
            assert torch.equal(by(algorithm, operator, *args, *geometry), expected), (operator, algorithm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions_are_rounded_as_torch_rounds(dtype):
    generator = torch.Generator().manual_seed(0)
    exponent = torch.randint(-30, 20, (4096,), generator=generator)
    values = torch.ldexp(torch.randn(4096, generator=generator), exponent)
    values = torch.cat([values, torch.tensor([0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, float("inf")])])
    x = values.to(dtype)[None, None]
    w = torch.full((1, 1, 1), 1 / 3).to(dtype)
    expected = (x.float() * w.float()).to(dtype)
    assert torch.equal(by("outer", "conv", x, w, [1], [0, 0], [1], 1), expected)
    nan = torch.full((1, 1, 64), float("nan"), dtype=dtype)
    assert by("outer", "conv", nan, w, [1], [0, 0], [1], 1).isnan().all()


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


# What multiplies bfloat16 itself.
OF_BFLOAT16 = {"avx512_bf16": ("outer", "offset"), "avx512_amx": ("amx",)}.get(tc.build_info()["isa"], ())


@pytest.mark.skipif(not OF_BFLOAT16, reason="needs the processor's products of bfloat16")
@pytest.mark.parametrize("algorithm", OF_BFLOAT16)
@pytest.mark.parametrize("values", [(float("inf"),), (float("nan"),), (float("inf"), -float("inf")), (2.0**-130,)])
def test_products_of_bfloat16_are_torchs(values, algorithm):
    # Infinities, NaNs, and subnormal operands, which both take for zeros: 2^-130 * 2^10 could be told from 0.
    x, w = torch.ones(2, 33, 14, 14).bfloat16(), torch.full((32, 33, 3, 3), 2.0**10).bfloat16()
    if values[0] < 1:
        x = torch.zeros_like(x)
    for channel, value in enumerate(values):
        x[0, channel, 5, 5] = value
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    y = torch.nn.functional.conv2d(x, w, padding=1)
    assert same(by(algorithm, "conv", x, w, *geometry), y)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        x[:, :32], x, w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, True, False)
    )
    assert same(by(algorithm, "conv_transpose", x[:, :32], w, (14, 14), *geometry), dx)
    assert same(by("outer", "conv_weight", x, x[:, :32], (3, 3), *geometry), dw)


# N, C, K, input, kernel, stride: shares of the boxes; tasks of rows, and of columns; more of y than is packed at once;
# strides by vectors and by numbers; images that begin at half a pair; rows of single outputs; few channels, whose taps
# are a line in channels_last; and, there, half a vector of channels.
AMX_GRADIENTS = {
    "shares": (3, 7, 20, (60, 61), (3, 3), (1, 1)),
    "rows": (2, 150, 130, (14, 15), (3, 3), (1, 1)),
    "columns": (1, 20, 1043, (9, 40), (3, 2), (1, 1)),
    "more-than-is-packed": (2, 34, 512, (115, 113), (3, 3), (1, 1)),
    "stride-2": (2, 33, 40, (31, 150), (3, 5), (2, 2)),
    "stride-3": (2, 17, 40, (31, 99), (5, 5), (1, 3)),
    "stride-4": (2, 5, 40, (95, 203), (7, 11), (4, 4)),
    "odd-images": (21, 9, 35, (7, 7), (3, 3), (1, 1)),
    "one-column": (30, 9, 35, (9, 3), (3, 3), (1, 1)),
    "long-rows": (1, 4, 18, (3, 1201), (2, 3), (1, 1)),
    "lines": (2, 3, 70, (53, 61), (7, 7), (2, 2)),
    "many-lines": (2, 7, 20, (40, 45), (12, 11), (3, 1)),
    "half": (3, 48, 33, (19, 23), (3, 3), (1, 2)),
    "pixels": (3, 40, 130, (14, 13), (1, 1), (1, 1)),
    "pixels-swapped": (3, 130, 40, (14, 13), (1, 1), (1, 1)),
}


@pytest.mark.skipif(tc.build_info()["isa"] != "avx512_amx", reason="needs the processor's tiles")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", AMX_GRADIENTS)
def test_gradients_by_amx_are_integers_whatever_the_threads(name, memory_format):
    n, c, k, size, kernel, stride = AMX_GRADIENTS[name]
    padding = [v // 2 for v in kernel] if name != "one-column" else [0, 0]
    x = integers((n, c, *size), 1, torch.bfloat16).to(memory_format=memory_format)
    w = torch.zeros(k, c, *kernel, requires_grad=True)
    y = torch.nn.functional.conv2d(x.float(), w, None, stride, padding)
    grad = integers(y.shape, 2, torch.bfloat16).to(memory_format=memory_format)
    (expected,) = torch.autograd.grad(y, w, grad.float())
    geometry = (kernel, stride, [v for v in padding for _ in range(2)], (1, 1), 1)
    with _ops.forced_algorithm("amx"):
        how = tc.explain_kernel(
            x.shape,
            w.shape,
            stride,
            padding,
            operator="conv_weight",
            dtype=torch.bfloat16,
            memory_format=memory_format,
        )
    assert how.algorithm == "amx"
    assert how.scratch_bytes <= 64 * 2**20
    real = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(memory_format=memory_format)
    got = []
    for count in (1, 2, 5):
        with threads_of(count):
            assert torch.equal(by("amx", "conv_weight", x, grad, *geometry), expected.bfloat16()), count
            got.append(by("amx", "conv_weight", real, grad, *geometry))
    for other in got[1:]:  # what is rounded is summed in the same order
        assert torch.equal(got[0], other)


@pytest.mark.skipif(tc.build_info()["isa"] != "avx512_amx", reason="needs the processor's tiles")
@pytest.mark.parametrize("values", [(float("inf"),), (float("nan"),), (float("inf"), -float("inf")), (2.0**-130,)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_by_amx_are_torchs_of_what_is_not_finite(values, memory_format):
    x, y = torch.ones(2, 33, 14, 14).bfloat16(), torch.full((2, 32, 14, 14), 2.0**10).bfloat16()
    x, y = x.to(memory_format=memory_format), y.to(memory_format=memory_format)
    if values[0] < 1:
        x = torch.zeros_like(x)
    for channel, value in enumerate(values):
        x[0, channel, 0, 13] = value
    w = torch.zeros(32, 33, 3, 3).bfloat16()
    _, dw, _ = torch.ops.aten.convolution_backward(
        y, x, w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
    )
    assert same(by("amx", "conv_weight", x, y, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1), dw)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_geometry(data):
    draw = data.draw
    axes = draw(st.integers(1, 3))
    channels = st.integers(1, 9) | st.integers(30, 40)
    groups, c, k = draw(st.integers(1, 4)), draw(channels), draw(channels)
    kernel = [draw(st.integers(1, 4)) for _ in range(axes)]
    stride = [draw(st.integers(1, 4)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 3)) for _ in range(axes)]
    padding = [draw(st.integers(-1, 3)) for _ in range(2 * axes)]
    size = []
    for a in range(axes):
        least = max(1, (kernel[a] - 1) * dilation[a] + 1 - padding[2 * a] - padding[2 * a + 1])
        size.append(least + draw(st.integers(0, 12)))
    geometry = (stride, padding, dilation, groups)
    n = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    places = st.tuples(st.integers(0, 2), st.integers(0, 2)) if axes == 2 else st.none()

    def tensor(shape, seed):
        t, place = integers(shape, seed, dtype), draw(st.none() | places)
        return t if place is None else pixels(t, *place)

    x, w = tensor((n, c * groups, *size), 4), tensor((k * groups, c, *kernel), 5)
    expected = by("reference", "conv", x, w, *geometry)
    y = tensor(expected.shape, 6)
    dx = by("reference", "conv_transpose", y, w, size, *geometry)
    dw = by("reference", "conv_weight", x, y, kernel, *geometry)
    for algorithm in GATHERS:
        assert torch.equal(by(algorithm, "conv", x, w, *geometry), expected), algorithm
        assert torch.equal(by(algorithm, "conv_transpose", y, w, size, *geometry), dx), algorithm
    for algorithm in GRADIENTS:
        assert torch.equal(by(algorithm, "conv_weight", x, y, kernel, *geometry), dw), algorithm


# Many boxes, strips, blocks of rows and channel blocks, none of them whole.
LARGE = {
    "3x3": ((3, 70, 41, 37), (131, 70, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3x3-stride": ((2, 70, 41, 37), (90, 70, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "4x4-stride": ((5, 33, 30, 30), (65, 33, 4, 4), (2, 2), (1, 1, 1, 1), (1, 1)),
    "dilated": ((2, 140, 28, 28), (66, 140, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "first": ((2, 3, 101, 99), (20, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    "pointwise": ((3, 150, 29, 31), (100, 150, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-stride": ((3, 150, 29, 31), (100, 150, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    # Results in channels_last that go past the caches: whole lines, of one block of channels.
    "first-large": ((1, 3, 130, 131), (64, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "pointwise-large": ((2, 64, 100, 91), (20, 64, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-larger": ((1, 128, 150, 161), (8, 128, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),  # in half precision, too
    # Kernels wider than their stride, of few channels: by AMX in lines, in both memory formats; and of odd channels, of
    # which the last pair has one.
    "patches": ((2, 5, 76, 75), (9, 5, 16, 16), (8, 8), (4, 4, 4, 4), (1, 1)),
    "odd-channels": ((2, 35, 19, 23), (33, 35, 3, 3), (1, 2), (1, 1, 1, 1), (1, 1)),
    # Few outputs: the weight's gradient is of patches.
    "pointwise-few": ((3, 150, 15, 17), (203, 150, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "3x3-few": ((3, 70, 9, 8), (203, 70, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["3x3", "4x4-stride", "pointwise", "first-large", "pointwise-large", "pointwise-larger"]
)
def test_a_bias_of_neighbouring_channels_is_added_once(name, dtype):
    shape, weight_shape, stride, padding, dilation = LARGE[name]
    x = integers(shape, 1, dtype, largest=1).to(memory_format=torch.channels_last)
    w, bias = integers(weight_shape, 2, dtype, largest=1), integers(weight_shape[:1], 3, dtype, largest=100)
    geometry = (stride, padding[::2], dilation)
    with _ops.forced_algorithm("outer"), backends.flags(winograd=False):
        y = tc.functional.conv2d(x.double(), w.double(), None, *geometry)
        assert torch.equal(tc.functional.conv2d(x, w, bias, *geometry), (y + bias.view(-1, 1, 1)).to(dtype))
        y = y.sign()
        bias = integers(weight_shape[1:2], 3, dtype, largest=100)
        dx = tc.functional.conv_transpose2d(y, w.double(), None, *geometry[:2])
        got = tc.functional.conv_transpose2d(y.to(dtype), w, bias, *geometry[:2])
        assert torch.equal(got, (dx + bias.view(-1, 1, 1)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_layers_give_torchs_integers(name, memory_format, dtype):
    shape, weight_shape, stride, padding, dilation = LARGE[name]
    x = integers(shape, 1, dtype, largest=1).to(memory_format=memory_format)
    w = integers(weight_shape, 2, dtype, largest=1).to(memory_format=memory_format)
    geometry = (stride, padding, dilation, 1)
    arguments = (stride, padding[::2], dilation)
    y = torch.nn.functional.conv2d(x.double(), w.double(), None, *arguments)
    grad = integers(y.shape, 3, dtype, largest=1).to(memory_format=memory_format)
    mask = [True, True, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), w.double(), None, *arguments, False, [0, 0], 1, mask
    )
    for algorithm in ("outer", "offset", "amx"):
        assert torch.equal(by(algorithm, "conv", x, w, *geometry), y.to(dtype)), algorithm
        assert torch.equal(by(algorithm, "conv_transpose", grad, w, shape[2:], *geometry), dx.to(dtype)), algorithm
    for algorithm in ("outer", "amx"):
        assert torch.equal(by(algorithm, "conv_weight", x, grad, weight_shape[2:], *geometry), dw.to(dtype)), algorithm


# As CASES: kernels that meet few outputs, whose products are scattered.
FEW_OUTPUTS = {
    "square": (8, 128, 160, 1, (8, 8), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1)),
    "phases": (2, 30, 512, 1, (11, 8), (8, 6), (2, 1), (1, 2, 1, 0), (1, 1)),
    "dilation": (3, 40, 512, 1, (13, 13), (5, 6), (1, 2), (0, 1, 2, 0), (3, 2)),
    "groups": (2, 24, 260, 2, (9, 10), (8, 9), (1, 1), (0, 1, 0, 1), (1, 1)),
    "heavy": (3, 240, 512, 1, (9, 7), (3, 3), (1, 2), (0, 1, 2, 0), (3, 2)),
    "1d": (2, 40, 450, 1, (30,), (25,), (2,), (3, 1), (1,)),
    "3d": (1, 70, 512, 1, (4, 5, 6), (4, 4, 5), (2, 1, 2), (1, 1, 0, 1, 2, 2), (1, 1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FEW_OUTPUTS)
def test_products_that_are_scattered(name, dtype):
    x, w, geometry = tensors(FEW_OUTPUTS[name], dtype)
    y = by("reference", "conv", x, w, *geometry).sign()
    expected = by("reference", "conv_transpose", y, w, x.shape[2:], *geometry)
    with backends.flags(winograd=False):
        kernel = _ops.explain_kernel("conv_transpose", dtype, x.shape, w.shape, *geometry)
        assert kernel["multiplications"] == y.numel() * w[0].numel()  # gathers multiply for every input
        for layout in (y, y.transpose(1, -1).contiguous().transpose(1, -1)):
            assert torch.equal(by("auto", "conv_transpose", layout, w, x.shape[2:], *geometry), expected)
        w[3, 1, ..., 0] = float("inf")
        got, expected = (by(how, "conv_transpose", y, w, x.shape[2:], *geometry) for how in ("auto", "reference"))
        assert torch.equal(got.isfinite(), expected.isfinite())


def test_products_that_are_scattered_and_a_bias():
    y, w, bias = integers((2, 512, 2, 3), 1), integers((512, 40, 9, 9), 2), integers((40,), 3, largest=100)
    expected = torch.nn.functional.conv_transpose2d(y, w, bias, 2, 1)
    with backends.flags(winograd=False):
        kernel = tc.explain_kernel((2, 40, 9, 11), w.shape, stride=2, padding=1, operator="conv_transpose")
        assert kernel.multiplications == y.numel() * w[0].numel()
        assert torch.equal(tc.functional.conv_transpose2d(y, w, bias, 2, 1), expected)


# As CASES: more weights than 4 MB, and four times as many channels as outputs; by whatever is chosen.
HEAVY = {
    "phases": (2, 300, 512, 1, (11, 8), (4, 3), (2, 1), (1, 2, 1, 0), (1, 1)),
    "stride-above-kernel": (1, 600, 520, 1, (16, 19), (2, 2), (3, 4), (0, 0, -1, 2), (1, 1)),
    "dilation": (3, 240, 512, 1, (9, 7), (3, 3), (1, 2), (0, 1, 2, 0), (3, 2)),
    "groups": (2, 240, 260, 2, (7, 6), (3, 3), (1, 1), (0, 1, 0, 1), (1, 1)),
    "1d": (2, 500, 450, 1, (90,), (5,), (2,), (3, 1), (1,)),
    "3d": (1, 70, 512, 1, (4, 5, 6), (3, 2, 5), (2, 1, 2), (1, 1, 0, 1, 2, 2), (1, 1, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_weights_over_few_outputs(name, dtype):
    x, w, geometry = tensors(HEAVY[name], dtype)
    y = by("reference", "conv", x, w, *geometry).sign()
    expected = by("reference", "conv_transpose", y, w, x.shape[2:], *geometry)
    for layout in (y, y.transpose(1, -1).contiguous().transpose(1, -1)):
        assert torch.equal(by("auto", "conv_transpose", layout, w, x.shape[2:], *geometry), expected)
    w[3, 1, ..., 0] = float("inf")
    got, expected = (by(how, "conv_transpose", y, w, x.shape[2:], *geometry) for how in ("auto", "reference"))
    assert torch.equal(got.isfinite(), expected.isfinite())


def test_heavy_weights_and_a_bias():
    y, w, bias = integers((2, 512, 4, 5), 1), integers((512, 256, 3, 3), 2), integers((256,), 3, largest=100)
    expected = torch.nn.functional.conv_transpose2d(y, w, bias, 2, 1)
    assert torch.equal(tc.functional.conv_transpose2d(y, w, bias, 2, 1), expected)


def test_more_weights_than_are_packed_at_once():
    # Integers, and so exactly what torch gives.
    x, w = integers((24, 512, 4, 3), 1), integers((1536, 512, 3, 3), 2)
    y = torch.nn.functional.conv2d(x, w, padding=1)
    dx = torch.nn.functional.conv_transpose2d(y.sign(), w, padding=1)
    dw = torch.nn.grad.conv2d_weight(x, w.shape, y.sign(), padding=1)
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    for algorithm in ("outer", "offset"):
        assert torch.equal(by(algorithm, "conv", x, w, *geometry), y)
        assert torch.equal(by(algorithm, "conv_transpose", y.sign(), w, (4, 3), *geometry), dx)
    assert torch.equal(by("outer", "conv_weight", x, y.sign(), (3, 3), *geometry), dw)
    assert torch.allclose(by("winograd", "conv", x, w, *geometry), y, rtol=0, atol=1e-5 * 9 * 512 * 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("expanded", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_expanded_tensors(expanded, groups, dtype):
    # Elements that are nowhere apart, as all of the gradient of a sum are.
    size = [2, 8, 6, 12]
    x = integers([1 if i in expanded else n for i, n in enumerate(size)], 1, dtype, largest=1).expand(size)
    w = integers((16 if groups == 1 else 8, 8 // groups, 3, 3), 2, dtype, largest=1)
    for stride in (1, 2):
        geometry = ((stride, stride), (1, 1, 1, 1), (1, 1), groups)
        y = by("reference", "conv", x.contiguous(), w, *geometry)
        whole = [n * stride for n in size[2:]]
        back = (x, w[:8], whole, *geometry)  # as the gradient
        dx = by("reference", "conv_transpose", x.contiguous(), *back[1:])
        for algorithm in GATHERS:
            assert torch.equal(by(algorithm, "conv", x, w, *geometry), y), algorithm
            assert torch.equal(by(algorithm, "conv_transpose", *back), dx), algorithm
        gradient = y.sign()
        dw = by("reference", "conv_weight", x.contiguous(), gradient, (3, 3), *geometry)
        one = torch.ones((), dtype=dtype).expand(y.shape)
        ones = by("reference", "conv_weight", x.contiguous(), one.contiguous(), (3, 3), *geometry)
        for algorithm in GRADIENTS:
            assert torch.equal(by(algorithm, "conv_weight", x, gradient, (3, 3), *geometry), dw), algorithm
            assert torch.equal(by(algorithm, "conv_weight", x, one, (3, 3), *geometry), ones), algorithm


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 8, 8)], ids=str)
def test_empty_batches_and_channels(shape):
    for channels in (0, 3):
        x, w = torch.ones(shape[0], channels, *shape[2:]), torch.ones(4, channels, 3, 3)
        y = OPS.conv(x, w, [1, 1], [1] * 4, [1, 1], 1)
        assert y.shape == (shape[0], 4, 8, 8)
        assert channels or not y.any()
        assert OPS.conv_transpose(y, w, [8, 8], [1, 1], [1] * 4, [1, 1], 1).shape == x.shape
        assert OPS.conv_weight(x, y, [3, 3], [1, 1], [1] * 4, [1, 1], 1).shape == w.shape


# Infinities and NaNs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("algorithm", ["outer", "offset", "images"])
@pytest.mark.parametrize("size", [(9, 21), (2, 3)], ids=["few-weights", "few-outputs"])
def test_direct_kernels_confine_what_is_not_finite(size, algorithm, value):
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    x, w = torch.rand(2, 3, *size) + 1, torch.rand(20, 3, 3, 3) + 1
    x[0, 1, 0, -1] = value
    y = by(algorithm, "conv", x, w, *geometry)
    expected = by("reference", "conv", x, w, *geometry)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert (~y.isfinite()).sum() == 20 * 4  # a corner is seen by 2 x 2 outputs
    x[0, 1, 0, -1] = 1
    w[3, 1, 0, 0] = value  # meets padding, where there is no entry of C to multiply
    assert torch.equal(
        by(algorithm, "conv", x, w, *geometry).isfinite(), by("reference", "conv", x, w, *geometry).isfinite()
    )
    gradient = torch.rand(2, 20, *size)
    assert torch.equal(
        by(algorithm, "conv_transpose", gradient, w, size, *geometry).isfinite(),
        by("reference", "conv_transpose", gradient, w, size, *geometry).isfinite(),
    )


@pytest.mark.parametrize("algorithm", ["auto", "outer", "offset", "images", "winograd"])
@pytest.mark.parametrize(("stride", "cropped"), [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_a_transposed_convolution_without_padding_has_no_entries_beside_y(stride, cropped, algorithm):
    # Its windows reach over y's edges all the same.
    geometry = ((stride, stride), (cropped,) * 4, (1, 1), 1)
    size = (11 * stride + 3 - 2 * cropped,) * 2
    y, w = torch.rand(2, 16, 12, 12) + 1, torch.rand(16, 20, 3, 3) + 1
    for place in [(3, 2, 0, 1), (15, 19, 2, 2)]:
        spoiled = w.clone()
        spoiled[place] = float("inf")
        result, expected = (by(a, "conv_transpose", y, spoiled, size, *geometry) for a in (algorithm, "reference"))
        assert not expected.isnan().any()
        assert torch.equal(result.isfinite(), expected.isfinite())
        assert not result.isnan().any()


@pytest.mark.parametrize("algorithm", ["outer", "dot"])
def test_weight_gradient_confines_what_is_not_finite(algorithm):
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    for place, channels in itertools.product([(0, 0, 0, 0), (0, 0, 4, 20)], [1, 4]):
        x, y = torch.rand(2, 3, 5, 21) + 1, torch.rand(2, channels, 5, 21) + 1
        for tensor in (x, y):
            tensor[place] = float("inf")
            dw = by(algorithm, "conv_weight", x, y, (3, 3), *geometry)
            expected = by("reference", "conv_weight", x, y, (3, 3), *geometry)
            assert torch.equal(dw.isfinite(), expected.isfinite())
            tensor[place] = 1


# In which zeros that x and y do not have are multiplied by none, one, or both of them. N, C, K, input, kernel, stride,
# padding
WITH_AN_INFINITY = {
    "a-product": (2, 40, 70, (14, 13), (1, 1), (1, 1), (0, 0)),
    "swapped": (2, 70, 40, (40, 60), (1, 1), (1, 1), (0, 0)),
    "strided": (3, 33, 20, (15, 27), (1, 1), (2, 2), (0, 0)),
    "padded": (2, 33, 20, (9, 11), (1, 1), (1, 1), (1, 2)),
    "few-outputs": (2, 21, 35, (7, 6), (1, 1), (1, 1), (0, 0)),
    "few-outputs-of-taps": (1, 30, 50, (4, 5), (3, 2), (1, 1), (0, 0)),
    "few-outputs-of-padded-taps": (1, 30, 50, (3, 4), (3, 2), (1, 1), (1, 1)),
    "columns-of-taps": (2, 9, 12, (40, 130), (3, 1), (1, 1), (1, 0)),
    "long-rows": (1, 3, 20, (9, 213), (3, 3), (1, 1), (0, 0)),
    "short-rows": (2, 2, 20, (9, 21), (3, 3), (1, 1), (0, 0)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WITH_AN_INFINITY)
def test_an_infinity_is_in_the_gradients_of_what_meets_it_only(name, dtype, memory_format):
    n, c, k, size, kernel, stride, padding = WITH_AN_INFINITY[name]
    geometry = (kernel, stride, [p for p in padding for _ in range(2)], (1, 1), 1)
    x = (torch.rand(n, c, *size) + 1).to(dtype).to(memory_format=memory_format)
    y = torch.nn.functional.conv2d(x, torch.zeros(k, c, *kernel, dtype=dtype), None, stride, padding)
    y = (torch.rand(y.shape) + 1).to(dtype).to(memory_format=memory_format)
    for tensor in (x, y):
        for place in [(0, 0, 0, 0), (-1, -1, -1, -1), (0, 1, size[0] // 3, 1)]:
            kept = tensor[place].clone()
            tensor[place] = float("inf")
            got, expected = (by(a, "conv_weight", x, y, *geometry) for a in ("auto", "reference"))
            assert torch.equal(got.isnan(), expected.isnan())
            assert torch.equal(got.isinf(), expected.isinf())
            tensor[place] = kept


@pytest.mark.parametrize(
    ("channels", "outs", "size", "kernel"),
    [(1024, 1032, (7, 7), (1, 1)), (1040, 1030, (3, 5), (1, 1)), (256, 72, (2, 1), (8, 8)), (64, 64, (40, 50), (1, 1))],
    ids=["past-the-caches", "parts-of-lines", "taps", "in-parts"],
)
def test_the_gradient_of_few_outputs_is_of_integers(channels, outs, size, kernel):
    x = integers((1, channels, *(i + t - 1 for i, t in zip(size, kernel, strict=True))), 1)
    y = integers((1, outs, *size), 2)
    w = torch.zeros(outs, channels, *kernel, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.nn.functional.conv2d(x, w), w, y)
    for threads in (1, 2, 3):
        with threads_of(threads):
            assert torch.equal(by("outer", "conv_weight", x, y, kernel, (1, 1), [0] * 4, (1, 1), 1), expected)


# Threads and processes -----------------------------------------------------------------------------------------------

LAYERS = [
    ((2, 16, 30, 30), (24, 16, 3, 3), 1),
    ((3, 8, 17, 40), (8, 1, 5, 5), 8),
    ((4, 64, 28, 28), (64, 64, 3, 3), 1),
    ((2, 40, 12, 12), (130, 40, 1, 1), 1),
    ((32, 6, 14, 14), (16, 6, 5, 5), 1),
    ((1, 32, 28, 28), (136, 32, 1, 1), 1),
    ((1, 60, 37, 23), (90, 20, 3, 3), 3),
]


def all_passes(x, w, groups):
    padding = (w.shape[-1] // 2,) * 4
    geometry = ((1, 1), padding, (1, 1), groups)
    y = OPS.conv(x, w, *geometry)
    return (
        y,
        OPS.conv_transpose(y, w, x.shape[2:], *geometry),
        OPS.conv_weight(x, y, w.shape[2:], *geometry),
        OPS.conv_transpose(y[..., ::2, ::2].contiguous(), w, x.shape[2:], (2, 2), padding, (1, 1), groups),
    )


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_number_of_threads_does_not_change_a_bit(layer):
    x, w = torch.randn(layer[0]), torch.randn(layer[1])
    with threads_of(1):
        one = all_passes(x, w, layer[2])
    for count in (2, 3, 7):
        with threads_of(count):
            for a, b in zip(one, all_passes(x, w, layer[2]), strict=True):
                assert torch.equal(a, b)


def test_concurrent_calls():
    data = [(torch.randn(shape), torch.randn(kernel), groups) for shape, kernel, groups in LAYERS]
    expected = [all_passes(*arguments) for arguments in data]
    wrong = []

    def work(seed):
        for i in range(6):
            j = (seed + i) % len(data)
            if not all(torch.equal(a, b) for a, b in zip(all_passes(*data[j]), expected[j], strict=True)):
                wrong.append(j)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_use():
    # A forked child has no OpenMP pool: as torch's own DataLoader workers, it uses one thread.
    script = """
import os, torch, torch_convarith
torch.set_num_threads(2)
ops = torch.ops.torch_convarith
x, w = torch.randn(4, 16, 30, 30), torch.randn(32, 16, 3, 3)
y = ops.conv(x, w, [1, 1], [1] * 4, [1, 1], 1)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(ops.conv(x, w, [1, 1], [1] * 4, [1, 1], 1), y) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# Instruction sets ----------------------------------------------------------------------------------------------------

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx")


def run_with(isa, script):
    environment = {**os.environ, "TORCH_CONVARITH_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_an_unknown_instruction_set_is_refused():
    done = run_with("sse9", "import torch_convarith as tc; tc.build_info()")
    assert done.returncode != 0
    assert (
        "TORCH_CONVARITH_ISA must be one of baseline, avx2, avx512, avx512_bf16, avx512_amx, not 'sse9'" in done.stderr
    )


@pytest.mark.parametrize("isa", ISAS[: ISAS.index(tc.build_info()["isa"])])
def test_lower_instruction_sets(isa):
    tests = "every_algorithm or other_dtypes or rounded or bound or not_finite or does_not_change"
    script = f"""
import sys, pytest, torch_convarith
assert torch_convarith.build_info()["isa"] == {isa!r}
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", {__file__!r}, "-k", {tests!r}]))
"""
    done = run_with(isa, script)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# The choice ----------------------------------------------------------------------------------------------------------


def test_explain_kernel():
    with backends.flags(winograd=False):
        kernel = tc.explain_kernel((8, 64, 56, 56), (64, 64, 3, 3), stride=2, padding=1, operator="conv_transpose")
    assert (kernel.operator, kernel.phases, kernel.isa) == ("conv_transpose", 4, tc.build_info()["isa"])
    # No inserted zero is multiplied: 1, 2, 2 and 4 of the 9 taps in the four phases of 28 x 28 outputs each.
    assert kernel.multiplications == 8 * 64 * 64 * 9 * 28 * 28
    for operator in ("conv", "conv_transpose", "conv_weight"):  # nor any number that an odd one is paired with
        odd = tc.explain_kernel((3, 31, 9, 7), (5, 31, 1, 1), operator=operator, dtype=torch.bfloat16)
        assert odd.multiplications == 3 * 31 * 9 * 7 * 5
    assert tc.explain_kernel((1, 1, 4, 4), (1, 1, 3, 3)).algorithm == "reference"
    assert tc.explain_kernel((1, 32, 56, 56), (32, 32, 3, 3), dtype=torch.int32).algorithm == "reference"
    assert tc.explain_kernel((4, 64, 56, 56), (64, 1, 3, 3), groups=64, operator="conv_weight").algorithm == "depthwise"
    for operator in ("conv", "conv_transpose"):  # small planes of many images
        kernel = tc.explain_kernel((64, 6, 6, 6), (16, 6, 3, 3), operator=operator)
        pixels = 16 if operator == "conv" else 36
        assert (kernel.algorithm, kernel.multiplications) == ("images", 64 * 6 * 16 * 9 * pixels)
    layer = tc.Conv2dExplicit(16, 32, 5, padding=4, dilation=2)
    with backends.flags(winograd=False):
        assert tc.explain_kernel((2, 16, 20, 20), layer).algorithm in ("outer", "offset")
    half = torch.ones(32, 16, 5, 5, dtype=torch.bfloat16)
    assert tc.explain_kernel((2, 16, 20, 20), half) == tc.explain_kernel((2, 16, 20, 20), half.shape, dtype=half.dtype)
    with pytest.raises(ValueError, match="operator must be one of"):
        tc.explain_kernel((1, 1, 4, 4), (1, 1, 3, 3), operator="convolve")
    with pytest.raises(tc.GeometryError, match="does not fit"):
        tc.explain_kernel((1, 1, 2, 2), (1, 1, 3, 3))
    with pytest.raises(ValueError, match="no algorithm is called"):
        by("fastest", "conv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", ["conv", "conv_transpose", "conv_weight"])
def test_scratch_does_not_grow_with_the_batch(operator, dtype):
    for shape, weight, padding in [
        ((64, 56, 56), (64, 64, 3, 3), 1),
        ((512, 7, 7), (512, 512, 3, 3), 1),
        ((2048, 7, 7), (2048, 2048, 3, 3), 1),
        ((3, 224, 224), (64, 3, 7, 7), 3),
        ((256, 6, 6), (4096, 256, 6, 6), 0),
        ((6, 14, 14), (16, 6, 5, 5), 0),
    ]:
        scratch = [
            tc.explain_kernel((batch, *shape), weight, padding=padding, operator=operator, dtype=dtype).scratch_bytes
            for batch in (1, 32, 512, 2**15, 2**18)
        ]
        assert max(scratch) <= 64 * 2**20
        assert scratch[4] <= 1.1 * scratch[3]
