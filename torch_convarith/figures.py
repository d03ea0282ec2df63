"""Pictures of the arithmetic: a matrix, one axis, a receptive field. Need ``pip install torch_convarith[figures]``.

Each function returns a matplotlib Figure, made without pyplot: ``figure.savefig("c.svg")``, or show it in a notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .analysis import NodeField
from .geometry import Axis, TransposedAxis
from .matrix import ConvMatrix

__all__ = ["draw_axis", "draw_matrix", "draw_receptive_field"]

_INPUT, _ZERO, _TAP, _OUTPUT = "#4c9bd6", "#ffffff", "#2b6ca3", "#3fae9c"  # blue below, teal above, as in the guide


def _figure(width: float, height: float) -> tuple[Any, Any, Any]:
    """A figure, its axes, and the class Rectangle."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install torch_convarith[figures]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(), Rectangle


def draw_matrix(matrix: ConvMatrix, largest: int = 4000) -> Any:
    """The pattern of C: one dot per structural non-zero, coloured by its tap.

    Args:
        matrix: one channel to one channel, or several; C or its transpose.
        largest: refuses matrices with more rows or columns.

    Raises:
        ValueError: the matrix is larger than that.

    >>> from torch_convarith import conv_matrix
    >>> draw_matrix(conv_matrix(torch.ones(1, 1, 3), 5)).axes[0].get_xlabel()
    '5 inputs'
    """
    if max(matrix.shape) > largest:
        raise ValueError(
            f"a {matrix.shape[0]} x {matrix.shape[1]} matrix has too many entries to draw: {largest} at most"
        )
    taps = matrix.weight[0, 0].numel()
    index = torch.arange(1.0, matrix.weight.numel() + 1).reshape(matrix.weight.shape)
    numbered = ConvMatrix((index - 1) % taps + 1, matrix.geometry, matrix.groups, matrix.padding_mode)
    numbered = numbered.T if matrix.is_transposed else numbered
    dense = numbered.to_dense()
    rows, columns = dense.nonzero(as_tuple=True)
    height = 4.0 * max(0.3, min(2.0, matrix.shape[0] / matrix.shape[1]))
    figure, ax, _ = _figure(5.0, height + 0.6)
    size = max(1.0, 20000 / max(matrix.shape) ** 2)
    ax.scatter(columns, rows, c=dense[rows, columns], marker="s", s=size, cmap="viridis", linewidths=0)
    ax.set(xlim=(-0.5, matrix.shape[1] - 0.5), ylim=(matrix.shape[0] - 0.5, -0.5), aspect="equal")
    ax.set_xlabel(f"{matrix.shape[1]} inputs")
    ax.set_ylabel(f"{matrix.shape[0]} outputs")
    ax.set_title(f"{'C$^T$' if matrix.is_transposed else 'C'}: {matrix.nnz:,} non-zeros, density {matrix.density:.3g}")
    return figure


def draw_axis(axis: Axis | TransposedAxis) -> Any:
    """One axis: the padded (or stretched) input below, the outputs above, and what the first output sees.

    >>> len(draw_axis(Axis(6, kernel=3, stride=2, padding=1)).axes[0].patches)  # 8 padded inputs, 3 outputs
    11
    """
    transposed = isinstance(axis, TransposedAxis)
    direct = axis.direct if isinstance(axis, TransposedAxis) else axis
    step = axis.axis.stride if isinstance(axis, TransposedAxis) else 1
    padded = direct.input + direct.lo + direct.hi
    figure, ax, rectangle = _figure(max(4.0, 0.4 * padded), 2.4)
    for place in range(padded):
        inside = 0 <= place - direct.lo < direct.input and (place - direct.lo) % step == 0
        style: dict[str, Any] = {
            "facecolor": _INPUT if inside else _ZERO,
            "edgecolor": "black",
            "linestyle": "-" if inside else ":",
        }
        ax.add_patch(rectangle((place - 0.45, 0), 0.9, 0.9, **style))
    for output in range(direct.output):
        middle = output * direct.stride + (direct.effective_kernel - 1) / 2
        ax.add_patch(rectangle((middle - 0.45, 2), 0.9, 0.9, facecolor=_OUTPUT, edgecolor="black"))
        for tap in range(direct.kernel):
            place = output * direct.stride + tap * direct.dilation
            ax.plot((middle, place), (2, 0.9), color=_TAP, linewidth=1.5 if output == 0 else 0.3)
    ax.set(xlim=(-1, padded), ylim=(-0.4, 3.3), aspect="equal")
    ax.axis("off")
    rule = axis.relationship
    ax.set_title(f"relationship {rule.number}\n{rule.formula} = {axis.output}", fontsize="medium")
    if transposed and step > 1:
        ax.text(-0.45, -0.35, f"s - 1 = {step - 1} inserted between inputs", fontsize="small", va="top")
    return figure


def draw_receptive_field(field: NodeField, index: int | Sequence[int] | None = None, image: Any = None) -> Any:
    """The input pixels that one output sees, on the input's grid, with the box around them.

    Args:
        field: of a node on two spatial axes, from :func:`~torch_convarith.receptive_field`.
        index: the output's position; the middle one by default.
        image: (H, W) or (H, W, 3), drawn below.

    Raises:
        ValueError: the model has other than two spatial axes.
    """
    region = field.input_region(index)
    if region.mask.dim() != 2:
        raise ValueError(f"draw_receptive_field() needs two spatial axes, not {region.mask.dim()}")
    figure, ax, rectangle = _figure(4.5, 4.8)
    if image is not None:
        ax.imshow(image.detach().cpu().numpy() if isinstance(image, Tensor) else image, cmap="gray")
    ax.imshow(region.mask.numpy(), cmap="Blues", vmin=0, vmax=1.5, alpha=1.0 if image is None else 0.5)
    if region.box is not None:
        (top, bottom), (left, right) = region.box
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(rectangle(corner, right - left + 1, bottom - top + 1, fill=False, edgecolor="black"))
    sizes = "x".join(map(str, field.size))
    ax.set_title(f"{field.name}: r = {sizes}, {len(region):,} pixels seen")
    return figure
