"""How well a number separates right answers from wrong ones: the area under the ROC curve, with interval and p-value."""

from __future__ import annotations

import numpy as np
from scipy import stats

from ...core.statistics import LEVEL, RESAMPLES
from ...errors import DataError


def auroc(
    values: np.ndarray, right: np.ndarray, groups: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The area under the ROC curve: the chance that a right answer has the larger value than a wrong one, ties counting half.

    The interval is a bootstrap over whole groups. p is two-sided for an area of 0.5: the Mann-Whitney test where every question has a group
    of its own, otherwise from the bootstrap's standard error.

    Args:
        values: [Q, ...].
        right: which answers are right [Q].
        groups: the number of each question's image [Q].
        level: the interval's coverage, between 0 and 1.
        resamples: bootstrap draws.
        seed: for the draws.

    Returns:
        The areas, the lower and upper ends of their intervals, and p, [...] each.

    Raises:
        DataError: where all answers are right, or all are wrong.
    """
    right, flat = np.asarray(right, bool), np.asarray(values, float).reshape(len(values), -1)
    if right.all() or not right.any():
        raise DataError(f"all {len(right)} answers are {'right' if right.all() else 'wrong'}: an AUROC needs both; ask other questions")
    groups = np.unique(groups, return_inverse=True)[1]
    G = groups.max() + 1
    draws = np.random.default_rng(seed).multinomial(G, np.full(G, 1 / G), resamples)[:, groups].astype(float)
    one = np.ones((1, len(right)))
    found = np.array([_weighted(column, right, one)[0] for column in flat.T])
    drawn = np.stack([_weighted(column, right, draws) for column in flat.T], 1)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if len(right) == G:
        p = np.array([1.0 if np.ptp(c) == 0 else stats.mannwhitneyu(c[right], c[~right]).pvalue for c in flat.T])
    else:
        spread = np.nanstd(drawn, axis=0)
        p = np.where(spread > 0, 2 * stats.norm.sf(np.abs(found - 0.5) / np.where(spread > 0, spread, 1)), np.where(found == 0.5, 1.0, 0.0))
    return tuple(part.reshape(np.shape(values)[1:]) for part in (found, low, high, p))  # type: ignore[return-value]


def _weighted(value: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of one value [Q] under each row of weights [N, Q]; nan where a row has no right or no wrong answer."""
    level, at = np.unique(value, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(len(level)))
    right_sums, wrong_sums = (np.add.reduceat((weights * side)[:, order], starts, axis=1) for side in (right, ~right))
    below = wrong_sums.cumsum(1) - wrong_sums / 2
    pairs = right_sums.sum(1) * wrong_sums.sum(1)
    return np.divide((right_sums * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
