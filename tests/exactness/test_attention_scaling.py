"""ScalingVis, AdaptVis, PASTA and ITI against attention that is written out here, on every family; tuning, transfer, files."""

import dataclasses
import functools
from contextlib import contextmanager

import numpy as np
import plotly.io as pio
import pytest
import torch

import scale_interp as si
from scale_interp.adapters.attention_scaling.adaptvis import AdaptVis
from scale_interp.adapters.attention_scaling.method import head_mask
from scale_interp.adapters.attention_scaling.pasta import PASTA
from scale_interp.adapters.attention_scaling.scalingvis import AttentionScale
from scale_interp.adapters.steering.fit import fit_steering
from scale_interp.adapters.steering.steering import Steering
from scale_interp.attribution.attention.grid import patch_grid
from scale_interp.errors import DataError, EditError, FileError, LeakError
from scale_interp.evaluation.attention_scaling.answers import Tuned, evaluate_scaled, transfer_table, tune_adaptvis, tune_scaling
from scale_interp.evaluation.attention_scaling.weight_curve import ScalingCurve, scaling_curve
from scale_interp.interventions.prefix import PrefixStore
from scale_interp.vlm.cache import CACHE
from tests.support.oracle import eager_attention, plain_inputs
from tests.support.zoo_models import CAUSAL, FIRST, noise, three_questions


@functools.cache
def model(name):
    return si.load(f"tiny-random/{name}")


@pytest.fixture(scope="module")
def questions():
    return three_questions()


@pytest.fixture(scope="module")
def long_question():
    return si.Question("Where is it?", ("left circle", "left square", "above"), 0, picture=noise(40, 90, 1), id="long")


# --- the oracle: attention written out, put in the place of the modelling file's own


@contextmanager
def written_out(vlm, change):
    """The decoder's attention written out, its logits [B, H, S, K] passed through change(layer, logits)."""
    modules = [layer.self_attn for layer in vlm.hf_model.get_decoder().layers]

    def attend(module, query, key, value, mask, scaling=None, softcap=None, **kwargs):
        B, H, S, D = query.shape
        out = torch.empty(B, S, H, D)
        logits = torch.stack([query[:, h] @ key[:, h * key.shape[1] // H].transpose(1, 2) for h in range(H)], 1) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = change(modules.index(module), logits)
        logits = logits + mask if mask is not None else logits
        for h in range(H):
            out[:, :, h] = torch.softmax(logits[:, h], -1) @ value[:, h * value.shape[1] // H]
        return out, None

    with eager_attention(vlm, modules, attend):
        yield


def multiplied(weight, image, T, rows="last", steps="prefill", on=None):
    """Logits over the image columns of the prompt [T] times weight, in the asked rows."""

    def change(layer, logits):
        logits = logits.clone()
        S = logits.shape[2]
        first, end = (T - 1 if rows == "last" else 0), (T if steps == "prefill" else S)
        for h in range(logits.shape[1]):
            if on is None or on[layer, h]:
                for row in range(first, end):
                    logits[:, h, row, :T][:, image] *= weight
        return logits

    return change


def expected(vlm, question, change):
    """Choice scores under change(image [T], T) -> logits' change, one whole pass a choice."""
    inputs = plain_inputs(vlm, question)
    T = inputs["input_ids"].shape[1]
    image = inputs["input_ids"][0] == vlm.hf_model.config.image_token_id
    assert 1 <= image.sum() < T
    ids = vlm.choice_ids(question)
    with torch.no_grad(), written_out(vlm, change(image, T)):
        if max(map(len, ids)) == 1:
            return vlm.hf_model(**inputs, use_cache=False).logits[0, -1, [i[0] for i in ids]]
        scores = []
        for choice in ids:
            more = torch.tensor([choice[:-1]], dtype=torch.long)
            longer = inputs | {"input_ids": torch.cat([inputs["input_ids"], more], 1)}
            longer["attention_mask"] = torch.ones_like(longer["input_ids"])
            for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
                longer[name] = torch.cat([inputs[name], torch.full_like(more, int(vlm.family == "paligemma"))], 1)
            logits = vlm.hf_model(**longer, use_cache=False).logits[0].log_softmax(-1)
            scores.append(sum(logits[T - 1 + k, t] for k, t in enumerate(choice)))
        return torch.stack(scores)


def scaling(weight, **options):
    return lambda image, T: multiplied(weight, image, T, **options)


def worst(vlm, questions, scores, change):
    return max(
        float((scores[q, : len(question.choices)] - expected(vlm, question, change)).abs().max()) for q, question in enumerate(questions)
    )


# --- ScalingVis


@pytest.mark.parametrize("name", CAUSAL)
def test_scaling_equals_plain_attention_on_every_family(questions, name):
    vlm = model(name)
    base, smooth, sharp = evaluate_scaled(vlm, questions, [AttentionScale(w) for w in (1.0, 0.5, 2.0)], path="packed")
    for weight, evaluation in ((1.0, base), (0.5, smooth), (2.0, sharp)):
        assert worst(vlm, questions, evaluation.scores, scaling(weight)) <= 1e-5
    for evaluation in (smooth, sharp):
        assert (evaluation.scores - base.scores).nan_to_num(0, 0, 0).abs().max() > 1e-3


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("rows", ["last", "all"])
def test_whole_passes_equal_plain_attention(questions, name, rows):
    vlm = model(name)
    base, scaled = evaluate_scaled(vlm, questions[:2], [AttentionScale(1.0, rows), AttentionScale(1.7, rows)], path="reference")
    assert worst(vlm, questions[:2], scaled.scores, scaling(1.7, rows=rows)) <= 1e-5
    assert (scaled.scores - base.scores).nan_to_num(0, 0, 0).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "internvl", "paligemma"])
@pytest.mark.parametrize("steps", ["prefill", "each_new_token"])
def test_longer_answers_scale_the_rows_of_their_tokens_as_asked(long_question, name, steps):
    vlm = model(name)
    for path in ("packed", "reference") if name in CAUSAL else ("reference",):
        scores = evaluate_scaled(vlm, [long_question], [AttentionScale(1.7, steps=steps)], path=path)[0].scores
        assert worst(vlm, [long_question], scores, scaling(1.7, steps=steps)) <= 1e-5
    other = {"prefill": "each_new_token", "each_new_token": "prefill"}[steps]
    assert worst(vlm, [long_question], scores, scaling(1.7, steps=other)) > 1e-4


def test_layers_and_heads_are_the_only_ones_scaled(questions):
    vlm = model("qwen2_5_vl")
    L, H = vlm.n_layers, vlm.n_heads
    by_layer, by_head = AttentionScale(2.0, layers=[L - 1]), AttentionScale(2.0, heads=[(0, 1), (L - 1, 0)], layers=[0])
    for scale, on in ((by_layer, [(L - 1, h) for h in range(H)]), (by_head, [(0, 1)])):
        chosen = torch.zeros(L, H, dtype=torch.bool)
        chosen[tuple(zip(*on, strict=True))] = True
        assert torch.equal(head_mask(scale.layers, scale.heads, L, H), chosen)
        scores = evaluate_scaled(vlm, questions, [scale], path="packed")[0].scores
        assert worst(vlm, questions, scores, scaling(2.0, on=chosen)) <= 1e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "gemma3", "idefics3"])
def test_weight_one_is_the_base_model_bit_for_bit(questions, long_question, name):
    vlm = model(name)
    for path in ("packed", "reference"):
        for asked in (questions, [long_question]):
            base = si.evaluate(vlm, asked, path=path).scores
            methods = [AttentionScale(1.0), AdaptVis(1.0, 1.0, 0.5), AttentionScale(1.0, layers=[0])]
            for evaluation in evaluate_scaled(vlm, asked, methods, path=path):
                assert torch.equal(evaluation.scores, base)
    inputs = vlm.encode(questions)
    with torch.no_grad():
        plain = vlm.hf_model(**inputs).logits
        for method in (AttentionScale(1.0), AttentionScale(1.0, "all"), AdaptVis(1.0, 1.0, 0.5), PASTA([(0, 0)], 1.0)):
            with method.attached(vlm):
                assert torch.equal(vlm.hf_model(**inputs).logits, plain)


def test_a_head_that_is_left_alone_keeps_its_bits(questions):
    """Rewriting some heads leaves the others' outputs as the base model computes them."""
    vlm = model("llava")
    seen = []
    hook = vlm.decoder.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda m, args: seen.append(args[0].unflatten(-1, (vlm.n_heads, -1)))
    )
    with torch.no_grad():
        vlm.hf_model(**vlm.encode(questions))
        with AttentionScale(3.0, heads=[(0, 1)]).attached(vlm):
            vlm.hf_model(**vlm.encode(questions))
    hook.remove()
    same = (seen[0] == seen[1]).flatten(3).all(-1).all(0)
    assert same[:-1].all() and same[-1].tolist() == [h != 1 for h in range(vlm.n_heads)]


def test_soft_caps_come_before_the_weight(questions):
    vlm = model("paligemma2")
    before = [layer.self_attn.attn_logit_softcapping for layer in vlm.decoder.layers]
    assert all(cap is not None for cap in before)
    try:
        for layer in vlm.decoder.layers:
            layer.self_attn.attn_logit_softcapping = 0.3
        scores = evaluate_scaled(vlm, questions[:1], [AttentionScale(2.0)])[0].scores
        assert worst(vlm, questions[:1], scores, scaling(2.0)) <= 1e-5

        def capped_after(image, T):
            def change(layer, logits):
                logits = 0.3 * torch.atanh((logits.double() / 0.3).clamp(-1 + 1e-7, 1 - 1e-7))
                logits[:, :, T - 1, :T][:, :, image] *= 2.0
                return (0.3 * torch.tanh(logits / 0.3)).float()

            return change

        assert worst(vlm, questions[:1], scores, capped_after) > 1e-3
    finally:
        for layer, cap in zip(vlm.decoder.layers, before, strict=True):
            layer.self_attn.attn_logit_softcapping = cap


# --- attached to a plain model


@pytest.mark.parametrize("name", FIRST)
def test_attached_model_scores_as_the_engine_does(questions, name):
    vlm = model(name)
    kernel = vlm.decoder.config._attn_implementation
    scale = AttentionScale(1.7)
    scores = evaluate_scaled(vlm, questions, [scale])[0].scores
    with scale.attached(vlm), torch.no_grad():
        for q, question in enumerate(questions):
            ids = [c[0] for c in vlm.choice_ids(question)]
            assert torch.allclose(vlm.hf_model(**vlm.encode(question)).logits[0, -1, ids], scores[q, : len(ids)], atol=1e-5)
    assert vlm.decoder.config._attn_implementation == kernel and not vlm.hf_model._forward_pre_hooks


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "gemma3"])
@pytest.mark.parametrize("method", [AttentionScale(1.9), AttentionScale(1.9, "all", steps="each_new_token"), PASTA([(0, 1), (1, 0)], 0.1)])
def test_generate_equals_greedy_decoding_by_plain_attention(questions, name, method):
    vlm = model(name)
    for question in questions:
        inputs = plain_inputs(vlm, question)
        T = inputs["input_ids"].shape[1]
        image = inputs["input_ids"][0] == vlm.hf_model.config.image_token_id
        change = darkened(method, ~image) if isinstance(method, PASTA) else multiplied(1.9, image, T, method.rows, method.steps)
        with torch.no_grad(), written_out(vlm, change):
            for _ in range(4):
                token = vlm.hf_model(**inputs, use_cache=False).logits[0, -1].argmax().view(1, 1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                for key in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
                    inputs[key] = torch.cat([inputs[key], torch.zeros_like(token)], 1)
        with method.attached(vlm):
            out = vlm.hf_model.generate(**vlm.encode(question), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        wanted, found, eos = inputs["input_ids"][0, T:].tolist(), out[0, T:].tolist(), vlm.tokenizer.eos_token_id
        keep = wanted.index(eos) if eos in wanted else len(wanted)
        assert keep and found[:keep] == wanted[:keep]


@pytest.mark.parametrize("method", [AttentionScale(0.3), AttentionScale(3.0), AdaptVis(0.2, 4.0, 0.6)])
def test_generated_words_are_the_scored_answers(vlm, mixed, method):
    answers = evaluate_scaled(vlm, mixed, [method])[0].answers
    with method.attached(vlm):
        together = vlm.generate(list(mixed), max_new_tokens=1)
        assert together == [vlm.generate(q, max_new_tokens=1) for q in mixed]
    named = [(a, g) for a, g, q in zip(answers, together, mixed, strict=True) if g in q.choices]
    assert len(named) >= 4 and all(a == g for a, g in named)


@contextmanager
def reading_something_else(vlm):
    """Three keys and values of nothing in front of what a pass reads."""

    def fill(module, args, kwargs):
        for number in range(vlm.n_layers):
            nothing = torch.zeros(1, vlm.n_kv_heads, 3, vlm.head_dim)
            kwargs[CACHE].update(nothing, nothing, number)

    hook = vlm.decoder.register_forward_pre_hook(fill, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_what_hides_the_prompt_is_refused(vlm, mixed):
    scale, inputs = AttentionScale(2.0, steps="each_new_token"), vlm.encode(mixed[0])
    with scale.attached(vlm):
        with pytest.raises(EditError, match="rewritten already"), AttentionScale(2.0).attached(vlm):
            pass
        with pytest.raises(EditError, match="use_cache=True"):
            vlm.generate(mixed[0], max_new_tokens=3, min_new_tokens=3, use_cache=False)
        with reading_something_else(vlm), pytest.raises(EditError, match=r"3 of .* not masked"):
            vlm.hf_model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        with pytest.raises(EditError, match="give input_ids"):
            vlm.hf_model(inputs_embeds=torch.zeros(1, 3, vlm.d_model))
        with torch.no_grad():
            cache = vlm.hf_model(**inputs, use_cache=True)[CACHE]
        with pytest.raises(EditError, match="tokens at once behind a cache"):
            vlm.hf_model(input_ids=inputs["input_ids"][:, -2:], **{CACHE: cache}, use_cache=True)
    plain = vlm.generate(mixed[0], max_new_tokens=1)
    assert plain == vlm.generate(mixed[0], max_new_tokens=1)


# --- AdaptVis


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "gemma3"])
def test_the_gate_reads_each_question_at_its_own_weight(questions, name):
    vlm = model(name)
    with torch.no_grad():
        sure = torch.stack([vlm.hf_model(**plain_inputs(vlm, q)).logits[0, -1].softmax(-1).max() for q in questions])
    threshold = float(sure.sort().values[:2].mean())
    method = AdaptVis(0.5, 2.0, threshold)
    for path in ("packed", "reference"):
        scores = evaluate_scaled(vlm, questions, [method], path=path)[0].scores
        for q, question in enumerate(questions):
            assert worst(vlm, [question], scores[q : q + 1], scaling(0.5 if sure[q] < threshold else 2.0)) <= 1e-5
    assert 0 < int((sure < threshold).sum()) < len(questions)
    with method.attached(vlm), torch.no_grad():
        for q, logits in enumerate(vlm.hf_model(**vlm.encode(questions)).logits[:, -1]):
            ids = [c[0] for c in vlm.choice_ids(questions[q])]
            assert torch.allclose(logits[ids], scores[q, : len(ids)], atol=1e-5)
        words = vlm.generate(questions, max_new_tokens=2)
        assert words == [vlm.generate(q, max_new_tokens=2) for q in questions]


def test_confidence_over_choices_and_the_release_s_gate(vlm, mixed):
    class Given:
        questions = [dataclasses.replace(mixed[0], task="vsr/random"), mixed[1]]

        def next_logits(self):
            return torch.tensor([[7.126, 0.0], [0.4, 0.0]])

        def scores(self, edit=None):
            return torch.tensor([[2.0, 2.0, float("-inf")], [0.0, 0.0, 0.0]])

    assert torch.allclose(AdaptVis(0.5, 2, 0.3).confidences(Given()).float(), torch.tensor([[7.126, 0], [0.4, 0]]).softmax(-1)[:, 0])
    assert AdaptVis(0.5, 2, 0.3, legacy=True).confidences(Given()).tolist() == [7.13, 0.6]
    assert torch.allclose(AdaptVis(0.5, 2, 0.3, confidence="choices").confidences(Given()).float(), torch.tensor([1 / 2, 1 / 3]))
    assert AdaptVis(0.5, 2, 0.3).weights(torch.tensor([0.29, 0.3])).tolist() == [0.5, 2.0]
    for method in (AdaptVis(0.5, 2, 0.3, legacy=True), AdaptVis(0.5, 2, 0.3, confidence="choices")):
        with pytest.raises(EditError, match="knows no choices"):
            method.attached(vlm)


# --- PASTA and ITI


def darkened(method, unselected, T=None):
    """log(alpha) added to the method's heads' logits over the unselected columns of the prompt, in every row."""

    def change(layer, logits):
        logits = logits.clone()
        for h in range(logits.shape[1]):
            if (layer, h) in method.heads:
                logits[:, h, :, : len(unselected)][:, :, unselected] += float(np.log(method.alpha))
        return logits

    return change


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_pasta_equals_plain_attention(questions, long_question, name):
    vlm = model(name)
    method = PASTA([(0, 1), (1, 0)], 0.05)
    for asked in (questions[:2], [long_question]):
        scores = evaluate_scaled(vlm, asked, [method])[0].scores
        assert worst(vlm, asked, scores, lambda image, T: darkened(method, ~image)) <= 1e-5
    chosen = [torch.arange(len(plain_inputs(vlm, q)["input_ids"][0])) % 3 == 0 for q in questions[:2]]
    scores = evaluate_scaled(vlm, questions[:2], [method], selected=chosen)[0].scores
    for q in range(2):
        assert worst(vlm, [questions[q]], scores[q : q + 1], lambda image, T, q=q: darkened(method, ~chosen[q])) <= 1e-5
    with pytest.raises(DataError, match="its prompt has"):
        evaluate_scaled(vlm, questions[:2], [method], selected=[c[1:] for c in chosen])


def in_boxes(vlm, question):
    """Tokens whose patch holds a pixel of the asked boxes, from a mask of pixels and the finest and coarser rasters, [T]."""
    width, height = question.image.size
    mask = np.zeros((height, width), bool)
    for name in question.about:
        left, top, right, bottom = map(int, question.boxes[name])
        mask[top:bottom, left:right] = True
    shown = torch.zeros(len(plain_inputs(vlm, question)["input_ids"][0]), dtype=torch.bool)
    for raster in patch_grid(vlm, question).rasters:
        for token, (left, top, right, bottom) in zip(raster.tokens.flatten(), raster.boxes().flatten(0, 1).tolist(), strict=True):
            part = mask[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))]
            shown[token] = bool(part.any())
    return shown


@pytest.mark.parametrize("name", ["demo", "llava_next", "internvl", "qwen2_5_vl"])
def test_pasta_on_the_asked_boxes(name):
    """The selection is what shows the boxes, in every view and tile; the answers are those of plain attention on it."""
    if name == "demo":
        vlm, asked = si.load("demo"), list(si.load_questions("scenes/relation", n=2))
    else:
        vlm, boxes = model(name), {"cat": (0, 0, 60, 40), "dog": (100, 40, 120, 80)}
        about = [("cat",), ("dog", "cat")]
        asked = [
            si.Question("Where is it?", ("left", "right"), 0, picture=noise(160, 80, i), about=a, boxes=boxes) for i, a in enumerate(about)
        ]
    selected = si.box_tokens(vlm, asked)
    method = PASTA([(0, 1), (1, 0)], 0.05)
    scores = evaluate_scaled(vlm, asked, [method], selected=selected)[0].scores
    for q, question in enumerate(asked):
        grid = patch_grid(vlm, question)
        assert (len(grid.rasters) > 1) == (name in ("llava_next", "internvl"))
        assert torch.equal(selected[q], in_boxes(vlm, question))
        assert 0 < int(selected[q].sum()) < int(grid.shown.sum()) and not selected[q][~grid.shown].any()
        assert worst(vlm, [question], scores[q : q + 1], lambda image, T, q=q: darkened(method, ~selected[q])) <= 1e-5
    on_image = evaluate_scaled(vlm, asked, [method])[0].scores
    assert (scores - on_image).nan_to_num(0, 0, 0).abs().max() > 1e-4


def test_tokens_of_no_box_are_refused(vlm, mixed):
    blind = si.Question("Is there a cat?", ("yes", "no"), 0, id="blind")
    outside = dataclasses.replace(mixed[0], id="outside", boxes={name: (200, 200, 210, 210) for name in mixed[0].about})
    for question, message in ((blind, "blind: it has no image"), (outside, "outside: its boxes are outside")):
        with pytest.raises(DataError, match=message):
            si.box_tokens(vlm, question)


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", "train", n=96)


@pytest.fixture(scope="module")
def steering(vlm, train):
    return fit_steering(vlm, train, heads=[(2, 1), (3, 0), (3, 3), (5, 7)], alpha=3.0)


def test_steering_is_the_stated_direction(vlm, train, steering):
    acts = si.capture(vlm, train)
    right = acts.logits.argmax(1) == torch.tensor([q.answer for q in train])
    assert 0 < int(right.sum()) < len(train) and steering.settings["right"] == int(right.sum())
    for layer, head in steering.heads:
        z = acts.z[:, layer, head]
        towards = z[right].mean(0) - z[~right].mean(0)
        unit = towards / towards.norm()
        assert torch.allclose(steering.directions[layer, head], unit, atol=1e-3)
        assert torch.allclose(steering.edit().shift[0, layer, head], 3.0 * (z @ unit).std() * unit, atol=1e-2)
    others = head_mask(None, steering.heads, vlm.n_layers, vlm.n_heads).logical_not()
    assert (steering.directions[others] == 0).all() and (steering.sigma[others] == 0).all() and len(steering.heads) == 4
    assert torch.equal(steering.edit(0.0).shift, torch.zeros_like(steering.edit().shift))


def test_steered_model_answers_as_the_engine_does(vlm, mixed, steering):
    scores = si.run_edits(vlm, mixed, steering)[:, 0]
    assert (scores - si.run_edits(vlm, mixed)[:, 0]).nan_to_num(0, 0, 0).abs().max() > 0.1
    with steering.attached(vlm), torch.no_grad():
        for q, question in enumerate(mixed):
            ids = [c[0] for c in vlm.choice_ids(question)]
            assert torch.allclose(vlm.hf_model(**vlm.encode(question)).logits[0, -1, ids], scores[q, : len(ids)], atol=1e-4)


@pytest.mark.parametrize("path", ["packed", "reference"])
def test_steering_is_answered_beside_the_others(vlm, mixed, steering, path):
    scaled, steered = evaluate_scaled(vlm, mixed, [AttentionScale(2.0), steering], path=path)
    assert torch.equal(steered.scores, si.run_edits(vlm, mixed, steering, path=path)[:, 0])
    assert steered.provenance["method"] == "Steering" and steered.provenance["settings"]["alpha"] == 3.0
    assert steered.provenance["passes"] == scaled.provenance["passes"] == 2 * len(mixed)


def test_probe_direction_tells_right_from_wrong(vlm, train):
    made = fit_steering(vlm, train, heads=[(3, 3)], direction="probe")
    acts = si.capture(vlm, train)
    right = (acts.logits.argmax(1) == torch.tensor([q.answer for q in train])).numpy()
    along = (acts.z[:, 3, 3] @ made.directions[3, 3]).numpy()
    assert along[right].mean() > along[~right].mean() and abs(float(made.directions[3, 3].norm()) - 1) < 1e-5


def test_planted_head_is_chosen():
    from scale_interp.adapters.steering.fit import _best_heads

    z, right = torch.randn(120, 2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 3 == 0
    z[:, 1, 2, 0] += 6.0 * right
    assert _best_heads(z, right, np.arange(120), 1, 2, 0) == [(1, 2)]


def test_steering_survives_the_disk(steering, tmp_path):
    steering.save_pretrained(tmp_path)
    again = Steering.from_pretrained(tmp_path)
    assert torch.equal(again.directions, steering.directions) and torch.equal(again.sigma, steering.sigma)
    for name in ("alpha", "heads", "scope"):
        assert getattr(again, name) == getattr(steering, name)
    assert dict(again.settings) == dict(steering.settings) and dict(again.provenance) == dict(steering.provenance)
    (tmp_path / "steering_config.json").write_text('{"method": "Steering"}')
    with pytest.raises(FileError, match="missing or wrong"):
        Steering.from_pretrained(tmp_path)


def test_steering_needs_both_kinds_of_answers(vlm, train):
    given = si.evaluate(vlm, train)
    right = [q for q, r in zip(train, given.per_question, strict=True) if r]
    with pytest.raises(DataError, match="are right"):
        fit_steering(vlm, right)
    with pytest.raises(EditError, match="the model has 48"):
        fit_steering(vlm, train, heads=49)
    with pytest.raises(EditError, match="no heads"):
        fit_steering(vlm, train, heads=[])


# --- tuning and transfer


@pytest.fixture(scope="module")
def validation():
    return si.load_questions("scenes/relation", "validation", n=48)


def test_tuned_weight_is_the_best_of_its_grid(vlm, validation):
    tuned = tune_scaling(vlm, validation)
    weights = (0.5, 0.8, 1.2, 1.5, 2.0)
    apart = [evaluate_scaled(vlm, validation, [AttentionScale(w)])[0].accuracy for w in weights]
    assert [row["weight"] for row in tuned.grid] == list(weights)
    assert [row["accuracy"] for row in tuned.grid] == pytest.approx(apart)
    best = [w for w, a in zip(weights, apart, strict=True) if a == max(apart)]
    assert tuned.method == AttentionScale(min(best, key=lambda w: abs(w - 1)))
    assert tuned.base == pytest.approx(si.evaluate(vlm, validation).accuracy)


def test_curve_holds_every_weight_s_answers(vlm, validation, tmp_path):
    curve = scaling_curve(vlm, validation, (0.5, 2.0, 4.0), layers=[2, 3])
    base, *found = evaluate_scaled(vlm, validation, [AttentionScale(w, layers=[2, 3]) for w in (1.0, 0.5, 2.0, 4.0)])
    assert torch.equal(curve.base, base.per_question) and torch.equal(curve.per_question, torch.stack([e.per_question for e in found], 1))
    table = curve.to_frame()
    for row, evaluation in zip(table.itertuples(), found, strict=True):
        gain = evaluation.compare(base)
        assert (row.accuracy, row.difference, row.p) == pytest.approx((evaluation.accuracy, gain.mean, gain.p))
    assert (table["p_holm"] >= table["p"]).all()
    with torch.no_grad():
        sure = vlm.hf_model(**vlm.encode(validation[0])).logits[0, -1].softmax(-1).max()
    assert float(curve.confidence[0]) == pytest.approx(float(sure), abs=1e-5)
    curve.save(tmp_path / "curve.safetensors")
    again = ScalingCurve.load(tmp_path / "curve.safetensors")
    assert again.to_frame().equals(table) and repr(again) == repr(curve) and again.provenance == curve.provenance
    with pytest.raises(FileError, match="is not a saved HeadMap"):
        si.HeadMap.load(tmp_path / "curve.safetensors")


def made_curve(Q=60):
    """Smoothing (0.5) is right where the model is unsure, sharpening (2) where it is sure; at weight 1 every second answer is."""
    sure = torch.linspace(0.2, 1, Q)[torch.randperm(Q, generator=torch.Generator().manual_seed(0))]
    unsure = (sure < 0.6).float()
    return ScalingCurve((0.5, 2.0), torch.stack([unsure, 1 - unsure], 1), torch.arange(Q) % 2 * 1.0, sure, torch.arange(Q))


def test_parts_by_confidence_show_an_adaptive_effect():
    curve = made_curve()
    table = curve.by_confidence(2).set_index(["part", "weight"])
    assert table.loc[(1, 0.5), "difference"] > 0.3 and table.loc[(2, 2.0), "difference"] > 0.3
    assert table.loc[(2, 0.5), "difference"] <= 0 and table.loc[(1, 2.0), "difference"] <= 0
    assert table.loc[(1, 0.5), "confidence_to"] <= table.loc[(2, 0.5), "confidence_from"]
    whole = curve.to_frame().set_index("weight")
    for weight in curve.weights:
        rows = table.xs(weight, level="weight")
        assert rows["n"].sum() == 60 and (rows["difference"] * rows["n"]).sum() / 60 == pytest.approx(whole.loc[weight, "difference"])
    with pytest.raises(DataError, match="parts=1"):
        curve.by_confidence(1)


def test_figures_show_the_numbers(vlm, validation, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    curve = made_curve()
    figure = curve.plot()
    (line,) = figure.data
    assert line.x.tolist() == [-1, 0, 1] and line.y.tolist() == pytest.approx(
        [curve.to_frame()["difference"][0], 0, curve.to_frame()["difference"][1]]
    )
    assert list(figure.layout.xaxis.ticktext) == ["0.5", "1", "2"]
    assert "0.500 at weight 1" in line.name
    with pytest.raises(DataError, match="0 curves"):
        si.viz.scaling_curves({})
    tuned = tune_adaptvis(vlm, validation[:16], thresholds=(0.4, 0.8))
    lines = tuned.plot(dark=True).data
    assert len(lines) == 6 + 1 and (lines[-1].x[0], lines[-1].y[0]) == (tuned.method.threshold, tuned.accuracy)
    assert sorted(y for line in lines[:-1] for y in line.y) == sorted(row["accuracy"] for row in tuned.grid)
    for result in (tuned, curve):
        assert "application/vnd.plotly.v1+json" in result._repr_mimebundle_()


def test_every_setting_of_the_grid_is_what_adaptvis_gives(vlm, validation):
    tuned = tune_adaptvis(vlm, validation, thresholds=(0.2, 0.6, 0.9))
    assert len(tuned.grid) == 2 * 3 * 3
    settings = [AdaptVis(row["weight_low"], row["weight_high"], row["threshold"]) for row in tuned.grid]
    prompts = PrefixStore(vlm, validation)
    found = [e.accuracy for e in evaluate_scaled(vlm, validation, settings, prompts=prompts)]
    assert [row["accuracy"] for row in tuned.grid] == pytest.approx(found)
    assert len(set(found)) > 1 and tuned.accuracy == max(found) and found[settings.index(tuned.method)] == max(found)
    assert {0.3, 0.35, 0.4} < {row["threshold"] for row in tune_adaptvis(vlm, validation).grid}


def test_forward_passes_are_counted(vlm, validation):
    rows = []
    hook = vlm.decoder.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(next(kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None)),
        with_kwargs=True,
    )
    try:
        si.evaluate(vlm, validation[:1])  # the check of the paths on first use under this hook is not counted
        rows.clear()
        counts = {
            "scaling": (tune_scaling(vlm, validation).passes, 1 + 5),
            "adaptvis": (tune_adaptvis(vlm, validation).passes, 1 + 5),
            "evaluated": (evaluate_scaled(vlm, validation, [AdaptVis(0.5, 2, 0.3)])[0].provenance["passes"], 2),
        }
        last_tokens = sum(r.shape[0] for r in rows if r.shape[1] == 1)
        assert counts == {k: (n * len(validation), n) for k, (_, n) in counts.items()}
        assert last_tokens == (6 + 6 + 2) * len(validation)
        rows.clear()
        whole = tune_adaptvis(vlm, validation[:3], rows="all").passes
        assert whole == sum(r.shape[0] for r in rows) == 3 * (1 + 1 + 5)
    finally:
        hook.remove()


def test_transfer_pairs_each_tuning_with_each_test(vlm, validation):
    other = si.load_questions("scenes/exists", "validation", n=24)
    tuned = {"relation": tune_scaling(vlm, validation, layers=[2, 3]), "exists": tune_adaptvis(vlm, other)}
    tests = {"relation": si.load_questions("scenes/relation", n=32), "exists": si.load_questions("scenes/exists", n=24)}
    table = transfer_table(vlm, tuned, tests)
    assert list(zip(table.tuned_on, table.tested_on, strict=True)) == [(a, b) for b in tests for a in tuned]
    for row in table.itertuples():
        base, scaled = evaluate_scaled(vlm, tests[row.tested_on], [AttentionScale(1.0), tuned[row.tuned_on].method])
        assert (row.base, row.accuracy) == pytest.approx((base.accuracy, scaled.accuracy))
        gain = scaled.compare(base)
        assert (row.difference, row.low, row.high, row.p) == pytest.approx((gain.mean, gain.low, gain.high, gain.p))
    assert (table.p_holm >= table.p).all()
    with pytest.raises(LeakError, match="tuned on for 'relation'"):
        transfer_table(vlm, tuned, {"again": validation})


# --- files and mistakes


@pytest.mark.parametrize(
    "method",
    [
        AttentionScale(1.2, "all", layers=(1, 2), heads=((1, 0), (2, 3)), steps="each_new_token"),
        AdaptVis(0.5, 1.5, 0.35, confidence="choices"),
        AdaptVis(0.5, 1.5, 0.35, heads=((1, 0),), legacy=True),
        PASTA(((0, 1),), 0.1),
    ],
)
def test_settings_survive_the_disk(method, tmp_path):
    method.save_pretrained(tmp_path)
    assert type(method).from_pretrained(tmp_path) == method
    other = PASTA if isinstance(method, AdaptVis) else AdaptVis
    with pytest.raises(FileError, match=f"describes '{type(method).__name__}'"):
        other.from_pretrained(tmp_path)
    (tmp_path / "attention_config.json").write_text(f'{{"method": "{type(method).__name__}", "settings": {{"alpha": -1}}}}')
    with pytest.raises(FileError, match="missing or wrong"):
        type(method).from_pretrained(tmp_path)


def test_tunings_survive_the_disk(vlm, validation, tmp_path):
    tuned = tune_adaptvis(vlm, validation[:8], thresholds=(0.4,))
    tuned.save(tmp_path / "tuned.json")
    again = Tuned.load(tmp_path / "tuned.json")
    for name in ("method", "grid", "base", "passes", "groups"):
        assert getattr(again, name) == getattr(tuned, name)
    assert dict(again.provenance) == dict(tuned.provenance) and again.provenance["n"] == 8
    (tmp_path / "tuned.json").write_text("{}")
    with pytest.raises(FileError, match="no tuning"):
        Tuned.load(tmp_path / "tuned.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionScale(-1.0), "weight=-1.0"),
        (lambda: AttentionScale(float("nan")), "weight=nan"),
        (lambda: AttentionScale(2.0, rows="first"), "rows='first'"),
        (lambda: AttentionScale(2.0, columns="text"), "columns='text'"),
        (lambda: AttentionScale(2.0, steps="never"), "steps='never'"),
        (lambda: AdaptVis(0.5, 2.0, -0.1), "threshold=-0.1"),
        (lambda: AdaptVis(0.5, 2.0, 0.3, confidence="words"), "confidence='words'"),
        (lambda: AdaptVis(0.5, 2.0, 0.3, confidence="choices", legacy=True), "legacy"),
        (lambda: PASTA([(0, 0)], 0.0), "alpha=0.0"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(EditError, match=message):
        make()


def test_what_does_not_fit_the_model_is_refused(vlm, mixed):
    with pytest.raises(EditError, match="numbers from 0 to 5"):
        evaluate_scaled(vlm, mixed, [AttentionScale(2.0, layers=[6])])
    with pytest.raises(EditError, match="out of range"):
        AdaptVis(0.5, 2.0, 0.3, heads=[(0, 8)]).attached(vlm)
    with pytest.raises(EditError, match="no head is left"):
        PASTA([]).attached(vlm)
    with pytest.raises(EditError, match="whole forward passes"):
        evaluate_scaled(vlm, mixed, [AttentionScale(2.0, "all")], path="packed")
    with pytest.raises(EditError, match="at least one"):
        evaluate_scaled(vlm, mixed, [])
