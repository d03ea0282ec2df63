import math

import numpy as np
import oracle_windows
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db
from windows_testing import distinct, flat, geometries, prove_compilable, prove_differentiable, same, small_integers

import torch_convarith as tc
from torch_convarith import functional as C

# torch.func.jvp scripts its decompositions on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
ops = torch.ops.torch_convarith
few = settings(max_examples=50, deadline=None, derandomize=True)


def test_torch_samples():
    unfold = next(op for op in op_db if op.name == "nn.functional.unfold")
    for sample in unfold.sample_inputs("cpu", torch.float64, requires_grad=False):
        args, kwargs = sample.args, sample.kwargs
        same(lambda v: C.unfold(v, *args, **kwargs), lambda v: F.unfold(v, *args, **kwargs), sample.input)  # noqa: B023


@given(geometries(limit_padding=False), st.integers(0, 99))
@few
def test_against_loops(geometry, seed):
    size, kernel, stride, padding, dilation, _ = geometry
    x = small_integers(2, 3, *size, seed=seed)
    columns = C.unfold(x, kernel, dilation, padding, stride)
    planes = columns.unflatten(1, (3, -1)).flatten(0, 1)
    for plane, y in zip(x.flatten(0, 1), planes, strict=True):
        assert np.array_equal(y.numpy(), oracle_windows.unfold(plane.numpy(), kernel, stride, padding, dilation))
    assert torch.equal(C.unfold(x[0], kernel, dilation, padding, stride), columns[0])
    u = small_integers(*columns.shape, seed=seed + 1)
    back = C.fold(u, size, kernel, dilation, padding, stride)
    for plane, y in zip(back.flatten(0, 1), u.unflatten(1, (3, -1)).flatten(0, 1), strict=True):
        assert np.array_equal(plane.numpy(), oracle_windows.fold(y.numpy(), size, kernel, stride, padding, dilation))
    assert (columns * u).sum() == (x * back).sum()
    seen = C.fold(torch.ones_like(u), size, kernel, dilation, padding, stride)
    average = C.fold(columns, size, kernel, dilation, padding, stride, average=True)
    torch.testing.assert_close(average, torch.where(seen > 0, x, 0))


@given(geometries(axes=2))
@few
def test_fold_is_torchs(geometry):
    size, kernel, stride, padding, dilation, _ = geometry
    lows = [lo for lo, _ in padding]
    u = small_integers(*C.unfold(torch.zeros(2, 3, *size), kernel, dilation, lows, stride).shape)
    same(
        lambda v: C.fold(v, size, kernel, dilation, lows, stride),
        lambda v: F.fold(v, size, kernel, dilation, lows, stride),
        u,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.bool])
def test_dtypes(dtype):
    x = small_integers(1, 2, 5, 6).to(dtype)
    columns = C.unfold(x, 3, padding=1)
    assert torch.equal(columns, F.unfold(x, 3, padding=1))
    assert torch.equal(C.fold(columns, (5, 6), 3, padding=1), F.fold(columns, (5, 6), 3, padding=1))


def test_arguments_are_checked():
    x = torch.zeros(1, 2, 5, 5)
    for bad, message in (
        (lambda: C.unfold(x, 6), "does not fit input 5"),
        (lambda: C.unfold(x, (3,)), "Expected 2D"),
        (lambda: C.unfold(x, 3, padding=-1), "negative padding"),
        (lambda: C.unfold(x, 3, padding=((0, -1), (0, 0))), "negative padding"),
        (lambda: C.unfold(x, 3, stride=0), "non-positive stride"),
        (lambda: C.fold(torch.zeros(1, 9, 8), 5, 3), "expects C \\* 9 rows of 9 columns"),
        (lambda: C.fold(torch.zeros(1, 10, 9), 5, 3), "expects C \\* 9 rows of 9 columns"),
        (lambda: C.fold(torch.zeros(9), 5, 3), "Expected 2D"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            bad()


DIFFERENTIABLE = {
    "unfold1d": lambda x: C.unfold(x.flatten(1, 2), (3,), 2, ((1, 0),), 2),
    "unfold2d": lambda x: C.unfold(x, (2, 3), 1, ((1, 2), (0, 1)), (2, 1)),
    "unfold3d": lambda x: C.unfold(x[:, None], 2),
    "fold2d": lambda x: C.fold(x.flatten(2), (6, 4), (2, 1)),
    "fold_average": lambda x: C.fold(C.unfold(x, 2), tuple(x.shape[2:]), 2, average=True),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name):
    prove_differentiable(DIFFERENTIABLE[name], distinct(1, 2, 4, 5))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["unfold2d", "fold_average"])
def test_compile(name, dynamic):
    prove_compilable(DIFFERENTIABLE[name], distinct(2, 2, 6, 8), dynamic)


@pytest.mark.parametrize("name", ["unfold", "fold"])
def test_opcheck(name):
    rest = ((3, 2), (2, 1), (1, 0, 0, 1), (1, 1))
    x = distinct(2, 3, 6, 7)
    args = (x,) if name == "unfold" else (ops.unfold(x, *rest), [6, 7])
    torch.library.opcheck(getattr(ops, name).default, (args[0].requires_grad_(), *args[1:], *rest))


@given(geometries(limit_padding=False))
@few
def test_matrix(geometry):
    size, kernel, stride, padding, dilation, _ = geometry
    layer = tc.UnfoldExplicit(kernel, dilation, padding, stride)
    m = layer.matrix(size, channels=2, dtype=torch.float64)
    x = small_integers(2, *size)
    assert torch.equal(m.to_dense() @ x.flatten(), layer(x).flatten())
    assert torch.equal(m @ x.flatten(), layer(x).flatten())
    fold = tc.FoldExplicit(size, kernel, dilation, padding, stride)
    u = small_integers(*layer(x).shape)
    transpose = fold.matrix(channels=2, dtype=torch.float64)
    assert torch.equal(transpose.to_dense(), m.to_dense().t())
    assert torch.equal(transpose @ u.flatten(), fold(u).flatten())
    assert m.nnz == int(m.to_dense().sum()) == 2 * math.prod(a.nnz for a in layer.geometry(size))
    assert flat(layer.geometry(size).padding) == flat(padding)


def test_layers_are_torchs():
    x = small_integers(2, 3, 6, 7)
    layer, reference = tc.UnfoldExplicit(3, padding=1, stride=2), nn.Unfold(3, padding=1, stride=2)
    assert torch.equal(layer(x), reference(x))
    assert layer.extra_repr() == reference.extra_repr()
    fold, torch_fold = tc.FoldExplicit((6, 7), 3, padding=1, stride=2), nn.Fold((6, 7), 3, padding=1, stride=2)
    assert torch.equal(fold(reference(x)), torch_fold(reference(x)))
    assert fold.extra_repr() == torch_fold.extra_repr()
    averaged = tc.FoldExplicit((6, 7), 3, padding=1, stride=2, average=True)
    torch.testing.assert_close(averaged(layer(x)), x)
    assert "average=True" in repr(averaged)
    assert isinstance(layer, nn.Unfold)
    assert isinstance(fold, nn.Fold)
