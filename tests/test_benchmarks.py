"""The benchmarks run, compare the values before they time them, and report what they stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_run_and_report(tmp_path):
    file = tmp_path / "few.json"
    backends = ("torch", "ours", "ours:matrix", "unfold", "csr", "scipy", "assemble", "copy_csr")
    arguments = ("--quick", "--threads", 1, "--backends", *backends, "--out", file)
    run("run.py", "--suite", "guide.half_padding", "lenet.c3", *arguments)
    data = json.loads(file.read_text())
    assert {"cpu", "isa", "torch", "compiler", "time"} <= data["environment"].keys()
    rows = {(row["problem"].split()[0], row["pass"]): row for row in data["results"]}
    problems = ("guide.half_padding", "guide.half_padding_transposed", "lenet.c3")
    assert set(rows) == {(p, which) for p in problems for which in ("forward", "grad_input", "grad_weight")}
    assert set(rows["lenet.c3", "forward"]["times"]) == set(backends)
    times = rows["lenet.c3", "grad_input"]["times"]
    ratio = times["torch"]["median"] / times["ours"]["median"]
    table = run("report.py", file)
    line = next(line for line in table.splitlines() if line.startswith("| lenet.c3 "))
    assert line.split("|")[3].strip() == f"{ratio:.2f}"
    assert "| layers | 1 |" in run("report.py", file, "--summary")


def test_choices(tmp_path):
    file = tmp_path / "choices.json"
    run("run.py", "--suite", "lenet.c3", "--choices", "--quick", "--threads", 1, "--passes", "forward", "--out", file)
    (row,) = json.loads(file.read_text())["results"]
    times = {name.split(":")[1]: t["median"] for name, t in row["times"].items() if name != "ours"}
    assert {"offset", "outer"} <= times.keys()
    assert not {"reference", "dot", "depthwise"} & times.keys()  # too slow, or of other passes and groups
    excess = times[row["kernel"]["algorithm"]] / min(times.values())
    assert run("report.py", file, "--choices").rstrip().endswith(f"| **{excess:.3f}** |")


def test_random_layers(tmp_path):
    """A seed's layers are measured by what draws them, and those below a bar are listed with their lines."""
    file = tmp_path / "random.json"
    run("run.py", "--random", 2, "--seed", 3, "--quick", "--threads", 1, "--passes", "forward", "--out", file)
    first, second = json.loads(file.read_text())["results"]
    assert first["problem"] != second["problem"]
    for row in (first, second):
        assert 300_000 <= row["macs"] <= 1_200_000_000
    ratio = {r["problem"]: r["times"]["torch"]["median"] / r["times"]["ours"]["median"] for r in (first, second)}
    slow = min(ratio, key=ratio.__getitem__)
    bar = (ratio[slow] * max(ratio.values())) ** 0.5
    table = run("report.py", file, "--below", bar).splitlines()
    assert f"1 of 2 below {bar}" in table[0]
    assert table[-1].startswith(f"| {slow} | forward | ")
    assert table[-1].endswith(f" | {ratio[slow]:.2f} |")
    subprocess.run([sys.executable, "-m", "doctest", BENCHMARKS / "random_layers.py"], check=True, timeout=300)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory(tmp_path):
    file = tmp_path / "memory.json"
    run("memory.py", "--suite", "alexnet.conv2", "--passes", "grad_weight", "--out", file)
    (row,) = json.loads(file.read_text())["results"]
    # Packed or transformed operands, megabytes of them; at most what the engine may take.
    assert 1 << 20 < row["scratch_bytes"]["ours"] < 64 << 20


def test_models(tmp_path):
    file = tmp_path / "models.json"
    options = ("--batch", 1, "--seconds", 0, "--rounds", 1, "--threads", 1)
    run("models.py", "dcgan_generator", *options, "--out", file)
    assert [row["pass"] for row in json.loads(file.read_text())["results"]] == ["inference", "training step"]
    assert "| models | 1 |" in run("report.py", file, "--summary")


def test_pooling(tmp_path):
    file = tmp_path / "pooling.json"
    run("pooling.py", "lrn", "--seconds", 0, "--rounds", 1, "--threads", 1, "--out", file)
    rows = json.loads(file.read_text())["results"]
    assert {row["kind"] for row in rows} == {"lrn"}
    times = rows[-1]["times"]
    ratio = times["torch"]["median"] / times["ours"]["median"]
    line = next(line for line in run("report.py", file).splitlines() if line.startswith(f"| {rows[-1]['case']} "))
    assert line.split("|")[2].strip() == f"{ratio:.2f}"
    assert f"| lrn | {len(rows)} |" in run("report.py", file, "--summary")


def test_overhead(tmp_path):
    file = tmp_path / "overhead.json"
    run("overhead.py", "--rounds", 1, "--calls", 3, "--out", file)
    assert all(row["ours"] > 0 for row in json.loads(file.read_text())["results"].values())
