"""A model as the guide would tabulate it: sizes, parameters, multiply-adds and receptive fields, layer by layer."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from ..geometry import Geometry, pooling_relationship
from .capture import capture, example_input
from .graph import Graph, Node
from .receptive_field import ReceptiveFields

__all__ = ["ModelTable", "Row", "trace"]

ARITHMETIC = (
    "conv",
    "conv_transpose",
    "pool",
    "adaptive_pool",
    "linear",
    "resize",
    "pad",
    "unpool",
    "matmul",
    "attention",
)
"""Kinds of nodes that are layers to the guide: the rest is element by element, or moves things about."""


@dataclass(frozen=True)
class Row:
    """One layer. Spatial letters are per axis, and None where they have no meaning.

    Attributes:
        name, layer: the layer's name and class (or function).
        kind: "conv", "conv_transpose", "pool", "linear", "add", ...
        input, output: shapes without N: (C, *spatial).
        kernel, stride, padding, dilation: k, s, p (an int, or (lo, hi) where sides differ), d.
        groups: of convolutions.
        a: padded inputs past the last window; of a transposed layer the ``a`` of relationship 14.
        parameters: numbers of the layer's own parameters.
        macs: multiply-adds for one example, exactly: the non-zeros of C. Taps that fall on padding do not count.
        usual_macs: the estimate that counts them: weights times positions.
        zero_macs: of a transposed layer, the multiplications by inserted zeros if it is computed as the direct
            convolution of the stretched input; None elsewhere.
        relationship: the guide's number per axis.
        r, jump, start: receptive field, per axis, in pixels of the input.
        note: what had to be assumed.
    """

    name: str
    layer: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    padding: tuple[int | tuple[int, int], ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int | None = None
    a: tuple[int, ...] | None = None
    parameters: int = 0
    macs: int = 0
    usual_macs: int = 0
    zero_macs: int | None = None
    relationship: tuple[int, ...] | None = None
    r: tuple[int, ...] | None = None
    jump: tuple[int | Fraction, ...] | None = None
    start: tuple[float, ...] | None = None
    note: str = ""


def _short(values: Sequence[Any] | None) -> str:
    """One value where all axes agree, else joined by x."""
    if values is None:
        return ""
    texts = [
        "/".join(map(str, v)) if isinstance(v, tuple) else f"{v:g}" if isinstance(v, float) else str(v) for v in values
    ]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _shape(shape: Sequence[int]) -> str:
    """Spatial sizes first and channels last, as the papers' tables have it: 28x28x6."""
    return "x".join(map(str, (*shape[1:], shape[0]))) if shape else ""


_COLUMNS = {
    "layer": lambda r: r.name,
    "class": lambda r: r.layer,
    "input": lambda r: _shape(r.input),
    "output": lambda r: _shape(r.output),
    "k": lambda r: _short(r.kernel),
    "s": lambda r: _short(r.stride),
    "p": lambda r: _short(r.padding),
    "d": lambda r: _short(r.dilation),
    "groups": lambda r: "" if r.groups is None else str(r.groups),
    "a": lambda r: _short(r.a),
    "rel.": lambda r: _short(r.relationship),
    "parameters": lambda r: f"{r.parameters:,}" if r.parameters else "",
    "MACs": lambda r: f"{r.macs:,}" if r.macs else "",
    "usual": lambda r: f"{r.usual_macs:,}" if r.usual_macs else "",
    "by zeros": lambda r: "" if r.zero_macs is None else f"{r.zero_macs:,}",
    "r": lambda r: _short(r.r),
    "j": lambda r: _short(r.jump),
    "start": lambda r: _short(r.start),
}
_LEFT = ("layer", "class")
_MOST_NOTES = 6


class ModelTable(Sequence[Row]):
    """The rows of a model's layers; prints as a table, and in a notebook as HTML.

    Attributes:
        rows: one :class:`Row` per node, in the order in which they ran.
        layers: those that the guide's arithmetic is about, and those with parameters; what is printed.
        graph: the captured model.
        receptive_fields: :class:`ReceptiveFields` of all nodes.
        captured_by: how the model was captured.
        errata: misprints of the sources that the model's numbers correct.
    """

    def __init__(self, graph: Graph, rows: list[Row], fields: ReceptiveFields | None) -> None:
        self.graph = graph
        self.rows = rows
        self.receptive_fields = fields
        self.captured_by = graph.captured_by
        self.errata: tuple[Any, ...] = tuple(getattr(graph.model, "errata", ()))

    @property
    def layers(self) -> list[Row]:
        """Rows with arithmetic or parameters."""
        return [row for row in self.rows if row.kind in ARITHMETIC or row.parameters]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """By number, or by name."""
        if isinstance(index, str):
            found = [row for row in self.rows if row.name == index]
            if not found:
                raise KeyError(f"no layer is called {index!r}")
            return found[0]
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def parameters(self) -> int:
        """Of the model; shared ones once."""
        return sum(p.numel() for p in self.graph.model.parameters())

    @property
    def macs(self) -> int:
        """Exact multiply-adds of one example."""
        return sum(row.macs for row in self.rows)

    @property
    def usual_macs(self) -> int:
        """The usual estimate."""
        return sum(row.usual_macs for row in self.rows)

    @property
    def zero_macs(self) -> int:
        """Multiplications by inserted zeros, if transposed layers were computed as direct convolutions."""
        return sum(row.zero_macs or 0 for row in self.rows)

    # Output

    def _cells(self, every: bool) -> tuple[list[str], list[list[str]]]:
        """Header and rows of text; columns that are empty throughout are left out."""
        rows = self.rows if every else self.layers
        table = [[column(row) for column in _COLUMNS.values()] for row in rows]
        kept = [n for n, name in enumerate(_COLUMNS) if name in _LEFT or any(row[n] for row in table)]
        names = list(_COLUMNS)
        return [names[n] for n in kept], [[row[n] for n in kept] for row in table]

    def _footer(self) -> list[str]:
        lines = [f"parameters {self.parameters:,}; multiply-adds {self.macs:,} (usual estimate {self.usual_macs:,})"]
        if self.zero_macs:
            lines.append(f"multiplications by inserted zeros, if computed as direct convolutions: {self.zero_macs:,}")
        if self.captured_by != "meta":
            lines.append(f"captured by {self.captured_by}: the model does not run on the meta device")
        lines += [f"{row.name}: {row.note}" for row in self.rows if row.note]
        if self.receptive_fields is not None:
            apart = [m for m in self.receptive_fields.misaligned if not m.causal]
            lines += [f"centres do not meet at {m}" for m in apart[:_MOST_NOTES]]
            if len(apart) > _MOST_NOTES:
                lines.append(f"nor at {len(apart) - _MOST_NOTES} other places: see receptive_fields.misaligned")
        lines += [f"erratum, {erratum}" for erratum in self.errata]
        return lines

    def text(self, every: bool = False) -> str:
        """Plain aligned text; ``every``: all nodes, not only layers."""
        header, rows = self._cells(every)
        widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if name in _LEFT else cell.rjust(width)
                for name, cell, width in zip(header, row, widths, strict=True)
            ).rstrip()
            for row in [header, *rows]
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *self._footer()])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table  # only rich asks for this
        from rich.text import Text

        header, rows = self._cells(False)
        borders = 3 * len(header) + 1
        if sum(max(map(len, column)) for column in zip(header, *rows, strict=True)) + borders > options.max_width:
            # Squeezed into a narrow terminal the numbers would be gone; long lines only wrap.
            yield Text(self.text())
            return
        table = Table(caption="\n".join(self._footer()), caption_justify="left")
        for name in header:
            table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name in _LEFT)
        for row in rows:
            table.add_row(*row)
        yield table

    def show(self) -> None:
        """Prints in colour and fitted to the terminal; needs ``pip install torch_convarith[cli]``."""
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError(
                "show() needs rich: pip install torch_convarith[cli]; print(table) needs nothing"
            ) from error
        Console().print(self)

    def _repr_html_(self) -> str:
        header, rows = self._cells(False)

        def cells(tag: str, row: list[str]) -> str:
            aligned = (
                f'<{tag} style="text-align:{"left" if name in _LEFT else "right"}">{html.escape(cell)}</{tag}>'
                for name, cell in zip(header, row, strict=True)
            )
            return f"<tr>{''.join(aligned)}</tr>"

        body = "".join(cells("td", row) for row in rows)
        notes = "<br>".join(map(html.escape, self._footer()))
        return f"<table><thead>{cells('th', header)}</thead><tbody>{body}</tbody></table><p>{notes}</p>"

    def to_markdown(self) -> str:
        """A table for a README."""
        header, rows = self._cells(False)
        rule = [":---" if name in _LEFT else "---:" for name in header]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [header, rule, *rows]]
        return "\n".join([*lines, "", *(f"- {line}" for line in self._footer())]) + "\n"

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dict per node, with lists for tuples and strings for fractions: JSON's types."""
        return [{name: _jsonable(value) for name, value in vars(row).items()} for row in self.rows]

    def to_json(self, path: Any = None) -> str:
        """JSON: rows, totals, how it was captured, misaligned paths, errata. Also written to ``path``."""
        fields = self.receptive_fields
        value = {
            "rows": self.to_dicts(),
            "parameters": self.parameters,
            "macs": self.macs,
            "usual_macs": self.usual_macs,
            "zero_macs": self.zero_macs,
            "captured_by": self.captured_by,
            "misaligned": [] if fields is None else [str(m) for m in fields.misaligned],
            "errata": [vars(erratum) for erratum in self.errata],
        }
        return _written(json.dumps(value, indent=1), path)

    def to_csv(self, path: Any = None) -> str:
        """CSV of all nodes, a column per attribute of :class:`Row`. Also written to ``path``."""
        stream = io.StringIO()
        rows = self.to_dicts()
        writer = csv.DictWriter(stream, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _short(v) if isinstance(v, list) else v for k, v in row.items()})
        return _written(stream.getvalue(), path)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of all nodes; needs ``pip install torch_convarith[pandas]``."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install torch_convarith[pandas]") from error
        return pandas.DataFrame([vars(row) for row in self.rows]).set_index("name")


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return value


def _written(text: str, path: Any) -> str:
    if path is not None:
        from pathlib import Path

        Path(path).write_text(text, encoding="utf-8")
    return text


def _macs(node: Node) -> tuple[int, int, int | None]:
    """(exact, usual, by inserted zeros) of one example."""
    positions = math.prod(node.shape[1:])
    if node.kind == "linear":
        inputs = node.channels[0] if node.channels else 0
        return inputs * positions, inputs * positions, None
    if node.geometry is None or node.channels is None:
        return 0, 0, None
    pairs = node.channels[0] // node.groups * node.channels[1]
    taps = math.prod(node.geometry.kernel_size)
    exact = pairs * node.geometry.count_entries(node.padding_mode)
    usual = pairs * taps * math.prod(node.geometry.output_size)
    if node.kind == "conv":
        return exact, usual, None
    stretched = math.prod(up.direct.nnz for up in node.geometry.transposed())
    return exact, usual, pairs * (stretched - node.geometry.nnz)


def _row(node: Node, fields: ReceptiveFields | None) -> Row:
    macs, usual, zeros = _macs(node)
    source = node.edges[0].node.shape if node.edges else node.shape
    letters: dict[str, Any] = {}
    g = node.geometry
    if g is not None:
        letters = {
            "kernel": g.kernel_size,
            "stride": g.stride,
            "padding": tuple(lo if lo == hi else (lo, hi) for lo, hi in g.padding),
            "dilation": g.dilation,
            "a": tuple(axis.unused for axis in g),
            "relationship": _relationships(node, g),
        }
        if node.kind != "pool":
            letters["groups"] = node.groups
    if fields is not None and node.name in fields:
        field = fields[node.name]
        if any(size > 1 for size in fields.source.sizes):
            letters |= {"r": field.size, "jump": field.jump, "start": field.start}
    return Row(
        name=node.name, layer=node.label, kind=node.kind, input=tuple(source[1:]), output=tuple(node.shape[1:]),
        parameters=node.parameters, macs=macs, usual_macs=usual, zero_macs=zeros, note=node.note, **letters,
    )  # fmt: skip


def _relationships(node: Node, geometry: Geometry) -> tuple[int, ...]:
    if node.kind == "conv_transpose":
        return tuple(up.relationship.number for up in geometry.transposed())
    if node.kind == "pool":
        return tuple(pooling_relationship(axis).number for axis in geometry)
    return tuple(axis.relationship.number for axis in geometry)


def trace(model: nn.Module, *inputs_or_sizes: Any, **keywords: Any) -> ModelTable:
    """The guide's arithmetic for every layer of a model, from one run without values.

    Args:
        model: a torch.nn.Module of torch.nn's layers, ours, and function calls; a torch.export.ExportedProgram.
        inputs_or_sizes: per input a tensor, spatial sizes, (C, *spatial), or the whole shape. None at all: the
            model's own ``input_size``, if it has one.
        keywords: passed to the model's forward.

    Returns:
        A :class:`ModelTable`. Multiply-adds and sizes are those of one example.

    Raises:
        CaptureError: the model's forward raised.

    >>> from torch_convarith.models import lenet5
    >>> table = trace(lenet5(), 32)
    >>> [(row.name, row.output, row.parameters, row.r[0]) for row in table.layers][:3]
    [('C1', (6, 28, 28), 156, 5), ('S2', (6, 14, 14), 0, 6), ('C3', (16, 10, 10), 2416, 14)]
    >>> table.parameters
    61706
    """
    if not inputs_or_sizes:
        size = getattr(model, "input_size", None)
        if size is None:
            raise ValueError("give the model's inputs: tensors, or sizes such as 224 or (1, 3, 224, 224)")
        inputs_or_sizes = (size,)
    alone = len(inputs_or_sizes) == 1 and isinstance(model, nn.Module)
    inputs = [example_input(model, x) if alone else x for x in inputs_or_sizes]
    graph = capture(model, *inputs, **keywords)
    fields = ReceptiveFields(graph) if graph.axes else None
    return ModelTable(graph, [_row(node, fields) for node in graph.nodes if node.kind != "input"], fields)
