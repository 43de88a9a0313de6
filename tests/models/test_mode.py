"""The mode that a model is in is looked at wherever it runs: training, autocast, gradients that are off, modules that have changed."""

import copy
from contextlib import nullcontext

import pytest
import torch

import scale_interp as si
from scale_interp.adapters.attention_scaling.scalingvis import AttentionScale
from scale_interp.attribution.attention.last_token import read_attention
from scale_interp.attribution.joint_probe import fit_joint_probe, importance
from scale_interp.errors import ModelError, RunWarning
from scale_interp.evaluation.falsification.text_only import fit_text_correction
from tests.support.oracle import hooked_logits, plain_inputs
from tests.support.zoo_models import three_questions

peft = pytest.importorskip("peft")


@pytest.fixture
def vlm():
    return si.load("tiny-random/llava")


@pytest.fixture(scope="module")
def questions():
    return three_questions()


def entries(vlm, questions):
    """What runs the model, by name."""
    scale, edit = si.ScAle.neutral(vlm), si.Edit.identity(vlm.n_layers, vlm.n_heads)
    prompts = si.interventions.prefix.PrefixStore(vlm, questions)
    list(prompts)
    return {
        "evaluate": lambda: si.evaluate(vlm, questions),
        "evaluate on prompts that were read before": lambda: si.evaluate(vlm, questions, edit, path="packed", prompts=prompts),
        "run_edits": lambda: si.run_edits(vlm, questions, edit, path="reference"),
        "packed edits": lambda: si.run_edits(vlm, questions, edit, path="packed"),
        "fit_scale": lambda: si.fit_scale(vlm, questions, epochs=1),
        "ablate": lambda: si.ablate(vlm, questions),
        "capture": lambda: si.capture(vlm, questions),
        "generate": lambda: vlm.generate(questions[0]),
        "trace": lambda: vlm.trace(questions[0]).__enter__(),
        "attached scalars": lambda: scale.attached(vlm).__enter__(),
        "attached to a plain model": lambda: scale.attached(vlm.hf_model).__enter__(),
        "attached attention": lambda: AttentionScale(2.0).attached(vlm).__enter__(),
        "evaluate_text": lambda: si.evaluate_text(vlm, questions),
        "read_attention": lambda: read_attention(vlm, questions),
    }


def message(work):
    """What the work's ModelError says; nothing where it has none."""
    try:
        work()
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("change", ["all of it", "one dropout", "the vision tower", "with gradient checkpointing", "an adapter's own"])
def test_a_model_in_training_mode_is_refused_at_every_entry(vlm, questions, change):
    asked, model = entries(vlm, questions), vlm.hf_model
    if change == "all of it":
        model.train()
    elif change == "one dropout":
        vlm.decoder.layers[1].mlp = torch.nn.Sequential(vlm.decoder.layers[1].mlp, torch.nn.Dropout(0.5).train()).eval()
        vlm.decoder.layers[1].mlp[1].train()
    elif change == "the vision tower":
        model.model.vision_tower.train()
    elif change == "with gradient checkpointing":
        model.gradient_checkpointing_enable()
        model.train()
    else:
        config = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", lora_dropout=0.5)
        peft.inject_adapter_in_model(config, model)
    says = "gradient checkpointing" if "checkpointing" in change else "in training mode"
    for name, work in asked.items():
        assert says in message(work), name
    model.eval()
    assert si.evaluate(vlm, questions).scores.isfinite().any()


def test_gradient_checkpointing_in_evaluation_mode_changes_nothing(vlm, questions):
    before = si.evaluate(vlm, questions).scores
    vlm.hf_model.gradient_checkpointing_enable()
    assert torch.equal(si.evaluate(vlm, questions).scores, before)
    assert si.fit_scale(vlm, questions, epochs=1).scalars.isfinite().all()


def test_autocast_is_said(vlm, questions):
    for name in ("evaluate", "packed edits", "generate", "attached scalars"):
        work = entries(vlm, questions)[name]
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(RunWarning, match=r"autocast is on and computes in torch\.bfloat16"):
            work()


def test_training_that_changes_nothing_is_let_be(vlm, questions):
    """An adapter without dropout, a container: they are in training mode when they are new, and compute the same."""
    lora(vlm.hf_model)
    before = si.evaluate(vlm, questions).scores
    for module in vlm.hf_model.modules():
        if "lora" in type(module).__module__ or isinstance(module, torch.nn.ModuleList | torch.nn.Linear):
            module.training = True
    assert torch.equal(si.evaluate(vlm, questions).scores, before)


@pytest.mark.parametrize(("off", "says"), [(torch.no_grad, "torch.no_grad"), (torch.inference_mode, "torch.inference_mode is on")])
def test_what_needs_gradients_says_that_they_are_off(vlm, questions, off, says):
    pair = si.Contrast(questions[0], questions[0].__class__(questions[0].text, questions[0].choices, 1, picture=questions[1].picture))
    works = {
        "fit_scale": lambda: si.fit_scale(vlm, questions, epochs=1),
        "fit_scales": lambda: si.fit_scales(vlm, questions, [si.Fit(mlp=False)], epochs=1),
        "fit_lora": lambda: si.fit_lora(vlm, questions, rank=1, epochs=1, learning_rates=[1e-3]),
        "attribute": lambda: si.attribute(vlm, [pair]),
        "run_edits": lambda: si.run_edits(vlm, questions, si.Edit.identity(vlm.n_layers, vlm.n_heads), grad=True),
    }
    for name, work in works.items():
        with off():
            assert says in message(work), name
    torch.set_grad_enabled(False)
    try:
        with pytest.raises(ModelError, match="set_grad_enabled"):
            si.fit_scale(vlm, questions, epochs=1)
    finally:
        torch.set_grad_enabled(True)
    with off():
        assert torch.equal(si.evaluate(vlm, questions).scores, si.evaluate(vlm, questions).scores)


def test_prompts_and_weights_of_inference_mode(vlm, questions):
    with torch.inference_mode():
        prompts = si.interventions.prefix.PrefixStore(vlm, questions)
        list(prompts)
    assert si.fit_scale(vlm, questions, epochs=1, prompts=prompts).scalars.isfinite().all()
    with torch.inference_mode():
        other = si.load("tiny-random/llava")
        made = copy.deepcopy(other.hf_model)
        for weight in made.parameters():
            weight.data = weight.data.clone()
    bad = next((w for w in made.parameters() if w.is_inference()), None)
    if bad is not None:
        with pytest.raises(ModelError, match=r"was made in torch\.inference_mode"):
            si.fit_scale(si.load(made, other.processor), questions, epochs=1)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, nullcontext])
def test_fits_on_numbers_alone_do_not_care(off):
    with off():
        z, codes = torch.randn(12, 2, 2, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
        effects, _ = importance(fit_joint_probe(z, codes, 2, epochs=2), z, codes)
        qs = [si.Question(f"Is it {i}?", ("yes", "no"), i % 2, id=str(i)) for i in range(12)]
        made = fit_text_correction(torch.zeros(12, 2), qs, True)
        assert effects.shape == (12, 2, 2) and made.weights.abs().max() > 0


def lora(model, **options):
    torch.manual_seed(0)
    names = r".*language_model.*(o_proj|q_proj|down_proj)"
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, **options), model)
    model.eval()


def test_edits_reach_a_model_that_was_given_an_adapter(vlm, questions):
    """Its modules are others than when it was loaded: edits go to what is there now."""
    edit = si.Edit(scale=2 * torch.rand(1, vlm.n_layers, vlm.n_heads, generator=torch.Generator().manual_seed(0)))
    si.evaluate(vlm, questions)
    before, kept = vlm.report, vlm.hf_model
    assert before is not None
    lora(kept, lora_dropout=0.5)
    assert vlm.report is None, "what was measured without the adapter is not reused"
    for question in questions:
        inputs, ids = plain_inputs(vlm, question), [c[0] for c in vlm.choice_ids(question)]
        wanted = hooked_logits(kept, inputs, scale=edit.scale[0])[-1][ids]
        for path in ("packed", "reference", "auto"):
            assert (si.run_edits(vlm, question, edit, path=path)[0, 0] - wanted).abs().max() <= 1e-5
    assert vlm.report is not None and vlm.report is not before
    acts = si.capture(vlm, questions)
    assert torch.allclose(acts.z, si.capture(si.load(kept, vlm.processor), questions).z, atol=1e-6)


def test_the_check_is_measured_again_after_a_cast_and_remembered_for_what_comes_back(vlm, questions):
    first = si.evaluate(vlm, questions).scores
    report = vlm.report
    vlm.hf_model.to(torch.bfloat16)
    assert vlm.report is None
    si.evaluate(vlm, questions)
    assert vlm.report.dtype == "bfloat16"
    vlm.hf_model.to(torch.float32)
    assert vlm.report is report and first.shape == si.evaluate(vlm, questions).scores.shape
    vlm.hf_model.set_attn_implementation("eager")
    assert vlm.report is None
