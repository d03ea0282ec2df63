"""Locally connected layers: the convolution's pattern with a free value in each of its entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..geometry import Geometry, GeometryError
from .conv import _autocast


def locally_connected(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution whose kernel is another one at every output.

    Args:
        input: (N, C, *spatial) or (C, *spatial), 1 to 3 axes.
        weight: (K, C/groups, *kernel, *output), of the input's dtype.
        bias: (K, *output), or None.
        stride, padding, dilation, groups: the convolution's.

    Returns:
        (N, K, *output) or (K, *output).

    Raises:
        GeometryError: sizes that do not fit, or an output whose size is not the weight's.
        RuntimeError: dtypes that differ.

    >>> x, w = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> locally_connected(x, w).tolist()  # the first output takes its first tap, the second its second
    [[[1.0, 3.0]]]
    """
    input, weight, bias = _operands("locally_connected", input, weight, bias)
    axes = _axes(weight)
    kernel, output = tuple(weight.shape[2 : 2 + axes]), tuple(weight.shape[2 + axes :])
    _check_input(input, axes)
    geometry = Geometry.of(tuple(input.shape[-axes:]), kernel, stride, padding, dilation)
    if geometry.output_size != output:
        raise GeometryError(
            f"relationship 15 gives an output of size {geometry.output_size}, but weight of shape "
            f"{tuple(weight.shape)} has kernels for outputs of size {output}"
        )
    _check_channels(input.shape[-axes - 1], weight.shape[1] * groups, weight, groups)
    columns = _ops.unfold(input, *_raw(geometry)).unflatten(-3, (groups, -1))  # (..., g, C/g, taps, outputs)
    free = weight.flatten(2 + axes).flatten(2, 1 + axes).unflatten(0, (groups, -1))  # (g, K/g, C/g, taps, outputs)
    result = torch.einsum("...gcto,gkcto->...gko", columns, free).flatten(-3, -2).unflatten(-1, output)
    return result if bias is None else result + bias


def locally_connected_transpose(
    input: Tensor,
    weight: Tensor,
    output_size: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The transpose of :func:`locally_connected`, whose matrix is the other's transposed.

    Args:
        input: (N, K, *output) or (K, *output): what the locally connected layer gives.
        weight: (K, C/groups, *kernel, *output), of the input's dtype.
        output_size: spatial sizes of what that layer takes.
        bias: (C, *output_size), or None.
        stride, padding, dilation, groups: the convolution's.

    Returns:
        (N, C, *output_size) or (C, *output_size).

    Raises:
        GeometryError: sizes that do not fit.
        RuntimeError: dtypes that differ.

    >>> y, w = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> locally_connected_transpose(y, w, (3,)).tolist()
    [[[1.0, 0.0, 3.0]]]
    """
    input, weight, bias = _operands("locally_connected_transpose", input, weight, bias)
    axes = _axes(weight)
    kernel, size = tuple(weight.shape[2 : 2 + axes]), tuple(weight.shape[2 + axes :])
    _check_input(input, axes)
    geometry = Geometry.of(tuple(output_size), kernel, stride, padding, dilation)
    if geometry.output_size != size or tuple(input.shape[-axes:]) != size:
        raise GeometryError(
            f"relationship 15 takes output_size {tuple(output_size)} to {geometry.output_size}; weight of shape "
            f"{tuple(weight.shape)} and input of shape {tuple(input.shape)} must have that size"
        )
    _check_channels(input.shape[-axes - 1], weight.shape[0], weight, groups)
    free = weight.flatten(2 + axes).flatten(2, 1 + axes).unflatten(0, (groups, -1))
    y = input.flatten(-axes).unflatten(-2, (groups, -1))  # (..., g, K/g, outputs)
    columns = torch.einsum("...gko,gkcto->...gcto", y, free).flatten(-4, -3)  # (..., C, taps, outputs)
    result = _ops.fold(columns, geometry.input_size, *_raw(geometry))
    return result if bias is None else result + bias


def _operands(name: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast by autocast as a convolution's operands, and then of one dtype."""
    input, weight, bias = _autocast(input, weight, bias)  # type: ignore[assignment]
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(f"{name}: input of {input.dtype} and {what} of {tensor.dtype} should be the same dtype")
    return input, weight, bias


def _axes(weight: Tensor) -> int:
    if weight.dim() not in (4, 6, 8):
        raise GeometryError(
            f"expected a weight (K, C/groups, *kernel, *output) with 1 to 3 axes, got shape {tuple(weight.shape)}"
        )
    return (weight.dim() - 2) // 2


def _check_input(input: Tensor, axes: int) -> None:
    if input.dim() not in (axes + 1, axes + 2):
        raise GeometryError(f"expected input (N, C, *spatial) with {axes} axes, got shape {tuple(input.shape)}")


def _check_channels(channels: int, expected: int, weight: Tensor, groups: int) -> None:
    if groups < 1 or weight.shape[0] % groups or channels != expected:
        raise GeometryError(
            f"weight of shape {tuple(weight.shape)} and groups {groups} expect input of {expected} channels and out "
            f"channels that groups divide, got {channels} channels"
        )


def _raw(geometry: Geometry) -> tuple[Any, ...]:
    padding = [side for pair in geometry.padding for side in pair]
    return geometry.kernel_size, geometry.stride, padding, geometry.dilation
