import itertools

import numpy as np
import oracle_windows
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from windows_testing import distinct, geometries, prove_compilable, prove_differentiable, small_integers

import torch_convarith as tc
from torch_convarith import functional as C

# torch.func.jvp scripts its decompositions on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
few = settings(max_examples=40, deadline=None, derandomize=True)
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LOCAL = {1: tc.LocallyConnected1d, 2: tc.LocallyConnected2d, 3: tc.LocallyConnected3d}
LOCAL_TRANSPOSED = {
    1: tc.LocallyConnectedTranspose1d,
    2: tc.LocallyConnectedTranspose2d,
    3: tc.LocallyConnectedTranspose3d,
}


@given(geometries(limit_padding=False), st.integers(1, 2))
@few
def test_against_loops(geometry, groups):
    size, kernel, stride, padding, dilation, _ = geometry
    table, out = oracle_windows.windows(size, kernel, stride, padding, dilation)
    x, w = small_integers(2, 2 * groups, *size), small_integers(3 * groups, 2, *kernel, *out, seed=1)
    y = C.locally_connected(x, w, None, stride, padding, dilation, groups)
    taps = list(itertools.product(*(range(k) for k in kernel)))
    expected = np.zeros(y.shape)
    adjoint = np.zeros(x.shape)
    u = small_integers(*y.shape, seed=2)
    for (n, k), c, (o, places) in itertools.product(np.ndindex(*y.shape[:2]), range(2), table.items()):
        channel = k // 3 * 2 + c
        for tap, place in zip(taps, places, strict=True):
            if place is not None:
                value = w[(k, c, *tap, *o)].item()
                expected[(n, k, *o)] += value * x[(n, channel, *place)].item()
                adjoint[(n, channel, *place)] += value * u[(n, k, *o)].item()
    assert np.array_equal(y.numpy(), expected)
    back = C.locally_connected_transpose(u, w, size, None, stride, padding, dilation, groups)
    assert np.array_equal(back.numpy(), adjoint)
    assert torch.equal(C.locally_connected(x[0], w, None, stride, padding, dilation, groups), y[0])


@pytest.mark.parametrize("axes", CONVS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
def test_starts_as_its_convolution(axes, padding_mode):
    size = (6, 5, 4)[:axes]
    conv = CONVS[axes](4, 6, 3, 2, 1, groups=2, padding_mode=padding_mode, dtype=torch.float64)
    layer = LOCAL[axes].from_conv(conv, size)
    x = distinct(2, 4, *size)
    torch.testing.assert_close(layer(x), conv(x))
    m = layer.matrix(size)
    explicit = tc.conv_matrix(conv.weight, size, 2, 1, groups=2, padding_mode=padding_mode)
    torch.testing.assert_close(m.to_dense(), explicit.to_dense())
    torch.testing.assert_close(m @ x[0].flatten(), m.to_dense() @ x[0].flatten())
    u = distinct(m.shape[0])
    torch.testing.assert_close(m.T @ u, m.to_dense().t() @ u)
    with torch.no_grad():
        layer.weight.copy_(distinct(*layer.weight.shape))
    moved = layer.matrix()
    torch.testing.assert_close(moved.to_dense() @ x[0].flatten() + layer.bias.flatten(), layer(x)[0].flatten())
    moved.to_dense().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("axes", TRANSPOSED)
def test_transposed_starts_as_its_convolution(axes):
    size = (4, 3, 2)[:axes]
    conv = TRANSPOSED[axes](4, 6, 3, 2, 1, 1, groups=2, dtype=torch.float64)
    layer = LOCAL_TRANSPOSED[axes].from_conv(conv, size)
    x = distinct(2, 4, *size)
    torch.testing.assert_close(layer(x), conv(x))
    with torch.no_grad():
        layer.weight.copy_(distinct(*layer.weight.shape))
    m = layer.matrix(size)
    torch.testing.assert_close(m.to_dense() @ x[0].flatten() + layer.bias.flatten(), layer(x)[0].flatten())
    torch.testing.assert_close(m @ x[0].flatten(), m.to_dense() @ x[0].flatten())
    u = distinct(m.shape[0])
    torch.testing.assert_close(m.T @ u, m.to_dense().t() @ u)


def test_same_padding_and_no_bias():
    conv = nn.Conv2d(2, 3, 3, padding="same", bias=False, dtype=torch.float64)
    layer = tc.LocallyConnected2d.from_conv(conv, (5, 4))
    x = distinct(1, 2, 5, 4)
    assert layer.bias is None
    torch.testing.assert_close(layer(x), conv(x))
    assert "bias=False" in repr(layer)


def test_initialisation_is_a_convolutions():
    torch.manual_seed(0)
    layer, bound = tc.LocallyConnected2d(4, 6, 8, 3, groups=2), 1 / (2 * 9) ** 0.5
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    copy = tc.LocallyConnected2d(4, 6, 8, 3, groups=2)
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy.weight, layer.weight)


def test_arguments_are_checked():
    layer = tc.LocallyConnected2d(2, 3, (5, 5), 3)
    for bad, message in (
        (lambda: layer(torch.zeros(1, 2, 6, 5)), "relationship 15"),
        (lambda: layer(torch.zeros(1, 3, 5, 5)), "expect input of 2 channels"),
        (lambda: layer.matrix((4, 4)), "made for one input size"),
        (lambda: tc.LocallyConnected2d(3, 4, 5, 3, groups=2), "groups 2 must divide"),
        (lambda: tc.LocallyConnected2d(3, 4, (5,), 3), "1 entries for 2 axes"),
        (lambda: tc.LocallyConnected2d(1, 1, 2, 3), "does not fit input 2"),
        (lambda: C.locally_connected(torch.zeros(1, 1, 4), torch.zeros(1, 1, 3)), "expected a weight"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            bad()
    with pytest.raises(TypeError, match="takes a Conv2d"):
        tc.LocallyConnected2d.from_conv(nn.Conv1d(1, 1, 1), 3)


@pytest.mark.parametrize("transposed", [False, True])
def test_autocast_is_a_convolutions(transposed):
    conv = nn.ConvTranspose2d(2, 3, 3) if transposed else nn.Conv2d(2, 3, 3)
    layer = (LOCAL_TRANSPOSED if transposed else LOCAL)[2].from_conv(conv, (5, 4))
    x = distinct(1, 2, 5, 4).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), conv(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-4)  # bfloat16 keeps 8 bits
    y.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):  # float64 stays, as in a convolution
        assert layer.double()(x.double()).dtype == torch.float64


def test_dtypes_must_agree():
    layer = tc.LocallyConnected2d(2, 3, 5, 3)
    with pytest.raises(RuntimeError, match=r"input of torch\.float64 and weight of torch\.float32 should be the same"):
        layer(torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"input of torch\.float64 and bias of torch\.float32 should be the same"):
        C.locally_connected(torch.zeros(1, 2, 5, 5, dtype=torch.float64), layer.weight.double(), layer.bias)
    with pytest.raises(RuntimeError, match="should be the same dtype"):
        C.locally_connected_transpose(torch.zeros(1, 3, 3, 3).double(), layer.weight, (5, 5))


# vmap allows no random numbers inside.
W, V, U = distinct(4, 1, 2, 2, 2, 4, seed=4), distinct(2, 3, 2, 2, 4, 5, seed=5), distinct(3, 1, 8)
DIFFERENTIABLE = {
    "input": lambda x: C.locally_connected(x, W, None, (2, 1), ((1, 0), (0, 0)), 1, 2),
    "weight": lambda w: C.locally_connected(U, w.reshape(4, 1, 2, 5)[:3, ..., :4], None, 2),
    "transpose": lambda y: C.locally_connected_transpose(y, V, (5, 6)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name):
    prove_differentiable(DIFFERENTIABLE[name], distinct(1, 2, 4, 5))


def test_compile():
    layer = tc.LocallyConnected2d(2, 3, (5, 6), 3).double()
    prove_compilable(layer, distinct(2, 2, 5, 6), dynamic=False)
