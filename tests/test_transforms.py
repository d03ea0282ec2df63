"""Every transform, by value: torch.func, torch.compile, torch.export, autocast, meta and fake tensors.

A transform that silently gives the wrong number is worse than one that raises; so each result here is compared with
torch.nn.functional's under the same transform, or with a loop.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torch_convarith
from torch_convarith import conv_matrix, functional
from torch_convarith.functional.conv import CONV_METHODS, CONV_TRANSPOSE_METHODS

OPTIONS = {"stride": 2, "padding": 1, "groups": 2}
WAYS = [("conv2d", m) for m in CONV_METHODS] + [("conv_transpose2d", m) for m in CONV_TRANSPOSE_METHODS]


def functions(name, method):
    """Ours and torch's as functions of (x, w), and operands."""
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    w = torch.randn(4, 2, 3, 2, dtype=torch.float64)

    def ours(x, w):
        return getattr(functional, name)(x, w, **OPTIONS, method=method)

    def theirs(x, w):
        return getattr(nn.functional, name)(x, w, **OPTIONS)

    return ours, theirs, x, w


def close(got, expected):
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("name", "method"), WAYS)
def test_func_derivatives(name, method):
    ours, theirs, x, w = functions(name, method)

    def loss(f):
        return lambda x, w: f(x, w).sin().sum()

    close(grad(loss(ours), (0, 1))(x, w), grad(loss(theirs), (0, 1))(x, w))
    close(grad(loss(ours), 0)(x, w), grad(loss(theirs), 0)(x, w))
    close(grad(loss(ours), 1)(x, w), grad(loss(theirs), 1)(x, w))
    tangents = (torch.randn_like(x), torch.randn_like(w))
    close(jvp(ours, (x, w), tangents), jvp(theirs, (x, w), tangents))
    close(jvp(lambda x: ours(x, w), (x,), tangents[:1]), jvp(lambda x: theirs(x, w), (x,), tangents[:1]))
    close(jvp(lambda w: ours(x, w), (w,), tangents[1:]), jvp(lambda w: theirs(x, w), (w,), tangents[1:]))
    out, pull = vjp(ours, x, w)
    cotangent = torch.randn_like(out)
    close(pull(cotangent), vjp(theirs, x, w)[1](cotangent))
    small = x[:1, :, :3, :3]
    for jacobian in (jacrev, jacfwd):
        close(jacobian(ours, (0, 1))(small, w), jacobian(theirs, (0, 1))(small, w))
    close(hessian(loss(ours), (0, 1))(small, w), hessian(loss(theirs), (0, 1))(small, w))
    # forward over reverse, reverse over forward
    for outer, inner in ((jacfwd, grad), (jacrev, grad)):
        close(outer(inner(loss(ours), 1), 0)(small, w), outer(inner(loss(theirs), 1), 0)(small, w))
    direction = (torch.randn_like(small), torch.randn_like(w))

    def slope(f):
        return lambda x, w: jvp(lambda x, w: f(x, w), (x, w), direction)[1].sin().sum()

    close(grad(slope(ours), (0, 1))(small, w), grad(slope(theirs), (0, 1))(small, w))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1), (3, None), (None, 3)], ids=str)
@pytest.mark.parametrize(("name", "method"), WAYS)
def test_vmap(name, method, in_dims):
    """Over x, over w, over both, at any position; and of the gradient, which maps the other two operators."""
    ours, _, x, w = functions(name, method)

    def widen(t, dim):
        return t if dim is None else torch.stack([t * n for n in (1, 2, 3)], dim)

    def pick(t, dim, n):
        return t if dim is None else t.select(dim, n)

    xs, ws = (widen(t, dim) for t, dim in zip((x, w), in_dims, strict=True))
    each = [(pick(xs, in_dims[0], n), pick(ws, in_dims[1], n)) for n in range(3)]
    close(vmap(ours, in_dims)(xs, ws), torch.stack([ours(*operands) for operands in each]))

    def gradients(x, w):
        return grad(lambda x, w: ours(x, w).sin().sum(), (0, 1))(x, w)

    expected = tuple(map(torch.stack, zip(*(gradients(*operands) for operands in each), strict=True)))
    close(vmap(gradients, in_dims)(xs, ws), expected)
    # a map within a map
    if in_dims == (0, 0):
        nested = vmap(vmap(ours, (0, None)), (None, 0))(xs, ws)
        close(nested, torch.stack([torch.stack([ours(a, b) for a in xs]) for b in ws]))


def test_vmap_over_an_ensemble_and_functional_call():
    models = [torch_convarith.Conv2dExplicit(2, 3, 3, padding=1).double() for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    got = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    close(got, torch.stack([model(x) for model in models]))
    # per-sample gradients
    model = models[0]
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, sample):
        return functional_call(model, values, (sample[None],)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))(values, x)
    for n in range(len(x)):
        close({k: v[n] for k, v in per_sample.items()}, grad(loss)(values, x[n]))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("name", "method"), WAYS)
def test_compile_whole(name, method, dynamic):
    torch._dynamo.reset()
    ours, theirs, x, w = functions(name, method)
    compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic)
    for size in ((6, 5), (7, 8)):
        x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
        w = w.detach().requires_grad_()
        out, expected = compiled(x, w), theirs(x, w)
        close(out, expected)
        cotangent = torch.randn_like(out)
        close(torch.autograd.grad(out, (x, w), cotangent), torch.autograd.grad(expected, (x, w), cotangent))
        close(ours(x, w), expected)


@pytest.mark.parametrize(("name", "method"), WAYS)
def test_compile_of_func_transforms(name, method):
    torch._dynamo.reset()
    ours, theirs, x, w = functions(name, method)

    def per_sample(f):
        return lambda x, w: vmap(grad(lambda x, w: f(x[None], w).sin().sum(), (0, 1)), (0, None))(x, w)

    def tangent(f):
        return lambda x, w: jvp(lambda w: f(x, w), (w,), (torch.ones_like(w),))[1]

    for transform in (per_sample, tangent):
        close(torch.compile(transform(ours), fullgraph=True)(x, w), transform(theirs)(x, w))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_compile_of_the_matrix(mode):
    torch._dynamo.reset()
    w = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    from torch_convarith import _ops

    def values(w):
        return _ops.csr(w, (4, 5), (1, 2), (1, 2, 0, 1), (1, 1), 2, mode, False)

    got, expected = torch.compile(values, fullgraph=True)(w), values(w)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    factor = torch.randn_like(expected[2])
    close(torch.autograd.grad(got[2], w, factor), torch.autograd.grad(expected[2], w, factor))


def layers(method):
    torch.manual_seed(2)
    last = method if method in CONV_TRANSPOSE_METHODS else "pattern"
    first = method if method in CONV_METHODS else "pattern"
    return nn.Sequential(
        torch_convarith.Conv2dExplicit(2, 4, 3, stride=2, padding=1, padding_mode="circular", method=first),
        nn.ReLU(),
        torch_convarith.ConvTranspose2dExplicit(4, 2, 4, stride=2, padding=1, method=last),
    ).eval()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_export(method, strict):
    model = layers(method)
    x = torch.randn(2, 2, 8, 8)
    size = {2: torch.export.Dim("height", min=4, max=64)}
    for dynamic in (None, (size,)):
        if dynamic is not None:
            model[0].padding_mode = "zeros"  # torch's own circular padding fixes the size
        program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=strict)
        close(program.module()(x), model(x))
    other = torch.randn(2, 2, 12, 8)
    close(program.module()(other), model(other))
    assert any("torch_convarith" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_compiled_training_step(method):
    torch._dynamo.reset()
    eager = layers(method).train()
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    x = torch.randn(2, 2, 8, 8)
    for model in (eager, compiled):
        model(x).square().mean().backward()
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        close(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "method"), WAYS)
def test_autocast(name, method, dtype):
    ours, theirs, x, w = functions(name, method)
    x, w = x.float().requires_grad_(), w.float().requires_grad_()
    results = []
    for f in (ours, theirs):
        with torch.autocast("cpu", dtype=dtype):
            y = f(x, w)
            kept = f(x.double(), w.double())
        assert y.dtype == dtype
        assert kept.dtype == torch.float64  # autocast leaves doubles alone
        results.append((y, *torch.autograd.grad(y.float().sum(), (x, w))))
    # Both round to the half precision, at places of their own: a few units in its last place.
    bound = 4 * torch.finfo(dtype).eps
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= bound * expected.abs().max()


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, method in WAYS:
        ours, theirs, x, w = functions(name, method)
        shape = theirs(x, w).shape
        assert ours(x.to("meta"), w.to("meta")).shape == shape
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (x, w)]
            assert ours(*fake).shape == shape
        kernel = (4, 2, 30, 2) if name == "conv2d" else (6, 2, 3, 2)
        wrong = torch.empty(kernel, device="meta", dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"kernel 30 does not fit|expected input.* to have 6"):
            ours(x.to("meta"), wrong)


def test_deterministic_algorithms():
    """There is nothing to switch: twice the same, bit by bit, and nothing raises."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for name, method in WAYS:
            ours, _, x, w = functions(name, method)
            x, w = x.float().requires_grad_(), w.float().requires_grad_()
            runs = []
            for _ in range(2):
                y = ours(x, w)
                runs.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
            assert all(map(torch.equal, *runs))
        w = torch.randn(2, 2, 3, requires_grad=True)
        conv_matrix(w, 5, padding=1, padding_mode="circular").to_sparse().values().sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)


# torch's own, in its packaging
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning", "ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
def test_ahead_of_time(method, tmp_path):
    """Exported programs are saved and loaded, as they are and compiled by inductor into a package."""
    model, x = layers(method), torch.randn(2, 2, 8, 8)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))
    if method == "pattern":  # the others reach C++ the same way, and a package takes long to build
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
        with torch.no_grad():
            close(torch._inductor.aoti_load_package(package)(x), model(x))


def test_symbolic_trace():
    """torch.fx sees each layer as one call of our function."""
    model = nn.Sequential(
        torch_convarith.Conv2dExplicit(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        torch_convarith.ConvTranspose2dExplicit(4, 2, 4, stride=2, padding=1, method="zero_insert"),
    )
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [functional.conv2d, functional.conv_transpose2d]
    for size in (6, 9):
        x = torch.randn(2, 2, size, size)
        assert torch.equal(traced(x), model(x))
    for name in ("conv2d", "conv_transpose2d"):
        with pytest.raises(TypeError, match=name):
            getattr(functional, name)([[1.0]], torch.ones(1, 1, 1, 1))
