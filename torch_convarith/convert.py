"""Swaps torch.nn's layers in a model for ours, in place, and back.

Our classes are subclasses of torch.nn's with the same state, so a module is converted by giving it another class: its
parameters, buffers, hooks, name, training flag, memory format and every reference to it stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from . import modules
from .modules.conv import is_pairs

__all__ = ["Conversion", "convert", "plan_conversion", "revert"]

logger = logging.getLogger("torch_convarith")

Selection = Callable[[str, nn.Module], bool] | str | type | Iterable[str | type] | None


def _pairs() -> Iterator[tuple[type, type]]:
    """(torch.nn's class, ours), for every explicit layer that has a counterpart."""
    for name in modules.__all__:
        theirs = getattr(nn, name.removesuffix("Explicit"), None)
        if name.endswith("Explicit") and theirs is not None:
            yield theirs, getattr(modules, name)


OURS = dict(_pairs())
LAYERS: tuple[type, ...] = tuple(OURS)
TORCHS = {ours: theirs for theirs, ours in OURS.items()}


class Conversion(NamedTuple):
    """What becomes of one module.

    Attributes:
        name: qualified name in the model; empty for the model itself.
        module: the module.
        target: its class after conversion, None where it stays.
        reason: why it stays; empty where it is converted.
    """

    name: str
    module: nn.Module
    target: type | None
    reason: str


def _selects(selection: Selection, name: str, module: nn.Module) -> bool:
    if callable(selection) and not isinstance(selection, type):
        return bool(selection(name, module))
    items = (selection,) if isinstance(selection, (str, type)) else selection or ()
    return any(isinstance(module, item) if isinstance(item, type) else fnmatchcase(name, item) for item in items)


def _kind(module: nn.Module) -> type:
    """The module's class; of a parametrized module, the class that was parametrized."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def plan_conversion(module: nn.Module, *, include: Selection = None, exclude: Selection = None) -> list[Conversion]:
    """What :func:`convert` would do, one entry for each module that is, or looks like, one it converts.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> [(c.name, c.target.__name__) for c in plan_conversion(model)]
    [('0', 'Conv2dExplicit')]
    """
    plan: list[Conversion] = []
    child: nn.Module
    for name, child in module.named_modules():
        kind = _kind(child)
        if kind in TORCHS or not isinstance(child, LAYERS):
            continue
        target, reason = OURS.get(kind), ""
        if target is None:
            reason = f"{kind.__qualname__} is a subclass, which may compute something of its own"
        elif include is not None and not _selects(include, name, child):
            reason = "not included"
        elif _selects(exclude, name, child):
            reason = "excluded"
        plan.append(Conversion(name, child, None if reason else target, reason))
    return plan


def _become(module: nn.Module, kind: type) -> None:
    if parametrize.is_parametrized(module):
        # torch made this class for this module: its properties compute the parametrized tensors. So is ours.
        properties = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), properties)
    module.__class__ = kind


def convert(module: nn.Module, *, include: Selection = None, exclude: Selection = None) -> nn.Module:
    """Makes every torch.nn layer of a model that has an explicit counterpart into that counterpart, in place.

    Only exact instances of torch.nn's classes are converted, parametrized ones included; a subclass may have a forward
    of its own and stays, which is logged as a warning of the logger "torch_convarith". Parameters remain the same
    objects, so optimizers, tied weights, hooks and wrappers go on working. Convert before torch.compile.

    Args:
        module: the model; or a single layer.
        include: convert only these: a function (name, module) -> bool, or names as glob patterns, or classes.
        exclude: leave these, likewise.

    Returns:
        ``module`` itself.

    >>> model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)), exclude="1")
    >>> model
    Sequential(
      (0): Conv2dExplicit(1, 2, kernel_size=(3, 3), stride=(1, 1))
      (1): ConvTranspose2d(2, 1, kernel_size=(3, 3), stride=(1, 1))
    )
    """
    for name, child, target, reason in plan_conversion(module, include=include, exclude=exclude):
        if target is not None:
            _become(child, target)
        elif include is None and "subclass" in reason:
            logger.warning("%s stays as it is: %s", name or "the module", reason)
    return module


def _options(kind: type) -> dict[str, Any]:
    """What our class adds to torch.nn's as plain class attributes: option and default."""
    return {
        name: value
        for base in kind.__mro__
        if base.__module__.startswith(modules.__name__)
        for name, value in vars(base).items()
        if not name.startswith("_") and not callable(value) and not hasattr(value, "__get__")
    }


def revert(module: nn.Module) -> nn.Module:
    """Undoes :func:`convert`: every explicit layer becomes torch.nn's again, in place; ``method`` is forgotten.

    Raises:
        ValueError: a layer uses what torch.nn has not (``extended=True``, padding as pairs, a pooling's ``ties``, ...).
            Nothing is changed then.
    """
    found: list[tuple[nn.Module, type, dict[str, Any]]] = []
    for name, child in module.named_modules():
        kind = _kind(child)
        theirs = TORCHS.get(kind)
        if theirs is None:
            continue
        options = _options(kind)
        padding = getattr(child, "padding", 0)
        if is_pairs(padding) or any(getattr(child, o) != default for o, default in options.items() if o != "method"):
            raise ValueError(f"{name or 'the module'} cannot become a {theirs.__name__}: {child}")
        found.append((child, theirs, options))
    for child, theirs, options in found:
        _become(child, theirs)
        for option in options:
            vars(child).pop(option, None)
    return module
