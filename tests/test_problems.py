"""The problems' lines: each parses, prints itself, and has the sizes that torch gives."""

import pytest
import torch
from torch import nn

from torch_convarith import problems

ALL = [p for key in ("guide", "layers", "transposed", "networks") for p in problems.SUITES[key]]


@pytest.mark.parametrize("problem", ALL, ids=lambda p: p.name)
def test_line_and_sizes(problem):
    assert problems.parse(str(problem)) == problem
    axes = len(problem.input)
    kind = getattr(nn, f"Conv{'Transpose' if problem.transposed else ''}{axes}d")
    extra = {"output_padding": problem.output_padding} if problem.transposed else {}
    layer = kind(
        problem.in_channels,
        problem.out_channels,
        problem.kernel,
        problem.stride,
        problem.padding,
        dilation=problem.dilation,
        groups=problem.groups,
        bias=False,
        device="meta",
        **extra,
    )
    assert layer.weight.shape == problem.weight_shape
    out = layer(torch.empty(problem.input_shape, device="meta"))
    assert out.shape == (problem.batch, problem.out_channels, *problem.output)


def test_names_are_unique():
    assert len({p.name for p in ALL}) == len(ALL)


def test_twenty_and_nine():
    assert len(problems.LAYERS) == 20
    assert len(problems.TRANSPOSED) == 9


@pytest.mark.parametrize(
    "line", ["x n1 c1 k1 i4", "x n1 c1 k1 i4 f3 q2", "x n1 c1 k1 i4 f3x3x3", "x n1 n2 c1 k1 i4 f3"]
)
def test_lines_that_are_not_understood(line):
    with pytest.raises(ValueError, match=r"missing|understood|sizes"):
        problems.parse(line)


def test_find():
    assert problems.find("layers") == problems.LAYERS
    with pytest.raises(ValueError, match="no suite or problem"):
        problems.find("nothing")
