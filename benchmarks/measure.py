"""What the benchmarks share: turns in one process, the CPU time of others, the machine and its ceilings."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_convarith as tc

Run = Callable[[], Any]


def cpu_seconds() -> tuple[float, float] | None:
    """(busy on the whole machine, of it ours), or None where /proc/stat is not."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, fields)
    own = os.times()
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def measure(runs: dict[str, Run], seconds: float, rounds: int) -> tuple[dict[str, dict[str, float]], float | None]:
    """Statistics of each contestant, in seconds, and how many cores others kept busy."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    before, start = cpu_seconds(), time.perf_counter()
    count = 0
    while count < rounds or (time.perf_counter() - start < seconds and count < 10_000):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
        count += 1
    elapsed, after = time.perf_counter() - start, cpu_seconds()
    foreign = None
    if before and after and elapsed > 0.05:
        foreign = max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / elapsed
    result = {}
    for name, values in times.items():
        quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        result[name] = {
            "median": statistics.median(values),
            "lower": quarters[0],
            "upper": quarters[2],
            "minimum": min(values),
            "rounds": len(values),
        }
    return result, foreign


def ceilings(threads: int) -> dict[str, float]:
    """The machine's: multiply-adds by a product of matrices, and a copy of 64 MB counted as read and written."""
    a = torch.randn(1536, 1536)
    big, out = torch.randn(1 << 24), torch.empty(1 << 24)
    times, _ = measure({"gemm": lambda: a @ a, "copy": lambda: out.copy_(big)}, 0.5, 5)
    return {
        "threads": threads,
        "gemm_gflops": 2 * 1536**3 / times["gemm"]["minimum"] / 1e9,
        "copy_gbytes": 2 * big.nbytes / times["copy"]["minimum"] / 1e9,
    }


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": tc.build_info()["isa"],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_convarith": tc.__version__,
        "compiler": tc.build_info()["compiler"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
