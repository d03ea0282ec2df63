"""Calls that move, join, select or reduce dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..graph import Atom, Edge, axes_of
from ..relation import Relation
from .call import Call, Handled, Unknown, elementwise, handles, only_axis


@handles("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as unsafe_view ravel")
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
                raise Unknown("a reshape of unknown dimensions")
            role, count = atoms.pop(0)
            if left % count == 0:
                taken.append((role, count))
                left //= count
            elif count % left == 0 and not isinstance(role, int):
                taken.append((role, left))
                atoms.insert(0, (role, count // left))
                left = 1
            else:
                raise Unknown("a reshape that cuts a spatial axis")
        layout.append(tuple(taken))
    same = len(call.shape) == len(source.shape)
    if same and all(a == b or a > 1 for a, b in zip(call.shape, source.shape, strict=True)):
        # axes of size 1 stay where they are
        layout = [mine or theirs for mine, theirs in zip(layout, source.layout, strict=True)]
    return tuple(layout), call.along(tuple(layout), {})


@handles("permute transpose swapaxes swapdims movedim moveaxis T t mT")
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


@handles("getitem")
def _getitem(call: Call) -> Handled:
    source = call.source
    index = call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, (Tensor, list)) for i in index):
        raise Unknown("indexing by a tensor")
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
        axis = only_axis(atoms, "a slice")
        if axis is not None:
            relations[axis] = Relation.shifted(size, count, start, step)
        if isinstance(i, slice):
            layout.append(((axis if axis is not None else "C", count),))
    call.kind = "slice"
    return tuple(layout), call.along(tuple(layout), relations)


@handles("chunk split split_with_sizes tensor_split unsafe_chunk unbind")
def _split(call: Call) -> Handled:
    """chunk, split, tensor_split, unbind: output number ``index``."""
    source = call.source
    dim = int(call.get("dim", 1 if call.name == "unbind" else 2, 0)) % len(source.shape)
    axis = only_axis(source.layout[dim], call.name)
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


@handles("narrow select slice")
def _narrow(call: Call) -> Handled:
    source = call.source
    dim = int(call.get("dim", 1)) % len(source.shape)
    axis = only_axis(source.layout[dim], call.name)
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


@handles("cat concat concatenate")
def _cat(call: Call) -> Handled:
    tensors = call.get("tensors", 0)
    dims = len(call.shape)
    dim = int(call.kwargs.get("dim", call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else 0))) % dims
    nodes = [call.node_of(t) for t in tensors]
    known = [n for n in nodes if n is not None]
    axis = only_axis(known[0].layout[dim], "cat")
    for other in known[1:]:
        for d in range(dims):
            if d != dim and axes_of(other.layout[d]) != axes_of(known[0].layout[d]) and other.shape[d] > 1:
                raise Unknown("a concatenation of different layouts")
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


@handles("stack")
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


@handles(
    """
    mean sum amax amin max min prod std var norm logsumexp any all argmax argmin median nanmean
    vector_norm
    """
)
def _reduce(call: Call) -> Handled:
    sources = list(call.sources())
    source = sources[0]
    if len(sources) > 1:  # torch.max(x, y)
        return elementwise(call)
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
        raise Unknown(f"{call.name} over unknown dimensions")
    axes = set().union(*(axes_of(source.layout[d]) for d in gone))
    call.kind = "reduce"
    return layout, call.along(layout, {a: Relation.full(source.sizes[a], 1) for a in axes})


@handles("softmax log_softmax softmin cumsum cumprod sort argsort gumbel_softmax")
def _along_dim(call: Call) -> Handled:
    """Softmax, cumulative sums, sorting: every position along the dimension sees all of it."""
    source = call.source
    dim = call.get("dim", 1)
    if dim is None:
        raise Unknown(f"{call.name} without a dimension")
    axes = axes_of(source.layout[int(dim) % len(source.shape)])
    relations = {a: Relation.full(source.sizes[a], source.sizes[a]) for a in axes}
    call.kind = "softmax" if "soft" in call.name else call.name
    return source.layout, call.along(source.layout, relations)


@handles("normalize")
def _normalize(call: Call) -> Handled:
    source = call.source
    axes = axes_of(source.layout[int(call.get("dim", 2, 1)) % len(source.shape)])
    relations = {a: Relation.full(source.sizes[a], source.sizes[a]) for a in axes}
    return source.layout, call.along(source.layout, relations)


@handles("flip")
def _flip(call: Call) -> Handled:
    source = call.source
    relations = {}
    dims = call.kwargs.get("dims", call.args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    for d in dims:
        axis = only_axis(source.layout[d], "a flip")
        if axis is not None:
            size = source.sizes[axis]
            relations[axis] = Relation.listed(size, ([size - 1 - o] for o in range(size)))
    return source.layout, call.along(source.layout, relations)


@handles("roll")
def _roll(call: Call) -> Handled:
    source = call.source
    shifts, dims = call.get("shifts", 1), call.get("dims", 2)
    if dims is None:
        raise Unknown("roll of the flattened tensor")
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    relations = {}
    for shift, d in pairs:
        axis = only_axis(source.layout[d], "a roll")
        if axis is not None:
            size = source.sizes[axis]
            relations[axis] = Relation.listed(size, ([(o - shift) % size] for o in range(size)))
    return source.layout, call.along(source.layout, relations)
