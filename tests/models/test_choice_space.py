"""Where a choice with a space before it is another token than without, it is said which is scored, and one may choose."""

import warnings

import pytest

import scale_interp as si
from scale_interp.errors import DataWarning, ModelError

PICTURE = si.load_questions("scenes/relation", n=1)[0].picture


def asked(*choices, id="q"):
    return si.Question("Which one is it?", choices, 0, picture=PICTURE, id=id)


@pytest.mark.parametrize(("family", "scored"), [("qwen2_5_vl", "left"), ("internvl", "left"), ("llava", " left"), ("paligemma", "left")])
def test_it_is_said_which_token_is_scored(family, scored):
    vlm = si.load(f"tiny-random/{family}")
    with pytest.warns(DataWarning, match=f"'left' and ' left' are different tokens .*, and '{scored}' is scored"):
        found = vlm.choice_ids(asked("left", "right"))
    ids = {choice: vlm._following(vlm.prompt_text(asked("left", "right")) + vlm.quirks.prompt_end, choice) for choice in ("left", " left")}
    assert ids["left"] != ids[" left"] and found[0] == ids[scored]


def test_it_is_said_once_for_a_set_of_choices():
    vlm = si.load("tiny-random/qwen2_5_vl")
    sets = [("A", "B"), ("left", "right"), ("yes", "no"), ("red", "blue"), ("one", "two")]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for choices in (*sets, *sets):
            vlm.choice_ids(asked(*choices))
    assert [("no more is said" in str(one.message)) for one in seen] == [False, False, True]


def test_one_may_choose():
    question = asked("left", "right")
    for family in ("qwen2_5_vl", "llava"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # who has chosen is not asked again
            given = {space: si.load(f"tiny-random/{family}", choice_space=space) for space in ("with", "without")}
            ids = {space: vlm.choice_ids(question) for space, vlm in given.items()}
        for space, gap in (("with", " "), ("without", "")):
            vlm = given[space]
            prompt = vlm.prompt_text(question)
            assert ids[space] == [vlm._following(prompt, gap + choice) for choice in question.choices]
            assert vlm.describe()["choice_space"] == space
            logits = vlm.hf_model(**vlm.encode(question)).logits[0, -1, [choice[0] for choice in ids[space]]]
            if all(len(choice) == 1 for choice in ids[space]):
                assert (si.run_edits(vlm, question)[0, 0] - logits).abs().max() < 1e-4
        assert ids["with"] != ids["without"]


def test_a_choice_of_space_is_part_of_what_a_result_depends_on(tmp_path):
    vlm, question = si.load("tiny-random/qwen2_5_vl"), asked("left", "right")
    with si.resumable(tmp_path):
        found = []
        for space in ("without", "with", "without"):
            vlm.choice_space = space
            found.append(si.run_edits(vlm, question, scoring="first" if space == "without" else "whole"))
    assert (found[0] == found[2]).all() and (found[0] != found[1]).any()


def test_where_both_are_one_token_nothing_is_said(vlm, mixed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for question in mixed:
            si.load("demo").choice_ids(question)


def test_another_word_is_refused():
    with pytest.raises((ModelError, si.errors.ArgumentError), match="choice_space"):
        si.load("demo", choice_space="maybe")
    vlm = si.load("demo")
    vlm.choice_space = "maybe"
    with pytest.raises(ModelError, match="choice_space='maybe'"):
        vlm.choice_ids(asked("left", "right"))
