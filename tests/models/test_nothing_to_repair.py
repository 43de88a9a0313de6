"""Embedded models without a shortfall that needs scalars, at their full size: what they lack is nothing, an image, or a prompt."""

import pytest

import scale_interp as si

pytestmark = pytest.mark.full


def test_healthy_model_has_nothing_to_gain(train, test):
    suite = si.falsify(si.load("demo-healthy"), train, test)
    assert not suite.survives and not suite.gains and suite.verdict.startswith("No gain")


def test_prior_is_explained_without_the_picture(train, test):
    suite = si.falsify(si.load("demo-prior"), train, test)
    assert suite.gains and not suite.survives and "text-only correction explains" in suite.verdict


def test_a_gain_that_is_format_is_called_so():
    """`demo-format` knows the relations, and answers by letter under its chat template only."""
    train, test = (si.load_questions("scenes/relation", split=s, n=n, options="letters") for s, n in (("train", 160), ("test", 200)))
    suite = si.falsify(si.load("demo-format", prompt="scale-llava"), train, test, seeds=1)
    assert abs(suite.base_accuracy - 0.25) <= 0.1 and suite["chat template"]["accuracy"] >= 0.85
    assert suite.gains and suite.gain >= 0.3 and not suite.survives
    assert suite.format == "is" and suite.verdict.startswith("The gain is format: ")
    assert suite["options in words"]["gain"] > 0.3 and suite.base_split["mass"] < 0.5 < suite["chat template"]["mass"]


def test_a_gain_of_choice_is_not_called_format():
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 160), ("test", 200)))
    suite = si.falsify(si.load("demo"), train, test, seeds=1)
    assert suite.survives and suite.format == "is not" and suite.format_share < 0.25
