"""Every family by every analysis, on tiny models: packed and reference against plain torch hooks on whole passes."""

import pytest
import torch

import scale_interp as si
from tests.support.oracle import heads_of, hooked_logits, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, FIRST, RECENT, Models, noise

EXACT = 1e-5
QUICK = ("llava", "qwen3_5")
"""A plain decoder and a hybrid; all others are in the full suite."""
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in (*FIRST, *RECENT)]


@pytest.fixture(scope="module")
def models():
    return Models()


def pairs():
    asked = {"text": "Where is the red circle?", "choices": ("left", "right"), "group": "a"}
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
                assert abs(float(head_map.per_question[0][head] - expected(head))) * size <= EXACT, (kind, path, head)

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
        assert (slopes - ones.grad).abs().max() <= 3 * EXACT
        fitted = si.fit_scale(vlm, [clean, corrupt], epochs=1, mlp=False, heads=heads)
        moved = fitted.scalars != 1
        assert moved.sum() == 2 and all(moved[head] for head in heads)
