"""What the benchmarks share: turns in one process, the CPU time of others, the machine and its ceilings."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_convarith as tc
from torch_convarith import _C

Run = Callable[[], Any]
FAR = 100
"""Nanoseconds: threads between which a cache line takes so long share no cache."""


def cpu_seconds() -> tuple[float, float] | None:
    """(busy on the whole machine, of it ours), or None where /proc/stat is not."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, fields)
    own = os.times()
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def keep_heap() -> bool:
    """Makes malloc keep whatever is freed; whether it could.

    Otherwise it depends on the order of frees whether a large output's pages are fresh from the system, which costs
    about a microsecond for each 4 KB, sometimes more than the layer, and meets the contestants by chance.
    """
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(trim_threshold, 1 << 30) and mallopt(mmap_max, 0))
    return False


def page_faults() -> int:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def statistics_of(values: list[float]) -> dict[str, float]:
    """Of the rounds' seconds."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        "median": statistics.median(values),
        "lower": quarters[0],
        "upper": quarters[2],
        "minimum": min(values),
        "rounds": len(values),
    }


def measure(
    runs: dict[str, Run], seconds: float, rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, float | None]]:
    """Statistics of each contestant, in seconds, with its page faults in a round; and the conditions meanwhile.

    Those are how many cores others kept busy, and how long a cache line took between two threads, before and after:
    where that changes, or is several times 50 ns, the cores are far from each other, and sharing is dear.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    faults = dict.fromkeys(runs, 0)
    handoffs = [_C.handoff_seconds(2000)]
    before, start = cpu_seconds(), time.perf_counter()
    count = 0
    while count < rounds or (time.perf_counter() - start < seconds and count < 10_000):
        for name, run in runs.items():
            faults[name] -= page_faults()
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
            faults[name] += page_faults()
        count += 1
    elapsed, after = time.perf_counter() - start, cpu_seconds()
    handoffs.append(_C.handoff_seconds(2000))
    conditions: dict[str, float | None] = {"foreign_cores": None}
    if before and after and elapsed > 0.05:
        conditions["foreign_cores"] = max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / elapsed
    if not math.isnan(sum(handoffs)):
        conditions["handoff_ns"] = max(handoffs) * 1e9
    return {n: {**statistics_of(values), "page_faults": faults[n] / count} for n, values in times.items()}, conditions


def remark(conditions: dict[str, Any]) -> str:
    """What a line of a table has to say of them."""
    foreign, handoff = conditions.get("foreign_cores") or 0, conditions.get("handoff_ns") or 0
    return (f"  ! others used {foreign:.1f} cores" if foreign > 0.1 else "") + (
        f"  ({handoff:.0f} ns from thread to thread)" if handoff > FAR else ""
    )


def copies_beyond_cache(nbytes: int) -> int:
    """How many copies of so many bytes exceed the L2 cache of the GPU twice over."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return max(1, min(256, math.ceil(2 * cache / nbytes)))


def recorded(runs: list[Run]) -> tuple[Run, bool]:
    """All runs in turn, as a CUDA graph where they can be captured; and whether they were."""

    def eager() -> None:
        for run in runs:
            run()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # choices of algorithms, lazy initialisation
            eager()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            eager()
    except RuntimeError:
        torch.cuda.synchronize()
        return eager, False
    return graph.replay, True


def measure_cuda(
    runs: dict[str, list[Run]], seconds: float, rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, bool]]:
    """Statistics of each contestant, in seconds for one run, and whether it was a graph."""
    replays = {name: recorded(copies) for name, copies in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    start, count = time.perf_counter(), 0
    while count < rounds or (time.perf_counter() - start < seconds and count < 10_000):
        for name, (replay, _) in replays.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3 / len(runs[name]))
        count += 1
    return {name: statistics_of(v) for name, v in times.items()}, {name: graph for name, (_, graph) in replays.items()}


def ceilings(threads: int) -> dict[str, float]:
    """The machine's: multiply-adds in registers and by a product of matrices, and a copy of 64 MB, read and written."""
    operations = 0

    def multiply_adds() -> None:
        nonlocal operations
        operations = _C.run_multiply_adds(0, 1_000_000)

    a = torch.randn(1536, 1536)
    big, out = torch.randn(1 << 24), torch.empty(1 << 24)
    times, _ = measure({"fma": multiply_adds, "gemm": lambda: a @ a, "copy": lambda: out.copy_(big)}, 0.5, 5)
    return {
        "threads": threads,
        "fma_gflops": operations / times["fma"]["minimum"] / 1e9,
        "gemm_gflops": 2 * 1536**3 / times["gemm"]["minimum"] / 1e9,
        "copy_gbytes": 2 * big.nbytes / times["copy"]["minimum"] / 1e9,
    }


def cuda_ceilings(dtype: torch.dtype) -> dict[str, float]:
    """The card's: multiply-adds by a product of matrices in the dtype, and a copy of 1 GB, read and written."""
    a = torch.randn(8192, 8192, device="cuda").to(dtype)
    big, out = torch.randn(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda")
    times, _ = measure_cuda({"gemm": [lambda: a @ a], "copy": [lambda: out.copy_(big)]}, 1.0, 5)
    return {
        "gemm_gflops": 2 * 8192**3 / times["gemm"]["minimum"] / 1e9,
        "copy_gbytes": 2 * big.nbytes / times["copy"]["minimum"] / 1e9,
    }


VARIABLES = (
    "TORCH_CONVARITH_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
"""What changes the speed of either side."""


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    gpu = {}
    if device == "cuda":
        card = torch.cuda.get_device_properties()
        gpu = {
            "gpu": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "gpu_memory": card.total_memory,
            "l2_cache": card.L2_cache_size,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **gpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": tc.build_info()["isa"],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_convarith": tc.__version__,
        "compiler": tc.build_info()["compiler"],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
