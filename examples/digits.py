"""LeNet-5 of explicit convolutions, trained on scanned handwritten digits.

    python examples/digits.py                    # the 1,797 digits that come with scikit-learn
    python examples/digits.py --data mnist/      # a folder with MNIST's four IDX files, plain or .gz

Prints the network's arithmetic, trains it, and shows that its layers are matrices: torch.nn's layers with the same
weights give the same logits, and the transposes of its linear layers decode an image, by C^T and by zero insertion.
Pictures go to --out.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_convarith import ConvTranspose2dExplicit, models, revert, trace

try:
    import matplotlib
    from rich.console import Console
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"digits.py needs {error.name}: pip install torch_convarith[examples]")

SIZE = 32  # LeNet-5's input; its digits are 20 to 28 pixels tall


class DataError(Exception):
    """A data file that is missing or is not what it should be."""


# Data ----------------------------------------------------------------------------------------------------------------


def scanned_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits: 8 x 8 pixels of 0 to 16, resized; every fifth of each class is for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("digits.py needs scikit-learn for its default data: pip install torch_convarith[examples]")
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    images = nn.functional.pad(images, [2] * 4)
    labels = torch.tensor(data.target)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(labels == digit).nonzero().flatten()[::5]] = True
    return images[~test], labels[~test], images[test], labels[test]


def read_idx(path: Path) -> Tensor:
    """A file in MNIST's IDX format, plain or gzipped: two zero bytes, 8 (unsigned bytes), rank, sizes, data."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is truncated: its header of {start} bytes ends after {len(content)}")
    sizes = struct.unpack(f">{content[3]}I", content[4:start])
    expected = int(torch.tensor(sizes).prod())
    if len(content) - start != expected:
        state = "truncated" if len(content) - start < expected else "too long"
        raise DataError(
            f"{path} is {state}: sizes {sizes} need {expected} bytes of data, but there are {len(content) - start}"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)


def mnist(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST's four files from a folder, padded from 28 to 32 pixels."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    parts: list[Tensor] = []
    for part in ("train", "t10k"):
        for kind, rank in (("images-idx3", 3), ("labels-idx1", 1)):
            names = [f"{part}-{kind}{dot}ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is None:
                raise DataError(f"{folder} has no {names[0]} (nor {', '.join(names[1:])})")
            array = read_idx(path)
            if array.dim() != rank or (rank == 3 and array.shape[1:] != (28, 28)):
                raise DataError(f"{path} holds an array of shape {tuple(array.shape)}, expected {kind[:6]} of MNIST")
            if rank == 3:
                parts.append(nn.functional.pad(array[:, None].float() / 255, [2] * 4))
            elif len(array) != len(parts[-1]):
                raise DataError(f"{path} has {len(array)} labels for {len(parts[-1])} images")
            elif len(array) and array.max() > 9:
                raise DataError(f"{path} has a label {int(array.max())}; digits are 0 to 9")
            else:
                parts.append(array.long())
    if not all(map(len, parts)):
        raise DataError(f"{folder} holds no images")
    return parts[0], parts[1], parts[2], parts[3]


# Training ------------------------------------------------------------------------------------------------------------


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """Each image moved by up to ``most`` pixels; the vacated lines are zero."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, [most] * 4)
    rows = torch.randint(0, 2 * most + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * most + 1, (n, 1)) + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def batches(n: int, size: int) -> Iterator[Tensor]:
    """A permutation of range(n), cut."""
    return iter(torch.randperm(n).split(size))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of ``images`` whose largest logit is their label's."""
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return right / len(images)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int) -> list[float]:
    """Adam with a one-cycle rate; the loss of every step."""
    steps = epochs * -(-len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    losses: list[float] = []
    with tqdm(total=steps, unit="step", desc="training", disable=None) as bar:
        for _ in range(epochs):
            for index in batches(len(images), batch):
                loss = nn.functional.cross_entropy(model(shifted(images[index])), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
                bar.update()
    return losses


# What the layers are -------------------------------------------------------------------------------------------------


@torch.no_grad()
def difference_from_torch(model: nn.Module, images: Tensor) -> float:
    """Largest difference between our logits and those of torch.nn's layers with the same weights."""
    twin = revert(copy.deepcopy(model))
    assert type(twin.C1) is nn.Conv2d
    return float((model(images) - twin(images)).abs().max())


@torch.no_grad()
def decode(model: nn.Module, image: Tensor, method: str) -> Tensor:
    """S2's features back to an image, by the transposes of C1 and of S2, which is a convolution with weights 1/4."""
    features = model.S2(model.act1(model.C1(image[None])))
    unpool = ConvTranspose2dExplicit(6, 6, 2, stride=2, groups=6, bias=False, method=method)
    unpool.weight.fill_(1 / 4)
    unconvolve = ConvTranspose2dExplicit(6, 1, 5, bias=False, method=method)
    unconvolve.weight.copy_(model.C1.weight)
    return unconvolve(unpool(features))[0]


def pictures(
    model: nn.Module, images: Tensor, labels: Tensor, losses: list[float], decoded: Tensor, out: Path
) -> list[Path]:
    """Digits with predictions, C1's matrix, the loss, and the decoded image."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []

    def save(name: str) -> None:
        plt.savefig(out / name, dpi=120, bbox_inches="tight")
        plt.close()
        written.append(out / name)

    with torch.no_grad():
        predicted = model(images).argmax(1)
    wrong = (predicted != labels).nonzero().flatten()
    shown = torch.cat((wrong, (predicted == labels).nonzero().flatten()))[:24]
    _, axes = plt.subplots(3, 8, figsize=(10, 4.4))
    for axis, index in zip(axes.flat, shown.tolist(), strict=False):
        axis.imshow(images[index, 0], cmap="gray_r")
        right = predicted[index] == labels[index]
        axis.set_title(f"{predicted[index]}" + ("" if right else f" (is {labels[index]})"), color="k" if right else "r")
    for axis in axes.flat:
        axis.axis("off")
    plt.suptitle("test digits and predictions; mistakes first")
    save("digits.png")

    C = model.C1.matrix(SIZE)
    rows = C.geometry.output_size[0] * C.geometry.output_size[1]
    band = C.to_dense().detach()[: rows // 7, : C.shape[1] // 4]
    limit = float(band.abs().max())
    plt.figure(figsize=(10, 5))
    plt.imshow(
        torch.where(band == 0, torch.nan, band), cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    plt.title(
        f"C1 is a {C.shape[0]} x {C.shape[1]} matrix with {C.nnz} entries (density {C.density:.3f}); "
        f"its first {len(band)} rows"
    )
    plt.xlabel("input pixel")
    plt.ylabel("output pixel of the first map")
    plt.colorbar(label="weight")
    save("matrix.png")

    plt.figure(figsize=(7, 4))
    plt.semilogy(losses, alpha=0.3, label="each step")
    window = max(1, min(50, len(losses)))
    smooth = torch.tensor(losses).unfold(0, window, 1).mean(1)
    plt.semilogy(range(window - 1, len(losses)), smooth, label=f"mean of {window} steps")
    plt.xlabel("step")
    plt.ylabel("cross-entropy")
    plt.legend()
    save("loss.png")

    _, axes = plt.subplots(1, 2, figsize=(6, 3))
    for axis, picture, title in zip(axes, (images[0, 0], decoded[0]), ("image", "decoded by C^T"), strict=True):
        axis.imshow(picture, cmap="gray_r")
        axis.set_title(title)
        axis.axis("off")
    save("decoded.png")
    return written


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 0, or 2 for bad data or options."""
    parser = argparse.ArgumentParser(description="Train LeNet-5 of explicit convolutions on handwritten digits.")
    parser.add_argument("--data", type=Path, help="folder with MNIST's IDX files; default: scikit-learn's 1,797 digits")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    parser.add_argument("--epochs", type=int, help="default: 60 for the small set, 4 for MNIST")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    console = Console()
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        train_images, train_labels, test_images, test_labels = mnist(options.data) if options.data else scanned_digits()
    except (DataError, OSError) as error:
        print(f"digits.py: {error}", file=sys.stderr)
        return 2

    model = models.lenet5(activation=nn.ReLU)  # the paper's tanh learns, too, but slower
    console.print(trace(model), soft_wrap=True)
    console.print(
        f"{len(train_images)} digits to train on, {len(test_images)} to test on, {torch.get_num_threads()} threads"
    )
    epochs = options.epochs or (4 if options.data else 60)
    losses = train(model, train_images, train_labels, epochs, batch=32)
    score = accuracy(model, test_images, test_labels)

    sample = test_images[:256]
    logits = difference_from_torch(model, sample)
    by_pattern, by_zeros = (decode(model, test_images[0], method) for method in ("pattern", "zero_insert"))
    decoded = float((by_pattern - by_zeros).abs().max())
    written = pictures(model, test_images[:500], test_labels[:500], losses, by_pattern, options.out)

    console.print()
    console.print(f"test accuracy: {100 * score:.2f} % of {len(test_images)} digits")
    console.print(f"logits of torch.nn.Conv2d with the same weights: largest difference {logits:.1e}")
    console.print(f"image decoded by C^T and by zero insertion: largest difference {decoded:.1e}")
    console.print(f"pictures: {', '.join(map(str, written))}", soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
