"""Intervals, paired tests and corrections; everything that scipy has is scipy's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000


def cluster_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of each group: values [Q, ...] -> [G, ...]."""
    sums, counts = _cluster_sums(values, groups)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 1))


def _cluster_sums(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((groups.max() + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums, np.bincount(groups).astype(float)


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean of values [Q, ...], whole groups [Q] drawn with replacement.

    Drawing groups keeps questions on one picture together, so that they do not count as independent
    (cluster bootstrap; Davison & Hinkley 1997, section 3.8).
    """
    sums, counts = _cluster_sums(np.asarray(values, float), groups)
    G = len(counts)
    draws = np.random.default_rng(seed).multinomial(G, np.full(G, 1 / G), resamples).astype(float)
    means = (draws @ sums.reshape(G, -1)) / (draws @ counts)[:, None]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def accuracy_interval(correct: np.ndarray, groups: np.ndarray, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Interval of a share [Q] of right answers: Wilson's where every question has a picture of its own, else the cluster bootstrap.

    Where all pictures have one share a bootstrap has no width: then Wilson's, each picture counted once. One picture of
    several questions tells nothing of others: nan.
    """
    correct = np.asarray(correct, float)
    count = len(np.unique(groups))
    if count == 1 < len(correct):
        return float("nan"), float("nan")
    if count == len(correct) or np.ptp(cluster_means(correct, groups)) < 1e-12:
        return wilson_interval(float(correct.mean()), count, level)
    low, high = bootstrap_interval(correct, groups, level, seed=seed)
    return float(low), float(high)


def wilson_interval(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share among n (Wilson 1927)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    middle, half = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return float(max(0.0, (middle - half) / (1 + z2 / n))), float(min(1.0, (middle + half) / (1 + z2 / n)))


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, its interval and its two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float
    test: str

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.2g} ({self.test})"


def paired_difference(a: np.ndarray, b: np.ndarray, groups: np.ndarray, level: float = LEVEL, seed: int = 0) -> Difference:
    """a - b on the same questions [Q].

    Right/wrong answers, a picture each: exact McNemar. Otherwise a sign-flip permutation test over groups.
    """
    delta = np.asarray(a, float) - np.asarray(b, float)
    low, high = bootstrap_interval(delta, groups, level, seed=seed)
    binary = np.isin(np.concatenate([a, b]), (0, 1)).all()
    if binary and len(np.unique(groups)) == len(delta):
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        return Difference(float(delta.mean()), float(low), float(high), float(p), "exact McNemar")
    sums = _cluster_sums(delta, groups)[0]
    if not sums.any():
        return Difference(0.0, float(low), float(high), 1.0, "sign-flip permutation")
    test = stats.permutation_test(
        (sums,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=np.random.default_rng(seed)
    )
    return Difference(float(delta.mean()), float(low), float(high), float(test.pvalue), "sign-flip permutation")


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down corrected p-values (Holm 1979), in the shape of p; nan stays nan and is not counted."""
    flat = np.asarray(p, float).ravel()
    out = np.full_like(flat, np.nan)
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(1, np.maximum.accumulate(flat[order] * factors))
    return out.reshape(np.shape(p))


def mean_p_values(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Two-sided p-value that the mean of values [Q, ...] is 0: a t-test over the groups' means, nan below two groups."""
    means = cluster_means(np.asarray(values, float), groups)
    if len(means) < 2:
        return np.full(values.shape[1:], np.nan)
    constant = np.ptp(means, axis=0) == 0
    spread = np.where(constant, np.arange(len(means)).reshape(-1, *[1] * (means.ndim - 1)), means)
    p = stats.ttest_1samp(spread, 0.0, axis=0).pvalue
    return np.where(constant, np.where(means[0] == 0, 1.0, 0.0), p)


def gini(values: np.ndarray) -> float:
    """Gini coefficient of |values|: 0 where all are equal, near 1 where one holds everything."""
    x = np.sort(np.abs(np.asarray(values, float).ravel()))
    if x.sum() == 0:
        return 0.0
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))
