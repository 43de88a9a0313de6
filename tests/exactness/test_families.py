"""Ten families on tiny random-weight models: packed path = plain torch hooks, quirks, prompts, pictures, dtypes, devices."""

import copy
import functools
import shutil
import warnings

import pytest
import torch
from accelerate import dispatch_model
from PIL import Image
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

import scale_interp as si
from scale_interp.errors import DataError, EditError, MemoryWarning, ModelError, PathWarning
from scale_interp.interventions import paths, prefix
from scale_interp.interventions.check import TOLERANCE
from scale_interp.interventions.engine import run_with_clean
from scale_interp.interventions.packed import run_packed
from scale_interp.interventions.prefix import PrefixStore, read_prefix
from scale_interp.interventions.rows import attention
from scale_interp.models import zoo
from scale_interp.vlm import families
from scale_interp.vlm.cache import CACHE
from scale_interp.vlm.vlm import VLM
from tests.support.oracle import heads_of, hooked_logits, hooked_scores, plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, CAUSAL, EVERY, EVERY_CAUSAL, FIRST, RECENT, Models, noise, three_questions

KINDS = ("zero", "mean", "patch", "amplify", "mlp", "steer", "all heads", "everything")


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture(scope="module")
def questions():
    return three_questions()


def edits(vlm, questions):
    """name -> Edit of two variants, every kind."""
    draw = torch.Generator().manual_seed(0)
    L, H, D = vlm.n_layers, vlm.n_heads, vlm.head_dim
    one = torch.ones(2, L, H)
    one[0, 1, 2] = one[1, L - 1, 0] = 0.0
    mean, other, shifted = (torch.zeros(2, L, H, D) for _ in range(3))
    average = torch.randn(L, H, D, generator=draw)
    for n, head in enumerate([(1, 2), (L - 1, 0)]):
        mean[n][head] = average[head]
        shifted[n][head] = torch.randn(D, generator=draw)
    other = torch.stack([mean.flip(0) * 0 + mean * (q + 1) for q in range(len(questions))])
    rand = lambda *shape: 2 * torch.rand(*shape, generator=draw)  # noqa: E731
    return {
        "zero": si.Edit(one),
        "mean": si.Edit(one, mean),
        "patch": si.Edit(one, other),
        "amplify": si.Edit(1 + 3 * (1 - one)),
        "mlp": si.Edit(mlp_scale=rand(2, L)),
        "steer": si.Edit(shift=shifted),
        "all heads": si.Edit(rand(2, L, H)),
        "everything": si.Edit(rand(2, L, H), torch.randn(2, L, H, D, generator=draw), rand(2, L)),
    }


def of_question(edit, q):
    """The edit as one question sees it."""
    shift = edit.shift[q] if edit.shift is not None and edit.shift.ndim == 5 else edit.shift
    return si.Edit(edit.scale, shift, edit.mlp_scale, edit.scope)


def distance(vlm, questions, edit, scores):
    worst = 0.0
    for q, question in enumerate(questions):
        for n in range(edit.n_variants):
            expected = hooked_scores(vlm, question, of_question(edit, q), n, edit.scope)
            worst = max(worst, float((scores[q, n, : len(expected)] - expected).abs().max()))
    return worst


@pytest.mark.parametrize("name", EVERY_CAUSAL)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_equals_hooks(models, questions, name, kernel):
    vlm = models[name]
    kernel = kernel if vlm.decoder._supports_sdpa else "eager"  # attention sinks are beyond torch's function
    vlm.hf_model.set_attn_implementation(kernel)
    assert vlm.decoder.config._attn_implementation == kernel
    for kind, edit in edits(vlm, questions).items():
        edited, clean = run_with_clean(vlm, questions, edit, "packed")
        assert distance(vlm, questions, edit, edited) <= 1e-5, kind
        effect = (edited - clean)[edited.isfinite()].abs().max()
        # Gemma norms what its MLP gives, and the norm takes a factor out again
        assert effect <= 1e-4 if name in ("gemma3", "gemma4") and kind == "mlp" else effect > 1e-4, kind
    assert tuple(edits(vlm, questions)) == KINDS


@pytest.mark.parametrize("name", EVERY)
def test_reference_equals_hooks_and_sweeps_agree(models, questions, name):
    vlm = models[name]
    everything = edits(vlm, questions)["everything"]
    assert distance(vlm, questions, everything, si.run_edits(vlm, questions, everything, path="reference")) <= 1e-5
    if name not in BIDIRECTIONAL:
        sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
        packed, reference = (si.run_edits(vlm, questions[:2], sweep, path=p) for p in ("packed", "reference"))
        assert (packed - reference).nan_to_num(0, 0, 0).abs().max() <= 1e-5


@pytest.mark.parametrize("name", EVERY_CAUSAL)
def test_gradients_of_all_heads_equal_the_whole_pass(models, questions, name):
    vlm = models[name]
    question = questions[0]
    ids = [c[0] for c in vlm.choice_ids(question)]
    packed, whole = (torch.ones(vlm.n_layers, vlm.n_heads, requires_grad=True) for _ in range(2))
    score = run_packed(vlm, read_prefix(vlm, [question]), si.Edit(scale=packed[None]))[1][0, 0]
    (score[0] - score[1]).backward()
    logits = hooked_logits(vlm.hf_model, plain_inputs(vlm, question), scale=whole)[-1]
    (logits[ids[0]] - logits[ids[1]]).backward()
    assert whole.grad.abs().min() > 0
    assert (packed.grad - whole.grad).abs().max() <= 1e-5


def test_mlp_scalars_on_a_normed_mlp_are_warned_of(models, questions):
    with pytest.warns(PathWarning, match="which undoes a factor"):
        si.fit_scale(models["gemma3"], questions[::2], epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PathWarning)
        si.fit_scale(models["gemma3"], questions[::2], mlp=False, epochs=1)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "idefics3", "paligemma", "paligemma2"])
def test_choices_that_share_a_first_token(models, questions, name):
    vlm = models[name]
    question = si.Question(questions[1].text, ("left circle", "left square", "above"), 0, picture=questions[1].picture)
    assert len({ids[0] for ids in vlm.choice_ids(question)}) == 2
    for scope in ("last", "each_new_token"):
        everything = edits(vlm, [question])["everything"]
        edit = si.Edit(everything.scale, everything.shift, everything.mlp_scale, scope)
        scores = si.run_edits(vlm, question, edit, path="packed" if name not in BIDIRECTIONAL else "reference")
        assert distance(vlm, [question], edit, scores) <= 1e-5


# --- quirks


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_dropping_mrope_positions_is_noticed(models, questions, name, monkeypatch):
    vlm = models[name]
    edit = edits(vlm, questions)["everything"]
    plain = lambda self, inputs: (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)  # noqa: E731
    monkeypatch.setattr(VLM, "position_ids", plain)
    assert distance(vlm, questions, edit, si.run_edits(vlm, questions, edit, path="packed")) > 1e-2


def test_dropping_token_types_is_noticed(models, questions, monkeypatch):
    vlm = models["qwen2_5_vl"]
    edit = edits(vlm, questions)["everything"]
    process = VLM.process

    def forgetful(self, asked):
        inputs = process(self, asked)
        inputs["mm_token_type_ids"] = torch.zeros_like(inputs["mm_token_type_ids"])
        return inputs

    monkeypatch.setattr(VLM, "process", forgetful)  # which encode calls, and what reads ahead
    for path in ("packed", "reference"):
        assert distance(vlm, questions, edit, si.run_edits(vlm, questions, edit, path=path)) > 1e-2


def test_stale_rope_deltas_do_not_matter(models, questions):
    vlm = models["qwen2_5_vl"]
    edit = edits(vlm, questions)["all heads"]
    before = si.run_edits(vlm, questions[0], edit, path="packed")
    vlm.generate(questions[1])
    assert torch.equal(before, si.run_edits(vlm, questions[0], edit, path="packed"))


def test_sliding_window_is_shorter_than_the_prompt(models, questions, monkeypatch):
    """So that a window which is ignored fails the exactness tests."""
    vlm = models["gemma3"]
    edit = edits(vlm, questions)["everything"]
    read = read_prefix(vlm, questions)
    assert set(read.windows) == {12, None} and read.seen.sum(1).min() > 12
    assert set(read.inputs()["attention_mask"]) == {"full_attention", "sliding_attention"}
    monkeypatch.setattr(prefix.Prefix, "_mask", lambda self, window, mask=prefix.Prefix._mask: mask(self, None if window is None else 5))
    assert distance(vlm, questions, edit, si.run_edits(vlm, questions, edit, path="packed")) > 1e-4


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional_prompts_take_the_reference_path(questions, name):
    vlm = si.load(f"tiny-random/{name}")
    edit = edits(vlm, questions)["everything"]
    with pytest.warns(PathWarning, match="both directions") as seen:
        auto, clean = run_with_clean(vlm, questions, edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PathWarning)
        assert torch.equal(auto, si.run_edits(vlm, questions, edit)), "the warning comes once"
    assert len([w for w in seen if w.category is PathWarning]) == 1
    frozen, frozen_clean = run_with_clean(vlm, questions, edit, "packed")
    finite = auto.isfinite()
    assert (auto - frozen)[finite].abs().max() > 1e-3, "another intervention"
    assert (clean - frozen_clean)[finite].abs().max() <= 1e-5, "of the same clean run"
    assert vlm.report.path == "reference" and "frozen" in vlm.report.why


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_frozen_prompt_is_the_edit_with_the_clean_prompts_keys(models, questions, name):
    """Oracle of path='packed': prefill the whole prompt, drop its last token, run it again edited."""
    vlm, question = models[name], questions[0]
    edit = edits(vlm, questions)["everything"]
    scores = si.run_edits(vlm, question, edit, path="packed")
    inputs = plain_inputs(vlm, question)
    T = inputs["input_ids"].shape[1]
    for n in range(2):
        with torch.no_grad():
            cache = vlm.hf_model(**inputs, use_cache=True)[CACHE]
            cache.crop(-1)
            last = {"input_ids": inputs["input_ids"][:, -1:], CACHE: cache, "position_ids": torch.tensor([[T]])}
            last["attention_mask"] = torch.ones(1, T, dtype=torch.long)
            logits = hooked_logits(vlm.hf_model, last, edit.scale[n], edit.shift[n], edit.mlp_scale[n], use_cache=True)[-1]
        expected = logits[[ids[0] for ids in vlm.choice_ids(question)]]
        assert (scores[0, n] - expected).abs().max() <= 1e-5


def test_analyses_on_a_bidirectional_prompt(models, questions):
    vlm = models["paligemma"]
    asked = [questions[0], si.Question("Where is it?", ("left", "right"), 1, picture=noise(50, 50, 5))]
    assert si.ablate(vlm, asked).provenance["path"] == "reference"
    with pytest.raises(EditError, match="both directions"):
        si.attribute(vlm, asked)
    with pytest.raises(EditError, match="both directions"):
        si.fit_scale(vlm, asked)
    assert si.attribute(vlm, asked, path="packed").provenance["path"] == "packed"
    assert si.fit_scale(vlm, asked, path="packed", epochs=1).n_parameters == vlm.n_layers * (vlm.n_heads + 1)


# --- the whole toolkit on every family


@pytest.mark.parametrize("name", EVERY)
def test_every_family_loads_captures_sweeps_and_answers(models, questions, name):
    vlm = models[name]
    assert vlm.family == {"paligemma2": "paligemma", "internvl_gpt_oss": "internvl"}.get(name, name)
    outputs = [getattr(heads_of(layer)[0], "in_features", None) for layer in vlm.decoder.layers if heads_of(layer)]
    assert len(outputs) == vlm.n_layers and max(outputs) == vlm.head_dim * vlm.n_heads
    assert vlm.n_kv_heads == 2
    acts = si.capture(vlm, questions)
    assert acts.z.shape == (3, vlm.n_layers, vlm.n_heads, vlm.head_dim) and acts.mlp.shape == (3, vlm.n_layers, vlm.d_model)
    clean = si.run_edits(vlm, questions, path="packed")[:, 0]
    assert (acts.logits - clean).nan_to_num(0, 0, 0).abs().max() <= 1e-5
    assert isinstance(vlm.generate(questions[0]), str) and len(vlm.generate(questions)) == 3
    other = si.Question(questions[0].text, questions[0].choices, 0, picture=noise(60, 40, 9))
    assert (si.run_edits(vlm, other, path="packed")[0, 0] - clean[0, :2]).abs().max() > 1e-3, "the picture matters"


def test_scale_attached_to_generate_on_mrope(models, questions):
    vlm = models["qwen2_5_vl"]
    scale = si.ScAle(torch.full((vlm.n_layers, vlm.n_heads), 0.3), torch.full((vlm.n_layers,), 0.5), 1, (), "last", {}, {})
    inputs = plain_inputs(vlm, questions[0])
    with scale.attached(vlm), torch.no_grad():
        attached = vlm.hf_model(**inputs).logits[0, -1]
    hooked = hooked_logits(vlm.hf_model, inputs, scale=scale.scalars, mlp_scale=scale.mlp_scalars)[-1]
    assert (attached - hooked).abs().max() <= 1e-5


# --- prompts and pictures


@pytest.mark.parametrize("name", EVERY)
def test_several_pictures_a_question(models, questions, name):
    vlm = models[name]
    two = si.Question("Is the cat in both?", ("yes", "no"), 0, picture=[noise(60, 40, 3), noise(30, 60, 4)])
    swapped = si.Question(two.text, two.choices, 0, picture=two.pictures[::-1])
    mixed = [questions[0], two, swapped]
    edit = edits(vlm, mixed)["everything"]
    scores = si.run_edits(vlm, mixed, edit, path="packed" if name not in BIDIRECTIONAL else "reference")
    assert distance(vlm, mixed, edit, scores) <= 1e-5
    assert (scores[1] - scores[2])[:, :2].abs().max() > 1e-4, "their order matters"
    assert two.id != swapped.id and len(two.images) == 2
    assert two._repr_html_().count("<img") == 2


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("kind", ["1x1", "RGBA", "palette", "grey", "wide"])
def test_odd_pictures(models, name, kind):
    base = noise(40, 30, 6)
    picture = {
        "1x1": Image.new("RGB", (1, 1), (9, 200, 30)),
        "RGBA": Image.merge("RGBA", (*base.split(), Image.linear_gradient("L").resize(base.size))),
        "palette": base.quantize(16),
        "grey": base.convert("L"),
        "wide": noise(120, 4, 7),
    }[kind]
    question = si.Question("What is it?", ("circle", "square"), 0, picture=picture)
    vlm = models[name]
    assert si.run_edits(vlm, question, path="packed").isfinite().all()


def test_a_picture_that_a_processor_refuses_is_named(models):
    thin = si.Question("What is it?", ("circle", "square"), 0, picture=noise(900, 3), id="thin")
    with pytest.raises(DataError, match=r"refuses question thin: .*aspect ratio"):
        si.run_edits(models["qwen2_5_vl"], thin)


@pytest.mark.parametrize("name", EVERY_CAUSAL)
def test_questions_without_a_picture_run_beside_others(models, questions, name):
    vlm = models[name]
    blind = si.Question("Is there a cat?", ("yes", "no"), 0)
    edit = edits(vlm, [blind])["everything"]
    assert distance(vlm, [blind], edit, si.run_edits(vlm, blind, edit, path="packed")) <= 1e-5
    mixed = [questions[0], blind, questions[2]]
    assert distance(vlm, mixed, edit, si.run_edits(vlm, mixed, edit, path="packed")) <= 1e-5


def test_paligemma_says_that_it_needs_a_picture(models):
    with pytest.raises(DataError, match="images"):
        si.run_edits(models["paligemma"], si.Question("Is there a cat?", ("yes", "no"), 0))


@pytest.mark.parametrize("name", FIRST)
def test_placeholders_and_pictures_must_match(models, name):
    vlm = models[name]
    mark = vlm.placeholder
    for question in (
        si.Question(f"Is there {mark} a cat?", ("yes", "no"), 0, picture=noise(30, 30)),
        si.Question(f"Is there {mark} a cat?", ("yes", "no"), 0),
    ):
        with pytest.raises(DataError, match="placeholder"):
            vlm.encode(question)
    one_mark = VLM(vlm.hf_model, vlm.processor, vlm.name, prompt=f"{mark} {{text}}")
    with pytest.raises(DataError, match=r"1 image placeholder.* for 2 picture"):
        one_mark.encode(si.Question("Is it?", ("yes", "no"), 0, picture=[noise(30, 30), noise(30, 30)]))


def test_expanded_image_tokens_without_a_picture_never_run(models):
    vlm = models["gemma3"]
    soft = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    with pytest.raises(DataError, match="no picture"):
        vlm.encode(si.Question(f"What is {soft}?", ("yes", "no"), 0))


def test_own_prompt(questions):
    own = si.load("tiny-random/qwen2_5_vl", prompt="<|vision_start|>{images}<|vision_end|>Question: {text} Answer:")
    assert own.prompt_text(questions[0]) == "<|vision_start|><|image_pad|><|vision_end|>Question: Where is the red circle? Answer:"
    assert own.choice_ids(questions[0]) == [own.tokenizer(" left")["input_ids"], own.tokenizer(" right")["input_ids"]]
    bare = si.load("tiny-random/llava")
    bare.processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        si.run_edits(bare, questions[0])


@pytest.mark.parametrize("name", [*CAUSAL, *(pytest.param(n, marks=pytest.mark.full) for n in RECENT if n != "llama4")])
def test_a_shared_picture_passes_the_vision_tower_once(models, questions, name, monkeypatch):
    vlm = models[name]
    shared, other = questions[1].picture, noise(44, 44, 8)
    asked = [
        si.Question(f"Where is {thing}?", ("left", "right"), 0, picture=shared) for thing in ("it", "the cat", "the red dog", "the star")
    ]
    asked.insert(2, si.Question("Where is the square?", ("left", "right"), 0, picture=other))
    alone = torch.cat([si.run_edits(vlm, q, path="packed") for q in asked])
    calls = []
    core = vlm.hf_model.base_model
    counted = functools.wraps(core.get_image_features)(lambda *a, __real=core.get_image_features, **k: calls.append(1) or __real(*a, **k))
    monkeypatch.setattr(core, "get_image_features", counted)
    for batch_size in (5, 2):
        calls.clear()
        together = [run_packed(vlm, batch, None)[0] for batch in PrefixStore(vlm, asked, batch_size)]
        assert (torch.cat(together)[:, None] - alone).abs().max() <= 1e-5
        assert len(calls) == 2, "one for each picture"


# --- check on load


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_on_load(name, dtype):
    vlm = si.load(f"tiny-random/{name}", dtype=dtype, check=True)
    report = vlm.report
    assert report.known and report.family == vlm.family and report.dtype == str(dtype).removeprefix("torch.")
    assert report.path == ("packed" if name not in BIDIRECTIONAL else "reference")
    assert max(report.clean, report.nnsight, report.rounding) <= report.allowed
    if name not in BIDIRECTIONAL:
        assert report.agrees and report.packed_reference <= report.allowed
    elif dtype == torch.float32:
        assert not report.agrees
    assert report.groups == 2 and report.at_once == vlm.n_layers * vlm.n_heads and report.sweep_bytes > 0
    assert set(TOLERANCE) == {torch.float32, torch.float16, torch.bfloat16}


def test_a_changed_model_is_measured_again(questions):
    """The report is of the model as it is now: changed attention, dtype or hooks have one of their own, and the first one stays."""
    vlm = si.load("tiny-random/llava")
    assert vlm.report is None
    si.run_edits(vlm, questions[:1])
    first = vlm.report
    assert first is not None and first.dtype == "float32"
    si.run_edits(vlm, questions[:1])
    assert vlm.report is first
    vlm.hf_model.set_attn_implementation("eager")
    assert vlm.report is None
    si.run_edits(vlm, questions[:1])
    assert vlm.report.attention == "eager" != first.attention
    vlm.hf_model.set_attn_implementation("sdpa")
    assert vlm.report is first
    hook = vlm.decoder.layers[0].register_forward_hook(lambda *_: None)
    assert vlm.report is None
    hook.remove()
    assert vlm.report is first
    vlm.hf_model.to(torch.bfloat16)
    assert vlm.report is None


def unknown_llava():
    tiny = si.load("tiny-random/llava")
    old = tiny.hf_model.config
    config = VipLlavaConfig(
        vision_config=old.vision_config, text_config=old.text_config, image_token_index=tiny.image_token_id, vision_feature_layers=[-1, -2]
    )
    torch.manual_seed(0)
    return VipLlavaForConditionalGeneration(config), tiny.processor


def test_an_unknown_family_is_taken_when_the_check_agrees(questions):
    model, processor = unknown_llava()
    assert "vipllava" not in families.KNOWN
    vlm = si.load(model, processor)
    assert vlm.report.agrees and not vlm.report.known
    edit = edits(vlm, questions)["everything"]
    assert distance(vlm, questions, edit, si.run_edits(vlm, questions, edit)) <= 1e-5


def test_an_unknown_family_that_disagrees_runs_by_the_reference_path(questions):
    model, processor = unknown_llava()
    layer = model.get_decoder().layers[1]
    forward = layer.forward
    # A layer that adds to the residual stream by the position of a token in the call: no cached run can know that.
    layer.forward = lambda hidden, *a, **k: forward(hidden + torch.arange(hidden.shape[1])[None, :, None] / 10, *a, **k)
    with pytest.warns(PathWarning, match=r"differ by [0-9.]+, and .* rounding explains.*whole forward pass"):
        vlm = si.load(model, processor)
    assert vlm.report.path == "reference" and vlm.report.nnsight <= vlm.report.allowed < vlm.report.packed_reference
    edit = edits(vlm, questions)["everything"]
    assert distance(vlm, questions[:1], edit, si.run_edits(vlm, questions[:1], edit)) <= 1e-5
    vlm = si.load(model, processor, check=False)
    with pytest.warns(PathWarning, match="differ by"):
        scores = si.run_edits(vlm, questions[0])
    assert torch.equal(scores, si.run_edits(vlm, questions[0], path="reference"))


def test_an_unknown_family_that_cannot_run_is_refused():
    model, processor = unknown_llava()
    model.get_decoder().layers[1].mlp.forward = lambda hidden: 1 / 0
    with pytest.raises(ModelError, match="general way fails"):
        si.load(model, processor)


# --- dtypes, devices, kernels, memory


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_device_maps(questions, name):
    plain = si.load(f"tiny-random/{name}")
    mapped = si.load(f"tiny-random/{name}", device_map="auto", dtype=torch.float32)
    hooked = si.load(f"tiny-random/{name}").hf_model
    dispatch_model(hooked, device_map={"": "cpu"}, force_hooks=True)
    hooked = si.load(hooked, plain.processor)
    edit = edits(plain, questions)["everything"]
    expected = si.run_edits(plain, questions, edit)
    for other in (mapped, hooked):
        assert (expected - si.run_edits(other, questions, edit)).nan_to_num(0, 0, 0).abs().max() <= 1e-6


def test_flash_attention_leaves_packed_runs_to_plain_torch(models):
    decoder = models["llava"].decoder
    decoder.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.warns(PathWarning, match="flash_attention_2"), pytest.raises(ImportError, match=r"(?i)flash"), attention(decoder):
            assert decoder.config._attn_implementation == "scale_interp_packed"
    finally:
        decoder.config._attn_implementation = "sdpa"


def test_variants_are_cut_to_the_memory(models, questions, monkeypatch):
    vlm = si.load("tiny-random/llava")
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    whole = si.run_edits(vlm, questions, sweep)
    sizes = []
    real = paths.run_packed
    monkeypatch.setattr(paths, "run_packed", lambda v, p, e, chunk=None: sizes.append(len(chunk)) or real(v, p, e, chunk))
    vlm.memory = 5 * 3 * paths.row_bytes(vlm, 29)
    assert (si.run_edits(vlm, questions, sweep, prompts=PrefixStore(vlm, questions, 3)) - whole).nan_to_num(0, 0, 0).abs().max() <= 2e-6
    assert sizes == [5, 5, 2]


def test_out_of_memory_halves_the_chunk(questions):
    vlm = si.load("tiny-random/llava")
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    whole = si.run_edits(vlm, questions, sweep)
    rows = []

    def too_many(module, args):
        rows.append(args[0].shape[1])
        if args[0].shape[1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    hook = vlm.decoder.layers[1].self_attn.o_proj.register_forward_pre_hook(too_many)
    reads = PrefixStore(vlm, questions)
    hook.remove()
    assert len(reads[0].layers) == vlm.n_layers
    hook = vlm.decoder.layers[1].self_attn.o_proj.register_forward_pre_hook(too_many)
    try:
        with pytest.warns(MemoryWarning, match="no memory for 12 edits at once; continuing with 6"):
            halved = si.run_edits(vlm, questions, sweep, path="packed", prompts=reads)
        assert max(rows) > 4
        rows.clear()
        assert torch.equal(si.run_edits(vlm, questions, sweep, path="packed", prompts=reads), halved)
    finally:
        hook.remove()
    assert (halved - whole).nan_to_num(0, 0, 0).abs().max() <= 2e-6
    assert vlm.memory is None and vlm.measured.chunk_bytes.keys() == {None} and max(rows) < 12


def test_no_memory_for_one_edit(questions):
    vlm = si.load("tiny-random/llava")
    reads = PrefixStore(vlm, questions)
    assert len(reads[0].layers) == vlm.n_layers

    def never(module, args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    hook = vlm.decoder.layers[2].mlp.register_forward_pre_hook(never)
    try:
        with pytest.warns(MemoryWarning), pytest.raises(ModelError, match="no memory for one edit"):
            si.run_edits(vlm, questions, si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0), path="packed", prompts=reads)
    finally:
        hook.remove()


# --- the zoo


def test_zoo_is_built_once_and_loaded_as_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = zoo.folder("tiny-random/llava")
    stamp = (place / "model.safetensors").stat().st_mtime_ns
    assert zoo.folder("tiny-random/llava") == place and (place / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    copied = tmp_path / "elsewhere"
    shutil.copytree(place, copied)
    a, b = si.load("tiny-random/llava"), si.load(copied)
    assert all(torch.equal(x, y) for x, y in zip(a.hf_model.state_dict().values(), b.hf_model.state_dict().values(), strict=True))
    with pytest.raises(ModelError, match="choose from tiny-random/llava"):
        si.load("tiny-random/gpt2")


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    zoo.save("llava", tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FIRST)
def test_processors_are_the_real_ones_without_their_video_half(models, name):
    processor = models[name].processor
    kind = type(processor)
    assert any(kind.__name__ == parent.__name__ and parent.__module__.startswith("transformers.models") for parent in kind.__mro__)
    assert getattr(processor, "video_processor", None) is None


def test_smolvlm_names_the_package_it_needs(monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="num2words"):
        si.load("tiny-random/smolvlm")


def test_model_is_not_changed_by_an_analysis(models, questions):
    vlm = models["gemma3"]
    before = copy.deepcopy(vlm.hf_model.state_dict())
    si.ablate(vlm, questions)
    assert all(torch.equal(before[k], v) for k, v in vlm.hf_model.state_dict().items())
    assert vlm.decoder.config._attn_implementation in ("sdpa", "eager")
