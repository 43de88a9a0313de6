"""Attached edits find the prompt's end in every way that transformers reads a prompt, and say so where a model hides it.

The oracle is a whole pass without a cache for each token, one prompt at a time, edited by plain hooks at columns that are known here.
"""

import copy
import sys
import warnings

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    GptOssConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.granite_swa.configuration_granite_swa import GraniteSWAConfig

import scale_interp as si
from scale_interp.adapters.attach import attach
from scale_interp.adapters.attention_scaling.adaptvis import AdaptVis
from scale_interp.adapters.attention_scaling.pasta import PASTA
from scale_interp.adapters.attention_scaling.scalingvis import AttentionScale
from scale_interp.adapters.steering.steering import Steering
from scale_interp.attribution.attention.last_token import read_attention
from scale_interp.errors import EditError, ModelError, RunWarning
from scale_interp.evaluation.attention_scaling.answers import evaluate_scaled
from scale_interp.vlm.cache import CACHE
from tests.support.oracle import eager_attention, hooked_logits, plain_inputs
from tests.support.zoo_models import three_questions

FAMILIES = ("llava", "qwen2_5_vl", "gemma3")
PER_TOKEN = ("attention_mask", "token_type_ids", "mm_token_type_ids")
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}


@pytest.fixture(scope="module")
def models():
    return {name: si.load(f"tiny-random/{name}") for name in FAMILIES}


@pytest.fixture(scope="module")
def questions():
    return three_questions()


def scalars(vlm, scope="each_new_token"):
    draw = torch.Generator().manual_seed(0)
    heads = 3 * torch.rand(vlm.n_layers, vlm.n_heads, generator=draw)
    return si.ScAle(heads, 0.3 + torch.rand(vlm.n_layers, generator=draw), 1, (), scope)


def steering(vlm, scope="each_new_token"):
    directions = torch.randn(vlm.n_layers, vlm.n_heads, vlm.head_dim, generator=torch.Generator().manual_seed(1))
    return Steering(directions, torch.ones(vlm.n_layers, vlm.n_heads), 2.0, (), scope)


def parts(method):
    edit = method.edit()
    return {name: None if (part := getattr(edit, name)) is None else part[0] for name in ("scale", "shift", "mlp_scale")}


def after(inputs, tokens):
    """The inputs with answer tokens behind them."""
    more = torch.tensor([tokens], dtype=torch.long)
    longer = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], more], 1)}
    for name in {*PER_TOKEN} & longer.keys():
        longer[name] = torch.cat([inputs[name], torch.full_like(more, int(name == "attention_mask"))], 1)
    return longer


@torch.no_grad()
def greedy(vlm, inputs, method, n=5):
    """n tokens and the logits of each [n, V], from whole passes without a cache, edited by plain hooks where the prompt ends."""
    T, tokens, seen = inputs["input_ids"].shape[1], [], []
    for _ in range(n):
        end = T + len(tokens) if method is not None and method.scope == "each_new_token" else T
        given = {} if method is None else parts(method)
        logits = hooked_logits(vlm.hf_model, after(inputs, tokens) if tokens else inputs, **given, positions=range(T - 1, end))[-1]
        seen.append(logits.clone())
        logits[vlm.hf_model.generation_config.eos_token_id or []] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens, torch.stack(seen)


def generated(vlm, inputs, **options):
    asked = GREEDY | {"return_dict_in_generate": True, "output_logits": True} | options
    out = vlm.hf_model.generate(**inputs, **asked)
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(out.logits)


def prefix_cache(vlm, inputs, n):
    """A cache of the prompt's first n tokens, read without an edit."""
    cache = DynamicCache(config=vlm.hf_model.config.get_text_config())
    short = {k: v[:, :n] if k in ("input_ids", *PER_TOKEN) else v for k, v in inputs.items()}
    with torch.no_grad():
        vlm.hf_model(**short, **{CACHE: cache}, use_cache=True)
    return cache


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scope", ["last", "each_new_token"])
@pytest.mark.parametrize("kind", [scalars, steering])
def test_every_way_to_read_a_prompt_is_edited_at_its_end(models, questions, name, scope, kind):
    vlm, question = models[name], questions[0]
    method, inputs = kind(vlm, scope), plain_inputs(vlm, question)
    wanted, logits = greedy(vlm, inputs, method)
    words, plain = greedy(vlm, inputs, None)
    assert (logits - plain).abs().max() > 1e-3, "the edit must show"
    T = inputs["input_ids"].shape[1]
    text = {k: v for k, v in inputs.items() if k in ("input_ids", *PER_TOKEN)}
    ways = {
        "plain": (inputs, {}),
        "behind a prefix": (text, {CACHE: prefix_cache(vlm, inputs, T - 3)}),
        "behind all but the last token": (text, {CACHE: prefix_cache(vlm, inputs, T - 1)}),
        "in chunks": (inputs, {"prefill_chunk_size": 7}),
        "in a chunk and its last token": (inputs, {"prefill_chunk_size": T - 1}),
        "into a static cache": (inputs, {"cache_implementation": "static"}),
        "assisted by another model": (inputs, {"assistant_model": si.load(f"tiny-random/{name}").hf_model}),
        "assisted by itself": (inputs, {"assistant_model": vlm.hf_model}),
    }
    if name != "llava":  # whose own words are looked up among the image's placeholders, so that transformers refuses them
        ways["prompt lookup"] = inputs, {"prompt_lookup_num_tokens": 2}
    for way, (given, options) in ways.items():
        assert generated(vlm, given, **copy.deepcopy(options))[0] == words, way
        with method.attached(vlm):
            found, these = generated(vlm, given, **options)
        assert found == wanted and (these - logits).abs().max() <= 1e-4, way


@pytest.mark.parametrize("scope", ["last", "each_new_token"])
@pytest.mark.parametrize("kind", [scalars, steering])
def test_layers_that_read_the_last_token_only_are_edited_there(questions, scope, kind):
    """Gemma 4's last layers, whose keys are those of earlier ones, skip the prompt's other tokens in `generate`."""
    vlm = si.load("tiny-random/gemma4")
    method, inputs = kind(vlm, scope), plain_inputs(vlm, questions[0])
    wanted, logits = greedy(vlm, inputs, method)
    with method.attached(vlm):
        found, these = generated(vlm, inputs)
    assert found == wanted and (these - logits).abs().max() <= 1e-4
    last = vlm.n_layers - 1
    only = method.edit().scale.clone() if kind is scalars else None
    if only is not None:  # of the last layer alone
        only[:, :last] = 1
        bare = si.Edit(scale=only, scope=scope)
        with attach(vlm.hf_model, bare):
            first = generated(vlm, inputs)[1][0]
        expected = si.run_edits(vlm, questions[:1], bare, path="reference")[0, 0]
        assert (first[[ids[0] for ids in vlm.choice_ids(questions[0])]] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rows", "steps"), [("last", "prefill"), ("last", "each_new_token"), ("all", "prefill")])
def test_scaled_attention_shares_the_answer(models, questions, name, rows, steps):
    """Its own reading of a whole prompt is tested against attention written out; here the other ways against that."""
    vlm, inputs = models[name], plain_inputs(models[name], questions[0])
    text, T = {k: v for k, v in inputs.items() if k in ("input_ids", *PER_TOKEN)}, inputs["input_ids"].shape[1]
    logits = {"return_dict_in_generate": True, "output_logits": True}
    for method in (AttentionScale(2.5, rows, steps=steps), AdaptVis(2.5, 2.5, 0.5, rows, steps=steps)):
        with method.attached(vlm):
            wanted = vlm.hf_model.generate(**inputs, **GREEDY, **logits)
            ways = {
                "chunks": {"prefill_chunk_size": 7},
                "assisted": {"assistant_model": si.load(vlm.name).hf_model},
                "static": {"cache_implementation": "static"},
            }
            for way, options in ways.items():
                if rows == "all" and isinstance(method, AdaptVis) and way == "chunks":
                    with pytest.raises(EditError, match="whole and from an empty cache"):
                        vlm.hf_model.generate(**inputs, **GREEDY, **options)
                    continue
                found = vlm.hf_model.generate(**inputs, **GREEDY, **logits, **options)
                assert torch.equal(found.sequences, wanted.sequences), way
                assert (torch.stack(found.logits) - torch.stack(wanted.logits)).abs().max() <= 1e-5, way
            cache = {CACHE: prefix_cache_outside(vlm, inputs, T - 3)}
            if rows == "all":
                with pytest.raises(EditError, match="whole and from an empty cache"):
                    vlm.hf_model.generate(**text, **GREEDY, **cache)
                continue
            found = vlm.hf_model.generate(**text, **GREEDY, **logits, **cache)
            assert (torch.stack(found.logits) - torch.stack(wanted.logits)).abs().max() <= 1e-5
        assert (wanted.logits[0] - vlm.hf_model.generate(**inputs, **GREEDY, **logits).logits[0]).abs().max() > 1e-4


def prefix_cache_outside(vlm, inputs, n):
    """A prefix that another copy of the model has read."""
    return prefix_cache(si.load(vlm.name), inputs, n)


# --- batches


def padded(vlm, questions, side):
    """Questions as one batch, padded on this side by the processor."""
    texts = [vlm.prompt_text(q) for q in questions]
    return dict(vlm.processor(text=texts, images=[q.images for q in questions], return_tensors="pt", padding=True, padding_side=side))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [scalars, steering])
def test_each_row_of_a_padded_batch_is_edited_at_its_own_end(models, questions, name, kind):
    vlm = models[name]
    for scope in ("last", "each_new_token"):
        method = kind(vlm, scope)
        for side in ("left", "right"):
            batch = padded(vlm, questions, side)
            ends = batch["attention_mask"].shape[1] - 1 - batch["attention_mask"].flip(1).argmax(1)
            assert (side == "left") == bool((ends == ends.max()).all())
            with method.attached(vlm), torch.no_grad():
                logits = vlm.hf_model(**batch).logits[torch.arange(len(ends)), ends]
            for row, question in zip(logits, questions, strict=True):
                T = plain_inputs(vlm, question)["input_ids"].shape[1]
                alone = hooked_logits(vlm.hf_model, plain_inputs(vlm, question), **parts(method), positions=[T - 1])[-1]
                assert (row - alone).abs().max() <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_scaled_attention_of_a_batch_padded_on_the_right(models, questions, name):
    vlm, batch = models[name], padded(models[name], questions, "right")
    ends = batch["attention_mask"].shape[1] - 1 - batch["attention_mask"].flip(1).argmax(1)
    for method in (AttentionScale(2.5), AdaptVis(2.5, 2.5, 0.5), PASTA([(0, 1), (1, 0)], 0.1)):
        with method.attached(vlm), torch.no_grad():
            logits = vlm.hf_model(**batch).logits[torch.arange(len(ends)), ends]
            alone = [vlm.hf_model(**plain_inputs(vlm, q)).logits[0, -1] for q in questions]
        assert (logits - torch.stack(alone)).abs().max() <= 1e-4


def test_generate_on_the_wrong_padding_is_refused(models, questions):
    vlm = models["llava"]
    batch = padded(vlm, questions, "right")
    without = {k: v for k, v in batch.items() if k != "attention_mask"}
    for method in (scalars(vlm), AttentionScale(2.0)):
        with method.attached(vlm):
            with pytest.raises(EditError, match="pad on the left"):
                vlm.hf_model.generate(**batch, **GREEDY)
            for call in (vlm.hf_model.generate, vlm.hf_model):
                with pytest.raises(EditError, match="give its attention_mask"):
                    call(**without)
            with pytest.raises(EditError, match="holds no token"):
                vlm.hf_model(**batch | {"attention_mask": torch.zeros_like(batch["attention_mask"])})
            with pytest.raises(EditError, match=r"attention mask \[B, T\]"):
                vlm.hf_model(**batch | {"attention_mask": torch.zeros(3, 1, 5, 5)})


def test_beams_samples_and_several_answers_are_edited_alike(models, questions):
    vlm, inputs = models["llava"], padded(models["llava"], questions, "left")
    method = scalars(vlm)
    for options in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2, "top_k": 1}):
        with method.attached(vlm):
            together = vlm.hf_model.generate(**inputs, **GREEDY | options)
            alone = [vlm.hf_model.generate(**plain_inputs(vlm, q), **GREEDY | options) for q in questions]
        n = GREEDY["max_new_tokens"]
        assert torch.equal(together[:, -n:], torch.cat([part[:, -n:] for part in alone]))


# --- by hand, without generate


def test_a_prompt_in_pieces_by_hand_is_known_by_its_whole_mask(models, questions):
    vlm, method = models["llava"], scalars(models["llava"])
    inputs = plain_inputs(vlm, questions[0])
    ids, mask, T = inputs["input_ids"], inputs["attention_mask"], inputs["input_ids"].shape[1]
    wanted = hooked_logits(vlm.hf_model, inputs, **parts(method), positions=[T - 1])[-1]
    for at in (T - 4, T - 1):
        with method.attached(vlm), torch.no_grad():
            first = vlm.hf_model(input_ids=ids[:, :at], attention_mask=mask, pixel_values=inputs["pixel_values"], use_cache=True)
            out = vlm.hf_model(input_ids=ids[:, at:], attention_mask=mask, **{CACHE: first[CACHE]})
        assert (out.logits[0, -1] - wanted).abs().max() <= 1e-5


def test_two_prompts_in_turn_keep_their_own_ends(models, questions):
    """A cache carries its prompt along, copies of it too."""
    vlm = models["qwen2_5_vl"]
    for method in (scalars(vlm), AttentionScale(2.5, steps="each_new_token")):
        with method.attached(vlm), torch.no_grad():
            alone, caches = [], []
            for question in questions[:2]:
                inputs = plain_inputs(vlm, question)
                out = vlm.hf_model(**inputs, use_cache=True)
                caches.append((copy.deepcopy(out[CACHE]), inputs))
                alone.append(step(vlm, out[CACHE], inputs))
            assert all(torch.equal(step(vlm, *one), wanted) for one, wanted in zip(caches, alone, strict=True))


def step(vlm, cache, inputs):
    T = inputs["input_ids"].shape[1]
    mask, place = torch.ones(1, T + 1, dtype=torch.long), vlm.position_ids(inputs)[..., -1:] + 1
    return vlm.hf_model(input_ids=torch.tensor([[7]]), attention_mask=mask, position_ids=place, **{CACHE: cache}).logits


def test_what_cannot_be_known_is_refused(models, questions):
    vlm = models["llava"]
    inputs = plain_inputs(vlm, questions[0])
    T = inputs["input_ids"].shape[1]
    rest = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": inputs["attention_mask"]}
    with scalars(vlm, "last").attached(vlm), torch.no_grad():
        with pytest.raises(EditError, match="may be the prompt's last or a new one"):
            vlm.hf_model(**rest, **{CACHE: prefix_cache_outside(vlm, inputs, T - 1)})
        with pytest.raises(EditError, match="continuous batching"):
            vlm.hf_model.generate_batch([inputs["input_ids"][0].tolist()])
        with pytest.raises(EditError, match="guidance_scale runs a second prompt"):
            vlm.hf_model.generate(**inputs, guidance_scale=2.0)
        with pytest.raises(EditError, match="token_healing"):
            vlm.hf_model.generate(**inputs, token_healing=True)
        with pytest.raises(EditError, match="positions that start again"):
            vlm.hf_model(input_ids=torch.ones(1, 6, dtype=torch.long), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
        with pytest.raises(EditError, match="packed into one row"):
            vlm.hf_model(input_ids=torch.ones(1, 6, dtype=torch.long), cu_seq_lens_q=torch.tensor([0, 3, 6]))
        with pytest.raises(EditError, match="leave `attached`"):
            si.evaluate(vlm, questions, path="packed")
    with scalars(vlm).attached(vlm), torch.no_grad():  # the same either way, where new tokens are edited as the last one is
        found = vlm.hf_model(**rest, **{CACHE: prefix_cache_outside(vlm, inputs, T - 1)}).logits[0, -1]
        wanted = hooked_logits(si.load(vlm.name).hf_model, inputs, **parts(scalars(vlm)), positions=[T - 1])[-1]
        assert (found - wanted).abs().max() <= 1e-5
        for question in questions:  # three prompts without a cache, one after the other
            vlm.hf_model(**plain_inputs(vlm, question), use_cache=False)
        longer = after(inputs, [5, 7])
        vlm.hf_model(**inputs, use_cache=False)
        with pytest.raises(EditError, match="use_cache=True"):
            vlm.hf_model(**longer, use_cache=False)


def test_a_cache_that_was_cropped_or_read_on_elsewhere_is_unknown(models, questions):
    vlm = models["llava"]
    inputs, token = plain_inputs(vlm, questions[0]), {"input_ids": torch.tensor([[7]])}
    edit = scalars(vlm, "last")
    for change in (lambda cache: cache.crop(-3), lambda cache: vlm.hf_model(**token, **{CACHE: cache})):
        with edit.attached(vlm), torch.no_grad():
            cache = vlm.hf_model(**inputs, use_cache=True)[CACHE]
            vlm.hf_model(**token, **{CACHE: cache})
        with torch.no_grad():
            change(cache)
        with pytest.raises(EditError, match="may be the prompt's last or a new one"), edit.attached(vlm), torch.no_grad():
            vlm.hf_model(**token, **{CACHE: cache})


def test_whole_passes_of_the_engine_know_the_end_of_a_prompt(models, questions):
    """Answers of several tokens are read in one pass: an attached edit acts where the prompt ends, not where the answer does."""
    vlm = models["llava"]
    asked = [si.Question("Where is it?", ("left circle", "left square", "above"), 0, picture=questions[0].picture)]
    for scope in ("last", "each_new_token"):
        method = scalars(vlm, scope)
        wanted = si.evaluate(vlm, asked, method, path="reference").scores
        with method.attached(vlm):
            assert (si.evaluate(vlm, asked, path="reference").scores - wanted).abs().max() <= 1e-5


# --- models whose layers do not run as they are called


def compiled_whole(model):
    model.compile(backend="eager")
    return model


def compiled_layers(model):
    for layer in model.get_decoder().layers:
        layer.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_beside(model):
    return torch.compile(model, backend="eager")


def compiled_mlps(model):
    for layer in model.get_decoder().layers:
        layer.mlp = torch.compile(layer.mlp, backend="eager")
        layer.self_attn.forward = torch.compile(layer.self_attn.forward, backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled",
    [
        compiled_whole,
        compiled_layers,
        pytest.param(compiled_forward, marks=pytest.mark.full),
        pytest.param(compiled_beside, marks=pytest.mark.full),
        compiled_mlps,
    ],
)
def test_compiled_models_are_edited(questions, compiled):
    vlm = si.load("tiny-random/llava")
    inputs, method = plain_inputs(vlm, questions[0]), scalars(vlm)
    T = inputs["input_ids"].shape[1]
    wanted = hooked_logits(vlm.hf_model, inputs, **parts(method), positions=[T - 1])[-1]
    with AttentionScale(2.5).attached(vlm), torch.no_grad():
        scaled = vlm.hf_model(**inputs).logits[0, -1]
    model = compiled(vlm.hf_model)
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]  # compiled before the edit comes
        for target in {id(m): m for m in (model, vlm.hf_model)}.values():
            with method.attached(target):
                assert (model(**inputs).logits[0, -1] - wanted).abs().max() <= 1e-5
                assert model.generate(**inputs, **GREEDY)[0, T] == wanted.argmax()
            with AttentionScale(2.5).attached(target):
                assert (model(**inputs).logits[0, -1] - scaled).abs().max() <= 1e-5
        assert (model(**inputs).logits[0, -1] - plain).abs().max() <= 1e-6 and (plain - wanted).abs().max() > 1e-3


def test_modules_that_do_not_run_are_named(questions):
    vlm = si.load("tiny-random/llava")
    inputs, layer = plain_inputs(vlm, questions[0]), vlm.decoder.layers[1]
    layer.mlp.forward, own = (lambda x: torch.zeros_like(x)), layer.mlp.forward
    with scalars(vlm).attached(vlm), torch.no_grad():
        vlm.hf_model(**inputs)  # replaced, but run
    layer.mlp.forward = own
    layer.self_attn.forward = lambda *args, hidden_states=None, **kwargs: (torch.zeros_like(hidden_states), None)
    for method, message in (
        (scalars(vlm), "did not run in this pass"),
        (AttentionScale(2.0), "did not go through transformers' attention"),
    ):
        with pytest.raises(EditError, match=message), torch.no_grad(), method.attached(vlm):
            vlm.hf_model(**inputs)


def test_a_model_that_never_ran_is_said(models, questions):
    vlm = models["llava"]
    inputs = plain_inputs(vlm, questions[0])
    copied = copy.deepcopy(vlm.hf_model)
    with pytest.warns(RunWarning, match="no forward pass"), scalars(vlm).attached(vlm), torch.no_grad():
        copied(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with scalars(vlm).attached(vlm), torch.no_grad():
            vlm.hf_model(**inputs)


# --- attention sinks


def with_sinks(text):
    """A tiny LLaVA whose text decoder has a learned logit for each head in its softmax."""
    base = si.load("tiny-random/llava")
    old = base.hf_model.config
    shape = {n: getattr(old.text_config, n) for n in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")}
    shape |= {"intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 8, "pad_token_id": 0}
    more = {"num_local_experts": 2, "num_experts_per_tok": 1} if text is GptOssConfig else {"attention_multiplier": 0.25}
    images = {"image_token_index": old.image_token_id, "image_seq_length": old.image_seq_length}
    config = LlavaConfig(vision_config=old.vision_config, text_config=text(**shape, **more), **images)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    for layer in model.get_decoder().layers:
        torch.nn.init.normal_(layer.self_attn.sinks, 1.0, 1.0)
        for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight):
            torch.nn.init.normal_(weight, std=0.3)
    return si.load(model.requires_grad_(False), base.processor)


def written_out(vlm, weight, image, T):
    """Attention written out with sinks, in the place of the modelling file's own; the last row's image logits times weight."""

    def attend(module, query, key, value, mask, scaling, **kwargs):
        H, K = query.shape[1], key.shape[2]
        groups = H // key.shape[1]
        logits = query @ key.repeat_interleave(groups, 1).mT * scaling
        logits[:, :, T - 1, :T] = torch.where(image, logits[:, :, T - 1, :T] * weight, logits[:, :, T - 1, :T])
        sunk = torch.cat([logits + mask[..., :K], module.sinks.view(1, H, 1, 1).expand(*logits.shape[:3], 1)], -1)
        return (sunk.softmax(-1)[..., :-1] @ value.repeat_interleave(groups, 1)).transpose(1, 2), None

    return eager_attention(vlm, [layer.self_attn for layer in vlm.decoder.layers], attend)


@pytest.mark.parametrize("text", [GptOssConfig, GraniteSWAConfig])
def test_attention_sinks_take_their_share_where_logits_are_rewritten(questions, text):
    vlm = with_sinks(text)
    inputs = plain_inputs(vlm, questions[0])
    T, image = inputs["input_ids"].shape[1], inputs["input_ids"][0] == vlm.image_token_id
    with torch.no_grad():
        plain = vlm.hf_model(**inputs).logits[0, -1]
        with written_out(vlm, 1.0, image, T):
            assert (vlm.hf_model(**inputs).logits[0, -1] - plain).abs().max() <= 1e-5
        for method in (
            AttentionScale(1.0001),
            AttentionScale(1.0001, "all"),
            PASTA([(0, 1), (2, 0)], 0.9999),
            AdaptVis(1.0001, 1.0001, 0.5),
        ):
            with method.attached(vlm):
                assert (vlm.hf_model(**inputs).logits[0, -1] - plain).abs().max() <= 1e-3
        with written_out(vlm, 2.5, image, T):
            wanted = vlm.hf_model(**inputs).logits[0, -1]
        with AttentionScale(2.5).attached(vlm):
            found = vlm.hf_model(**inputs).logits[0, -1]
    assert (found - wanted).abs().max() <= 1e-5 and (wanted - plain).abs().max() > 1e-2


def test_every_attention_function_knows_sinks(questions):
    vlm = with_sinks(GraniteSWAConfig)
    edit = si.Edit(scale=2 * torch.rand(4, vlm.n_layers, vlm.n_heads, generator=torch.Generator().manual_seed(0)))
    packed, whole = (si.run_edits(vlm, questions, edit, path=path) for path in ("packed", "reference"))
    assert (packed - whole).nan_to_num(0, 0, 0).abs().max() <= 1e-5
    packed, whole = (evaluate_scaled(vlm, questions, [AttentionScale(2.5)], path=path)[0].scores for path in ("packed", "reference"))
    assert (packed - whole).nan_to_num(0, 0, 0).abs().max() <= 1e-5
    for path in ("packed", "reference"):
        with pytest.raises(ModelError, match="has attention sinks"):
            read_attention(vlm, questions[:1], path=path)


def test_attention_that_is_more_than_a_softmax_is_refused(questions):
    """A gate on each head's output, a bias of the logits, another function of the user's own."""
    vlm = si.load("tiny-random/llava", dtype=torch.float32)
    inputs = plain_inputs(vlm, questions[0])
    modules = [layer.self_attn for layer in vlm.decoder.layers]
    own = sys.modules[type(modules[0]).__module__].eager_attention_forward

    def gated(module, *args, **kwargs):
        out, weights = own(module, *args, **kwargs)
        return out * torch.linspace(0.9, 1.1, out.shape[2])[:, None], weights

    def biased(module, query, key, value, mask, **kwargs):
        K = key.shape[2]
        return own(module, query, key, value, mask - 0.1 * (torch.arange(K - 1, -1, -1)), **kwargs)

    for other in (gated, biased):
        with eager_attention(vlm, modules, other):
            for method in (AttentionScale(1.0001), AttentionScale(1.0001, "all", layers=[1])):
                with pytest.raises(EditError, match="cannot be rewritten"), torch.no_grad(), method.attached(vlm):
                    vlm.hf_model(**inputs)
    AttentionInterface.register("of_my_own", gated)
    AttentionMaskInterface.register("of_my_own", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    vlm.decoder.set_attn_implementation("of_my_own")
    with pytest.raises(EditError, match="'of_my_own' may do more"), AttentionScale(1.0001).attached(vlm):
        pass
