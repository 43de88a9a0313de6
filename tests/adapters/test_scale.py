import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.bench.fits import bench_fits, read_fits
from scale_interp.errors import DataError, EditError, FileError


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", "train", n=96)


@pytest.fixture(scope="module")
def fitted(vlm, train):
    return si.fit_scale(vlm, train, epochs=4)


@pytest.fixture(scope="module")
def strong(vlm):
    """Scalars far from 1, so that answers do change."""
    draw = torch.Generator().manual_seed(5)
    heads = si.ScAle.neutral(vlm).heads
    return si.ScAle(2 * torch.rand(6, 8, generator=draw), 0.5 + torch.rand(6, generator=draw), 54, heads, settings={"mlp": True})


def test_fit_learns_and_counts_its_parameters(vlm, train, fitted):
    assert fitted.n_parameters == 54 and fitted.scalars.shape == (6, 8) and fitted.mlp_scalars.shape == (6,)
    assert (fitted.scalars > 0).all() and (fitted.scalars < 2).all()
    losses = [row["train_loss"] for row in fitted.history]
    assert losses[-1] < losses[0]
    assert {h for h, _ in fitted.ranking()} == set(fitted.heads)
    assert len(fitted.to_frame()) == 54


def test_chosen_heads_alone_move(vlm, train):
    scale = si.fit_scale(vlm, train, heads=[(2, 0), (3, 3)], mlp=False, epochs=2)
    moved = (scale.scalars != 1).nonzero().tolist()
    assert moved == [[2, 0], [3, 3]] and (scale.mlp_scalars == 1).all() and scale.n_parameters == 2


def test_layers_and_granularity(vlm, train):
    always_left = si.Fit(heads=tuple((i, h) for i in (3, 4) for h in range(8)), answers=(0,) * len(train))
    scale = si.fit_scales(vlm, train, [always_left], layers=[3, 4], granularity="layer", epochs=3)[0]
    assert scale.n_parameters == 4
    assert si.fit_scale(vlm, train, layers=[3, 4], epochs=1).n_parameters == 18
    assert (scale.scalars.amax(1) == scale.scalars.amin(1)).all()
    assert (scale.scalars[:, 0] != 1).nonzero().flatten().tolist() == [3, 4] == (scale.mlp_scalars != 1).nonzero().flatten().tolist()


def test_layers_hold_for_every_fit_and_for_what_is_made_of_it(vlm, train, tmp_path):
    """Also for fits of all heads, for which heads of other layers were learned, and for scalars that are permuted or drawn."""
    plan = [si.Fit("all"), si.Fit("some", ((3, 1), (2, 0)))]
    fits = si.fit_scales(vlm, train, plan, layers=[4, 3], epochs=1, validation=0.0, keep="last")
    assert [fit.n_parameters for fit in fits] == [18, 3]
    made = [one for fit in fits for one in (fit, fit.permuted(0), fit.randomised(0))]
    fits[0].save_pretrained(tmp_path)
    for scale in [*made, si.ScAle.from_pretrained(tmp_path)]:
        moved = (scale.scalars != 1).any(1) | (scale.mlp_scalars != 1)
        assert moved[3] and not moved[[0, 1, 2, 5]].any()
        assert set(scale.to_frame().layer) <= {3, 4}
    column = si.viz.scalar_heatmap(fits[0]).data[1].z[:, 0]
    assert np.isfinite(column).tolist() == [False, False, False, True, True, False]
    assert fits[0].permuted(0).mlp_scalars[3:5].sort().values.equal(fits[0].mlp_scalars[3:5].sort().values)


@pytest.mark.parametrize("bound", ["tanh", "sigmoid", "clamp", "exp", "none"])
def test_bounds_start_at_one_and_hold(vlm, train, bound):
    settings = si.FitSettings(bound=bound, radius=0.5)
    assert torch.equal(settings.scalars(torch.zeros(3)), torch.ones(3))
    low, high = {"tanh": (0.5, 1.5), "sigmoid": (0, 2), "clamp": (0.5, 1.5), "exp": (0.6, 1.65), "none": (-9, 11)}[bound]
    extreme = settings.scalars(torch.tensor([-10.0, 10.0]))
    assert low <= extreme[0] <= extreme[1] <= high
    scale = si.fit_scale(vlm, train, bound=bound, radius=0.5, epochs=1, lr=0.5, heads=[(3, 3)])
    assert low <= scale.scalars.min() and scale.scalars.max() <= high


def test_fits_side_by_side_equal_fits_one_by_one(vlm, train):
    flipped = tuple((q.answer + 1) % 4 for q in train)
    fits = [
        si.Fit("a", seed=0),
        si.Fit("b", ((2, 0), (3, 3)), mlp=False, seed=1),
        si.Fit("c", answers=flipped, seed=2),
        si.Fit("d", frozen=True),
    ]
    together = si.fit_scales(vlm, train, fits, epochs=3)
    for fit, beside in zip(fits, together, strict=True):
        alone = si.fit_scales(vlm, train, [fit], epochs=3)[0]
        assert torch.allclose(alone.scalars, beside.scalars, atol=1e-4)
        assert torch.allclose(alone.mlp_scalars, beside.mlp_scalars, atol=1e-4)
        assert alone.settings["best_epoch"] == beside.settings["best_epoch"]
    assert (together[3].scalars == 1).all() and together[3].n_parameters == 0


@pytest.mark.full
def test_benchmark_of_fits_compares_them_with_fits_alone(tmp_path):
    result = CliRunner().invoke(
        cli.app, ["bench", "tiny-random/llava", "--fits", "--questions", "8", "--repeats", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    found = read_fits(tmp_path / "fits.json")
    assert found.fits == 32 and found.largest_difference < 1e-4 < found.about["moved"] and found.about["epochs"] == 10
    assert found.ratio == found.together / found.one and "32 fits side by side" in result.output
    (tmp_path / "other.json").write_text('{"fits": 2}')
    with pytest.raises(FileError, match="is not a benchmark of fits"):
        read_fits(tmp_path / "other.json")
    with pytest.raises(EditError, match="at least two"):
        bench_fits(si.load("tiny-random/llava"), si.load_questions("scenes/relation", n=4), fits=1)


def test_fit_is_repeatable_and_the_seed_counts(vlm, train):
    a, b, c = (si.fit_scale(vlm, train, epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.scalars, b.scalars) and not torch.equal(a.scalars, c.scalars)


def test_a_fit_that_never_helps_stays_at_one(vlm, train):
    scale = si.fit_scale(vlm, train, epochs=3, lr=50.0, bound="none")
    assert (scale.scalars == 1).all() and scale.settings["best_epoch"] == 0


def test_sparsity_penalty_shrinks(vlm, train):
    plain, sparse = (si.fit_scale(vlm, train, epochs=6, l1=penalty, patience=9) for penalty in (0.0, 20.0))
    assert (sparse.scalars - 1).abs().mean() < 0.5 * (plain.scalars - 1).abs().mean()


def test_retention_penalty_keeps_other_answers(vlm, train):
    others = si.load_questions("scenes/shape", "train", n=48)
    base = si.run_edits(vlm, others)[:, 0].log_softmax(-1)

    def divergence(scale):
        return (base.exp() * (base - si.run_edits(vlm, others, scale)[:, 0].log_softmax(-1))).sum(-1).mean()

    free = si.fit_scale(vlm, train, epochs=6, patience=9)
    kept = si.fit_scale(vlm, train, epochs=6, patience=9, retain=others, retain_weight=20.0)
    assert divergence(kept) < 0.5 * divergence(free)
    assert "retain_kl" in kept.history[-1]


@pytest.mark.parametrize("scope", ["last", "each_new_token"])
def test_attached_model_scores_as_the_engine_does(vlm, mixed, strong, scope):
    scale = si.ScAle(strong.scalars, strong.mlp_scalars, 54, strong.heads, scope)
    engine = si.run_edits(vlm, mixed, scale)[:, 0]
    with scale.attached(vlm), torch.no_grad():
        for q, question in enumerate(mixed):
            ids = [c[0] for c in vlm.choice_ids(question)]
            logits = vlm.hf_model(**vlm.encode(question)).logits[0, -1, ids]
            assert torch.allclose(engine[q, : len(ids)], logits, atol=1e-5)
    assert not vlm.decoder._forward_pre_hooks and not vlm.decoder.layers[0].self_attn.o_proj._forward_pre_hooks


def test_generate_with_scalars_edits_every_new_token_in_scope(vlm, mixed, strong):
    """Against greedy decoding without a cache, edited by plain hooks."""
    from tests.support.oracle import hooked_logits

    for scope in ("last", "each_new_token"):
        scale = si.ScAle(strong.scalars, strong.mlp_scalars, 54, strong.heads, scope)
        for question in mixed[:4]:
            inputs = dict(vlm.encode(question))
            T = inputs["input_ids"].shape[1]
            for _ in range(4):
                end = inputs["input_ids"].shape[1] if scope == "each_new_token" else T
                with torch.no_grad():
                    logits = hooked_logits(vlm.hf_model, inputs, strong.scalars, None, strong.mlp_scalars, range(T - 1, end))
                token = logits[-1].argmax().view(1, 1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with scale.attached(vlm), torch.no_grad():
                out = vlm.hf_model.generate(**vlm.encode(question), max_new_tokens=4, min_new_tokens=4, do_sample=False)
            eos = vlm.tokenizer.eos_token_id
            expected, found = inputs["input_ids"][0, T:].tolist(), out[0, T:].tolist()
            if eos not in expected:
                assert found == expected
            else:
                assert found[: expected.index(eos)] == expected[: expected.index(eos)]


def test_batch_generation_with_scalars_equals_single(vlm, mixed, strong):
    with strong.attached(vlm):
        assert vlm.generate(list(mixed), max_new_tokens=3) == [vlm.generate(q, max_new_tokens=3) for q in mixed]


def test_generating_without_a_cache_is_refused(vlm, mixed, strong):
    with strong.attached(vlm), pytest.raises(EditError, match="use_cache=True"):
        vlm.generate(mixed[0], max_new_tokens=3, min_new_tokens=3, use_cache=False)


@pytest.mark.full
def test_saved_scalars_answer_the_same_in_a_new_process(vlm, strong, tmp_path):
    strong.save_pretrained(tmp_path / "scale")
    code = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
import scale_interp as si
scale, folder = si.ScAle.from_pretrained(sys.argv[1]), sys.argv[2]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
processor = AutoProcessor.from_pretrained(folder)
processor.tokenizer.padding_side = "left"
with scale.attached(model):
    for q in si.load_questions("scenes/relation", n=16):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.text}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=[q.image], text=[text], return_tensors="pt", add_special_tokens=False)
        ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        print(processor.decode(ids[0, -1:]))
"""
    (tmp_path / "answer.py").write_text(code)
    from scale_interp.models import demo

    out = subprocess.run(
        [sys.executable, tmp_path / "answer.py", tmp_path / "scale", demo.folder("demo")], capture_output=True, text=True, check=True
    )
    questions = si.load_questions("scenes/relation", n=16)
    with strong.attached(vlm):
        here = vlm.generate(list(questions), max_new_tokens=1)
    assert out.stdout.split() == here
    assert here != vlm.generate(list(questions), max_new_tokens=1)
    answers = si.evaluate(vlm, questions, strong).answers
    assert [a for a, h in zip(answers, here, strict=True) if h in questions[0].choices] == [h for h in here if h in questions[0].choices]


def test_scalars_survive_the_disk(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    again = si.ScAle.from_pretrained(tmp_path)
    assert torch.equal(again.scalars, fitted.scalars) and torch.equal(again.mlp_scalars, fitted.mlp_scalars)
    assert (again.n_parameters, again.heads, again.scope, again.history) == (
        fitted.n_parameters,
        fitted.heads,
        fitted.scope,
        fitted.history,
    )
    assert dict(again.settings) == dict(fitted.settings) and dict(again.provenance) == dict(fitted.provenance)
    config = json.loads((tmp_path / "scale_config.json").read_text())
    assert config["provenance"]["model"] == "demo" and config["largest"][0]["scalar"] == round(fitted.ranking()[0][1], 4)


def test_damaged_and_foreign_folders_are_refused(fitted, tmp_path):
    def broken(change):
        fitted.save_pretrained(tmp_path)
        change()
        with pytest.raises(FileError) as error:
            si.ScAle.from_pretrained(tmp_path)
        return str(error.value)

    config, weights = tmp_path / "scale_config.json", tmp_path / "scale.safetensors"
    assert "no file" in broken(config.unlink)
    assert "no file" in broken(weights.unlink)
    assert "damaged" in broken(lambda: weights.write_bytes(weights.read_bytes()[:50]))
    assert "damaged" in broken(lambda: config.write_text(config.read_text()[:50]))
    assert "describes 'LoRA'" in broken(lambda: config.write_text('{"method": "LoRA"}'))
    assert "missing or wrong" in broken(lambda: config.write_text('{"method": "ScAle"}'))
    assert "no JSON object" in broken(lambda: config.write_text("[1]"))


def test_fading_permuting_and_randomising(strong):
    assert torch.equal(strong.edit(0.0).scale, torch.ones(1, 6, 8)) and torch.allclose(strong.edit(1.0).scale[0], strong.scalars)
    permuted = strong.permuted(0)
    assert not torch.equal(permuted.scalars, strong.scalars)
    assert torch.equal(permuted.scalars.flatten().sort().values, strong.scalars.flatten().sort().values)
    drawn = strong.randomised(0)
    assert abs(float(drawn.scalars.std() / strong.scalars.std()) - 1) < 0.35
    assert torch.equal(drawn.scalars, strong.randomised(0).scalars) and not torch.equal(drawn.scalars, strong.randomised(1).scalars)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(6, 0)]}, "out of range"),
        ({"heads": [(1, 0), (1, 0)]}, "given twice"),
        ({"heads": [], "mlp": False}, "no head and no MLP"),
        ({"layers": [9]}, "layers"),
        ({"bound": "relu"}, "choose 'tanh'"),
        ({"granularity": "neuron"}, "choose 'head'"),
        ({"lr": 0}, "lr=0: give a number above 0"),
        ({"validation": 1.0}, "between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(vlm, train, options, message):
    with pytest.raises(EditError, match=message):
        si.fit_scale(vlm, train, **options)


def test_too_few_questions_are_refused(vlm, train):
    with pytest.raises(DataError, match="empty set"):
        si.fit_scale(vlm, [])
    with pytest.raises(DataError, match="none is left to learn"):
        si.fit_scale(vlm, train[:1])
