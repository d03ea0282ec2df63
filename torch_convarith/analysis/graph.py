"""A model as a graph of layers that know their arithmetic.

Every node knows how its tensor's dimensions lie on the model's spatial axes, and for each of its inputs one
:class:`~.relation.Relation` per axis. Channels are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..geometry import Geometry
from .relation import Relation

__all__ = ["Atom", "Edge", "Graph", "Layout", "Node", "Role", "axes_of", "sizes_of", "tensors_in"]

Role = str | int  # "N", "C", or the number of a spatial axis
Atom = tuple[Role, int]  # a role and how many positions of it
Layout = tuple[tuple[Atom, ...], ...]  # per dimension of a tensor: what it is made of, slowest first


@dataclass(eq=False)
class Edge:
    """``node`` is an input, seen through ``relations``, one per spatial axis.

    ``statistics`` marks what only a normalisation's mean and variance carry.
    """

    node: Node
    relations: tuple[Relation, ...]
    statistics: bool = False


@dataclass(eq=False)
class Node:
    """One call: a layer, a function, or an input.

    Attributes:
        name: the module's path, or the path of the module that called the function and the function's name.
        kind: what it is to the arithmetic: "conv", "conv_transpose", "pool", "linear", "resize", "norm", "add", ...
        label: class or function name.
        module: the module, where it is one.
        shape: of the output, batch and channels first.
        layout: what its dimensions are made of.
        sizes: output size along the model's spatial axes, 1 where an axis is gone.
        edges: its inputs.
        geometry: of convolutions and pooling; of a transposed convolution, that of the convolution it transposes.
        groups, channels: of convolutions; channels are (in, out). Of linear layers: features.
        parameters: number of parameters that it reads itself.
        padding_mode: what the padding holds.
        has_bias: of convolutions.
        note: what was assumed, where something had to be.
    """

    name: str
    kind: str
    label: str
    module: nn.Module | None
    shape: tuple[int, ...]
    layout: Layout
    sizes: tuple[int, ...]
    edges: list[Edge] = field(default_factory=list)
    geometry: Geometry | None = None
    groups: int = 1
    channels: tuple[int, int] | None = None
    parameters: int = 0
    padding_mode: str = "zeros"
    has_bias: bool = False
    note: str = ""

    def __repr__(self) -> str:
        return f"Node({self.name}: {self.label}, {tuple(self.shape)})"

    @property
    def inputs(self) -> list[Node]:
        """The nodes it reads."""
        return [edge.node for edge in self.edges]


@dataclass(eq=False)
class Graph:
    """Nodes in the order in which they ran.

    Attributes:
        nodes: all of them, inputs first.
        outputs: those that the model returned.
        axes: number of spatial axes.
        captured_by: how: "meta", "fake tensors" or "a run on real zeros".
        model: what was captured.
        error: where the model's forward stopped, if it did and the caller wanted to know.
    """

    nodes: list[Node]
    outputs: list[Node]
    axes: int
    captured_by: str
    model: nn.Module
    error: Exception | None = None

    @property
    def inputs(self) -> list[Node]:
        """The model's inputs."""
        return [node for node in self.nodes if node.kind == "input"]

    def __getitem__(self, name: str | None) -> Node:
        """The node of that name; None is the model's first output."""
        if isinstance(name, Node):
            return name
        if name is None:
            if not self.outputs:
                raise KeyError("the model returned no tensor that depends on its inputs")
            return self.outputs[0]
        found = [node for node in self.nodes if node.name == name]
        if not found:
            close = [node.name for node in self.nodes if name in node.name][:5]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise KeyError(f"no node is called {name!r}{hint}")
        return found[0]

    def users(self) -> dict[int, list[tuple[Node, Edge]]]:
        """By id of a node: who reads it."""
        found: dict[int, list[tuple[Node, Edge]]] = {}
        for node in self.nodes:
            for edge in node.edges:
                found.setdefault(id(edge.node), []).append((node, edge))
        return found


def sizes_of(layout: Layout, axes: int) -> tuple[int, ...]:
    """Positions along each axis, 1 where the layout does not have it."""
    sizes = [1] * axes
    for atoms in layout:
        for role, size in atoms:
            if isinstance(role, int):
                sizes[role] *= size
    return tuple(sizes)


def axes_of(atoms: Iterable[Atom]) -> set[int]:
    """The axes among a dimension's atoms."""
    return {role for role, _ in atoms if isinstance(role, int)}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers; of other objects, those among their attributes (model outputs)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from tensors_in(entry)
