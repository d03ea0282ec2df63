"""JSON of run.py, models.py and pooling.py -> Markdown tables of ratios; and plots of run.py's.

    python benchmarks/report.py results/layers.json
    python benchmarks/report.py results/*.json --summary
    python benchmarks/report.py results/layers.json --plots out/
    python benchmarks/report.py results/choices.json --choices
    python benchmarks/report.py results/random.json --below 0.95

A ratio is the baseline's time divided by ours: above 1, ours is faster. matplotlib is needed for the plots only.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

Table = dict[str, dict[str, float]]
"""{line: {column: ratio}}"""


def ratios(data: dict[str, Any], baseline: str, ours: str, statistic: str) -> Table:
    """A line for each layer or model, with its passes; or for each case of pooling.py, with its operators."""
    table: Table = {}
    for row in data["results"] if "options" in data else []:  # overhead.py and memory.py make tables of their own
        times = row["times"]
        if baseline in times and ours in times:
            line = row["problem"].split()[0] if "problem" in row else row.get("model") or row["case"]
            ratio = times[baseline][statistic] / times[ours][statistic]
            table.setdefault(line, {})[row.get("pass") or row["kind"]] = ratio
    return table


def columns_of(table: Table) -> dict[str, list[float]]:
    """{column: its ratios}, in the order of appearance."""
    columns: dict[str, list[float]] = {}
    for row in table.values():
        for column, ratio in row.items():
            columns.setdefault(column, []).append(ratio)
    return columns


def heading(data: dict[str, Any]) -> str:
    """What the times depend on most."""
    options = data["options"]
    environment = data["environment"]
    parts = [environment["cpu"], environment["isa"], f"{options['threads']} threads", options.get("dtype", "float32")]
    if options.get("channels_last"):
        parts.append("channels_last")
    if handoffs := handoffs_of(data):
        parts.append(f"{statistics.median(handoffs):.0f} ns from thread to thread")
    return ", ".join(parts)


def handoffs_of(data: dict[str, Any]) -> list[float]:
    """Nanoseconds that a cache line took between two threads, row by row: hundreds where cores share no cache."""
    return [row["handoff_ns"] for row in data["results"] if row.get("handoff_ns")]


def markdown(data: dict[str, Any], baseline: str, ours: str, statistic: str) -> str:
    """The table of ratios."""
    table = ratios(data, baseline, ours, statistic)
    columns = columns_of(table)
    environment = data["environment"]
    foreign = max((row.get("foreign_cores") or 0 for row in data["results"]), default=0)
    handoffs = handoffs_of(data)
    lines = [
        f"{heading(data)}, torch {environment['torch']}, {environment['time']}; "
        f"time of {baseline} / time of {ours}, by {statistic}.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(f'{row[c]:.2f}' if c in row else '' for c in columns)} |")
    lines.append(f"| **geometric mean** | {' | '.join(f'**{mean(column):.2f}**' for column in columns.values())} |")
    lines.append(f"| **worst** | {' | '.join(f'**{min(column):.2f}**' for column in columns.values())} |")
    if foreign > 0.1:
        lines += ["", f"Others kept up to {foreign:.1f} cores busy meanwhile: do not quote these numbers."]
    if handoffs:
        lines += ["", f"A cache line took {min(handoffs):.0f} to {max(handoffs):.0f} ns from one thread to another."]
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(files: list[Path], baseline: str, ours: str, statistic: str) -> str:
    """Geometric mean and worst layer of every suite in the files, a line each; of pooling.py's of every operator."""
    lines: list[str] = []
    for file in files:
        data = json.loads(file.read_text())
        table = ratios(data, baseline, ours, statistic)
        if not table:
            continue
        columns = list(columns_of(table))
        suites: dict[str, Table] = {}
        if "kind" in data["results"][0]:
            for kind in columns:
                suites[kind] = {case: {"all cases": row[kind]} for case, row in table.items() if kind in row}
            columns = ["all cases"]
        elif "model" in data["results"][0]:
            suites["models"] = table
        else:
            for name, row in table.items():
                suites.setdefault(suite_of(name), {})[name] = row
        lines += ["", f"| {heading(data)} | cases | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
        for suite, part in suites.items():
            values = columns_of(part)
            cells = [f"{mean(v):.2f} ({min(v):.2f})" if (v := values.get(c)) else "" for c in columns]
            lines.append(f"| {suite} | {max(map(len, values.values()))} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def choices(data: dict[str, Any], statistic: str) -> str:
    """What run.py --choices found: how much longer the chosen algorithm takes than the fastest one."""
    lines, excesses = [], []
    for row in data["results"]:
        by = {name.split(":")[1]: t[statistic] for name, t in row["times"].items() if name.startswith("ours:")}
        chosen = row["kernel"]["algorithm"]
        if chosen not in by:
            continue
        fastest = min(by, key=by.__getitem__)
        excesses.append(by[chosen] / by[fastest])
        if excesses[-1] > 1:
            cells = (row["problem"].split()[0], row["pass"], chosen, fastest)
            lines.append((excesses[-1], f"| {' | '.join(cells)} | {excesses[-1]:.2f} |"))
    if not excesses:
        return ""
    head = [f"{heading(data)}: time of the chosen algorithm / time of the fastest one, by {statistic}.", ""]
    head += ["| layer | pass | chosen | fastest | |", "|---|---|---|---|---|"]
    last = f"| **geometric mean** of {len(excesses)} | | | | **{mean(excesses):.3f}** |"
    return "\n".join([*head, *(line for _, line in sorted(lines, reverse=True)), last])


def below(data: dict[str, Any], bar: float, baseline: str, ours: str, statistic: str) -> str:
    """What takes longer than the bar allows, the slowest first."""
    cells = []
    for row in data["results"]:
        times = row["times"]
        if "problem" in row and baseline in times and ours in times:
            kernel = row["kernel"]["algorithm"]
            cells.append((times[baseline][statistic] / times[ours][statistic], row["problem"], row["pass"], kernel))
    slow = sorted(cell for cell in cells if cell[0] < bar)
    head = [f"{heading(data)}: {len(slow)} of {len(cells)} below {bar}.", "", "| layer | pass | algorithm | |"]
    lines = (f"| {' | '.join(names)} | {ratio:.2f} |" for ratio, *names in slow)
    return "\n".join([*head, "|---|---|---|---|", *lines])


def suite_of(name: str) -> str:
    """The suite that a problem belongs to: the two main ones, or its network."""
    from torch_convarith import problems

    for suite in ("layers", "transposed"):
        if any(p.name == name for p in problems.SUITES[suite]):
            return suite
    return name.split(".")[0]


def plots(data: dict[str, Any], baseline: str, ours: str, statistic: str, folder: Path) -> None:
    """ratios.svg and roofline.svg."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit("plots need matplotlib: pip install matplotlib") from error
    folder.mkdir(parents=True, exist_ok=True)
    table = ratios(data, baseline, ours, statistic)
    passes = list(columns_of(table))

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(table) * len(passes) ** 0.5 + 1.5))
    for i, which in enumerate(passes):
        places = [j + 0.8 * (i - (len(passes) - 1) / 2) / len(passes) for j in range(len(table))]
        values = [row.get(which, float("nan")) for row in table.values()]
        axes.barh(places, values, height=0.7 / len(passes), label=which)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(table)), list(table))
    axes.invert_yaxis()
    axes.set_xlabel(f"time of {baseline} / time of {ours}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "ratios.svg")

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name in (baseline, ours):
        points = [
            (2 * row["macs"] / row["bytes"], 2 * row["macs"] / row["times"][name][statistic] / 1e9)
            for row in data["results"]
            if name in row["times"]
        ]
        axes.scatter(*zip(*points, strict=True), s=12, label=name)
    top, copy = data["ceilings"].get("fma_gflops", data["ceilings"]["gemm_gflops"]), data["ceilings"]["copy_gbytes"]
    intensity = [2.0**e for e in range(-2, 12)]
    axes.plot(intensity, [min(top, copy * x) for x in intensity], color="black", label="multiply-adds, copy")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("floating-point operations (by definition) per byte of the tensors")
    axes.set_ylabel("GFLOP/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "roofline.svg")


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--summary", action="store_true", help="mean and worst of every suite, of all files")
    parser.add_argument("--choices", action="store_true", help="of run.py --choices: what the cost model loses")
    parser.add_argument("--below", type=float, metavar="RATIO", help="only what has a lower ratio, with its algorithm")
    parser.add_argument("--baseline", default="torch")
    parser.add_argument("--ours", default="ours")
    parser.add_argument("--statistic", choices=["median", "minimum"], default="median")
    parser.add_argument("--plots", type=Path, help="folder for ratios.svg and roofline.svg")
    options = parser.parse_args(arguments)
    contestants = (options.baseline, options.ours)
    if options.summary:
        print(summary(options.files, *contestants, options.statistic))
        return 0
    for file in options.files:
        data = json.loads(file.read_text())
        if options.choices:
            if not (table := choices(data, options.statistic)):
                print(f"{file} has no algorithms to compare", file=sys.stderr)
                return 2
            print(table)
            continue
        if not ratios(data, *contestants, options.statistic):
            print(f"no problem in {file} was run by both {contestants[0]} and {contestants[1]}", file=sys.stderr)
            return 2
        if options.below is not None:
            print(below(data, options.below, *contestants, options.statistic))
            continue
        print(markdown(data, *contestants, options.statistic))
        if options.plots:
            plots(data, *contestants, options.statistic, options.plots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
