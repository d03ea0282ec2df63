"""Figures: what is drawn is what was computed."""

import pytest
import torch
from torch import nn

import torch_convarith as ca

pytest.importorskip("matplotlib")

from torch_convarith.figures import draw_axis, draw_matrix, draw_receptive_field


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_has_a_dot_per_entry(transposed, tmp_path):
    matrix = ca.conv_matrix(torch.ones(2, 1, 3), 6, stride=2, padding=1)
    matrix = matrix.T if transposed else matrix
    figure = draw_matrix(matrix)
    (dots,) = figure.axes[0].collections
    drawn = {(int(r), int(c)) for c, r in dots.get_offsets()}
    assert drawn == {tuple(p) for p in (matrix.to_dense() != 0).nonzero().tolist()}
    figure.savefig(tmp_path / "c.svg")
    assert (tmp_path / "c.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="too many"):
        draw_matrix(matrix, largest=3)


def test_axis():
    axis = ca.Axis(6, kernel=3, stride=2, padding=1)
    drawn = draw_axis(axis).axes[0]
    assert len(drawn.lines) == axis.output * axis.kernel
    assert "relationship 6" in drawn.get_title()
    up = axis.transposed()
    drawn = draw_axis(up).axes[0]
    assert len(drawn.patches) == up.stretched + 2 + 1 + up.output  # p' = 1 on either side, a = 1
    solid = [p for p in drawn.patches if p.get_linestyle() in ("-", "solid")]
    assert len(solid) == up.input + up.output


def test_receptive_field():
    field = ca.receptive_field(nn.Conv2d(1, 1, 3, dilation=2), 9, "Conv2d")
    drawn = draw_receptive_field(field, (0, 1)).axes[0]
    assert torch.equal(torch.from_numpy(drawn.images[0].get_array().data).bool(), field.input_region((0, 1)).mask)
    (box,) = drawn.patches
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((0.5, -0.5), 5, 5)
    assert len(draw_receptive_field(field, image=torch.zeros(9, 9)).axes[0].images) == 2
    with pytest.raises(ValueError, match="two spatial axes"):
        draw_receptive_field(ca.receptive_field(nn.Conv1d(1, 1, 3), 9, "Conv1d"))
