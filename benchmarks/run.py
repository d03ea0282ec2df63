"""Problems x passes x backends -> JSON, with the environment beside the numbers.

All contestants of a problem run in this process, in turn, so that whatever else the machine does meets them alike.
Times are medians of the rounds, with the quartiles and the minimum. CPU time that others took meanwhile is read from
/proc/stat and stored, and a warning says where it was more than a tenth of a core.

On a GPU (--device cuda) torch's contestant is cuDNN with cudnn.benchmark on, and csr is cuSPARSE. A contestant goes
through copies of the inputs that together exceed the L2 cache twice over, recorded as a CUDA graph where it can be, and
a round is one replay between two events. `bound` is the time that the card's own ceilings, measured first, would allow.

    python benchmarks/run.py --suite layers --passes forward grad_input grad_weight
    python benchmarks/run.py --suite layers transposed --threads 1 --out results/one_thread.json
    python benchmarks/run.py --suite deepbench --batch 8
    python benchmarks/run.py --suite networks --choices --out out/choices.json
    python benchmarks/run.py --random 150 --seed 1 --seconds 0.1 --out out/random.json
    python benchmarks/run.py --suite lenet --backends torch ours ours:matrix unfold csr scipy assemble copy_csr --quick
    python benchmarks/run.py --device cuda --dtype tf32 --channels-last --suite layers --out out/cuda_tf32.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    Run,
    ceilings,
    copies_beyond_cache,
    cuda_ceilings,
    environment,
    keep_heap,
    measure,
    measure_cuda,
    remark,
)
from random_layers import random_layers

import torch_convarith as tc
from torch_convarith import _ops, problems
from torch_convarith.problems import Problem

PASSES = ("forward", "grad_input", "grad_weight")
MOST_ENTRIES = 20_000_000  # of an explicit matrix
OPS = torch.ops.torch_convarith
# What the operator is that computes a pass, of a convolution and of a transposed one.
OPERATORS = {
    "forward": ("conv", "conv_transpose"),
    "grad_input": ("conv_transpose", "conv"),
    "grad_weight": ("conv_weight", "conv_weight"),
}


class Case:
    """The tensors of a problem. ``big`` and ``small`` are what C maps from and to; C's weight is the layer's."""

    def __init__(
        self, problem: Problem, dtype: torch.dtype, channels_last: bool, device: str = "cpu", seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.problem, self.dtype, self.device = problem, dtype, device
        self.channels_last = channels_last and len(problem.input_shape) == 4

        def random(shape: tuple[int, ...]) -> torch.Tensor:
            t = torch.randn(shape, generator=generator).to(device, dtype)
            return t.to(memory_format=torch.channels_last) if self.channels_last else t

        self.input = random(problem.input_shape)
        self.weight = random(problem.weight_shape)
        self.grad = random((problem.batch, problem.out_channels, *problem.output))
        self.big, self.small = (self.grad, self.input) if problem.transposed else (self.input, self.grad)
        # Of C: output padding is padding that C has less of at the end.
        self.pairs = tuple((p, p - a) for p, a in zip(problem.padding, problem.output_padding, strict=True))
        flat = [side for pair in self.pairs for side in pair]
        self.geometry = (problem.stride, flat, problem.dilation, problem.groups)

    def operator(self, which: str) -> str:
        """The operator that computes a pass."""
        return OPERATORS[which][self.problem.transposed]

    def explain(self, which: str) -> dict[str, Any]:
        """Which kernel computes a pass."""
        return _ops.explain_kernel(
            self.operator(which),
            self.dtype,
            self.big.shape,
            self.weight.shape,
            *self.geometry,
            channels_last=self.channels_last,
            device=torch.device(self.device),
        )


def ours(case: Case, which: str, suffix: str = "") -> Run:
    """The operator as it chooses itself."""
    operator = case.operator(which)
    call = getattr(OPS, operator + suffix)
    if operator == "conv":
        return lambda: call(case.big, case.weight, *case.geometry)
    if operator == "conv_transpose":
        return lambda: call(case.small, case.weight, case.big.shape[2:], *case.geometry)
    return lambda: call(case.big, case.small, case.weight.shape[2:], *case.geometry)


def forced(algorithm: str) -> Callable[[Case, str], Run | None]:
    """The operator by one algorithm, where that can do it."""

    def make(case: Case, which: str) -> Run | None:
        if case.device != "cpu":
            return None
        with _ops.forced_algorithm(algorithm):
            if case.explain(which)["algorithm"] != algorithm:
                return None
        run = ours(case, which)

        def call() -> Any:
            with _ops.forced_algorithm(algorithm):
                return run()

        return call

    return make


def torch_backend(case: Case, which: str) -> Run:
    """torch.nn.functional, and the operator behind its backward."""
    p = case.problem
    if which == "forward":
        axes = len(p.input)
        if p.transposed:
            transposed = getattr(F, f"conv_transpose{axes}d")
            return lambda: transposed(
                case.input, case.weight, None, p.stride, p.padding, p.output_padding, p.groups, p.dilation
            )
        conv = getattr(F, f"conv{axes}d")
        return lambda: conv(case.input, case.weight, None, p.stride, p.padding, p.dilation, p.groups)
    mask = [which == "grad_input", which == "grad_weight", False]
    arguments = (p.stride, p.padding, p.dilation, p.transposed, p.output_padding, p.groups, mask)
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(case.grad, case.input, case.weight, None, *arguments)[0 if mask[0] else 1]


def unfold(case: Case, which: str) -> Run | None:
    """im2col and a product of matrices, in PyTorch's own operators."""
    p = case.problem
    if len(p.input) != 2 or p.groups > 1 or p.transposed:
        return None
    w, n = case.weight.flatten(1), p.batch  # (K, C t)
    patches = lambda: F.unfold(case.input, p.kernel, p.dilation, p.padding, p.stride)  # noqa: E731  (N, C t, o)
    grad = case.grad.flatten(2)
    if which == "forward":
        return lambda: (w @ patches()).view(n, p.out_channels, *p.output)
    if which == "grad_input":
        return lambda: F.fold(w.T @ grad, p.input, p.kernel, p.dilation, p.padding, p.stride)
    return lambda: torch.einsum("nko,nco->kc", grad, patches()).view(p.weight_shape)


def matrix(case: Case) -> Any:
    """The explicit matrix, or None where it would be too large."""
    if any(lo != hi for lo, hi in case.pairs):
        return None
    p = case.problem
    c = tc.conv_matrix(case.weight, tuple(case.big.shape[2:]), p.stride, p.padding, p.dilation, p.groups)
    # Bounded by every weight meeting every output.
    if case.weight.numel() * math.prod(case.small.shape[2:]) > MOST_ENTRIES:
        return None
    return c


def sparse(case: Case, which: str) -> Run | None:
    """The product with the explicit matrix in torch.sparse CSR, assembled beforehand."""
    c = matrix(case) if which != "grad_weight" else None
    if c is None:
        return None
    operator = case.operator(which)
    csr = (c if operator == "conv" else c.T).to_sparse(torch.sparse_csr)
    x = (case.big if operator == "conv" else case.small).flatten(1).T.contiguous()
    size = (case.small if operator == "conv" else case.big).shape
    return lambda: (csr @ x).T.reshape(size)


def scipy(case: Case, which: str) -> Run | None:
    """The same with scipy.sparse."""
    usable = case.device == "cpu" and which != "grad_weight" and case.dtype in (torch.float32, torch.float64)
    c = matrix(case) if usable else None
    if c is None:
        return None
    operator = case.operator(which)
    array = c.to_scipy()
    array = array.tocsr() if operator == "conv" else array.T.tocsr()
    x = (case.big if operator == "conv" else case.small).flatten(1).T.contiguous().numpy()
    size = (case.small if operator == "conv" else case.big).shape
    return lambda: torch.from_numpy(array @ x).T.reshape(size)


def assemble(case: Case, which: str) -> Run | None:
    """Assembling the explicit matrix: its time to be held against copying as many bytes."""
    c = matrix(case) if which == "forward" else None
    return None if c is None else lambda: c.to_sparse(torch.sparse_csr)


def copy_csr(case: Case, which: str) -> Run | None:
    """Copying an assembled matrix's three arrays: what assembling costs at the least."""
    c = matrix(case) if which == "forward" else None
    if c is None:
        return None
    csr = c.to_sparse(torch.sparse_csr)
    arrays = (csr.crow_indices(), csr.col_indices(), csr.values())
    return lambda: [a.clone() for a in arrays]


FORCED = {f"ours:{name}": forced(name) for name in _ops.kernels.ALGORITHMS}
BACKENDS: dict[str, Callable[[Case, str], Run | None]] = {
    "torch": torch_backend,
    "ours": ours,
    "ours:matrix": lambda case, which: ours(case, which, "_csr") if matrix(case) else None,
    **FORCED,
    "unfold": unfold,
    "csr": sparse,
    "scipy": scipy,
    "assemble": assemble,
    "copy_csr": copy_csr,
}
NOT_A_CONVOLUTION = ("assemble", "copy_csr")
OF_A_MATRIX = ("csr", "assemble", "copy_csr")  # go through the matrix's arrays, not only the tensors


def tolerance(dtype: str) -> float:
    """Of the largest error, relative to the largest entry."""
    return {"float32": 1e-4, "float64": 1e-10, "tf32": 1e-2}.get(dtype, 3e-2)


def torch_dtype(name: str) -> torch.dtype:
    """tf32 is a way of computing with float32."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


def benchmark(problem: Problem, which: str, options: argparse.Namespace, ceiling: dict) -> dict[str, Any] | None:
    """One row: a problem and a pass, by every backend that can."""
    dtype = torch_dtype(options.dtype)
    case = Case(problem, dtype, options.channels_last, options.device)
    runs: dict[str, Run] = {}
    reference = torch_backend(case, which)()
    for name in options.backends:
        run = BACKENDS[name](case, which)
        if run is None:
            continue
        if name not in NOT_A_CONVOLUTION:
            error = (run() - reference).abs().max() / reference.abs().max()
            if not error < tolerance(options.dtype):
                raise AssertionError(f"{name} is off by {error:.2e} in {which} of {problem}")
        runs[name] = run
    if not runs:
        return None
    tensors = (case.input, case.weight, case.grad)
    row: dict[str, Any] = {
        "problem": str(problem),
        "pass": which,
        "macs": problem.macs,
        "bytes": sum(t.nbytes for t in tensors),
        "kernel": case.explain(which),
    }
    if options.device == "cpu":
        row["times"], conditions = measure(runs, options.seconds, options.rounds)
        return row | conditions
    c = matrix(case)
    extra = 0 if c is None else c.nnz * (4 + dtype.itemsize)
    row["copies"] = {n: copies_beyond_cache(row["bytes"] + extra * (n in OF_A_MATRIX)) for n in runs}
    cases = [
        Case(problem, dtype, options.channels_last, options.device, seed) for seed in range(max(row["copies"].values()))
    ]
    rotating = {n: [BACKENDS[n](other, which) for other in cases[:copies]] for n, copies in row["copies"].items()}
    row["times"], row["graph"] = measure_cuda(rotating, options.seconds, options.rounds)
    row["bound"] = max(2 * problem.macs / ceiling["gemm_gflops"], row["bytes"] / ceiling["copy_gbytes"]) / 1e9
    return row


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=["layers"], help="suites of problems.py, or beginnings of names")
    parser.add_argument("--random", type=int, metavar="COUNT", help="so many layers of random_layers.py instead")
    parser.add_argument("--seed", type=int, default=0, help="of --random")
    parser.add_argument("--batch", type=int, help="instead of the problems' own")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=["torch", "ours"],
        metavar="BACKEND",
        help=f"of {', '.join(BACKENDS)}",
    )
    parser.add_argument(
        "--choices", action="store_true", help="every fast algorithm beside our own choice; see report.py --choices"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "tf32", "float64", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each problem and pass")
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--quick", action="store_true", help="0.1 seconds and 3 rounds")
    parser.add_argument("--out", type=Path, help="JSON file; - or nothing: standard output gets the table only")
    options = parser.parse_args(arguments)
    if options.choices:
        options.backends = ["ours", *(name for name in FORCED if name != "ours:reference")]
    if options.quick:
        options.seconds, options.rounds = 0.1, 3
    if options.threads < 1:
        parser.error("--threads must be positive")
    if options.random is not None and options.random < 1:
        parser.error("--random must be positive")
    if options.batch is not None and options.batch < 1:
        parser.error("--batch must be positive")
    if options.device == "cpu" and options.dtype == "tf32":
        parser.error("--dtype tf32 needs --device cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and a torch and a torch_convarith built for it")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    options = parse_arguments(arguments)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.dtype == "tf32"
    try:
        if options.random:
            chosen = list(islice(random_layers(options.seed), options.random))
        else:
            chosen = [problem for name in options.suite for problem in problems.find(name)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.batch:
        chosen = [replace(problem, batch=options.batch) for problem in chosen]
    result: dict[str, Any] = {
        "environment": environment(options.device) | {"heap_kept": keep_heap()},
        "ceilings": ceilings(options.threads) if options.device == "cpu" else cuda_ceilings(torch_dtype(options.dtype)),
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "results": [],
    }
    for problem in chosen:
        for which in options.passes:
            row = benchmark(problem, which, options, result["ceilings"])
            if row is None:
                continue
            result["results"].append(row)
            medians = "  ".join(f"{name} {t['median'] * 1e3:.3f} ms" for name, t in row["times"].items())
            print(f"{problem.name:22} {which:12} {row['kernel']['algorithm']:10} {medians}{remark(row)}", flush=True)
    if options.out is not None and str(options.out) != "-":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
