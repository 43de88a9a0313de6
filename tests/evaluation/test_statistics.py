"""Each function against scipy, statsmodels or a count by hand on fixed tables, and the share of intervals that hold the truth."""

from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from scale_interp.core import statistics

REPEATS = 1500
"""Simulated data sets an interval; the share that covers then has a standard error of 0.006."""


def test_holm_is_statsmodels_holm():
    p = np.random.default_rng(0).random((4, 5)) ** 3
    assert np.allclose(statistics.holm(p).ravel(), multipletests(p.ravel(), method="holm")[1])
    with_gap = p.copy()
    with_gap[0, 0] = np.nan
    rest = multipletests(with_gap.ravel()[1:], method="holm")[1]
    assert np.isnan(statistics.holm(with_gap)[0, 0]) and np.allclose(statistics.holm(with_gap).ravel()[1:], rest)


def test_paired_difference_of_answers_is_exact_mcnemar():
    a, b = np.array([1] * 30 + [1] * 12 + [0] * 3 + [0] * 5), np.array([1] * 30 + [0] * 12 + [1] * 3 + [0] * 5)
    found = statistics.paired_difference(a, b, np.arange(50))
    assert found.mean == pytest.approx(9 / 50)
    assert found.test == "exact McNemar"
    assert found.p == pytest.approx(mcnemar([[30, 12], [3, 5]], exact=True).pvalue)
    assert (found.low, found.high) == statistics.tango_interval(12, 3, 50)


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 50), (3, 9, 40), (5, 0, 60), (0, 0, 30), (25, 25, 400), (90, 4, 100)])
def test_tangos_interval_is_where_the_score_test_rejects(wins, losses, n):
    """The score statistic at both ends, its constrained likelihood maximised by scipy in place of the closed form."""

    def score(d):
        def loss(q):
            cells = np.array([q + d, q, 1 - 2 * q - d])
            return -(np.array([wins, losses, n - wins - losses]) * np.log(cells.clip(1e-300))).sum()

        low, high = max(0.0, -d), (1 - d) / 2
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return (wins - losses - n * d) / np.sqrt(n * (2 * q + d - d**2))

    ends = statistics.tango_interval(wins, losses, n)
    assert [score(d) for d in ends] == pytest.approx([stats.norm.ppf(0.975), -stats.norm.ppf(0.975)], abs=1e-3)
    assert statistics.tango_interval(losses, wins, n) == pytest.approx((-ends[1], -ends[0]))


def test_tangos_interval_ends_at_one():
    low, high = statistics.tango_interval(8, 0, 8)
    assert high == 1 and 0 < low < 1
    assert statistics.tango_interval(0, 8, 8) == pytest.approx((-1, -low))


@pytest.mark.parametrize("seed", [0, 1])
def test_sign_flips_are_counted_exactly_in_small_samples(seed):
    rng = np.random.default_rng(seed)
    delta, groups = rng.choice([-0.5, 0.5, 1.0], 16), np.repeat(np.arange(8), 2)
    sums = np.bincount(groups, delta)
    flipped = np.array([np.array(signs) @ sums for signs in product((1, -1), repeat=8)])
    by_hand = 2 * min((flipped >= sums.sum() - 1e-9).mean(), (flipped <= sums.sum() + 1e-9).mean())
    found = statistics.paired_difference(delta, np.zeros(16), groups)
    assert found.test == "sign-flip permutation"
    assert found.p == pytest.approx(min(1, by_hand))


def test_shared_pictures_widen_the_interval():
    delta = np.repeat(np.random.default_rng(1).choice([0.0, 1.0], 40), 10)
    alone = statistics.bootstrap_interval(delta, np.arange(400))
    shared = statistics.bootstrap_interval(delta, np.repeat(np.arange(40), 10))
    assert shared[1] - shared[0] > 2 * (alone[1] - alone[0])


def test_bootstrap_is_scipys_at_the_expanded_level():
    x, G = np.random.default_rng(2).exponential(size=(20, 3)), 20
    level = 1 - 2 * stats.norm.cdf(-np.sqrt(G / (G - 1)) * stats.t.ppf(0.975, G - 1))
    low, high = statistics.bootstrap_interval(x, np.arange(G), resamples=20000)
    theirs = stats.bootstrap(
        (x,), np.mean, axis=0, method="percentile", confidence_level=level, n_resamples=20000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert level > 0.96
    assert np.allclose([low, high], [theirs.low, theirs.high], atol=0.02)


def test_one_picture_has_no_p_value():
    found = statistics.paired_difference(np.array([0.5, 1.0, 0.0]), np.zeros(3), np.zeros(3, int))
    assert found.mean == 0.5 and np.isnan([found.low, found.high, found.p]).all()


def test_one_picture_has_no_interval():
    assert np.isnan(statistics.bootstrap_interval(np.ones((3, 2)), np.zeros(3, int))).all()
    assert np.isnan(statistics.accuracy_interval(np.array([1, 0, 1]), np.zeros(3, int))).all()


def test_accuracy_interval_is_wilson():
    right = np.array([1] * 47 + [0] * 3)
    assert statistics.accuracy_interval(right, np.arange(50)) == pytest.approx(proportion_confint(47, 50, method="wilson"))


def test_shared_pictures_are_worth_fewer_answers():
    """Pictures of which each is all right or all wrong are worth one answer each, less what few pictures cost by Student's t."""
    picture = np.array([1] * 30 + [0] * 10)
    found = statistics.accuracy_interval(np.repeat(picture, 5), np.repeat(np.arange(40), 5))
    worth = 39 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    assert found == pytest.approx(proportion_confint(0.75 * worth, worth, method="wilson"))


def test_mean_p_values():
    x = np.random.default_rng(4).normal(0.2, 1, (50, 2, 3))
    assert np.allclose(statistics.mean_p_values(x, np.arange(50)), stats.ttest_1samp(x, 0).pvalue)
    by_picture = x.reshape(25, 2, 2, 3).mean(1)
    assert np.allclose(statistics.mean_p_values(x, np.repeat(np.arange(25), 2)), stats.ttest_1samp(by_picture, 0).pvalue)
    x[:, 0, 0], x[:, 0, 1] = 0.0, 1.0
    p = statistics.mean_p_values(x, np.arange(50))
    assert p[0, 0] == 1 and p[0, 1] == 0
    assert np.isnan(statistics.mean_p_values(x[:1], np.arange(1))).all()


def test_identical_answers_have_no_difference():
    right = np.array([1, 0, 1, 1])
    alone, shared = (statistics.paired_difference(right, right, groups) for groups in (np.arange(4), np.array([0, 0, 1, 1])))
    assert (alone.mean, alone.p) == (shared.mean, shared.p) == (0, 1)
    for found in (alone, shared):
        assert found.low == pytest.approx(-found.high) and found.low < 0, "few answers do not prove that no other would differ"
    assert shared.high > alone.high, "two pictures tell less than four"


def test_gini():
    assert statistics.gini(np.ones(10)) == pytest.approx(0)
    assert statistics.gini(np.eye(10)[0]) == pytest.approx(0.9)
    assert statistics.gini(np.zeros(4)) == 0


def test_share_is_a_ratio_of_means():
    whole = np.array([1.0] * 12 + [0.0] * 20)
    part = whole * 0.5
    share, low, high = statistics.share_interval(part, whole, np.arange(32))
    assert (share, low, high) == pytest.approx((0.5, 0.5, 0.5)), "half of every gain is half of every draw's gain"
    assert np.isnan(statistics.share_interval(part, np.tile([1.0, -1.0], 16), np.arange(32))).all(), "no gain, no share"


def cover(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize(("n", "share"), [(50, 0.25), (50, 0.75), (100, 0.5), (100, 0.9), (200, 0.75), (400, 0.55), (400, 0.98)])
def test_wilson_covers(n, share):
    right = np.random.default_rng(n).binomial(n, share, REPEATS)
    ends = np.array([statistics.wilson_interval(k / n, n) for k in range(n + 1)])[right]
    assert 0.93 <= cover(*ends.T, share) <= 0.97


@pytest.mark.parametrize("pictures", [20, 30, 60])
@pytest.mark.parametrize("shape", [(4, 2), (8, 1)])
def test_accuracy_on_shared_pictures_covers(pictures, shape):
    rng = np.random.default_rng(pictures)
    groups = np.repeat(np.arange(pictures), rng.integers(1, 8, pictures))
    share = rng.beta(*shape, (REPEATS, pictures))
    right = (rng.random((REPEATS, len(groups))) < share[:, groups]).astype(float)
    ends = np.array([statistics.accuracy_interval(row, groups) for row in right])
    assert 0.93 <= cover(*ends.T, shape[0] / sum(shape)) <= 0.97


@pytest.mark.parametrize(
    ("n", "wins", "losses"), [(50, 0.2, 0.05), (100, 0.06, 0.04), (200, 0.25, 0.03), (400, 0.02, 0.01), (400, 0.1, 0.1)]
)
def test_paired_answers_cover(n, wins, losses):
    counts = np.random.default_rng(n).multinomial(n, [wins, losses, 1 - wins - losses], REPEATS)
    ends = {(w, lost): statistics.tango_interval(w, lost, n) for w, lost in {(int(w), int(lost)) for w, lost, _ in counts}}
    low, high = np.array([ends[int(w), int(lost)] for w, lost, _ in counts]).T
    assert 0.93 <= cover(low, high, wins - losses) <= 0.97


def differences(pictures, wins, losses, repeats, rng):
    """Differences of answers [Q, repeats], two to six to a picture: the fitted model wins in some pictures more than in others."""
    groups = np.repeat(np.arange(pictures), rng.integers(2, 7, pictures))
    gains = rng.beta(2, 2 * (1 - wins) / wins, (pictures, repeats))
    chance = rng.random((len(groups), repeats))
    return (chance < gains[groups]).astype(float) - (chance > 1 - losses), groups


@pytest.mark.parametrize("pictures", [20, 30, 60])
@pytest.mark.parametrize(("wins", "losses"), [(0.2, 0.05), (0.05, 0.03)])
def test_paired_answers_on_shared_pictures_cover(pictures, wins, losses):
    delta, groups = differences(pictures, wins, losses, REPEATS, np.random.default_rng(pictures + 1))
    low, high = np.array([statistics.difference_interval(column, groups) for column in delta.T]).T
    assert 0.93 <= cover(low, high, wins - losses) <= 0.97


@pytest.mark.parametrize("pictures", [30, 60, 120])
def test_bootstrap_of_shared_pictures_covers(pictures):
    delta, groups = differences(pictures, 0.25, 0.05, REPEATS, np.random.default_rng(pictures + 1))
    assert 0.93 <= cover(*statistics.bootstrap_interval(delta, groups), 0.25 - 0.05) <= 0.97


@pytest.mark.parametrize("n", [20, 30, 60, 120])
def test_bootstrap_of_effects_covers(n):
    """Effects of a head on logits: a number a question, here normal."""
    effects = np.random.default_rng(n).normal(0.3, 1.0, (n, REPEATS))
    assert 0.93 <= cover(*statistics.bootstrap_interval(effects, np.arange(n)), 0.3) <= 0.97


def test_share_covers():
    """ScAle's gain as a share of LoRA's, on 200 questions."""
    truth, inside, repeats = (0.75 * 0.25 + 0.25 * 0.05) / 0.25, 0, 120
    for i in range(repeats):
        rng = np.random.default_rng(i)
        lora = rng.choice([1.0, 0.0, -1.0], 200, p=[0.27, 0.71, 0.02])
        scale = np.where(rng.random(200) < 0.75, lora, rng.choice([1.0, 0.0, -1.0], 200, p=[0.06, 0.93, 0.01]))
        low, high = statistics.share_interval(scale, lora, np.arange(200), resamples=400)[1:]
        inside += low <= truth <= high
    assert 0.9 <= inside / repeats <= 0.99
