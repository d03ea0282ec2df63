"""Scratch of a convolution, ours and torch's: memory beside operands and result, in a fresh process each.

    python benchmarks/memory.py
    python benchmarks/memory.py --suite layers transposed --out benchmarks/results/memory.json

A process that has loaded torch and run nothing forks for every measurement. The child runs a small layer, so that
threads and code are there; makes the tensors, has Linux forget its peak, calls once, and reads the peak of its resident
memory. The result's bytes are taken off. Code that a library generates for the layer stays in its number. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from measure import environment
from run import BACKENDS, PASSES, Case

from torch_convarith import problems
from torch_convarith.problems import Problem

MEGABYTE = 1 << 20
SMALL = (problems.parse("small n2 c16 k16 i16 f3 p1"), problems.parse("small n2 c16 k16 i16 f3 p1 T"))


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def scratch(problem: Problem, which: str, backend: str, threads: int) -> int:
    """Bytes at the peak of one call beyond what was there before and what the call returns."""
    torch.set_num_threads(threads)
    make = BACKENDS[backend]
    for small in SMALL:
        first = make(Case(small, torch.float32, False), which)
        assert first is not None
        first()
    run = make(Case(problem, torch.float32, False), which)
    assert run is not None
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = run()
    return max(0, status("VmHWM") - before - result.nbytes)


def in_a_fork(problem: Problem, which: str, backend: str, threads: int) -> int:
    """The same in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.write(writer, str(scratch(problem, which, backend, threads)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    if os.waitpid(child, 0)[1] != 0 or not answer:
        raise RuntimeError(f"{backend} failed in {which} of {problem}")
    return int(answer)


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=["layers", "transposed"])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        chosen = [problem for name in options.suite for problem in problems.find(name)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    print(f"{'MB of scratch':36}{'torch':>9}{'ours':>9}")
    for problem in chosen:
        for which in options.passes:
            numbers = {name: in_a_fork(problem, which, name, options.threads) for name in ("torch", "ours")}
            rows.append({"problem": str(problem), "pass": which, "scratch_bytes": numbers})
            columns = "".join(f"{n / MEGABYTE:9.1f}" for n in numbers.values())
            print(f"{problem.name:22} {which:13}{columns}", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        data = {"environment": environment(), "threads": options.threads, "results": rows}
        options.out.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
