"""Intervals, paired tests and corrections; everything that scipy has is scipy's.

Own code, as scipy has no cluster bootstrap, no Wilson interval of an effective (fractional) sample size, no interval of a paired
difference (Tango) and no Holm correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

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
    """Expanded percentile bootstrap interval of the mean of values [Q, ...], whole groups [Q] drawn with replacement.

    Drawing groups keeps questions on one picture together, so that they do not count as independent (cluster bootstrap;
    Davison & Hinkley 1997, section 3.8). A plain percentile interval of few groups is too narrow, so the quantiles are
    taken further out, as far as Student's t is wider than the bootstrap's normal (Hesterberg 2015, The American
    Statistician 69:371). nan of a single group, which tells nothing of others.
    """
    sums, counts = _cluster_sums(np.asarray(values, float), groups)
    if len(counts) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    draws = _draws(len(counts), resamples, seed)
    means = (draws @ sums.reshape(len(counts), -1)) / (draws @ counts)[:, None]
    low, high = _quantiles(means, len(counts), level)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _draws(G: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of G groups is drawn [resamples, G]."""
    return np.random.default_rng(seed).multinomial(G, np.full(G, 1 / G), resamples).astype(float)


def _quantiles(draws: np.ndarray, G: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    tail = stats.norm.cdf(-np.sqrt(G / (G - 1)) * stats.t.ppf((1 + level) / 2, G - 1))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def share_interval(
    part: np.ndarray, whole: np.ndarray, groups: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """mean(part) / mean(whole) of paired values [Q], and its bootstrap interval, groups drawn as in bootstrap_interval.

    Where the interval of the whole holds 0 there is nothing to have a share of: nan, nan, nan.
    """
    low, _ = bootstrap_interval(whole, groups, level, resamples, seed)
    if not low > 0:
        return float("nan"), float("nan"), float("nan")
    parts, wholes = _cluster_sums(np.asarray(part, float), groups)[0], _cluster_sums(np.asarray(whole, float), groups)[0]
    draws = _draws(len(wholes), resamples, seed)
    totals = draws @ wholes
    # A draw without a gain has no share; as the whole's own interval is above 0, they are too few to reach the ends.
    shares = np.divide(draws @ parts, totals, out=np.full_like(totals, np.inf), where=totals > 0)
    ends = _quantiles(shares, len(wholes), level)
    return float(parts.sum() / wholes.sum()), float(ends[0]), float(ends[1])


def accuracy_interval(correct: np.ndarray, groups: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share [Q] of right answers; where questions share pictures, of as many answers as they are worth.

    One picture of several questions tells nothing of others: nan.
    """
    correct = np.asarray(correct, float)
    if len(np.unique(groups)) == 1 < len(correct):
        return float("nan"), float("nan")
    return wilson_interval(float(correct.mean()), _worth(correct, groups, level), level)


def _worth(values: np.ndarray, groups: np.ndarray, level: float) -> float:
    """How many independent answers would vary as much as these [Q] do from picture to picture, and fewer by Student's t for few.

    The effective sample size, with the correction for few pictures, of Korn & Graubard 1998 (Survey Methodology 24:193),
    who put it into Clopper and Pearson's interval. Where pictures do not vary at all each counts once.
    """
    sums, counts = _cluster_sums(values, groups)
    G, n, mean = len(counts), len(values), values.mean()
    if n == G:
        return n
    variance = G / (G - 1) * ((sums - mean * counts) ** 2).sum() / n**2
    if variance < 1e-12:
        return G
    wider = stats.t.ppf((1 + level) / 2, G - 1) / stats.norm.ppf((1 + level) / 2)
    return float(values.var() / variance / wider**2)


def wilson_interval(share: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share among n (Wilson 1927)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    middle, half = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return float(max(0.0, (middle - half) / (1 + z2 / n))), float(min(1.0, (middle + half) / (1 + z2 / n)))


def tango_interval(wins: float, losses: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval of (wins - losses) / n among n pairs of right/wrong answers (Tango 1998, Statistics in Medicine 17:891).

    The score test of a difference, inverted: the paired counterpart of Wilson's interval. It has a width even where no
    answer differs.
    """
    z, found = stats.norm.ppf((1 + level) / 2), (wins - losses) / n

    def score(d: float) -> float:
        # The most likely share of losses if the true difference were d.
        b = (2 * n - wins + losses) * d - wins - losses
        loss = (np.sqrt(max(0.0, b * b + 8 * n * losses * d * (1 - d))) - b) / (4 * n)
        return float(n * (found - d) / np.sqrt(max(n * (2 * loss + d * (1 - d)), 1e-300)))

    edge = 1 - 1e-9
    low = -1.0 if found <= -edge else optimize.brentq(lambda d: score(d) - z, -edge, min(found, edge))
    high = 1.0 if found >= edge else optimize.brentq(lambda d: score(d) + z, max(found, -edge), edge)
    return float(low), float(high)


def difference_interval(delta: np.ndarray, groups: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Tango's interval of the mean of paired differences [Q] of right/wrong answers, each 1, 0 or -1.

    Where questions share pictures, of as many differences as they are worth; nan of one picture of several questions.
    """
    delta = np.asarray(delta, float)
    if len(np.unique(groups)) == 1 < len(delta):
        return float("nan"), float("nan")
    worth = _worth(delta, groups, level)
    wins, losses = ((delta > 0).mean(), (delta < 0).mean())
    return tango_interval(float(wins) * worth, float(losses) * worth, worth, level)


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

    Right/wrong answers have Tango's interval, of as many answers as they are worth where questions share pictures, and, a
    picture each, the exact McNemar test. Other values have a bootstrap, and without a picture each a sign-flip permutation
    test, both over groups. One picture of several questions tells nothing of others: nan.
    """
    delta = np.asarray(a, float) - np.asarray(b, float)
    binary = np.isin(np.concatenate([a, b]), (0, 1)).all()
    ends = difference_interval(delta, groups, level) if binary else bootstrap_interval(delta, groups, level, seed=seed)
    low, high = map(float, ends)
    if binary and len(np.unique(groups)) == len(delta):
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        return Difference(float(delta.mean()), low, high, float(p), "exact McNemar")
    sums = _cluster_sums(delta, groups)[0]
    if not sums.any():
        return Difference(0.0, low, high, 1.0, "sign-flip permutation")
    if len(sums) < 2:
        return Difference(float(delta.mean()), low, high, float("nan"), "none: one picture")
    test = stats.permutation_test(
        (sums,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=np.random.default_rng(seed)
    )
    return Difference(float(delta.mean()), low, high, float(test.pvalue), "sign-flip permutation")


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
