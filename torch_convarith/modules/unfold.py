"""torch.nn's Unfold and Fold on the explicit operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..geometry import Geometry
from ..window_matrix import WindowMatrix, unfold_matrix


def _geometry(layer: Any, size: Any) -> Geometry:
    """Windows over ``size``: the form with most entries says how many axes there are, else two."""
    sizes = tuple(size) if isinstance(size, Iterable) else (size,)
    kernel = tuple(layer.kernel_size) if isinstance(layer.kernel_size, Sequence) else (layer.kernel_size,)
    axes = len(kernel) if isinstance(layer.kernel_size, Sequence) else max(2, len(sizes))
    if isinstance(layer, FoldExplicit):
        axes = len(sizes) if isinstance(size, Iterable) else 2
    sizes, kernel = (v * axes if len(v) == 1 else v for v in (sizes, kernel))
    return Geometry.of(sizes, kernel, layer.stride, layer.padding, layer.dilation)


class UnfoldExplicit(nn.Unfold):
    """torch.nn.Unfold: the pattern itself.

    Args are torch.nn.Unfold's; ``kernel_size`` may have 1 to 3 entries, one per axis, and ``padding`` may have
    ``(lo, hi)`` per axis.

    >>> layer = UnfoldExplicit((3,), padding=((1, 0),))
    >>> layer(torch.zeros(2, 4, 8)).shape, layer.matrix((4,)).shape
    (torch.Size([2, 12, 7]), (9, 4))
    """

    def forward(self, input: Tensor) -> Tensor:
        """What each output sees through each tap, (N, C * taps, outputs)."""
        return functional.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def geometry(self, input_size: int | Iterable[int]) -> Geometry:
        """The layer's :class:`~torch_convarith.Geometry` on an input of these spatial sizes."""
        return _geometry(self, input_size)

    def matrix(
        self, input_size: int | Iterable[int], channels: int = 1, dtype: torch.dtype | None = None
    ) -> WindowMatrix:
        """The 0/1 matrix of the layer on an input of these spatial sizes."""
        return unfold_matrix(self.geometry(input_size), channels, dtype)


class FoldExplicit(nn.Fold):
    """torch.nn.Fold: the transpose of unfolding.

    Args are torch.nn.Fold's; ``output_size`` may have 1 to 3 entries, one per axis, ``padding`` may have ``(lo, hi)``
    per axis, and:
        average: whether to divide by the number of windows that see an element.

    >>> layer = FoldExplicit((3, 3), 2, average=True)
    >>> layer(torch.ones(1, 4, 4))[0, 0].tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    average = False

    def __init__(self, *args: Any, average: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.average = average

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *output_size)."""
        return functional.fold(
            input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride, average=self.average
        )

    def extra_repr(self) -> str:
        """torch.nn.Fold's, and ``average``."""
        text: str = super().extra_repr()
        return f"{text}, average=True" if self.average else text

    def geometry(self) -> Geometry:
        """The :class:`~torch_convarith.Geometry` of the unfolding that this layer transposes."""
        return _geometry(self, self.output_size)

    def matrix(self, channels: int = 1, dtype: torch.dtype | None = None) -> WindowMatrix:
        """The transpose of the unfolding's matrix; ``average`` is not part of it."""
        return unfold_matrix(self.geometry(), channels, dtype).T
