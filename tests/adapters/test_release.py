"""`recipe="release"` against ScAle's release as a plain loop of whole passes."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import scale_interp as si
from scale_interp.adapters.scale.fit import RECIPES, Learner
from scale_interp.errors import EditError
from scale_interp.interventions.prefix import PrefixStore
from tests.support.released import Loop, letter_ids, raw_inputs


def RAW(text):
    return f"<image>\nQuestion: {text} Answer: "


def opened(family):
    return si.load(f"tiny-random/{family}", prompt="scale-llava" if family == "llava_next" else "scale-qwen", choice_space="apart")


@contextmanager
def watched_epochs(most):
    """Ctrl-C after so many epochs were kept."""
    keep = Learner.keep

    def stopping(self, checkpoints):
        keep(self, checkpoints)
        if self.epoch == most:
            raise KeyboardInterrupt

    Learner.keep = stopping
    try:
        yield
    finally:
        Learner.keep = keep


def lettered(n, split="train"):
    """Questions in the released form: options listed in the text, letters as choices; of several lengths."""
    out = []
    for q in si.load_questions("scenes/relation", split, n=n):
        listed = " ".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", q.choices, strict=True))
        out.append(replace(q, text=f"{q.text}{' Look again.' * (len(out) % 3)} {listed}", choices=tuple("ABCD")))
    return out


@pytest.mark.parametrize(("heads", "mlps"), [(True, True), (True, False), (False, True)], ids=["both", "heads", "MLPs"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize(("n", "epochs"), [(6, 2), pytest.param(42, 10, marks=pytest.mark.full)], ids=["4 steps", "110 steps"])
def test_scalars_and_accuracies_are_those_of_the_released_loop(family, heads, mlps, n, epochs):
    """The last step of an epoch has two questions."""
    vlm = opened(family)
    train, test = lettered(n), lettered(8, "test")
    loop = Loop(vlm, heads, mlps, RAW if family == "llava_next" else None)
    accuracies = [loop.accuracy(test)]
    steps = 0
    for _ in range(epochs):
        steps += loop.epoch(train)
        accuracies.append(loop.accuracy(test))
    assert steps == {6: 4, 42: 110}[n]
    found = si.fit_scale(vlm, train, None if heads else [], mlps, recipe="release", epochs=epochs, every_epoch=True)
    scale, mlp = (s.detach() for s in loop.scalars())
    assert (found.scalars - scale).abs().max() <= 1e-5 and (found.mlp_scalars - mlp).abs().max() <= 1e-5
    assert max((scale - 1).abs().max(), (mlp - 1).abs().max()) > {4: 0.02, 110: 0.3}[steps]  # they have moved
    assert [e.accuracy for e in si.evaluate_many(vlm, test, found.trajectory)] == pytest.approx(accuracies, abs=1e-6)
    assert si.evaluate(vlm, test).accuracy == pytest.approx(accuracies[0], abs=1e-6)
    assert found.history[-1]["train_accuracy"] == pytest.approx(loop.accuracy(train), abs=1e-6)


def test_the_letter_scored_is_the_release_s_token():
    question = lettered(1)[0]
    for family in ("qwen2_5_vl", "llava_next"):
        vlm = opened(family)
        assert [ids for (ids,) in vlm.choice_ids(question)] == letter_ids(vlm, question)
        assert vlm.prompt_text(question).endswith(" Answer: ") == (family == "llava_next")
        logits = vlm.hf_model(**raw_inputs(vlm, question, RAW if family == "llava_next" else None)).logits[0, -1]
        assert (si.run_edits(vlm, question)[0, 0] - logits[letter_ids(vlm, question)]).abs().max() < 1e-5


def test_every_part_of_the_recipe_is_an_option(vlm):
    train = si.load_questions("scenes/relation", "train", n=12)
    settings = {k: v for k, v in RECIPES["release"].items()} | {"epochs": 2}
    named, spelt = si.fit_scale(vlm, train, recipe="release", epochs=2), si.fit_scale(vlm, train, **settings)
    assert torch.equal(named.scalars, spelt.scalars) and named.settings == spelt.settings
    for change in ({"loss": "choices"}, {"l2": 10.0}, {"eps": 1.0}, {"clip": 1e-6}, {"accumulate": 1}, {"order": "shuffled"}):
        assert not torch.equal(named.scalars, si.fit_scale(vlm, train, recipe="release", **{"epochs": 2, **change}).scalars), change
    assert named.settings["best_epoch"] == 2 and "validation_loss" not in named.history[0] and named.trajectory is None
    held = si.fit_scale(vlm, train, recipe="release", epochs=2, validation=0.5, keep="best", every_epoch=True)
    assert {"validation_loss", "validation_accuracy", "train_accuracy"} < set(held.history[0])
    assert torch.equal(held.trajectory.scalars[held.settings["best_epoch"]], held.scalars)


def test_the_loss_over_the_vocabulary_is_of_the_whole_answer(vlm):
    """Also where choices have several tokens: their log-likelihood."""
    train = si.load_questions("scenes/relation", "train", n=4)
    row = si.fit_scale(vlm, train, recipe="release", epochs=1).history[0]
    scores = si.run_edits(vlm, train, scoring="whole")[:, 0]
    assert row["train_loss"] == pytest.approx(float(-scores[range(4), [q.answer for q in train]].mean()), abs=1e-5)


def test_gradients_are_clipped_for_each_fit_alone(vlm):
    train = si.load_questions("scenes/relation", "train", n=8)
    wrong = tuple((q.answer + 1) % len(q.choices) for q in train)
    fits = [si.Fit("a"), si.Fit("b", ((2, 0),), mlp=False), si.Fit("c", answers=wrong)]
    together = si.fit_scales(vlm, train, fits, recipe="release", clip=1e-3, eps=1e-2, epochs=2)
    for fit, beside in zip(fits, together, strict=True):
        alone = si.fit_scales(vlm, train, [fit], recipe="release", clip=1e-3, eps=1e-2, epochs=2)[0]
        assert torch.allclose(alone.scalars, beside.scalars, atol=1e-6) and torch.allclose(alone.mlp_scalars, beside.mlp_scalars, atol=1e-6)


def test_a_stopped_release_fit_goes_on_with_the_same_numbers(vlm, tmp_path):
    train = si.load_questions("scenes/relation", "train", n=8)
    whole = si.fit_scale(vlm, train, recipe="release", epochs=3, every_epoch=True)
    with si.resumable(tmp_path), watched_epochs(2), pytest.raises(KeyboardInterrupt):
        si.fit_scale(vlm, train, recipe="release", epochs=3, every_epoch=True)
    with si.resumable(tmp_path):
        resumed = si.fit_scale(vlm, train, recipe="release", epochs=3, every_epoch=True)
    assert torch.equal(whole.scalars, resumed.scalars) and torch.equal(whole.trajectory.scalars, resumed.trajectory.scalars)
    assert whole.history == resumed.history


def test_prompts_in_other_batches_are_refused(vlm):
    train = si.load_questions("scenes/relation", "train", n=8)
    with pytest.raises(EditError, match=r"give PrefixStore\(vlm, train, 4\)"):
        si.fit_scale(vlm, train, recipe="release", prompts=PrefixStore(vlm, train, 8))


def test_a_trajectory_is_saved(vlm, tmp_path):
    train = si.load_questions("scenes/relation", "train", n=8)
    scale = si.fit_scale(vlm, train, recipe="release", epochs=2, every_epoch=True)
    scale.trajectory.save(tmp_path / "epochs.safetensors")
    again = si.Trajectory.load(tmp_path / "epochs.safetensors")
    assert torch.equal(again.scalars, scale.trajectory.scalars) and len(again) == 3
    assert torch.equal(again.edit(2).scale[0], scale.scalars) and again.scope == scale.scope
    scale.save_pretrained(tmp_path / "scale")
    assert si.ScAle.from_pretrained(tmp_path / "scale").trajectory is None
    with pytest.raises(EditError, match="from 0, the start, to 2"):
        again.edit(3)
