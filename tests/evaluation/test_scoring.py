"""Choices by likelihood, answers in words, and the public sets' own metrics, against tables made by hand."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import scale_interp as si
from scale_interp.core.statistics import accuracy_interval as interval
from scale_interp.core.statistics import wilson_interval
from scale_interp.data.question import LETTERED
from scale_interp.data.scenes.task import TASKS
from scale_interp.errors import DataError, DataWarning, EditError
from scale_interp.evaluation.benchmarks import pope_metrics, spatialeval_accuracy, vsr_accuracy, whatsup_accuracy
from scale_interp.evaluation.scoring import score_text
from scale_interp.interventions.engine import run_with_clean
from scale_interp.interventions.prefix import PrefixStore
from tests.support import SAMPLES
from tests.support.oracle import hooked_logits, plain_inputs

WHERE_A = ("left", "right", "on", "under")
WHERE_B = ("left", "right", "front", "behind")
YES_NO = ("yes", "no")
SCORINGS = ("auto", "first", "whole", "mean")


# Choices by likelihood


@pytest.fixture(scope="module", params=["demo", "tiny-random/qwen2_5_vl", "tiny-random/gemma3"])
def model(request):
    return si.load(request.param)


@pytest.fixture(scope="module")
def asked():
    """One-token choices; choices of several tokens that begin differently; different numbers of choices."""
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)) for i in range(3)]
    return [
        si.Question("Where is the red circle?", ("left", "right", "above"), 0, picture=pictures[0], id="short"),
        si.Question("Where is the blue square relative to the red circle?", ("above left", "below"), 1, picture=pictures[1], id="long"),
        si.Question("Is there a red circle?", YES_NO, 0, picture=pictures[2], id="yes"),
    ]


def one_edit(vlm):
    draw = torch.Generator().manual_seed(0)
    return si.Edit(
        2 * torch.rand(2, vlm.n_layers, vlm.n_heads, generator=draw), mlp_scale=0.5 + torch.rand(2, vlm.n_layers, generator=draw)
    )


def by_hooks(vlm, question, edit, variant, scoring):
    """Scores of a question's choices from whole forward passes under plain torch hooks."""
    inputs, ids = plain_inputs(vlm, question), vlm.choice_ids(question)
    T = inputs["input_ids"].shape[1]
    parts = {"scale": edit.scale[variant], "mlp_scale": edit.mlp_scale[variant], "positions": [T - 1]}
    scores = []
    for choice in ids:
        more = torch.tensor([choice[:-1]], dtype=torch.long)
        longer = {k: v for k, v in inputs.items() if k not in ("token_type_ids", "mm_token_type_ids")} | {
            "input_ids": torch.cat([inputs["input_ids"], more], 1),
            "attention_mask": torch.ones(1, T + len(choice) - 1, dtype=torch.long),
        }
        for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
            longer[name] = torch.cat([inputs[name], torch.zeros_like(more)], 1)
        with torch.no_grad():
            logits = hooked_logits(vlm.hf_model, longer, **parts)[T - 1 :]
        if scoring == "first" or (scoring == "auto" and max(map(len, ids)) == 1):
            scores.append(logits[0, choice[0]])
        else:
            whole = sum(logits[k].log_softmax(-1)[t] for k, t in enumerate(choice))
            scores.append(whole / len(choice) if scoring == "mean" else whole)
    return torch.stack(scores)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_every_scoring_is_that_of_plain_hooks_on_both_paths(model, asked, scoring):
    edit = one_edit(model)
    paths = {p: si.run_edits(model, asked, edit, path=p, scoring=scoring) for p in ("packed", "reference")}
    finite = paths["packed"].isfinite()
    assert torch.equal(finite, paths["reference"].isfinite())
    assert (paths["packed"] - paths["reference"])[finite].abs().max() <= 1e-5
    for q, question in enumerate(asked):
        for n in range(2):
            expected = by_hooks(model, question, edit, n, scoring)
            for scores in paths.values():
                assert (scores[q, n, : len(expected)] - expected).abs().max() <= 1e-5, question.id


def test_scorings_differ_where_they_should(model, asked):
    auto, first, whole, mean = (si.run_edits(model, asked, scoring=s)[:, 0] for s in SCORINGS)
    assert torch.allclose(auto[0], first[0], atol=1e-5) and torch.equal(auto[1], whole[1])
    assert (auto[0] - whole[0]).abs().max() > 1e-3 and torch.allclose(whole[0].softmax(-1), auto[0].softmax(-1), atol=1e-6)
    lengths = torch.tensor([len(c) for c in model.choice_ids(asked[1])])
    assert lengths.max() > 1 and torch.allclose(mean[1, :2] * lengths, whole[1, :2])
    assert torch.equal(mean[0], whole[0])


def test_the_default_is_unchanged(vlm, mixed, long_choices, random_edits):
    for questions in (mixed, long_choices):
        plain, clean = run_with_clean(vlm, questions, random_edits["everything"], "packed")
        asked, asked_clean = run_with_clean(vlm, questions, random_edits["everything"], "packed", scoring="auto")
        assert torch.equal(plain, asked) and torch.equal(clean, asked_clean)


def test_mean_counts_the_end_token(vlm, long_choices):
    """ "left" begins "left of": all three choices end in the end token."""
    for path in ("packed", "reference"):
        whole, mean = (si.run_edits(vlm, long_choices[0], path=path, scoring=s)[0, 0] for s in ("whole", "mean"))
        lengths = torch.tensor([len(c) + 1 for c in vlm.choice_ids(long_choices[0])])
        assert torch.allclose(mean * lengths, whole, atol=1e-6)


def test_wrong_scorings_are_refused(vlm, asked, long_choices):
    for path in ("packed", "reference"):
        with pytest.raises(DataError, match=r"question shared: choices 'above left' and 'above right' begin with the same token"):
            si.run_edits(vlm, long_choices[1], path=path, scoring="first")
        with pytest.raises(DataError, match=r"scoring 'sum': choose 'auto', 'first', 'whole' or 'mean'"):
            si.run_edits(vlm, asked, path=path, scoring="sum")
    with pytest.raises(EditError, match="read for scoring='mean', not 'auto'"):
        si.evaluate(vlm, asked, prompts=PrefixStore(vlm, asked, scoring="mean"))


def test_evaluations_carry_their_scoring(vlm, asked):
    prompts = PrefixStore(vlm, asked, scoring="mean")
    ev = si.evaluate(vlm, asked, prompts=prompts, scoring="mean")
    assert torch.equal(ev.scores, si.run_edits(vlm, asked, scoring="mean")[:, 0]) and ev.provenance["scoring"] == "mean"
    assert len(si.evaluate_many(vlm, asked, one_edit(vlm), scoring="whole")) == 2


# What an answer in words names


@pytest.mark.parametrize(
    ("text", "choices", "named"),
    [
        ("left", WHERE_A, "left"),
        (" LEFT!\n", WHERE_A, "left"),
        ("\u201cLeft.\u201d", WHERE_A, "left"),
        ("'right'", WHERE_A, "right"),
        ("\uff4c\uff45\uff46\uff54", WHERE_A, "left"),
        ("Answer: under", WHERE_A, "under"),
        ("The mug is under the table.", WHERE_A, "under"),
        ("Left. The mug is to the left of the table.", WHERE_A, "left"),
        ("on", WHERE_A, "on"),
        ("The mug is on the table.", WHERE_A, "on"),
        ("It is on top of the table", WHERE_A, "on"),
        ("on the left", WHERE_A, "left"),
        ("It is on the right side of the table", WHERE_A, "right"),
        ("at its left", WHERE_A, "left"),
        ("Based on the image, the mug is on the left.", WHERE_A, "left"),
        ("The right answer is left", WHERE_A, "left"),
        ("lefty", WHERE_A, None),
        ("leftmost", WHERE_A, None),
        ("underneath the table", WHERE_A, None),
        ("the front", WHERE_A, None),
        ("in front of the table", WHERE_B, "front"),
        ("In-front of it", WHERE_B, "front"),
        ("not left", WHERE_A, None),
        ("It isn\u2019t left", WHERE_A, None),
        ("it isn't on the left", WHERE_A, None),
        ("left or right", WHERE_A, None),
        ("left, right, on or under", WHERE_A, None),
        ("on the table, not under it", WHERE_A, None),
        ("", WHERE_A, None),
        ("beside", WHERE_A, None),
        ("Yes.", YES_NO, "yes"),
        ("YES", YES_NO, "yes"),
        ("yes, it is on the left", YES_NO, "yes"),
        ("Yes, there is no doubt.", YES_NO, "yes"),
        ("yes, it is not", YES_NO, None),
        ("Yes, that is incorrect.", YES_NO, None),
        ("yes and no", YES_NO, None),
        ("No, it is not.", YES_NO, "no"),
        ("There is no dog in the picture.", YES_NO, "no"),
        ("There is not a dog.", YES_NO, None),
        ("Now", YES_NO, None),
        ("True, it isn't", ("true", "false"), None),
        ("2", ("one", "two", "three"), "two"),
        ("There are two.", ("1", "2", "3"), "2"),
        ("12", ("1", "2", "3"), None),
        ("2.5", ("2", "5"), None),
        ("North-West of it", ("north", "west", "northwest"), "northwest"),
        ("north west", ("Northwest", "Northeast"), "Northwest"),
        ("top left", ("top", "top left"), "top left"),
        ("the red circle", ("red circle", "red"), "red circle"),
        ("\u00c9COLE", ("\u00e9cole", "gare"), "\u00e9cole"),
        ("E\u0301cole", ("\u00e9cole", "gare"), "\u00e9cole"),
    ],
)
def test_strict_names(text, choices, named):
    for order in itertools.islice(itertools.permutations(choices), 6):
        question = si.Question("Where is the mug?", order, 0, id="q")
        assert score_text(text, question) == (None if named is None else order.index(named))


@pytest.mark.parametrize("name", [*(f"scenes/{t}" for t in TASKS), *(f"generated/tqa/{k}" for k in ("map", "maze", "grid"))])
def test_every_option_of_our_sets_names_itself(name):
    for q in si.load_questions(name, n=30):
        for i, choice in enumerate(q.choices):
            assert score_text(choice, q) == score_text(f"The answer is {choice.upper()}.", q) == i


def test_things_asked_about_are_no_answers():
    question = si.Question("Where is the front wheel?", WHERE_B, 3, about=("front wheel", "left shoe"))
    assert score_text("The front wheel is behind the left shoe.", question) == 3
    place = si.Question("What is north of Elm?", ("Oak", "Elm"), 0, about=("Elm",))
    assert score_text("Elm", place) == 1


def test_options_that_read_the_same_are_refused():
    with pytest.raises(DataError, match=r"question q: option 'Left\.' of"):
        score_text("left", si.Question("Where?", ("left", "Left."), 0, id="q"))
    with pytest.raises(DataError, match=r"option '\+' of"):
        score_text("left", si.Question("Where?", ("+", "left"), 0))
    with pytest.raises(DataError, match="choose 'strict' or 'legacy'"):
        score_text("left", si.Question("Where?", WHERE_A, 0), "loose")


@pytest.mark.parametrize(
    ("text", "right", "strict", "legacy"),
    [
        ("on the left", "on", False, True),
        ("Based on the image, it is under the table.", "on", False, True),
        ("the position is left", "on", False, True),
        ("in front", "on", False, False),
        ("on the table, in front of it", "on", True, False),
        ("left, right, on or under", "under", False, True),
        ("not left", "left", False, True),
        ("the leftovers", "left", False, True),
        ("Left", "left", True, True),
        ("right", "left", False, False),
    ],
)
def test_legacy_is_the_released_substring_rule(text, right, strict, legacy):
    question = si.Question("Where?", WHERE_A, WHERE_A.index(right), task="whatsup/controlled_a")
    assert (score_text(text, question) == question.answer) is strict
    assert (score_text(text, question, "legacy") == question.answer) is legacy


@pytest.mark.parametrize(
    ("task", "text", "right", "said"),
    [
        ("vsr/zeroshot", "Yes", "yes", "yes"),
        ("vsr/zeroshot", "yes", "yes", "no"),
        ("vsr/zeroshot", "Nothing of the kind", "no", "no"),
        ("vsr/zeroshot", "no", "no", "yes"),
        ("vsr/zeroshot", "Yes or No", "no", "no"),
        ("vsr/zeroshot", "Yes or No", "yes", "yes"),
        ("pope/random", "A dog.", "no", "yes"),
        ("pope/random", "There is not a dog", "yes", "no"),
        ("pope/random", "Nothing. No dog", "no", "yes"),
        ("pope/random", "yes, no", "yes", "no"),
        ("scenes/exists", "I know", "no", "no"),
        ("scenes/exists", "maybe", "no", "yes"),
    ],
)
def test_legacy_rules_of_yes_and_no(task, text, right, said):
    question = si.Question("Is it?", YES_NO, YES_NO.index(right), task=task)
    assert YES_NO[score_text(text, question, "legacy")] == said


def test_legacy_pope_needs_yes_and_no():
    with pytest.raises(DataError, match="the options are"):
        score_text("left", si.Question("Where?", WHERE_A, 0, task="pope/random"), "legacy")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("b", 1),
        ("B", 1),
        ("(B)", 1),
        ("A.", 0),
        ("The answer is b.", 1),
        ("a)", 0),
        ("a or b", None),
        ("it is a dog", None),
        ("B, not c", None),
        ("d", None),
    ],
)
def test_letters_of_lower_case_name_options(text, named):
    assert score_text(text, si.Question("Which?", ("a", "b", "c"), 0)) == named
    options = {"a": "river", "b": "lake", "c": "hill"}
    assert score_text(text, si.Question("Which?", tuple(options), 0, meta={LETTERED: options})) == named


@pytest.mark.parametrize("stands_for", [{}, {LETTERED: {"A": "river", "a": "lake"}}])
def test_letters_that_differ_in_case_alone_are_refused(stands_for):
    with pytest.raises(DataError, match=r"question q: option 'a' of \('A', 'a'\) has no words of its own .*rename it"):
        score_text("a", si.Question("Which?", ("A", "a"), 0, id="q", meta=stands_for))


# Answers in words


def test_answers_in_words_are_those_by_likelihood(vlm):
    questions = si.load_questions("scenes/relation", n=20)
    likely, said = si.evaluate(vlm, questions), si.evaluate_text(vlm, questions)
    assert said.answers == likely.answers and said.accuracy == likely.accuracy and said.unanswered == 0
    assert said.texts == tuple(si.answer_texts(vlm, questions, batch_size=7))
    assert said.compare(likely).mean == 0 and said.by("relation")["n"].sum() == 20
    assert said.to_frame()["text"].tolist() == list(said.texts) and said.provenance["scorer"] == "strict"


def test_edits_reach_the_generated_words(vlm):
    questions = si.load_questions("scenes/relation", n=12)
    scale = si.ScAle(3 * torch.rand(6, 8, generator=torch.Generator().manual_seed(0)), torch.ones(6), 48, ())
    changed = si.evaluate_text(vlm, questions, scale)
    with scale.attached(vlm):
        assert list(changed.texts) == [vlm.generate(q, max_new_tokens=16) for q in questions]
    assert changed.texts == si.evaluate_text(vlm, questions, scale.edit()).texts
    assert changed.texts != si.evaluate_text(vlm, questions).texts
    assert changed.answers == si.evaluate(vlm, questions, scale).answers


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "internvl"])
def test_batches_say_what_single_questions_say(family, asked):
    vlm = si.load(f"tiny-random/{family}")
    texts = si.answer_texts(vlm, asked, max_new_tokens=6, batch_size=2)
    assert texts == [vlm.generate(q, max_new_tokens=6) for q in asked]


def test_unanswered_counts_as_wrong():
    q = si.Question("Where?", WHERE_A, 0, id="a")
    two = si.Question("Is it?", YES_NO, 1, id="b")
    ev = si.score_answers(["Left.", "left or right", "under", "No."], [q, q, q, two])
    assert ev.answers == ["left", None, "under", "no"] and ev.per_question.tolist() == [1, 0, 0, 1]
    assert ev.unanswered == 0.25 and "0.250 unanswered" in repr(ev) and repr(ev).startswith("<TextEvaluation: accuracy 0.500")
    assert ev.part(np.array([False, True, True, False])).texts == ["left or right", "under"]
    assert ev.part(np.array([False, True, True, False])).unanswered == 0.5
    with pytest.raises(DataError, match="1 answers to 2 questions"):
        si.score_answers(["left"], [q, q])


# The public sets' own metrics


def said(questions, answers):
    """An evaluation in which the model gave these words; "" is no answer."""
    return si.score_answers(answers, questions)


def number(frame, metric, group="all"):
    found = frame[(frame.metric == metric) & (frame.group == group)]
    assert len(found) == 1, frame
    return found.iloc[0]


def whatsup(objects, relations=WHERE_A, room="controlled_a"):
    out = []
    for i, name in enumerate(objects):
        for j, relation in enumerate(relations):
            options = relations[j:] + relations[:j]
            key = f"{name}_{relation}_table"
            out.append(
                si.Question(
                    f"Where is the {name} in relation to the table?",
                    options,
                    options.index(relation),
                    id=f"whatsup/{room}/{key}",
                    group=f"whatsup/{key}",
                    task=f"whatsup/{room}",
                    relation=relation,
                    about=(name, "table"),
                    meta={"set": f"{name}|table", "number": i},
                )
            )
    return out


def test_whatsup_pairs_and_sets_by_hand():
    questions = whatsup(["mug", "cup", "hat"])
    answers = [
        *("left", "right", "on", "under"),  # all right: two pairs, one set
        *("left", "right", "on", "on"),  # one pair
        *("left", "left", "under", "on"),  # one right, no pair
    ]
    frame = whatsup_accuracy(said(questions, answers))
    individual, pair, whole = (number(frame, f"{m} accuracy") for m in ("individual", "pair", "set"))
    assert (individual.n, pair.n, whole.n) == (12, 6, 3)
    assert (individual.value, pair.value, whole.value) == pytest.approx((8 / 12, 3 / 6, 1 / 3))
    assert (individual.chance, pair.chance, whole.chance) == (1 / 4, 1 / 16, 1 / 256)
    assert (individual.majority, pair.majority, whole.majority) == (1 / 4, 0, 0)
    for row in (individual, pair, whole):
        assert row.low < row.value < row.high
    assert number(frame, "individual accuracy", "relation left").value == 1
    assert frame.attrs["incomplete"] == {} and number(frame, "unanswered").value == 0


def test_whatsup_intervals_are_over_object_pairs():
    """Twenty object pairs, each all right or all wrong: 80 questions and 40 pairs tell no more than 20 do."""
    questions = whatsup([f"thing{i}" for i in range(20)])
    frame = whatsup_accuracy(said(questions, [q.answer_text if i < 40 else "" for i, q in enumerate(questions)]))
    low, high = interval(np.repeat([1, 0], 10), np.arange(20))
    for metric in ("individual", "pair", "set"):
        row = number(frame, f"{metric} accuracy")
        assert row.value == 0.5 and row.high - row.low == pytest.approx(high - low, rel=0.1), metric


def test_whatsup_b_and_both_halves_together():
    questions = whatsup(["mug"], WHERE_B, "controlled_b") + whatsup(["mug"])
    frame = whatsup_accuracy(said(questions, ["left", "right", "front", "behind", "left", "right", "on", "on"]))
    assert number(frame, "pair accuracy").value == 3 / 4 and number(frame, "set accuracy").value == 1 / 2
    assert number(frame, "set accuracy", "task whatsup/controlled_b").value == 1
    assert number(frame, "pair accuracy", "task whatsup/controlled_a").value == 1 / 2
    assert np.isnan(number(frame, "individual accuracy", "task whatsup/controlled_a").low)


def test_whatsup_incomplete_sets_are_reported():
    questions = whatsup(["mug", "cup"])[:-1]  # no picture of the cup under the table
    with pytest.warns(DataWarning, match=r"1 object pair\(s\) are incomplete, 'whatsup/controlled_a/cup\|table' lacks under"):
        frame = whatsup_accuracy(said(questions, [q.answer_text for q in questions]))
    assert frame.attrs["incomplete"] == {"whatsup/controlled_a/cup|table": ["under"]}
    assert (number(frame, "individual accuracy").n, number(frame, "pair accuracy").n, number(frame, "set accuracy").n) == (7, 3, 1)
    with pytest.warns(DataWarning, match=r"2 object pair\(s\)"):
        frame = whatsup_accuracy(said(questions[::4], ["left"] * 2))
    assert number(frame, "set accuracy").n == 0 and np.isnan(number(frame, "set accuracy").value)


def test_whatsup_needs_its_sets():
    with pytest.raises(DataError, match=r"no meta\['set'\]"):
        whatsup_accuracy(said([si.Question("Where?", WHERE_A, 0, id="q")], ["left"]))
    with pytest.raises(DataError, match="are both 'left'"):
        whatsup_accuracy(said([whatsup(["mug"])[0]] * 2, ["left"] * 2))


def yes_no(truth, task, groups=None, **meta):
    return [
        si.Question(f"Is it {i}?", YES_NO, YES_NO.index(t), id=f"{task}/{i}", group=groups[i] if groups else "", task=task,
                    relation=("on", "under")[i % 2], meta={k: v[i % len(v)] for k, v in meta.items()})
        for i, t in enumerate(truth)
    ]  # fmt: skip


def test_vsr_metrics_by_hand():
    truth = ["yes"] * 6 + ["no"] * 4
    answers = ["yes"] * 3 + ["no"] * 2 + [""] + ["no"] * 1 + ["yes"] * 2 + [""]
    questions = yes_no(truth, "vsr/zeroshot", category=["Projective", "Topological"])
    frame = vsr_accuracy(said(questions, answers), legacy=True)
    # 3 of 6 "yes" found, 5 said; 1 of 4 "no" found
    assert number(frame, "accuracy").value == pytest.approx(4 / 10) and number(frame, "accuracy").majority == 0.6
    f1, legacy = number(frame, "f1"), number(frame, "legacy f1")
    assert (
        f1.value == pytest.approx(2 * 3 / (5 + 6)) and f1.chance == pytest.approx(2 * 3 / (5 + 6)) and f1.majority == pytest.approx(12 / 16)
    )
    assert legacy.value == pytest.approx(2 * 0.5 * 0.25 / 0.75) and legacy.chance == 0.5 and legacy.majority == 0
    assert f1.low <= f1.value <= f1.high and number(frame, "unanswered").value == 0.2
    assert set(frame.group) == {"all", "category Projective", "category Topological", "relation on", "relation under"}
    assert "legacy f1" not in set(vsr_accuracy(said(questions, answers)).metric)


def test_rates_are_those_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    truth, answers = ([YES_NO[i] for i in draw.integers(0, 2, 200)] for _ in range(2))
    frame = pope_metrics(said(yes_no(truth, "pope/random", kind=["random"]), answers))
    for name, scored in (("precision", metrics.precision_score), ("recall", metrics.recall_score), ("f1", metrics.f1_score)):
        assert number(frame, name).value == pytest.approx(scored(truth, answers, pos_label="yes"))
    assert number(frame, "yes ratio").value == answers.count("yes") / 200
    assert number(frame, "precision").n == 200 and set(frame.group) == {"all"}


def test_pope_by_kind():
    truth = ["yes", "no"] * 6
    questions = yes_no(truth, "pope/all", groups=[f"coco/{i // 4}" for i in range(12)], kind=["random", "random", "popular", "popular"])
    frame = pope_metrics(said(questions, ["yes"] * 12))
    assert number(frame, "recall", "kind popular").value == 1 and number(frame, "precision", "kind random").value == 0.5
    assert number(frame, "f1").value == number(frame, "f1").majority == pytest.approx(2 / 3)
    assert number(frame, "yes ratio").value == 1 and number(frame, "yes ratio").low < 1
    never = pope_metrics(said(questions, ["no"] * 12))
    assert np.isnan(number(never, "precision").value) and number(never, "f1").value == 0 and number(never, "recall").value == 0


def test_yes_and_no_in_any_order_and_case():
    questions = [si.Question("Is it?", ("No", "Yes"), 1, id="a", task="pope/random"), *yes_no(["no"], "pope/random")]
    assert number(pope_metrics(said(questions, ["Yes", "yes"])), "precision").value == 0.5
    with pytest.raises(DataError, match="its options are"):
        pope_metrics(said([si.Question("Where?", WHERE_A, 0, id="q")], ["left"]))


def test_shared_pictures_widen_the_intervals():
    """Five questions a picture, all right or all wrong together: as much is known as from a fifth of the questions."""
    draw = np.random.default_rng(0)
    truth = [YES_NO[i] for i in draw.integers(0, 2, 200)]
    right = np.repeat(draw.random(40) < 0.6, 5)
    answers = [t if r else YES_NO[t == "yes"] for t, r in zip(truth, right, strict=True)]
    shared = yes_no(truth, "pope/random", groups=[f"coco/{i // 5}" for i in range(200)], kind=["random"])
    alone = yes_no(truth, "pope/random", kind=["random"])
    for metric in ("accuracy", "precision", "recall", "f1"):
        wide, narrow = (number(pope_metrics(said(qs, answers)), metric) for qs in (shared, alone))
        assert wide.value == narrow.value and wide.high - wide.low > 1.3 * (narrow.high - narrow.low), metric
        assert (wide.low, wide.high) == tuple(number(pope_metrics(said(shared, answers)), metric)[["low", "high"]])


def test_intervals_of_equal_values_have_a_width():
    low, high = interval(np.zeros(20), np.repeat(np.arange(10), 2))
    assert low == 0 and high == pytest.approx(0.2775, abs=1e-3)  # Wilson, 0 of 10
    assert interval(np.tile([1, 0], 5), np.repeat(np.arange(5), 2)) == pytest.approx(wilson_interval(0.5, 5)), "each picture half right"
    assert np.isnan(interval(np.array([1, 0]), np.zeros(2))).all()


def test_spatialeval_groups():
    questions = []
    for i, (form, kind, asks) in enumerate(itertools.product(("vqa", "tqa"), ("map", "grid"), ("direction", "count"))):
        meta = {"form": form, "kind": kind, "question_type": asks}
        questions.append(si.Question("Q?", ("a", "b"), 0, id=f"s{i}", task=f"spatialeval/{form}/{kind}", meta=meta))
    frame = spatialeval_accuracy(said(questions, ["a", "b"] * 4))
    assert number(frame, "accuracy").value == 0.5 and number(frame, "accuracy", "form vqa").n == 4
    assert number(frame, "accuracy", "form tqa, kind map").n == 2
    assert number(frame, "accuracy", "kind map, question_type direction").value == 1
    assert si.benchmark(said(questions, ["a", "b"] * 4)).equals(frame)


@pytest.mark.skipif(not (SAMPLES / "whatsup").is_dir(), reason="the genuine samples are not here")
def test_genuine_whatsup_sets_are_whole():
    for name, sets in (("whatsup/controlled_a", 2), ("whatsup/controlled_b", 1)):
        questions = si.load_questions(name, root=SAMPLES)
        frame = si.benchmark(said(questions, [q.answer_text for q in questions]))
        counts = [number(frame, f"{m} accuracy").n for m in ("individual", "pair", "set")]
        assert counts == [4 * sets, 2 * sets, sets] and frame.attrs["incomplete"] == {} and frame.attrs["data"] == name


def test_benchmark_chooses_by_the_set():
    pope = yes_no(["yes", "no"], "pope/random", kind=["random"])
    scenes = [si.Question("Where?", ("left", "right"), 0, id="x", task="scenes/relation", relation="left")]
    assert "yes ratio" in set(si.benchmark(said(pope, ["yes", "no"])).metric)
    assert set(si.benchmark(said(scenes, ["left"])).group) == {"all", "relation left"}
    both = si.benchmark(said([*pope, *scenes], ["yes", "no", "left"]))
    assert {"pope: all", "scenes: all", "scenes: relation left"} <= set(both.group)
    vsr = yes_no(["yes", "no"], "vsr/random", category=["Topological"])
    assert "legacy f1" in set(si.benchmark(said(vsr, ["yes", "no"]), legacy=True).metric)
    sets = whatsup(["mug", "cup"])
    assert "set accuracy" in set(si.benchmark(said(sets, ["left"] * 8)).metric)
    assert list(both.columns) == ["metric", "group", "n", "value", "low", "high", "chance", "majority"]


def test_likelihoods_have_the_same_tables(vlm):
    questions = si.load_questions("scenes/relation", n=40)
    ev = si.evaluate(vlm, questions)
    frame = si.benchmark(ev)
    assert number(frame, "accuracy")[["value", "low", "high"]].tolist() == pytest.approx([ev.accuracy, *ev.interval()])
    assert "unanswered" not in set(frame.metric) and frame.attrs["model"] == "demo" and frame.attrs["scoring"] == "auto"


# Baselines and random weights


def test_majority_does_not_hang_on_the_order_of_options():
    questions = [si.Question(f"{i}?", ("left", "right") if i % 2 else ("right", "left"), i % 2, id=str(i)) for i in range(20)]
    assert {q.answer_text for q in questions} == {"right"} and said(questions, ["left"] * 20).majority == 1
    more = yes_no(["no"] * 8 + ["yes"] * 4, "x")
    assert said([*questions, *more], [""] * 32).majority == pytest.approx((20 + 8) / 32)


def test_options_of_one_question_have_no_majority():
    """Each question has options of its own: counting would make every right answer the commonest."""
    questions = [si.Question(f"{i}?", tuple(f"{i}{c}" for c in "abcd"), i % 4, id=str(i)) for i in range(30)]
    assert said(questions, [""] * 30).majority == pytest.approx(0.25)


@pytest.mark.parametrize("scored", ["likelihood", "words"])
def test_random_weights_are_marked(asked, scored):
    for name, random in (("tiny-random/llava", True), ("demo", False)):
        vlm = si.load(name)
        ev = si.evaluate(vlm, asked) if scored == "likelihood" else si.evaluate_text(vlm, asked, max_new_tokens=2)
        assert ev.random_weights is random and ("random weights" in repr(ev)) is random
        assert (si.benchmark(ev).attrs.get("weights") == "random weights") is random
        assert ev.part(np.array([True, False, False])).random_weights is random


def test_no_benchmark_warns_without_cause(vlm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        si.benchmark(said(whatsup(["mug", "cup"]), ["left"] * 8))
        si.benchmark(said(yes_no(["yes"] * 4, "vsr/zeroshot", category=["Topological"]), ["no"] * 4), legacy=True)
