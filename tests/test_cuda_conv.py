"""The CUDA convolutions, emulated on the CPU: every kernel, forced, against the CPU's plain kernels and plain loops."""

import ctypes
import itertools
from contextlib import contextmanager

import cuda_emulation
import numpy as np
import oracle
import pytest
import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_under_test import tf32
from test_kernels import CASES as CPU_CASES
from test_kernels import by, integers, tensors

import torch_convarith as tc

TILES = ("128x128", "128x32", "64x64")
PRODUCTS = [f"{algorithm}:{tile}" for algorithm in ("multiply_add", "tensor_core") for tile in TILES]
KERNELS = ["reference", "direct", *PRODUCTS]
FAST = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip
OPERATORS = ("conv", "conv_transpose", "conv_weight")
# The CPU's, but smaller where that has kernels for larger ones: here several tiles and a part of one are enough.
CASES = CPU_CASES | {
    "depthwise": (2, 1, 1, 5, (9, 17), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "depthwise-stride": (2, 1, 1, 3, (14, 35), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    "wide-stride": (1, 2, 19, 1, (5, 203), (3, 5), (1, 2), (1, 1, 2, 0), (1, 1)),
    "longer-than-a-box": (1, 70, 9, 1, (515,), (2,), (1,), (0, 0), (1,)),
    "images-large": (5, 9, 10, 1, (9, 13), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "3d-crop": (2, 10, 6, 1, (5, 7, 13), (1, 1, 3), (1, 2, 1), (-1, -1, 2, 3, 2, 4), (1, 2, 1)),
    "raw-rows": (2, 2, 6, 1, (17, 21), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "long-row": (1, 5, 20, 1, (500,), (3,), (1,), (1, 1), (2,)),
    "large-planes": (1, 3, 18, 1, (4, 10, 13), (3, 1, 1), (1, 1, 1), (1, 1, 0, 0, 0, 0), (1, 1, 1)),
}


@contextmanager
def forced(name, splits=0, packed_bytes=0):
    """The emulated operators, by one kernel: what _ops.forced_cuda_kernel is to the real ones."""
    emulated = cuda_emulation.operators("conv")
    force = cuda_emulation.library("conv.so").emulated_force_kernel
    force.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int64]
    force.restype = None
    force(name.encode(), splits, packed_bytes)
    try:
        yield emulated
    finally:
        force(b"auto", 0, 0)


def run(emulated, operator, *args):
    """Over guarded tensors, in the strides that they have."""
    with cuda_emulation.guarded():
        args = [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype).copy_(a) if isinstance(a, torch.Tensor) else a
                for a in args]  # fmt: skip
        return getattr(emulated, operator)(*args).clone()


def passes(x, w, y, geometry):
    """What each operator is given."""
    return {
        "conv": (x, w, *geometry),
        "conv_transpose": (y, w, x.shape[2:], *geometry),
        "conv_weight": (x, y, w.shape[2:], *geometry),
    }


def by_reference(arguments):
    """What the CPU's plain kernels make of them."""
    return {operator: by("reference", operator, *arguments[operator]) for operator in OPERATORS}


def problem(name, dtype=torch.float32, channels_last=False):
    """x, w and y of a case, in integers so small that no sum is rounded; and what the operators give."""
    x, w, geometry = tensors(CASES[name], dtype, largest=1 if dtype.itemsize == 2 else 3)
    y = integers(by("reference", "conv", x, w, *geometry).shape, 3, dtype, largest=1 if dtype.itemsize == 2 else 3)
    if channels_last:
        x, w, y = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, y))
    arguments = passes(x, w, y, geometry)
    return arguments, by_reference(arguments)


def compare(kernel, arguments, expected, **how):
    with forced(kernel, **how) as emulated:
        for operator in OPERATORS:
            got = run(emulated, operator, *arguments[operator])
            assert torch.equal(got, expected[operator]), (operator, how)
            assert got.stride() == expected[operator].stride()


@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_gives_the_plain_loops_integers(name, kernel):
    arguments, expected = problem(name)
    compare(kernel, arguments, expected)
    if kernel != "reference":
        compare(kernel, arguments, expected, splits=3)


TWO_AXES = [name for name in CASES if len(CASES[name][4]) == 2]


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("name", TWO_AXES)
def test_channels_last(name, kernel):
    compare(kernel, *problem(name, channels_last=True))


@pytest.mark.parametrize("dtype", FAST[1:], ids=str)
@pytest.mark.parametrize("kernel", ["direct", *PRODUCTS[3:]])
@pytest.mark.parametrize(
    "name", ["remainders", "depthwise", "groups-4", "crop-stride", "first-layer", "pointwise", "1d", "3d-stride"]
)
def test_other_dtypes(name, kernel, dtype):
    for channels_last in (False, True)[: len(CASES[name][4])]:
        if channels_last and len(CASES[name][4]) == 3:
            continue
        compare(kernel, *problem(name, dtype, channels_last))


# Sizes in whole vectors of 16 bytes: batch, channels, size, out channels, kernel, geometry, channels_last.
VECTORS = {
    # x is copied along its channels, w stands as it is multiplied; the weight's gradient copies across the channels.
    "channels": (2, 48, (9, 10), 40, (3, 3), ((2, 1), (1, 0, 1, 1), (1, 2), 2), True),
    # x is copied across, and for the weight's gradient along, neighbouring outputs.
    "pointwise": (3, 20, (6, 12), 24, (1, 1), ((1, 1), (0, 0, 0, 0), (1, 1), 1), False),
    # Only y can be copied along the outputs.
    "padded": (3, 7, (6, 12), 24, (3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 1), False),
}


@pytest.mark.parametrize("dtype", FAST, ids=str)
@pytest.mark.parametrize("kernel", PRODUCTS)
@pytest.mark.parametrize("name", VECTORS)
def test_whole_vectors(name, kernel, dtype):
    n, c, size, k, taps, geometry, channels_last = VECTORS[name]
    x = integers((n, c, *size), 1, dtype, largest=1)
    w = integers((k, c // geometry[3], *taps), 2, dtype, largest=1)
    y = by("reference", "conv", x, w, *geometry).sign()
    if channels_last:
        x, w, y = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, y))
    arguments = passes(x, w, y, geometry)
    expected = by_reference(arguments)
    compare(kernel, arguments, expected)
    # Not aligned: one element further on.
    shifted = [torch.empty(t.numel() + 1, dtype=dtype)[1:].as_strided(t.shape, t.stride()).copy_(t) for t in (x, w, y)]
    with forced(kernel) as emulated:
        for operator, args in passes(*shifted, geometry).items():
            assert torch.equal(getattr(emulated, operator)(*args), expected[operator]), operator


@pytest.mark.parametrize("kernel", PRODUCTS)
def test_planes_between_gaps_are_no_whole_vectors(kernel):
    # Channels begin at whole vectors, and have 15 elements of 16.
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    x, w, y = integers((3, 20, 3, 5), 1), integers((24, 20, 1, 1), 2), integers((3, 24, 3, 5), 3)
    x, y = (torch.empty_strided(t.shape, (16 * t.shape[1], 16, 5, 1)).copy_(t) for t in (x, y))
    expected = by_reference(passes(x, w, y, geometry))
    with forced(kernel) as emulated:
        for operator, args in passes(x, w, y, geometry).items():
            assert torch.equal(run(emulated, operator, *args), expected[operator]), operator


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_integers_wrap_and_complex_numbers_multiply(dtype):
    for name in ("groups-2", "crop-stride", "dilation-stride", "1d-upsampling", "3d-stride"):
        x, w, geometry = tensors(CASES[name], dtype, largest=100)
        if dtype.is_complex:
            x, w = x + 1j * integers(x.shape, 4).to(dtype), w - 1j * integers(w.shape, 5).to(dtype)
        y = by("reference", "conv", x, w, *geometry)
        arguments = passes(x, w, y, geometry)
        compare(
            "auto", arguments, {operator: by("reference", operator, *arguments[operator]) for operator in OPERATORS}
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(), st.sampled_from([*KERNELS, "auto"]), st.integers(0, 4), st.integers(0, 5))
def test_any_geometry_in_any_strides(c, kernel, splits, layout):
    x, w, y = c.tensors()
    options = {**c.options, "padding": c.padding}
    expected = {
        "conv": oracle.conv(x.numpy(), w.numpy(), **options),
        "conv_transpose": oracle.conv_transpose(y.numpy(), w.numpy(), c.input, **options),
        "conv_weight": oracle.conv_weight(x.numpy(), y.numpy(), c.kernel, **options),
    }
    arguments = passes(*(in_layout(t.float(), layout + i) for i, t in enumerate((x, w, y))), c.geometry)
    with forced(kernel, splits) as emulated:
        for operator in OPERATORS:
            got = run(emulated, operator, *arguments[operator])
            assert np.array_equal(got.long().numpy(), expected[operator]), operator


def in_layout(t, layout):
    """The same values in other strides: dimensions swapped, with gaps, or all of them one number."""
    if layout % 3 == 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout % 3 == 2:
        gaps = torch.zeros(*t.shape, 2)
        gaps[..., 0] = t
        return gaps[..., 0]
    return t


@pytest.mark.parametrize("kernel", KERNELS)
def test_expanded_tensors(kernel):
    x, w = torch.tensor(2.0).expand(2, 6, 7, 8), torch.tensor(3.0).expand(4, 3, 3, 3)
    geometry = ((1, 2), (1, 1, 0, 1), (1, 1), 2)
    y = torch.tensor(1.0).expand(by("reference", "conv", x, w, *geometry).shape)
    arguments = passes(x, w, y, geometry)
    expected = by_reference(passes(x.contiguous(), w.contiguous(), y.contiguous(), geometry))
    with forced(kernel) as emulated:
        for operator in OPERATORS:
            assert torch.equal(getattr(emulated, operator)(*arguments[operator]), expected[operator])


@pytest.mark.parametrize("kernel", PRODUCTS)
def test_weights_packed_in_pieces(kernel):
    for name in ("remainders", "groups-2", "1d-upsampling", "first-layer"):
        arguments, expected = problem(name)
        compare(kernel, arguments, expected, packed_bytes=2000)
        compare(kernel, arguments, expected, packed_bytes=2000, splits=2)


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("batch", [0, 2])
def test_empty_batches_and_channels(batch, channels):
    x, w = torch.ones(batch, channels, 8, 8), torch.ones(4, channels, 3, 3)
    geometry = ((1, 1), (1,) * 4, (1, 1), 1)
    arguments = passes(x, w, torch.ones(batch, 4, 8, 8), geometry)
    compare("auto", arguments, by_reference(arguments))


# Floating point ------------------------------------------------------------------------------------------------------


def random_problem(shape=(2, 12, 13, 9), weight=(20, 12, 3, 3), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=generator).to(dtype) for s in (shape, weight))
    geometry = ((2, 1), (1, 1, 2, 0), (1, 1), 1)
    y = torch.randn(by("reference", "conv", x, w, *geometry).shape, generator=generator).to(dtype)
    return passes(x, w, y, geometry)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_do_not_depend_on_the_order_of_threads(kernel):
    arguments = random_problem()
    for operator in OPERATORS:
        with forced(kernel, splits=3) as emulated:
            results = []
            for order in cuda_emulation.ORDERS:
                with cuda_emulation.order(order):
                    results.append(run(emulated, operator, *arguments[operator]))
        assert all(torch.equal(results[0], r) for r in results)


def error(got, arguments, operator):
    """Relative to the largest that the sum could have been."""
    double = [a.double() if torch.is_tensor(a) else a for a in arguments[operator]]
    exact = by("reference", operator, *double)
    scale = by("reference", operator, *(a.abs() if torch.is_tensor(a) else a for a in double)).max()
    return ((got - exact).abs().max() / scale).item()


@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_is_tf32_only_where_torch_allows_it(operator):
    arguments = random_problem()
    errors = {}
    for allowed in (False, True):
        with tf32(allowed), forced("tensor_core:64x64") as emulated:
            errors[allowed] = error(run(emulated, operator, *arguments[operator]), arguments, operator)
    assert errors[False] < 1e-6  # a few roundings to 24 bits
    assert 1e-6 < errors[True] < 2**-10  # every factor to 11 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_half_precisions_are_summed_in_float(operator, dtype):
    arguments = random_problem(dtype=dtype)
    expected = by("reference", operator, *(a.float() if torch.is_tensor(a) else a for a in arguments[operator]))
    for kernel in ("reference", "direct", "tensor_core:64x64"):
        with forced(kernel) as emulated:
            got = run(emulated, operator, *arguments[operator])
        torch.testing.assert_close(got.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)  # one rounding


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_meets_no_padding(kernel, value):
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    x, w, y = torch.rand(2, 5, 4, 6) + 1, torch.rand(9, 5, 3, 3) + 1, torch.rand(2, 9, 4, 6) + 1
    places = [(x, (0, 1, 0, 5)), (x, (1, 2, 2, 2)), (w, (3, 1, 0, 0)), (w, (8, 4, 1, 1)), (y, (1, 0, 3, 0))]
    for tensor, place in places:
        before = tensor[place].item()
        tensor[place] = value
        for splits, operator in itertools.product((0, 2), OPERATORS):
            args = passes(x, w, y, geometry)[operator]
            with forced(kernel, splits=splits) as emulated:
                got = run(emulated, operator, *args)
            expected = by("reference", operator, *args)
            assert torch.equal(got.isnan(), expected.isnan()), (place, operator)
            assert torch.equal(got.isinf(), expected.isinf()), (place, operator)
        tensor[place] = before


# The choice ----------------------------------------------------------------------------------------------------------

VGG = ((32, 256, 56, 56), (256, 256, 3, 3))


def explain(x, w, **options):
    return tc.explain_kernel(x, w, device="cuda", **{"padding": 1, **options})


def test_explain_kernel():
    kernel = explain(*VGG, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert (kernel.device, kernel.isa, kernel.algorithm) == ("cuda", "sm_80", "tensor_core")
    assert kernel.tile in TILES
    assert kernel.scratch_bytes == 0  # weights stand in channels_last as they are multiplied
    assert explain(*VGG).algorithm == "tensor_core"
    with tf32(False):
        assert explain(*VGG).algorithm == "multiply_add"
    assert explain(*VGG, dtype=torch.int32).algorithm == "reference"
    assert explain(*VGG, dtype=torch.complex64).algorithm == "reference"
    for operator in OPERATORS:
        assert explain((32, 256, 56, 56), (256, 1, 3, 3), groups=256, operator=operator).algorithm == "direct"
    with pytest.raises(ValueError, match="device must be cpu or cuda"):
        tc.explain_kernel(*VGG, device="meta")


def test_sums_are_split_where_there_are_few_tiles():
    assert explain((1, 512, 7, 7), (512, 512, 3, 3)).splits > 1
    assert explain((64, 64, 56, 56), (64, 64, 3, 3), operator="conv_weight").splits > 1
    assert explain(*VGG).splits == 1


def test_no_inserted_zero_is_multiplied():
    kernel = explain((8, 64, 56, 56), (64, 64, 3, 3), stride=2, operator="conv_transpose")
    assert kernel.phases == 4
    assert kernel.multiplications == 8 * 64 * 64 * 9 * 28 * 28


def test_indices_that_do_not_fit_32_bits_go_to_the_reference():
    assert explain((2, 2, 40000, 40000), (2, 1, 3, 3), groups=2).algorithm == "reference"
    assert explain((1, 1, 64, 64), (1, 1, 1, 1), stride=32, operator="conv_transpose").algorithm == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_scratch_is_bounded(operator, dtype):
    for shape, weight, padding in [
        ((64, 56, 56), (64, 64, 3, 3), 1),
        ((512, 7, 7), (512, 512, 3, 3), 1),
        ((2048, 7, 7), (2048, 2048, 3, 3), 1),
        ((3, 224, 224), (64, 3, 7, 7), 3),
        ((256, 6, 6), (4096, 256, 6, 6), 0),
        ((512, 14, 14), (512, 1, 3, 3), 1),
    ]:
        for batch in (1, 32, 512, 2**13):
            kernel = tc.explain_kernel(
                (batch, *shape), weight, padding=padding, operator=operator, dtype=dtype, device="cuda",
                groups=shape[0] // weight[1],
            )  # fmt: skip
            assert kernel.scratch_bytes <= 64 * 2**20
