"""Pooling, unfold, fold and local response normalisation against torch: times, ratios, share of copy bandwidth.

    python benchmarks/pooling.py [--threads 2] [--repeats 15] [--out results.json] [name ...]

Contestants take turns in one process; a time is a median. Ratios are torch's time over ours; the bandwidth is that of
the tensors an operator must read and write, over that of ``copy_`` on the same machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import torch_convarith
from torch_convarith import functional as C

Case = tuple[str, str, Callable[[], object], Callable[[], object], int]
SHAPES = {"alexnet": (8, 96, 55, 55), "vgg": (4, 64, 112, 112), "resnet": (8, 256, 28, 28), "small": (16, 512, 14, 14)}
WINDOWS = {"k2s2": (2, 2, 0), "k3s2": (3, 2, 0), "k3s2p1": (3, 2, 1), "k3s1p1": (3, 1, 1), "k5s2p2": (5, 2, 2)}


def median(times: list[float]) -> float:
    """The middle one."""
    return sorted(times)[len(times) // 2]


def compete(theirs: Callable, ours: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of each, turn by turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(-2, repeats):
        for fn, kept in zip((theirs, ours), times, strict=True):
            start = time.perf_counter()
            fn()
            if run >= 0:
                kept.append(time.perf_counter() - start)
    return median(times[0]), median(times[1])


def backward(fn: Callable, x: torch.Tensor) -> Callable[[], object]:
    """The backward pass alone."""
    x = x.detach().requires_grad_()
    y = fn(x)
    y = y[0] if isinstance(y, tuple) else y
    g = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, x, g, retain_graph=True)


def cases() -> Iterator[Case]:
    """(kind, name, torch's, ours, bytes that must move)."""
    for size, shape in SHAPES.items():
        x = torch.randn(shape)
        for window, (k, s, p) in WINDOWS.items():
            pairs = {
                "max": (lambda m, v, k=k, s=s, p=p: m.max_pool2d(v, k, s, p), 4),
                "max indices": (lambda m, v, k=k, s=s, p=p: m.max_pool2d(v, k, s, p, return_indices=True), 12),
                "avg": (lambda m, v, k=k, s=s, p=p: m.avg_pool2d(v, k, s, p), 4),
                "lp2": (lambda m, v, k=k, s=s: m.lp_pool2d(v, 2.0, k, s), 4),
                "lp2.5": (lambda m, v, k=k, s=s: m.lp_pool2d(v.abs(), 2.5, k, s), 4),
            }
            for kind, (fn, per_output) in pairs.items():
                outputs = fn(F, x)
                outputs = (outputs[0] if isinstance(outputs, tuple) else outputs).numel()
                moved = 4 * x.numel() + per_output * outputs
                yield kind, f"{size} {window}", lambda: fn(F, x), lambda: fn(C, x), moved  # noqa: B023
                if kind == "max indices":
                    continue
                moved = 4 * x.numel() * (2 if kind[0] == "l" else 1) + {"m": 12, "l": 8, "a": 4}[kind[0]] * outputs
                pull = [backward(lambda v, m=m: fn(m, v), x) for m in (F, C)]  # noqa: B023
                yield f"{kind} backward", f"{size} {window}", pull[0], pull[1], moved
        for beta in (0.75, 0.6):
            fn = lambda m, v, beta=beta: m.local_response_norm(v, 5, 5e-4, beta, 2.0)  # noqa: E731
            pull = [backward(lambda v, m=m: fn(m, v), x) for m in (F, C)]  # noqa: B023
            yield "lrn", f"{size} beta {beta}", lambda: fn(F, x), lambda: fn(C, x), 8 * x.numel()  # noqa: B023
            yield "lrn backward", f"{size} beta {beta}", pull[0], pull[1], 12 * x.numel()
        x = x[:1]
        for window, (k, s, p) in WINDOWS.items():
            columns = F.unfold(x, k, padding=p, stride=s)
            moved = 4 * (x.numel() + columns.numel())
            run = [lambda m=m: m.unfold(x, k, padding=p, stride=s) for m in (F, C)]  # noqa: B023
            yield "unfold", f"{size} {window}", run[0], run[1], moved
            run = [lambda m=m: m.fold(columns, shape[2:], k, padding=p, stride=s) for m in (F, C)]  # noqa: B023
            yield "fold", f"{size} {window}", run[0], run[1], moved


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="only these, for example 'max' or 'max indices'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = {
        "torch": torch.__version__,
        "torch_convarith": torch_convarith.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(environment))
    source, target = torch.randn(2, 1 << 23)
    seconds, _ = compete(lambda: target.copy_(source), lambda: None, args.repeats)
    copy = 2 * source.numel() * 4 / seconds
    print(f"copy {copy / 1e9:.1f} GB/s")
    results = []
    ratios: dict[str, list[float]] = defaultdict(list)
    for kind, name, theirs, ours, moved in cases():
        if args.kinds and kind not in args.kinds:
            continue
        t, o = compete(theirs, ours, args.repeats)
        ratios[kind].append(t / o)
        share = moved / o / copy
        results.append({"kind": kind, "case": name, "torch_s": t, "ours_s": o, "ratio": t / o, "copy_share": share})
        print(
            f"{kind:16s} {name:20s} torch {t * 1e3:8.3f} ms  ours {o * 1e3:8.3f} ms  {t / o:6.2f}x  {share:5.0%}",
            flush=True,
        )
    print("\nkind             geometric mean   least")
    for kind, values in ratios.items():
        print(f"{kind:16s} {math.exp(sum(map(math.log, values)) / len(values)):14.2f} {min(values):7.2f}")
    if args.out:
        args.out.write_text(
            json.dumps({"environment": environment, "copy_bytes_s": copy, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
