"""Every family by every analysis, on tiny models: packed and reference against plain torch hooks on whole passes."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import scale_interp as si
from scale_interp.models import zoo
from tests.exactness.test_quantised import KINDS
from tests.support.oracle import heads_of, hooked_logits, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, FIRST, RECENT, Models, noise

EXACT = 1e-5
QUICK = ("llava", "qwen3_5")
"""A plain decoder and a hybrid; all others are in the full suite."""
ADAPTED = ("llava, LoRA", "qwen3_5, LoRA")
"""A live PeftModel, with an adapter on what reads the heads and on MLPs."""
QUANTISED = ("llava, torchao int8", "llava, bitsandbytes 4 bits")
"""Where the libraries are installed (`.ci/matrix`)."""
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in (*FIRST, *RECENT, *ADAPTED, *QUANTISED)]


class Rows(Models):
    """The zoo, and models of it with an adapter or fewer bits."""

    def __missing__(self, name):
        family, _, change = name.partition(", ")
        vlm = super().__missing__(family)
        if not change:
            return vlm
        model = copy.deepcopy(vlm.hf_model)
        if change == "LoRA":
            torch.manual_seed(0)
            targets = r".*language_model\.layers\..*(o_proj|down_proj)"
            model = get_peft_model(model, LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
        else:
            KINDS[change](model.get_decoder())
        self[name] = si.load(model, vlm.processor)
        return self[name]


@pytest.fixture(scope="module")
def models():
    return Rows()


def pairs():
    asked = {"text": "Where is the red circle?", "choices": ("left", "right")}
    clean = si.Question(**asked, answer=0, picture=noise(60, 40), id="clean")
    return [si.Contrast(clean, si.Question(**asked, answer=1, picture=noise(60, 40, 5), id="corrupt"))]


@torch.no_grad()
def recorded(vlm, question):
    """z [L, H, D] and MLP outputs [L, d] of the last token, by hooks; narrower heads are filled with zeros."""
    z, mlps, hooks = [], [], []
    decoder = vlm.hf_model.get_decoder()
    for output, mlp in (heads for layer in getattr(decoder, "model", decoder).layers if (heads := heads_of(layer))):
        hooks.append(output.register_forward_pre_hook(lambda _, args: z.append(args[0][0, -1].view(vlm.n_heads, -1))))
        hooks.append(
            mlp.register_forward_hook(lambda _, __, out: mlps.append((out[0] if isinstance(out, tuple) else out).flatten(0, -2)[-1]))
        )
    vlm.hf_model(**plain_inputs(vlm, question), use_cache=False)
    for hook in hooks:
        hook.remove()
    D = max(part.shape[1] for part in z)
    return torch.stack([torch.nn.functional.pad(part, (0, D - part.shape[1])) for part in z]), torch.stack(mlps)


def logits(vlm, question, **edit):
    """Logits of the two choices in one hooked whole pass."""
    ids = [tokens[0] for tokens in vlm.choice_ids(question)]
    return hooked_logits(vlm.hf_model, plain_inputs(vlm, question), **edit)[-1][ids]


def difference(vlm, question, **edit):
    """Logit of "left" minus that of "right"."""
    left, right = logits(vlm, question, **edit)
    return left - right


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_analysis_equals_hooks(models, name):
    vlm, (pair,) = models[name], pairs()
    clean, corrupt = pair.clean, pair.corrupt
    L, H = vlm.n_layers, vlm.n_heads
    heads = [(0, 1), (L - 1, H - 1)]
    z, mlp = recorded(vlm, clean)

    acts = si.capture(vlm, clean)
    assert (acts.z[0] - z).abs().max() <= EXACT and (acts.mlp[0] - mlp).abs().max() <= EXACT
    assert (acts.logits[0] - logits(vlm, clean)).abs().max() <= EXACT

    def only(head, factor, shift=None):
        scale, add = torch.ones(L, H), None
        scale[head] = factor
        if shift is not None:
            add = torch.zeros_like(shift)
            add[head] = shift[head]
        return {"scale": scale, "shift": add}

    plain = difference(vlm, clean)
    there = difference(vlm, corrupt)
    for path in ("packed", "reference") if name not in BIDIRECTIONAL else ("reference",):
        found = {
            "ablate": (si.ablate(vlm, [clean], path=path), lambda head: plain - difference(vlm, clean, **only(head, 0.0))),
            "amplify": (si.amplify(vlm, [clean], factor=3.0, path=path), lambda head: difference(vlm, clean, **only(head, 3.0)) - plain),
            "patch": (
                si.patch(vlm, [pair], path=path),
                lambda head: (difference(vlm, corrupt, **only(head, 0.0, z)) - there) / (plain - there),
            ),
        }
        for kind, (head_map, expected) in found.items():
            assert head_map.per_question.shape == (1, L, H), (kind, path)
            size = abs(float(plain - there)) if kind == "patch" else 1.0  # a recovered fraction is a difference over that of the pair
            for head in heads:
                right = float(expected(head))
                away = abs(float(head_map.per_question[0][head]) - right) * size / max(1.0, abs(right))
                assert away <= EXACT, (kind, path, head)

    scalars = 0.5 + torch.rand(L, H, generator=torch.Generator().manual_seed(0))
    scale = si.ScAle(scalars, torch.linspace(0.5, 1.5, L), 1, ())
    hooked = logits(vlm, clean, scale=scalars, mlp_scale=scale.mlp_scalars)
    with scale.attached(vlm):
        inputs = plain_inputs(vlm, clean)
        attached = vlm.hf_model(**inputs).logits[0, -1][[tokens[0] for tokens in vlm.choice_ids(clean)]]
        assert isinstance(vlm.generate(clean, max_new_tokens=3), str)
    assert (attached - hooked).abs().max() <= EXACT
    judged = si.evaluate(vlm, [clean], edit=scale)
    assert bool(judged.per_question[0]) == bool(hooked.argmax() == clean.answer)

    if name not in BIDIRECTIONAL:
        with torch.enable_grad():
            ones = torch.ones(L, H, requires_grad=True)
            difference(vlm, clean, scale=ones).backward()
            slopes = si.attribute(vlm, [clean]).per_question[0]
            fitted = si.fit_scale(vlm, [clean, corrupt] * 2, epochs=1, mlp=False, heads=heads)
        assert (slopes - ones.grad).abs().max() <= 3 * EXACT
        moved = {(int(layer), int(head)) for layer, head in (fitted.scalars != 1).nonzero()}
        assert moved <= set(heads) and fitted.scalars.shape == (L, H) and bool(fitted.scalars.isfinite().all())


def test_layers_without_heads_are_not_in_the_map(models):
    """Rows of every [L, H] are the layers that have heads; their numbers in the decoder are in labels and frames."""
    vlm, (pair,) = models["qwen3_5"], pairs()
    assert [layer.number for layer in vlm.head_layers] == [1, 2] and vlm.parts.others == {0: "linear_attention", 3: "linear_attention"}
    found = si.ablate(vlm, [pair.clean])
    assert found.scores.shape == (2, 4) and found.layer_numbers == [1, 2]
    assert {layer for layer, _ in found.top(8)} == {0, 1}, "pairs count the layers of the map, as Edit(scale=[N, L, H]) does"
    assert found.to_frame()["decoder_layer"].tolist() == [1] * 4 + [2] * 4 and found.to_frame()["layer"].tolist() == [0] * 4 + [1] * 4
    assert list(found.plot().layout.yaxis.ticktext) == ["0 (1)", "1 (2)"], "the number that edits take, and the decoder's"
    plain = si.ablate(models["llava"], [pair.clean])
    assert "decoder_layer" not in plain.to_frame() and plain.layer_numbers == [0, 1, 2]


@torch.no_grad()
def test_heads_of_a_map_are_those_that_edits_hit(models):
    """Pairs of a hybrid's maps go into edits as they are, and hit the heads that the map is about."""
    vlm, (pair,) = models["qwen3_5"], pairs()
    found = si.ablate(vlm, [pair.clean])
    plain = difference(vlm, pair.clean)
    decoder = vlm.hf_model.get_decoder()
    for layer, head in found.top(3):
        silent = si.Edit.scaling([(layer, head)], 0.0, vlm.n_layers, vlm.n_heads)
        left, right = si.run_edits(vlm, pair.clean, silent)[0, 0]
        assert abs(float(plain - (left - right)) - float(found.scores[layer, head])) <= EXACT

        def zero(_, args, head=head):
            z = args[0].clone()
            z[0, -1].view(vlm.n_heads, -1)[head] = 0
            return (z, *args[1:])

        hook = decoder.layers[found.layer_numbers[layer]].self_attn.o_proj.register_forward_pre_hook(zero)
        try:
            assert abs(float(plain - difference(vlm, pair.clean)) - float(found.scores[layer, head])) <= EXACT
        finally:
            hook.remove()
    with torch.enable_grad():
        fitted = si.fit_scale(vlm, [pair.clean, pair.corrupt] * 2, epochs=1, mlp=False, heads=found.top(2))
    assert set(fitted.heads) == set(found.top(2))
    flow = si.knockout(vlm, [pair.clean], by="head")
    blind = torch.zeros(1, vlm.n_layers, vlm.n_heads, dtype=torch.bool)
    blind[(0, *(top := flow.heads.top(1)[0]))] = True
    left, right = si.run_edits(vlm, pair.clean, si.AttentionEdit(blind))[0, 0]
    assert abs(float(plain - (left - right)) - float(flow.heads.scores[top])) <= EXACT
    places = si.patch_positions(vlm, [pair], groups=("last",))
    assert list(places.plot().layout.yaxis.ticktext) == list(flow.heads.plot().layout.yaxis.ticktext) == ["0 (1)", "1 (2)"]
    assert list(si.knockout(vlm, [pair.clean]).plot().layout.xaxis.ticktext) == ["0 (1)", "1 (2)"]
    for table in (places.to_frame(), si.knockout(vlm, [pair.clean]).to_frame()):
        assert table["decoder_layer"].tolist() == [1, 2] and table["layer"].tolist() == [0, 1]
    tower = si.ablate_vision(vlm, [pair.clean])
    assert "decoder_layer" not in tower.to_frame() and tower.plot().layout.yaxis.ticktext is None, "those are the encoder's layers"


def test_heads_of_other_names_are_found_and_others_are_named():
    assert si.load("tiny-random/lfm2_vl").head_layers[0].output_name == "out_proj"
    if "llama4" in zoo.NAMES:  # which one release of transformers cannot run
        llama4 = si.load("tiny-random/llama4")
        assert {layer.mlp_name for layer in llama4.head_layers} == {"feed_forward"} and llama4.staircase
    gemma4 = si.load("tiny-random/gemma4")
    assert [layer.head_dim for layer in gemma4.head_layers] == [16, 24, 16, 24] and gemma4.head_dim == 24 and not gemma4.staircase


@pytest.mark.parametrize("broken", [AttributeError("keys"), TypeError("a tuple"), NotImplementedError("a mask")])
def test_a_hybrid_that_fails_packed_runs_in_whole_passes(models, monkeypatch, broken):
    """Whatever the packed path raises leads to the reference path, with a warning that names it."""
    from scale_interp.interventions import states

    def fails(*_, **__):
        raise broken

    monkeypatch.setattr(states.StateLayer, "copies", fails)
    live = models["qwen3_5"]
    with pytest.warns(si.errors.PathWarning, match=type(broken).__name__):
        vlm = si.load(live.hf_model, live.processor, check=True)
    (pair,) = pairs()
    ones = si.Edit(torch.full((1, vlm.n_layers, vlm.n_heads), 0.5))
    expected = logits(vlm, pair.clean, scale=ones.scale[0])
    assert (si.run_edits(vlm, pair.clean, ones)[0, 0] - expected).abs().max() <= EXACT


def test_whole_passes_that_fail_are_named(models):
    """No raw error: the model cannot run, and the message says what failed."""
    live = Models()["lfm2_vl"]
    live.decoder.layers[1].feed_forward.forward = lambda hidden: hidden.missing
    with pytest.raises(si.errors.ModelError, match=r"a whole forward pass with edited heads fails on it \(AttributeError"):
        si.load(live.hf_model, live.processor, check=True)
    vlm = si.load(live.hf_model, live.processor, check=False)
    with pytest.raises(si.errors.ModelError, match="AttributeError"):
        si.run_edits(vlm, pairs()[0].clean)
