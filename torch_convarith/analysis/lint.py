"""What is wrong with a model's arithmetic: each finding with its numbers, why it matters, and a fix."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import Axis
from .capture import CaptureError, capture, example_input
from .graph import Graph, Node
from .receptive_field import Offsets, ReceptiveFields, merge_offsets, single_pixel, through
from .relation import Relation
from .solve import solve

__all__ = ["RULES", "Finding", "Findings", "Rule", "lint"]


@dataclass(frozen=True)
class Rule:
    """A rule of :func:`lint`.

    Attributes:
        code: CA001 and on; stable.
        name: in words; either selects or silences the rule.
        level: "error", "warning" or "note". Notes do not fail a build.
        why: why it matters.
    """

    code: str
    name: str
    level: str
    why: str


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        rule: which.
        layer: the node's name.
        message: what was found.
        numbers: the numbers in it.
        fix: what to change, where the arithmetic can say it.
    """

    rule: Rule
    layer: str
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)
    fix: str = ""

    def __str__(self) -> str:
        fix = f" Fix: {self.fix}." if self.fix else ""
        return f"{self.layer}: {self.rule.code} {self.rule.name}: {self.message}.{fix}"


class Findings(list):  # type: ignore[type-arg]
    """Findings in the order of the layers; prints one a line."""

    @property
    def exit_code(self) -> int:
        """1 if there is a warning or an error, else 0."""
        return int(any(f.rule.level != "note" for f in self))

    def __str__(self) -> str:
        if not self:
            return "no findings"
        lines = [str(f) for f in self]
        lines += ["", *(f"{r.code} matters because {r.why}." for r in RULES if any(f.rule is r for f in self))]
        return "\n".join(lines)

    def to_dicts(self) -> list[dict[str, Any]]:
        """JSON's types."""
        return [
            {
                "code": f.rule.code,
                "rule": f.rule.name,
                "level": f.rule.level,
                "layer": f.layer,
                "message": f.message,
                "numbers": f.numbers,
                "why": f.rule.why,
                "fix": f.fix,
            }
            for f in self
        ]

    def to_json(self) -> str:
        """A list of objects."""
        return json.dumps(self.to_dicts(), indent=1)

    def to_sarif(self) -> str:
        """SARIF 2.1.0, which code hosts show; layers are logical locations."""
        used = [r for r in RULES if any(f.rule is r for f in self)]
        rules = [
            {
                "id": r.code,
                "name": "".join(word.capitalize() for word in r.name.split("-")),
                "shortDescription": {"text": r.name.replace("-", " ")},
                "fullDescription": {"text": f"It matters because {r.why}."},
                "defaultConfiguration": {"level": r.level},
            }
            for r in used
        ]
        results = [
            {
                "ruleId": f.rule.code,
                "ruleIndex": used.index(f.rule),
                "level": f.rule.level,
                "message": {"text": f"{f.layer}: {f.message}." + (f" Fix: {f.fix}." if f.fix else "")},
                "locations": [{"logicalLocations": [{"fullyQualifiedName": f.layer, "kind": "member"}]}],
                "properties": {"numbers": f.numbers},
            }
            for f in self
        ]
        driver = {"name": "torch_convarith", "version": version("torch_convarith"), "rules": rules}
        log = {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
        return json.dumps(log, indent=1)


def lint(
    model: nn.Module,
    input_size: Any,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    padding_share: float = 0.5,
) -> Findings:
    """Looks for mistakes in a model's arithmetic on inputs of one size.

    Args:
        model: a torch.nn.Module.
        input_size: spatial sizes, (C, *spatial), the whole shape, or a tensor.
        select: codes or names of the rules to apply; all by default. A prefix of a code selects all that begin so.
        ignore: codes or names to leave out.
        padding_share: CA010 speaks where more than this share of the taps falls on padding.

    Returns:
        :class:`Findings`; ``.exit_code`` for CI, ``.to_sarif()``, ``.to_json()``.

    Raises:
        ValueError: an unknown rule, or a share outside 0 to 1.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8))
    >>> for finding in lint(net, 8, ignore=["small-receptive-field"]):
    ...     print(finding.rule.code, finding.layer, finding.message)
    CA001 0 the last row and the last column of its input 8x8 are never read
    CA011 0 its 8 biases are subtracted again by 1
    """
    if not 0 <= padding_share <= 1:
        raise ValueError(f"padding_share must lie between 0 and 1, not {padding_share}")
    rules = _chosen(select, ignore)
    shape = example_input(model, input_size)
    graph = capture(model, shape, partial=True)
    context = _Context(model, graph, shape, padding_share)
    found = [finding for rule in rules for finding in _CHECKS[rule.code](context, rule)]
    order = {node.name: n for n, node in enumerate(graph.nodes)}
    found.sort(key=lambda f: (order.get(f.layer, len(order)), f.rule.code))
    return Findings(found)


def _chosen(select: Iterable[str] | None, ignore: Iterable[str]) -> list[Rule]:
    def named(words: Iterable[str]) -> set[str]:
        codes: set[str] = set()
        for word in [words] if isinstance(words, str) else words:
            met = {r.code for r in RULES if r.name == word or (word.startswith("CA") and r.code.startswith(word))}
            if not met:
                raise ValueError(
                    f"no rule is called {word!r}; there are {', '.join(f'{r.code} {r.name}' for r in RULES)}"
                )
            codes |= met
        return codes

    wanted = {r.code for r in RULES} if select is None else named(select)
    return [r for r in RULES if r.code in wanted - named(ignore)]


class _Context:
    """What the checks share."""

    def __init__(self, model: nn.Module, graph: Graph, shape: Any, padding_share: float) -> None:
        self.model, self.graph, self.padding_share = model, graph, padding_share
        self.shape = tuple(shape.shape) if isinstance(shape, Tensor) else tuple(shape)
        self.users = graph.users()
        self.fields = ReceptiveFields(graph, statistics=False) if graph.axes and graph.nodes else None

    def windows(self, *kinds: str) -> Iterator[Node]:
        """Nodes of these kinds that have a geometry."""
        return (n for n in self.graph.nodes if n.kind in (kinds or ("conv", "pool")) and n.geometry is not None)


_LINES = {1: ("element",), 2: ("row", "column"), 3: ("plane", "row", "column")}


def _line(axis: int, axes: int, count: int = 1) -> str:
    name = _LINES[axes][axis] if axes in _LINES else f"line along axis {axis}"
    return name if count == 1 else f"{name}s"


def _times(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _grid(node: Node) -> tuple[int, ...]:
    assert node.geometry is not None
    return node.geometry.input_size


# The checks, one per rule -------------------------------------------------------------------------------------------


def _unread(context: _Context, node: Node) -> list[tuple[int, list[int]]]:
    """Per axis, the lines of the node's input that neither it nor any other reader of that input reads."""
    source = node.edges[0].node
    unread = []
    for axis in range(context.graph.axes):
        read = torch.zeros(source.sizes[axis])
        for _, edge in context.users[id(source)]:
            read = torch.maximum(read, edge.relations[axis].matrix().amax(0))
        unread.append((axis, [n for n, r in enumerate(read.tolist()) if not r]))
    return unread


def _last_read(node: Node, axis: int) -> int:
    """The last line that the node reads."""
    relation = node.edges[0].relations[axis]
    return max(
        (max(relation.seen(o), default=-1) for o in range(max(0, relation.output - 2), relation.output)), default=-1
    )


def _unread_border(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows():
        lost = {}
        for axis, lines in _unread(context, node):
            last = _last_read(node, axis)
            tail = [n for n in lines if n > last]
            if tail:
                lost[axis] = len(tail)
        if not lost:
            continue
        axes = context.graph.axes
        told = " and ".join(
            f"the last {_line(a, axes)}" if n == 1 else f"the last {n} {_line(a, axes, n)}" for a, n in lost.items()
        )
        verb = "is" if sum(lost.values()) == 1 else "are"
        message = f"{told} of its input {_times(_grid(node))} {verb} never read"
        yield Finding(
            rule, node.name, message, {"lost": list(lost.values()), "axes": list(lost)}, _border_fix(node, lost)
        )


def _border_fix(node: Node, lost: dict[int, int]) -> str:
    assert node.geometry is not None
    fixes = []
    for axis in list(lost)[:1]:
        a = node.geometry[_local(node, axis)]
        sizes = [
            s.input
            for s in solve(output=a.output, kernel=a.kernel, stride=a.stride, padding=a.padding, dilation=a.dilation)
        ]
        more = solve(output=a.output + 1, kernel=a.kernel, stride=a.stride, padding=a.padding, dilation=a.dilation)
        fixes.append(
            f"an input of {max(1, a.input - lost[axis])} or {more[0].input} loses nothing" if sizes and more else ""
        )
        pads = solve(input=a.input, kernel=a.kernel, stride=a.stride, dilation=a.dilation)
        whole = [s for s in pads if s.axis.unused <= s.padding and s.padding > max(a.padding)]
        if whole:
            fixes.append(f"padding={whole[0].padding} reads all of {a.input} (output {whole[0].output})")
    return "; or ".join(f for f in fixes if f)


def _local(node: Node, axis: int) -> int:
    """The number of the model's ``axis`` among the node's own."""
    assert node.geometry is not None
    return axis - (len(node.sizes) - len(node.geometry))


def _skipped_pixels(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows():
        assert node.geometry is not None
        for axis, lines in _unread(context, node):
            local = _local(node, axis)
            if local < 0:
                continue
            a = node.geometry[local]
            inner = [n for n in lines if n < _last_read(node, axis)]
            if not inner or a.stride <= a.effective_kernel:
                continue
            fixed = solve(input=a.input, output=a.output, stride=a.stride, dilation=1)
            whole = [s for s in fixed if s.kernel >= a.stride]
            fix = (
                f"kernel {whole[0].kernel} with padding {whole[0].padding} keeps {a.input} -> {a.output}"
                if whole
                else ""
            )
            yield Finding(
                rule,
                node.name,
                f"stride {a.stride} is larger than the effective kernel {a.effective_kernel}: {len(inner)} of "
                f"{a.input} {_line(axis, context.graph.axes, 2)} are stepped over, and nothing else reads them",
                {"axis": axis, "stride": a.stride, "effective_kernel": a.effective_kernel, "skipped": len(inner)},
                fix,
            )


def _checkerboard(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows("conv_transpose"):
        assert node.geometry is not None
        counts = [_overlap(axis) for axis in node.geometry]
        if all(len(set(c)) == 1 for c in counts):
            continue
        n = next(n for n, c in enumerate(counts) if len(set(c)) > 1)
        a = node.geometry[n]
        told = "; ".join(
            f"along spatial axis {m} outputs get {', '.join(map(str, c))} contributions in turn"
            for m, c in enumerate(counts)
            if len(set(c)) > 1
        )
        found = solve(input=a.output, output=a.input, stride=a.stride, dilation=1, transposed=True)
        even = [s for s in found if s.kernel % s.stride == 0 and s.kernel >= a.kernel] or [
            s for s in found if s.kernel % s.stride == 0
        ]
        best = min(even, key=lambda s: (s.output_padding, s.kernel), default=None)
        fix = ""
        if best is not None:
            extra = f", output_padding {best.output_padding}" if best.output_padding else ""
            fix = (
                f"kernel {best.kernel}, padding {best.padding}{extra} keeps {a.output} -> {a.input}, its stride "
                "dividing its kernel; or resize and convolve"
            )
        yield Finding(rule, node.name, told, {"counts": counts}, fix)


def _overlap(axis: Axis) -> list[int]:
    """Non-zeros of a column of C, by the column's remainder modulo the stride, away from the border."""
    relation = Relation.transposed(axis.output, axis.input, axis.kernel, axis.stride, axis.lo, axis.dilation)
    return [len(offsets) for offsets in relation.offsets]


def _gridding(context: _Context, rule: Rule) -> Iterator[Finding]:
    """Holes in what is seen of the maps at the same resolution, where that resolution ends."""
    axes = context.graph.axes
    local: dict[int, list[Offsets]] = {}
    last: dict[int, Node | None] = {}  # the last dilated layer on the way
    span: dict[int, list[int]] = {}  # by dilated layer: what its inputs see without holes
    done: set[int] = set()
    for node in context.graph.nodes:
        edges = [e for e in node.edges if not e.statistics]
        fresh = not edges or any(r.pace != 1 or r.clips or r.shift == 0 for e in edges for r in e.relations)
        if fresh:
            local[id(node)], last[id(node)] = [single_pixel()] * axes, None
            continue
        local[id(node)] = [
            merge_offsets([through(e.relations[axis], local[id(e.node)][axis]) for e in edges], node.sizes[axis])
            for axis in range(axes)
        ]
        befores = [found for e in edges if (found := last[id(e.node)]) is not None]
        last[id(node)] = befores[-1] if befores else None
        if node.kind == "conv" and node.geometry and any(a.dilation > 1 and a.kernel > 1 for a in node.geometry):
            last[id(node)] = node
            span[id(node)] = [o.size for o in local[id(edges[0].node)]]
    for node in context.graph.nodes:
        culprit = last.get(id(node))
        users = context.users.get(id(node), [])
        ends = not users or any(last.get(id(user)) is None for user, _ in users)
        holes = [axis for axis, o in enumerate(local.get(id(node), [])) if o.holes]
        if culprit is None or not ends or not holes or id(culprit) in done:
            continue
        done.add(id(culprit))
        assert culprit.geometry is not None
        offsets = local[id(node)][holes[0]]
        seen = sum(bits.bit_count() for _, bits in offsets.phases[:1])
        most = span[id(culprit)][holes[0]]
        dilation = culprit.geometry[max(0, _local(culprit, holes[0]))].dilation
        fix = f"dilation at most {most} here, which is what its inputs see without a gap" if most < dilation else ""
        yield Finding(
            rule,
            culprit.name,
            f"up to {node.name}, an output sees {seen} of the {offsets.size} positions it spans at this resolution",
            {"seen": seen, "span": offsets.size, "dilation": dilation, "axes": holes},
            fix or "let the dilations have no common divisor, such as 1, 2, 3",
        )


def _even_kernel(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows():
        assert node.geometry is not None
        for n, a in enumerate(node.geometry):
            if a.stride != 1 or a.effective_kernel % 2 or a.output == 1 or _is_causal(node, n, a):
                continue
            shift = (a.effective_kernel - 1) / 2 - a.lo
            padding = a.lo if a.lo == a.hi else a.padding
            found = [s for s in solve(input=a.input, output=a.input, stride=1, dilation=a.dilation) if s.kernel > 1]
            near = min(found, key=lambda s: abs(s.kernel - a.kernel), default=None)
            fix = f"kernel {near.kernel} with padding {near.padding} is centred and keeps the size" if near else ""
            yield Finding(
                rule,
                node.name,
                f"effective kernel {a.effective_kernel} with padding {padding} moves centres by {shift:+g} "
                f"along spatial axis {n}",
                {"axis": n, "effective_kernel": a.effective_kernel, "shift": shift},
                fix,
            )
            break


def _is_causal(node: Node, n: int, a: Axis) -> bool:
    """Whether all of the padding stands before the input, as in causal convolutions."""
    if a.lo == a.effective_kernel - 1 and a.hi == 0:
        return True
    source = node.edges[0].node
    if source.kind != "pad":
        return False
    relation = source.edges[0].relations[n + len(node.sizes) - len(node.geometry or ())]
    ahead = -relation.offsets[0][0]
    return ahead == a.effective_kernel - 1 and relation.output == relation.input + ahead


def _misaligned(context: _Context, rule: Rule) -> Iterator[Finding]:
    if context.fields is None:
        return
    places: dict[tuple[Any, ...], list[int]] = {}
    for m in context.fields.misaligned:
        if not m.causal:
            places.setdefault((m.node, m.branches), []).append(m.axis)
    for (node, branches), axes in places.items():
        starts = [start for _, start, _ in branches]
        jumps = sorted({jump for _, _, jump in branches})
        where = f"along spatial axis {' and '.join(map(str, axes))} "
        if len(jumps) > 1:
            message = f"{where}its branches have different jumps {', '.join(f'{j:g}' for j in jumps)}"
        else:
            message = f"{where}the centres of its branches differ by up to {max(starts) - min(starts):g} pixels"
        told = ", ".join(f"{name} starts at {start:g}" for name, start, _ in branches)
        yield Finding(
            rule,
            node,
            f"{message}: {told}",
            {"axes": axes, "starts": starts, "jumps": jumps},
            "odd kernels with half padding keep centres; crop or pad both branches alike",
        )


def _skip_size(context: _Context, rule: Rule) -> Iterator[Finding]:
    error = context.graph.error
    if error is None:
        return
    last = context.graph.nodes[-1].name if context.graph.nodes else "input"
    sizes = context.shape[2:]
    fix = ""
    if sizes:
        good = _nearest_running(context, sizes[0])
        fix = f"the nearest sizes that run are {' and '.join(map(str, good))}" if good else ""
    yield Finding(
        rule,
        last,
        f"after this the model stops on {_times(sizes)}: {str(error).rstrip('.')}",
        {"sizes": list(sizes)},
        fix,
    )


def _nearest_running(context: _Context, size: int) -> list[int]:
    """One size below and one above with which the model runs."""
    good = []
    for step in (-1, 1):
        for n in range(1, 65):
            tried = size + step * n
            if tried < 1:
                break
            offset = [s + step * n for s in context.shape[2:]]
            if min(offset) < 1:
                break
            try:
                capture(context.model, (*context.shape[:2], *offset), computing=False)
            except CaptureError:
                continue
            good.append(tried)
            break
    return good


def _small_field(context: _Context, rule: Rule) -> Iterator[Finding]:
    if context.fields is None or context.graph.error is not None:
        return
    for node in context.graph.outputs[:1]:
        if node.name not in context.fields:
            continue
        f = context.fields[node.name]
        inputs = context.fields.source.sizes
        small = [a for a in range(len(inputs)) if f.size[a] < inputs[a]]
        if not small:
            continue
        a = small[0]
        pace = max(float(g.jump[a]) for g in context.fields.values())
        more = math.ceil((inputs[a] - f.size[a]) / (2 * pace)) if pace else 0
        fix = f"{more} more 3-tap layer{'s' * (more > 1)} at the coarsest jump {pace:g} would cover it, or dilation"
        yield Finding(
            rule,
            node.name,
            f"it sees {_times(f.size)} of {_times(inputs)} input pixels",
            {"size": list(f.size), "input": list(inputs)},
            fix if more else "",
        )


def _useless_layers(context: _Context, rule: Rule) -> Iterator[Finding]:
    """Windows over what already sees everything, as one finding at the first of them."""
    if context.fields is None:
        return
    inputs = context.fields.source.sizes
    beyond = []
    for node in context.windows("conv"):
        assert node.geometry is not None
        source = node.edges[0].node
        if all(a.kernel == 1 for a in node.geometry) or source.name not in context.fields:
            continue
        f = context.fields[source.name]
        # every output sees all of the input only where the field reaches both ends from either end
        if inputs and all(r >= 2 * i - 1 for r, i in zip(f.size, inputs, strict=True)):
            beyond.append(node)
    if beyond:
        first = beyond[0]
        f = context.fields[first.edges[0].node.name]
        least = max(r // 2 + 1 for r in context.fields[beyond[-1].name].size)
        yield Finding(
            rule,
            first.name,
            f"from here on {len(beyond)} layers with kernels above 1 widen a field of {_times(f.size)}, with which "
            f"every position sees the whole {_times(inputs)} input already",
            {"layers": [n.name for n in beyond], "size": list(f.size), "input": list(inputs)},
            f"an input of at least {least}, smaller strides later, or 1-tap kernels",
        )


def _padding_dominates(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows("conv"):
        g = node.geometry
        assert g is not None
        taps = math.prod(a.kernel * a.output for a in g)
        share = 1 - g.nnz / taps if taps else 0.0
        if node.padding_mode != "zeros" or share <= context.padding_share:
            continue
        n, a = max(enumerate(g), key=lambda pair: 1 - pair[1].nnz / (pair[1].kernel * pair[1].output))
        dead = sum(not any(a.input_index(o, t) is not None for o in range(a.output)) for t in range(a.kernel))
        told = f"; {dead} of its {a.kernel} taps never meet an input" if dead else ""
        smaller = [
            (k, d)
            for k in range(a.kernel, 0, -1)
            for d in range(a.dilation, 0, -1)
            if (k, d) != (a.kernel, a.dilation) and k % 2 == a.kernel % 2
            for p in [(k - 1) * d // 2]
            if 1 - (Axis(a.input, k, a.stride, p, d).nnz / (k * Axis(a.input, k, a.stride, p, d).output)) <= 1 / 3
        ]
        fix = (
            f"kernel {smaller[0][0]} with dilation {smaller[0][1]} keeps most taps on a map of {a.input}"
            if smaller
            else ""
        )
        yield Finding(
            rule,
            node.name,
            f"{share:.0%} of its taps fall on padding{told}",
            {"share": round(share, 4), "dead_taps": dead, "axis": n},
            fix,
        )


def _bias_before_norm(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.graph.nodes:
        if node.kind not in ("conv", "conv_transpose", "linear") or not node.has_bias:
            continue
        users = {id(user): user for user, _ in context.users.get(id(node), [])}
        norms = [u for u in users.values() if u.kind == "norm" and "atch" in u.label]
        if len(users) == 1 and norms:
            count = node.channels[1] if node.channels else node.shape[1]
            yield Finding(
                rule,
                node.name,
                f"its {count} biases are subtracted again by {norms[0].name}",
                {"parameters": count},
                "bias=False",
            )


def _dead_groups(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows("conv", "conv_transpose"):
        weight = getattr(node.module, "weight", None)
        if not isinstance(weight, Tensor) or weight.is_meta or node.groups == 1:
            continue
        groups = weight.detach().reshape(node.groups, -1)
        dead = (groups == 0).all(1).nonzero().flatten().tolist()
        if dead:
            shown = f"({', '.join(map(str, dead[:8]))}{', ...' if len(dead) > 8 else ''})"
            yield Finding(
                rule,
                node.name,
                f"{len(dead)} of its {node.groups} groups {shown} are dead: all weights are 0",
                {"dead": dead, "groups": node.groups},
                "initialise the weights, or remove the groups",
            )


def _isolated_groups(context: _Context, rule: Rule) -> Iterator[Finding]:
    for node in context.windows("conv"):
        before = _previous_layer(node)
        if before is None or not 1 < node.groups == before.groups or before.kind != "conv":
            continue
        if node.channels is None or node.groups == node.channels[0] == node.channels[1]:
            continue  # depthwise layers are meant to be followed by a mixing one
        yield Finding(
            rule,
            node.name,
            f"it and {before.name} both have {node.groups} groups and nothing between them mixes channels",
            {"groups": node.groups, "before": before.name},
            "a channel shuffle or a 1x1 layer between them",
        )


def _previous_layer(node: Node) -> Node | None:
    """The layer that feeds it through element-wise nodes alone."""
    silent = ("relu", "norm", "batch_norm", "dropout", "identity", "pool", "pad")
    while len(node.edges) == 1:
        node = node.edges[0].node
        if node.kind not in silent:
            return node
    return None


_Check = Callable[[_Context, Rule], Iterator[Finding]]
_TABLE: Sequence[tuple[_Check, str, str, str]] = (
    (
        _unread_border,
        "unread-border",
        "warning",
        "what lies there cannot influence anything, wherever the image is moved",
    ),
    (_skipped_pixels, "skipped-pixels", "warning", "most of what the layer before computed is thrown away"),
    (_checkerboard, "checkerboard", "warning", "uneven overlap shows as a checkerboard (Odena et al. 2016)"),
    (_gridding, "gridding", "warning", "neighbouring outputs see disjoint positions (Wang et al. 2018)"),
    (
        _even_kernel,
        "even-kernel",
        "note",
        "features drift by half a pixel against the image and against skip connections",
    ),
    (_misaligned, "misaligned-branches", "warning", "features of different places are added up or stacked"),
    (_skip_size, "skip-size", "error", "sizes that do not meet stop the forward pass"),
    (_small_field, "small-receptive-field", "note", "context outside the field cannot inform the output"),
    (_useless_layers, "useless-layers", "note", "layers past that point add no context (Richter et al. 2021)"),
    (_padding_dominates, "padding-dominates", "warning", "it mostly multiplies zeros, and learns where the border is"),
    (_bias_before_norm, "bias-before-batch-norm", "warning", "the bias has no effect and no gradient"),
    (_dead_groups, "dead-groups", "warning", "a group of zeros passes nothing on"),
    (_isolated_groups, "isolated-groups", "note", "the groups are separate networks (Zhang et al. 2018)"),
)

RULES = tuple(Rule(f"CA{n:03}", name, level, why) for n, (_, name, level, why) in enumerate(_TABLE, 1))
"""All rules."""
_CHECKS = {rule.code: check for rule, (check, *_) in zip(RULES, _TABLE, strict=True)}
