"""Intervals, paired tests and corrections. Everything that scipy offers is taken from scipy.

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
    """The mean of each group.

    Args:
        values: [Q, ...].
        groups: The group of each value, [Q].

    Returns:
        [G, ...], one row per group.
    """
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
    """The expanded percentile bootstrap interval of a mean, with whole groups drawn with replacement.

    Drawing groups keeps questions about the same image together, so that they do not count as independent (cluster bootstrap;
    Davison & Hinkley 1997, section 3.8). With few groups a plain percentile interval is too narrow, so the quantiles are taken
    further out, by as much as Student's t is wider than the normal distribution (Hesterberg 2015, The American Statistician
    69:371).

    Args:
        values: [Q, ...].
        groups: The group of each value, [Q].
        level: The confidence level.
        resamples: How many times the groups are drawn.
        seed: Of the draws.

    Returns:
        The lower and upper ends, each [...]; nan for a single group, which says nothing about others.
    """
    sums, counts = _cluster_sums(np.asarray(values, float), groups)
    if len(counts) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    draws = _draws(len(counts), resamples, seed)
    means = (draws @ sums.reshape(len(counts), -1)) / (draws @ counts)[:, None]
    low, high = _quantiles(means, len(counts), level)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _draws(G: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of G groups is drawn, [resamples, G]."""
    return np.random.default_rng(seed).multinomial(G, np.full(G, 1 / G), resamples).astype(float)


def _quantiles(draws: np.ndarray, G: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    tail = stats.norm.cdf(-np.sqrt(G / (G - 1)) * stats.t.ppf((1 + level) / 2, G - 1))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def share_interval(
    part: np.ndarray, whole: np.ndarray, groups: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio mean(part) / mean(whole) of paired values, and its bootstrap interval over groups.

    Args:
        part: [Q].
        whole: [Q].
        groups: The group of each value, [Q].
        level: The confidence level.
        resamples: How many times the groups are drawn.
        seed: Of the draws.

    Returns:
        The ratio and the ends of its interval; nan, nan, nan if the interval of the whole contains 0.
    """
    low, _ = bootstrap_interval(whole, groups, level, resamples, seed)
    if not low > 0:
        return float("nan"), float("nan"), float("nan")
    parts, wholes = _cluster_sums(np.asarray(part, float), groups)[0], _cluster_sums(np.asarray(whole, float), groups)[0]
    draws = _draws(len(wholes), resamples, seed)
    totals = draws @ wholes
    # A draw without a gain has no share. As the interval of the whole is above 0, such draws are too few to reach the ends.
    shares = np.divide(draws @ parts, totals, out=np.full_like(totals, np.inf), where=totals > 0)
    ends = _quantiles(shares, len(wholes), level)
    return float(parts.sum() / wholes.sum()), float(ends[0]), float(ends[1])


def accuracy_interval(correct: np.ndarray, groups: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share of right answers.

    Where questions share images, the interval is that of the effective number of answers.

    Args:
        correct: 1 or 0 per answer, [Q].
        groups: The image of each answer, [Q].
        level: The confidence level.

    Returns:
        The ends; nan if several questions share a single image, which says nothing about others.
    """
    correct = np.asarray(correct, float)
    if len(np.unique(groups)) == 1 < len(correct):
        return float("nan"), float("nan")
    return wilson_interval(float(correct.mean()), _worth(correct, groups, level), level)


def _worth(values: np.ndarray, groups: np.ndarray, level: float) -> float:
    """The effective number of independent answers [Q]: as many as would vary as much as these do between images.

    The effective sample size, with the correction for few images by Student's t, of Korn & Graubard 1998 (Survey Methodology
    24:193), who use it in Clopper and Pearson's interval. Where images do not vary at all, each image counts once.
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
    """Wilson's score interval of a share (Wilson 1927).

    Args:
        share: From 0 to 1.
        n: The number of answers, which may be fractional.
        level: The confidence level.

    Returns:
        The lower and upper ends.
    """
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    middle, half = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return float(max(0.0, (middle - half) / (1 + z2 / n))), float(min(1.0, (middle + half) / (1 + z2 / n)))


def tango_interval(wins: float, losses: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval of a paired difference of shares (Tango 1998, Statistics in Medicine 17:891).

    The score test of a difference, inverted: the paired counterpart of Wilson's interval. It has a width even if no answer
    differs.

    Args:
        wins: How many of the n pairs are right only on the first side.
        losses: How many are right only on the second side.
        n: The number of pairs, which may be fractional.
        level: The confidence level.

    Returns:
        The ends of the interval of (wins - losses) / n.
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
    """Tango's interval of the mean of paired differences of right and wrong answers.

    Where questions share images, the interval is that of the effective number of differences.

    Args:
        delta: 1, 0 or -1 per question, [Q].
        groups: The image of each question, [Q].
        level: The confidence level.

    Returns:
        The ends; nan if several questions share a single image.
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

    def columns(self, name: str) -> dict[str, float]:
        """The difference under this name, its interval and its p-value, as columns of a table."""
        return {name: self.mean, "low": self.low, "high": self.high, "p": self.p}


def paired_difference(a: np.ndarray, b: np.ndarray, groups: np.ndarray, level: float = LEVEL, seed: int = 0) -> Difference:
    """The mean difference a - b on the same questions, with an interval and a test.

    Right and wrong answers get Tango's interval, and the exact McNemar test if each question has its own image. Other values get
    a bootstrap interval over images. All other tests are sign-flip permutation tests over images.

    Args:
        a: [Q].
        b: [Q], on the same questions.
        groups: The image of each question, [Q].
        level: The confidence level.
        seed: Of the bootstrap and the permutations.

    Returns:
        The difference; its interval and p-value are nan if several questions share a single image.
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
        return Difference(float(delta.mean()), low, high, float("nan"), "none: one image")
    test = stats.permutation_test(
        (sums,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, rng=np.random.default_rng(seed)
    )
    return Difference(float(delta.mean()), low, high, float(test.pvalue), "sign-flip permutation")


def unpaired_difference(
    a: np.ndarray, b: np.ndarray, groups_a: np.ndarray, groups_b: np.ndarray, level: float = LEVEL, seed: int = 0
) -> Difference:
    """The difference of means mean(a) - mean(b) of different images, with a bootstrap interval and a permutation test over images.

    Args:
        a: [A].
        b: [B].
        groups_a: The image of each value of a, [A].
        groups_b: The image of each value of b, [B]; none of a's.
        level: The confidence level.
        seed: Of the bootstrap and the permutations.

    Returns:
        The difference; its interval and p-value are nan where a or b has fewer than two images.
    """
    parts = [_cluster_sums(np.asarray(values, float), groups) for values, groups in ((a, groups_a), (b, groups_b))]
    mean = float(np.mean(a) - np.mean(b))
    if min(len(counts) for _, counts in parts) < 2:
        return Difference(mean, float("nan"), float("nan"), float("nan"), "none: one image")
    means = []
    for i, (sums, counts) in enumerate(parts):
        draws = _draws(len(counts), RESAMPLES, seed + i)
        means.append((draws @ sums) / (draws @ counts))
    low, high = _quantiles(means[0] - means[1], min(len(counts) for _, counts in parts), level)
    sums, counts = (np.concatenate(values) for values in zip(*parts, strict=True))

    def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        one, other = first.astype(int), second.astype(int)
        return sums[one].sum(axis) / counts[one].sum(axis) - sums[other].sum(axis) / counts[other].sum(axis)

    first = np.arange(len(parts[0][0]), dtype=float)
    second = np.arange(len(parts[0][0]), len(sums), dtype=float)
    test = stats.permutation_test((first, second), difference, n_resamples=9999, vectorized=True, rng=np.random.default_rng(seed))
    return Difference(mean, float(low), float(high), float(test.pvalue), "permutation of images")


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down corrected p-values (Holm 1979).

    Args:
        p: p-values of any shape; nan is not counted.

    Returns:
        Corrected p-values of the same shape; nan stays nan.
    """
    flat = np.asarray(p, float).ravel()
    out = np.full_like(flat, np.nan)
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(1, np.maximum.accumulate(flat[order] * factors))
    return out.reshape(np.shape(p))


def mean_p_values(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Two-sided p-values of the hypothesis that a mean is 0, by a t-test over the means of groups.

    Args:
        values: [Q, ...].
        groups: The group of each value, [Q].

    Returns:
        [...]; nan with fewer than two groups.
    """
    means = cluster_means(np.asarray(values, float), groups)
    if len(means) < 2:
        return np.full(values.shape[1:], np.nan)
    constant = np.ptp(means, axis=0) == 0
    spread = np.where(constant, np.arange(len(means)).reshape(-1, *[1] * (means.ndim - 1)), means)
    p = stats.ttest_1samp(spread, 0.0, axis=0).pvalue
    return np.where(constant, np.where(means[0] == 0, 1.0, 0.0), p)


def gini(values: np.ndarray) -> float:
    """The Gini coefficient of absolute values: 0 if all are equal, near 1 if one holds everything.

    Args:
        values: Of any shape.

    Returns:
        From 0 to 1.
    """
    x = np.sort(np.abs(np.asarray(values, float).ravel()))
    if x.sum() == 0:
        return 0.0
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))
