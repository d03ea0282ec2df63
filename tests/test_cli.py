"""convarith: what each command prints, its JSON, its exit code, and errors that take one line."""

import json
import shlex
import subprocess
import sys

import pytest
import torch

pytest.importorskip("click")

from torch_convarith.cli import main


@pytest.fixture
def run(capsys):
    def run(line):
        code = main(shlex.split(line))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("line", "output", "relationships"),
    [
        ("size 4 -k 3", [2], [1]),
        ("size 5 -k 3 -s 2 -p 1", [3], [6]),
        ("size 224x200 -k 7 -s 2 -p 3", [112, 100], [6, 6]),
        ("size 7 -k 3 -d 2", [3], [15]),
        ("size 5 -k 4 -p 1:2", [5], [2]),
        ("size 5,6 -k 3 -p same", [5, 6], [3, 3]),
        ("size 3 -k 3 -s 2 -p 1 -a 1 --transposed", [6], [14]),
        ("size 28 -k 2 --pool", [14], [7]),
        ("size 6 -k 3 -s 2 --pool --ceil-mode", [3], [7]),
    ],
)
def test_size(run, line, output, relationships):
    code, out, _ = run(line + " --json")
    assert (code, json.loads(out)) == (0, {"output": output, "relationships": relationships})
    code, out, _ = run(line)
    assert out.startswith("x".join(map(str, output)) + "  (relationship")


def test_solve(run):
    code, out, _ = run("solve -o 3 -k 3 -s 2 -p 1 -d 1 --json")
    assert code == 0
    assert [s["input"] for s in json.loads(out)["solutions"]] == [5, 6]
    code, out, _ = run("solve -i 32 -o 16 --limit 3")
    assert len(out.splitlines()) == 4
    assert "more: --limit" in out
    code, out, _ = run("solve -i 8 -o 8 -k 4 -s 1 -d 1")
    assert code == 1
    assert "nearest" in out


def test_solve_for_a_model(run, tmp_path, monkeypatch):
    (tmp_path / "halves_cli.py").write_text(
        "from torch.nn import *\nnet = Sequential(Conv2d(1, 2, 2, 2), ConvTranspose2d(2, 1, 2, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert json.loads(run("solve --model halves_cli:net -i 8 --json")[1]) == {"input": 8, "valid": [8]}
    code, out, _ = run("solve --model halves_cli:net -i 9")
    assert (code, out) == (1, "9 does not survive; the nearest that do: 8, 10\n")
    assert run("solve --model halves_cli:net")[0] == 2


def test_explain(run):
    code, out, _ = run("explain 6 -k 3 -s 2 -p 1")
    assert code == 0
    assert "relationship 6" in out
    assert "[o][x][x]" in out
    value = json.loads(run("explain 3x3 -k 3 -s 2 -p 1 -a 1 -t --json")[1])
    assert value["relationships"] == [14, 14]
    assert (value["shape"], value["nnz"]) == ([36, 9], 64)


def test_table(run, tmp_path):
    code, out, _ = run("table lenet5")
    assert code == 0
    assert "parameters 61,706" in out
    assert json.loads(run("table lenet5 --json")[1])["parameters"] == 61706
    assert run("table lenet5 --format markdown")[1].startswith("| layer |")
    assert run("table lenet5 --format csv")[1].startswith("name,layer,kind")
    assert run("table lenet5 --format html")[1].startswith("<table>")
    assert "act1" in run("table lenet5 --all")[1]
    assert run(f"table lenet5 --format csv --save {tmp_path / 't.csv'}")[1] == ""
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 13
    assert "60,965,224" in run("table alexnet")[1]


def test_table_of_a_users_model(run, tmp_path, monkeypatch):
    (tmp_path / "mine_cli.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Conv2d(1, 2, 3)\nready = net()\nnumber = lambda: 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for spec in ("mine_cli:net", "mine_cli:ready"):
        value = json.loads(run(f"table {spec} --input 8 --json")[1])
        assert value["rows"][0]["output"] == [2, 6, 6]
    assert run("table mine_cli:nothing --input 8")[0] == 2
    assert run("table mine_cli:number --input 8")[0] == 2
    code, _, err = run("table mine_cli:net")
    assert code == 2
    assert "--input" in err


def test_rf(run):
    value = json.loads(run("rf alexnet -n features.pool5 --json")[1])
    assert value["nodes"] == [
        {"name": "features.pool5", "output": [6, 6], "size": [195, 195], "jump": [32, 32], "start": [33.5, 33.5],
         "padding": [[64, 64], [64, 64]], "holes": [False, False]}
    ]  # fmt: skip
    value = json.loads(run("rf lenet5 -n C1 --index 0x1 --json")[1])
    assert value["box"] == [[0, 4], [1, 5]]
    assert value["count"] == 25
    value = json.loads(run("rf lenet5 -n C1 --pixel 0x1 --json")[1])
    assert value["positions"] == [[0, 0], [0, 1]]
    assert run("rf lenet5 --index 0 --pixel 0")[0] == 2
    assert "C1: output 28x28, r 5x5" in run("rf lenet5")[1]


def test_lint(run):
    assert run("lint lenet5") == (0, "no findings\n", "")
    code, out, _ = run("lint alexnet --input 224 --select CA001")
    assert code == 1
    assert out.count("CA001 unread-border:") == 4
    assert run("lint alexnet --input 224 --select CA001 --ignore unread-border")[0] == 0
    assert json.loads(run("lint alexnet --input 224 --select CA007 --json")[1])[0]["level"] == "error"
    assert json.loads(run("lint alexnet --input 224 --format sarif")[1])["version"] == "2.1.0"
    assert run("lint --rules")[1].count("\n") == 13


def test_matrix(run, tmp_path):
    assert run("matrix 4 -k 3")[1].splitlines()[1:] == ["w0 w1 w2  0", " 0 w0 w1 w2"]
    assert run("matrix 4 -k 3 -w '1 2 -1'")[1].splitlines()[1:] == [" 1  2 -1  0", " 0  1  2 -1"]
    value = json.loads(run("matrix 4x4 -k 3 -w '0 1 2; 2 2 0; 0 1 2' --json")[1])
    assert (value["shape"], value["nnz"], len(value["values"])) == ([4, 16], 36, 36)
    dense = torch.zeros(4, 16)
    dense[value["rows"], value["columns"]] = torch.tensor(value["values"])
    assert torch.linalg.svdvals(dense)[0].item() == pytest.approx(6, rel=1e-6)
    assert "too large to print" in run("matrix 9x9 -k 3")[1]
    scipy = pytest.importorskip("scipy.sparse")
    assert run(f"matrix 4x4 -k 3 -t -s 2 --save {tmp_path / 'c.npz'}")[0] == 0
    saved = scipy.load_npz(tmp_path / "c.npz")
    assert (saved.shape, saved.nnz) == ((81, 16), 144)


def test_bench(run):
    value = json.loads(run("bench 8 -k 3 -p 1 -c 4 --seconds 0.02 --json")[1])
    assert set(value["milliseconds"]) == {"torch", "torch_convarith"}
    assert all(v > 0 for v in value["milliseconds"].values())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "tabel lenet5",
        "size",
        "size 5",
        "size five -k 3",
        "size 5 -k 9",
        "size 5x6x7 -k 3x3",
        "size 5 -k 3 -p 1:2:3",
        "size 5 -k 3 --ceil-mode",
        "size 5 -k 3 -t -p same",
        "solve -k 3",
        "solve -i 5 -k 0",
        "explain 5 -k 0",
        "table nothing",
        "table no.such.module:thing --input 8",
        "table lenet5 --input 8",
        "table lenet5 --format xml",
        "rf lenet5 -n C9",
        "rf lenet5 -n C1 --index 99",
        "lint lenet5 --select CB1",
        "matrix 4 -k 3 -w '1 2'",
        "bench 8 -k 3 -g 3",
    ],
)
def test_errors_take_one_line_and_exit_2(run, line):
    code, out, err = run(line)
    if line:
        assert err.startswith("convarith: ")
        assert err.count("\n") == 1
        assert out == ""
    assert code == 2


@pytest.mark.parametrize("command", ["", *["size", "solve", "explain", "table", "rf", "lint", "matrix", "bench"]])
def test_help(run, command):
    code, out, _ = run(f"{command} --help")
    assert code == 0
    assert out.startswith("Usage: convarith")


def test_without_click_it_says_what_to_install():
    code = (
        "import sys; sys.modules['click'] = None\n"
        "from torch_convarith.cli import main\n"
        "sys.exit(main(['size', '5', '-k', '3']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch_convarith[cli]" in done.stderr
