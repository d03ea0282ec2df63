"""torch.nn's convolutions on the explicit operators.

Each class is a subclass of its torch.nn counterpart: the constructor, parameters, initialisation, state_dict, padding
modes and ``output_size=`` are torch's own, and code that asks ``isinstance(layer, nn.Conv2d)`` goes on working. New are
``method=``, ``extended=``, ``geometry()`` and ``matrix()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _ntuple

from .. import functional
from ..functional.conv import CONV_METHODS, CONV_TRANSPOSE_METHODS, conv_geometry, transposed_geometry
from ..geometry import Geometry, check_padding_mode
from ..matrix import ConvMatrix

Size = int | Iterable[int]

_OURS = {"method": ("pattern", "str"), "extended": (False, "bool")}


def is_pairs(padding: Any) -> bool:
    """Whether padding is (lo, hi) per axis, which torch.nn has not."""
    return isinstance(padding, (tuple, list)) and any(isinstance(side, (tuple, list)) for side in padding)


class _Explicit(nn.modules.conv._ConvNd):
    """What all our classes add to torch.nn's."""

    _function: ClassVar[Callable[..., Tensor]]
    _methods: ClassVar[tuple[str, ...]]
    __signature__: ClassVar[inspect.Signature]
    # Of layers that convert() made of torch.nn's, or that were pickled before these options were:
    method = "pattern"
    extended = False

    def __init__(self, *args: Any, method: str = "pattern", extended: bool = False, **kwargs: Any) -> None:
        if method not in self._methods:
            raise ValueError(f"method must be one of {', '.join(self._methods)}, not {method!r}")
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        padding, padding_mode = bound.arguments["padding"], bound.arguments["padding_mode"]
        # What torch.nn's constructor does not know is set behind its back.
        if is_pairs(padding) or (extended and padding == "same"):
            bound.arguments["padding"] = 0
        if extended:
            bound.arguments["padding_mode"] = "zeros"
        for name in _OURS:
            bound.arguments.pop(name)
        super().__init__(*bound.args, **bound.kwargs)
        self.method = method
        self.extended = extended
        if extended:
            check_padding_mode(None, padding_mode)
            self.padding_mode = padding_mode
        if is_pairs(padding) or (extended and padding == "same"):
            self.padding = padding if padding == "same" else tuple(_ntuple(2)(side) for side in padding)
            self.geometry([1 << 20] * len(self.kernel_size))  # refuses what fits no input

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # help() and editors see torch.nn's arguments and ours, not (*args, **kwargs).
        super().__init_subclass__(**kwargs)
        torch_layer = next((base for base in cls.__bases__ if base.__module__ == nn.modules.conv.__name__), None)
        if torch_layer is not None:  # else a subclass of ours, by a user, a parametrization or FSDP
            theirs = inspect.signature(torch_layer)
            ours = [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                for name, (default, kind) in _OURS.items()
            ]
            cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *ours])

    def geometry(self, input_size: Size) -> Geometry:
        """The layer's geometry on an input of these spatial sizes."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text + "".join(
            f", {name}={getattr(self, name)}" for name, (default, _) in _OURS.items() if getattr(self, name) != default
        )

    def _spatial(self, input_size: Size) -> tuple[int, ...]:
        axes = len(self.kernel_size)
        return tuple(input_size) if isinstance(input_size, Iterable) else (input_size,) * axes


class _ConvExplicit(_Explicit):
    _methods = CONV_METHODS

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = nn.functional.pad(input, self._sides(input), mode=self.padding_mode), 0
        return self._function(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            method=self.method,
            extended=self.extended,
        )

    def _sides(self, input: Tensor) -> list[int]:
        """Padding in torch.nn.functional.pad's order: the last axis first, lo and hi of each."""
        if not self.extended and not is_pairs(self.padding):
            return self._reversed_padding_repeated_twice
        pairs = self.geometry(input.shape[-len(self.kernel_size) :]).padding
        return [side for pair in reversed(pairs) for side in pair]

    def geometry(self, input_size: Size) -> Geometry:
        """The layer's :class:`~torch_convarith.Geometry` on an input of these spatial sizes."""
        size = self._spatial(input_size)
        return conv_geometry(size, self.kernel_size, self.stride, self.padding, self.dilation, self.extended)

    def matrix(self, input_size: Size) -> ConvMatrix:
        """The layer's matrix C on an input of these spatial sizes: ``layer(x).flatten() == C @ x.flatten()`` + bias."""
        return ConvMatrix(self.weight, self.geometry(input_size), self.groups, self.padding_mode)


class _ConvTransposeExplicit(_Explicit):
    _methods = CONV_TRANSPOSE_METHODS

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer; ``output_size`` chooses ``output_padding``, with or without N and C."""
        return self._function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self._output_padding_for(input, output_size),
            self.groups,
            self.dilation,
            method=self.method,
            extended=self.extended,
            padding_mode=self.padding_mode,
        )

    def _output_padding_for(self, input: Tensor, output_size: Any) -> Any:
        if output_size is None:
            return self.output_padding
        if isinstance(self.padding, str):
            smallest = self._geometry_of(tuple(input.shape[-len(self.kernel_size) :]), 0).input_size
            if tuple(output_size)[-len(self.kernel_size) :] != smallest:
                raise ValueError(f"padding='same' gives an output of {smallest}, not {tuple(output_size)}")
            return 0
        options = (self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation)
        if not is_pairs(self.padding):
            return self._output_padding(input, output_size, *options)  # type: ignore[operator]
        # torch.nn's rule knows padding of both sides alike: half the sum of a pair enters its sizes as the pair does.
        halves = [sum(pair) / 2 for pair in self.padding]  # type: ignore[call-overload]
        chosen = self._output_padding(input, output_size, self.stride, halves, *options[2:])  # type: ignore[operator]
        return [int(a) for a in chosen]

    def _geometry_of(self, size: tuple[int, ...], output_padding: Any) -> Geometry:
        return transposed_geometry(
            size, self.kernel_size, self.stride, self.padding, output_padding, self.dilation, self.extended
        )

    def geometry(self, input_size: Size, output_size: Any = None) -> Geometry:
        """The :class:`~torch_convarith.Geometry` of the convolution that this layer transposes.

        ``input_size`` is the layer's, which is that convolution's output; ``.transposed()`` of the answer gives the
        equivalent direct convolution.
        """
        size = self._spatial(input_size)
        return self._geometry_of(size, self._output_padding_for(torch.empty((1, 1, *size), device="meta"), output_size))

    def matrix(self, input_size: Size, output_size: Any = None) -> ConvMatrix:
        """The layer's matrix C^T on an input of these spatial sizes."""
        return ConvMatrix(self.weight, self.geometry(input_size, output_size), self.groups, self.padding_mode).T


class Conv1dExplicit(_ConvExplicit, nn.Conv1d):
    """torch.nn.Conv1d as y = C x; see :class:`Conv2dExplicit`."""

    _function = staticmethod(functional.conv1d)


class Conv2dExplicit(_ConvExplicit, nn.Conv2d):
    """torch.nn.Conv2d as y = C x, C being the guide's sparse matrix.

    Args are torch.nn.Conv2d's, and:
        padding: also ``(lo, hi)`` per axis.
        method: ``"pattern"`` multiplies with C in compressed form, its pattern and the weights; ``"matrix"``
            assembles C explicitly at every call.
        extended: lifts torch's limits: ``padding="same"`` with a stride gives ceil(i / s) outputs, as TensorFlow's.

    >>> layer = Conv2dExplicit(1, 6, kernel_size=5)
    >>> layer(torch.zeros(1, 1, 32, 32)).shape, layer.matrix((32, 32)).shape
    (torch.Size([1, 6, 28, 28]), (4704, 1024))
    >>> layer.geometry((32, 32))[0].relationship.number
    1
    """

    _function = staticmethod(functional.conv2d)


class Conv3dExplicit(_ConvExplicit, nn.Conv3d):
    """torch.nn.Conv3d as y = C x; see :class:`Conv2dExplicit`."""

    _function = staticmethod(functional.conv3d)


class ConvTranspose1dExplicit(_ConvTransposeExplicit, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d as x = C^T y; see :class:`ConvTranspose2dExplicit`."""

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2dExplicit(_ConvTransposeExplicit, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d as x = C^T y.

    Args are torch.nn.ConvTranspose2d's, and:
        padding: also ``(lo, hi)`` per axis.
        method: ``"pattern"`` multiplies with C^T in compressed form; ``"zero_insert"`` convolves the stretched input
            with the flipped kernel (relationships 8 to 14); ``"matrix"`` assembles C^T explicitly at every call.
        extended: lifts torch's limits: ``padding="same"`` (output = stride * input), any ``output_padding``, and
            every ``padding_mode``; see :func:`torch_convarith.functional.conv_transpose2d`.

    >>> layer = ConvTranspose2dExplicit(8, 3, kernel_size=4, stride=2, padding=1, method="zero_insert")
    >>> layer(torch.zeros(1, 8, 5, 5)).shape, layer.geometry(5).transposed()[0].stretched
    (torch.Size([1, 3, 10, 10]), 9)
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3dExplicit(_ConvTransposeExplicit, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d as x = C^T y; see :class:`ConvTranspose2dExplicit`."""

    _function = staticmethod(functional.conv_transpose3d)


# Lazy layers: in_channels come from the first input, which turns the layer into its plain class.


class LazyConv1dExplicit(_ConvExplicit, nn.LazyConv1d):  # type: ignore[misc]
    """torch.nn.LazyConv1d that becomes a :class:`Conv1dExplicit`."""

    _function = staticmethod(functional.conv1d)
    cls_to_become = Conv1dExplicit


class LazyConv2dExplicit(_ConvExplicit, nn.LazyConv2d):  # type: ignore[misc]
    """torch.nn.LazyConv2d that becomes a :class:`Conv2dExplicit`.

    >>> layer = LazyConv2dExplicit(6, kernel_size=5)
    >>> _ = layer(torch.zeros(1, 3, 8, 8))
    >>> layer
    Conv2dExplicit(3, 6, kernel_size=(5, 5), stride=(1, 1))
    """

    _function = staticmethod(functional.conv2d)
    cls_to_become = Conv2dExplicit


class LazyConv3dExplicit(_ConvExplicit, nn.LazyConv3d):  # type: ignore[misc]
    """torch.nn.LazyConv3d that becomes a :class:`Conv3dExplicit`."""

    _function = staticmethod(functional.conv3d)
    cls_to_become = Conv3dExplicit


class LazyConvTranspose1dExplicit(_ConvTransposeExplicit, nn.LazyConvTranspose1d):  # type: ignore[misc]
    """torch.nn.LazyConvTranspose1d that becomes a :class:`ConvTranspose1dExplicit`."""

    _function = staticmethod(functional.conv_transpose1d)
    cls_to_become = ConvTranspose1dExplicit


class LazyConvTranspose2dExplicit(_ConvTransposeExplicit, nn.LazyConvTranspose2d):  # type: ignore[misc]
    """torch.nn.LazyConvTranspose2d that becomes a :class:`ConvTranspose2dExplicit`."""

    _function = staticmethod(functional.conv_transpose2d)
    cls_to_become = ConvTranspose2dExplicit


class LazyConvTranspose3dExplicit(_ConvTransposeExplicit, nn.LazyConvTranspose3d):  # type: ignore[misc]
    """torch.nn.LazyConvTranspose3d that becomes a :class:`ConvTranspose3dExplicit`."""

    _function = staticmethod(functional.conv_transpose3d)
    cls_to_become = ConvTranspose3dExplicit
