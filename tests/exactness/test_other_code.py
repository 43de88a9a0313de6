"""Other people's code in a model: hooks act in every path, and nnsight's persistent edits act or are refused, never left out in silence."""

import copy

import pytest
import torch

import scale_interp as si
from scale_interp.errors import EditError, PathWarning, RunWarning

QUESTIONS = si.load_questions("scenes/relation", n=2)


@pytest.fixture
def model(vlm):
    return copy.deepcopy(vlm)


def own_scores(model):
    """The choices' logits of the transformers model itself, hooks and all."""
    with torch.no_grad():
        logits = [model.hf_model(**model.encode(q)).logits[0, -1] for q in QUESTIONS]
    return torch.stack([row[[ids[0] for ids in model.choice_ids(q)]] for row, q in zip(logits, QUESTIONS, strict=True)])


def of_the_whole(module, args, out):
    out.logits = out.logits * 0.5
    return out


@pytest.mark.filterwarnings("ignore::scale_interp.errors.PathWarning")
@pytest.mark.parametrize("where", ["the whole model", "the decoder", "a layer", "the last token of a layer"])
def test_hooks_act_wherever_they_are(model, vlm, where):
    def of_last(module, args, out):
        return torch.cat([out[:, :-1], out[:, -1:] * 0.5], 1)

    def of_decoder(module, args, out):
        out.last_hidden_state = out.last_hidden_state * torch.linspace(0.5, 1.5, model.d_model)
        return out

    if where == "the whole model":
        model.hf_model.register_forward_hook(of_the_whole)
    elif where == "the decoder":
        model.decoder.register_forward_hook(of_decoder)
    else:
        model.all_layers[2].register_forward_hook(of_last if "last" in where else lambda module, args, out: out * 0.5)
    found = si.run_edits(model, QUESTIONS)[:, 0]
    assert torch.allclose(found, own_scores(model), atol=1e-4)
    assert (found - si.run_edits(vlm, QUESTIONS)[:, 0]).abs().max() > 0.1


def edited(model):
    with model.nn.edit(inplace=True):
        model.layers[2].mlp.output[:] = 0
    return model


def test_persistent_edits_of_nnsight_act_in_whole_passes(model, vlm):
    silent = si.run_edits(vlm, QUESTIONS, si.Edit(mlp_scale=torch.ones(1, 6)), path="reference")
    with pytest.warns(PathWarning, match="persistent edits"):
        found = si.run_edits(edited(model), QUESTIONS)
    model.nn.clear_edits()
    model.all_layers[2].mlp.register_forward_hook(lambda module, args, out: out * 0)
    assert torch.allclose(found[:, 0], own_scores(model), atol=1e-4) and not torch.allclose(found, silent, atol=0.1)


@pytest.mark.filterwarnings("ignore::scale_interp.errors.PathWarning")
@pytest.mark.parametrize(
    "run",
    [
        lambda model: si.run_edits(model, QUESTIONS, path="packed"),
        lambda model: si.run_edits(model, QUESTIONS, si.Edit(scale=torch.zeros(1, 6, 8), at="object")),
        lambda model: si.attribute(model, QUESTIONS, path="packed"),
        lambda model: si.capture(model, QUESTIONS, at="image"),
        lambda model: si.logit_lens(model, QUESTIONS),
        lambda model: si.evaluate_text(model, QUESTIONS),
    ],
    ids=["packed", "at a group", "gradients", "capture", "lens", "text"],
)
def test_persistent_edits_of_nnsight_are_refused_elsewhere(model, run):
    with pytest.raises(EditError, match="persistent edits of nnsight, which act in traces alone"):
        run(edited(model))


def test_persistent_edits_that_are_lost_with_the_modules_are_said(model):
    edited(model).all_layers[1].mlp.up_proj = torch.nn.Linear(model.d_model, model.all_layers[1].mlp.up_proj.out_features)
    with pytest.warns(RunWarning, match="persistent edits of the old ones are gone"):
        si.run_edits(model, QUESTIONS)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_does_not_matter(vlm, default):
    pairs, scaling = si.contrasts(QUESTIONS), [si.AttentionScale(1.3), si.AdaptVis(0.7, 1.3, 0.9), si.PASTA(((3, 1), (4, 3)), 0.3)]
    runs = {
        "edit": lambda: si.run_edits(vlm, QUESTIONS, si.Edit.scaling([(4, 3)], 0.3, 6, 8)),
        "sweep": lambda: si.amplify(vlm, QUESTIONS, 1.3).per_question,
        "patch": lambda: si.patch(vlm, pairs).per_question,
        "gradient": lambda: si.attribute(vlm, QUESTIONS).per_question,
        "integrated": lambda: si.integrated_gradients(vlm, QUESTIONS, steps=3).per_question,
        "group": lambda: si.ablate(vlm, QUESTIONS, at="object").per_question,
        "fit": lambda: si.fit_scale(vlm, QUESTIONS, epochs=2, validation=0.0, keep="last").scalars,
        "bias": lambda: si.fit_bias(vlm, QUESTIONS, epochs=1).shift,
        "scaling": lambda: torch.stack([ev.scores for ev in si.evaluate_scaled(vlm, QUESTIONS, scaling)]),
    }
    usual = {name: run() for name, run in runs.items()}
    torch.set_default_dtype(default)
    try:
        found = {name: run() for name, run in runs.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    assert {name for name in runs if not torch.equal(found[name], usual[name])} == set()
