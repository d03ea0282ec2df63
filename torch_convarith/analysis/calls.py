"""What each call of torch means for the arithmetic: which inputs its outputs see, and where their dimensions go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import Geometry
from .graph import Atom, Edge, Layout, Node, Role, axes_of, sizes_of, tensors_in
from .relation import Relation

__all__ = ["SPLITS", "TRANSPARENT", "WITHOUT_DEPENDENCE", "Call", "module_kind"]


class Call:
    """A call with its arguments, and what it means for the arithmetic."""

    def __init__(
        self,
        name: str,
        module: nn.Module | None,
        args: Any,
        kwargs: Any,
        output: Tensor,
        index: int,
        outputs: list[Tensor],
        node_of: Callable[[Tensor], Node | None],
        axes: int,
    ) -> None:
        self.name, self.module, self.args, self.kwargs = name, module, args, kwargs
        self.output, self.index, self.outputs, self.node_of, self.axes = output, index, outputs, node_of, axes
        self.shape = tuple(output.shape)
        self.facts: dict[str, Any] = {}
        self.kind = name

    def get(self, name: str, place: int | None = None, default: Any = None) -> Any:
        """An argument: the module's attribute, or the function's, by keyword or place."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if place is not None and place < len(self.args) else default

    @property
    def tensor(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(tensors_in((self.args, self.kwargs)))

    @property
    def source(self) -> Node:
        """The first node among the inputs."""
        return next(self.sources())

    def sources(self) -> Iterator[Node]:
        """All nodes among the inputs, in order."""
        for tensor in tensors_in((self.args, self.kwargs)):
            node = self.node_of(tensor)
            if node is not None:
                yield node

    def node(self, path: str, label: str) -> Node:
        """The node, by the handler of this kind of call."""
        handler = _HANDLERS.get(self.name)
        try:
            if handler is None:
                raise _Unknown(f"{self.name} is not known here")
            layout, edges = handler(self)
        except (_Unknown, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Forms of arguments are many: what cannot be read must widen the result, not stop the model.
            told = str(error) if isinstance(error, _Unknown) else f"{self.name} was not understood ({error})"
            layout, edges = _everything(self)
            self.kind, self.facts = self.name, {"note": f"{told}: taken to see everything"}
        sizes = sizes_of(layout, self.axes)
        return Node(path, self.kind, label, self.module, self.shape, layout, sizes, edges, **self.facts)

    def along(self, layout: Layout, relations: dict[int, Relation], source: Node | None = None) -> list[Edge]:
        """One edge: ``relations`` on some axes, element by element on the rest."""
        source = source or self.source
        sizes = sizes_of(layout, self.axes)
        return [
            Edge(source, tuple(relations.get(a) or _pointwise(source.sizes[a], sizes[a]) for a in range(self.axes)))
        ]


class _Unknown(Exception):
    """A call whose arithmetic is not known."""


Handled = tuple[Layout, list[Edge]]


def _pointwise(input: int, output: int) -> Relation:
    if input == output:
        return Relation.identity(input)
    return Relation.broadcast(output) if input == 1 else Relation.full(input, output)


def _everything(call: Call) -> Handled:
    sources = list(call.sources())
    same = next((s for s in sources if s.shape == call.shape), None)
    layout = same.layout if same else tuple((("C", size),) for size in call.shape)
    sizes = sizes_of(layout, call.axes)
    return layout, [Edge(s, tuple(Relation.full(i, o) for i, o in zip(s.sizes, sizes, strict=True))) for s in sources]


def _elementwise(call: Call) -> Handled:
    """Broadcasting as torch does, dimensions aligned from the right."""
    sources = list(call.sources())
    dims = len(call.shape)
    layout: list[tuple[Atom, ...]] = []
    for dim in range(dims):
        atoms: tuple[Atom, ...] = (("C", call.shape[dim]),)
        for s in sources:
            place = dim - dims + len(s.shape)
            if place >= 0 and s.shape[place] == call.shape[dim] and len(s.layout) == len(s.shape):
                candidate = s.layout[place]
                if candidate and (atoms == (("C", call.shape[dim]),) or (axes_of(candidate) and not axes_of(atoms))):
                    atoms = candidate
        layout.append(atoms)
    result = tuple(layout)
    edges = []
    for s in dict.fromkeys(sources):
        relations: dict[int, Relation] = {}
        for dim, place in zip(range(dims - 1, -1, -1), range(len(s.shape) - 1, -1, -1), strict=False):
            mine, theirs = axes_of(result[dim]), axes_of(s.layout[place])
            if s.shape[place] > 1 and mine != theirs:  # the same dimension means different axes
                sizes = sizes_of(result, call.axes)
                relations |= {a: Relation.full(s.sizes[a], sizes[a]) for a in mine | theirs}
        edges += call.along(result, relations, s)
    return result, edges


# Convolution and pooling


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
            raise _Unknown(f"{call.name} runs along a dimension that mixes axes and channels")
    if len(set(axes)) != count:
        raise _Unknown(f"{call.name} runs along dimensions that are not the model's axes")
    return axes


def _window_layout(call: Call, axes: Sequence[int]) -> Layout:
    """(N, C, *axes), or without N."""
    roles: tuple[Role, ...] = ("N", "C", *axes)
    return tuple(((role, size),) for role, size in zip(roles[-len(call.shape) :], call.shape, strict=True))


def _weight(call: Call) -> Tensor:
    weight = call.get("weight", 1)
    if not isinstance(weight, Tensor) or call.node_of(weight) is not None or call.node_of(call.tensor) is None:
        raise _Unknown(f"{call.name} with a computed weight")
    return weight


def _pairs(flat: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """(lo, hi) per axis from our operators' lo, hi, lo, hi."""
    return tuple(zip(map(int, flat[::2]), map(int, flat[1::2]), strict=True))


def _conv(call: Call) -> Handled:
    weight = _weight(call)
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


def _conv_transpose(call: Call) -> Handled:
    weight = _weight(call)
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


def _zero_insert(call: Call) -> Handled:
    """torch_convarith::zero_insert(x, stride, padding): inputs at ``o*stride + lo``."""
    x, stride, padding = call.args[:3]
    axes = _spatial(call, call.source, x.dim() - 2)
    layout = _window_layout(call, axes)
    rows = zip(axes, x.shape[2:], call.shape[2:], stride, _pairs(padding), strict=True)
    return layout, call.along(layout, {axis: Relation.transposed(i, o, 1, s, -lo) for axis, i, o, s, (lo, _) in rows})


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


def _adaptive(call: Call) -> Handled:
    source = call.source
    count = int(call.name[-2])
    axes = _spatial(call, source, count)
    layout = _window_layout(call, axes)
    rows = zip(axes, source.shape[-count:], call.shape[-count:], strict=True)
    call.kind = "adaptive_pool"
    return layout, call.along(layout, {axis: Relation.adaptive(i, o) for axis, i, o in rows})


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
            raise _Unknown("antialiased resizing")
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
            raise _Unknown(f"resizing with mode {mode!r}")
    call.kind = "resize"
    return layout, call.along(layout, relations)


def _unfold(call: Call) -> Handled:
    """(N, C, *spatial) to (N, C * taps, outputs): the last dimension is the grid of windows."""
    source = call.source
    count = len(source.shape) - 2
    if len(call.shape) != 3 or count < 1:  # Tensor.unfold along one dimension
        raise _Unknown("sliding windows as a dimension")
    letters = (
        call.get(*letter) for letter in (("kernel_size", 1), ("stride", 4, 1), ("padding", 3, 0), ("dilation", 2, 1))
    )
    kernel, stride, padding, dilation = (_tuple(v, count) for v in letters)
    geometry = Geometry.of(tuple(source.shape[2:]), kernel, stride, padding, dilation)
    axes = _spatial(call, source, count)
    grid = tuple(zip(axes, geometry.output_size, strict=True))
    layout: Layout = ((("N", call.shape[0]),), (("C", call.shape[1]),), grid)
    call.kind = "unfold"
    call.facts["geometry"] = geometry
    return layout, call.along(layout, {
        axis: Relation.window(a.input, a.output, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a in zip(axes, geometry, strict=True)
    })  # fmt: skip


def _fold(call: Call) -> Handled:
    """The transpose of :func:`_unfold`: each pixel sees the windows that hold it."""
    source = call.source
    count = len(call.shape) - 2
    names = (("kernel_size", 2), ("stride", 5, 1), ("padding", 4, 0), ("dilation", 3, 1))
    kernel, stride, padding, dilation = (_tuple(call.get(*letter), count) for letter in names)
    geometry = Geometry.of(tuple(call.shape[2:]), kernel, stride, padding, dilation)
    grid = [atom for atom in source.layout[-1] if isinstance(atom[0], int)]
    if tuple(size for _, size in grid) != geometry.output_size:
        raise _Unknown("fold of a dimension that is not the grid of its windows")
    axes = [int(role) for role, _ in grid]
    layout = _window_layout(call, axes)
    call.kind = "fold"
    return layout, call.along(layout, {
        axis: Relation.transposed(a.output, a.input, a.kernel, a.stride, a.lo, a.dilation)
        for axis, a in zip(axes, geometry, strict=True)
    })  # fmt: skip


def _glu(call: Call) -> Handled:
    """Half of a dimension, gated by the other half."""
    source = call.source
    dim = int(call.get("dim", 1, -1)) % len(source.shape)
    axis = _only_axis(source.layout[dim], "a gate")
    half = call.shape[dim]
    layout = (*source.layout[:dim], ((axis if axis is not None else "C", half),), *source.layout[dim + 1 :])
    relations = {} if axis is None else {axis: Relation(2 * half, half, 1, 1, ((0, half),))}
    return layout, call.along(layout, relations)


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
            axis = _only_axis(layout[dim], "padding")
            assert axis is not None
            relations[axis] = Relation.shifted(source.shape[dim], size, -lo, border=border)
            layout[dim] = ((axis, size),)
        else:
            layout[dim] = (("C", size),)
    call.kind = "pad"
    return tuple(layout), call.along(tuple(layout), relations)


# Dense layers and normalisation


def _linear(call: Call) -> Handled:
    source, weight = call.source, _weight(call)
    mixed = axes_of(source.layout[-1])
    layout = (*source.layout[:-1], (("C", call.shape[-1]),))
    sizes = sizes_of(layout, call.axes)
    relations = {a: Relation.full(source.sizes[a], sizes[a]) for a in mixed}
    # all positions at once, as a convolution whose kernel is the whole input: unit stride
    relations = {a: Relation.window(r.input, 1, r.input) if r.output == 1 else r for a, r in relations.items()}
    call.kind = "linear"
    call.facts |= {"channels": (weight.shape[-1], call.shape[-1]), "has_bias": call.get("bias", 2) is not None}
    return layout, call.along(layout, relations)


def _pointwise_norm(call: Call) -> Handled:
    call.kind = "norm"
    return _elementwise(call)


def _statistics(call: Call, axes: Iterable[int]) -> Handled:
    source = call.source
    edges = call.along(source.layout, {})
    relations = {a: Relation.full(source.sizes[a], source.sizes[a]) for a in axes if source.sizes[a] > 1}
    if relations:
        (edge,) = call.along(source.layout, relations)
        edge.statistics = True
        edges.append(edge)
        call.facts["note"] = "its mean and variance are those of all positions"
    call.kind = "norm"
    return source.layout, edges


def _batch_norm(call: Call) -> Handled:
    if call.module is not None:
        running = getattr(call.module, "running_mean", None)
    else:
        running = call.get("running_mean", 1)
        if call.get("training", 5, False):
            running = None
    return _pointwise_norm(call) if running is not None else _statistics(call, range(call.axes))


def _instance_norm(call: Call) -> Handled:
    if getattr(call.module, "running_mean", None) is not None:
        return _pointwise_norm(call)
    return _statistics(call, range(call.axes))


def _group_norm(call: Call) -> Handled:
    return _statistics(call, range(call.axes))


def _layer_norm(call: Call) -> Handled:
    shape = call.get("normalized_shape", 1)
    count = len(shape) if isinstance(shape, (tuple, list)) else 1
    return _statistics(call, set().union(*(axes_of(atoms) for atoms in call.source.layout[-count:])))


# Shapes


def _reshape(call: Call) -> Handled:
    source = call.source
    call.kind = "reshape"
    if call.shape == source.shape:
        return source.layout, call.along(source.layout, {})
    atoms = [atom for dim in source.layout for atom in dim if atom[1] != 1]
    layout: list[tuple[Atom, ...]] = []
    for size in call.shape:
        taken: list[Atom] = []
        left = size
        while left > 1:
            if not atoms:
                raise _Unknown("a reshape of unknown dimensions")
            role, count = atoms.pop(0)
            if left % count == 0:
                taken.append((role, count))
                left //= count
            elif count % left == 0 and not isinstance(role, int):
                taken.append((role, left))
                atoms.insert(0, (role, count // left))
                left = 1
            else:
                raise _Unknown("a reshape that cuts a spatial axis")
        layout.append(tuple(taken))
    same = len(call.shape) == len(source.shape)
    if same and all(a == b or a > 1 for a, b in zip(call.shape, source.shape, strict=True)):
        # axes of size 1 stay where they are
        layout = [mine or theirs for mine, theirs in zip(layout, source.layout, strict=True)]
    return tuple(layout), call.along(tuple(layout), {})


def _permute(call: Call) -> Handled:
    source = call.source
    dims = len(source.shape)
    name = call.name
    order = list(range(dims))
    if name == "permute":
        given = call.kwargs.get("dims", call.args[1:])
        given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        order = [int(d) % dims for d in given]
    elif name in ("transpose", "swapaxes", "swapdims"):
        a, b = (int(call.get(k, n)) % dims for k, n in (("dim0", 1), ("dim1", 2)))
        order[a], order[b] = order[b], order[a]
    elif name in ("movedim", "moveaxis"):
        order = torch.movedim(torch.empty(range(2, dims + 2)), *call.args[1:], **call.kwargs).shape  # type: ignore[assignment]
        order = [size - 2 for size in order]
    elif name == "T":
        order.reverse()
    else:  # t, mT
        order[-1], order[-2] = order[-2], order[-1]
    layout = tuple(source.layout[d] for d in order)
    call.kind = "permute"
    return layout, call.along(layout, {})


def _only_axis(atoms: tuple[Atom, ...], what: str) -> int | None:
    """The axis that a dimension is; None where it is none."""
    axes = axes_of(atoms)
    if not axes:
        return None
    if len(axes) > 1 or len([a for a in atoms if a[1] > 1]) > 1:
        raise _Unknown(f"{what} along a dimension that mixes axes")
    return next(iter(axes))


def _getitem(call: Call) -> Handled:
    source = call.source
    index = call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, (Tensor, list)) for i in index):
        raise _Unknown("indexing by a tensor")
    real = sum(i is not None and i is not Ellipsis for i in index)
    filled: list[Any] = []
    for i in index:
        filled += [slice(None)] * (len(source.shape) - real) if i is Ellipsis else [i]
    filled += [slice(None)] * (len(source.shape) - sum(i is not None for i in filled))
    layout: list[tuple[Atom, ...]] = []
    relations: dict[int, Relation] = {}
    dim = 0
    for i in filled:
        if i is None:
            layout.append(())
            continue
        size, atoms = source.shape[dim], source.layout[dim]
        dim += 1
        if isinstance(i, slice):
            start, stop, step = i.indices(size)
            count = len(range(start, stop, step))
            if count == size and start == 0:
                layout.append(atoms)
                continue
        else:
            start, step, count = int(i) % size, 1, 1
        axis = _only_axis(atoms, "a slice")
        if axis is not None:
            relations[axis] = Relation.shifted(size, count, start, step)
        if isinstance(i, slice):
            layout.append(((axis if axis is not None else "C", count),))
    call.kind = "slice"
    return tuple(layout), call.along(tuple(layout), relations)


def _split(call: Call) -> Handled:
    """chunk, split, tensor_split, unbind: output number ``index``."""
    source = call.source
    dim = int(call.get("dim", 1 if call.name == "unbind" else 2, 0)) % len(source.shape)
    axis = _only_axis(source.layout[dim], call.name)
    layout = list(source.layout)
    if call.name == "unbind":
        start, count = call.index, 1
        del layout[dim]
    else:
        start = sum(t.shape[dim] for t in call.outputs[: call.index])
        count = call.shape[dim]
        layout[dim] = ((axis if axis is not None else "C", count),)
    relations = {} if axis is None else {axis: Relation.shifted(source.shape[dim], count, start)}
    call.kind = "slice"
    return tuple(layout), call.along(tuple(layout), relations)


def _narrow(call: Call) -> Handled:
    source = call.source
    dim = int(call.get("dim", 1)) % len(source.shape)
    axis = _only_axis(source.layout[dim], call.name)
    layout = list(source.layout)
    size = source.shape[dim]
    if call.name == "select":
        start, count, step = int(call.get("index", 2)) % size, 1, 1
        del layout[dim]
    else:
        start = int(call.get("start", 2, 0) or 0)
        start = max(0, start + size if start < 0 else start)
        step = int(call.get("step", 4, 1)) if call.name == "slice" else 1
        count = call.shape[dim]
        layout[dim] = ((axis if axis is not None else "C", count),)
    relations = {} if axis is None else {axis: Relation.shifted(size, count, start, step)}
    call.kind = "slice"
    return tuple(layout), call.along(tuple(layout), relations)


def _cat(call: Call) -> Handled:
    tensors = call.get("tensors", 0)
    dims = len(call.shape)
    dim = int(call.kwargs.get("dim", call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else 0))) % dims
    nodes = [call.node_of(t) for t in tensors]
    known = [n for n in nodes if n is not None]
    axis = _only_axis(known[0].layout[dim], "cat")
    for other in known[1:]:
        for d in range(dims):
            if d != dim and axes_of(other.layout[d]) != axes_of(known[0].layout[d]) and other.shape[d] > 1:
                raise _Unknown("a concatenation of different layouts")
    layout = tuple(
        ((axis if axis is not None else "C", call.shape[dim]),) if d == dim else known[0].layout[d] for d in range(dims)
    )
    edges: list[Edge] = []
    start = 0
    for tensor, node in zip(tensors, nodes, strict=True):
        if node is not None:
            relations = {}
            if axis is not None:
                relations[axis] = replace(Relation.shifted(tensor.shape[dim], call.shape[dim], -start), clips=True)
            edges += call.along(layout, relations, node)
        start += tensor.shape[dim]
    call.kind = "cat"
    return layout, edges


def _stack(call: Call) -> Handled:
    dim = int(call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)) % len(call.shape)
    source = call.source
    layout = (*source.layout[:dim], (("C", call.shape[dim]),), *source.layout[dim:])
    sources = list(dict.fromkeys(call.sources()))
    edges = [edge for s in sources for edge in call.along(layout, {}, s)]
    if len(sources) > 1:
        call.facts["note"] = "the tensors stacked are not told apart"
    call.kind = "cat"
    return layout, edges


def _dims(call: Call, dims: int) -> list[int]:
    given = call.kwargs.get("dim", call.kwargs.get("axis"))
    if given is None and len(call.args) > 1:
        given = (
            call.args[1:]
            if all(isinstance(a, int) and not isinstance(a, bool) for a in call.args[1:])
            else call.args[1]
        )
        if call.name == "norm" and len(call.args) > 1:
            given = call.args[2] if len(call.args) > 2 else None
    if given is None or isinstance(given, bool) or given in ((), []):
        return list(range(dims))
    given = given if isinstance(given, (tuple, list)) else (given,)
    if given and isinstance(given[0], (tuple, list)):
        given = given[0]
    return [int(d) % dims for d in given]


def _reduce(call: Call) -> Handled:
    sources = list(call.sources())
    source = sources[0]
    if len(sources) > 1:  # torch.max(x, y)
        return _elementwise(call)
    dims = len(source.shape)
    gone = _dims(call, dims)
    if len(call.shape) == dims:
        layout = tuple(
            tuple((role, 1) for role, _ in atoms if isinstance(role, int)) if d in gone else atoms
            for d, atoms in enumerate(source.layout)
        )
    elif len(call.shape) == dims - len(gone):
        layout = tuple(atoms for d, atoms in enumerate(source.layout) if d not in gone)
    else:
        raise _Unknown(f"{call.name} over unknown dimensions")
    axes = set().union(*(axes_of(source.layout[d]) for d in gone))
    call.kind = "reduce"
    return layout, call.along(layout, {a: Relation.full(source.sizes[a], 1) for a in axes})


def _along_dim(call: Call) -> Handled:
    """Softmax, cumulative sums, sorting: every position along the dimension sees all of it."""
    source = call.source
    dim = call.get("dim", 1)
    if dim is None:
        raise _Unknown(f"{call.name} without a dimension")
    axes = axes_of(source.layout[int(dim) % len(source.shape)])
    relations = {a: Relation.full(source.sizes[a], source.sizes[a]) for a in axes}
    call.kind = "softmax" if "soft" in call.name else call.name
    return source.layout, call.along(source.layout, relations)


def _normalize(call: Call) -> Handled:
    source = call.source
    axes = axes_of(source.layout[int(call.get("dim", 2, 1)) % len(source.shape)])
    relations = {a: Relation.full(source.sizes[a], source.sizes[a]) for a in axes}
    return source.layout, call.along(source.layout, relations)


def _flip(call: Call) -> Handled:
    source = call.source
    relations = {}
    dims = call.kwargs.get("dims", call.args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    for d in dims:
        axis = _only_axis(source.layout[d], "a flip")
        if axis is not None:
            size = source.sizes[axis]
            relations[axis] = Relation.listed(size, ([size - 1 - o] for o in range(size)))
    return source.layout, call.along(source.layout, relations)


def _roll(call: Call) -> Handled:
    source = call.source
    shifts, dims = call.get("shifts", 1), call.get("dims", 2)
    if dims is None:
        raise _Unknown("roll of the flattened tensor")
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    relations = {}
    for shift, d in pairs:
        axis = _only_axis(source.layout[d], "a roll")
        if axis is not None:
            size = source.sizes[axis]
            relations[axis] = Relation.listed(size, ([(o - shift) % size] for o in range(size)))
    return source.layout, call.along(source.layout, relations)


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


def _matmul(call: Call) -> Handled:
    """By a constant it is a linear layer; of two dependent tensors, everything sees everything."""
    first, second = (call.node_of(t) for t in list(tensors_in((call.args, call.kwargs)))[:2])
    if first is not None and second is None and first.shape[:-1] == call.shape[:-1]:
        call.kind = "linear"
        axes = axes_of(first.layout[-1])
        layout = (*first.layout[:-1], (("C", call.shape[-1]),))
        sizes = sizes_of(layout, call.axes)
        return layout, call.along(layout, {a: Relation.full(first.sizes[a], sizes[a]) for a in axes})
    layout, edges = _everything(call)
    if first is not None and second is not None and first.shape[:-1] == call.shape[:-1]:
        # rows of the first, columns of the second: where the rows are positions they stay told apart
        layout = (
            *first.layout[:-1],
            second.layout[-1] if not axes_of(second.layout[-1]) else (("C", call.shape[-1]),),
        )
        sizes = sizes_of(layout, call.axes)
        kept = set().union(*(axes_of(atoms) for atoms in first.layout[:-1]))
        mixed = {a: Relation.full(first.sizes[a], sizes[a]) for a in range(call.axes) if a not in kept}
        edges = call.along(layout, mixed, first)
        edges.append(Edge(second, tuple(Relation.full(i, o) for i, o in zip(second.sizes, sizes, strict=True))))
    call.kind = "matmul"
    return layout, edges


def _attention(call: Call) -> Handled:
    layout, edges = _everything(call)
    call.kind = "attention"
    call.facts["note"] = "every position attends to every position"
    return layout, edges


def _embedding(call: Call) -> Handled:
    source = call.source
    return (*source.layout, (("C", call.shape[-1]),)), call.along(source.layout, {})


# Which call is what ------------------------------------------------------------------------------------------------

_HANDLERS: dict[str, Callable[[Call], Handled]] = {}


def _are(handler: Callable[[Call], Handled], names: str) -> None:
    """The calls of these ``names`` are what ``handler`` handles."""
    _HANDLERS.update(dict.fromkeys(names.split(), handler))


_are(
    _elementwise,
    """
    abs absolute acos acosh add addcdiv addcmul alias alpha_dropout and asin asinh asymmetric atan atan2 atanh
    batch_dropout bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor bool ceil celu channel_shuffle
    clamp clamp_max clamp_min clip clone contiguous copy copysign cos cosh cpu cuda deg2rad detach div divide
    double dropout dropout1d dropout2d dropout3d elu eq erf erfc erfinv exp exp2 expm1
    fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fix float floor floor_divide
    floordiv fmod frac ge gelu greater greater_equal gt half hardshrink hardsigmoid hardswish hardtanh
    heaviside hypot iadd iand idiv imul int invert ior ipow isfinite isinf isnan isub itruediv le leaky_relu
    lerp less less_equal lgamma local_response_norm log log10 log1p log2 logaddexp logical_and logical_not
    logical_or logical_xor logit logsigmoid long lt masked_fill maximum minimum mish mod mul multiply
    nan_to_num ne neg negative or positive pow prelu quantize_per_tensor radd rand_like rdiv reciprocal relu
    relu6 remainder requires_grad rmul round rpow rrelu rsqrt rsub rtruediv selu sgn sigmoid sign silu sin
    sinc sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to
    true_divide truediv trunc type type_as where xor
    expand expand_as broadcast_to identity
    """,
)
for _n in "123":
    _are(_conv, f"conv{_n}d")
    _are(_conv_transpose, f"conv_transpose{_n}d")
    _are(_pool, f"max_pool{_n}d max_pool{_n}d_with_indices avg_pool{_n}d lp_pool{_n}d")
    _are(_max_unpool, f"max_unpool{_n}d")
    _are(_adaptive, f"adaptive_avg_pool{_n}d adaptive_max_pool{_n}d adaptive_max_pool{_n}d_with_indices")
    _are(_interpolate, f"upsample_nearest{_n}d")
_are(_interpolate, "interpolate upsample upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d")
_are(_explicit_conv, "conv conv_csr")
_are(_explicit_transpose, "conv_transpose conv_transpose_csr")
_are(_zero_insert, "zero_insert")
_are(_explicit_pool, "max_pool max_pool_with_indices avg_pool lp_pool")
_are(_elementwise, "lrn")
_are(_pixel_shuffle, "pixel_shuffle pixel_unshuffle")
_are(_pad, "pad constant_pad_nd")
_are(_unfold, "unfold im2col")
_are(_fold, "fold col2im")
_are(_glu, "glu")
_are(_linear, "linear")
_are(_batch_norm, "batch_norm")
_are(_instance_norm, "instance_norm")
_are(_group_norm, "group_norm")
_are(_layer_norm, "layer_norm rms_norm")
_are(_reshape, "view reshape flatten unflatten squeeze unsqueeze view_as reshape_as unsafe_view ravel")
_are(_permute, "permute transpose swapaxes swapdims movedim moveaxis T t mT")
_are(_getitem, "getitem")
_are(_split, "chunk split split_with_sizes tensor_split unsafe_chunk unbind")
_are(_narrow, "narrow select slice")
_are(_cat, "cat concat concatenate")
_are(_stack, "stack")
_are(
    _reduce,
    "mean sum amax amin max min prod std var norm logsumexp any all argmax argmin median nanmean vector_norm",
)
_are(_along_dim, "softmax log_softmax softmin cumsum cumprod sort argsort gumbel_softmax")
_are(_normalize, "normalize")
_are(_flip, "flip")
_are(_roll, "roll")
_are(_matmul, "matmul rmatmul bmm mm")
_are(_attention, "scaled_dot_product_attention multi_head_attention_forward")
_are(_embedding, "embedding")

WITHOUT_DEPENDENCE = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "randn_like", "new_zeros", "new_ones", "new_empty"),
    *("new_full", "new_tensor", "size", "dim", "stride", "numel", "is_floating_point", "sym_size"),
    *("assert_tensor_metadata", "set", "get", "del", "requires_grad", "grad", "grad_fn", "item", "tolist", "len"),
}
"""Calls whose results hold nothing of their arguments' values."""
TRANSPARENT = {"dropout", "identity", "contiguous", "to", "float", "detach", "alpha_dropout", "feature_dropout"}
"""Calls that leave no trace where they return their argument itself."""
SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unbind"}
"""Calls that return one tensor per part."""

_ACTIVATIONS = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU
    Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold
"""
_CLASSES = {
    "linear": "Linear",
    "batch_norm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "instance_norm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "group_norm": "GroupNorm",
    "layer_norm": "LayerNorm RMSNorm",
    "local_response_norm": "LocalResponseNorm CrossMapLRN2d",
    "interpolate": "Upsample",
    "pad": " ".join(
        f"{m}Pad{n}d" for m in ("Reflection", "Replication", "Constant", "Circular", "Zero") for n in "123"
    ),
    "flatten": "Flatten Unflatten",
    "unfold": "Unfold",
    "fold": "Fold",
    "glu": "GLU",
    "pixel_shuffle": "PixelShuffle",
    "pixel_unshuffle": "PixelUnshuffle",
    "channel_shuffle": "ChannelShuffle",
    "identity": "Identity",
    "embedding": "Embedding",
    "softmax": "Softmax LogSoftmax Softmin",
    "dropout": "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
    "relu": _ACTIVATIONS,
}
for _n in "123":
    _CLASSES |= {
        f"conv{_n}d": f"Conv{_n}d",
        f"conv_transpose{_n}d": f"ConvTranspose{_n}d",
        f"max_pool{_n}d": f"MaxPool{_n}d",
        f"avg_pool{_n}d": f"AvgPool{_n}d",
        f"lp_pool{_n}d": f"LPPool{_n}d",
        f"max_unpool{_n}d": f"MaxUnpool{_n}d",
        f"adaptive_avg_pool{_n}d": f"AdaptiveAvgPool{_n}d",
        f"adaptive_max_pool{_n}d": f"AdaptiveMaxPool{_n}d",
    }
_FUNCTION_OF = {getattr(nn, name): kind for kind, names in _CLASSES.items() for name in names.split()}


def module_kind(module: nn.Module) -> str | None:
    """The function that a torch.nn module, or a subclass of one, stands for."""
    return next((_FUNCTION_OF[cls] for cls in type(module).__mro__ if cls in _FUNCTION_OF), None)
