"""What a call costs before any arithmetic: tiny layers, ours and torch's in turn, on one thread.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --out benchmarks/results/overhead.json

A convolution of 1 x 1 x 8 x 8 by 3 x 3 does 324 multiplications; the rest of its microseconds is Python, checks,
dispatch and autograd. Medians of the rounds, in which the contestants take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import environment
from torch import nn

import torch_convarith as tc

Call = Callable[[], object]


def contestants() -> dict[str, tuple[Call, Call]]:
    """Name -> (torch's call, ours)."""
    x, w = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3)
    learnt = w.clone().requires_grad_()
    theirs, ours = nn.Conv2d(1, 1, 3), tc.Conv2dExplicit(1, 1, 3)

    def step(f: Call) -> Call:
        def run() -> None:
            y = f()
            assert isinstance(y, torch.Tensor)
            y.sum().backward()

        return run

    def pair(name: str, weight: torch.Tensor) -> tuple[Call, Call]:
        a, b = getattr(nn.functional, name), getattr(tc.functional, name)
        return (lambda: a(x, weight)), (lambda: b(x, weight))

    conv, transpose, recorded = pair("conv2d", w), pair("conv_transpose2d", w), pair("conv2d", learnt)
    return {
        "conv2d": conv,
        "conv_transpose2d": transpose,
        "conv2d, gradient recorded": recorded,
        "conv2d and its backward": (step(recorded[0]), step(recorded[1])),
        "layer with bias, gradient recorded": ((lambda: theirs(x)), (lambda: ours(x))),
    }


def seconds(call: Call, times: int) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def main() -> None:
    """Prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description="The overhead of a call, against torch's.")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=300, help="in a round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(f"{'microseconds':38}{'torch':>8}{'ours':>8}{'ours / torch':>14}")
    for name, calls in contestants().items():
        for call in calls:
            seconds(call, options.calls)
        rounds = [[seconds(call, options.calls) for call in calls] for _ in range(options.rounds)]
        torchs, ours = (statistics.median(times) * 1e6 for times in zip(*rounds, strict=True))
        results[name] = {"torch": torchs, "ours": ours}
        print(f"{name:38}{torchs:8.2f}{ours:8.2f}{ours / torchs:14.2f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        data = {"environment": environment(), "unit": "microseconds", "results": results}
        options.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
