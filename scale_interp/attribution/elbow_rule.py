"""Where sorted values bend: how many of them stand above the rest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import checked
from ..errors import DataError


@checked
def elbow(values: Float[Tensor, " *values"]) -> int:
    """How many of the values come before the bend of their descending curve: the point farthest from its chord.

    The chord runs from the largest value to the smallest (the elbow of arXiv 2503.06287 and 2512.10978; Satopaa et al. 2011).
    A bend below the chord is the first of the low values and is not counted; a bend above it is the last of the high values and is.
    Values on a straight line have no bend, and all are counted.

    Args:
        values: numbers in any order and shape.

    Returns:
        How many of the largest values to keep.

    Raises:
        DataError: for no values, or values that are not finite.

    >>> elbow(torch.tensor([1.0, 9.0, 1.1, 8.0, 1.2, 0.9]))
    2
    """
    y = values.flatten().double().sort(descending=True).values
    if not len(y) or not torch.isfinite(y).all():
        raise DataError(
            f"the elbow of {len(y)} values, {int((~torch.isfinite(y)).sum())} of them not finite: give at least one, all finite"
        )
    chord = torch.lerp(y[0], y[-1], torch.linspace(0, 1, len(y), dtype=y.dtype, device=y.device))
    away = y - chord
    at = int(away.abs().argmax())
    if away[at].abs() <= 1e-9 * (y[0] - y[-1]):
        return len(y)
    return at + 1 if away[at] > 0 else at
