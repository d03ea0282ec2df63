"""torch.nn's pooling layers on the explicit operators, each a subclass of its counterpart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..functional.pooling import TIES, pooling_geometry
from ..geometry import Geometry
from ..window_matrix import WindowMatrix, average_matrix, selection_matrix

Size = int | Iterable[int]


class _Pool(nn.Module):
    """What all layers add to torch.nn's."""

    _function: ClassVar[Callable[..., Any]]
    _axes: ClassVar[int]

    def _each(self, value: Any) -> tuple[Any, ...]:
        """One entry per axis."""
        if isinstance(value, Sequence):
            return tuple(value) * (self._axes if len(value) == 1 else 1)
        return (value,) * self._axes

    def geometry(self, input_size: Size) -> Geometry:
        """The layer's :class:`~torch_convarith.Geometry` on an input of these spatial sizes.

        Where ``ceil_mode`` adds an incomplete window, padding at the end completes it.
        """
        size = tuple(input_size) if isinstance(input_size, Iterable) else (input_size,) * self._axes
        kernel: Any = self.kernel_size
        stride: Any = self.stride if self.stride is not None else kernel
        padding, dilation = getattr(self, "padding", 0), getattr(self, "dilation", 1)
        return pooling_geometry(size, self._each(kernel), self._each(stride), padding, dilation, bool(self.ceil_mode))


class _MaxPool(_Pool):
    ties = "first"  # of layers that were pickled, or made of a torch.nn layer, without one

    def __init__(self, *args: Any, ties: str = "first", **kwargs: Any) -> None:
        if ties not in TIES:
            raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}")
        super().__init__(*args, **kwargs)
        self.ties = ties

    def forward(self, input: Tensor) -> Any:
        """The maximum of each window; with ``return_indices``, and where it stands."""
        return self._function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
            ties=self.ties,
        )

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text if self.ties == "first" else f"{text}, ties={self.ties}"

    def matrix(self, input: Tensor) -> WindowMatrix:
        """The 0/1 matrix that the layer is at this input, (N, C, *spatial) or (C, *spatial).

        Its product with the input is the output; its transpose takes an output's gradient to the input's.
        """
        kernel, stride, padding, dilation = self.kernel_size, self.stride, self.padding, self.dilation
        indices = self._function(
            input.detach(), kernel, stride, padding, dilation, ceil_mode=self.ceil_mode, return_indices=True
        )[1]
        return selection_matrix(input, indices, self._axes)


class _AvgPool(_Pool):
    dilation: Any = 1
    ceil_mode: Any
    count_include_pad: Any

    def __init__(self, *args: Any, dilation: Any = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dilation = dilation

    def forward(self, input: Tensor) -> Tensor:
        """The mean of each window."""
        divisor = {} if self._axes == 1 else {"divisor_override": self.divisor_override}
        return self._function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            dilation=self.dilation,
            **divisor,
        )

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text if self.dilation == 1 else f"{text}, dilation={self.dilation}"

    def matrix(self, input_size: Size, channels: int = 1, dtype: torch.dtype | None = None) -> WindowMatrix:
        """The layer's matrix on an input of these spatial sizes: one block per channel, all alike."""
        pads: Any = tuple(p if isinstance(p, Sequence) else (p, p) for p in self._each(self.padding))
        divisor = getattr(self, "divisor_override", None)
        return average_matrix(
            self.geometry(input_size), pads, self.ceil_mode, self.count_include_pad, divisor, channels, dtype
        )


class _LPPool(_Pool):
    signed = True
    norm_type: Any

    def __init__(self, *args: Any, signed: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not signed and not self.norm_type >= 1:
            raise ValueError(f"L^p pooling with signed=False needs p >= 1, not {self.norm_type}")
        self.signed = signed

    def forward(self, input: Tensor) -> Tensor:
        """The p-norm of each window."""
        return self._function(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode, signed=self.signed
        )

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        return text if self.signed else f"{text}, signed=False"


class MaxPool1dExplicit(_MaxPool, nn.MaxPool1d):
    """torch.nn.MaxPool1d; see :class:`MaxPool2dExplicit`."""

    _function = staticmethod(functional.max_pool1d)
    _axes = 1


class MaxPool2dExplicit(_MaxPool, nn.MaxPool2d):
    """torch.nn.MaxPool2d as a selection of inputs.

    Args are torch.nn.MaxPool2d's, and:
        ties: where the gradient goes if several inputs are the maximum: ``"first"``, ``"all"`` or ``"split"``.

    >>> layer = MaxPool2dExplicit(3, stride=2)
    >>> layer(torch.zeros(1, 96, 55, 55)).shape  # AlexNet's first pooling
    torch.Size([1, 96, 27, 27])
    >>> layer.matrix(torch.zeros(1, 5, 5))
    WindowMatrix(4 x 25: nnz 4, density 0.04, torch.float32)
    """

    _function = staticmethod(functional.max_pool2d)
    _axes = 2


class MaxPool3dExplicit(_MaxPool, nn.MaxPool3d):
    """torch.nn.MaxPool3d; see :class:`MaxPool2dExplicit`."""

    _function = staticmethod(functional.max_pool3d)
    _axes = 3


class AvgPool1dExplicit(_AvgPool, nn.AvgPool1d):
    """torch.nn.AvgPool1d; see :class:`AvgPool2dExplicit`."""

    _function = staticmethod(functional.avg_pool1d)
    _axes = 1


class AvgPool2dExplicit(_AvgPool, nn.AvgPool2d):
    """torch.nn.AvgPool2d as a convolution with fixed weights.

    Args are torch.nn.AvgPool2d's, and:
        dilation: spacing of the window's taps.

    >>> AvgPool2dExplicit(2).matrix((2, 4)).to_dense().tolist()
    [[0.25, 0.25, 0.0, 0.0, 0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25, 0.0, 0.0, 0.25, 0.25]]
    """

    _function = staticmethod(functional.avg_pool2d)
    _axes = 2


class AvgPool3dExplicit(_AvgPool, nn.AvgPool3d):
    """torch.nn.AvgPool3d; see :class:`AvgPool2dExplicit`."""

    _function = staticmethod(functional.avg_pool3d)
    _axes = 3


class LPPool1dExplicit(_LPPool, nn.LPPool1d):
    """torch.nn.LPPool1d; see :class:`LPPool2dExplicit`."""

    _function = staticmethod(functional.lp_pool1d)
    _axes = 1


class LPPool2dExplicit(_LPPool, nn.LPPool2d):
    """torch.nn.LPPool2d.

    Args are torch.nn.LPPool2d's, and:
        signed: True for torch's reading, False for ``(sum |x|^p)^(1/p)``; see
            :func:`~torch_convarith.functional.lp_pool2d`.

    >>> round(LPPool2dExplicit(3, 2, signed=False)(-torch.ones(1, 1, 2, 2)).item(), 4)
    1.5874
    """

    _function = staticmethod(functional.lp_pool2d)
    _axes = 2


class LPPool3dExplicit(_LPPool, nn.LPPool3d):
    """torch.nn.LPPool3d; see :class:`LPPool2dExplicit`."""

    _function = staticmethod(functional.lp_pool3d)
    _axes = 3
