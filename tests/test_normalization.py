import numpy as np
import oracle_windows
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db
from windows_testing import distinct, prove_compilable, prove_differentiable, same, small_integers

import torch_convarith as tc
from torch_convarith import functional as C

# torch.func.jvp scripts its decompositions on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
ops = torch.ops.torch_convarith
few = settings(max_examples=50, deadline=None, derandomize=True)


def test_torch_samples():
    info = next(op for op in op_db if op.name == "nn.functional.local_response_norm")
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
        args, kwargs = sample.args, sample.kwargs
        same(
            lambda v: C.local_response_norm(v, *args, **kwargs),  # noqa: B023
            lambda v: F.local_response_norm(v, *args, **kwargs),  # noqa: B023
            sample.input,
        )


@given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.sampled_from([0.01, 1.0, 3.0]),
    st.sampled_from([0.5, 0.75, 1.0, 1.3]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([(3,), (2, 3), (300,), (2, 1, 2)]),
)
@few
def test_against_loops_and_torch(channels, size, alpha, beta, k, spatial):
    x = torch.randn(2, channels, *spatial, generator=torch.Generator().manual_seed(channels), dtype=torch.float64)
    y = C.local_response_norm(x, size, beta=beta, k=k, alpha_per_element=alpha)
    for plane, got in zip(x.flatten(2), y.flatten(2), strict=True):
        expected = oracle_windows.local_response_norm(plane.numpy(), size, alpha, beta, k)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    same(
        lambda v: C.local_response_norm(v, size, alpha * size, beta, k),
        lambda v: F.local_response_norm(v, size, alpha * size, beta, k),
        x,
    )


def test_alexnets_constants():
    """torch divides alpha by size; the paper's 1e-4 is torch's 5e-4."""
    x = small_integers(2, 12, 5, 5) * 100
    paper = C.local_response_norm(x, 5, alpha_per_element=1e-4, beta=0.75, k=2)
    torch.testing.assert_close(paper, F.local_response_norm(x, 5, 5e-4, 0.75, 2.0))
    layer = tc.LocalResponseNormExplicit(5, alpha_per_element=1e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(layer(x), paper)
    reference = nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)
    assert isinstance(layer, nn.LocalResponseNorm)
    assert layer.extra_repr() == reference.extra_repr()
    torch.testing.assert_close(tc.LocalResponseNormExplicit(5, 5e-4, 0.75, 2.0)(x), reference(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floating_dtypes(dtype):
    x = torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0))
    y = C.local_response_norm(x.to(dtype), 3, 0.5)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), F.local_response_norm(x.to(dtype).double(), 3, 0.5), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spatial", [(3,), (3, 5), (2, 3, 2)])
def test_autocast_is_torchs(dtype, spatial):
    x = torch.randn(2, 7, *spatial, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(x, 3, 0.5) for f in (C.local_response_norm, F.local_response_norm))
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)  # bfloat16 keeps 8 bits


def test_integers_are_torchs():
    x = small_integers(1, 4, 3, 3, dtype=torch.int64)
    torch.testing.assert_close(C.local_response_norm(x, 2, 0.5), F.local_response_norm(x, 2, 0.5))


def test_extremes_are_torchs():
    x = torch.tensor([0.0, float("inf"), float("nan"), 1e30, -1e-30, 1.0]).reshape(1, 6, 1)
    for beta in (0.5, 0.75, 1.0, 1.3):
        ours, theirs = (f(x, 1, 1.0, beta) for f in (C.local_response_norm, F.local_response_norm))
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("beta", [0.1, 0.6, -0.7, 1.25, 2.5, 3.999, -4.0])
def test_powers_are_below_three_units_of_the_last_place(beta):
    # One channel alone with alpha 1 and k 0 is x (x^2)^-beta; the square is exact for 12 bits, the product adds a half.
    x = torch.cat([torch.logspace(-3, 3, 100_000), torch.linspace(0.9, 1.1, 10_000)])
    x = (x.view(torch.int32) & ~0xFFF).view(torch.float32)[None, None]
    y = C.local_response_norm(x, 1, 1.0, beta, 0.0)
    expected = x.double() * (x.double() ** 2) ** -beta
    unit = torch.exp2(torch.floor(torch.log2(expected)) - 23)
    assert ((y.double() - expected).abs() / unit).max() < 3.5
    zeros_and_infinities = torch.tensor([[[0.0, 1.0, torch.inf, torch.nan]]])
    extremes = C.local_response_norm(zeros_and_infinities, 1, 1.0, beta, 0.0)
    expected = zeros_and_infinities * (zeros_and_infinities**2) ** -beta
    assert torch.equal(extremes[0, 0, :2].isnan(), expected[0, 0, :2].isnan())
    assert torch.equal(extremes.nan_to_num(), expected.nan_to_num())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="3D or higher"):
        C.local_response_norm(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="at least 1 channel"):
        C.local_response_norm(torch.zeros(2, 3, 4), 0)
    assert C.local_response_norm(torch.zeros(0, 3, 4), 2).shape == (0, 3, 4)


DIFFERENTIABLE = {
    beta: lambda x, beta=beta: C.local_response_norm(x, 2 if beta == 1 else 3, 0.9, beta, 1.5)
    for beta in (0.5, 0.75, 1.0, 1.3)
}


@pytest.mark.parametrize("beta", DIFFERENTIABLE)
def test_derivatives(beta):
    prove_differentiable(DIFFERENTIABLE[beta], distinct(2, 4, 3))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    prove_compilable(DIFFERENTIABLE[0.75], distinct(2, 4, 3, 5), dynamic)


@pytest.mark.parametrize("name", ["lrn", "lrn_backward"])
def test_opcheck(name):
    x = [distinct(2, 5, 4, seed=s).requires_grad_() for s in range(1 if name == "lrn" else 2)]
    torch.library.opcheck(getattr(ops, name).default, (*x, 1, 3, 0.5, 0.75, 1.0))
