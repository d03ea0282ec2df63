"""torch.nn's convolutions on the explicit operators.

Each class is a subclass of its torch.nn counterpart: the constructor, parameters, initialisation, state_dict, padding
modes and ``output_size=`` are torch's own, and code that asks ``isinstance(layer, nn.Conv2d)`` goes on working. New are
``method=``, ``geometry()`` and ``matrix()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..functional.conv import CONV_METHODS, CONV_TRANSPOSE_METHODS, transposed_geometry
from ..geometry import Geometry
from ..matrix import ConvMatrix, conv_matrix

Size = int | Iterable[int]


class _Explicit(nn.modules.conv._ConvNd):
    """What all six classes add to torch.nn's."""

    _function: ClassVar[Callable[..., Tensor]]
    _methods: ClassVar[tuple[str, ...]]
    method = "pattern"  # of layers that were pickled, or made of a torch.nn layer, without one

    def __init__(self, *args: Any, method: str = "pattern", **kwargs: Any) -> None:
        if method not in self._methods:
            raise ValueError(f"method must be one of {', '.join(self._methods)}, not {method!r}")
        super().__init__(*args, **kwargs)
        self.method = method

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # help() and editors see torch.nn's arguments and ours, not (*args, **kwargs).
        super().__init_subclass__(**kwargs)
        torch_layer = next((base for base in cls.__bases__ if not issubclass(base, _Explicit)), None)
        if torch_layer is not None:
            theirs = inspect.signature(torch_layer)
            ours = inspect.Parameter("method", inspect.Parameter.KEYWORD_ONLY, default="pattern", annotation="str")
            cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), ours])  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text if self.method == "pattern" else f"{text}, method={self.method}"

    def _spatial(self, input_size: Size) -> tuple[int, ...]:
        axes = len(self.kernel_size)
        return tuple(input_size) if isinstance(input_size, Iterable) else (input_size,) * axes


class _ConvExplicit(_Explicit):
    _methods = CONV_METHODS

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups, method=self.method)

    def geometry(self, input_size: Size) -> Geometry:
        """The layer's :class:`~torch_convarith.Geometry` on an input of these spatial sizes."""
        return Geometry.of(self._spatial(input_size), self.kernel_size, self.stride, self.padding, self.dilation)

    def matrix(self, input_size: Size) -> ConvMatrix:
        """The layer's matrix C on an input of these spatial sizes: ``layer(x).flatten() == C @ x.flatten()`` + bias."""
        return conv_matrix(
            self.weight,
            self._spatial(input_size),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )


class _ConvTransposeExplicit(_Explicit):
    _methods = CONV_TRANSPOSE_METHODS

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer; ``output_size`` chooses ``output_padding``, with or without N and C."""
        output_padding = self._output_padding_for(input, output_size)
        return self._function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
            method=self.method,
        )

    def _output_padding_for(self, input: Tensor, output_size: Any) -> list[int]:
        return self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )

    def geometry(self, input_size: Size, output_size: Any = None) -> Geometry:
        """The :class:`~torch_convarith.Geometry` of the convolution that this layer transposes.

        ``input_size`` is the layer's, which is that convolution's output; ``.transposed()`` of the answer gives the
        equivalent direct convolution.
        """
        size = self._spatial(input_size)
        if output_size is None:
            output_padding: Any = self.output_padding
        else:
            output_padding = self._output_padding_for(torch.empty((1, 1, *size), device="meta"), output_size)
        return transposed_geometry(size, self.kernel_size, self.stride, self.padding, output_padding, self.dilation)

    def matrix(self, input_size: Size, output_size: Any = None) -> ConvMatrix:
        """The layer's matrix C^T on an input of these spatial sizes."""
        return ConvMatrix(self.weight, self.geometry(input_size, output_size), self.groups).T


class Conv1dExplicit(_ConvExplicit, nn.Conv1d):
    """torch.nn.Conv1d as y = C x; see :class:`Conv2dExplicit`."""

    _function = staticmethod(functional.conv1d)


class Conv2dExplicit(_ConvExplicit, nn.Conv2d):
    """torch.nn.Conv2d as y = C x, C being the guide's sparse matrix.

    Args are torch.nn.Conv2d's, and:
        method: ``"pattern"`` multiplies with C in compressed form, its pattern and the weights; ``"matrix"``
            assembles C explicitly at every call.

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
        method: ``"pattern"`` multiplies with C^T in compressed form; ``"zero_insert"`` convolves the stretched input
            with the flipped kernel (relationships 8 to 14); ``"matrix"`` assembles C^T explicitly at every call.

    >>> layer = ConvTranspose2dExplicit(8, 3, kernel_size=4, stride=2, padding=1, method="zero_insert")
    >>> layer(torch.zeros(1, 8, 5, 5)).shape, layer.geometry(5).transposed()[0].stretched
    (torch.Size([1, 3, 10, 10]), 9)
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3dExplicit(_ConvTransposeExplicit, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d as x = C^T y; see :class:`ConvTranspose2dExplicit`."""

    _function = staticmethod(functional.conv_transpose3d)
