"""torch.nn's local response normalisation on the explicit operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional


class LocalResponseNormExplicit(nn.LocalResponseNorm):
    """torch.nn.LocalResponseNorm, which divides ``alpha`` by ``size``.

    Args are torch.nn.LocalResponseNorm's, and:
        alpha_per_element: alpha as the paper has it, not divided; in place of ``alpha``.

    >>> LocalResponseNormExplicit(5, alpha_per_element=1e-4, k=2.0)  # AlexNet's
    LocalResponseNormExplicit(5, alpha=0.0005, beta=0.75, k=2.0)
    """

    def __init__(self, size: int, *args: Any, alpha_per_element: float | None = None, **kwargs: Any) -> None:
        super().__init__(size, *args, **kwargs)
        if alpha_per_element is not None:
            self.alpha = alpha_per_element * size

    def forward(self, input: Tensor) -> Tensor:
        """The input's shape."""
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
