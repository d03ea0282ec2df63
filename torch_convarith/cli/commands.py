"""The commands of ``convarith``. Needs ``pip install torch_convarith[cli]``."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

try:
    import click
except ImportError as error:
    raise ImportError("convarith needs click: pip install torch_convarith[cli]") from error


# What is typed ------------------------------------------------------------------------------------------------------


class Sizes(click.ParamType):  # type: ignore[type-arg]
    """``5``, ``5x7`` or ``5,7``: an int, or a tuple of ints."""

    name = "sizes"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """An int stays one; several become a tuple."""
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(int(part) for part in value.lower().replace(",", "x").split("x"))
        except ValueError:
            self.fail(f"{value!r} is no size: write 5 or 5x7", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Padding(Sizes):
    """As :class:`Sizes`, ``same``, ``valid``, or ``lo:hi`` per axis."""

    name = "padding"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """A pair of ints per axis where sides differ."""
        if not isinstance(value, str) or value in ("same", "valid"):
            return value
        if ":" not in value:
            return super().convert(value, param, ctx)
        try:
            axes = tuple(tuple(int(side) for side in axis.split(":")) for axis in value.lower().split("x"))
        except ValueError:
            axes = ((),)
        if any(len(axis) not in (1, 2) for axis in axes):
            self.fail(f"{value!r} is no padding: write 1, 1x2, 1:2 (lo:hi), same or valid", param, ctx)
        return tuple((axis[0], axis[-1]) for axis in axes)


def _model_names(ctx: Any, param: Any, incomplete: str) -> list[str]:
    return [name for name in ("lenet5", "alexnet") if name.startswith(incomplete)]


def _load(spec: str) -> Any:
    """A model from ``lenet5``, ``alexnet`` or ``package.module:factory``; a module there serves as it is."""
    import torch

    if spec in ("lenet5", "alexnet"):
        from .. import models

        with torch.device("meta"):
            return getattr(models, spec)()
    name, colon, attribute = spec.partition(":")
    if not colon:
        raise click.UsageError(f"{spec!r} is no model: write lenet5, alexnet or package.module:factory")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does: modules beside the caller
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"{spec!r} cannot be loaded: {error}") from error
    model = found if isinstance(found, torch.nn.Module) else found()
    if not isinstance(model, torch.nn.Module):
        raise click.UsageError(f"{spec!r} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _input_size(model: Any, given: Any) -> Any:
    size = getattr(model, "input_size", None) if given is None else given
    if size is None:
        raise click.UsageError("give the input's size: --input 224, --input 3x224x224 or --input 1x3x224x224")
    return size


def _print(value: Any, text: Any, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=1) if as_json else str(text))


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_kernel = click.option("-k", "--kernel", type=Sizes(), required=True, help="Taps per axis: 3 or 3x5.")
_stride = click.option("-s", "--stride", type=Sizes(), default="1", show_default=True)
_padding = click.option(
    "-p", "--padding", type=Padding(), default="0", show_default=True, help="1, 1x2, 1:2 (lo:hi), same or valid."
)
_dilation = click.option("-d", "--dilation", type=Sizes(), default="1", show_default=True)
_is_transposed = click.option("-t", "--transposed", is_flag=True, help="A transposed convolution of these letters.")
_extra = click.option(
    "-a", "--output-padding", type=Sizes(), default="0", show_default=True, help="Relationship 14's a."
)
_letters = _options(_kernel, _stride, _padding, _dilation, _is_transposed, _extra)
_FORMATS = ["text", "rich", "markdown", "html", "csv", "json"]
_model = click.argument("model", shell_complete=_model_names)
_input = click.option("-i", "--input", "input_size", type=Sizes(), help="224, 3x224x224 (C first) or 1x3x224x224.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="torch_convarith", message="%(version)s")
def cli() -> None:
    """Convolution arithmetic, after Dumoulin and Visin's guide.

    Sizes are written 5, or 5x7 where axes differ. A MODEL is lenet5, alexnet or package.module:factory.

    Completion: eval "$(_CONVARITH_COMPLETE=bash_source convarith)", or zsh_source, or fish_source.
    """


def _geometry(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any) -> Any:
    """The geometry; of a transposed layer, that of the convolution that it transposes."""
    from ..geometry import Geometry

    if not transposed:
        return Geometry.of(size, kernel, stride, padding, dilation)
    from ..functional.conv import transposed_geometry

    axes = max(len(v) if isinstance(v, tuple) else 1 for v in (size, kernel))
    sizes = size if isinstance(size, tuple) else (size,) * axes
    kernels = kernel if isinstance(kernel, tuple) else (kernel,) * axes
    if isinstance(padding, str) or (isinstance(padding, tuple) and any(isinstance(p, tuple) for p in padding)):
        raise click.UsageError("a transposed convolution takes one padding per axis, as torch's does")
    return transposed_geometry(sizes, kernels, stride, padding, extra, dilation)


@cli.command()
@click.argument("input_size", metavar="INPUT", type=Sizes())
@_letters
@click.option("--pool", is_flag=True, help="A pooling window: stride is the kernel's by default.")
@click.option("--ceil-mode", is_flag=True, help="Of pooling: round up.")
@_as_json
@click.pass_context
def size(ctx: Any, /, input_size: Any, pool: bool, ceil_mode: bool, as_json: bool, **letters: Any) -> None:
    """The output size of a layer, and the relationship that gives it.

    convarith size 224 -k 7 -s 2 -p 3
    """
    from ..geometry import Geometry, pooling_output_size, pooling_relationship

    if pool:
        stride = letters["stride"]
        if ctx.get_parameter_source("stride") is click.core.ParameterSource.DEFAULT:
            stride = letters["kernel"]
        k, p, d = letters["kernel"], letters["padding"], letters["dilation"]
        found = pooling_output_size(input_size, k, stride, p, d, ceil_mode)
        output = found if isinstance(found, tuple) else (found,)
        numbers = [pooling_relationship(axis).number for axis in Geometry.of(input_size, k, stride, p, d)]
    else:
        if ceil_mode:
            raise click.UsageError("--ceil-mode is for pooling: add --pool")
        extra = letters.pop("output_padding")
        g = _geometry(input_size, extra=extra, **letters)
        if letters["transposed"]:
            output, numbers = g.input_size, [up.relationship.number for up in g.transposed()]
        else:
            output, numbers = g.output_size, [axis.relationship.number for axis in g]
    told = " and ".join(str(n) for n in sorted(set(numbers)))
    _print(
        {"output": list(output), "relationships": numbers},
        f"{'x'.join(map(str, output))}  (relationship{'s' * (len(set(numbers)) > 1)} {told})",
        as_json,
    )


@cli.command()
@click.option("-m", "--model", shell_complete=_model_names, help="Instead: the sizes near --input that MODEL keeps.")
@click.option("-i", "--input", "input_size", type=int)
@click.option("-o", "--output", "output_size", type=int)
@click.option("-k", "--kernel", type=int)
@click.option("-s", "--stride", type=int)
@click.option("-p", "--padding", type=int)
@click.option("-d", "--dilation", type=int)
@click.option("-a", "--output-padding", type=int)
@_is_transposed
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Print at most so many.")
@_as_json
def solve(model: str | None, input_size: Any, output_size: Any, limit: int, as_json: bool, **letters: Any) -> None:
    """Every way to fill in the letters that are left out, along one axis; smallest first.

    convarith solve -i 224 -o 112 -s 2 -d 1, or convarith solve --model package.module:unet -i 500
    """
    if model is not None:
        _solve_model(model, input_size, as_json)
        return
    from ..analysis.solve import solve as solved

    found = solved(input_size, output_size, **letters)
    names = ("input", "output", "kernel", "stride", "padding", "dilation", "output_padding", "transposed")

    def listed(solutions: Any) -> list[dict[str, Any]]:
        return [{n: getattr(s, n) for n in names} | {"relationship": s.relationship.number} for s in solutions]

    text = str(found) if not found else "\n".join(map(str, found[:limit]))
    if len(found) > limit:
        text += f"\n... and {len(found) - limit} more: --limit {len(found)} prints all"
    _print({"solutions": listed(found), "nearest": listed(found.nearest)}, text, as_json)
    if not found:
        raise click.exceptions.Exit(1)


def _solve_model(spec: str, wanted: int | None, as_json: bool) -> None:
    from ..analysis import nearest_valid_sizes

    if wanted is None:
        raise click.UsageError("give the size that you want: --input 224")
    found = nearest_valid_sizes(_load(spec), wanted)
    if found == [wanted]:
        text = f"{wanted} survives: the output is as large as the input"
    elif found:
        text = f"{wanted} does not survive; the nearest that do: {', '.join(map(str, found))}"
    else:
        text = f"no size near {wanted} survives"
    _print({"input": wanted, "valid": found}, text, as_json)
    if found != [wanted]:
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("input_size", metavar="INPUT", type=Sizes())
@_letters
@_as_json
def explain(input_size: Any, as_json: bool, transposed: bool, **letters: Any) -> None:
    """The page of the guide for one layer, with its numbers put in.

    convarith explain 6 -k 3 -s 2 -p 1
    """
    from ..analysis.explain import explain as explained

    g = _geometry(input_size, transposed=transposed, extra=letters.pop("output_padding"), **letters)
    said = explained(g.transposed() if transposed else g)
    value = {
        "relationships": [r.number for r in said.relationships],
        "shape": list(said.shape),
        "nnz": said.nnz,
        "density": said.density,
        "text": said.text,
    }
    _print(value, said, as_json)


@cli.command()
@_model
@_input
@click.option("--all", "every", is_flag=True, help="All nodes, not only layers.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="text", show_default=True)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
@_as_json
def table(model: str, input_size: Any, every: bool, form: str, save: Path | None, as_json: bool) -> None:
    """Sizes, parameters, multiply-adds and receptive fields of a model, layer by layer.

    convarith table alexnet
    """
    from ..analysis.trace import trace

    loaded = _load(model)
    found = trace(loaded, _input_size(loaded, input_size))
    if form == "rich" and not as_json:
        found.show()
        return
    writers: dict[str, Callable[[], str]] = {
        "text": lambda: found.text(every),
        "markdown": found.to_markdown,
        "html": found._repr_html_,
        "csv": found.to_csv,
        "json": found.to_json,
    }
    text = writers["json" if as_json else form]()
    if save is None:
        click.echo(text.rstrip("\n"))
    else:
        save.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


@cli.command()
@_model
@_input
@click.option("-n", "--node", help="Only this node, as `convarith table MODEL --all` names it.")
@click.option("--index", type=Sizes(), help="Print the set of input pixels that the output at this position sees.")
@click.option("--pixel", type=Sizes(), help="Print the set of outputs that see this input pixel.")
@_as_json
def rf(model: str, input_size: Any, node: str | None, index: Any, pixel: Any, as_json: bool) -> None:
    """Receptive fields: size r, jump j, start and effective padding of every node; or an exact set of pixels.

    convarith rf alexnet --node features.pool5
    """
    from ..analysis.receptive_field import receptive_field

    loaded = _load(model)
    fields = receptive_field(loaded, _input_size(loaded, input_size))
    if index is not None or pixel is not None:
        if index is not None and pixel is not None:
            raise click.UsageError("--index and --pixel ask opposite questions: give one of them")
        region = fields.input_region(node, index) if pixel is None else fields.output_region(node, pixel)
        listed = sorted(map(list, region.pixels))
        _print({"box": region.box, "count": len(region), "positions": listed}, f"{region!r}\n{region}", as_json)
        return
    chosen = list(fields.values()) if node is None else [fields[node]]
    value = {
        "nodes": [
            {
                "name": f.name,
                "output": list(f.output),
                "size": list(f.size),
                "jump": [float(j) if j != int(j) else int(j) for j in f.jump],
                "start": list(f.start),
                "padding": [list(p) for p in f.padding],
                "holes": list(f.holes),
            }
            for f in chosen
        ],
        "misaligned": [str(m) for m in fields.misaligned],
    }
    text = "\n".join([*map(repr, chosen), *(f"centres do not meet at {m}" for m in fields.misaligned)])
    _print(value, text, as_json)


@cli.command()
@_model
@_input
@click.option("--select", multiple=True, help="Apply only this rule (code, prefix or name); may be repeated.")
@click.option("--ignore", multiple=True, help="Leave this rule out; may be repeated.")
@click.option("--format", "form", type=click.Choice(["text", "json", "sarif"]), default="text", show_default=True)
@click.option("--rules", is_flag=True, is_eager=True, expose_value=False, help="List the rules.",
              callback=lambda ctx, param, value: _list_rules(ctx) if value else None)  # fmt: skip
@_as_json
def lint(model: str, input_size: Any, select: Any, ignore: Any, form: str, as_json: bool) -> None:
    """Mistakes in a model's arithmetic, each with a fix. Exit code 1 if there is a warning or an error.

    convarith lint alexnet --input 224
    """
    from ..analysis.lint import lint as linted

    loaded = _load(model)
    findings = linted(loaded, _input_size(loaded, input_size), select or None, ignore)
    writers = {"text": findings.__str__, "json": findings.to_json, "sarif": findings.to_sarif}
    click.echo(writers["json" if as_json else form]())
    if findings.exit_code:
        raise click.exceptions.Exit(findings.exit_code)


def _list_rules(ctx: Any) -> None:
    from ..analysis.lint import RULES

    for rule in RULES:
        click.echo(f"{rule.code}  {rule.name:24}{rule.level:9}{rule.why}")
    ctx.exit()


@cli.command()
@click.argument("input_size", metavar="INPUT", type=Sizes())
@_letters
@click.option("-w", "--weights", help='Taps, rows split by ";": "0 1 2; 2 2 0; 0 1 2". Symbols by default.')
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write a SciPy sparse .npz file.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=40, show_default=True, help="Print at most so many columns."
)
@_as_json
def matrix(
    input_size: Any, transposed: bool, weights: str | None, save: Path | None, limit: int, as_json: bool, **letters: Any
) -> None:
    """The matrix C of a convolution (C^T of a transposed one), one channel to one channel.

    convarith matrix 4 -k 3, or convarith matrix 4x4 -k 3x3 --save c.npz
    """
    import torch

    from ..matrix import ConvMatrix

    g = _geometry(input_size, transposed=transposed, extra=letters.pop("output_padding"), **letters)
    weight = _weights(weights, g.kernel_size)
    found = ConvMatrix(weight, g)
    found = found.T if transposed else found
    if save is not None:
        _save_npz(found, save)
    if as_json:
        entries = found.to_sparse(torch.sparse_coo)
        value = {
            "shape": list(found.shape),
            "nnz": found.nnz,
            "density": found.density,
            "rows": entries.indices()[0].tolist(),
            "columns": entries.indices()[1].tolist(),
            "values": entries.values().tolist(),
        }
        click.echo(json.dumps(value))
        return
    click.echo(repr(found) if save is None else f"{found!r} saved to {save}")
    if save is not None:
        return
    if max(found.shape) > limit:
        click.echo(f"too large to print: --limit {max(found.shape)} prints it, --save FILE.npz keeps it")
    elif weights is None:
        click.echo(str(found.symbolic()))
    else:
        rows = [[f"{v:g}" for v in row] for row in found.to_dense().tolist()]
        width = max(len(v) for row in rows for v in row)
        click.echo("\n".join(" ".join(v.rjust(width) for v in row) for row in rows))


def _weights(text: str | None, kernel: tuple[int, ...]) -> Any:
    import torch

    if text is None:
        return torch.ones(1, 1, *kernel)
    try:
        rows = [float(v) for row in text.replace(",", " ").split(";") for v in row.split()]
        return torch.tensor(rows).reshape(1, 1, *kernel)
    except (ValueError, RuntimeError):
        taps = "x".join(map(str, kernel))
        raise click.UsageError(f"--weights {text!r} does not hold the {taps} numbers of the kernel") from None


def _save_npz(found: Any, path: Path) -> None:
    try:
        from scipy.sparse import save_npz
    except ImportError as error:
        raise click.UsageError("--save needs SciPy: pip install torch_convarith[scipy]") from error
    with path.open("wb") as stream:
        save_npz(stream, found.to_scipy())


@cli.command()
@click.argument("input_size", metavar="INPUT", type=Sizes())
@_kernel
@_stride
@_padding
@_dilation
@click.option("-c", "--channels", type=Sizes(), default="64", show_default=True, help="In and out: 64, or 3x64.")
@click.option("-g", "--groups", type=int, default=1, show_default=True)
@click.option("-n", "--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="How long to measure.")
@_as_json
def bench(
    input_size: Any, channels: Any, groups: int, batch: int, seconds: float, as_json: bool, **letters: Any
) -> None:
    """Time one 2-D convolution, ours and torch's in turn, in milliseconds per call.

    convarith bench 56 -k 3 -p 1 -c 64
    """
    import torch

    from .. import functional

    sizes = input_size if isinstance(input_size, tuple) else (input_size,) * 2
    kernel = letters["kernel"] if isinstance(letters["kernel"], tuple) else (letters["kernel"],) * 2
    if len(sizes) != 2 or len(kernel) != 2:
        raise click.UsageError("bench measures 2-D convolutions: give one or two sizes")
    c_in, c_out = channels if isinstance(channels, tuple) else (channels, channels)
    if groups < 1 or c_in % groups or c_out % groups:
        raise click.UsageError(f"--groups {groups} must divide the channels {c_in} and {c_out}")
    x, w = torch.rand(batch, c_in, *sizes), torch.rand(c_out, c_in // groups, *kernel)
    options = {"stride": letters["stride"], "padding": letters["padding"], "dilation": letters["dilation"]}
    contestants = {
        "torch_convarith": lambda: functional.conv2d(x, w, groups=groups, **options),
        "torch": lambda: torch.nn.functional.conv2d(x, w, groups=groups, **options),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for run in contestants.values():
            run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken["torch"]) < 3:
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                taken[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    value = {
        "milliseconds": {name: round(m, 4) for name, m in medians.items()},
        "calls": len(taken["torch"]),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = "\n".join(f"{name:16}{m:10.3f} ms" for name, m in medians.items())
    note = f"median of {value['calls']} calls each, {value['threads']} threads, torch {torch.__version__}"
    _print(value, f"{text}\n{note}", as_json)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; an error takes one line and exit code 2."""
    try:
        code = cli.main(list(arguments), "convarith", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        return _fail(error.format_message())
    except (ValueError, TypeError, RuntimeError, LookupError, OSError, ImportError) as error:
        return _fail(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error))
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    click.echo(f"convarith: {' '.join(message.split())}", err=True)
    return 2
