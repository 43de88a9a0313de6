"""Patching at token groups: against whole passes with plain hooks, on circuits whose construction says what feeds the known heads."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import measure
from scale_interp.errors import DataError, EditError
from scale_interp.interventions.whole_prompt import read_whole
from scale_interp.vlm.token_groups import positions_at
from tests.support.oracle import hooked_at, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, FIRST, noise


@pytest.fixture(scope="module")
def pairs():
    return si.contrasts(si.load_questions("scenes/relation", n=3, seed=1))


def streams(vlm, question, component):
    """A component's values at every token [L, T, F], by plain hooks."""
    found, hooks = [], []
    for layer in vlm.decoder.layers:
        if component == "resid":
            keep = lambda _, args, kwargs: found.append((args[0] if args else kwargs["hidden_states"])[0])  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
        elif component == "head":
            hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0][0])))
        else:
            module = layer.mlp if component == "mlp" else layer.self_attn.o_proj
            hooks.append(module.register_forward_hook(lambda _, __, out: found.append(out[0])))
    with torch.no_grad():
        vlm.hf_model(**plain_inputs(vlm, question), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def expected(vlm, pair, component, places, layer):
    """m_patched - m_corrupt of one pair by one whole pass, places: clean token -> corrupt token; and m_clean - m_corrupt."""
    a, b = (vlm.choice_ids(pair.clean)[i][0] for i in (pair.clean.answer, pair.corrupt.answer))
    source, inputs = streams(vlm, pair.clean, component)[layer], plain_inputs(vlm, pair.corrupt)
    changes = list(places.items())
    corrupt = hooked_at(vlm.hf_model, inputs, [], [])[-1]
    state = {"i": 0}

    def act(_):
        value = source[changes[state["i"]][0]]
        state["i"] += 1
        return value

    patched = hooked_at(vlm.hf_model, inputs, [(component, layer, act)], [to for _, to in changes])[-1]
    clean = hooked_at(vlm.hf_model, plain_inputs(vlm, pair.clean), [], [])[-1]
    m = lambda logits: float(logits[a] - logits[b])  # noqa: E731
    return m(patched) - m(corrupt), m(clean) - m(corrupt)


@pytest.mark.parametrize("component", ["resid", "attn", "mlp"])
def test_a_map_is_what_whole_passes_with_plain_hooks_give(vlm, pairs, component):
    names = ("box:subject", "object", "last")
    pm = si.patch_positions(vlm, pairs, component, names)
    some = [(0, 2), (1, 4), (2, 1)]
    gaps = [expected(vlm, pair, component, {}, 0)[1] for pair in pairs]
    assert pm.provenance["gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-4)
    for q, layer in some:
        pair = pairs[q]
        for g, name in enumerate(names):
            clean, corrupt = (vlm.token_groups(question)[name] for question in (pair.clean, pair.corrupt))
            union = sorted({*clean, *corrupt})
            places = dict(zip(union, union, strict=True)) if name.startswith("box:") else dict(zip(clean, corrupt, strict=True))
            effect, _ = expected(vlm, pair, component, places, layer)
            assert float(pm.per_question[q, layer, g]) * pm.provenance["gap"] == pytest.approx(effect, abs=2e-5), (q, layer, name)


@contextmanager
def rows_of_layers(vlm):
    """How many rows of a prompt each call of each layer runs, by layer."""
    found = [[] for _ in vlm.head_layers]

    def count(layer, args, kwargs, number):
        found[number].append((args[0] if args else kwargs["hidden_states"]).shape[1])

    hooks = [
        block.module.register_forward_pre_hook(partial(count, number=number), with_kwargs=True)
        for number, block in enumerate(vlm.head_layers)
    ]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", [n if n in ("llava", "qwen3_vl", "gemma3") else pytest.param(n, marks=pytest.mark.full) for n in FIRST])
def test_a_patched_image_is_not_run_again(name):
    """Its keys and values are the clean run's, except in layers to which the image is added once more (DeepStack)."""
    model = si.load(f"tiny-random/{name}", check=False)
    texts = ("Where is the cup?", "Where is the cup on the table, left or right?", "Where?")
    questions = [si.Question(text, ("left", "right"), i % 2, picture=noise(60, 40, i), id=text) for i, text in enumerate(texts)]
    pairs = [si.Contrast(q, replace(q, answer=1 - q.answer, picture=noise(60, 40, 9 + i), id=f"{i}")) for i, q in enumerate(questions)]
    for some, groups in ((pairs, ("image", "question")), (pairs[1:2], ("image",))):
        with rows_of_layers(model) as rows:
            pm = si.patch_positions(model, some, groups=groups, path="packed")
        for q, pair in enumerate(some):
            for g, group in enumerate(groups):
                for layer in range(model.n_layers):
                    places = {token: token for token in model.token_groups(pair.corrupt)[group]}
                    effect, _ = expected(model, pair, "resid", places, layer)
                    assert float(pm.per_question[q, layer, g]) * pm.provenance["gap"] == pytest.approx(effect, abs=2e-5), (q, layer, group)
    image, tokens = model.token_groups(questions[1])["image"], len(model.encode(questions[1])["input_ids"][0])
    behind = tokens - next(token for token in range(image[0], tokens) if token not in image)
    added = sum(layer.between is not None for layer in read_whole(model, questions[1:2]).layers)
    assert added == {"qwen3_vl": 2}.get(name, 0)
    for number in range(model.n_layers if name not in BIDIRECTIONAL else 0):
        again = rows[number][2:]  # clean and corrupt prompts are read first
        assert (again[-1] == behind) == (number >= added) and len(again) == 1 + (0 < added <= number)
    words = ("left of", "right above")
    longer = [si.Contrast(*(replace(q, choices=words) for q in (pairs[1].clean, pairs[1].corrupt)))]
    packed, whole = (
        si.patch_positions(model, longer, groups=("image", "last"), path=path).per_question for path in ("packed", "reference")
    )
    assert (packed - whole).abs().max() <= 1e-4 * max(1, float(whole.abs().max()))


def test_in_half_precision_a_patched_image_is_what_it_is_in_full(vlm, pairs):
    half = si.load("demo", dtype=torch.bfloat16)
    full, packed = (si.patch_positions(v, pairs[:2], groups=("image", "last"), path="packed").per_question for v in (vlm, half))
    assert (packed - full).abs().max() <= 0.05 and full.abs().max() > 0.9


def test_heads_at_a_group_and_the_reference_path(vlm, pairs):
    for at in (["subject", "object"], [-1]):
        packed, whole = (si.patch(vlm, pairs[:1], at=at, path=path) for path in ("packed", "reference"))
        assert (packed.per_question - whole.per_question).abs().max() <= 1e-5
    assert (si.patch(vlm, pairs, at=[-1]).per_question - si.patch(vlm, pairs).per_question).abs().max() <= 1e-5
    packed, whole = (si.patch_positions(vlm, pairs[:1], groups=("subject", "last"), path=path) for path in ("packed", "reference"))
    assert (packed.per_question - whole.per_question).abs().max() <= 1e-5


def test_gradients_are_the_slope_of_a_small_step(vlm, pairs):
    """The estimate is what a patch of a thousandth of the way measures, a thousand times."""
    pair, name, share = pairs[0], "question", 1e-3
    for component in ("resid", "mlp"):
        estimate = si.patch_positions(vlm, pairs[:1], component, (name,), gradient=True)
        clean, corrupt = (streams(vlm, q, component) for q in (pair.clean, pair.corrupt))
        tokens = vlm.token_groups(pair.corrupt)[name]
        for layer in (1, 3):
            change = share * (clean[layer, tokens] - corrupt[layer, tokens])
            rows = iter(change)
            act = lambda x, rows=rows: x + next(rows)  # noqa: E731
            inputs = plain_inputs(vlm, pair.corrupt)
            a, b = (vlm.choice_ids(pair.clean)[i][0] for i in (pair.clean.answer, pair.corrupt.answer))
            before, after = (hooked_at(vlm.hf_model, inputs, changes, tokens)[-1] for changes in ([], [(component, layer, act)]))
            step = float((after[a] - after[b]) - (before[a] - before[b])) / share
            assert float(estimate.scores[layer, 0]) * estimate.provenance["gap"] == pytest.approx(step, abs=0.02 * abs(step) + 5e-3)


def test_gradients_of_heads_at_a_group_sum_to_those_of_the_scale(vlm):
    questions = si.load_questions("scenes/relation", n=2)
    found = si.attribute(vlm, questions, at="object")
    scale = torch.ones(1, vlm.n_layers, vlm.n_heads, requires_grad=True)
    scores = si.run_edits(vlm, questions[:1], si.Edit(scale, at="object"), "packed", grad=True)[0, 0]
    answer = questions[0].answer
    others = torch.cat([scores[:answer], scores[answer + 1 :]])
    (slope,) = torch.autograd.grad(scores[answer] - others.max(), scale)
    assert (found.per_question[0] - slope[0]).abs().max() <= 1e-4


def test_ablation_and_capture_at_a_group(vlm):
    questions = si.load_questions("scenes/relation", n=3)
    each = si.capture(vlm, questions, at="object", each=True)
    mean = si.capture(vlm, questions, at="object")
    for q, question in enumerate(questions):
        at = positions_at(vlm, question, "object")
        z = streams(vlm, question, "head")[:, at].unflatten(-1, (vlm.n_heads, -1))
        assert (each[q].z - z.transpose(0, 1)).abs().max() <= 1e-5 and (mean.z[q] - z.mean(1)).abs().max() <= 1e-5
    edit = si.Edit(torch.ones(1, vlm.n_layers, vlm.n_heads), at="object")
    edit.scale[0, 2, 3] = 0
    m = si.ablate(vlm, questions, at="object")
    clean, gone = (measure("logit_diff", si.run_edits(vlm, questions, e, "reference")[:, 0], questions) for e in (None, edit))
    assert (m.per_question[:, 2, 3] - (clean - gone)).abs().max() <= 1e-4
    for mode in ("mean", "resample"):
        assert si.ablate(vlm, questions, mode, at="object").scores.isfinite().all()
    assert si.amplify(vlm, questions, at="image").scores.abs().max() > 0


@pytest.mark.parametrize("name", ["one-head", "three-heads"])
def test_what_feeds_a_known_circuit_is_found(name):
    """The words stand before the image, and the listed heads, the only ones that move an answer, see the image alone at the last token."""
    vlm, first = si.load(f"testbed/{name}"), min(layer for layer, _ in si.testbeds.circuit(name).heads)
    pm = si.patch_positions(vlm, si.contrasts(si.load_questions("scenes/position", n=6)), groups=("image", "question", "last"))
    image, question, last = pm.scores.unbind(1)
    assert (image[: first + 1] - 1).abs().max() <= 1e-5 and last[: first + 1].abs().max() <= 1e-5 and question.abs().max() <= 1e-5
    if first + 1 < vlm.n_layers:
        late = pm.only("left", "right").scores[first + 1]  # the head of these words has run, that of top and bottom has not
        assert late[0] < 0.2 and late[2] > 0.8 and pm.only("top", "bottom").scores[first + 1, 0] > 0.8


def test_the_relay_of_a_known_circuit_is_found():
    questions = [replace(q, meta=q.meta | {"spans": {"relay": [-2]}}) for q in si.load_questions("scenes/position", n=6)]
    pm = si.patch_positions(si.load("testbed/relay"), si.contrasts(questions), groups=("image", "relay", "last"))
    assert (pm.scores[0, 0] - 1).abs() <= 1e-5 and pm.scores[:5, 2].abs().max() <= 1e-5
    assert pm.only("left", "right").scores[4, 1] > 0.9 and pm.only("top", "bottom").scores[5, 1] > 0.9
    assert pm.only("left", "right").scores[5, 2] > 0.9 and pm.scores[5, 0].abs() <= 0.05


def test_pairs_that_do_not_line_up_are_refused(vlm, pairs):
    pair = pairs[0]
    other = replace(pair.corrupt, text=pair.corrupt.text.replace(pair.corrupt.about[0], "red"), about=("red", pair.corrupt.about[1]))
    uneven = si.Contrast(pair.clean, other)
    with pytest.raises(DataError, match="token group 'subject' has 2 tokens in the clean prompt and 1 in the corrupt one"):
        si.patch_positions(vlm, [uneven], groups=("subject",))
    assert si.patch_positions(vlm, [uneven], groups=("image", "last")).scores.isfinite().all()
    with pytest.raises(DataError, match="no token groups: name at least one"):
        si.patch_positions(vlm, pairs, groups=())
    with pytest.raises(EditError, match="component 'z': choose 'resid', 'attn' or 'mlp'"):
        si.patch_positions(vlm, pairs, "z")
    with pytest.raises(EditError, match="gradients at tokens need the packed path"):
        si.patch_positions(vlm, pairs, gradient=True, path="reference")


def test_a_map_is_saved_and_split_by_relation(vlm, tmp_path):
    pairs = si.contrasts(si.load_questions("scenes/relation", n=6))
    pm = si.patch_positions(vlm, pairs, groups=("image", "last"))
    pm.save(tmp_path / "map.safetensors")
    again = si.PositionMap.load(tmp_path / "map.safetensors")
    assert torch.equal(again.per_question, pm.per_question) and again.positions == pm.positions and again.relations == pm.relations
    part = pm.only("left", "right")
    alone = si.patch_positions(vlm, [p for p in pairs if p.clean.relation in ("left", "right")], groups=("image", "last"))
    assert (part.per_question - alone.per_question).abs().max() <= 1e-5
    assert len(pm.to_frame()) == 2 * vlm.n_layers and pm.plot().data[0].z.shape == (vlm.n_layers, 2)
    with pytest.raises(DataError, match="no question has the relation 'inside': choose from"):
        pm.only("inside")
