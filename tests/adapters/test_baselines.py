import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

import scale_interp as si
from scale_interp import viz
from scale_interp.adapters.baselines.peft_adapter import _linear_names, _name_pattern
from scale_interp.adapters.scale.fit import FitSettings, learning_mask
from scale_interp.errors import EditError, FileError, LeakError, ModelError

FAST = {"epochs": 1, "learning_rates": [3e-3]}


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", split="train", n=32)


@pytest.fixture(scope="module")
def test():
    return si.load_questions("scenes/relation", split="test", n=40)


@pytest.fixture(scope="module")
def lora(vlm, train):
    return si.fit_lora(vlm, train, rank=2, epochs=3, learning_rates=[1e-2])


@pytest.fixture(scope="module")
def ia3(vlm, train):
    return si.fit_ia3(vlm, train, epochs=3, learning_rates=[3e-2])


@pytest.fixture(scope="module")
def bias(vlm, train):
    return si.fit_bias(vlm, train, epochs=3, learning_rates=[1e-2])


@torch.no_grad()
def logits(model, vlm, questions):
    return model(**vlm.encode(questions)).logits


def test_parameters_are_those_of_the_method(vlm, lora, ia3, bias):
    L, d, f = vlm.n_layers, vlm.d_model, 2 * vlm.d_model
    assert lora.n_parameters == L * 2 * (4 * 2 * d + 3 * (d + f))
    assert ia3.n_parameters == L * (2 * d + f)
    assert bias.n_parameters == L * d
    assert str(lora) == "<LoRA r=2 of 26,112 parameters>"


def test_only_the_text_decoder_is_adapted(vlm, lora, ia3):
    pattern = _name_pattern(vlm, _linear_names(vlm))
    named = {name for name, m in vlm.hf_model.named_modules() if isinstance(m, torch.nn.Linear) and re.fullmatch(pattern, name)}
    assert len(named) == 7 * vlm.n_layers
    assert any("vision" in name and name.endswith("q_proj") for name, _ in vlm.hf_model.named_modules())
    assert not any("vision" in name for adapter in (lora, ia3) for name in (*named, *adapter.weights))


def test_the_base_model_is_left_as_it_was(vlm, train, test):
    before, modules = logits(vlm.hf_model, vlm, test[:8]), dict(vlm.hf_model.named_modules())
    needed = {name: p.requires_grad for name, p in vlm.hf_model.named_parameters()}
    for fit in (si.fit_lora, si.fit_ia3):
        made = fit(vlm, train[:16], **FAST)
        with made.attached(vlm):
            assert not torch.equal(logits(vlm.hf_model, vlm, test[:8]), before)
            with pytest.raises(ModelError, match="already"), made.attached(vlm):
                pass
        assert torch.equal(logits(vlm.hf_model, vlm, test[:8]), before), "not one bit"
    after = dict(vlm.hf_model.named_modules())
    assert after.keys() == modules.keys() and all(after[name] is module for name, module in modules.items())
    assert needed == {name: p.requires_grad for name, p in vlm.hf_model.named_parameters()}
    assert all(p.grad is None for p in vlm.hf_model.parameters())


def test_an_adapter_fits_its_own_model_only(vlm, lora):
    other = si.load("tiny-random/llava")
    with pytest.raises(EditError, match="other modules"), lora.attached(other):
        pass
    assert not hasattr(other.hf_model, "peft_config")


def test_the_base_model_is_left_as_it_was_by_an_error(vlm, test, lora):
    before = logits(vlm.hf_model, vlm, test[:4])
    with pytest.raises(RuntimeError, match="inside"), lora.attached(vlm):
        raise RuntimeError("inside")
    assert torch.equal(logits(vlm.hf_model, vlm, test[:4]), before)


@pytest.mark.parametrize("which", ["lora", "ia3"])
def test_peft_itself_reads_and_runs_the_adapter(which, vlm, test, request, tmp_path):
    """The oracle is peft's own model, read from the folder, in whole forward passes; ours is evaluated behind packed prompts."""
    adapter = request.getfixturevalue(which)
    adapter.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(copy.deepcopy(vlm.hf_model), tmp_path).eval()
    asked = test[:6]
    ids = torch.tensor([[choice[0] for choice in vlm.choice_ids(q)] for q in asked])
    wanted = logits(theirs, vlm, asked)[:, -1].gather(1, ids)
    with adapter.attached(vlm):
        found = si.evaluate(vlm, asked).scores
    assert torch.allclose(found, wanted, atol=2e-5)


def test_gradients_are_those_of_a_whole_forward_pass(vlm, train):
    """One epoch on one batch is one AdamW step: the oracle takes it with peft and transformers alone."""
    from peft import IA3Config, get_peft_model

    made = si.fit_ia3(vlm, train, epochs=1, learning_rates=[1e-2])
    assert made.settings["best_epoch"] == 1
    learn = [q for q, on in zip(train, learning_mask(train, FitSettings().validation, 0), strict=True) if on]
    model = get_peft_model(
        copy.deepcopy(vlm.hf_model),
        IA3Config(target_modules=made.config["target_modules"], feedforward_modules=made.config["feedforward_modules"]),
    )
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.tensor([[choice[0] for choice in vlm.choice_ids(q)] for q in learn])
    scores = model(**vlm.encode(learn)).logits[:, -1].gather(1, ids)
    torch.nn.functional.cross_entropy(scores, torch.tensor([q.answer for q in learn])).backward()
    torch.optim.AdamW(list(own.values()), lr=1e-2, weight_decay=0.0).step()
    for name, weight in made.weights.items():
        wanted = own[f"base_model.model.{name}.default"]
        # AdamW's first step is the gradient's sign: where a gradient is all but 0, rounding decides.
        clear = wanted.grad.abs() > 1e-6
        assert torch.allclose(weight[clear], wanted[clear], atol=1e-5)
        assert clear.any()


def test_training_helps_where_it_learns(lora, ia3, bias):
    for made in (lora, ia3, bias):
        losses = [row["train_loss"] for row in made.history[1:]]
        assert losses[-1] < losses[0]
        assert made.settings["validation_loss"] == min(row["validation_loss"] for row in made.history)


def test_the_learning_rate_is_chosen_by_the_held_out_loss(vlm, train):
    made = si.fit_bias(vlm, train, epochs=2, learning_rates=[1e-6, 1e-2, 10.0])
    assert [t["lr"] for t in made.settings["tried"]] == [1e-6, 1e-2, 10.0]
    best = min(made.settings["tried"], key=lambda t: t["validation_loss"])
    assert made.settings["lr"] == best["lr"] != 10.0


def test_the_same_pictures_are_held_out_as_by_fit_scale(vlm, train):
    """ScAle and the bias begin from the same model: before any step they have the same loss on the same held-out pictures."""
    for seed in (0, 3):
        scale = si.fit_scale(vlm, train, epochs=1, seed=seed)
        made = si.fit_bias(vlm, train, epochs=1, learning_rates=[1e-3], seed=seed)
        assert made.history[0]["validation_loss"] == pytest.approx(scale.history[0]["validation_loss"], abs=1e-5)
    assert not torch.equal(learning_mask(train, 0.2, 0), learning_mask(train, 0.2, 3))


@pytest.mark.full
def test_fits_are_repeatable(vlm, train, lora):
    again = si.fit_lora(vlm, train, rank=2, epochs=3, learning_rates=[1e-2])
    assert all(torch.equal(again.weights[name], weight) for name, weight in lora.weights.items())
    other = si.fit_lora(vlm, train, rank=2, epochs=1, learning_rates=[1e-2], seed=1)
    assert any(not torch.equal(other.weights[name], weight) for name, weight in lora.weights.items())


def test_the_bias_is_an_edit(vlm, test, bias):
    asked = test[:6]
    packed = si.evaluate(vlm, asked, bias).scores
    assert torch.allclose(packed, si.evaluate(vlm, asked, bias, path="reference").scores, atol=2e-5)
    with bias.attached(vlm):
        ids = torch.tensor([[choice[0] for choice in vlm.choice_ids(q)] for q in asked])
        assert torch.allclose(packed, logits(vlm.hf_model, vlm, asked)[:, -1].gather(1, ids), atol=2e-5)


def test_several_tokens_an_answer(vlm, train):
    words = {"left": "above left", "right": "above right", "above": "below left", "below": "below right"}
    asked = [
        si.Question(q.text, tuple(words[c] for c in q.choices), q.answer, picture=q.picture, id=q.id, group=q.group) for q in train[:12]
    ]
    for fit in (si.fit_ia3, si.fit_bias):
        losses = [row["train_loss"] for row in fit(vlm, asked, epochs=4, learning_rates=[1e-2]).history[1:]]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "idefics3"])
def test_other_families(family):
    vlm = si.load(f"tiny-random/{family}")
    asked = si.load_questions("scenes/exists", split="train", n=6)
    before = logits(vlm.hf_model, vlm, asked[:1])
    for fit in (si.fit_lora, si.fit_ia3):
        made = fit(vlm, asked, validation=0.4, **FAST)
        assert not any("vision" in name or "visual" in name for name in made.weights)
    assert torch.equal(logits(vlm.hf_model, vlm, asked[:1]), before)


def test_bad_input(vlm, train):
    with pytest.raises(EditError, match="rank=0"):
        si.fit_lora(vlm, train, rank=0)
    with pytest.raises(EditError, match="learning_rates"):
        si.fit_bias(vlm, train, learning_rates=[])
    with pytest.raises(EditError, match="l1"):
        si.fit_bias(vlm, train, l1=1.0)
    with pytest.raises(EditError, match="gradients"):
        si.fit_ia3(vlm, train, path="reference")


@pytest.fixture(scope="module")
def table(vlm, train, test):
    others = si.load_questions("scenes/exists", split="test", n=24)
    return si.compare_baselines(vlm, train[:16], test[:20], others=others, ranks=(1, 2), epochs=1, rates=1)


@pytest.mark.full
def test_table(table, tmp_path):
    frame = table.to_frame()
    assert frame["method"].tolist() == ["ScAle", "last-token bias", "IA3", "LoRA r=1", "LoRA r=2"]
    assert frame["parameters"].tolist() == [54, 768, 3072, 13056, 26112]
    assert (frame["low"] <= frame["gain"]).all() and (frame["gain"] <= frame["high"]).all()
    assert np.allclose(frame["accuracy"] - table.about["base"]["accuracy"], frame["gain"])
    assert np.allclose(frame["scale_minus"][1:], table["ScAle"]["gain"] - frame["gain"][1:])
    assert (frame["p_corrected"] >= frame["p"]).all() and frame["seconds"].gt(0).all()
    assert table.lora in table.verdict and table["ScAle"]["recovered"] is None
    table.save(tmp_path / "baselines.json")
    again = si.Baselines.load(tmp_path / "baselines.json")
    assert again.rows == tuple(json.loads(json.dumps(list(table.rows)))) and again.verdict == table.verdict
    assert len(viz.baselines(again).data) == 10
    with pytest.raises(FileError, match="Transfer"):
        si.Transfer.load(tmp_path / "baselines.json")


def test_a_leak_is_refused(vlm, train, test):
    with pytest.raises(LeakError):
        si.compare_baselines(vlm, train, [*test, train[0]])
    with pytest.raises(LeakError):
        si.compare_baselines(vlm, train, test, others=train[:4])


@pytest.mark.full
def test_the_test_answers_choose_nothing(vlm, train, test):
    """With every test answer changed the fits, their rates and the LoRA that is compared with stay the same."""
    poisoned = [replace(q, answer=(q.answer + 1) % 4, id=q.id) for q in test]
    one, other = (si.compare_baselines(vlm, train[:8], asked[:16], ranks=(1,), epochs=1, rates=2) for asked in (test, poisoned))
    same = ("method", "lr", "epochs", "validation_loss")
    assert [[row[k] for k in same] for row in one.rows] == [[row[k] for k in same] for row in other.rows]
    assert [row["accuracy"] for row in one.rows] != [row["accuracy"] for row in other.rows]


@pytest.mark.full
def test_command_line(tmp_path):
    from typer.testing import CliRunner

    from scale_interp import cli

    flags = ["--rank=1", "--rates=1", "--epochs=1", "--n-train=16", "--n-test=12", "--n-others=4", f"--out={tmp_path}"]
    result = CliRunner().invoke(cli.app, ["baselines", "demo", "--data=scenes/relation", "--others=scenes/exists", *flags])
    assert result.exit_code == 0, result.output
    found = si.Baselines.load(tmp_path / "baselines.json")
    assert [row["method"] for row in found.rows] == ["ScAle", "last-token bias", "IA3", "LoRA r=1"]
    assert {p.name for p in tmp_path.iterdir()} >= {"baselines.json", "baselines.csv", "baselines.html", "settings.json"}
    assert "LoRA r=1" in result.output and "others_change" in found.rows[0]
