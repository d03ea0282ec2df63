"""The CUDA kernels, but for the convolutions', emulated on the CPU, against the CPU's operators and plain loops."""

import cuda_emulation
import pytest
import torch
from cases import CASES, case

OPS = torch.ops.torch_convarith
ORDERS = list(cuda_emulation.ORDERS)
NUMBERS = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.fixture(params=ORDERS)
def order(request):
    with cuda_emulation.order(request.param):
        yield


def integers(*shape, dtype=torch.float32, seed=0, largest=4):
    low = 0 if dtype == torch.uint8 else -largest
    return torch.randint(low, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(operator, *args, exact=True):
    """The emulated operator, over guarded tensors, against the CPU's."""
    emulated = getattr(cuda_emulation.operators(ROOM[operator]), operator)
    expected = getattr(OPS, operator)(*args)
    with cuda_emulation.guarded():
        got = emulated(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
    several = isinstance(expected, tuple | list)
    for ours, theirs in zip(got if several else [got], expected if several else [expected], strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.stride() == theirs.stride()
        if exact:
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    return got


MATRIX = ("csr", "csr_weight", "conv_csr", "conv_transpose_csr", "conv_weight_csr")
ROOM = {"zero_insert": "zero_insert", "zero_remove": "zero_insert", **dict.fromkeys(MATRIX, "matrix")}

# zero_insert ---------------------------------------------------------------------------------------------------------

STRETCHES = [
    ((2, 3, 4, 5), (1, 1), (0, 0, 0, 0)),
    ((2, 3, 4, 5), (2, 3), (1, 2, 0, 3)),
    ((3, 7), (4,), (-2, -3)),
    ((2, 2, 3, 4, 3), (3, 1, 2), (2, 1, -1, 0, 0, -2)),
    ((300, 1, 1), (2, 2), (1, 1, 1, 1)),
    ((0, 2, 3), (2,), (1, 1)),
    ((2, 0), (2,), (1, 1)),
]


@pytest.mark.parametrize("stretch", STRETCHES, ids=str)
def test_zero_insert(stretch, order):
    size, stride, padding = stretch
    x = integers(*size)
    y = compare("zero_insert", x, stride, padding)
    compare("zero_remove", integers(*y.shape, seed=1), size, stride, padding)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_zero_insert_in_every_dtype(dtype):
    y = compare("zero_insert", integers(2, 3, 4, dtype=dtype), (2, 3), (1, -1, 0, 2))
    compare("zero_remove", y, (2, 3, 4), (2, 3), (1, -1, 0, 2))


# The explicit matrix -------------------------------------------------------------------------------------------------

MODES = ("zeros", "reflect", "replicate", "circular")
MORE_CASES = [
    case(3, 5, 7, (9, 11), 3, padding=1),  # several chunks of entries
    case(2, 1, 1, (40,), 3, stride=2, padding=((5, 0),)),
    case(1, 40, 2, (3, 3), 3, padding=1),  # more weights than a warp has lanes
]


def repeats(c, mode):
    """Whether the mode can make the padding."""
    limit = {"zeros": 10**9, "reflect": -1, "circular": 0, "replicate": 10**9}[mode]
    return all(max(pad) <= i + limit for i, pad in zip(c.input, c.padding, strict=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("c", CASES + MORE_CASES, ids=str)
def test_csr(c, mode, transposed):
    if not repeats(c, mode):
        return
    w = integers(*c.w_shape)
    rest = (c.input, *c.geometry, mode, transposed)
    _, _, values = compare("csr", w, *rest)
    compare("csr_weight", integers(*values.shape, seed=1), w.shape, *rest)


def test_csr_in_any_order(order):
    c = CASES[3]
    for transposed in (False, True):
        rest = (c.input, *c.geometry, "reflect", transposed)
        _, _, values = compare("csr", integers(*c.w_shape), *rest)
        compare("csr_weight", integers(*values.shape, seed=1), c.w_shape, *rest)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_csr_in_every_dtype(mode, dtype):
    c = CASES[1]
    _, _, values = compare("csr", integers(*c.w_shape, dtype=dtype), c.input, *c.geometry, mode, False)
    compare("csr_weight", values, c.w_shape, c.input, *c.geometry, mode, False)


def test_csr_of_a_weight_with_any_strides():
    w = integers(3, 3, 4, 6).permute(3, 2, 1, 0)
    compare("csr", w, (5, 6), (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", False)


@pytest.mark.parametrize("n", [1, 3, 17, 33, 150])
def test_products(n, order):
    c = case(n, 4, 6, (7, 6), (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
    x, w, y = (integers(*shape, seed=i) for i, shape in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)


@pytest.mark.parametrize("c", CASES, ids=str)
def test_products_of_every_case(c):
    x, w, y = (integers(*shape, seed=i) for i, shape in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_products_in_every_dtype(dtype):
    c = CASES[2]
    x, w, y = (integers(*s, seed=i, dtype=dtype, largest=2) for i, s in enumerate((c.x_shape, c.w_shape, c.y_shape)))
    compare("conv_csr", x, w, *c.geometry)
    compare("conv_transpose_csr", y, w, c.input, *c.geometry)
    compare("conv_weight_csr", x, y, c.kernel, *c.geometry)
