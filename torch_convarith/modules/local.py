"""Locally connected layers: a convolution's pattern, whose weights are not shared between outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..functional.conv import transposed_geometry
from ..geometry import Geometry, GeometryError
from ..window_matrix import WindowMatrix, local_matrix

Size = int | Iterable[int]


class _Local(nn.Module):
    """What both directions share. ``_windows`` is the geometry of the convolution, whichever side is the input."""

    _axes: ClassVar[int]
    _conv: ClassVar[type[nn.Module]]

    weight: nn.Parameter
    bias: nn.Parameter | None

    def _each(self, value: Any, what: str) -> tuple[Any, ...]:
        values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,) * self._axes
        if len(values) != self._axes:
            raise GeometryError(f"{what} {values} has {len(values)} entries for {self._axes} axes")
        return values

    def _make_parameters(
        self, shape: Sequence[int], bias_shape: Sequence[int], bias: bool, device: Any, dtype: Any
    ) -> None:
        self.weight = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(*bias_shape, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn's convolutions: uniform within 1 / sqrt(fan in)."""
        fan_in = math.prod(self.weight.shape[1 : 2 + self._axes])
        bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def _share(self, weight: Tensor, bias: Tensor | None) -> None:
        """Starts as a convolution: its kernel at every output, its bias everywhere."""
        ones = (1,) * self._axes
        with torch.no_grad():
            self.weight.copy_(weight.reshape(*weight.shape, *ones).expand_as(self.weight))
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias.reshape(-1, *ones).expand_as(self.bias))

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}"
        shown = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}
        for name, usual in shown.items():
            value = getattr(self, name)
            if value != (usual * self._axes if isinstance(usual, tuple) else usual):
                text += f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"

    @classmethod
    def _check_conv(cls, conv: Any) -> None:
        if not isinstance(conv, cls._conv):
            raise TypeError(f"{cls.__name__}.from_conv takes a {cls._conv.__name__}, not {type(conv).__name__}")

    def _check_size(self, input_size: Size | None) -> None:
        if input_size is not None and self._each(input_size, "input size") != self.input_size:
            raise GeometryError(
                f"a locally connected layer is made for one input size, {self.input_size}; not {input_size}"
            )


class _LocallyConnected(_Local):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Any = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise GeometryError(f"groups {groups} must divide in_channels {in_channels}, out_channels {out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.input_size = self._each(input_size, "input size")
        self.kernel_size = self._each(kernel_size, "kernel_size")
        self.stride, self.dilation = self._each(stride, "stride"), self._each(dilation, "dilation")
        self._windows = Geometry.of(self.input_size, self.kernel_size, self.stride, padding, self.dilation)
        self.padding = padding if isinstance(padding, str) else self._each(padding, "padding")
        self.padding_mode = padding_mode
        output = self._windows.output_size
        shape = (out_channels, in_channels // groups, *self.kernel_size, *output)
        self._make_parameters(shape, (out_channels, *output), bias, device, dtype)

    @classmethod
    def from_conv(cls, conv: Any, input_size: Size) -> Any:
        """A layer that starts as the function that ``conv`` is on inputs of these spatial sizes."""
        cls._check_conv(conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            input_size,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
        )
        layer._share(conv.weight, conv.bias)
        return layer

    def _apply_weight(self, input: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self._windows.padding
        if self.padding_mode != "zeros":
            pads = [side for pair in reversed(padding) for side in pair]
            input, padding = nn.functional.pad(input, pads, mode=self.padding_mode), 0
        return functional.locally_connected(input, self.weight, bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, *output) from (N, C, *input_size)."""
        return self._apply_weight(input, self.bias)

    def geometry(self, input_size: Size | None = None) -> Geometry:
        """The layer's :class:`~torch_convarith.Geometry`."""
        self._check_size(input_size)
        return self._windows

    def matrix(self, input_size: Size | None = None) -> WindowMatrix:
        """The layer's matrix: ``layer(x).flatten() == M @ x.flatten()`` + bias."""
        geometry = self.geometry(input_size)

        def transpose(y: Tensor) -> Tensor:
            if self.padding_mode != "zeros":
                x = torch.zeros(y.shape[0], self.in_channels, *self.input_size, dtype=y.dtype, device=y.device)
                pull: Any = torch.func.vjp(lambda v: self._apply_weight(v, None), x)[1]
                return pull(y)[0]
            return functional.locally_connected_transpose(
                y, self.weight, self.input_size, None, self.stride, geometry.padding, self.dilation, self.groups
            )

        return local_matrix(
            self.weight, geometry, self.groups, self.padding_mode, lambda x: self._apply_weight(x, None), transpose
        )


class _LocallyConnectedTranspose(_Local):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise GeometryError(f"groups {groups} must divide in_channels {in_channels}, out_channels {out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.input_size = self._each(input_size, "input size")
        self.kernel_size = self._each(kernel_size, "kernel_size")
        self.stride, self.dilation = self._each(stride, "stride"), self._each(dilation, "dilation")
        self.padding = self._each(padding, "padding")
        self.output_padding = self._each(output_padding, "output_padding")
        self._windows = transposed_geometry(
            self.input_size, self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation
        )
        shape = (in_channels, out_channels // groups, *self.kernel_size, *self.input_size)
        self._make_parameters(shape, (out_channels, *self._windows.input_size), bias, device, dtype)

    @classmethod
    def from_conv(cls, conv: Any, input_size: Size) -> Any:
        """A layer that starts as the function that ``conv`` is on inputs of these spatial sizes."""
        cls._check_conv(conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            input_size,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.output_padding,
            conv.groups,
            conv.bias is not None,
            conv.dilation,
            conv.weight.device,
            conv.weight.dtype,
        )
        layer._share(conv.weight, conv.bias)
        return layer

    def _operands(self) -> tuple[Any, ...]:
        return self.stride, self._windows.padding, self.dilation, self.groups

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *output) from (N, K, *input_size)."""
        size = self._windows.input_size
        return functional.locally_connected_transpose(input, self.weight, size, self.bias, *self._operands())

    def geometry(self, input_size: Size | None = None) -> Geometry:
        """The :class:`~torch_convarith.Geometry` of the convolution whose pattern this layer transposes."""
        self._check_size(input_size)
        return self._windows

    def matrix(self, input_size: Size | None = None) -> WindowMatrix:
        """The layer's matrix: ``layer(x).flatten() == M @ x.flatten()`` + bias."""
        geometry = self.geometry(input_size)
        return local_matrix(
            self.weight,
            geometry,
            self.groups,
            "zeros",
            lambda x: functional.locally_connected(x, self.weight, None, *self._operands()),
            lambda y: functional.locally_connected_transpose(
                y, self.weight, geometry.input_size, None, *self._operands()
            ),
        ).T


class LocallyConnected1d(_LocallyConnected):
    """A 1-D convolution with a kernel of its own at every output; see :class:`LocallyConnected2d`."""

    _axes, _conv = 1, nn.Conv1d


class LocallyConnected2d(_LocallyConnected):
    """A 2-D convolution with a kernel of its own at every output: the pattern with free values.

    Args are torch.nn.Conv2d's, and:
        input_size: spatial sizes of the input, which say how many kernels there are.

    Attributes:
        weight: (K, C/groups, *kernel, *output).
        bias: (K, *output), or None.

    >>> conv = nn.Conv2d(3, 8, kernel_size=3, padding=1)
    >>> layer = LocallyConnected2d.from_conv(conv, (6, 6))
    >>> x = torch.randn(2, 3, 6, 6)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), layer.matrix().shape
    (True, (288, 108))
    """

    _axes, _conv = 2, nn.Conv2d


class LocallyConnected3d(_LocallyConnected):
    """A 3-D convolution with a kernel of its own at every output; see :class:`LocallyConnected2d`."""

    _axes, _conv = 3, nn.Conv3d


class LocallyConnectedTranspose1d(_LocallyConnectedTranspose):
    """The transpose of a 1-D locally connected layer; see :class:`LocallyConnectedTranspose2d`."""

    _axes, _conv = 1, nn.ConvTranspose1d


class LocallyConnectedTranspose2d(_LocallyConnectedTranspose):
    """The transpose of a 2-D locally connected layer: a transposed convolution with a kernel of its own at every input.

    Args are torch.nn.ConvTranspose2d's, and:
        input_size: spatial sizes of the input, which say how many kernels there are.

    Attributes:
        weight: (in_channels, out_channels/groups, *kernel, *input_size).
        bias: (out_channels, *output), or None.

    >>> layer = LocallyConnectedTranspose2d(8, 3, input_size=5, kernel_size=4, stride=2, padding=1)
    >>> layer(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 3, 10, 10])
    """

    _axes, _conv = 2, nn.ConvTranspose2d


class LocallyConnectedTranspose3d(_LocallyConnectedTranspose):
    """The transpose of a 3-D locally connected layer; see :class:`LocallyConnectedTranspose2d`."""

    _axes, _conv = 3, nn.ConvTranspose3d
