"""What a call of torch means for the arithmetic: which inputs its outputs see, and where their dimensions go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..graph import Atom, Edge, Layout, Node, axes_of, sizes_of, tensors_in
from ..relation import Relation


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
                raise Unknown(f"{self.name} is not known here")
            layout, edges = handler(self)
        except (Unknown, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Forms of arguments are many: what cannot be read must widen the result, not stop the model.
            told = str(error) if isinstance(error, Unknown) else f"{self.name} was not understood ({error})"
            layout, edges = everything(self)
            self.kind, self.facts = self.name, {"note": f"{told}: taken to see everything"}
        sizes = sizes_of(layout, self.axes)
        return Node(path, self.kind, label, self.module, self.shape, layout, sizes, edges, **self.facts)

    def along(self, layout: Layout, relations: dict[int, Relation], source: Node | None = None) -> list[Edge]:
        """One edge: ``relations`` on some axes, element by element on the rest."""
        source = source or self.source
        sizes = sizes_of(layout, self.axes)
        return [Edge(source, tuple(relations.get(a) or pointwise(source.sizes[a], sizes[a]) for a in range(self.axes)))]


class Unknown(Exception):
    """A call whose arithmetic is not known."""


Handled = tuple[Layout, list[Edge]]
"""Where the output's dimensions go, and what they see."""


_HANDLERS: dict[str, Callable[[Call], Handled]] = {}


def handles(names: str) -> Callable[[Callable[[Call], Handled]], Callable[[Call], Handled]]:
    """A decorator: the calls of these ``names`` are what the function handles."""

    def register(handler: Callable[[Call], Handled]) -> Callable[[Call], Handled]:
        _HANDLERS.update(dict.fromkeys(names.split(), handler))
        return handler

    return register


def pointwise(input: int, output: int) -> Relation:
    """Element by element, broadcast where the input has one; all to all where sizes differ otherwise."""
    if input == output:
        return Relation.identity(input)
    return Relation.broadcast(output) if input == 1 else Relation.full(input, output)


def everything(call: Call) -> Handled:
    """Every output sees every input."""
    sources = list(call.sources())
    same = next((s for s in sources if s.shape == call.shape), None)
    layout = same.layout if same else tuple((("C", size),) for size in call.shape)
    sizes = sizes_of(layout, call.axes)
    return layout, [Edge(s, tuple(Relation.full(i, o) for i, o in zip(s.sizes, sizes, strict=True))) for s in sources]


@handles(
    """
    abs absolute acos acosh add addcdiv addcmul alias alpha_dropout and asin asinh asymmetric atan
    atan2 atanh batch_dropout bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor bool ceil
    celu channel_shuffle clamp clamp_max clamp_min clip clone contiguous copy copysign cos cosh cpu
    cuda deg2rad detach div divide double dropout dropout1d dropout2d dropout3d elu eq erf erfc
    erfinv exp exp2 expm1 fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout fix
    float floor floor_divide floordiv fmod frac ge gelu greater greater_equal gt half hardshrink
    hardsigmoid hardswish hardtanh heaviside hypot iadd iand idiv imul int invert ior ipow isfinite
    isinf isnan isub itruediv le leaky_relu lerp less less_equal lgamma local_response_norm log
    log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor logit logsigmoid long
    lt masked_fill maximum minimum mish mod mul multiply nan_to_num ne neg negative or positive pow
    prelu quantize_per_tensor radd rand_like rdiv reciprocal relu relu6 remainder requires_grad rmul
    round rpow rrelu rsqrt rsub rtruediv selu sgn sigmoid sign silu sin sinc sinh softplus
    softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to true_divide
    truediv trunc type type_as where xor expand expand_as broadcast_to identity lrn
    """
)
def elementwise(call: Call) -> Handled:
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


def constant_weight(call: Call) -> Tensor:
    """The weight, where no input of the model enters it."""
    weight = call.get("weight", 1)
    if not isinstance(weight, Tensor) or call.node_of(weight) is not None or call.node_of(call.tensor) is None:
        raise Unknown(f"{call.name} with a computed weight")
    return weight


def only_axis(atoms: tuple[Atom, ...], what: str) -> int | None:
    """The axis that a dimension is; None where it is none."""
    axes = axes_of(atoms)
    if not axes:
        return None
    if len(axes) > 1 or len([a for a in atoms if a[1] > 1]) > 1:
        raise Unknown(f"{what} along a dimension that mixes axes")
    return next(iter(axes))
