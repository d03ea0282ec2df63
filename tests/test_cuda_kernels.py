"""The CUDA kernels, but for the convolutions', emulated on the CPU, against the CPU's operators and plain loops."""

import cuda_emulation
import pytest
import torch

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


ROOM = {"zero_insert": "zero_insert", "zero_remove": "zero_insert"}

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
