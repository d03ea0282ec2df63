"""Which kernels the suite's operators run: the CPU's, CUDA's, or CUDA's emulated (tests/cuda_emulation).

The tests know nothing of it and keep their tensors on the CPU: every operator's CPU kernel is replaced by one that
hands its arguments over to the other kernels and takes the results back. So all that stands above an operator, from
autograd to torch.compile, is tested with either. Tensors that live on a GPU are test_cuda.py's.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cuda_emulation
import torch
from torch.utils._pytree import tree_map_only

ALL = ("cpu", "cuda", "emulated")
BY_DEFAULT = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
# Files that choose kernels themselves or call none; and tests of places that are none, which stop a GPU.
EXCEPT = {"test_build", "test_cuda", "test_cuda_conv", "test_cuda_emulation", "test_cuda_kernels"}
EXCEPT |= {"test_kernels", "test_winograd"}
EXCEPT |= {"test_pooling.test_arguments_are_checked", "test_pooling.test_taps_are_checked"}


def operators() -> list[str]:
    """The names of all."""
    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    return sorted(operator for space, operator in names if space == "torch_convarith")


def emulated(operator: str) -> Callable:
    """The emulated kernel."""
    return lambda *args: getattr(cuda_emulation.operators(cuda_emulation.ROOMS[operator]), operator)(*args)


def on_cuda(operator: str) -> Callable:
    """The CUDA kernel, for tensors of the CPU."""
    call = getattr(torch.ops.torch_convarith, operator)

    def run(*args: Any) -> Any:
        there = call(*tree_map_only(torch.Tensor, lambda t: t.cuda(), args))
        return tree_map_only(torch.Tensor, lambda t: t.cpu(), there)

    return run


@contextlib.contextmanager
def instead_of_the_cpus(kernels: str) -> Iterator[None]:
    """Runs those of ALL for as long as this lasts."""
    if kernels == "cpu":
        yield
        return
    library = torch.library.Library("torch_convarith", "IMPL")
    make = {"cuda": on_cuda, "emulated": emulated}[kernels]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for operator in operators():
            library.impl(operator, make(operator), "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 convolutions on tensor cores may round to tf32. torch's own testing library, which other tests
    import, forbids to set torch.backends.cudnn.allow_tf32."""
    before = torch._C._get_cudnn_allow_tf32()
    torch._C._set_cudnn_allow_tf32(allowed)
    try:
        yield
    finally:
        torch._C._set_cudnn_allow_tf32(before)
