"""Model types outside the zoo, asked about images: each path against plain torch hooks on whole passes."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers import GotOcr2ImageProcessorPil, GotOcr2Processor, MllamaImageProcessorPil, MllamaProcessor

import scale_interp as si
from docs.studies import model_types
from scale_interp.models import zoo
from scale_interp.models.zoo.families import _template, _text
from scale_interp.models.zoo.words import tokenizer
from tests.support.zoo_models import noise, three_questions

EXACT = 1e-5
TYPES = {
    "ernie4_5_vl_moe": "packed",
    "gemma3n": "packed",
    "hunyuan_vl": "packed",
    "kimi_k25": "packed",
    "kosmos-2.5": "packed",
    "qwen2_5_omni_thinker": "packed",
    "qwen3_omni_moe_thinker": "packed",
    "minicpmv4_6": "packed",
    "muse_glimmer": "packed",
    "mllama": "packed",
    "kosmos-2": "reference",
}


@pytest.mark.full
@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_the_table_of_model_types(kind):
    """The table's own rows: their agreement counts plain hooks, packed rows and whole passes."""
    found = model_types.row(kind)
    assert found.outcome == TYPES[kind], found
    assert float(found.agreement) <= EXACT


def loaded(kind):
    """A tiny model of this type, asked in text."""
    reader = model_types.processor()
    torch.manual_seed(0)
    reader.model = model_types.tiny(kind, reader.tokenizer)
    zoo.draw(reader.model.eval())
    return si.load(reader.model, reader, check=False)


@pytest.mark.full
def test_gradients_through_states_that_layers_write_to():
    """Mamba's layers write the next state over the one that they read."""
    vlm, question = loaded("nemotron_h_omni"), model_types.TEXT
    slopes = si.attribute(vlm, [question], path="packed").per_question[0]
    scale, hooks = torch.ones(vlm.n_layers, vlm.n_heads, requires_grad=True), []
    for row, block in enumerate(vlm.head_layers):

        def edit(_, args, row=row):
            last = (args[0][:, -1:].unflatten(-1, (vlm.n_heads, -1)) * scale[row][:, None]).flatten(-2)
            return (torch.cat([args[0][:, :-1], last], 1), *args[1:])

        hooks.append(block.output().register_forward_pre_hook(edit))
    try:
        logits = vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    left, right = logits[[ids[0] for ids in vlm.choice_ids(question)]]
    (expected,) = torch.autograd.grad(left - right, scale)
    assert (slopes - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "ask", "why"),
    [
        ("qwen4_exp", si.logit_attribution, "hand on 4 streams side by side"),
        ("gemma3n", si.logit_lens, "hand on several streams"),
        ("unlimited_ocr", si.read_attention, "its eager attention, the one that returns weights, fails"),
    ],
)
def test_what_a_type_cannot_be_asked_is_refused_with_the_reason(kind, ask, why):
    with pytest.warns(si.errors.PathWarning) if kind != "gemma3n" else nullcontext(), pytest.raises(si.errors.ModelError, match=why):
        ask(loaded(kind), [model_types.TEXT])


@pytest.mark.full
def test_gradients_where_mlps_have_a_size_for_each_layer():
    assert si.attribute(loaded("gemma3n"), [model_types.TEXT]).scores.isfinite().all()


def got_ocr2():
    words = tokenizer(pad="<pad>", eos="<|im_end|>", special=["<|im_start|>", "<img>", "</img>", "<imgpad>"])
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 48}
    config = transformers.GotOcr2Config(
        vision_config=vision | {"image_size": 128, "window_size": 4, "global_attn_indexes": [1]},
        text_config=transformers.Qwen2Config(**_text(words)),
        image_token_index=words.convert_tokens_to_ids("<imgpad>"),
        tie_word_embeddings=False,
    )
    processor = GotOcr2Processor(GotOcr2ImageProcessorPil(size={"height": 128, "width": 128}), words)
    processor.num_image_tokens = 4
    return transformers.GotOcr2ForConditionalGeneration(config), processor


def mllama():
    words = tokenizer(
        pad="<|pad|>", bos="<|begin|>", eos="<|eot|>", special=["<|image|>", "<|python_tag|>"], chat=_template("", "<|image|>", "", "")
    )
    vision = {"hidden_size": 32, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1, "intermediate_size": 48}
    vision |= {"image_size": 28, "patch_size": 14, "max_num_tiles": 2, "intermediate_layers_indices": [0], "vision_output_dim": 64}
    config = transformers.MllamaConfig(
        vision_config=vision | {"supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]},
        text_config=_text(words, num_hidden_layers=4, cross_attention_layers=[1, 3]),
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    return transformers.MllamaForConditionalGeneration(config), MllamaProcessor(images, words, words.chat_template)


def hooked(vlm, question, row, scale):
    """Scores of the choices by one whole pass each, with the heads of one layer scaled at the last token of the prompt."""
    ids = vlm.choice_ids(question)
    inputs, most = vlm.encode(question), max(map(len, ids))
    T = inputs["input_ids"].shape[1]

    def edit(_, args):
        z = args[0].clone()
        z[0, T - 1] = (z[0, T - 1].view(len(scale), -1) * scale[:, None]).flatten()
        return (z, *args[1:])

    hook, scores = vlm.head_layers[row].output().register_forward_pre_hook(edit), []
    try:
        for choice in ids:
            given = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([choice[:-1]], dtype=torch.long)], 1)}
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            if "cross_attention_mask" in given:  # an answer sees what the question does
                mask = given["cross_attention_mask"]
                given["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(choice) - 1, -1, -1)], 1)
            with torch.no_grad():
                logits = vlm.hf_model(**given, use_cache=False).logits[0, T - 1 :]
            if most > 1:
                logits = logits.log_softmax(-1)
            scores.append(sum(logits[i, token] for i, token in enumerate(choice)))
    finally:
        hook.remove()
    return torch.stack(scores)


@pytest.mark.full
@pytest.mark.parametrize("build", [got_ocr2, mllama], ids=lambda build: build.__name__)
def test_types_with_their_own_processors(build):
    torch.manual_seed(0)
    model, processor = build()
    zoo.draw(model.eval())
    vlm = si.load(model, processor, check=True)
    assert vlm.report.path == "packed", vlm.report
    questions = [
        *three_questions(),
        si.Question("Where is it?", ("left circle", "left square"), 0, picture=noise(90, 30, 4), id="tree"),
        si.Question("Is the cat in both?", ("yes", "no"), 0, picture=[noise(60, 40, 3), noise(30, 60, 4)], id="two"),
        *([si.Question("Where is the red circle?", ("left", "right"), 0, id="none")] if build is mllama else ()),
    ]
    scale = torch.ones(1, vlm.n_layers, vlm.n_heads)
    scale[0, 1] = torch.linspace(0, 2, vlm.n_heads)
    for path in ("packed", "reference"):
        found = si.run_edits(vlm, questions, si.Edit(scale), path=path)
        for question, scores in zip(questions, found, strict=True):
            expected = hooked(vlm, question, 1, scale[0, 1])
            assert (scores[0, : len(expected)] - expected).abs().max() <= EXACT, (path, question.id)
    assert isinstance(vlm.generate(questions[0], max_new_tokens=2), str)
