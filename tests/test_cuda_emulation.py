"""The emulation that the CUDA kernels are tested with: what it computes, and that it catches each kind of mistake."""

import ctypes
import re

import cuda_emulation
import numpy as np
import pytest
import torch


def run(name, a=None, b=None, out=None):
    """The text of the error, or an empty one."""
    c = cuda_emulation.library("self_test.so")
    c.self_test.restype = ctypes.c_char_p
    c.self_test.argtypes = [ctypes.c_char_p] + 3 * [ctypes.c_void_p]
    a, b, out = (torch.zeros(1) if t is None else t for t in (a, b, out))
    return c.self_test(name.encode(), a.data_ptr(), b.data_ptr(), out.data_ptr()).decode()


def integers(*shape, dtype=torch.float32, seed=0):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=cuda_emulation.ORDERS)
def order(request):
    with cuda_emulation.order(request.param):
        yield request.param


@pytest.mark.parametrize(
    ("name", "m", "k", "dtype"),
    [
        ("tf32", 16, 8, torch.float32),
        ("bf16", 16, 16, torch.float32),
        ("f16", 16, 16, torch.float32),
        ("ldmatrix", 16, 16, torch.float32),
        ("f64", 8, 4, torch.float64),
    ],
)
def test_fragments(name, m, k, dtype, order):
    a, b, d = integers(m, k, dtype=dtype), integers(k, 8, dtype=dtype, seed=1), torch.empty(m, 8, dtype=dtype)
    assert run(name, a, b, d) == ""
    assert torch.equal(d, a @ b + 1)


def test_layouts_are_bijections():
    c = cuda_emulation.library("self_test.so")
    c.layouts_are_bijections.restype = ctypes.c_bool
    assert c.layouts_are_bijections()


def test_tf32_rounds_to_ten_bits():
    a, b, d = torch.zeros(16, 8), torch.zeros(8, 8), torch.empty(16, 8)
    b[0, 0] = 1
    a[:4, 0] = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11])  # the halves go away from zero
    assert run("tf32", a, b, d) == ""
    assert (d[:4, 0] - 1).tolist() == [1 + 2**-10, 1 + 2**-10, 1, -1 - 2**-10]


def test_half_precisions_are_torchs():
    c = cuda_emulation.library("self_test.so")
    c.from_half_bits.restype = ctypes.c_float
    c.from_half_bits.argtypes = [ctypes.c_uint16]
    for f, dtype in ((c.to_half_bits, torch.float16), (c.to_bfloat16_bits, torch.bfloat16)):
        f.restype, f.argtypes = ctypes.c_uint16, [ctypes.c_float]
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(-(2**31), 2**31, (4000,), generator=generator).to(torch.int32)
        around = torch.arange(0, 70000, 7) * 2.0**-26  # halves below the smallest normal one, and above
        values = torch.cat([bits.view(torch.float32), around, around * 2**27, -around])
        values = values[~values.isnan()]
        expected = values.to(dtype).view(torch.int16).numpy().astype(np.uint16)
        assert np.array_equal(np.array([f(v) for v in values.tolist()], dtype=np.uint16), expected)
    every = torch.arange(2**16).to(torch.int32).to(torch.uint16).view(torch.float16).float()
    got = torch.tensor([c.from_half_bits(i) for i in range(2**16)])
    assert torch.equal(got.nan_to_num(7), every.nan_to_num(7))


def test_barriers_and_copies(order):
    x = torch.arange(128.0)
    for name in ("reverse", "async"):
        y = torch.empty(128)
        assert run(name, x, out=y) == ""
        assert torch.equal(y, x.view(2, 64).flip(1).flatten())
    y = torch.empty(64)
    assert run("zero fill", x, out=y) == ""
    assert torch.equal(y.view(8, 2, 4)[:, 0], x[:64].view(8, 2, 4)[:, 0])
    assert not y.view(8, 2, 4)[:, 1].any()


def test_warp(order):
    x, y = integers(32), torch.empty(4)
    assert run("warp sum", x, out=y) == ""
    assert y.tolist() == [x.sum(), (x > 0).sum(), x[5], x[1]]


def test_a_missing_barrier_shows():
    x, y = torch.arange(128.0), torch.empty(128)
    for name in cuda_emulation.ORDERS:
        with cuda_emulation.order(name):
            run("reverse without barrier", x, out=y)
            assert y.isnan().any()


def test_a_missing_wait_shows(order):
    y = torch.empty(128)
    run("async without wait", torch.arange(128.0), out=y)
    assert y.isnan().any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "exit before a barrier",
            r"wait for others that do not come: .* in __syncthreads\(\) at self_test.cu:\d+.* exited",
        ),
        ("different barriers", r"__syncthreads\(\) while others wait in another, at self_test.cu:\d+"),
        ("half a warp", r"__shfl_xor_sync|with a lane that has exited"),
        ("past shared", r"an access to 0x\w+, outside of the memory it may touch, by thread \(\d+, 0, 0\) of block"),
        ("just behind shared", "wrote 0 bytes behind the end of its shared memory"),
        ("misaligned", "a misaligned or null access"),
        ("null", "a misaligned or null access"),
        ("copy left", "copies by cp.async on their way"),
        ("check", r"a device_check\(\) does not hold, by thread"),
        ("too many threads", "beyond the limits"),
        ("too much shared", "beyond the limits"),
    ],
)
def test_mistakes_are_errors(name, message, order):
    x, y = torch.arange(128.0), torch.zeros(128)
    assert re.search(message, run(name, x, out=y), re.DOTALL)
    assert run("reverse", x, out=y) == ""  # and the next launch is sound


def write_behind(x):
    ctypes.memset(x.data_ptr() + x.nbytes, 0, 1)


def test_an_access_outside_of_a_guarded_tensor_is_an_error():
    with cuda_emulation.guarded():
        assert "outside of the memory it may touch" in run("past global", torch.arange(64.0), out=torch.empty(64))
    with pytest.raises(AssertionError, match="wrote outside"), cuda_emulation.guarded():
        write_behind(torch.empty(3))
    with cuda_emulation.guarded():
        assert torch.empty(3, 5).isnan().all()
        torch.empty(3).fill_(0)
