"""What needs a GPU: tensors that live there, streams, graphs, several devices, autocast, compilation."""

import copy

import pytest
import torch
from kernels_under_test import tf32
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

import torch_convarith as tc
from torch_convarith import functional as C

OPS = torch.ops.torch_convarith


@pytest.fixture(autouse=True)
def gpu():
    """Skips without one; float32 is full precision for as long as a test does not ask for tf32."""
    if not torch.cuda.is_available() or not tc.build_info()["cuda"]:
        pytest.skip("needs a GPU, and torch and torch_convarith built for CUDA")
    with tf32(False):
        yield


@pytest.fixture
def second_gpu(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


CONV = ((2, 2), (1, 1, 1, 1), (1, 1), 2)  # stride, padding, dilation, groups
WINDOW = ((3, 2), (2, 1), (1, 1, 0, 0), (1, 1))  # kernel, stride, padding, dilation
X, W, Y = random(2, 4, 9, 8), random(6, 2, 3, 3, seed=1), random(2, 6, 5, 4, seed=2)
POOLED, INDICES = OPS.max_pool_with_indices(X, *WINDOW, True, False)
TAPS = OPS.max_pool_with_taps(X, *WINDOW, True, False)[1]
NORM = OPS.lp_pool(X, 2.5, False, *WINDOW, True)
# Every operator once: name, arguments.
CALLS = {
    "conv": (X, W, *CONV),
    "conv_transpose": (Y, W, (9, 8), *CONV),
    "conv_weight": (X, Y, (3, 3), *CONV),
    "conv_csr": (X, W, *CONV),
    "conv_transpose_csr": (Y, W, (9, 8), *CONV),
    "conv_weight_csr": (X, Y, (3, 3), *CONV),
    "csr": (W, (9, 8), *CONV, "reflect", True),
    "csr_weight": (OPS.csr(W, (9, 8), *CONV, "circular", True)[2], W.shape, (9, 8), *CONV, "circular", True),
    "zero_insert": (X, (2, 3), (1, 0, 2, 1)),
    "zero_remove": (OPS.zero_insert(X, (2, 3), (1, 0, 2, 1)), X.shape, (2, 3), (1, 0, 2, 1)),
    "max_pool": (X, *WINDOW, True, False),
    "max_pool_with_indices": (X, *WINDOW, True, True),
    "pool_select": (X, INDICES, 2),
    "pool_scatter": (POOLED, (9, 8), INDICES, 2),
    "max_pool_with_taps": (X, *WINDOW, True, True),
    "tap_select": (X, TAPS, *WINDOW, True),
    "tap_scatter": (POOLED, (9, 8), TAPS, *WINDOW, True),
    "pool_ties": (X, X, POOLED, *WINDOW, True, True),
    "pool_ties_transpose": (POOLED, (9, 8), X, POOLED, *WINDOW, True, True),
    "avg_pool": (X, *WINDOW, True, False, None),
    "avg_pool_transpose": (POOLED, (9, 8), *WINDOW, True, False, None),
    "lp_pool": (X, 2.5, False, *WINDOW, True),
    "lp_pool_backward": (POOLED, X, NORM, 2.5, False, *WINDOW, True),
    "unfold": (X, *WINDOW),
    "fold": (OPS.unfold(X, *WINDOW), (9, 8), *WINDOW),
    "lrn": (X, 1, 3, 1e-2, 0.75, 1.0),
    "lrn_backward": (X, X, 1, 3, 1e-2, 0.75, 1.0),
}


def moved(arguments, device):
    return tree_map_only(torch.Tensor, lambda t: t.to(device), arguments)


def call(name, device="cpu"):
    """An operator of CALLS with its tensors on a device; results on the CPU."""
    result = getattr(OPS, name)(*moved(CALLS[name], device))
    assert all(t.device == torch.device(device) for t in tree_leaves(result))
    return moved(result, "cpu")


@pytest.mark.parametrize("name", CALLS)
def test_operators(name):
    torch.testing.assert_close(call(name, "cuda:0"), call(name))


@pytest.mark.parametrize("name", CALLS)
def test_results_are_the_same_every_time(name):
    first = call(name, "cuda:0")
    for _ in range(5):
        torch.testing.assert_close(call(name, "cuda:0"), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_second_stream(name):
    """Work goes to the current stream: behind what is slow there, and nowhere else."""
    expected = call(name)
    args = moved(CALLS[name], "cuda")
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    contents = [t.clone() for t in tensors]
    for t in tensors:
        t.fill_(torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        for t, content in zip(tensors, contents, strict=True):
            t.copy_(content)
        result = getattr(OPS, name)(*args)
    stream.synchronize()
    torch.testing.assert_close(moved(result, "cpu"), expected)


@pytest.mark.parametrize("name", CALLS)
def test_graph_capture(name):
    args = moved(CALLS[name], "cuda")
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    contents = [t.clone() for t in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        getattr(OPS, name)(*args)
    torch.cuda.current_stream().wait_stream(stream)
    for t in tensors:
        t.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = getattr(OPS, name)(*args)
    torch.randn(1 << 20, device="cuda").sum()  # whatever capture left unowned would be overwritten
    for t, content in zip(tensors, contents, strict=True):
        t.copy_(content)
    graph.replay()
    torch.testing.assert_close(moved(result, "cpu"), call(name))


@pytest.mark.parametrize("name", CALLS)
def test_the_second_gpus_tensors(name, second_gpu):
    """While the first is the current one."""
    torch.testing.assert_close(call(name, "cuda:1"), call(name))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", ["conv", "conv_transpose", "conv_weight"])
def test_operands_on_two_devices_are_refused(name):
    first, second, *rest = CALLS[name]
    with pytest.raises(RuntimeError, match="same device"):
        getattr(OPS, name)(first.cuda(), second, *rest)


def test_sizes_beyond_32_bits():
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of free memory")
    x = torch.zeros(1, 1 << 16, (1 << 15) + 8, device="cuda", dtype=torch.int8)  # 2^31 + 2^19 elements
    x[0, -1, -4:] = 7
    assert OPS.max_pool(x, (4,), (4,), (0, 0), (1,), False, False)[0, -1, -1] == 7
    assert OPS.zero_insert(x, (1,), (0, 0))[0, -1, -1] == 7
    assert OPS.unfold(x, (2,), (2,), (0, 0), (1,))[0, -1, -1, -1] == 7


LAYERS = {
    "conv": lambda: tc.Conv2dExplicit(4, 6, 3, stride=2, padding=1, groups=2),
    "reflect": lambda: tc.Conv2dExplicit(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: tc.ConvTranspose2dExplicit(4, 6, 3, stride=2, padding=1, output_padding=1),
    "zero_insert": lambda: tc.ConvTranspose2dExplicit(4, 6, 3, stride=2, method="zero_insert"),
    "matrix": lambda: tc.Conv2dExplicit(4, 6, 3, padding=1, method="matrix"),
    "max": lambda: tc.MaxPool2dExplicit(3, 2, 1),
    "average": lambda: tc.AvgPool2dExplicit(3, 2, 1),
    "norm": lambda: tc.LPPool2dExplicit(2, 3, 2),
    "unfold": lambda: tc.UnfoldExplicit(3, padding=1),
    "lrn": lambda: tc.LocalResponseNormExplicit(3),
    "local": lambda: tc.LocallyConnected2d(4, 6, (9, 8), 3),
}


def gradients(layer, x):
    """Output, and gradients of its square's sum."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [t.detach().cpu() for t in (y, x.grad, *(p.grad for p in layer.parameters()))]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, channels_last):
    layer = LAYERS[name]().double()
    x = random(2, 4, 9, 8).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(gradients(copy.deepcopy(layer).cuda(), x.cuda()), gradients(layer, x))


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers(name):
    torch._dynamo.reset()
    layer = LAYERS[name]().double().cuda()
    x = random(2, 4, 9, 8).cuda()
    expected = gradients(layer, x)
    layer.zero_grad()
    torch.testing.assert_close(gradients(torch.compile(layer, fullgraph=True), x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["conv", "transposed", "matrix"])
def test_autocast(name, dtype):
    layer = LAYERS[name]().cuda()
    x = random(2, 4, 9, 8).float().cuda()
    with torch.autocast("cuda", dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=3e-2, atol=3e-2)  # of operands rounded to 8 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conv_is_cudnns(dtype):
    x, w = random(8, 64, 28, 28).to("cuda", dtype), random(96, 64, 3, 3, seed=1).to("cuda", dtype) / 24
    exact = nn.functional.conv2d(x.double(), w.double(), padding=1)
    ours, theirs = (f(x, w, padding=1).double() for f in (C.conv2d, nn.functional.conv2d))
    # Rounded once, as cuDNN's: no further off than a few times its own error.
    assert (ours - exact).abs().max() <= 4 * (theirs - exact).abs().max()


def test_tf32_where_it_is_allowed():
    x, w = random(8, 64, 28, 28).to("cuda", torch.float32), random(96, 64, 3, 3, seed=1).to("cuda", torch.float32)
    exact = C.conv2d(x.double(), w.double(), padding=1)
    full = (C.conv2d(x, w, padding=1) - exact).abs().max()
    with tf32(True):
        rounded = (C.conv2d(x, w, padding=1) - exact).abs().max()
    assert full < 1e-4 * exact.abs().max()
    assert rounded < 3e-3 * exact.abs().max()
    assert rounded > full
