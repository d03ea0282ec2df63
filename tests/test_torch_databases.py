"""torch's own databases of samples: every sample of the six convolutions and their layers, values and gradients.

Floating results are compared with torch's in double precision. The bound is the usual one for a sum of products: some
units in the last place of the sum of the products' absolute values, which the same function computes from absolute
operands. Integers are compared exactly.
"""

import collections
import copy
import re
import warnings

import pytest
import torch
from torch import nn

import torch_convarith
from torch_convarith import functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's testing modules warn of themselves when they are imported
    import torch.testing._internal.common_methods_invocations as op_database
    import torch.testing._internal.common_modules as module_database
    import torch.testing._internal.common_nn as nn_database

# "same" padding of an even kernel: torch's reference copies the input, and says so
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

OPS = [op for op in op_database.op_db if re.fullmatch(r"nn\.functional\.conv(_transpose)?[123]d", op.name)]
MODULES = [m for m in module_database.module_db if re.fullmatch(r"nn\.(Lazy)?Conv(Transpose)?[123]d", m.name)]
ULPS = 16  # of the accumulating dtype: a running sum of n products is off by about sqrt(n) / 2; n is below 1000 here


def tensors_of(values):
    return [v for v in values if isinstance(v, torch.Tensor)]


def precise(v):
    if isinstance(v, torch.Tensor):
        return v.detach().to(torch.complex128 if v.is_complex() else torch.float64).requires_grad_(v.requires_grad)
    return v


def magnitude(v):
    return v.detach().abs().double().requires_grad_() if isinstance(v, torch.Tensor) else v


def assert_close(got, expected, bound, what):
    """|got - expected| <= some ulps of the products' sum, which is rounded once, and again with its bias."""
    eps = torch.finfo(got.dtype).eps
    accumulating = torch.finfo(torch.float32).eps if got.dtype in (torch.float16, torch.bfloat16) else eps
    error = (got.detach().to(expected.dtype) - expected.detach()).abs()
    limit = (ULPS * accumulating + eps) * bound.detach() + torch.finfo(got.dtype).tiny
    worst = (error - limit).max() if error.numel() else torch.tensor(-1.0)
    assert worst <= 0, f"{what}: error exceeds its bound by {worst:.2e}"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split(".")[-1])
def test_operator_samples(op, capsys):
    ours = getattr(functional, op.name.split(".")[-1])
    counts = collections.Counter()
    for dtype in sorted(op.supported_dtypes("cpu"), key=str):
        floating = dtype.is_floating_point or dtype.is_complex
        for sample in op.sample_inputs("cpu", dtype, requires_grad=floating):
            arguments = [sample.input, *sample.args]
            counts[str(dtype).removeprefix("torch.")] += 1
            got = ours(*arguments, **sample.kwargs)
            theirs = op(*arguments, **sample.kwargs)
            assert got.dtype == theirs.dtype
            assert got.stride() == theirs.stride()
            if not floating:
                assert torch.equal(got, theirs)
                continue
            doubles, sizes = [precise(v) for v in arguments], [magnitude(v) for v in arguments]
            expected, bound = op(*doubles, **sample.kwargs), op(*sizes, **sample.kwargs)
            assert_close(got, expected, bound, str(sample))
            grad = torch.randn_like(got)
            gradients = torch.autograd.grad(got, tensors_of(arguments), grad)
            exact = torch.autograd.grad(expected, tensors_of(doubles), grad.to(expected.dtype))
            limits = torch.autograd.grad(bound, tensors_of(sizes), grad.abs().double())
            for a, b, c in zip(gradients, exact, limits, strict=True):
                assert_close(a, b, c, f"gradient of {sample}")
    assert min(counts.values()) >= 10
    with capsys.disabled():
        print(f"\n{op.name}: {sum(counts.values())} samples, {dict(counts)}", end=" ")


@pytest.mark.parametrize("op", [op for op in OPS if op.error_inputs_func], ids=lambda op: op.name.split(".")[-1])
def test_operator_error_inputs(op, capsys):
    ours = getattr(functional, op.name.split(".")[-1])
    count = 0
    for wrong in op.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count >= 10
    with capsys.disabled():
        print(f"\n{op.name}: {count} error inputs", end=" ")


@pytest.mark.parametrize("info", MODULES, ids=lambda m: m.name)
def test_module_samples(info, capsys):
    theirs = info.module_cls
    ours = getattr(torch_convarith, f"{theirs.__name__}Explicit")
    count = 0
    for training in (True, False):
        for sample in info.module_inputs_func(info, "cpu", torch.float64, True, training):
            made = sample.constructor_input
            torch.manual_seed(0)
            reference = theirs(*made.args, **made.kwargs).double().train(training)
            torch.manual_seed(0)
            layer = ours(*made.args, **made.kwargs).double().train(training)
            given = sample.forward_input
            torch.manual_seed(1)
            expected = reference(*given.args, **given.kwargs)
            torch.manual_seed(1)
            got = layer(*given.args, **given.kwargs)
            if "Lazy" in info.name:
                layer.load_state_dict(reference.state_dict())
                got = layer(*given.args, **given.kwargs)
            torch.testing.assert_close(got, expected)
            assert got.stride() == expected.stride()
            (x,) = given.args
            operands = [x, *layer.parameters()], [x, *reference.parameters()]
            grad = torch.randn_like(got)
            for a, b in zip(
                torch.autograd.grad(got, operands[0], grad),
                torch.autograd.grad(expected, operands[1], grad),
                strict=True,
            ):
                torch.testing.assert_close(a, b)
            count += 1
    assert count >= 4
    with capsys.disabled():
        print(f"\n{info.name}: {count} samples", end=" ")


def legacy_cases():
    """common_nn's tables: constructor arguments and input sizes."""
    for entry in (*nn_database.module_tests, *nn_database.get_new_module_tests()):
        if "Conv" not in (entry.get("module_name") or entry.get("fullname") or ""):
            continue
        if "constructor" in entry:
            layer = entry["constructor"]()
        else:
            layer = getattr(nn, entry["module_name"])(*entry.get("constructor_args", ()))
        if isinstance(layer, nn.modules.conv._ConvNd):
            yield layer, entry


def test_layers_of_the_legacy_table(capsys):
    count = 0
    for layer, entry in legacy_cases():
        layer = layer.double()
        x = entry["input_fn"]() if "input_fn" in entry else torch.randn(entry["input_size"])
        x = x.double().detach().requires_grad_()
        converted = torch_convarith.convert(copy.deepcopy(layer))
        assert type(converted) is not type(layer)
        expected, got = layer(x), converted(x)
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()
        if got.numel():
            for a, b in zip(
                torch.autograd.grad(got.square().sum(), [x, *converted.parameters()]),
                torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()]),
                strict=True,
            ):
                torch.testing.assert_close(a, b)
        count += 1
    assert count >= 40
    with capsys.disabled():
        print(f"\ncommon_nn: {count} layers", end=" ")
