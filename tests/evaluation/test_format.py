"""Format controls of the falsification suite, against whole forward passes under plain hooks, and its verdict on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scale_interp as si
from scale_interp.core.statistics import paired_difference, unpaired_difference
from scale_interp.data.prompts import in_words, with_letters
from scale_interp.evaluation.falsification.format import RAW_PROMPT, Split, biased, fit_vocabulary_bias, prompt_controls
from scale_interp.evaluation.falsification.verdict import FORMAT, FORMERLY, MUST_BEAT, PROMPTED
from tests.support.oracle import hooked_logits, plain_inputs

PARTS = ("mass", "nll", "nll_mass", "nll_choice")


@pytest.fixture(scope="module")
def splits():
    return tuple(si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 32), ("test", 20)))


@pytest.fixture(scope="module")
def suites(vlm, splits):
    """The same suite with format controls, and without."""
    return tuple(si.falsify(vlm, *splits, heads=[(3, 3), (2, 0)], seeds=1, epochs=3, format_controls=on) for on in (True, False))


def by_hooks(vlm, questions, scale=None):
    """mass and the parts of -log P(right), by whole forward passes under plain hooks."""
    found = []
    for q in questions:
        inputs = plain_inputs(vlm, q) if vlm.prompt is None else dict(vlm.encode(q))
        edit = {}
        if scale is not None:
            edit = {"scale": scale.scalars, "mlp_scale": scale.mlp_scalars, "positions": [inputs["input_ids"].shape[1] - 1]}
        with torch.no_grad():
            p = hooked_logits(vlm.hf_model, inputs, **edit)[-1].double().softmax(-1)
        options = p[[c[0] for c in vlm.choice_ids(q)]]
        found.append([options.sum(), -options[q.answer].log(), -options.sum().log(), -(options[q.answer] / options.sum()).log()])
    return dict(zip(PARTS, np.mean(found, 0), strict=True))


def test_the_split_is_that_of_whole_passes_and_exact(vlm, splits, suites):
    suite, test = suites[0], splits[1]
    for found, scale in ((suite.base_split, None), (suite["ScAle"], suite.scales[0]), (suite["frozen at 1"], None)):
        expected = by_hooks(vlm, test, scale)
        assert {name: found[name] for name in PARTS} == pytest.approx(expected, abs=1e-5)
    for row in suite.rows:
        assert row["nll"] == pytest.approx(row["nll_mass"] + row["nll_choice"], abs=1e-12) and 0 <= row["mass"] <= 1


def test_another_prompt_is_the_base_model_under_that_prompt(vlm, splits, suites):
    other = si.load("demo", prompt=RAW_PROMPT)
    row = suites[0]["raw prompt"]
    assert row["accuracy"] == pytest.approx(si.evaluate(other, splits[1]).accuracy)
    assert {name: row[name] for name in PARTS} == pytest.approx(by_hooks(other, splits[1]), abs=1e-5)
    under = si.falsify(other, *splits, heads=[(3, 3)], seeds=1, epochs=1)["chat template"]
    assert under["accuracy"] == pytest.approx(si.evaluate(vlm, splits[1]).accuracy) and vlm.prompt is None


def test_all_other_figures_are_as_without_format_controls(suites):
    on, off = suites
    assert len(on.rows) == len(off.rows) + 2 and off.format is None and not off.base_split
    for row in off.rows:
        assert {name: on[row["control"]][name] for name in row} == row
    assert off.registered["must_beat"] == [FORMERLY.get(name, name) for name in MUST_BEAT] and on.registration != off.registration


def test_a_vocabulary_bias_gives_letters_their_mass_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    questions = [si.Question(f"Which? {i}", ("A", "B", "C", "D"), i % 4, id=str(i)) for i in range(200)]
    noise = torch.randn(200, 4, generator=draw) * 0.1
    logs = (torch.cat([noise, torch.full((200, 1), 5.0)], 1)).log_softmax(-1)[:, :4]
    after = biased(logs, fit_vocabulary_bias(logs, questions), questions)
    before, with_bias = Split.of(logs, questions).columns(), Split.of(after, questions).columns()
    assert before["mass"] < 0.03 and with_bias["mass"] > 0.9
    assert with_bias["nll_choice"] == pytest.approx(before["nll_choice"], abs=0.05)
    right = torch.tensor([q.answer for q in questions])
    assert (after.argmax(1) == right).float().mean() < 0.4


def test_lettered_options_give_way_to_words():
    where = si.load_questions("scenes/relation", n=2)
    assert [in_words(q) for q in si.load_questions("scenes/relation", n=2, options="letters")] == list(where)
    asked = si.Question("Where is it?", ("left", "right"), 1)
    assert in_words(asked) is asked
    assert in_words(with_letters(asked)).text == "Where is it? Answer with one of these: left or right."
    listed = replace(with_letters(asked), text="Where is it? A. left B. right")
    assert in_words(listed).text == "Where is it? A. left B. right Answer with one of these: left or right."
    assert in_words(listed).choices == ("left", "right") and in_words(listed).answer == 1


def test_a_leaking_split_says_what_it_shares_and_counts_the_rest(vlm):
    everything = si.load_questions("scenes/relation", split="test", n=60)
    train, test = everything[:40], everything[30:]
    found = si.falsify(vlm, train, test, heads=[(3, 3), (2, 0)], seeds=1, epochs=2, allow_leak=True)
    assert found.provenance["leaked"] == {"questions": 10, "share": pytest.approx(1 / 3)}
    assert "33% of the test questions (10) show an image that was trained on." in found.verdict
    row, clean = found["images not trained on"], test[10:]
    base, full = (si.evaluate(vlm, clean, edit) for edit in (None, found.scales[0]))
    assert (row["questions"], row["base_accuracy"]) == (20, pytest.approx(base.accuracy))
    assert row["gain"] == pytest.approx(full.compare(base).mean) and row["full_minus"] == pytest.approx(found.gain - row["gain"])
    assert any("On images not trained on" in reason for reason in found.reasons)
    apart = si.falsify(vlm, everything[:30], everything[30:], heads=[(3, 3)], seeds=1, epochs=1, allow_leak=True)
    assert apart.provenance["leaked"]["share"] == 0 and apart.holds_untrained is None


def test_an_unpaired_difference_is_that_of_two_samples():
    draw = np.random.default_rng(0)
    a, b = draw.normal(1.0, 1.0, 60), draw.normal(0.0, 1.0, 80)
    found = unpaired_difference(a, b, np.arange(60), 100 + np.arange(80))
    assert found.mean == pytest.approx(a.mean() - b.mean()) and found.low < found.mean < found.high and found.p < 1e-3
    error = np.sqrt(a.var() / 60 + b.var() / 80)
    assert found.high - found.low == pytest.approx(2 * 1.98 * error, rel=0.15)
    same = unpaired_difference(a[:30], a[30:], np.arange(30), 100 + np.arange(30))
    assert same.p > 0.05 and np.isnan(unpaired_difference(a, b[:2], np.arange(60), np.array([100, 100])).p)
    assert paired_difference(a, a, np.arange(60)).p == 1


def by_hand(format_gain, control="chat template", beaten=None, p=0.001, untrained=None):
    gain = 0.4
    row = {"accuracy": 0.7, "low": 0.3, "high": 0.5, "p": 0.001, "p_corrected": 0.001, "mass": 0.9, "nll": 0.6, "nll_mass": 0.1}
    rows = [row | {"control": "ScAle", "gain": gain}]
    for name in ("output bias", "text-only correction"):
        rows.append(row | {"control": name, "gain": 0.0, "full_minus": gain, "full_minus_p_corrected": 0.001})
    beaten = gain - format_gain > 0.05 if beaten is None else beaten
    against = {"full_minus": gain - format_gain, "full_minus_p_corrected": 0.001 if beaten else 0.5}
    rows.append(row | {"control": control, "gain": format_gain, "p_corrected": p} | against)
    about = {}
    if untrained is not None:
        about = {"leaked": {"questions": 9, "share": 0.36}}
        more = {"full_minus": gain - untrained, "full_minus_p_corrected": 0.5}
        rows.append(row | {"control": "images not trained on", "gain": untrained, "low": untrained - 0.1} | more)
    base = {"mass": 0.2, "nll": 2.6, "nll_mass": 1.6, "nll_choice": 1.0}
    return si.Falsification(0.3, tuple(rows), 0, 0, "0" * 64, {}, about, base_split=base)


@pytest.mark.parametrize(
    ("suite", "format", "survives", "words"),
    [
        (
            by_hand(0.42),
            "is",
            False,
            "The gain is format: ScAle gains +0.400 [+0.300, +0.500], and the chat template alone, with no scalar",
        ),
        (by_hand(0.4, "options in words"), "is", False, "and options named in words alone, with no scalar, gain +0.400"),
        (by_hand(0.4, "bias over the vocabulary"), "is", False, "a bias over the options"),
        (by_hand(0.4, "shuffled labels, whole vocabulary"), "is", False, "labels without signal, under the loss over the vocabulary, gain"),
        (by_hand(0.2), "in part", True, "The gain is in part format: the chat template alone, with no scalar, gains +0.200, 50% of it."),
        (by_hand(0.2, p=0.3), "is not", True, "The gain is not format"),
        (by_hand(0.05), "is not", True, "The gain is not format: the chat template alone, with no scalar, gains +0.050, 12% of it."),
        (by_hand(-0.1), "is not", True, "The gain survives"),
        (by_hand(0.0, untrained=0.35), "is not", True, "36% of the test questions (9) show an image that was trained on. On the other"),
        (by_hand(0.0, untrained=0.05), "is not", False, "The gain does not hold on images that were not trained on: +0.050"),
    ],
)
def test_verdicts_on_format_and_leaks(suite, format, survives, words):
    assert (suite.format, suite.survives) == (format, survives) and words in suite.verdict
    assert "An option is answered with probability 0.200, with ScAle 0.900; that is 75% of what" in suite.verdict


def test_format_is_said_of_gains_only():
    nothing = by_hand(0.3)
    nothing = replace(nothing, rows=tuple(row | ({"gain": 0.0, "low": -0.1} if row["control"] == "ScAle" else {}) for row in nothing.rows))
    assert nothing.format is None and nothing.format_share is None and nothing.verdict.startswith("No gain")
    assert set(PROMPTED) < set(FORMAT)


def test_prompts_that_a_model_cannot_take_are_changed_or_left_out(splits):
    """This tokenizer joins a space with the word behind it, so no word follows the raw prompt's last space."""
    vlm = si.load("tiny-random/llava", prompt="{images}\n{text}")
    made, left_out = prompt_controls(vlm, splits[1][:2])
    assert {name: asked.prompt for name, (asked, _) in made.items()} == {"chat template": None, "raw prompt": RAW_PROMPT.rstrip()}
    assert not left_out and vlm.prompt == "{images}\n{text}"
    vlm.choice_space = "apart"
    letters = si.load_questions("scenes/relation", n=2, options="letters")
    made, _ = prompt_controls(vlm, letters)
    assert {asked.choice_space for asked, _ in made.values()} == {"auto"}
    assert made["options in words"][1] == list(si.load_questions("scenes/relation", n=2))
    pali = si.load("tiny-random/paligemma", prompt="{images}{text}")
    pali.processor.chat_template = None
    made, left_out = prompt_controls(pali, splits[1][:2])
    assert "raw prompt" in made and (pali.quirks.prompt is not None or "no chat template" in left_out["chat template"])
