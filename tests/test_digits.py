"""The main job: data from files, errors that say what is wrong, and a short run from end to end."""

import gzip
import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_convarith

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.py"
spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
digits = importlib.util.module_from_spec(spec)
sys.modules["digits"] = digits
spec.loader.exec_module(digits)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small set in MNIST's format: half of its files gzipped."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        with gzip.open(tmp_path / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(idx(labels))
    return tmp_path


def test_idx_files_plain_and_gzipped(folder):
    train_images, train_labels, test_images, test_labels = digits.mnist(folder)
    assert train_images.shape == (20, 1, 32, 32)
    assert test_images.shape == (10, 1, 32, 32)
    assert test_labels.tolist() == list(range(10))
    assert train_labels.tolist() == list(range(10)) * 2
    raw = digits.read_idx(folder / "train-images-idx3-ubyte")
    assert torch.equal((train_images[:, 0, 2:-2, 2:-2] * 255).round().byte(), raw)
    assert float(train_images[:, :, :2].abs().max()) == 0


def damage(folder, name, change):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(change(content))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "is truncated: sizes (20, 28, 28) need 15680 bytes"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", "is too long"),
        ("train-images-idx3-ubyte", lambda b: b[:9], "is truncated: its header of 16 bytes ends after 9"),
        ("train-images-idx3-ubyte", lambda b: b"", "is not an IDX file of bytes: it starts with nothing"),
        ("train-images-idx3-ubyte", lambda b: b"PK" + b, "is not an IDX file of bytes: it starts with 50 4b 00 00"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: b[:-9], "cannot be read"),
        ("t10k-labels-idx1-ubyte.gz", lambda b: b"not gzip", "cannot be read"),
        (
            "t10k-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(idx(np.zeros(9, np.uint8))),
            "has 9 labels for 10 images",
        ),
        ("t10k-labels-idx1-ubyte.gz", lambda b: gzip.compress(idx(np.full(10, 11, np.uint8))), "has a label 11"),
        ("t10k-images-idx3-ubyte", lambda b: idx(np.zeros((10, 8, 8), np.uint8)), "shape (10, 8, 8), expected images"),
    ],
)
def test_damaged_files(folder, capsys, name, change, message):
    damage(folder, name, change)
    assert digits.main(["--data", str(folder), "--out", str(folder / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("digits.py: ")
    assert message in error
    assert error.count("\n") == 1


def test_missing_files_and_bad_paths(folder, capsys):
    assert digits.main(["--data", str(folder / "nowhere"), "--out", str(folder)]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    assert digits.main(["--data", str(folder), "--out", str(folder)]) == 2
    assert "has no train-labels-idx1-ubyte" in capsys.readouterr().err
    assert digits.main(["--out", str(folder / "train-images-idx3-ubyte" / "out")]) == 2
    assert "digits.py: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        digits.main(["--epochs", "0"])
    assert stop.value.code == 2


def test_default_data():
    train_images, train_labels, test_images, test_labels = digits.scanned_digits()
    assert len(train_images) + len(test_images) == 1797
    assert train_images.shape[1:] == (1, 32, 32)
    assert torch.bincount(test_labels).min() >= 34
    assert torch.bincount(train_labels).min() >= 139


def test_shifts_move_and_leave_zeros():
    images = torch.zeros(50, 1, 8, 8)
    images[:, 0, 3, 4] = 1
    moved = digits.shifted(images, 2)
    places = moved[:, 0].flatten(1).argmax(1)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    assert set((places // 8).tolist()) == {1, 2, 3, 4, 5}
    assert set((places % 8).tolist()) == {2, 3, 4, 5, 6}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's and its dependencies'
def test_a_short_run(folder, capsys):
    """On scrambled data nothing can be learnt, but every step of the job runs and reports."""
    out = folder / "pictures"
    assert digits.main(["--data", str(folder), "--epochs", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for line in ("61,706", "test accuracy:", "largest difference", "decoded by C^T and by zero insertion"):
        assert line in printed
    assert sorted(p.name for p in out.iterdir()) == ["decoded.png", "digits.png", "loss.png", "matrix.png"]
    assert all(p.stat().st_size > 5000 for p in out.iterdir())


def test_decoding_agrees_between_methods():
    model, image = torch_convarith.models.lenet5(), torch.rand(1, 32, 32)
    a, b = (digits.decode(model, image, method) for method in ("pattern", "zero_insert"))
    torch.testing.assert_close(a, b)
    assert a.shape == image.shape
