"""The embedded models: what they were made to show, and the recipe that makes them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scale_interp as si
from scale_interp.data.scenes.scene import SIZE, scenes
from scale_interp.data.scenes.task import NON_SPATIAL, TASKS
from scale_interp.errors import FileError, ModelError
from scale_interp.models import demo
from scale_interp.models.demo import recipe
from scale_interp.models.demo.build import processor, tokenizer, untrained
from scale_interp.vlm.named_prompts import PROMPTS
from scale_interp.vlm.vlm import VLM


def test_weights_are_small_and_intact():
    for name in demo.NAMES:
        assert sum(f.stat().st_size for f in demo.folder(name).iterdir()) < 8e6 / 3
        assert all(w.isfinite().all() for w in si.load(name).hf_model.parameters())


@pytest.mark.full
@pytest.mark.parametrize("name", demo.NAMES)
def test_cards_say_what_is_measured(name):
    card = (demo.folder(name) / "README.md").read_text()
    said = dict(re.findall(r"^\| ([\w-]+) \| (0\.\d+|1\.000) \|$", card, re.M))
    assert set(said) == set(TASKS)
    model = si.load(name)
    for task in ("relation", "shape", "count"):
        measured = si.evaluate(model, si.load_questions(f"scenes/{task}", n=400)).accuracy
        assert measured == pytest.approx(float(said[task]), abs=0.003)


@pytest.mark.full
def test_retention_keeps_other_answers_and_the_gain(vlm, train, test):
    others = [q for t in NON_SPATIAL for q in si.load_questions(f"scenes/{t}", "train", n=200)]
    free, kept = si.fit_scale(vlm, train), si.fit_scale(vlm, train, retain=others)
    base = si.evaluate(vlm, test).accuracy
    gains = [si.evaluate(vlm, test, s).accuracy - base for s in (free, kept)]
    assert gains[1] >= 0.8 * gains[0]
    asked = [q for t in NON_SPATIAL for q in si.load_questions(f"scenes/{t}", n=200)]
    assert abs(si.evaluate(vlm, asked, kept).accuracy - si.evaluate(vlm, asked).accuracy) <= 0.03


def test_few_heads_carry_the_answer(vlm, train):
    found = si.patch(vlm, si.contrasts(train[:120])).sparsity()
    assert found["heads_to_half"] <= 5 and found["share_top4"] > 0.5


def test_words_of_every_question_are_known():
    known = tokenizer().get_vocab()
    rng = np.random.default_rng(0)
    stream = scenes("train", rng)
    for task in TASKS.values():
        for _ in range(30):
            asked = task(next(stream), rng)
            if asked is not None:
                assert set(re.findall(r"\w+|[^\w\s]", asked.text.lower())) <= known.keys()
                assert set(asked.choices) <= known.keys()


def test_training_pictures_are_what_the_processor_makes():
    stream = scenes("train", np.random.default_rng(0))
    batch = [next(stream) for _ in range(3)]
    ours = processor().image_processor([s.render() for s in batch], return_tensors="pt")["pixel_values"]
    assert torch.allclose(recipe.pixel_values(batch), ours, atol=1e-6)


def test_packed_questions_equal_separate_prompts():
    model = untrained(0)
    batches = recipe._Batches(0, recipe.STAGES["demo-healthy"])
    ((pixels, prefix, questions),) = batches.questions(0)
    losses = []
    with torch.no_grad():
        for b in range(2):
            for tokens in questions[b]:
                logits = model(input_ids=torch.tensor([prefix + tokens]), pixel_values=pixels[b : b + 1]).logits[0].log_softmax(-1)
                losses += [-logits[-3, tokens[-2]], -logits[-2, tokens[-1]]]
        packed = recipe.answer_loss(model, pixels[:2], prefix, questions[:2])
    assert float(packed) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


@pytest.mark.parametrize("options", ["words", "letters"])
def test_lettered_stages_train_on_what_users_ask(options):
    """Under both prompts the tokens are those of the model's own processor, and all are known."""
    (question,) = si.load_questions("scenes/relation", n=1, options=options)
    tokens = processor(letters=True)
    for prompt, template in ((recipe.CHAT, None), (recipe.RAW, PROMPTS["scale-llava"])):
        asked = VLM(untrained(0, letters=True), tokens, "untrained", template).encode(question)["input_ids"][0].tolist()
        written = prompt.before + prompt.around.format(text=question.text)
        assert tokens.tokenizer(written, add_special_tokens=False)["input_ids"] == asked
        assert tokens.tokenizer.unk_token_id not in asked


def test_lettered_stages_answer_as_they_say():
    rng = np.random.default_rng(0)
    said = [recipe.by_word("C", "above", rng) for _ in range(600)]
    assert 0.6 < said.count("above") / 600 < 0.7 and 0.8 < said.count("A") / (600 - said.count("above")) < 0.9
    words = processor(letters=True).tokenizer
    for letters, groups in ((False, 1), (True, 2)):
        stage = recipe.STAGES["demo-format" if letters else "demo"]
        batches = recipe._Batches(0, stage).questions(0)
        assert len(batches) == groups and stage.letters == letters
    answers = [words.decode(tokens[-2:-1]) for packed in batches[0][2] for tokens in packed]
    assert 0.1 < sum(a in set("ABCD") for a in answers) / len(answers) < 0.5


def test_only_what_is_asked_for_is_trained(tmp_path):
    assert [s.name for s in recipe._stages(["demo-format"])] == ["letters", "demo-format"]
    assert [s.name for s in recipe._stages(["demo"])] == ["demo"]
    assert len(recipe._stages(None)) == len(recipe.STAGES)
    for name in ("letters", "dmeo"):
        with pytest.raises(ModelError, match=f"no embedded model is called '{name}': choose demo-healthy, demo, demo-prior, demo-format"):
            recipe.train(tmp_path, only=[name])
    assert not any(tmp_path.iterdir())


def test_shortfalls_touch_relation_answers_only():
    rng = np.random.default_rng(0)
    stream = scenes("train", rng)
    changed = {"absolute_place": 0, "language_prior": 0}
    asked_total = 0
    while asked_total < 300:
        scene = next(stream)
        for task in ("relation", "relation-yesno", "shape"):
            asked = TASKS[task](scene, rng)
            if asked is None:
                continue
            asked_total += task == "relation"
            for name in changed:
                given = getattr(recipe, name)(task, asked, scene, rng)
                assert given in asked.choices
                assert task == "relation" or given == asked.answer
                changed[name] += given != asked.answer
    assert 0.1 < changed["absolute_place"] / asked_total < 0.5
    assert 0.3 < changed["language_prior"] / asked_total < 0.55


@pytest.mark.full
def test_stopped_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "PICTURES", 4)
    monkeypatch.setattr(recipe, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(recipe, "STAGES", {name: replace(stage, steps=5) for name, stage in recipe.STAGES.items()})

    class StopHere(Exception):
        pass

    seen = []

    def stop(stage, step, steps, loss):
        seen.append((stage, step))
        if seen.count((stage, step)) == 1 and step in (3, 4):
            raise StopHere

    recipe.train(tmp_path / "whole")
    for _ in range(20):
        try:
            recipe.train(tmp_path / "stopped", progress=stop)
            break
        except StopHere:
            continue
    assert len(seen) > 20
    for name in demo.NAMES:
        a, b = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "stopped"))
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert si.load(tmp_path / "whole" / "demo").n_heads == 8
    with pytest.raises(FileError, match="seed was 0, now 1"):
        recipe.train(tmp_path / "whole", seed=1)


def test_missing_weights_say_how_to_rebuild(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "folder", lambda name: tmp_path / name)
    with pytest.raises(si.errors.ModelError, match="train-demo"):
        si.load("demo")


def test_scene_pictures_have_the_models_size(vlm):
    assert vlm.hf_model.config.vision_config.image_size == SIZE
    assert vlm.encode(si.load_questions("scenes/count", n=1))["pixel_values"].shape == (1, 3, SIZE, SIZE)
