"""What the tests of pooling, unfold and normalisation share: geometries, and proofs of derivatives."""

import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck


@st.composite
def geometries(draw, axes=None, limit_padding=True):
    """(input size, kernel, stride, padding, dilation, ceil_mode); every window fits."""
    axes = draw(st.integers(1, 3)) if axes is None else axes
    small = 7 if axes < 3 else 4
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    stride = [draw(st.integers(1, 4)) for _ in range(axes)]
    most = [k // 2 if limit_padding else 2 for k in kernel]
    padding = [(draw(st.integers(0, m)), draw(st.integers(0, m))) for m in most]
    size = [draw(st.integers(r, r + small)) for r in reach]
    return tuple(size), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), draw(st.booleans())


def flat(padding):
    return [side for pair in padding for side in pair]


def small_integers(*shape, dtype=torch.float64, seed=0):
    """Many ties, sums without rounding."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distinct(*shape, seed=0):
    """No ties: a step of a finite difference changes no maximum."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((order - count / 2 + 0.25) / count * 4).reshape(shape).double()


def prove_differentiable(fn, x):
    """First and second derivatives, backward and forward, by finite differences; and under torch.func."""
    x = x.detach().requires_grad_()
    assert gradcheck(fn, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(fn, x, check_fwd_over_rev=True)
    x = x.detach()
    y = fn(x)
    tangent = torch.cos(torch.arange(x.numel())).reshape(x.shape).double()
    cotangent = torch.sin(torch.arange(y.numel()) + 1.0).reshape(y.shape).double()
    _, dy = torch.func.jvp(fn, (x,), (tangent,))
    dx = torch.func.grad(lambda v: (fn(v) * cotangent).sum())(x)
    torch.testing.assert_close((dy * cotangent).sum(), (dx * tangent).sum())
    batch = torch.stack([x, x.flip(-1), x * 0.5])
    torch.testing.assert_close(torch.func.vmap(fn)(batch), torch.stack([fn(b) for b in batch]))
    torch.testing.assert_close(
        torch.func.vmap(fn, in_dims=2, out_dims=1)(batch.movedim(0, 2)), torch.stack([fn(b) for b in batch], 1)
    )


def prove_compilable(fn, x, dynamic):
    """Values and gradients of the compiled function, in one graph."""
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (x.shape[-1], x.shape[-1] - 1, x.shape[-1] - 2) if dynamic else (x.shape[-1],):
        a, b = (x[..., :size].clone().requires_grad_() for _ in range(2))
        expected, got = fn(a), compiled(b)
        assert torch.equal(expected, got)
        expected.square().sum().backward()
        got.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


def same(ours, theirs, *inputs, **tolerance):
    """Values and gradients of two functions of the same tensors."""
    a, b = ([t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs] for _ in range(2))
    y, expected = ours(*a), theirs(*b)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, equal_nan=True, **tolerance)
    if expected.requires_grad:
        g = torch.cos(torch.arange(expected.numel())).reshape(expected.shape).to(expected.dtype)
        y.backward(g)
        expected.backward(g)
        for t, u in zip(a, b, strict=True):
            torch.testing.assert_close(t.grad, u.grad, equal_nan=True, **tolerance)
