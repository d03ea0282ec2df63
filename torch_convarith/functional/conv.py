"""conv1d/2d/3d and conv_transpose1d/2d/3d with torch.nn.functional's signatures, and ``zero_insert``.

Each function checks its arguments against the guide's relationships before anything is allocated, and its result
against them afterwards. ``method`` says how the values are computed; all methods give the same values and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function

from .. import _ops
from .._ops import direct_conv, direct_conv_transpose
from ..geometry import (
    AXIS_NAMES,
    Geometry,
    GeometryError,
    padding_pairs,
    per_axis,
    strided_same_padding,
    transposed_output_size,
)
from ..pattern import Pattern

CONV_METHODS = ("pattern", "matrix")
CONV_TRANSPOSE_METHODS = ("pattern", "zero_insert", "matrix")


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
) -> Tensor:
    """1-D convolution; see :func:`conv2d`, with one axis in place of two."""
    if method == "pattern" and not is_compiling():
        y = direct_conv(1, input, weight, bias, stride, padding, dilation, groups)
        if y is not None:
            return y
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, method, extended)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
) -> Tensor:
    """2-D convolution, ``y = C x``, as torch.nn.functional.conv2d.

    Args:
        input: (N, C, H, W), or (C, H, W) unbatched.
        weight: (K, C/groups, kH, kW), of the input's dtype.
        bias: (K,), or None.
        stride: an int or one per axis.
        padding: zeros on each side, an int or one per axis; or ``(lo, hi)`` per axis, which torch does not take; or
            ``"valid"`` (none), or ``"same"`` (relationship 3; needs stride 1; of an odd total the extra zero goes to
            the end).
        dilation: an int or one per axis.
        groups: number of groups that in and out channels are split into.
        method: ``"pattern"`` multiplies with C in compressed form, its pattern and the weights; ``"matrix"``
            assembles C explicitly, in compressed sparse rows, and multiplies with that.
        extended: lifts torch's limits. ``padding="same"`` then takes any stride and gives ceil(i / s) outputs, as
            TensorFlow rules it (relationship 15 solved for the padding).

    Returns:
        (N, K, H', W') with H' = floor((H + 2p - k - (k-1)(d-1)) / s) + 1, relationship 15.

    Raises:
        GeometryError: sizes that do not fit; a ValueError and a RuntimeError. The axis and the rule are named.
        RuntimeError: dtypes or devices that differ.

    >>> x = torch.tensor([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
    >>> w = torch.tensor([[0, 1, 2], [2, 2, 0], [0, 1, 2]])
    >>> conv2d(x[None], w[None, None])[0].tolist()  # the guide's figure 1.1
    [[12, 12, 17], [10, 17, 19], [9, 6, 14]]
    """
    if method == "pattern" and not is_compiling():
        y = direct_conv(2, input, weight, bias, stride, padding, dilation, groups)
        if y is not None:
            return y
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, method, extended)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
) -> Tensor:
    """3-D convolution; see :func:`conv2d`, with three axes in place of two."""
    if method == "pattern" and not is_compiling():
        y = direct_conv(3, input, weight, bias, stride, padding, dilation, groups)
        if y is not None:
            return y
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, method, extended)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
    padding_mode: str = "zeros",
) -> Tensor:
    """1-D transposed convolution; see :func:`conv_transpose2d`, with one axis in place of two."""
    options = (stride, padding, output_padding, groups, dilation)
    if method == "pattern" and padding_mode == "zeros" and not is_compiling():
        x = direct_conv_transpose(1, input, weight, bias, *options)
        if x is not None:
            return x
    return _conv_transpose(1, input, weight, bias, *options, method, extended, padding_mode)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
    padding_mode: str = "zeros",
) -> Tensor:
    """2-D transposed convolution, ``x = C^T y``, as torch.nn.functional.conv_transpose2d.

    ``stride``, ``padding`` and ``dilation`` are those of the convolution C that is transposed.

    Args:
        input: (N, K, H', W'), or (K, H', W') unbatched.
        weight: (K, C/groups, kH, kW), of the input's dtype: C's weight as it is.
        bias: (C,), or None.
        stride: an int or one per axis; ``s - 1`` zeros are what stretches the input.
        padding: an int or one per axis; or ``(lo, hi)`` per axis, which torch does not take.
        output_padding: the ``a`` of relationship 14, an int or one per axis: chooses among the input sizes that C maps
            to (H', W'). Less than the stride or the dilation.
        groups: number of groups that in and out channels are split into.
        dilation: an int or one per axis.
        method: ``"pattern"`` multiplies with C^T in compressed form, ``"matrix"`` with C^T assembled explicitly;
            ``"zero_insert"`` inserts the zeros, pads, and convolves directly with the flipped kernel, exactly as
            relationships 8 to 14 describe.
        extended: lifts torch's limits. ``padding="same"`` then transposes the ``"same"`` convolution of an input of
            size s * i', so that H = s * H'; ``output_padding`` may be any number (beyond relationship 14's a < s it
            takes from the padding at the end, and adds zeros that no window reaches once that is used up);
            ``padding_mode`` may be other than zeros.
        padding_mode: of the convolution C, "zeros", "reflect", "replicate" or "circular"; needs ``extended`` but for
            zeros. What C's padding repeats, C^T adds up: with "circular" the output wraps around.

    Returns:
        (N, C, H, W) with H = s(H' - 1) + a + k - 2p, relationship 14, k being the effective kernel.

    Raises:
        GeometryError: sizes that do not fit; a ValueError and a RuntimeError. The axis and the rule are named.
        RuntimeError: dtypes or devices that differ.

    >>> y, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
    >>> conv_transpose2d(y, w, method="zero_insert")[0, 0].tolist()  # the guide's figure 4.1
    [[1.0, 2.0, 2.0, 1.0], [2.0, 4.0, 4.0, 2.0], [2.0, 4.0, 4.0, 2.0], [1.0, 2.0, 2.0, 1.0]]
    """
    options = (stride, padding, output_padding, groups, dilation)
    if method == "pattern" and padding_mode == "zeros" and not is_compiling():
        x = direct_conv_transpose(2, input, weight, bias, *options)
        if x is not None:
            return x
    return _conv_transpose(2, input, weight, bias, *options, method, extended, padding_mode)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    method: str = "pattern",
    extended: bool = False,
    padding_mode: str = "zeros",
) -> Tensor:
    """3-D transposed convolution; see :func:`conv_transpose2d`, with three axes in place of two."""
    options = (stride, padding, output_padding, groups, dilation)
    if method == "pattern" and padding_mode == "zeros" and not is_compiling():
        x = direct_conv_transpose(3, input, weight, bias, *options)
        if x is not None:
            return x
    return _conv_transpose(3, input, weight, bias, *options, method, extended, padding_mode)


def zero_insert(x: Tensor, stride: Any, padding: Any = 0, a: Any = 0) -> Tensor:
    """The guide's stretched input: ``s - 1`` zeros between units, ``padding`` zeros around, ``a`` more at the end.

    Args:
        x: (N, C, *spatial) with 1 to 3 axes.
        stride: an int or one per axis; that of the convolution whose transpose is computed.
        padding: an int, one per axis, or ``(lo, hi)`` per axis; negative padding crops.
        a: zeros once more at the end of each axis, an int or one per axis.

    Returns:
        (N, C, *sizes), each size ``i + (s-1)(i-1) + lo + hi + a``.

    >>> zero_insert(torch.tensor([[[1, 2, 3]]]), stride=2, padding=1, a=1).tolist()
    [[[0, 1, 0, 2, 0, 3, 0, 0]]]
    """
    axes = x.dim() - 2
    if not 1 <= axes <= 3:
        raise GeometryError(f"x must be (N, C, *spatial) with 1 to 3 axes, got shape {tuple(x.shape)}")
    strides, extras = per_axis(stride, axes, "stride"), per_axis(a, axes, "a")
    pads = [p if isinstance(p, Sequence) else (p, p) for p in per_axis(padding, axes, "padding")]
    flat = [side for (lo, hi), extra in zip(pads, extras, strict=True) for side in (lo, hi + extra)]
    return _ops.zero_insert(x, strides, flat)


# What all six share --------------------------------------------------------------------------------------------------


def _check_weight(name: str, axes: int, input: Tensor, weight: Tensor, groups: int) -> None:
    """The order and the key words of torch's own checks, so that code which reads its messages goes on working."""
    if weight.dim() < 3:
        raise GeometryError(f"weight should have at least three dimensions: {name} got size {list(weight.shape)}")
    if groups < 1:
        raise GeometryError(f"non-positive groups is not supported: groups {groups}")
    if weight.dim() != axes + 2:
        raise GeometryError(
            f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight {list(weight.shape)}, "
            f"but got {input.dim()}-dimensional input of size {list(input.shape)} instead: {name} takes a weight of "
            f"{axes + 2} dimensions"
        )
    if weight.shape[0] < groups:
        raise GeometryError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(weight.shape)} instead"
        )
    if weight.shape[0] % groups:
        raise GeometryError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(weight.shape)} instead"
        )


def _check_tensors(
    name: str, axes: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, in_out: tuple[int, int]
) -> None:
    in_channels, out_channels = in_out
    if input.dim() not in (axes + 1, axes + 2):
        raise GeometryError(
            f"Expected {axes + 1}D (unbatched) or {axes + 2}D (batched) input to {name}, but got input of size: "
            f"{list(input.shape)}"
        )
    if weight.dtype != input.dtype:
        raise RuntimeError(f"{name}: input of {input.dtype} and weight of {weight.dtype} should be the same dtype")
    channels = input.shape[-axes - 1]
    if channels != in_channels:
        raise GeometryError(
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected input{list(input.shape)} to have "
            f"{in_channels} channels, but got {channels} channels instead"
        )
    if bias is None:
        return
    if bias.dtype != input.dtype:
        raise RuntimeError(f"{name}: input of {input.dtype} and bias of {bias.dtype} should be the same dtype")
    if bias.shape != (out_channels,):
        raise GeometryError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {out_channels} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )


def _check_method(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, not {method!r}")


def _refuse_negative(padding: Any) -> None:
    if isinstance(padding, (tuple, list)):
        for side in padding:
            _refuse_negative(side)
    elif not isinstance(padding, str) and padding < 0:
        raise GeometryError(f"negative padding is not supported: padding {padding}")


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """As torch's convolutions under torch.autocast: floating tensors but float64 are cast to its dtype."""
    assert tensors[0] is not None
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def _finish(result: Tensor, expected: tuple[int, ...], bias: Tensor | None, batched: bool, rule: str) -> Tensor:
    """The result checked against the guide, with bias, unbatched again."""
    for name, got, size in zip(AXIS_NAMES[len(expected)], result.shape[2:], expected, strict=True):
        if got != size:
            raise GeometryError(f"{rule} gives along {name} an output of {size}, but the operator gave {got}")
    if bias is not None:
        result = result + bias.view(-1, *(1,) * len(expected))
    return result if batched else result.squeeze(0)


def _conv(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    method: str,
    extended: bool,
) -> Tensor:
    name = f"conv{axes}d"
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return handle_torch_function(  # torch.fx's proxies; what is no tensor at all is a TypeError
            globals()[name], (input, weight), input, weight, bias, stride, padding, dilation, groups,
            method=method, extended=extended,
        )  # fmt: skip
    _check_method(method, CONV_METHODS)
    input, weight, bias = _autocast(input, weight, bias)  # type: ignore[assignment]
    _check_weight(name, axes, input, weight, groups)
    _refuse_negative(padding)
    geometry = conv_geometry(tuple(input.shape[-axes:]), tuple(weight.shape[2:]), stride, padding, dilation, extended)
    _check_tensors(name, axes, input, weight, bias, groups, (weight.shape[1] * groups, weight.shape[0]))
    batched = input.dim() == axes + 2
    x = input if batched else input.unsqueeze(0)
    y = _ops.conv(x, weight, geometry.stride, geometry.flat_padding, geometry.dilation, groups, method)
    return _finish(y, geometry.output_size, bias, batched, "relationship 15")


def conv_geometry(
    size: tuple[int, ...], kernel_size: tuple[int, ...], stride: Any, padding: Any, dilation: Any, extended: bool
) -> Geometry:
    """The geometry of a convolution of ``size``; ``extended`` lets ``"same"`` have a stride."""
    if extended and padding == "same":
        axes = len(kernel_size)
        strides, dilations = per_axis(stride, axes, "stride"), per_axis(dilation, axes, "dilation")
        padding = tuple(
            strided_same_padding(i, k, s, d) for i, k, s, d in zip(size, kernel_size, strides, dilations, strict=True)
        )
    return Geometry.of(size, kernel_size, stride, padding, dilation)


def _conv_transpose(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    method: str,
    extended: bool,
    padding_mode: str,
) -> Tensor:
    name = f"conv_transpose{axes}d"
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return handle_torch_function(
            globals()[name], (input, weight), input, weight, bias, stride, padding, output_padding, groups, dilation,
            method=method, extended=extended, padding_mode=padding_mode,
        )  # fmt: skip
    _check_method(method, CONV_TRANSPOSE_METHODS)
    if padding_mode != "zeros" and not extended:
        raise ValueError(f'Only "zeros" padding mode is supported for {name}, unless extended=True')
    input, weight, bias = _autocast(input, weight, bias)  # type: ignore[assignment]
    _check_weight(name, axes, input, weight, groups)
    _refuse_negative(padding)
    geometry = transposed_geometry(
        tuple(input.shape[-axes:]), tuple(weight.shape[2:]), stride, padding, output_padding, dilation, extended
    )
    _check_tensors(name, axes, input, weight, bias, groups, (weight.shape[0], weight.shape[1] * groups))
    batched = input.dim() == axes + 2
    y = input if batched else input.unsqueeze(0)
    if padding_mode == "zeros":
        x = _multiply_transposed(y, weight, geometry, groups, method)
    else:
        pattern = Pattern(geometry, padding_mode)
        padded = Geometry.of(pattern.padded_size, geometry.kernel_size, geometry.stride, 0, geometry.dilation)
        x = pattern.unpad(_multiply_transposed(y, weight, padded, groups, method))
    return _finish(x, geometry.input_size, bias, batched, "relationship 14")


def transposed_geometry(
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    extended: bool = False,
) -> Geometry:
    """The geometry of the convolution C whose transpose takes ``size``: C's input is the transpose's output."""
    axes = len(kernel_size)
    strides, dilations = per_axis(stride, axes, "stride"), per_axis(dilation, axes, "dilation")
    if isinstance(padding, str):
        if not extended:
            raise TypeError(
                f"padding of a transposed convolution must be integers, not {padding!r}, unless extended=True"
            )
        if padding == "same":
            if any(per_axis(output_padding, axes, "output_padding")):
                raise GeometryError(
                    f"padding='same' already fixes the output, at s * i'; got output_padding {output_padding}"
                )
            grown = tuple(s * i for s, i in zip(strides, size, strict=True))
            return conv_geometry(grown, kernel_size, stride, padding, dilation, extended)
    sizes = transposed_output_size(size, kernel_size, stride, padding, dilation, output_padding)
    pairs = padding_pairs(padding, kernel_size, strides, dilations)
    paddings = []
    for (lo, hi), a, s, d in zip(
        pairs, per_axis(output_padding, axes, "output_padding"), strides, dilations, strict=True
    ):
        if a >= max(s, d) and not extended:
            raise GeometryError(
                f"output padding must be smaller than either stride or dilation, but got output_padding "
                f"{output_padding}, stride {stride} and dilation {dilation}: relationship 14 has a < s"
            )
        # Beyond relationship 14's a < s, the zeros at the end are padding that C has less of.
        paddings.append((lo, hi - (a - a % s)))
    return Geometry.of(sizes, kernel_size, stride, tuple(paddings), dilation)


def _multiply_transposed(y: Tensor, weight: Tensor, geometry: Geometry, groups: int, method: str) -> Tensor:
    if method == "zero_insert":
        return _by_zero_insertion(y, weight, geometry, groups)
    g = geometry
    return _ops.conv_transpose(y, weight, g.input_size, g.stride, g.flat_padding, g.dilation, groups, method)


def _by_zero_insertion(y: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """Relationships 8 to 14: insert zeros, pad by k - p - 1 and a, convolve with the flipped kernel at unit stride."""
    up = geometry.transposed()
    stretched = zero_insert(y, geometry.stride, [axis.padding for axis in up], [axis.a for axis in up])
    spatial = list(range(2, weight.dim()))
    flipped = weight.flip(spatial).unflatten(0, (groups, weight.shape[0] // groups))  # (g, K/g, C/g, *kernel)
    flipped = flipped.transpose(1, 2).flatten(0, 1)  # (C, K/g, *kernel)
    ones, zeros = (1,) * len(up), (0, 0) * len(up)
    return _ops.conv(stretched, flipped, ones, zeros, geometry.dilation, groups)
