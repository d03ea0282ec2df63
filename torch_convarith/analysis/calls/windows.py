"""Calls that see windows: convolutions, pooling, unfold, padding, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from ...geometry import Geometry
from ..graph import Layout, Node, Role, axes_of
from ..relation import Relation
from .call import Call, Handled, Unknown, constant_weight, handles, only_axis


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(int(v) for v in value) * (axes if len(value) == 1 else 1)
    return (int(value),) * axes


def _spatial(call: Call, source: Node, count: int) -> list[int]:
    """The axis that each of the last ``count`` dimensions is."""
    axes = []
    for place, atoms in enumerate(source.layout[-count:]):
        found = [role for role, size in atoms if size > 1 or isinstance(role, int)]
        if len(found) == 1 and isinstance(found[0], int):
            axes.append(found[0])
        elif not found and place < call.axes:
            axes.append(place + call.axes - count if call.axes >= count else place)
        else:
            raise Unknown(f"{call.name} runs along a dimension that mixes axes and channels")
    if len(set(axes)) != count:
        raise Unknown(f"{call.name} runs along dimensions that are not the model's axes")
    return axes


def _window_layout(call: Call, axes: Sequence[int]) -> Layout:
    """(N, C, *axes), or without N."""
    roles: tuple[Role, ...] = ("N", "C", *axes)
    return tuple(((role, size),) for role, size in zip(roles[-len(call.shape) :], call.shape, strict=True))


def _pairs(flat: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """(lo, hi) per axis from our operators' lo, hi, lo, hi."""
    return tuple(zip(map(int, flat[::2]), map(int, flat[1::2]), strict=True))


@handles("conv1d conv2d conv3d")
def _conv(call: Call) -> Handled:
    weight = constant_weight(call)
    count = weight.dim() - 2
    padding = call.get("padding", 4, 0)
    geometry = Geometry.of(
        tuple(call.source.shape[-count:]),
        tuple(weight.shape[2:]),
        _tuple(call.get("stride", 3, 1), count),
        padding if isinstance(padding, str) else _tuple(padding, count),
        _tuple(call.get("dilation", 5, 1), count),
    )
    return _convolution(call, weight, geometry, int(call.get("groups", 6, 1)), call.get("bias", 2) is not None)


@handles("conv conv_csr")
def _explicit_conv(call: Call) -> Handled:
    """torch_convarith::conv(x, w, stride, padding, dilation, groups)."""
    x, weight, stride, padding, dilation, groups = call.args[:6]
    sizes = tuple(x.shape[2:])
    geometry = Geometry.of(sizes, tuple(weight.shape[2:]), tuple(stride), _pairs(padding), tuple(dilation))
    return _convolution(call, weight, geometry, int(groups), False)


def _convolution(call: Call, weight: Tensor, geometry: Geometry, groups: int, has_bias: bool) -> Handled:
    mode = str(getattr(call.module, "padding_mode", "zeros"))
    axes = _spatial(call, call.source, len(geometry))
    layout = _window_layout(call, axes)
    relations = {
        axis: Relation.window(a.input, a.output, a.kernel, a.stride, a.lo, a.dilation, mode)
        for axis, a in zip(axes, geometry, strict=True)
    }
    call.kind = "conv"
    call.facts |= {
        "geometry": geometry,
        "groups": groups,
        "channels": (weight.shape[1] * groups, weight.shape[0]),
        "padding_mode": mode,
        "has_bias": has_bias,
    }
    return layout, call.along(layout, relations)


@handles("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(call: Call) -> Handled:
    weight = constant_weight(call)
    count = weight.dim() - 2
    kernel = tuple(weight.shape[2:])
    stride = _tuple(call.get("stride", 3, 1), count)
    padding = _tuple(call.get("padding", 4, 0), count)
    dilation = _tuple(call.get("dilation", 7, 1), count)
    inputs, outputs = call.source.shape[-count:], call.shape[-count:]
    # output_size= may have chosen output_padding: the true output says which convolution is transposed.
    sides = []
    for i, o, k, s, p, d in zip(inputs, outputs, kernel, stride, padding, dilation, strict=True):
        a = o - (s * (i - 1) + (k - 1) * d + 1 - 2 * p)
        sides.append((p, p - (a - a % s)))
    geometry = Geometry.of(outputs, kernel, stride, tuple(sides), dilation)
    return _transposed(call, weight, geometry, int(call.get("groups", 6, 1)), call.get("bias", 2) is not None)


@handles("conv_transpose conv_transpose_csr")
def _explicit_transpose(call: Call) -> Handled:
    """torch_convarith::conv_transpose(y, w, input_size, stride, padding, dilation, groups)."""
    _, weight, sizes, stride, padding, dilation, groups = call.args[:7]
    geometry = Geometry.of(tuple(sizes), tuple(weight.shape[2:]), tuple(stride), _pairs(padding), tuple(dilation))
    return _transposed(call, weight, geometry, int(groups), False)


def _transposed(call: Call, weight: Tensor, geometry: Geometry, groups: int, has_bias: bool) -> Handled:
    """``geometry`` is that of the convolution that is transposed."""
    axes = _spatial(call, call.source, len(geometry))
    layout = _window_layout(call, axes)
    relations = {
        axis: Relation.transposed(a.output, a.input, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a in zip(axes, geometry, strict=True)
    }
    call.kind = "conv_transpose"
    call.facts |= {
        "geometry": geometry,
        "groups": groups,
        "channels": (weight.shape[0], weight.shape[1] * groups),
        "has_bias": has_bias,
    }
    return layout, call.along(layout, relations)


@handles("zero_insert")
def _zero_insert(call: Call) -> Handled:
    """torch_convarith::zero_insert(x, stride, padding): inputs at ``o*stride + lo``."""
    x, stride, padding = call.args[:3]
    axes = _spatial(call, call.source, x.dim() - 2)
    layout = _window_layout(call, axes)
    rows = zip(axes, x.shape[2:], call.shape[2:], stride, _pairs(padding), strict=True)
    return layout, call.along(layout, {axis: Relation.transposed(i, o, 1, s, -lo) for axis, i, o, s, (lo, _) in rows})


@handles(
    """
    max_pool1d max_pool1d_with_indices avg_pool1d lp_pool1d max_pool2d max_pool2d_with_indices
    avg_pool2d lp_pool2d max_pool3d max_pool3d_with_indices avg_pool3d lp_pool3d
    """
)
def _pool(call: Call) -> Handled:
    count = int(call.name.removesuffix("_with_indices")[-2])
    power = "lp" in call.name  # lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)
    first = 2 if power else 1
    kernel = _tuple(call.get("kernel_size", first), count)
    stride = call.get("stride", first + 1)
    # torch's L^p pooling has no padding and only maximum pooling dilates; ours have both
    padding = call.get("padding", None if power else 3, 0)
    dilation = call.get("dilation", 4 if "max" in call.name else None, 1)
    sides = [(p, p) for p in _tuple(padding, count)]
    return _pooling(call, kernel, kernel if stride in (None, [], ()) else _tuple(stride, count), sides, dilation)


@handles("max_pool max_pool_with_indices avg_pool lp_pool")
def _explicit_pool(call: Call) -> Handled:
    """torch_convarith::max_pool(x, kernel_size, stride, padding, dilation, ...), avg_pool, and lp_pool."""
    first = 3 if "lp" in call.name else 1
    kernel, stride, padding, dilation = (tuple(map(int, v)) for v in call.args[first : first + 4])
    return _pooling(call, kernel, stride, _pairs(padding), dilation)


def _pooling(
    call: Call, kernel: tuple[int, ...], stride: tuple[int, ...], sides: Sequence[tuple[int, int]], dilation: Any
) -> Handled:
    count = len(kernel)
    dilations = _tuple(dilation, count)
    inputs, outputs = call.source.shape[-count:], call.shape[-count:]
    reached = []
    for i, o, k, s, (lo, hi), d in zip(inputs, outputs, kernel, stride, sides, dilations, strict=True):
        # ceil_mode: the last window may reach beyond the padding
        beyond = (o - 1) * s + (k - 1) * d + 1 - (i + lo + hi)
        reached.append((lo, hi + max(0, beyond)))
    geometry = Geometry.of(inputs, kernel, stride, tuple(reached), dilations)
    axes = _spatial(call, call.source, count)
    layout = _window_layout(call, axes)
    relations = {
        axis: Relation.window(a.input, o, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a, o in zip(axes, geometry, outputs, strict=True)
    }
    call.kind = "pool"
    call.facts["geometry"] = geometry
    return layout, call.along(layout, relations)


@handles("max_unpool1d max_unpool2d max_unpool3d")
def _max_unpool(call: Call) -> Handled:
    source = call.source
    count = int(call.name[-2])
    kernel = _tuple(call.get("kernel_size", 2), count)
    stride = call.get("stride", 3)
    stride = kernel if stride is None else _tuple(stride, count)
    padding = _tuple(call.get("padding", 4, 0), count)
    axes = _spatial(call, source, count)
    layout = _window_layout(call, axes)
    rows = zip(axes, source.shape[-count:], call.shape[-count:], kernel, stride, padding, strict=True)
    relations = {axis: Relation.transposed(i, o, k, s, p) for axis, i, o, k, s, p in rows}
    call.kind = "unpool"
    call.facts["note"] = "which input lands where depends on the values: the set holds all that can"
    edges = [edge for s in dict.fromkeys(call.sources()) if s.shape == source.shape
             for edge in call.along(layout, relations, s)]  # fmt: skip
    return layout, edges


@handles(
    """
    adaptive_avg_pool1d adaptive_max_pool1d adaptive_max_pool1d_with_indices adaptive_avg_pool2d
    adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_avg_pool3d adaptive_max_pool3d
    adaptive_max_pool3d_with_indices
    """
)
def _adaptive(call: Call) -> Handled:
    source = call.source
    count = int(call.name[-2])
    axes = _spatial(call, source, count)
    layout = _window_layout(call, axes)
    rows = zip(axes, source.shape[-count:], call.shape[-count:], strict=True)
    call.kind = "adaptive_pool"
    return layout, call.along(layout, {axis: Relation.adaptive(i, o) for axis, i, o in rows})


@handles(
    """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d interpolate upsample upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    """
)
def _interpolate(call: Call) -> Handled:
    source, module = call.source, call.module
    count = len(source.shape) - 2
    if call.name.startswith(
        "upsample_"
    ):  # torch.ops.aten.upsample_bilinear2d(input, output_size, align_corners, scales)
        mode = call.name.removeprefix("upsample_").rstrip("123d")
        aligned = bool(call.args[2]) if "nearest" not in mode and len(call.args) > 2 else False
        scales: Any = None
        recompute: Any = True
    else:
        mode = str(call.get("mode", 3, "nearest"))
        aligned = bool(call.get("align_corners", 4, False))
        scales, recompute = call.get("scale_factor", 2), call.get("recompute_scale_factor", 5)
        if call.name == "upsample" and module is None:
            recompute = None
        if call.get("antialias", 6, False):
            raise Unknown("antialiased resizing")
        if module is not None and getattr(module, "size", None) is not None:
            scales = None
    given = [None] * count if scales is None or recompute else list(
        scales if isinstance(scales, (tuple, list)) else [scales] * count
    )  # fmt: skip
    axes = _spatial(call, source, count)
    layout = _window_layout(call, axes)
    relations = {}
    rows = zip(axes, source.shape[-count:], call.shape[-count:], given, strict=True)
    for axis, i, o, factor in rows:
        ratio = Fraction(i, o) if factor is None else 1 / Fraction(float(factor)).limit_denominator(10**6)
        if mode == "area":
            relations[axis] = Relation.adaptive(i, o)
        elif mode in ("nearest", "nearest-exact", "nearest_exact"):
            relations[axis] = Relation.nearest(i, o, ratio, mode != "nearest")
        elif mode in ("linear", "bilinear", "trilinear", "bicubic"):
            if aligned:
                ratio = Fraction(i - 1, o - 1) if o > 1 else Fraction(0)
            relations[axis] = Relation.interpolated(i, o, ratio, aligned, 4 if mode == "bicubic" else 2)
        else:
            raise Unknown(f"resizing with mode {mode!r}")
    call.kind = "resize"
    return layout, call.along(layout, relations)


def _unfolded(call: Call, sizes: tuple[int, ...], place: int) -> Geometry:
    """The windows over ``sizes``; kernel_size, dilation, padding and stride are the arguments from ``place`` on."""
    letters = (("kernel_size", None), ("dilation", 1), ("padding", 0), ("stride", 1))
    kernel, dilation, padding, stride = (
        _tuple(call.get(name, place + i, default), len(sizes)) for i, (name, default) in enumerate(letters)
    )
    return Geometry.of(sizes, kernel, stride, padding, dilation)


@handles("unfold im2col")
def _unfold(call: Call) -> Handled:
    """(N, C, *spatial) to (N, C * taps, outputs): the last dimension is the grid of windows."""
    source = call.source
    count = len(source.shape) - 2
    if len(call.shape) != 3 or count < 1:  # Tensor.unfold along one dimension
        raise Unknown("sliding windows as a dimension")
    geometry = _unfolded(call, tuple(source.shape[2:]), 1)
    axes = _spatial(call, source, count)
    grid = tuple(zip(axes, geometry.output_size, strict=True))
    layout: Layout = ((("N", call.shape[0]),), (("C", call.shape[1]),), grid)
    call.kind = "unfold"
    call.facts["geometry"] = geometry
    return layout, call.along(layout, {
        axis: Relation.window(a.input, a.output, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a in zip(axes, geometry, strict=True)
    })  # fmt: skip


@handles("fold col2im")
def _fold(call: Call) -> Handled:
    """The transpose of :func:`_unfold`: each pixel sees the windows that hold it."""
    source = call.source
    geometry = _unfolded(call, tuple(call.shape[2:]), 2)
    grid = [atom for atom in source.layout[-1] if isinstance(atom[0], int)]
    if tuple(size for _, size in grid) != geometry.output_size:
        raise Unknown("fold of a dimension that is not the grid of its windows")
    axes = [int(role) for role, _ in grid]
    layout = _window_layout(call, axes)
    call.kind = "fold"
    return layout, call.along(layout, {
        axis: Relation.transposed(a.output, a.input, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a in zip(axes, geometry, strict=True)
    })  # fmt: skip


@handles("pad constant_pad_nd")
def _pad(call: Call) -> Handled:
    source, module = call.source, call.module
    flat: Any = call.get("pad", 1) if module is None else module.padding
    mode = str(call.get("mode", 2, "constant")) if module is None else type(module).__name__
    if isinstance(flat, int):
        flat = (flat,) * 2 * (len(source.shape) - 2)
    borders = {"refl": "reflect", "repl": "replicate", "circ": "circular"}  # of modes and of class names
    border = borders.get(mode[:4].lower(), "zeros")
    layout = list(source.layout)
    relations = {}
    for n in range(len(flat) // 2):
        dim = len(source.shape) - 1 - n
        lo, size = int(flat[2 * n]), call.shape[dim]
        axes = axes_of(layout[dim])
        if axes:
            axis = only_axis(layout[dim], "padding")
            assert axis is not None
            relations[axis] = Relation.shifted(source.shape[dim], size, -lo, border=border)
            layout[dim] = ((axis, size),)
        else:
            layout[dim] = (("C", size),)
    call.kind = "pad"
    return tuple(layout), call.along(tuple(layout), relations)


@handles("pixel_shuffle pixel_unshuffle")
def _pixel_shuffle(call: Call) -> Handled:
    source = call.source
    up = "unshuffle" not in call.name
    axes = _spatial(call, source, 2)
    layout = _window_layout(call, axes)
    relations = {}
    for axis, i, o in zip(axes, source.shape[-2:], call.shape[-2:], strict=True):
        r = o // i if up else i // o
        relations[axis] = Relation(i, o, r, 1, ((0,),) * r) if up else Relation.window(i, o, kernel=r, stride=r)
    call.kind = "resize"
    return layout, call.along(layout, relations)
