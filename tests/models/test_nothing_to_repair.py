"""Embedded models without a shortfall that scalars repair, at their full size: one is healthy, one answers without the image."""

import pytest

import scale_interp as si

pytestmark = pytest.mark.full


def test_healthy_model_has_nothing_to_gain(train, test):
    suite = si.falsify(si.load("demo-healthy"), train, test)
    assert not suite.survives and not suite.gains and suite.verdict.startswith("No gain")


def test_prior_is_explained_without_the_picture(train, test):
    suite = si.falsify(si.load("demo-prior"), train, test)
    assert suite.gains and not suite.survives and "text-only correction explains" in suite.verdict
