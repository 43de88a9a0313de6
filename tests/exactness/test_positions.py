"""Edits at tokens of the prompt: packed = plain torch hooks on whole passes, on every family, component and token group."""

import warnings
from dataclasses import replace

import pytest
import torch

import scale_interp as si
from scale_interp.errors import DataError, EditError, PathWarning
from scale_interp.interventions import positions as positions_module
from scale_interp.interventions.engine import run_with_clean
from scale_interp.models import zoo
from scale_interp.vlm.token_groups import positions_at
from tests.support.oracle import hooked_at, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, FIRST, RECENT, mostly_full, three_questions

GROUPS = ("object", "image", "patch", "last")


def group(name, at):
    """The last token by its number for families whose prompt would otherwise stay frozen at the unedited run."""
    return [-1] if at == "last" and name in BIDIRECTIONAL else at


def asked():
    """Three questions of different length, whose words and patches are at different places."""
    a, b, c = three_questions()
    a = replace(a, about=("circle", "red circle"), meta={"spans": {"patch": [7]}})
    b = replace(b, about=("blue square", "green star"), meta={"spans": {"patch": [6]}})
    return [a, b, replace(c, about=("dog", "cat"), meta={"spans": {"patch": [8]}})]


def supported(name, kernel):
    """Gemma 2's soft cap has no sdpa."""
    return "eager" if name == "paligemma2" else kernel


def kinds(vlm):
    """name -> (Edit of two variants, the same for the oracle: variant -> [(component, layer, function)])."""
    L, H, D, d = vlm.n_layers, vlm.n_heads, vlm.head_dim, vlm.d_model
    draw = torch.Generator().manual_seed(0)
    heads = ((1, 2), (0, 0))
    zero, patch = torch.ones(2, L, H), torch.zeros(2, L, H, D)
    resid, resid_shift, mlp = torch.ones(2, L), torch.zeros(2, L, d), torch.ones(2, L)
    attn, attn_shift = torch.ones(2, L), torch.zeros(2, L, d)
    values, stream = torch.randn(2, D, generator=draw), torch.randn(2, d, generator=draw)
    for n, (layer, head) in enumerate(heads):
        zero[n, layer, head], patch[n, layer, head] = 0, values[n]
        resid[n, layer], resid_shift[n, layer] = 0, stream[n]
        attn[n, layer], attn_shift[n, layer], mlp[n, layer] = 0.5, stream[n], 3.0

    def on_head(n, value):
        def act(z):
            z = z.clone().view(H, -1)
            z[heads[n][1]] = value if isinstance(value, float) else value[: z.shape[1]]  # Gemma 4's layers differ in the width of a head
            return z.flatten()

        return act

    at = [layer for layer, _ in heads]
    return {
        "zero": (si.Edit(zero), [[("head", at[n], on_head(n, 0.0))] for n in (0, 1)]),
        "patch": (si.Edit(zero, patch), [[("head", at[n], on_head(n, values[n]))] for n in (0, 1)]),
        "resid": (
            si.Edit(resid_scale=resid, resid_shift=resid_shift),
            [[("resid", at[n], lambda x, n=n: stream[n])] for n in (0, 1)],
        ),
        "mlp": (si.Edit(mlp_scale=mlp), [[("mlp", at[n], lambda x: 3 * x)] for n in (0, 1)]),
        "attn": (
            si.Edit(attn_scale=attn, attn_shift=attn_shift),
            [[("attn", at[n], lambda x, n=n: 0.5 * x + stream[n])] for n in (0, 1)],
        ),
    }


def distance(vlm, questions, changes, at, scores):
    worst = 0.0
    for q, question in enumerate(questions):
        inputs, ids = plain_inputs(vlm, question), [c[0] for c in vlm.choice_ids(question)]
        for n, change in enumerate(changes):
            expected = hooked_at(vlm.hf_model, inputs, change, positions_at(vlm, question, at))[-1][ids]
            worst = max(worst, float((scores[q, n, : len(ids)] - expected).abs().max()))
    return worst


@pytest.fixture(scope="module")
def models():
    return {name: si.load(f"tiny-random/{name}", check=False) for name in zoo.NAMES}


@pytest.mark.parametrize("name", mostly_full(FIRST))
def test_packed_equals_hooks_at_every_group(models, name):
    vlm, questions = models[name], asked()
    vlm.hf_model.set_attn_implementation(supported(name, "sdpa"))
    for kind, (edit, changes) in kinds(vlm).items():
        for at in GROUPS if kind in ("zero", "resid") else ("object", "patch"):
            edited, clean = run_with_clean(vlm, questions, replace(edit, at=group(name, at)), "packed")
            assert distance(vlm, questions, changes, at, edited) <= 1e-5, (kind, at)
            assert (edited - clean)[edited.isfinite()].abs().max() > (1e-7 if kind == "mlp" else 1e-5), (kind, at)


@pytest.mark.full
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_equals_hooks_on_the_whole_matrix(models, name, kernel):
    vlm, questions = models[name], asked()
    vlm.hf_model.set_attn_implementation(supported(name, kernel))
    for kind, (edit, changes) in kinds(vlm).items():
        for at in GROUPS:
            edited = si.run_edits(vlm, questions, replace(edit, at=group(name, at)), "packed")
            assert distance(vlm, questions, changes, at, edited) <= 1e-5, (kind, at)


@pytest.mark.full
@pytest.mark.parametrize("name", RECENT)
def test_recent_families_are_exact_by_whichever_path(models, name):
    vlm, questions = models[name], asked()
    for kind in ("zero", "resid", "mlp"):
        for at in ("object", "image"):
            edit, changes = kinds(vlm)[kind]
            edit = replace(edit, at=at)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PathWarning)
                found = si.run_edits(vlm, questions, edit)
            whole = si.run_edits(vlm, questions, edit, "reference")
            assert (found - whole).nan_to_num(0, 0, 0).abs().max() <= 1e-5, (kind, at)
            assert distance(vlm, questions, changes, at, found) <= 1e-5, (kind, at)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "paligemma"])
def test_reference_equals_hooks(models, name):
    vlm, questions = models[name], asked()
    for kind, (edit, changes) in kinds(vlm).items():
        edited = si.run_edits(vlm, questions, replace(edit, at="object"), "reference")
        assert distance(vlm, questions, changes, "object", edited) <= 1e-5, kind


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2"])
def test_choices_of_several_tokens(models, name):
    vlm = models[name]
    questions = [replace(q, choices=("left of", "right", "right of it"), answer=0) for q in asked()]
    edit = replace(kinds(vlm)["resid"][0], at="patch")
    packed, reference = (si.run_edits(vlm, questions, edit, path) for path in ("packed", "reference"))
    assert (packed - reference).abs().max() <= 1e-5


def test_identity_and_no_tokens_change_nothing(vlm):
    questions = si.load_questions("scenes/relation", n=3)
    clean = run_with_clean(vlm, questions, si.Edit(torch.ones(1, vlm.n_layers, vlm.n_heads), at="object"), "packed")
    assert torch.equal(*clean)
    none = si.Edit(torch.zeros(1, vlm.n_layers, vlm.n_heads), at=[])
    assert torch.equal(*run_with_clean(vlm, questions, none, "packed"))
    ones = torch.ones(1, vlm.n_layers, vlm.n_heads, requires_grad=True)  # runs every layer
    edited, unedited = run_with_clean(vlm, questions, si.Edit(ones, at="object"), "packed", grad=True)
    assert (edited - unedited).abs().max() <= 1e-5 and edited.requires_grad


def test_the_last_token_is_the_same_by_either_way(vlm, random_edits):
    questions = si.load_questions("scenes/relation", n=3)
    for kind, edit in random_edits.items():
        last = si.run_edits(vlm, questions, edit, "packed")
        assert (si.run_edits(vlm, questions, replace(edit, at=[-1]), "packed") - last).abs().max() <= 1e-4, kind


def test_sweeps_at_a_group_are_edits_of_one_head_each(vlm):
    questions = si.load_questions("scenes/relation", n=2)
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, at="subject")
    scale = 1 - torch.eye(vlm.n_layers * vlm.n_heads).view(-1, vlm.n_layers, vlm.n_heads)
    packed = si.run_edits(vlm, questions, sweep, "packed")
    assert (packed - si.run_edits(vlm, questions, si.Edit(scale, at="subject"), "packed")).abs().max() <= 1e-5
    some = [3, 17, 40]
    assert (packed[:, some] - si.run_edits(vlm, questions, si.Edit(scale[some], at="subject"), "reference")).abs().max() <= 1e-5


def test_little_memory_gives_the_same_scores(vlm):
    questions = si.load_questions("scenes/relation", n=3)
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, at="object")
    usual = si.run_edits(vlm, questions, sweep, "packed")
    vlm.memory = 1_000_000
    try:
        assert positions_module.batches_of(vlm, questions).size == 1
        assert (si.run_edits(vlm, questions, sweep, "packed") - usual).abs().max() <= 1e-5
    finally:
        vlm.memory = None


def test_gradients_at_a_group_equal_those_of_whole_passes(models):
    vlm, question = models["qwen2_5_vl"], asked()[1]
    packed, whole = (torch.ones(vlm.n_layers, vlm.n_heads, requires_grad=True) for _ in range(2))
    scores = si.run_edits(vlm, [question], si.Edit(packed[None], at="object"), "packed", grad=True)[0, 0]
    (scores[0] - scores[1]).backward()
    hooks, tokens = [], positions_at(vlm, question, "object")
    for number, layer in enumerate(vlm.decoder.layers):

        def hook(module, args, number=number):
            factor = torch.ones_like(args[0])
            factor[0, tokens] = whole[number].repeat_interleave(vlm.head_dim)
            return (args[0] * factor,)

        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
    ids = [c[0] for c in vlm.choice_ids(question)]
    logits = vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1]
    (logits[ids[0]] - logits[ids[1]]).backward()
    for hook in hooks:
        hook.remove()
    assert whole.grad.abs().max() > 0 and (packed.grad - whole.grad).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["llava", *BIDIRECTIONAL])
def test_auto_is_packed_where_the_paths_agree(models, name):
    vlm, questions = models[name], asked()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PathWarning)
        si.run_edits(vlm, questions, replace(kinds(vlm)["zero"][0], at="object"))
    assert vlm.measured.positions[vlm.state] == ""


def test_a_model_on_which_the_paths_differ_takes_whole_passes(monkeypatch):
    vlm = si.load("tiny-random/llava", check=False)
    true = positions_module.run_suffix
    monkeypatch.setattr(positions_module, "run_suffix", lambda *a, **k: tuple(part + 0.5 for part in true(*a, **k)))
    edit = replace(kinds(vlm)["zero"][0], at="object")
    with pytest.warns(
        PathWarning, match="edits at tokens of the prompt run whole forward passes: packed and reference scores differ by 0.5"
    ):
        found = si.run_edits(vlm, asked(), edit)
    assert distance(vlm, asked(), kinds(vlm)["zero"][1], "object", found) <= 1e-5


def test_what_cannot_be_is_refused(vlm):
    questions = si.load_questions("scenes/count", n=2)
    zero = torch.zeros(1, vlm.n_layers, vlm.n_heads)
    with pytest.raises(DataError, match="no token group 'object'"):
        si.run_edits(vlm, questions, si.Edit(zero, at="object"), "packed")
    with pytest.raises(EditError, match="'each_new_token' edits heads and MLPs from the last token on"):
        si.Edit(zero, scope="each_new_token", at="object")
    with pytest.raises(EditError, match=r"resid_shift has shape .* residual stream has 128 numbers"):
        si.run_edits(vlm, questions, si.Edit(resid_shift=torch.zeros(1, vlm.n_layers, 5)), "packed")
    with pytest.raises(EditError, match="cannot stack edits at different tokens"):
        si.Edit.stack([si.Edit(zero, at="image"), si.Edit(zero)])
    with pytest.raises(EditError, match="cannot compose edits at"):
        si.Edit(zero, at="image").compose(si.Edit(zero))
