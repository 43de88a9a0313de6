"""What the embedded model was made to show, at its full size: scalars repair its shortfall, and the heads that they act on matter."""

import pytest

import scale_interp as si

pytestmark = pytest.mark.full


def test_demo_has_a_shortfall_that_scalars_repair(vlm, train, test):
    suite = si.falsify(vlm, train, test)
    assert 0.55 <= suite.base_accuracy <= 0.80
    assert suite.gain >= 0.15 and suite["ScAle"]["low"] > 0 and suite["ScAle"]["parameters"] == 54
    assert suite.frozen_changed == suite.frozen_bits_changed == 0
    assert suite.text_share < 0.25
    assert suite.survives and "survives" in suite.verdict


@pytest.fixture
def top_heads(vlm, train):
    return si.patch(vlm, si.contrasts(train[:120])).top(8)


def test_the_chosen_heads_matter(vlm, train, test, top_heads):
    suite = si.falsify(vlm, train, test, heads=top_heads)
    row = suite["random heads"]
    assert row["full_minus"] > 0 and row["full_minus_low"] > 0
    assert suite.survives and suite.heads_matter
