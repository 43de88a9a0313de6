"""Several methods on one reading of the prompts: each prompt is read once, and the maps are those of the methods one by one."""

import threading
from collections import Counter

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.head_maps import OF_QUESTIONS
from scale_interp.interventions import prefix
from scale_interp.interventions.prefix import PrefixStore

METHODS = ("patch", "attribution_patching", *OF_QUESTIONS)


@pytest.fixture
def asked():
    return si.load_questions("scenes/relation", "train", n=20)


@pytest.fixture
def read(monkeypatch):
    """How often each question's prompt was read."""
    counts, plain = Counter(), prefix.read_prefix

    def counting(vlm, questions, *others):
        counts.update(q.id for q in questions)
        return plain(vlm, questions, *others)

    monkeypatch.setattr(prefix, "read_prefix", counting)
    return counts


def one_by_one(vlm, asked, pairs, path="auto"):
    return {
        "patch": si.patch(vlm, pairs, path=path),
        "zero": si.ablate(vlm, asked, path=path),
        "mean": si.ablate(vlm, asked, "mean", path=path),
        "resample": si.ablate(vlm, asked, "resample", path=path),
        "amplify": si.amplify(vlm, asked, path=path),
    }


def test_seven_methods_read_each_prompt_once(vlm, asked, read):
    pairs = si.contrasts(asked)
    alone = one_by_one(vlm, asked, pairs) | {"gradient": si.attribute(vlm, asked), "attribution_patching": si.attribute(vlm, pairs)}
    read.clear()
    found = si.head_maps(vlm, asked, pairs)
    assert list(found) == list(METHODS)
    assert read == Counter([*(q.id for q in asked), *(p.corrupt.id for p in pairs)])
    for name, m in found.items():
        assert torch.equal(m.per_question, alone[name].per_question), name
        assert m.method == alone[name].method and m.provenance == alone[name].provenance


def test_pairs_of_other_questions_have_prompts_of_their_own(vlm, asked, read):
    pairs = si.contrasts(si.load_questions("scenes/relation", "test", n=4))
    found = si.head_maps(vlm, asked[:4], pairs, ["patch", "zero"])
    assert set(read.values()) == {1} and len(read) == 12
    assert torch.equal(found["patch"].per_question, si.patch(vlm, pairs).per_question)


def test_some_pairs_of_the_questions(vlm, asked):
    pairs = list(si.contrasts(asked))[::-3]
    found = si.head_maps(vlm, asked, pairs, ["patch"])["patch"]
    assert (found.per_question - si.patch(vlm, pairs).per_question).abs().max() <= 1e-5


def test_whole_passes(asked):
    vlm, asked = si.load("tiny-random/llava"), asked[:2]
    pairs = si.contrasts(asked)
    found = si.head_maps(vlm, asked, pairs, ["patch", "zero", "mean", "resample", "amplify"], path="reference")
    for name, alone in one_by_one(vlm, asked, pairs, "reference").items():
        assert torch.equal(found[name].per_question, alone.per_question)


@pytest.mark.parametrize(("methods", "says"), [(["zeros"], "did you mean 'zero'"), (["patch"], "give pairs=si.contrasts")])
def test_methods_that_cannot_be(vlm, asked, methods, says):
    with pytest.raises(si.errors.EditError, match=says):
        si.head_maps(vlm, asked, methods=methods)


def test_prompts_of_other_questions_are_refused(vlm, asked):
    for call in (lambda p: si.ablate(vlm, asked, "mean", prompts=p), lambda p: si.attribute(vlm, asked, prompts=p)):
        with pytest.raises(si.errors.EditError, match="other questions"):
            call(PrefixStore(vlm, asked[:3]))


def test_the_next_batch_is_prepared_meanwhile(vlm, asked, monkeypatch):
    """By another thread, the same bits, and never more than one batch ahead."""
    plain, threads = type(vlm).process, []

    def process(self, questions):
        threads.append(threading.current_thread().name.partition("_")[0])
        return plain(self, questions)

    store, ahead = PrefixStore(vlm, asked, 4, cache="recompute"), PrefixStore(vlm, asked, 4, cache="recompute")
    assert not store.ahead  # nothing waits for a CPU's inputs but the CPU
    whole = list(store)
    monkeypatch.setattr(type(vlm), "process", process)
    ahead.ahead = True
    for mine, other in zip(whole, ahead, strict=True):
        assert all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in zip(mine.layers, other.layers, strict=True))
        assert torch.equal(mine.choices.token, other.choices.token)
    assert threads == ["MainThread", *["scale-interp-prompts"] * 4]


def test_an_interrupted_reading_leaves_the_model_free(vlm, asked, monkeypatch):
    plain, reads = prefix.read_prefix, []

    def interrupted(*given):
        reads.append(given)
        if len(reads) == 2:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(prefix, "read_prefix", interrupted)
    store = PrefixStore(vlm, asked, 4, keep=False)
    store.ahead = True
    with pytest.raises(KeyboardInterrupt):
        list(store)

    def enter():
        with vlm.alone():
            pass

    free = threading.Thread(target=enter, daemon=True)
    free.start()
    free.join(5)
    assert not free.is_alive()
    assert len(list(store)) == 5  # the batch that was prepared and not read is read now


def test_a_bad_question_is_named_by_the_batch_that_holds_it(vlm, asked):
    bad = si.Question("Where is the <image> mug?", ("left", "right"), 0, picture=asked[0].picture, id="the bad one")
    store = PrefixStore(vlm, [*asked[:4], bad], 2, keep=False)
    store.ahead = True
    assert len(store[0].questions) == len(store[1].questions) == 2
    with pytest.raises(si.errors.DataError, match="the bad one"):
        store[2]


def test_choices_tokens_are_those_behind_the_whole_prompt(asked):
    """Kept by the prompt's end; a family each for special tokens, words and spaces at that end."""
    for family in ("tiny-random/llava", "tiny-random/qwen2_5_vl", "tiny-random/gemma3", "tiny-random/idefics3"):
        for space in ("auto", "with", "without"):
            vlm = si.load(family)
            vlm.choice_space = space
            first = [vlm.choice_ids(q) for q in asked]
            for q, ids in zip(asked, first, strict=True):
                vlm.measured.choice_tokens.clear()
                assert vlm.choice_ids(q) == ids
            one = vlm.choice_ids(asked[0])
            one[0].append(7)
            assert vlm.choice_ids(asked[0]) == first[0]  # what is kept is nobody's to change


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_map_of_a_model_in_half_has_its_statistics(dtype):
    half, whole = (si.load("tiny-random/qwen2_5_vl", dtype=d, device="cpu") for d in (dtype, "float32"))
    questions = si.load_questions("scenes/relation", "train", n=6)
    for found in si.head_maps(half, questions, pairs=si.contrasts(questions)).values():
        assert found.per_question.dtype == torch.float32 and found.p_values.isfinite().all() and len(found.to_frame()) == 12
    estimate, expected = (si.attribute(vlm, si.contrasts(questions)) for vlm in (half, whole))
    assert estimate.compare(expected.scores)["spearman"] > 0.9
