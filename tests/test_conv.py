"""conv, conv_transpose, conv_weight and torch.nn.functional's signatures on them: values, gradients, refusals."""

import itertools

import oracle
import pytest
import torch
from cases import CASES, Case, case, cases
from hypothesis import given
from hypothesis import strategies as st
from threads import threads_of

from torch_convarith import GeometryError, _ops, functional, zero_insert
from torch_convarith.functional.conv import CONV_METHODS, CONV_TRANSPOSE_METHODS

ids = {"ids": str}


def oracle_options(c):
    return c.stride, c.padding, c.dilation, c.groups


def torch_conv(c, x, w, **options):
    """torch's own, for symmetric padding that does not crop."""
    f = getattr(torch.nn.functional, f"conv{c.axes}d")
    return f(
        x, w, stride=c.stride, padding=[lo for lo, _ in c.padding], dilation=c.dilation, groups=c.groups, **options
    )


def is_torchs(c):
    return c.n > 0 and all(lo == hi >= 0 for lo, hi in c.padding)


# The three operators


@pytest.mark.parametrize("method", _ops.METHODS)
@pytest.mark.parametrize("c", CASES, **ids)
def test_operators_equal_plain_loops(c, method):
    x, w, y = c.tensors()
    a, b, d = (t.numpy() for t in (x, w, y))
    assert torch.equal(_ops.conv(x, w, *c.geometry, method), torch.from_numpy(oracle.conv(a, b, *oracle_options(c))))
    assert torch.equal(
        _ops.conv_transpose(y, w, c.input, *c.geometry, method),
        torch.from_numpy(oracle.conv_transpose(d, b, c.input, *oracle_options(c))),
    )
    assert torch.equal(
        _ops.conv_weight(x, y, c.kernel, *c.geometry, method),
        torch.from_numpy(oracle.conv_weight(a, d, c.kernel, *oracle_options(c))),
    )


@given(cases(), st.sampled_from(sorted(_ops.METHODS)))
def test_operators_on_any_geometry(c, method):
    x, w, y = c.tensors()
    a, b, d = (t.numpy() for t in (x, w, y))
    out = _ops.conv(x, w, *c.geometry, method)
    back = _ops.conv_transpose(y, w, c.input, *c.geometry, method)
    weight = _ops.conv_weight(x, y, c.kernel, *c.geometry, method)
    assert torch.equal(out, torch.from_numpy(oracle.conv(a, b, *oracle_options(c))))
    assert torch.equal(back, torch.from_numpy(oracle.conv_transpose(d, b, c.input, *oracle_options(c))))
    assert torch.equal(weight, torch.from_numpy(oracle.conv_weight(a, d, c.kernel, *oracle_options(c))))
    # phi(x, w, y), three times the same number
    assert (out * y).sum() == (x * back).sum() == (w * weight).sum()


@pytest.mark.parametrize("method", _ops.METHODS)
@pytest.mark.parametrize("c", [c for c in CASES if c.n and c.axes < 3], **ids)
def test_operators_differentiate_into_each_other(c, method):
    x, w, y = c.tensors(torch.float64, requires_grad=True)
    operators = {
        "y": (lambda a, b: _ops.conv(a, b, *c.geometry, method), (x, w)),
        "x": (lambda a, b: _ops.conv_transpose(a, b, c.input, *c.geometry, method), (y, w)),
        "w": (lambda a, b: _ops.conv_weight(a, b, c.kernel, *c.geometry, method), (x, y)),
    }
    for f, operands in operators.values():
        assert torch.autograd.gradcheck(
            f, operands, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
        )
        assert torch.autograd.gradgradcheck(f, operands, check_fwd_over_rev=True, fast_mode=True)


def test_operators_differentiate_in_three_axes():
    c = case(2, 2, 2, (3, 4, 3), 2, padding=((1, 0), (0, 1), (1, 1)), dilation=(2, 1, 2), groups=2)
    x, w, y = c.tensors(torch.float64, requires_grad=True)
    for f, operands in (
        (lambda a, b: _ops.conv(a, b, *c.geometry), (x, w)),
        (lambda a, b: _ops.conv_transpose(a, b, c.input, *c.geometry), (y, w)),
        (lambda a, b: _ops.conv_weight(a, b, c.kernel, *c.geometry), (x, y)),
    ):
        assert torch.autograd.gradcheck(f, operands, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, operands, fast_mode=True)


def test_backward_computes_only_what_is_asked():
    c = CASES[1]
    x, w, _ = c.tensors(torch.float32)
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op._schema.name)
            return op(*args, **(kwargs or {}))

    for needs, expected in (((True, False), "conv_transpose"), ((False, True), "conv_weight")):
        operands = [t.clone().requires_grad_(need) for t, need in zip((x, w), needs, strict=True)]
        y = _ops.conv(*operands, *c.geometry)
        calls.clear()
        with Count():
            y.sum().backward()
        assert [name for name in calls if "torch_convarith" in name] == [f"torch_convarith::{expected}"]


@pytest.mark.parametrize("method", _ops.METHODS)
def test_opcheck(method):
    for c in (CASES[3], CASES[10], CASES[12]):
        x, w, y = c.tensors(torch.float64, requires_grad=True)
        for gives, arguments in (
            ("y", (x, w)),
            ("x", (y, w, c.input)),
            ("w", (x, y, c.kernel)),
        ):
            name = _ops.conv.__globals__["NAMES"][gives] + _ops.METHODS[method]
            op = getattr(torch.ops.torch_convarith, name).default
            torch.library.opcheck(op, (*arguments, *c.geometry))


@pytest.mark.parametrize(
    "name", ["conv", "conv_transpose", "conv_weight", "conv_csr", "conv_transpose_csr", "conv_weight_csr"]
)
def test_kernels_refuse_what_python_would_have_refused(name):
    """The raw operators check for themselves: they can be called without our Python."""
    op = getattr(torch.ops.torch_convarith, name)
    x, w, y = torch.ones(1, 2, 5, 5), torch.ones(4, 2, 3, 3), torch.ones(1, 4, 3, 3)
    first, second, size = {"conv": (x, w, None), "conv_t": (y, w, [5, 5]), "conv_w": (x, y, [3, 3])}[
        name[:6] if name not in ("conv_csr",) else "conv"
    ]

    def call(a=first, b=second, size=size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1):
        return op(a, b, *(() if size is None else (size,)), stride, padding, dilation, groups)

    call()
    for wrong, message in (
        ({"stride": (0, 1)}, "non-positive stride is not supported: stride 0 along axis 2 .height."),
        ({"dilation": (1, -1)}, "non-positive dilation is not supported: dilation -1 along axis 3 .width."),
        ({"groups": 0}, "non-positive groups"),
        ({"groups": 3}, "groups"),
        ({"padding": (0, 0)}, "2 paddings|4 paddings"),
        ({"padding": (-3, 0, 0, 0)}, "does not fit input 5 with padding .-3, 0. along axis 2 .height.: relationship 6"),
        ({"stride": (2**62, 1)}, "2.31 and more"),
        ({"padding": (-(2**63), 0, 0, 0)}, "2.31 and more"),
        ({"a": first.double()}, "same dtype"),
        ({"a": first[0]}, "dimensions"),
        ({"a": first[..., 0]}, "dimensions"),
        ({"a": first.to_sparse()}, "dense|Could not run|sparse"),
    ):
        with pytest.raises((RuntimeError, NotImplementedError), match=message):
            call(**wrong)
    if size is not None:
        with pytest.raises(RuntimeError, match=r"relationship 15 gives an output of shape|divisible|expected input"):
            call(size=[7, 7] if name.startswith("conv_t") else [2, 2])
    with pytest.raises(NotImplementedError, match="not implemented for 'Bool'"):
        call(first.bool(), second.bool())


# torch.nn.functional's signatures


@pytest.mark.parametrize("method", CONV_METHODS)
@pytest.mark.parametrize("c", [c for c in CASES if is_torchs(c)], **ids)
def test_conv_equals_torch(c, method):
    x, w, _ = c.tensors(torch.float64, requires_grad=True)
    bias = torch.randn(c.k, dtype=torch.float64, requires_grad=True)
    f = getattr(functional, f"conv{c.axes}d")
    padding = [lo for lo, _ in c.padding]
    ours = f(x, w, bias, c.stride, padding, c.dilation, c.groups, method=method)
    theirs = torch_conv(c, x, w, bias=bias)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, (x, w, bias), grad), torch.autograd.grad(theirs, (x, w, bias), grad), strict=True
    ):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(f(x[0], w, bias, c.stride, padding, c.dilation, c.groups, method=method), theirs[0])


TRANSPOSED = [
    case(2, 3, 4, (5, 6), 3, stride=2, padding=1),
    case(1, 2, 4, (4, 4), (4, 3), stride=(2, 3), groups=2),
    case(1, 1, 1, (9, 9), 3, padding=4),  # p > k - 1: the stretched input is cropped
    case(2, 2, 2, (3, 4), 3, stride=3, dilation=2, padding=1),
    case(1, 4, 4, (5,), 4, stride=2, padding=1, groups=4),
    case(1, 2, 3, (3, 2, 3), (2, 3, 2), stride=(2, 1, 2), padding=(0, 1, 1)),
]


@pytest.mark.parametrize("method", CONV_TRANSPOSE_METHODS)
@pytest.mark.parametrize("c", TRANSPOSED, **ids)
def test_conv_transpose_equals_torch(c, method):
    """c.input is the transpose's input; every output_padding that torch takes."""
    f = getattr(functional, f"conv_transpose{c.axes}d")
    reference = getattr(torch.nn.functional, f"conv_transpose{c.axes}d")
    y = torch.randn(c.n, c.k, *c.input, dtype=torch.float64, requires_grad=True)
    w = torch.randn(c.w_shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(c.c, dtype=torch.float64, requires_grad=True)
    padding = [lo for lo, _ in c.padding]
    most = [max(s, d) for s, d in zip(c.stride, c.dilation, strict=True)]
    compared = 0
    for extra in itertools.product(*map(range, most)):
        try:
            theirs = reference(y, w, bias, c.stride, padding, extra, c.groups, c.dilation)
        except RuntimeError:
            with pytest.raises(GeometryError, match="relationship 14"):
                f(y, w, bias, c.stride, padding, extra, c.groups, c.dilation, method=method)
            continue
        compared += 1
        ours = f(y, w, bias, c.stride, padding, extra, c.groups, c.dilation, method=method)
        torch.testing.assert_close(ours, theirs)
        grad = torch.randn_like(ours)
        for got, expected in zip(
            torch.autograd.grad(ours, (y, w, bias), grad), torch.autograd.grad(theirs, (y, w, bias), grad), strict=True
        ):
            torch.testing.assert_close(got, expected)
        unbatched = f(y[0], w, bias, c.stride, padding, extra, c.groups, c.dilation, method=method)
        torch.testing.assert_close(unbatched, theirs[0])
    assert compared > 0


@pytest.mark.parametrize("c", [c for c in CASES if c.axes == 2 and is_torchs(c)][:4], **ids)
def test_gradcheck_of_every_method(c):
    x, w, y = c.tensors(torch.float64, requires_grad=True)
    padding = [lo for lo, _ in c.padding]
    extra = [
        (i + 2 * p - d * (k - 1) - 1) % s
        for i, k, s, p, d in zip(c.input, c.kernel, c.stride, padding, c.dilation, strict=True)
    ]
    for method in CONV_METHODS:

        def f(x, w, method=method):
            return functional.conv2d(x, w, None, c.stride, padding, c.dilation, c.groups, method=method)

        assert torch.autograd.gradcheck(f, (x, w), check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (x, w), fast_mode=True)
    for method in CONV_TRANSPOSE_METHODS:

        def f(y, w, method=method):
            return functional.conv_transpose2d(
                y, w, None, c.stride, padding, extra, c.groups, c.dilation, method=method
            )

        assert f(y, w).shape == x.shape
        assert torch.autograd.gradcheck(f, (y, w), check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (y, w), fast_mode=True)


@given(cases(max_axes=2))
def test_zero_insertion_is_the_transpose(c: Case):
    """Relationships 8 to 14 on integers: the direct convolution of the stretched input equals C^T to the last entry."""
    c = Case(**{**c.__dict__, "padding": tuple((max(lo, 0),) * 2 for lo, _ in c.padding)})
    if any(
        i + 2 * p < (k - 1) * d + 1 for i, k, (p, _), d in zip(c.input, c.kernel, c.padding, c.dilation, strict=True)
    ):
        return
    _, w, y = c.tensors()
    f = getattr(functional, f"conv_transpose{c.axes}d")
    padding = [lo for lo, _ in c.padding]
    extra = [
        (i + 2 * p - d * (k - 1) - 1) % s
        for i, k, s, p, d in zip(c.input, c.kernel, c.stride, padding, c.dilation, strict=True)
    ]
    expected = torch.from_numpy(oracle.conv_transpose(y.numpy(), w.numpy(), c.input, *oracle_options(c)))
    for method in CONV_TRANSPOSE_METHODS:
        assert torch.equal(f(y, w, None, c.stride, padding, extra, c.groups, c.dilation, method=method), expected)


def test_zero_insert():
    x = torch.arange(1, 7).reshape(1, 1, 2, 3)
    assert zero_insert(x, 2).tolist() == [[[[1, 0, 2, 0, 3], [0, 0, 0, 0, 0], [4, 0, 5, 0, 6]]]]
    assert zero_insert(x, (1, 3), ((1, 0), (0, 0))).tolist() == [
        [[[0] * 7, [1, 0, 0, 2, 0, 0, 3], [4, 0, 0, 5, 0, 0, 6]]]
    ]
    assert zero_insert(x, (2, 1), 0, (1, 0)).tolist() == [[[[1, 2, 3], [0, 0, 0], [4, 5, 6], [0, 0, 0]]]]
    assert zero_insert(x, 2, -1).tolist() == [[[[0, 0, 0]]]]
    assert zero_insert(x, 2, ((-2, 1), (-1, -1))).tolist() == [[[[0, 5, 0], [0, 0, 0]]]]
    assert zero_insert(x[:, :, :0], 2, 1).tolist() == [[[[0] * 7] * 2]]
    assert zero_insert(x.transpose(2, 3), 1).tolist() == x.transpose(2, 3).tolist()
    with pytest.raises(RuntimeError, match="crops more than the"):
        zero_insert(x, 2, -3)
    with pytest.raises(RuntimeError, match="non-positive stride"):
        zero_insert(x, 0)
    with pytest.raises(GeometryError, match="1 to 3 axes"):
        zero_insert(x[0, 0], 2)
    with pytest.raises(GeometryError, match="3 entries"):
        zero_insert(x, (1, 2, 3))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 0, 3), (-1, 1, 2, -2)])
def test_zero_insert_differentiates(stride, padding):
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def insert(x):
        return _ops.zero_insert(x, stride, padding)

    def remove(z):
        return _ops.zero_remove(z, x.shape, stride, padding)

    z = torch.randn_like(insert(x).detach(), requires_grad=True)
    torch.testing.assert_close((insert(x) * z).sum(), (x * remove(z)).sum())
    for f, argument in ((insert, x), (remove, z)):
        assert torch.autograd.gradcheck(f, argument, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(f, argument)
        mapped = torch.func.vmap(f)(torch.stack((argument, 2 * argument)))
        torch.testing.assert_close(mapped, torch.stack((f(argument), f(2 * argument))))
    torch.library.opcheck(torch.ops.torch_convarith.zero_insert.default, (x, stride, padding))
    torch.library.opcheck(torch.ops.torch_convarith.zero_remove.default, (z, x.shape, stride, padding))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_string_padding(axes, kernel, dilation):
    x = torch.randn(1, 2, *(7, 6, 5)[:axes], dtype=torch.float64)
    w = torch.randn(3, 2, *(kernel, 2, 3)[:axes], dtype=torch.float64)
    f, reference = (getattr(m, f"conv{axes}d") for m in (functional, torch.nn.functional))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that uneven "same" padding copies the input
        theirs = reference(x, w, padding="same", dilation=dilation)
    torch.testing.assert_close(f(x, w, padding="same", dilation=dilation), theirs)
    if all(n > dilation * (k - 1) for n, k in zip(x.shape[2:], w.shape[2:], strict=True)):
        torch.testing.assert_close(
            f(x, w, padding="valid", dilation=dilation), reference(x, w, padding="valid", dilation=dilation)
        )


REFUSALS = [
    ("conv2d", ((1, 2, 5, 5), (3, 2, 7, 3)), {}, r"7 does not fit input 5 with padding 0 along axis 2 \(height\): "
     r"relationship 6 needs i \+ 2p >= k"),
    ("conv1d", ((1, 2, 5), (3, 2, 3)), {"dilation": 3}, r"effective kernel 7.*axis 2 \(length\): relationship 15"),
    ("conv3d", ((1, 1, 5, 5, 2), (1, 1, 3, 3, 3)), {}, r"along axis 4 \(width\)"),
    ("conv2d", ((5, 5), (3, 2, 3, 3)), {}, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3)), {}, "Expected 3-dimensional input for 3-dimensional weight"),
    ("conv2d", ((1, 3, 5, 5), (3, 2, 3, 3)), {}, r"expected input\[1, 3, 5, 5\] to have 2 channels, but got 3"),
    ("conv2d", ((1, 2, 5, 5), (3, 1, 3, 3)), {"groups": 2}, "expected weight to be divisible by 2 at dimension 0"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"groups": 0}, "non-positive groups is not supported"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"stride": 0}, "non-positive stride is not supported"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"padding": -1}, "negative padding is not supported"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"padding": (0, -1)}, "negative padding is not supported"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"dilation": 0}, "dilation"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"stride": (1, 1, 1)}, "3 entries for 2 axes"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"padding": "same", "stride": 2}, "strided convolutions"),
    ("conv2d", ((1, 2, 5, 5), (3, 2, 3, 3)), {"bias": torch.zeros(2)}, "expected bias to be 1-dimensional with 3"),
    ("conv_transpose2d", ((1, 3, 5, 5), (2, 2, 3, 3)), {}, r"expected input\[1, 3, 5, 5\] to have 2 channels"),
    ("conv_transpose2d", ((1, 2, 5, 5), (2, 2, 3, 3)), {"output_padding": 1}, "output padding must be smaller"),
    ("conv_transpose2d", ((1, 2, 1, 1), (2, 2, 1, 1)), {"padding": 1}, r"too small: relationship 14 gives .* = -1"),
    ("conv_transpose2d", ((1, 2, 5, 5), (2, 2, 3, 3)), {"padding": -1}, "negative padding is not supported"),
    ("conv_transpose1d", ((1, 2, 5), (2, 2, 3)), {"output_padding": -1}, "negative output_padding"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes", "options", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_functional_refuses(name, shapes, options, message):
    tensors = [torch.zeros(s) for s in shapes]
    with pytest.raises(RuntimeError, match=message):
        getattr(functional, name)(*tensors, **options)
    with pytest.raises((RuntimeError, ValueError)):  # and so does torch, whatever its words
        getattr(torch.nn.functional, name)(*tensors, **options)


def test_dtypes_are_never_mixed_silently():
    x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
    with pytest.raises(
        RuntimeError, match=r"input of torch.float32 and weight of torch.float64 should be the same dtype"
    ):
        functional.conv2d(x, w.double())
    with pytest.raises(
        RuntimeError, match=r"input of torch.float32 and bias of torch.float16 should be the same dtype"
    ):
        functional.conv2d(x, w, torch.zeros(1).half())
    with pytest.raises(RuntimeError, match="same dtype"):
        functional.conv_transpose2d(x, w.bfloat16())


def test_unknown_methods():
    x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="method must be one of pattern, matrix, not 'zero_insert'"):
        functional.conv2d(x, w, method="zero_insert")
    with pytest.raises(ValueError, match="method must be one of pattern, zero_insert, matrix, not 'fft'"):
        functional.conv_transpose2d(x, w, method="fft")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    c = case(3, 8, 12, (17, 19), 3, stride=2, padding=1)
    x, w, y = c.tensors(torch.float32)

    def results():
        return [
            f(*arguments, *c.geometry, method)
            for method in _ops.METHODS
            for f, arguments in (
                (_ops.conv, (x, w)),
                (_ops.conv_transpose, (y, w, c.input)),
                (_ops.conv_weight, (x, y, c.kernel)),
            )
        ]

    with threads_of(1):
        expected = results()
    with threads_of(threads):
        assert all(map(torch.equal, results(), expected))
