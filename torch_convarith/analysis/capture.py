"""Records a model's run on the meta device as a graph.

The model's own forward runs once, on tensors that have a shape and no values, under a torch function mode that notes
every call and module hooks that name it. So control flow, ``output_size=`` arguments and functional calls are seen as
they are, and no convolution is computed. A model that cannot run without values (it asks for ``.item()``, or uses
an operator without a meta kernel) is run on fake tensors, and at last on real zeros; :attr:`Graph.captured_by` says so.

torch.fx's symbolic tracing refuses control flow on shapes, and torch.export takes seconds at its first call; graphs of
either can be given to :func:`capture` as models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .calls import SPLITS, TRANSPARENT, WITHOUT_DEPENDENCE, Call, module_kind
from .graph import Graph, Layout, Node, Role, sizes_of, tensors_in

__all__ = ["CaptureError", "capture", "example_input", "example_shape"]


class CaptureError(RuntimeError):
    """The model's forward raised; the message is its own."""


# Shapes of inputs --------------------------------------------------------------------------------------------------


def example_shape(model: nn.Module, size: int | Sequence[int], channels: int | None = None) -> tuple[int, ...]:
    """(N, C, *spatial) from spatial sizes, (C, *spatial) or the whole shape; C from the model's first layer.

    >>> example_shape(nn.Conv2d(3, 8, 5), 32), example_shape(nn.Conv1d(2, 8, 5), (2, 100))
    ((1, 3, 32, 32), (1, 2, 100))
    """
    axes, found = _first_layer(model)
    sizes = (size,) * (axes or 2) if isinstance(size, int) else tuple(int(s) for s in size)
    if any(s < 1 for s in sizes):
        raise ValueError(f"input size {sizes}: every size must be at least 1")
    if not axes:
        if channels is not None:
            return (1, channels, *sizes)
        if isinstance(size, int):
            raise ValueError("the model has no convolution to tell the number of axes: give the whole input shape")
        return sizes
    channels = found if channels is None else channels
    if len(sizes) == axes:
        return (1, channels, *sizes)
    if len(sizes) == axes + 1:
        return (1, *sizes)
    if len(sizes) == axes + 2:
        return sizes
    raise ValueError(
        f"input size {sizes}: the model's first convolution has {axes} axes; give them, or C or N, C before"
    )


def example_input(model: nn.Module, value: Any) -> Any:
    """What :func:`capture` takes, from a tensor or from sizes. An unbatched example gets a batch."""
    if not isinstance(value, Tensor):
        return example_shape(model, value)
    axes, channels = _first_layer(model)
    return value[None] if axes and value.dim() == axes + 1 and value.shape[0] == channels > 1 else value


def _first_layer(model: nn.Module) -> tuple[int, int]:
    """(axes, channels in) of the first convolution; (0, 0) without one."""
    found = (m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd))
    return next(((len(m.kernel_size), m.in_channels) for m in found), (0, 0))


# Capture -----------------------------------------------------------------------------------------------------------


def capture(model: nn.Module, *inputs: Any, computing: bool = True, partial: bool = False, **keywords: Any) -> Graph:
    """Runs ``model`` once without values and returns its :class:`Graph`.

    The model is put into eval mode for the run and restored; nothing of it changes.

    Args:
        model: a torch.nn.Module, also a torch.fx.GraphModule; or a torch.export.ExportedProgram.
        inputs: tensors, or shapes (N, C, *spatial) as tuples of ints.
        computing: whether a run on real zeros may be the last resort.
        partial: where the forward raises, return the graph so far, with ``error``.
        keywords: passed to the model's forward.

    Raises:
        CaptureError: the forward raised (and ``partial`` is False).
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "graph_signature") and hasattr(model, "module"):  # an ExportedProgram
        model = model.module()  # type: ignore[operator]
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not inputs:
        raise ValueError("give the model's inputs: tensors, or shapes such as (1, 3, 224, 224)")
    runs: list[tuple[str, Callable[..., Any]]] = [("meta", _on_meta), ("fake tensors", _on_fake)]
    if computing:
        runs.append(("a run on real zeros", _on_zeros))
    failed: list[tuple[Exception, _Recorder]] = []
    for how, run in runs:
        recorder = _Recorder(model, inputs)
        try:
            with _eval(model), torch.no_grad():
                result = run(model, recorder, inputs, keywords)
        except Exception as error:  # the model's own: any type
            # A shape that does not fit is the same on every device; values that are missing are not.
            failed.append((error, recorder))
            if isinstance(error, (NotImplementedError, TypeError)) or _wants_values(error):
                continue
            break
        outputs = [n for n in (recorder.node_of(t) for t in tensors_in(result)) if n is not None]
        return Graph(recorder.nodes, outputs, recorder.axes, how, model)
    cause, recorder = failed[0]
    if partial:
        return Graph(recorder.nodes, recorder.nodes[-1:], recorder.axes, "meta", model, cause)
    raise CaptureError(f"{type(model).__name__} does not run on {_shown(inputs)}: {cause}") from cause


def _wants_values(error: Exception) -> bool:
    text = str(error).lower()
    words = ("meta", "fake", "data-dependent", "unbacked", "cannot be called", "no data", "same device")
    return any(word in text for word in words) or "DataDependent" in type(error).__name__


def _shown(inputs: Iterable[Any]) -> str:
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else str(x) for x in inputs)


def _make(model: nn.Module, value: Any, device: str) -> Any:
    """A tensor of the model's dtype where ``value`` is a shape."""
    if isinstance(value, Tensor):
        return value.detach().to(device) if device == "meta" else value.detach()
    if isinstance(value, (tuple, list, torch.Size)) and all(isinstance(v, int) for v in value):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        return torch.zeros(tuple(value), device=device, dtype=dtype)
    return value


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Eval mode, then each module's own again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _on_meta(model: nn.Module, recorder: _Recorder, inputs: Any, keywords: Any) -> Any:
    tensors = [_make(model, x, "meta") for x in inputs]
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    # tied parameters stay tied
    twins = {id(t): torch.empty_like(t, device="meta", requires_grad=False) for _, t in named}
    state = {name: twins[id(t)] for name, t in named}
    recorder.parameters = {id(twins[id(p)]) for p in model.parameters()}
    with recorder.watching(tensors):
        return torch.func.functional_call(model, state, tuple(tensors), keywords, tie_weights=False)


def _on_fake(model: nn.Module, recorder: _Recorder, inputs: Any, keywords: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tensors = [mode.from_tensor(x) if isinstance(x, Tensor) else _make(model, x, "cpu") for x in inputs]
        with recorder.watching(tensors):
            return model(*tensors, **keywords)


def _on_zeros(model: nn.Module, recorder: _Recorder, inputs: Any, keywords: Any) -> Any:
    device = next((str(p.device) for p in model.parameters()), "cpu")
    tensors = [_make(model, x, device) for x in inputs]
    with recorder.watching(tensors):
        return model(*tensors, **keywords)


class _Recorder(TorchFunctionMode):
    """Notes every call that reads a tensor which depends on the inputs."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._of: dict[int, Node] = {}
        self._alive: list[Any] = []  # so that no id is used twice
        self._names = {module: name for name, module in model.named_modules()}
        self._used: dict[str, int] = {}
        self._stack: list[tuple[nn.Module, bool]] = []
        self._quiet = 0
        self._model = model
        self.parameters = {id(p) for p in model.parameters()}
        dims = max((len(x.shape) if isinstance(x, Tensor) else len(x) for x in inputs if _is_shape(x)), default=2)
        # Without a dimension of channels the model itself adds one, as those of raw audio do.
        self._roles: tuple[Role, ...] = ("N",) if dims == _first_layer(model)[0] + 1 > 1 else ("N", "C")
        self.axes = max(0, dims - len(self._roles))

    @contextmanager
    def watching(self, tensors: Sequence[Any]) -> Iterator[None]:
        """Records until it ends."""
        for n, tensor in enumerate(x for x in tensors if isinstance(x, Tensor)):
            shape = tuple(tensor.shape)
            roles: tuple[Role, ...] = (*self._roles, *range(self.axes))
            layout: Layout = tuple(((role, size),) for role, size in zip(roles, shape, strict=False))
            name = "input" if n == 0 else f"input_{n}"
            node = Node(self._unique(name), "input", "input", None, shape, layout, sizes_of(layout, self.axes))
            self._add(node, tensor)
        with ExitStack() as stack:
            for module in self._model.modules():  # not torch's global hooks: they leave a trace when removed
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True).remove)
            stack.enter_context(self)
            yield

    def node_of(self, tensor: Tensor) -> Node | None:
        """What produced it."""
        return self._of.get(id(tensor))

    def _unique(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return f"{name}_{count}" if count else name

    def _add(self, node: Node, tensor: Tensor) -> None:
        self.nodes.append(node)
        self._of[id(tensor)] = node
        self._alive.append(tensor)

    def _enter(self, module: nn.Module, args: Any) -> None:
        # A subclass with its own forward is looked into: only torch.nn's and ours are known by their class.
        home = getattr(module.forward, "__module__", None) or ""
        leaf = home.startswith(("torch.nn.", "torch_convarith.")) and module_kind(module) is not None
        self._stack.append((module, leaf))
        self._quiet += leaf

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # (kwargs, output); where the forward raised, torch leaves kwargs out
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        if not self._stack or self._stack[-1][0] is not module:
            return
        _, leaf = self._stack.pop()
        self._quiet -= leaf
        if leaf and not self._quiet and output is not None:
            kind = module_kind(module)
            assert kind is not None
            label = type(module).__name__
            self._record(kind, label, module, args, kwargs, output, self._names.get(module) or label)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self._quiet:
            name = _function_name(func)
            if name not in WITHOUT_DEPENDENCE:
                changed = args[0] if name == "setitem" else output
                self._record(name, name, None, args, kwargs, changed, self._path(name))
        return output

    def _path(self, name: str) -> str:
        owner = next((self._names[m] for m, _ in reversed(self._stack) if self._names.get(m)), "")
        return f"{owner}.{name}" if owner else name

    def _record(
        self, name: str, label: str, module: nn.Module | None, args: Any, kwargs: Any, output: Any, path: str
    ) -> None:
        tensors = list(tensors_in(output))
        if not tensors:
            return
        reads = [t for t in tensors_in((args, kwargs)) if id(t) in self._of]
        if not reads:
            return
        if len(tensors) == 1 and len(reads) == 1 and tensors[0] is reads[0] and name in TRANSPARENT:
            return
        several = len(tensors) > 1 and name in SPLITS
        for n, tensor in enumerate(tensors if several else tensors[:1]):
            call = Call(name, module, args, kwargs, tensor, n, tensors, self.node_of, self.axes)
            node = call.node(self._unique(path), label)
            node.parameters = self._count_parameters(module, (args, kwargs))
            self._add(node, tensor)
        if not several:
            for tensor in tensors[1:]:  # indices of a maximum, states: the same dependence where the shape is the same
                self._of[id(tensor)] = self.nodes[-1]
                self._alive.append(tensor)

    def _count_parameters(self, module: nn.Module | None, arguments: Any) -> int:
        if module is not None:
            return sum(p.numel() for p in module.parameters())
        read = {id(t): t.numel() for t in tensors_in(arguments) if id(t) in self.parameters}
        return sum(read.values())


def _is_shape(value: Any) -> bool:
    return isinstance(value, (Tensor, tuple, list, torch.Size))


def _function_name(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    name = name.split(".")[0]  # torch.ops.aten.add.Tensor
    return str(name).strip("_")
