"""Problems x passes x backends -> JSON, with the environment beside the numbers.

All contestants of a problem run in this process, in turn, so that whatever else the machine does meets them alike.
Times are medians of the rounds, with the quartiles and the minimum. CPU time that others took meanwhile is read from
/proc/stat and stored, and a warning says where it was more than a tenth of a core.

On a GPU (--device cuda) torch's contestant is cuDNN with cudnn.benchmark on, and csr is cuSPARSE. A contestant goes
through copies of the inputs that together exceed the L2 cache twice over, recorded as a CUDA graph where it can be, and
a round is one replay between two events. `bound` is the time that the card's own ceilings, measured first, would allow.

    python benchmarks/run.py --suite layers --passes forward grad_input grad_weight
    python benchmarks/run.py --suite layers transposed --threads 1 --out results/one_thread.json
    python benchmarks/run.py --suite lenet --backends torch ours ours:matrix unfold csr scipy assemble copy_csr --quick
    python benchmarks/run.py --device cuda --dtype tf32 --channels-last --suite layers --out out/cuda_tf32.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

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

Run = Callable[[], Any]


class Case:
    """The tensors of a problem. ``big`` and ``small`` are what C maps from and to; C's weight is the layer's."""

    def __init__(
        self, problem: Problem, dtype: torch.dtype, channels_last: bool, device: str = "cpu", seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.problem, self.dtype, self.device = problem, dtype, device

        def random(shape: tuple[int, ...]) -> torch.Tensor:
            t = torch.randn(shape, generator=generator).to(device, dtype)
            return t.to(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t

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


def ours(case: Case, which: str, suffix: str = "") -> Run:
    """The operator as it chooses itself."""
    operator = case.operator(which)
    call = getattr(OPS, operator + suffix)
    if operator == "conv":
        return lambda: call(case.big, case.weight, *case.geometry)
    if operator == "conv_transpose":
        return lambda: call(case.small, case.weight, case.big.shape[2:], *case.geometry)
    return lambda: call(case.big, case.small, case.weight.shape[2:], *case.geometry)


def forced(algorithm: str) -> Callable[[Case, str], Run]:
    """The operator by one algorithm."""

    def make(case: Case, which: str) -> Run | None:
        if case.device != "cpu":
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


BACKENDS: dict[str, Callable[[Case, str], Run | None]] = {
    "torch": torch_backend,
    "ours": ours,
    "ours:matrix": lambda case, which: ours(case, which, "_csr") if matrix(case) else None,
    **{f"ours:{name}": forced(name) for name in _ops.kernels.ALGORITHMS},
    "unfold": unfold,
    "csr": sparse,
    "scipy": scipy,
    "assemble": assemble,
    "copy_csr": copy_csr,
}
NOT_A_CONVOLUTION = ("assemble", "copy_csr")
OF_A_MATRIX = ("csr", "assemble", "copy_csr")  # go through the matrix's arrays, not only the tensors


def cpu_seconds() -> tuple[float, float] | None:
    """(busy on the whole machine, of it ours), or None where /proc/stat is not."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, fields)
    own = os.times()
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), own.user + own.system


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
    return {name: statistics_of(values) for name, values in times.items()}, foreign


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
    """The machine's: multiply-adds by a product of matrices, and a copy of 64 MB counted as read and written."""
    a = torch.randn(1536, 1536)
    big, out = torch.randn(1 << 24), torch.empty(1 << 24)
    times, _ = measure({"gemm": lambda: a @ a, "copy": lambda: out.copy_(big)}, 0.5, 5)
    return {
        "threads": threads,
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
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


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
    operator = case.operator(which)
    tensors = (case.input, case.weight, case.grad)
    row: dict[str, Any] = {
        "problem": str(problem),
        "pass": which,
        "macs": problem.macs,
        "bytes": sum(t.nbytes for t in tensors),
        "kernel": _ops.explain_kernel(
            operator,
            dtype,
            case.big.shape,
            case.weight.shape,
            *case.geometry,
            channels_last=options.channels_last,
            device=torch.device(options.device),
        ),
    }
    if options.device == "cpu":
        row["times"], row["foreign_cores"] = measure(runs, options.seconds, options.rounds)
        return row
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
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=["torch", "ours"],
        metavar="BACKEND",
        help=f"of {', '.join(BACKENDS)}",
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
    if options.quick:
        options.seconds, options.rounds = 0.1, 3
    if options.threads < 1:
        parser.error("--threads must be positive")
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
        chosen = [problem for name in options.suite for problem in problems.find(name)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "environment": environment(options.device),
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
            busy = row.get("foreign_cores") or 0
            warning = f"  ! others used {busy:.1f} cores" if busy > 0.1 else ""
            print(f"{problem.name:22} {which:12} {row['kernel']['algorithm']:10} {medians}{warning}", flush=True)
    if options.out is not None and str(options.out) != "-":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
