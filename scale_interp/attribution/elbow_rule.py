"""Where a sorted row of values bends: how many stand above the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.arguments import checked
from ..errors import DataError


@checked
def elbow(values: Tensor) -> int:
    """How many of the values stand before the bend of their descending curve: the point farthest from its chord.

    The chord runs from the largest value to the smallest (the elbow of arXiv 2503.06287 and 2512.10978; Satopaa et al. 2011).
    A bend below the chord is the first of the low values and is not counted; one above it is the last of the high ones and is.
    Values on a straight line have no bend: all are kept. Raises DataError for no values, or values that are not finite.

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
