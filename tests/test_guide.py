"""The numbers of the guide and of the networks it is taught with, reproduced."""

import itertools
import math

import pytest
import torch
from torch import nn

from torch_convarith import Conv2dExplicit, Geometry, Pattern, conv_matrix, functional

X = torch.tensor([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
W = torch.tensor([[0, 1, 2], [2, 2, 0], [0, 1, 2]])
METHODS = ["pattern", "matrix"]


def conv(x, w, method="pattern", **options):
    return functional.conv2d(x[None], w[None, None], method=method, **options)[0]


@pytest.mark.parametrize("method", METHODS)
def test_discrete_convolution(method):
    assert conv(X, W, method).tolist() == [[12, 12, 17], [10, 17, 19], [9, 6, 14]]


@pytest.mark.parametrize("method", METHODS)
def test_strided_and_padded_convolution(method):
    # The guide's figure prints 6 14 17 / 14 12 12 / 8 10 17, which its own input and kernel do not give.
    assert conv(X, W, method, stride=2, padding=1).tolist() == [[6, 17, 3], [8, 17, 13], [6, 4, 4]]


def test_gradient_with_respect_to_the_kernel():
    w = W.double().requires_grad_()
    conv(X.double(), w).sum().backward()
    assert w.grad.tolist() == [[15, 15, 15], [9, 11, 16], [10, 7, 12]]


def windows(x, kernel):
    """(3, 3, 9): what each output of a 3 x 3 pooling sees, read from the pattern."""
    pattern = Pattern(Geometry.of(tuple(x.shape), kernel))
    return x.flatten()[pattern.input].reshape(*pattern.geometry.output_size, -1)


def test_average_pooling():
    expected = torch.tensor([[15, 15, 15], [9, 11, 16], [10, 7, 12]]) / 9
    assert torch.equal(windows(X, 3).sum(-1) / 9, expected)
    assert (
        expected.mul(10).round().div(10).tolist()
        == torch.tensor([[1.7, 1.7, 1.7], [1.0, 1.2, 1.8], [1.1, 0.8, 1.3]]).tolist()
    )
    mean = conv(X.double(), torch.full((3, 3), 1 / 9, dtype=torch.float64))  # C with fixed weights
    torch.testing.assert_close(mean, expected.double())


def test_max_and_l2_pooling():
    assert windows(X, 3).amax(-1).tolist() == [[3, 3, 3], [3, 3, 3], [3, 2, 3]]
    l2 = windows(X.double(), 3).square().sum(-1).sqrt()
    assert [round(v, 4) for v in l2[0].tolist()] == [6.0828, 5.7446, 5.7446]


def test_the_matrix_of_section_4_1():
    C = conv_matrix(W.double()[None, None], (4, 4))
    assert C.shape == (4, 16)
    assert C.nnz == 36
    assert int((C.to_dense() != 0).sum()) == 24  # weights that happen to be 0 are entries all the same
    singular = torch.linalg.svdvals(C.to_dense())
    torch.testing.assert_close(singular, torch.tensor([6, 4, 2 * 3**0.5, 2 * 2**0.5], dtype=torch.float64))
    row = "w00 w01 w02   0 w10 w11 w12   0 w20 w21 w22   0"
    lines = str(C.symbolic()).splitlines()
    assert lines[0] == row + "   0   0   0   0"
    assert lines[1] == "  0 " + row + "   0   0   0"
    assert lines[2] == "  0   0   0   0 " + row
    assert lines[3].startswith("  0   0   0   0   0 w00 w01 w02   0 w10 w11 w12   0 w20 w21 w22")


def test_spectrum_of_the_same_convolution():
    w = W.double()[None, None]
    singular = torch.linalg.svdvals(conv_matrix(w, (5, 5), padding=1).to_dense())
    assert singular.numel() == 25
    assert round(singular[0].item(), 6) == 8.489017
    assert round(singular[-1].item(), 6) == 0.185811
    assert round((singular[0] / singular[-1]).item(), 3) == 45.686
    circular = conv_matrix(w, (5, 5), padding=1, padding_mode="circular").to_dense()
    assert torch.linalg.svdvals(circular)[0].item() == pytest.approx(10, abs=1e-12)
    assert round(w.norm().item(), 3) == 4.243  # the kernel's norm is not the operator's


def test_multi_channel_kernel():
    layer = Conv2dExplicit(2, 3, 3)
    assert layer.weight.shape == (3, 2, 3, 3)
    assert math.prod(layer.weight.shape[:2]) == 6  # two-dimensional kernels


def test_one_large_filter_sees_what_two_small_ones_see():
    large = conv_matrix(torch.ones(1, 1, 5, 5), (9, 9)).to_dense() != 0
    first = conv_matrix(torch.ones(1, 1, 3, 3), (9, 9)).to_dense()
    second = conv_matrix(torch.ones(1, 1, 3, 3), (7, 7)).to_dense()
    assert torch.equal((second @ first) != 0, large)


def count(*layers):
    return sum(p.numel() for layer in layers for p in layer.parameters())


def test_shared_weights_against_full_connection():
    with torch.device("meta"):
        assert count(nn.Linear(28 * 28, 24 * 24)) == 452160
        assert count(Conv2dExplicit(1, 1, 5)) == 26
        assert count(Conv2dExplicit(1, 20, 5)) == 520
        assert count(nn.Linear(784, 30)) == 23550


# name -> layer, input size, output size, parameters
LENET5 = {
    "C1": ((1, 6, 5), {}, 32, 28, 156),
    "C3": ((6, 16, 5), {}, 14, 10, 2416),
    "C5": ((16, 120, 5), {}, 5, 1, 48120),  # the source prints i = 10
}
ALEXNET = {
    "conv1": ((3, 96, 11), {"stride": 4}, 227, 55, 34944),  # 224, as printed, gives 54
    "conv2": ((96, 256, 5), {"padding": 2, "groups": 2}, 27, 27, 307456),  # the source prints i = 55
    "conv3": ((256, 384, 3), {"padding": 1}, 13, 13, 885120),
    "conv4": ((384, 384, 3), {"padding": 1, "groups": 2}, 13, 13, 663936),
    "conv5": ((384, 256, 3), {"padding": 1, "groups": 2}, 13, 13, 442624),
}


@pytest.mark.parametrize(
    ("arguments", "options", "input", "output", "parameters"), [*LENET5.values(), *ALEXNET.values()]
)
def test_layers_of_lenet5_and_alexnet(arguments, options, input, output, parameters):
    layer = Conv2dExplicit(*arguments, **options, device="meta")
    assert layer.geometry((input, input)).output_size == (output, output)
    assert layer(torch.empty(1, arguments[0], input, input, device="meta")).shape[2:] == (output, output)
    assert count(layer) == parameters


def test_parameters_of_whole_networks():
    def convolutions(table):
        return sum(row[4] for row in table.values())

    with torch.device("meta"):
        assert convolutions(LENET5) + count(nn.Linear(120, 84), nn.Linear(84, 10)) == 61706
        assert count(nn.Linear(120, 84)) == 10164
        assert count(nn.Linear(84, 10)) == 850
        dense = (nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000))
        assert [count(layer) for layer in dense] == [37752832, 16781312, 4097000]
        assert convolutions(ALEXNET) + count(*dense) == 60965224


# The MNIST networks of Nielsen's book: convolutions, then fully connected widths
MNIST = {
    "baseline": ([], [784, 100, 10], 79510),
    "v1": ([(1, 20)], [20 * 12 * 12, 100, 10], 289630),
    "v2 to v4": ([(1, 20), (20, 40)], [40 * 4 * 4, 100, 10], 85670),
    "v5": ([(1, 20), (20, 40)], [40 * 4 * 4, 100, 100, 10], 95770),
    "v6": ([(1, 20), (20, 40)], [40 * 4 * 4, 1000, 1000, 10], 1672570),
}


@pytest.mark.parametrize(("channels", "widths", "parameters"), MNIST.values(), ids=MNIST)
def test_mnist_networks(channels, widths, parameters):
    with torch.device("meta"):
        x = torch.empty(1, 1, 28, 28)
        convolutions = [Conv2dExplicit(c, k, 5) for c, k in channels]
        dense = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in convolutions:
            x = nn.functional.max_pool2d(layer(x), 2)
        assert x.numel() == widths[0]
        assert count(*convolutions, *dense) == parameters


def test_backpropagation_is_the_full_convolution_with_the_flipped_kernel():
    """dC/dx: delta padded by |w| - 1 zeros, convolved with the flipped kernel; dC/dw_i = sum_n delta_n a_(n+i-1)."""
    a = torch.randint(-3, 4, (1, 1, 8)).double().requires_grad_()
    w = torch.randint(-3, 4, (1, 1, 3)).double().requires_grad_()
    delta = torch.randint(-3, 4, (1, 1, 6)).double()
    functional.conv1d(a, w).backward(delta)
    assert torch.equal(a.grad, functional.conv1d(delta, w.detach().flip(2), padding=2))
    assert w.grad.flatten().tolist() == [float((delta * a.detach()[:, :, i : i + 6]).sum()) for i in range(3)]


def test_convolution_is_equivariant_not_invariant():
    x, w = torch.zeros(1, 1, 9, 9), torch.randn(1, 1, 3, 3)
    x[0, 0, 3:5, 3:6] = torch.randn(2, 3)
    y = functional.conv2d(x, w, padding=1)
    shifted = functional.conv2d(x.roll((1, 2), (2, 3)), w, padding=1)
    assert torch.equal(shifted, y.roll((1, 2), (2, 3)))
    assert not torch.equal(shifted, y)
