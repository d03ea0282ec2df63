"""The pattern itself: ``unfold`` lays out what each output sees through each tap, ``fold`` is its adjoint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry
from .conv import Ints, pairs
from .windows import adjoint_pair, check_shape

unfold, fold = adjoint_pair("unfold", "fold", lambda kernel, *_: len(kernel))
"""``unfold(x, kernel_size, stride, padding, dilation)``, (..., taps, outputs) from (..., *input); and its adjoint."""


def _unfolded(x: tuple[int, ...], kernel: Ints, *rest: Any) -> tuple[int, ...]:
    axes = len(kernel)
    leading = len(x) - axes
    stride, padding, dilation = rest
    geometry = Geometry.of(tuple(x[leading:]), tuple(kernel), tuple(stride), pairs(padding), tuple(dilation))
    return (*x[:leading], math.prod(kernel), math.prod(geometry.output_size))


@torch.library.register_fake("torch_convarith::unfold")
def _fake_unfold(x: Tensor, kernel: Ints, *rest: Any) -> Tensor:
    return x.new_empty(_unfolded(tuple(x.shape), kernel, *rest))


@torch.library.register_fake("torch_convarith::fold")
def _fake_fold(y: Tensor, size: Ints, kernel: Ints, *rest: Any) -> Tensor:
    x = (*y.shape[: y.dim() - 2], *size)
    check_shape(y, "y", _unfolded(x, kernel, *rest))
    return y.new_empty(x)
