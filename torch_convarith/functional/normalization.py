"""Local response normalisation with torch.nn.functional's signature."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ops
from ..geometry import GeometryError
from .pooling import full_precision_under_autocast


def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    alpha_per_element: float | None = None,
) -> Tensor:
    """``b = a / (k + alpha/size * sum of a^2 over size neighbouring channels)^beta``, as torch.nn.functional's.

    torch divides alpha by ``size``; the paper does not. AlexNet's constants (k = 2, n = 5, alpha = 1e-4, beta = 0.75)
    are therefore ``size=5, alpha=5e-4, beta=0.75, k=2`` here, or ``alpha_per_element=1e-4``.

    Args:
        input: (N, C, *), at least 3 dimensions; channels are the second.
        size: n, the number of channels that are summed; of an even number one more below than above.
        alpha: as torch has it, divided by ``size``.
        beta: the exponent.
        k: the additive constant.
        alpha_per_element: alpha as Krizhevsky, Sutskever and Hinton (2012) have it: multiplies the sum. In place of
            ``alpha``.

    Returns:
        The input's shape.

    Raises:
        ValueError: fewer than 3 dimensions. GeometryError, which is one: a size that is not positive.

    >>> x = torch.full((1, 5, 1), 100.0)
    >>> local_response_norm(x, 5, alpha_per_element=1e-4, k=2.0)[0, :, 0]
    tensor([29.9070, 26.0847, 23.2368, 26.0847, 29.9070])
    """
    if input.dim() < 3:
        raise GeometryError(f"Expected 3D or higher dimensionality input (got {input.dim()} dimensions)")
    if size < 1:
        raise GeometryError(f"a normalisation window needs at least 1 channel, got size {size}")
    if input.dim() > 3:  # where torch's formula pools in three dimensions
        input = full_precision_under_autocast(input)
    per_element = alpha / size if alpha_per_element is None else alpha_per_element
    if input.is_floating_point():
        return _ops.lrn(input, 1, size, float(per_element), float(beta), float(k))
    # torch's formula as it stands: its mean of integers is truncated.
    window = ((size, 1), (1, 1), (size // 2, (size - 1) // 2, 0, 0), (1, 1), False, True, None)
    mean = _ops.avg_pool((input * input).flatten(2), *window).reshape(input.shape)
    return input / torch.pow(mean * (per_element * size) + k, beta)
