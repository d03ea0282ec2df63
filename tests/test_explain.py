"""explain(): every formula printed is evaluated, every count is counted again."""

import itertools
import re
from math import floor

import pytest
import torch
from torch import nn

import torch_convarith as ca
from torch_convarith.analysis.explain import explain


def formulas(text):
    """(expression, result) of the lines that put numbers into a relationship."""
    found = re.findall(r"= (floor\([^=]*|[\d(][^=a-z]*) = (\d+)$", text, re.MULTILINE)
    return [(expression, int(result)) for expression, result in found]


@pytest.mark.parametrize(("k", "s", "p", "d"), list(itertools.product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2))))
def test_formulas_hold(k, s, p, d):
    for i in (5, 6, 7):
        axis = ca.Axis(i, k, s, p, d)
        for said, size in ((explain(axis), axis.output), (explain(axis.transposed()), axis.input)):
            numbers = formulas(said.text)
            assert all(eval(expression, {"floor": floor}) == result for expression, result in numbers), said.text
            assert str(size) in said.text
            assert any(result == size for _, result in numbers) or re.search(rf"= {size}$", said.text, re.MULTILINE)
            rule = said.relationships[0]
            assert f"relationship {rule.number} of the guide" in said.text
            assert rule.formula in said.text


LAYERS = [
    (nn.Conv2d(2, 4, 3, 2, 1), (6, 5)),
    (nn.Conv2d(4, 4, (3, 2), groups=2, dilation=2), (7, 7)),
    (nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), (3, 4)),
    (ca.Conv1dExplicit(1, 1, 3, padding=1, padding_mode="circular"), (5,)),
    (ca.ConvTranspose1dExplicit(2, 2, 4, 3, 1, groups=2), (4,)),
    (nn.Conv3d(1, 1, 2, 2), (4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_matrix_is_the_layers(layer, size):
    said = explain(layer, size)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    x = torch.eye(layer.in_channels * torch.tensor(size).prod()).reshape(-1, layer.in_channels, *size)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        columns = (layer(x) if layer.bias is None else layer(x) - layer(torch.zeros_like(x[:1]))).flatten(1).t()
    assert said.shape == tuple(columns.shape)
    assert said.nnz == int((columns.abs() > 1e-4).sum())
    assert said.transposed == transposed
    assert f"{said.nnz:,} of its" in said.text
    assert said.density == said.nnz / columns.numel()


def test_picture():
    said = explain(nn.MaxPool2d(3, 2), 6).text.splitlines()
    start = said.index("The input, the first window's taps in brackets:")
    assert said[start + 1 : start + 7] == [
        "  [x][x][x] x  x  .",
        "  [x][x][x] x  x  .",
        "  [x][x][x] x  x  .",
        "   x  x  x  x  x  .",
        "   x  x  x  x  x  .",
        "   .  .  .  .  .  .",
    ]
    assert "  The last input is never read." in said


def test_stretched_picture():
    text = explain(ca.Axis(6, 3, 2, 1).transposed()).text  # figure 4.7
    assert "  [o][x][-] x  -  x  o  o\n" in text
    assert "p' = k - p - 1 = 1 on either side" in text
    assert "a = 1 more at the end only" in text


def test_words_for_what_is_lost():
    assert "3 inputs between windows are never read" in explain(nn.Conv1d(1, 1, 2, 5), 13).text
    assert "inputs of sizes 12 to 16 give the same output size 3" in explain(nn.Conv1d(1, 1, 2, 5), 13).text
    assert "effective kernel" in explain(nn.Conv1d(1, 1, 3, dilation=2), 13).text
    assert "crop" in explain(ca.Axis(5, 2, 1, 3).transposed()).text
    assert "repeated (reflect)" in explain(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), 5).text


def test_axes_that_differ_are_explained_apart():
    text = explain(nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), (8, 9)).text
    assert "Along spatial axis 0:" in text
    assert "Along spatial axis 1:" in text


def test_errors():
    with pytest.raises(TypeError, match="ReLU"):
        explain(nn.ReLU(), 3)
    with pytest.raises(TypeError, match="takes a layer"):
        explain(3)
    with pytest.raises(ValueError, match="input size"):
        explain(nn.Conv2d(1, 1, 3))
    with pytest.raises(TypeError, match="own input size"):
        explain(ca.Axis(3, 3), 3)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size|[Oo]utput size is too small"):
        explain(nn.Conv2d(1, 1, 9), 3)
