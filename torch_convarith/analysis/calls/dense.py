"""Calls that see whole axes or channels: dense layers, normalisation, attention."""

from __future__ import annotations

from collections.abc import Iterable

from ..graph import Edge, axes_of, sizes_of, tensors_in
from ..relation import Relation
from .call import Call, Handled, constant_weight, elementwise, everything, handles, only_axis


@handles("linear")
def _linear(call: Call) -> Handled:
    source, weight = call.source, constant_weight(call)
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
    return elementwise(call)


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


@handles("batch_norm")
def _batch_norm(call: Call) -> Handled:
    if call.module is not None:
        running = getattr(call.module, "running_mean", None)
    else:
        running = call.get("running_mean", 1)
        if call.get("training", 5, False):
            running = None
    return _pointwise_norm(call) if running is not None else _statistics(call, range(call.axes))


@handles("instance_norm")
def _instance_norm(call: Call) -> Handled:
    if getattr(call.module, "running_mean", None) is not None:
        return _pointwise_norm(call)
    return _statistics(call, range(call.axes))


@handles("group_norm")
def _group_norm(call: Call) -> Handled:
    return _statistics(call, range(call.axes))


@handles("layer_norm rms_norm")
def _layer_norm(call: Call) -> Handled:
    shape = call.get("normalized_shape", 1)
    count = len(shape) if isinstance(shape, (tuple, list)) else 1
    return _statistics(call, set().union(*(axes_of(atoms) for atoms in call.source.layout[-count:])))


@handles("glu")
def _glu(call: Call) -> Handled:
    """Half of a dimension, gated by the other half."""
    source = call.source
    dim = int(call.get("dim", 1, -1)) % len(source.shape)
    axis = only_axis(source.layout[dim], "a gate")
    half = call.shape[dim]
    layout = (*source.layout[:dim], ((axis if axis is not None else "C", half),), *source.layout[dim + 1 :])
    relations = {} if axis is None else {axis: Relation(2 * half, half, 1, 1, ((0, half),))}
    return layout, call.along(layout, relations)


@handles("matmul rmatmul bmm mm")
def _matmul(call: Call) -> Handled:
    """By a constant it is a linear layer; of two dependent tensors, everything sees everything."""
    first, second = (call.node_of(t) for t in list(tensors_in((call.args, call.kwargs)))[:2])
    if first is not None and second is None and first.shape[:-1] == call.shape[:-1]:
        call.kind = "linear"
        axes = axes_of(first.layout[-1])
        layout = (*first.layout[:-1], (("C", call.shape[-1]),))
        sizes = sizes_of(layout, call.axes)
        return layout, call.along(layout, {a: Relation.full(first.sizes[a], sizes[a]) for a in axes})
    layout, edges = everything(call)
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


@handles("scaled_dot_product_attention multi_head_attention_forward")
def _attention(call: Call) -> Handled:
    layout, edges = everything(call)
    call.kind = "attention"
    call.facts["note"] = "every position attends to every position"
    return layout, edges


@handles("embedding")
def _embedding(call: Call) -> Handled:
    source = call.source
    return (*source.layout, (("C", call.shape[-1]),)), call.along(source.layout, {})
