import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from scale_interp import statistics


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
    assert found.p == pytest.approx(mcnemar([[30, 12], [3, 5]], exact=True).pvalue)
    assert found.low < found.mean < found.high


def test_shared_pictures_widen_the_interval():
    delta = np.repeat(np.random.default_rng(1).choice([0.0, 1.0], 40), 10)
    alone = statistics.bootstrap_interval(delta, np.arange(400))
    shared = statistics.bootstrap_interval(delta, np.repeat(np.arange(40), 10))
    assert shared[1] - shared[0] > 2 * (alone[1] - alone[0])


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(2).exponential(size=(120, 3))
    low, high = statistics.bootstrap_interval(x, np.arange(120), resamples=9999)
    theirs = stats.bootstrap((x,), np.mean, axis=0, method="percentile", n_resamples=9999).confidence_interval
    assert np.allclose([low, high], [theirs.low, theirs.high], atol=0.02)


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_what_they_say(clustered):
    rng, inside = np.random.default_rng(3), 0
    groups = np.repeat(np.arange(60), 4) if clustered else np.arange(200)
    for i in range(600):
        p = rng.beta(4, 2, groups.max() + 1) if clustered else np.full(200, 2 / 3)
        low, high = statistics.accuracy_interval((rng.random(len(groups)) < p[groups]).astype(int), groups, seed=i)
        inside += low <= 2 / 3 <= high
    assert 0.92 <= inside / 600 <= 0.98


def test_accuracy_interval_is_wilson():
    right = np.array([1] * 47 + [0] * 3)
    assert statistics.accuracy_interval(right, np.arange(50)) == pytest.approx(proportion_confint(47, 50, method="wilson"))


def test_mean_p_values():
    x = np.random.default_rng(4).normal(0.2, 1, (50, 2, 3))
    assert np.allclose(statistics.mean_p_values(x, np.arange(50)), stats.ttest_1samp(x, 0).pvalue)
    x[:, 0, 0], x[:, 0, 1] = 0.0, 1.0
    p = statistics.mean_p_values(x, np.arange(50))
    assert p[0, 0] == 1 and p[0, 1] == 0
    assert np.isnan(statistics.mean_p_values(x[:1], np.arange(1))).all()


def test_identical_answers_have_no_difference():
    right = np.array([1, 0, 1, 1])
    for groups in (np.arange(4), np.array([0, 0, 1, 1])):
        found = statistics.paired_difference(right, right, groups)
        assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_gini():
    assert statistics.gini(np.ones(10)) == pytest.approx(0)
    assert statistics.gini(np.eye(10)[0]) == pytest.approx(0.9)
    assert statistics.gini(np.zeros(4)) == 0
