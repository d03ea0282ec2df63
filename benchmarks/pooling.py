"""Pooling, unfold, fold and local response normalisation against torch: times, ratios, share of copy bandwidth.

    python benchmarks/pooling.py --out benchmarks/results/pooling.json
    python benchmarks/pooling.py --dtype bfloat16 avg "avg backward"
    python benchmarks/pooling.py --channels-last

Contestants take turns in one process; a time is a median. Ratios are torch's time over ours; the share is that of the
bytes of the tensors that an operator must read and write, over those that ``copy_`` moves meanwhile in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Run, ceilings, environment, keep_heap, measure, remark

from torch_convarith import functional as C

Case = tuple[str, str, Run, Run, int]
SHAPES = {"alexnet": (8, 96, 55, 55), "vgg": (4, 64, 112, 112), "resnet": (8, 256, 28, 28), "small": (16, 512, 14, 14)}
WINDOWS = {"k2s2": (2, 2, 0), "k3s2": (3, 2, 0), "k3s2p1": (3, 2, 1), "k3s1p1": (3, 1, 1), "k5s2p2": (5, 2, 2)}


def backward(fn: Callable, x: torch.Tensor) -> Run:
    """The backward pass alone."""
    x = x.detach().requires_grad_()
    y = fn(x)
    y = y[0] if isinstance(y, tuple) else y
    g = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, x, g, retain_graph=True)


def cases(dtype: torch.dtype, channels_last: bool, kinds: list[str]) -> Iterator[Case]:
    """(kind, name, torch's, ours, bytes that must move), of the kinds, or of all."""
    item = dtype.itemsize
    for size, shape in SHAPES.items():
        x = torch.randn(shape).to(dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        positive = x.abs()  # torch's powers of negative numbers are NaN where p is no integer
        for window, (k, s, p) in WINDOWS.items():
            pairs = {
                "max": lambda m, v, k=k, s=s, p=p: m.max_pool2d(v, k, s, p),
                "max indices": lambda m, v, k=k, s=s, p=p: m.max_pool2d(v, k, s, p, return_indices=True),
                "avg": lambda m, v, k=k, s=s, p=p: m.avg_pool2d(v, k, s, p),
                "lp2": lambda m, v, k=k, s=s: m.lp_pool2d(v, 2.0, k, s),
                "lp2.5": lambda m, v, k=k, s=s: m.lp_pool2d(v, 2.5, k, s),
            }
            for kind, fn in pairs.items():
                v = positive if kind == "lp2.5" else x
                outputs = F.max_pool2d(x, k, s, 0 if kind[0] == "l" else p).numel()
                places = 8 * outputs if kind == "max indices" else 0
                if not kinds or kind in kinds:
                    moved = item * (x.numel() + outputs) + places
                    yield kind, f"{size} {window}", partial(fn, F, v), partial(fn, C, v), moved
                if kind != "max indices" and (not kinds or f"{kind} backward" in kinds):
                    reads_both = kind[0] == "l"  # x and y, beside their gradients
                    moved = item * (x.numel() + outputs) * (2 if reads_both else 1) + (
                        8 * outputs if kind == "max" else 0
                    )
                    pull = [backward(partial(fn, m), v) for m in (F, C)]
                    yield f"{kind} backward", f"{size} {window}", pull[0], pull[1], moved
        for beta in (0.75, 0.6) if item >= 4 else ():  # torch's has no half precisions
            fn = lambda m, v, beta=beta: m.local_response_norm(v, 5, 5e-4, beta, 2.0)  # noqa: E731
            if not kinds or "lrn" in kinds:
                yield "lrn", f"{size} beta {beta}", partial(fn, F, x), partial(fn, C, x), 2 * item * x.numel()
            if not kinds or "lrn backward" in kinds:
                pull = [backward(partial(fn, m), x) for m in (F, C)]
                yield "lrn backward", f"{size} beta {beta}", pull[0], pull[1], 3 * item * x.numel()
        x = x[:1].contiguous()
        for window, (k, s, p) in WINDOWS.items():
            columns = F.unfold(x, k, padding=p, stride=s)
            moved = item * (x.numel() + columns.numel())
            if not kinds or "unfold" in kinds:
                run = [partial(m.unfold, x, k, padding=p, stride=s) for m in (F, C)]
                yield "unfold", f"{size} {window}", run[0], run[1], moved
            if not kinds or "fold" in kinds:
                run = [partial(m.fold, columns, shape[2:], k, padding=p, stride=s) for m in (F, C)]
                yield "fold", f"{size} {window}", run[0], run[1], moved


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="only these, for example 'max' or 'max indices'")
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each case")
    parser.add_argument("--rounds", type=int, default=7, help="at least")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "environment": environment() | {"heap_kept": keep_heap()},
        "ceilings": ceilings(options.threads),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "results": [],
    }
    copy = result["ceilings"]["copy_gbytes"] * 1e9
    print(f"copy {copy / 1e9:.1f} GB/s")
    ratios: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for kind, name, theirs, ours, moved in cases(getattr(torch, options.dtype), options.channels_last, options.kinds):
        times, conditions = measure({"torch": theirs, "ours": ours}, options.seconds, options.rounds)
        t, o = times["torch"]["median"], times["ours"]["median"]
        share = moved / o / copy
        ratios[kind].append(t / o)
        shares[kind].append(share)
        result["results"].append(
            {"kind": kind, "case": name, "bytes": moved, "times": times, "copy_share": share, **conditions}
        )
        print(
            f"{kind:16s} {name:20s} torch {t * 1e3:8.3f} ms  ours {o * 1e3:8.3f} ms  {t / o:6.2f}x"
            f"  {share:5.0%}{remark(conditions)}",
            flush=True,
        )
    print("\nkind             geometric mean   least   mean share of copy")
    for kind, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{kind:16s} {mean:14.2f} {min(values):7.2f} {sum(shares[kind]) / len(shares[kind]):8.0%}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
