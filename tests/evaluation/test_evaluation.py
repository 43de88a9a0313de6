import hashlib
import json
from dataclasses import replace

import pytest
import torch
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_effectsize

import scale_interp as si
from scale_interp.data.image_controls import with_other_image, without_image
from scale_interp.errors import DataError, EditError, FileError, LeakError
from scale_interp.evaluation.falsification import suite as falsification
from scale_interp.evaluation.falsification.controls import image_controls
from scale_interp.evaluation.falsification.text_only import PENALTIES, fit_text_correction
from scale_interp.evaluation.falsification.verdict import FORMAT, IMAGES
from tests.support.watched import inputs_of, times_seen


def test_accuracy_is_that_of_plain_forward_passes(vlm):
    questions = si.load_questions("scenes/relation", n=40)
    right = 0
    for q in questions:
        with torch.no_grad():
            logits = vlm.hf_model(**vlm.encode(q)).logits[0, -1]
        right += int(logits[[c[0] for c in vlm.choice_ids(q)]].argmax()) == q.answer
    ev = si.evaluate(vlm, questions)
    assert ev.accuracy == pytest.approx(right / 40)
    assert ev.chance == 0.25 and ev.majority == 0.25 and ev.interval()[0] < ev.accuracy < ev.interval()[1]
    assert (ev.by("relation")["n"] == 10).all() and ev.by("relation")["accuracy"].mean() == pytest.approx(ev.accuracy)
    assert [a == q.answer_text for a, q in zip(ev.answers, questions, strict=True)] == ev.per_question.bool().tolist()
    assert ev.to_frame()["correct"].mean() == pytest.approx(ev.accuracy)


def test_paths_and_many_variants_agree(vlm):
    questions = si.load_questions("scenes/relation", n=6)
    edits = [si.Edit.scaling([(3, 3)], factor, 6, 8) for factor in (0.0, 2.0)]
    many = si.evaluate_many(vlm, questions, edits)
    for edit, found in zip(edits, many, strict=True):
        assert torch.allclose(si.evaluate(vlm, questions, edit, path="reference").scores, found.scores, atol=1e-5)


def test_wrong_evaluations_are_refused(vlm):
    questions = si.load_questions("scenes/relation", n=4)
    ev = si.evaluate(vlm, questions)
    with pytest.raises(DataError, match="different questions"):
        ev.compare(si.evaluate(vlm, questions[:3]))
    with pytest.raises(DataError, match="no question has a value"):
        ev.by("colour")
    with pytest.raises(EditError, match="takes one edit"):
        si.evaluate(vlm, questions, si.Edit(scale=torch.ones(2, 6, 8)))
    with pytest.raises(DataError, match="empty set"):
        si.evaluate(vlm, [])


def words_only(n, seed):
    """Questions whose answer follows from the second word, and scores that know nothing."""
    draw = torch.Generator().manual_seed(seed)
    colours, questions = ("red", "green", "blue"), []
    for i in range(n):
        c, d = (int(torch.randint(3, (), generator=draw)) for _ in range(2))
        questions.append(si.Question(f"The {colours[c]} or the {colours[d]} thing?", ("left", "right", "above"), c, id=f"{seed}-{i}"))
    return questions, torch.randn(n, 3, generator=draw)


def test_text_correction_finds_what_the_words_tell():
    train, scores = words_only(200, 0)
    test, test_scores = words_only(100, 1)
    correction = fit_text_correction(scores, train, from_words=True)
    right = torch.tensor([q.answer for q in test])
    assert (correction.correct(test_scores, test).argmax(1) == right).float().mean() > 0.95
    blind = fit_text_correction(scores, train, from_words=False)
    assert (blind.correct(test_scores, test).argmax(1) == right).float().mean() < 0.6
    assert blind.n_parameters == 3


def test_output_bias_finds_an_unbalanced_answer():
    questions = [si.Question(f"Where {i}?", ("left", "right"), int(i % 10 == 0)) for i in range(100)]
    scores = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    correction = fit_text_correction(scores, questions, from_words=False)
    assert (correction.correct(scores, questions).argmax(1) == 0).all() and correction.penalty in PENALTIES


def test_text_correction_learns_nothing_from_random_answers():
    train, scores = words_only(200, 2)
    train = [replace(q, answer=int(torch.randint(3, (), generator=torch.Generator().manual_seed(i)))) for i, q in enumerate(train)]
    test, test_scores = words_only(200, 3)
    corrected = fit_text_correction(scores, train, from_words=True).correct(test_scores, test)
    right = torch.tensor([q.answer for q in test])
    assert abs(float((corrected.argmax(1) == right).float().mean() - (test_scores.argmax(1) == right).float().mean())) < 0.12


@pytest.fixture(scope="module")
def suite(vlm):
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 160), ("test", 120)))
    return si.falsify(vlm, train, test, heads=[(3, 3), (2, 0), (3, 2)], seeds=2, epochs=6)


def test_suite_holds_every_control(suite):
    names = {row["control"] for row in suite.rows}
    assert names == {
        "ScAle",
        "frozen at 1",
        "random scalars",
        "permuted scalars",
        "shuffled labels",
        "random heads",
        "least important heads",
        "output bias",
        "text-only correction",
        "no image",
        "another image",
        "raw prompt",
        "bias over the vocabulary",
    }
    assert suite.frozen_changed == suite.frozen_bits_changed == 0
    assert suite["frozen at 1"]["gain"] == 0 and suite["frozen at 1"]["p"] == 1
    for row in suite.rows:
        assert row["low"] <= row["gain"] <= row["high"] and row["p"] <= row["p_corrected"] <= 1
        assert row["accuracy"] - row["base_accuracy"] == pytest.approx(row["gain"], abs=1e-6)
        assert (row["base_accuracy"] == suite.base_accuracy) or row["control"] in IMAGES
    assert len(suite.to_frame()) == 13 and isinstance(suite.survives, bool)


def test_effects_are_cohens_h(suite):
    h = proportion_effectsize(suite["ScAle"]["accuracy"], suite.base_accuracy)
    assert suite["ScAle"]["effect"] == pytest.approx(h) and suite["frozen at 1"]["effect"] == 0
    against = suite["shuffled labels"]
    assert against["full_minus_effect"] == pytest.approx(proportion_effectsize(suite["ScAle"]["accuracy"], against["accuracy"]))


def test_p_values_are_corrected_over_the_whole_table_and_those_of_format_among_themselves(suite):
    for of_format, count in ((False, 11 + 10 + 2), (True, 2 + 2)):
        raw, corrected = [], []
        for title in ("p", "full_minus_p", "picture_minus_p"):
            rows = [row for row in suite.rows if title in row and (row["control"] in FORMAT) == of_format]
            raw += [row[title] for row in rows]
            corrected += [row[f"{title}_corrected"] for row in rows]
        assert len(raw) == count
        assert corrected == pytest.approx(list(multipletests(raw, method="holm")[1]))


def test_image_controls_are_scale_and_base_on_the_changed_questions(vlm):
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 64), ("test", 40)))
    found = si.falsify(vlm, train, test, seeds=1, epochs=3)
    seeing = si.evaluate(vlm, test, found.scales[0])
    for name, change in (("no image", without_image), ("another image", with_other_image)):
        row, blind = found[name], change(test)
        base, full = (si.evaluate(vlm, blind, edit) for edit in (None, found.scales[0]))
        assert row["base_accuracy"] == pytest.approx(base.accuracy) and row["accuracy"] == pytest.approx(full.accuracy)
        gain = (seeing.accuracy - found.base_accuracy) - (full.accuracy - base.accuracy)
        assert row["full_minus"] == pytest.approx(gain) and row["picture_minus"] == pytest.approx(seeing.accuracy - full.accuracy)
        # The base model needs the picture, so it is another base than with it.
        assert base.accuracy < found.base_accuracy


def test_a_model_that_takes_no_prompt_without_a_picture_is_shown_noise():
    vlm = si.load("tiny-random/paligemma")
    made, left_out = image_controls(vlm, si.load_questions("scenes/relation", n=4))
    assert list(made) == ["noise for an image", "another image"] and "refuses question" in left_out["no image"]
    words = [si.Question(q.text, q.choices, q.answer, id=q.id) for q in si.load_questions("scenes/relation", n=4)]
    made, left_out = image_controls(vlm, words)
    assert not made and set(left_out) == set(IMAGES)


def test_suite_is_registered_before_the_test(suite, vlm):
    assert len(suite.registration) == 64
    heads = {tuple(map(tuple, f["heads"])) for f in suite.registered["fits"] if f["name"] == "ScAle"}
    assert heads == {((3, 3), (2, 0), (3, 2))}
    for fit in suite.registered["fits"]:
        if fit["name"] in ("random heads", "least important heads"):
            assert len(fit["heads"]) == 3 and not {tuple(h) for h in fit["heads"]} & {(3, 3), (2, 0), (3, 2)}


def test_training_prompts_are_read_once(vlm):
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 40), ("test", 16)))
    with inputs_of(vlm.hf_model.model.vision_tower) as read:
        si.run_edits(vlm, train[0])  # the check of the paths on first use under this hook is not counted
        read.clear()
        si.falsify(vlm, train, test, heads=[(3, 3), (2, 0)], seeds=2, epochs=3, batch_size=16)
    assert all(times_seen(read, vlm.encode(q)["pixel_values"][0]) == 1 for q in train)
    # The test as it is, with other images, under another prompt, and twice with its scalars frozen at 1: by hooks, and without them.
    assert sum(map(len, read)) == 40 + 5 * 16


def test_nothing_of_the_test_decides_what_is_fitted(vlm):
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 40), ("test", 16)))
    poisoned = [replace(q, answer=(q.answer + 1) % 4) for q in test]
    true, false = (si.falsify(vlm, train, t, heads=[(3, 3)], seeds=1, epochs=3) for t in (test, poisoned))
    assert torch.equal(true.scales[0].scalars, false.scales[0].scalars) and true.registered["fits"] == false.registered["fits"]
    assert true.registration != false.registration
    assert true.registered["splits"]["train"] == false.registered["splits"]["train"]


def test_pictures_of_the_test_are_opened_after_the_plan_is_hashed_and_fitted(vlm, monkeypatch):
    train, test = (si.load_questions("scenes/relation", split=s, n=n) for s, n in (("train", 40), ("test", 8)))
    events = []
    fit, register = falsification.fit_scales, falsification._register
    monkeypatch.setattr(falsification, "_register", lambda *a: events.append("registered") or register(*a))
    monkeypatch.setattr(falsification, "fit_scales", lambda *a, **k: events.append("fitted") or fit(*a, **k))

    def watched(question):
        return replace(question, picture=lambda: events.append("opened") or question.picture())

    si.falsify(vlm, train, [watched(q) for q in test], seeds=1, epochs=1)
    assert events[:3] == ["registered", "fitted", "opened"]


def test_the_hash_is_shown(suite):
    assert suite.registration[:12] in suite.verdict and suite.registration in suite._repr_html_()
    assert suite.registration in suite.reasons[-1]
    written = json.dumps(suite.registered, sort_keys=True).encode()
    assert hashlib.sha256(written).hexdigest() == suite.registration


def test_reasons_say_what_became_of_every_control(suite):
    for row in suite.rows[1:]:
        (said,) = [r for r in suite.reasons if f"eat {row['control']}," in r or f"eats {row['control']}," in r]
        beaten = row["full_minus"] > 0 and row["full_minus_p_corrected"] < 0.05
        assert said.startswith("Beats" if beaten else "Does not beat")
    assert "not one logit differs" in suite.reasons[1]


def test_suite_survives_the_disk(suite, tmp_path):
    suite.save(tmp_path / "f.json")
    again = si.Falsification.load(tmp_path / "f.json")
    assert (again.verdict, again.survives, again.registration) == (suite.verdict, suite.survives, suite.registration)
    assert again.to_frame().equals(suite.to_frame())
    (tmp_path / "f.json").write_text('{"method": "Falsification"}')
    with pytest.raises(FileError, match=r"lacks base_accuracy.*older version"):
        si.Falsification.load(tmp_path / "f.json")


def test_shared_pictures_are_refused(vlm):
    qs = si.load_questions("scenes/relation", n=20)
    with pytest.raises(LeakError, match="1 image"):
        si.falsify(vlm, qs[:11], qs[10:], seeds=1)


def by_hand(gain, text, random_heads=None, frozen=0, p=0.001, blind=0.0):
    row = {"accuracy": 0.5, "low": gain - 0.05, "high": gain + 0.05, "p": p, "p_corrected": p}
    rows = [row | {"control": "ScAle", "gain": gain}]
    names = ["frozen at 1", "random scalars", "permuted scalars", "shuffled labels", "output bias", "text-only correction"]
    gains = (
        dict.fromkeys(names, 0.0)
        | {"text-only correction": text, "no image": blind}
        | ({} if random_heads is None else {"random heads": random_heads})
    )
    for name, g in gains.items():
        minus = {"full_minus": gain - g, "full_minus_p_corrected": 0.001 if gain - g > 0.05 else 0.5}
        rows.append(row | {"control": name, "gain": g} | minus)
    return si.Falsification(0.5, tuple(rows), frozen, frozen, "0" * 64, {}, {})


@pytest.mark.parametrize(
    ("suite", "survives", "words"),
    [
        (by_hand(0.2, 0.01), True, "The gain survives"),
        (by_hand(0.2, 0.01, random_heads=0.05), True, "The chosen heads matter"),
        (by_hand(0.2, 0.01, random_heads=0.19), True, "does not matter measurably"),
        (by_hand(0.2, 0.25), False, "text-only correction explains"),
        (by_hand(0.2, 0.01, blind=0.19), False, "does not need the image"),
        (by_hand(0.01, 0.0, p=0.6), False, "No gain"),
        (by_hand(-0.2, 0.0), False, "No gain"),
        (by_hand(0.2, 0.0, frozen=3), False, "3 answers changed"),
    ],
)
def test_verdicts(suite, survives, words):
    assert suite.survives is survives and words in suite.verdict


def test_a_suite_of_older_names_is_read_under_todays(suite, tmp_path):
    suite.save(tmp_path / "suite.json")
    content = json.loads((tmp_path / "suite.json").read_text())
    older = json.dumps(content["rows"]).replace('"no image"', '"no picture"').replace('"another image"', '"another picture"')
    content |= {"rows": json.loads(older), "left_out": {"noise for a picture": "none is needed"}}
    found = si.Falsification.from_content({k: v for k, v in content.items() if k != "sha256"}, tmp_path / "suite.json")
    assert found.rows == suite.rows and set(found.left_out) == {"noise for an image"} and found.verdict == suite.verdict
    # A registration keeps the words that it was published with.
    assert found.registered["picture_controls"] == ["no picture", "another picture"]
