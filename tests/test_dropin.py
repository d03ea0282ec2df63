"""What a user of torch.nn.functional would notice if it were missing; and what torch has not."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from torch import nn

import torch_convarith
from torch_convarith import GeometryError, conv_matrix, functional
from torch_convarith.functional.conv import CONV_METHODS, CONV_TRANSPOSE_METHODS

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


# Memory formats


@pytest.mark.parametrize("which", ["input", "weight", "both"])
@pytest.mark.parametrize("method", ["pattern", "matrix"])
@pytest.mark.parametrize("name", ["conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"])
def test_channels_last_in_channels_last_out(name, method, which):
    axes = int(name[-2])
    x, w = torch.randn(2, 4, *(6, 5, 4)[:axes]), torch.randn(4, 4, *(3, 2, 3)[:axes])
    format = LAST[axes + 2]
    if which in ("input", "both"):
        x = x.to(memory_format=format)
    if which in ("weight", "both"):
        w = w.to(memory_format=format)
    results = []
    for f in (lambda *a: getattr(functional, name)(*a, method=method), getattr(nn.functional, name)):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = f(a, b)
        # not .backward(): what accumulates into a leaf takes the leaf's own format
        results.append((y.detach(), *torch.autograd.grad(y.sum(), (a, b))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert got.is_contiguous(memory_format=format)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (1, 3, 5, 1), (2, 3, 1, 1), (1, 1, 4, 4), (2, 3, 5, 5)], ids=str)
def test_ambiguous_formats_are_decided_as_torch_decides(shape):
    """Where sizes of 1 make strides ambiguous, eager and traced sizes and strides are torch's all the same."""
    for x in (torch.randn(shape), torch.randn(shape).to(memory_format=torch.channels_last)):
        for out in (1, 4):
            w = torch.randn(out, shape[1], 1, 1)
            for weight in (w, w.to(memory_format=torch.channels_last)):
                expected = nn.functional.conv2d(x, weight)
                got = functional.conv2d(x, weight)
                assert (
                    got.stride()
                    == torch.ops.torch_convarith.conv(
                        x.to("meta"), weight.to("meta"), [1, 1], [0, 0, 0, 0], [1, 1], 1
                    ).stride()
                )
                torch.testing.assert_close(got, expected)


# Views and strides


def test_strided_operands():
    base = torch.randn(3, 8, 9, 10, dtype=torch.float64)
    w = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    views = {
        "transposed": base.transpose(2, 3)[:, :4],
        "every second": base[::2, ::2, 1::2, ::3],
        "permuted": base.permute(2, 1, 3, 0)[:, :4, :, :],
        "expanded": base[:1, :1].expand(3, 4, 9, 10),
        "flipped": base[:, :4].flip(3),
    }
    for name, x in views.items():
        for weight in (w, w.transpose(2, 3), w.permute(1, 0, 3, 2)):
            for method in CONV_METHODS:
                got = functional.conv2d(x, weight, padding=2, method=method)
                torch.testing.assert_close(
                    got, nn.functional.conv2d(x, weight, padding=2), msg=lambda m, n=name: f"{n}: {m}"
                )
            for method in CONV_TRANSPOSE_METHODS:
                got = functional.conv_transpose2d(x, weight, stride=2, method=method)
                torch.testing.assert_close(got, nn.functional.conv_transpose2d(x, weight, stride=2))


def test_conjugate_and_negative_views():
    x = torch.randn(1, 2, 5, 5, dtype=torch.complex128)
    w = torch.randn(2, 2, 3, 3, dtype=torch.complex128)
    for a, b in itertools.product((x, x.conj()), (w, w.conj())):
        assert a.is_conj() == (a is not x)
        torch.testing.assert_close(functional.conv2d(a, b), nn.functional.conv2d(a, b))
        torch.testing.assert_close(functional.conv_transpose2d(a, b), nn.functional.conv_transpose2d(a, b))
    negative = x.conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(functional.conv2d(negative, w.real), nn.functional.conv2d(negative, w.real))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_gradients(dtype):
    x = torch.randn(1, 2, 4, 4, dtype=dtype, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, dtype=dtype, requires_grad=True)
    for name in ("conv2d", "conv_transpose2d"):
        got = torch.autograd.grad(getattr(functional, name)(x, w).abs().square().sum(), (x, w))
        expected = torch.autograd.grad(getattr(nn.functional, name)(x, w).abs().square().sum(), (x, w))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    if dtype == torch.complex128:
        for method in CONV_METHODS:
            assert torch.autograd.gradcheck(
                lambda x, w, m=method: functional.conv2d(x, w, method=m), (x, w), fast_mode=True
            )


# Dtypes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_wrap(dtype):
    """Exact modulo the dtype's size, which the oracle computes with NumPy's wrapping integers."""
    info = torch.iinfo(dtype)
    low = info.min if info.bits <= 32 else -(2**62)
    x = torch.randint(low, min(info.max, 2**62), (1, 2, 4, 4), dtype=dtype)
    w = torch.randint(low, min(info.max, 2**62), (2, 2, 3, 3), dtype=dtype)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(oracle.conv(x.numpy(), w.numpy(), (1, 1), ((1, 1),) * 2, (1, 1)))
    for method in CONV_METHODS:
        assert torch.equal(functional.conv2d(x, w, padding=1, method=method), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_summed_in_float32(dtype):
    """2048 + 1 + 1 + ... stays 2048 in float16 if every partial sum is rounded."""
    n = 1024
    x = torch.ones(1, n, 1, dtype=dtype)
    x[0, 0] = 2048
    w = torch.ones(1, n, 1, dtype=dtype)
    expected = torch.tensor(2048.0 + n - 1).to(dtype)
    for method in CONV_METHODS:
        assert functional.conv1d(x, w, method=method).item() == expected
    for method in CONV_TRANSPOSE_METHODS:
        assert functional.conv_transpose1d(x, w.transpose(0, 1), method=method).item() == expected
    long, one = torch.ones(1, 1, n, dtype=dtype), torch.zeros(1, 1, 1, dtype=dtype, requires_grad=True)
    long[0, 0, 0] = 2048
    functional.conv1d(long, one).backward(torch.ones_like(long))
    assert one.grad.item() == expected


@pytest.mark.parametrize("bias", [None, torch.ones(1)])
def test_unsupported_dtypes_are_refused(bias):
    with pytest.raises((RuntimeError, NotImplementedError), match="Bool"):
        functional.conv1d(torch.ones(1, 1, 3, dtype=torch.bool), torch.ones(1, 1, 3, dtype=torch.bool))


# Arguments


def test_numpy_integers_and_sizes_as_arguments():
    x, w = torch.randn(1, 2, 7, 7), torch.randn(4, 1, 3, 3)
    two = np.int64(2)
    got = functional.conv2d(x, w, None, two, [np.int32(1), np.int64(1)], np.uint8(1), two)
    assert torch.equal(got, functional.conv2d(x, w, None, 2, 1, 1, 2))
    assert torch.equal(
        functional.conv2d(x, w, stride=torch.Size((2, 1)), groups=2), functional.conv2d(x, w, stride=(2, 1), groups=2)
    )
    assert torch.equal(functional.conv2d(x, w, stride=[2], groups=2), functional.conv2d(x, w, stride=2, groups=2))
    layer = torch_convarith.Conv2dExplicit(np.int64(2), np.int64(4), np.int64(3))
    assert layer(x).shape == (1, 4, 5, 5)
    for wrong in (1.5, "1", None):
        with pytest.raises((TypeError, ValueError)):
            functional.conv2d(x, w, stride=wrong, groups=2)


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_empty_batches_have_zero_gradients(method):
    for name in ("conv2d", "conv_transpose2d"):
        if name == "conv2d" and method not in CONV_METHODS:
            continue
        x = torch.randn(0, 2, 5, 5, requires_grad=True)
        w, b = torch.randn(2, 2, 3, 3, requires_grad=True), torch.randn(2, requires_grad=True)
        y = getattr(functional, name)(x, w, b, method=method)
        expected = getattr(nn.functional, name)(x, w, b)
        assert y.shape == expected.shape
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert torch.equal(w.grad, torch.zeros_like(w))
        assert torch.equal(b.grad, torch.zeros_like(b))


# Beyond torch


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_asymmetric_padding(axes, mode):
    pads = ((2, 0), (0, 1), (1, 2))[:axes]
    layer = getattr(torch_convarith, f"Conv{axes}dExplicit")(2, 3, 3, stride=2, padding=pads, padding_mode=mode)
    x = torch.randn(2, 2, *(6, 5, 4)[:axes])
    flat = [side for pair in reversed(pads) for side in pair]
    padded = nn.functional.pad(x, flat, mode="constant" if mode == "zeros" else mode)
    expected = getattr(nn.functional, f"conv{axes}d")(padded, layer.weight, layer.bias, stride=2)
    torch.testing.assert_close(layer(x), expected)
    assert layer.geometry(x.shape[2:]).padding == pads
    torch.testing.assert_close(
        layer.matrix(x.shape[2:]).to_dense() @ x.flatten(1).T,
        (expected - layer.bias.view(-1, *(1,) * axes)).flatten(1).T,
    )
    assert f"padding={pads}" in repr(layer)


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_asymmetric_padding_of_transposes_crops(method):
    y, w = torch.randn(1, 2, 4, 5, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    whole = nn.functional.conv_transpose2d(y, w, stride=2)
    got = functional.conv_transpose2d(y, w, stride=2, padding=((1, 0), (2, 3)), method=method)
    torch.testing.assert_close(got, whole[:, :, 1:, 2:-3])
    layer = torch_convarith.ConvTranspose2dExplicit(2, 3, 3, stride=2, padding=((1, 0), (2, 3)), method=method).double()
    assert layer(y).shape == got.shape
    assert layer(y, output_size=[n + 1 for n in got.shape[2:]]).shape[2:] == tuple(n + 1 for n in got.shape[2:])


def tensorflow_same(size, kernel, stride, dilation):
    """By search: the least total padding that gives ceil(i / s) windows, the smaller half in front."""
    total = 0
    while len(oracle.windows(size, kernel, stride, total // 2, total - total // 2, dilation)) < -(-size // stride):
        total += 1
    return total // 2, total - total // 2


def test_strided_same_padding():
    from torch_convarith.geometry import strided_same_padding

    for size, kernel, stride, dilation in itertools.product(range(1, 9), range(1, 5), range(1, 5), (1, 2)):
        lo, hi = strided_same_padding(size, kernel, stride, dilation)
        assert (lo, hi) == tensorflow_same(size, kernel, stride, dilation)
        x, w = torch.randn(1, 1, size), torch.randn(1, 1, kernel)
        y = functional.conv1d(x, w, stride=stride, padding="same", dilation=dilation, extended=True)
        assert y.shape[2] == -(-size // stride)
        torch.testing.assert_close(
            y, nn.functional.conv1d(nn.functional.pad(x, (lo, hi)), w, stride=stride, dilation=dilation)
        )
        # and the transpose of that, which gives s times its input
        up = functional.conv_transpose1d(y, w, stride=stride, padding="same", dilation=dilation, extended=True)
        assert up.shape[2] == stride * y.shape[2]
        C = conv_matrix(w, up.shape[2], stride, (tensorflow_same(up.shape[2], kernel, stride, dilation),), dilation)
        torch.testing.assert_close(up.flatten(), C.to_dense().T @ y.flatten())


def test_same_padding_in_layers():
    layer = torch_convarith.Conv2dExplicit(1, 1, 3, stride=2, padding="same", padding_mode="circular", extended=True)
    assert layer(torch.randn(1, 1, 7, 8)).shape == (1, 1, 4, 4)
    up = torch_convarith.ConvTranspose2dExplicit(1, 1, 3, stride=2, padding="same", extended=True)
    assert up(torch.randn(1, 1, 4, 5)).shape == (1, 1, 8, 10)
    assert up.geometry((4, 5)).input_size == (8, 10)
    assert up(torch.randn(1, 1, 4, 5), output_size=(8, 10)).shape == (1, 1, 8, 10)
    with pytest.raises(ValueError, match="padding='same' gives an output of"):
        up(torch.randn(1, 1, 4, 5), output_size=(9, 10))
    with pytest.raises(GeometryError, match="already fixes the output"):
        functional.conv_transpose1d(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3),
                                    None, 2, "same", 1, extended=True)  # fmt: skip


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_of_transposes(mode, method):
    """C^T for the C that pads so: what C repeats, the transpose adds up."""
    w = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    layer = torch_convarith.ConvTranspose2dExplicit(
        2, 2, (3, 4), stride=2, padding=(1, 2), output_padding=(1, 0), groups=2, bias=False, padding_mode=mode,
        extended=True, method=method,
    ).double()  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(w)
    out = layer(y)
    dense = torch.from_numpy(oracle.matrix(w.numpy(), out.shape[2:], (2, 2), ((1, 1), (2, 2)), (1, 1), 2, mode))
    torch.testing.assert_close(out.flatten(), dense.T @ y.flatten())
    torch.testing.assert_close(layer.matrix((4, 4)).to_dense(), dense.T)
    assert torch.autograd.gradcheck(layer, y, fast_mode=True)


def test_circular_transposes_are_equivariant():
    """On a circle there is no edge: shifting the input by one shifts the output by the stride."""
    layer = torch_convarith.ConvTranspose1dExplicit(
        1, 1, 4, stride=2, padding=1, padding_mode="circular", extended=True, bias=False
    ).double()
    y = torch.randn(1, 1, 6, dtype=torch.float64)
    assert layer(y).shape[2] == 12
    torch.testing.assert_close(layer(y.roll(1, 2)), layer(y).roll(2, 2))


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_any_output_padding(method):
    """Beyond a < s: the transpose of the convolution whose padding at the end is a less, zeros once that is used up."""
    y, w = torch.randn(1, 2, 4, dtype=torch.float64), torch.randn(2, 1, 5, dtype=torch.float64)
    for stride, p, a in itertools.product((1, 2, 3), (0, 1, 2), range(7)):
        got = functional.conv_transpose1d(y, w, None, stride, p, a, extended=True, method=method)
        whole = nn.functional.conv_transpose1d(y, w, stride=stride)
        expected = nn.functional.pad(whole, (-p, a - p))
        torch.testing.assert_close(got, expected)
        assert got.shape[2] == stride * 3 + a + 5 - 2 * p
        if a >= stride:
            with pytest.raises(RuntimeError, match="output padding must be smaller than either stride or dilation"):
                functional.conv_transpose1d(y, w, None, stride, p, a, method=method)


def test_what_needs_extended_is_refused_without():
    y, w = torch.zeros(1, 1, 4), torch.zeros(1, 1, 3)
    with pytest.raises(RuntimeError, match="strided convolutions"):
        functional.conv1d(y, w, stride=2, padding="same")
    with pytest.raises(TypeError, match="unless extended=True"):
        functional.conv_transpose1d(y, w, padding="same")
    with pytest.raises(ValueError, match='Only "zeros" padding mode is supported'):
        functional.conv_transpose1d(y, w, padding_mode="circular")
    with pytest.raises(ValueError, match="strided convolutions"):
        torch_convarith.Conv1dExplicit(1, 1, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        torch_convarith.Conv1dExplicit(1, 1, 3, padding_mode="mirror", extended=True)
    with pytest.raises(RuntimeError, match="negative padding"):
        functional.conv1d(y, w, padding=((1, -1),))
    with pytest.raises(RuntimeError, match="negative padding"):
        torch_convarith.Conv1dExplicit(1, 1, 3, padding=((1, -1),))(y)
