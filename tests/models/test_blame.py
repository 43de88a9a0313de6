"""Errors and warnings name what is to blame: the right question, the prompt's length, the adapter."""

import copy
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from PIL import Image

import scale_interp as si
from scale_interp.errors import DataError, DataWarning, ModelError


def question(id, image=None, text="Which is it?", choices=("yes", "no")):
    return si.Question(text, choices, 0, picture=image or Image.new("RGB", (56, 56), "red"), id=id)


GOOD = [question(f"good {i}") for i in range(3)]


@pytest.fixture(scope="module")
def qwen():
    return si.load("tiny-random/qwen2_5_vl")


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 400), (600, 2)])
def test_the_impossible_image_is_named(qwen, place, size):
    batch = [*GOOD]
    batch.insert(place, question("thin", Image.new("RGB", size)))
    with pytest.raises(DataError, match="refuses question thin: "):
        qwen.encode(batch)


def test_the_question_that_a_broken_processor_refuses_is_named(qwen, monkeypatch):
    vlm = copy.copy(qwen)

    class Refuses:
        """Takes no text with a certain word, or no two questions at once."""

        def __init__(self, word, error, together=False):
            self.word, self.error, self.together = word, error, together

        def __getattr__(self, name):
            return getattr(qwen.processor, name)

        def __call__(self, text, **given):
            if any(self.word in one for one in text) or (self.together and len(text) > 1):
                raise self.error
            return qwen.processor(text=text, **given)

    for error in (RuntimeError("no such size"), KeyError("size"), AttributeError("mode"), OverflowError("too large")):
        vlm.processor = Refuses("zebra", error)
        with pytest.raises(DataError, match="refuses question odd"):
            vlm.encode([*GOOD, question("odd", text="Is it a zebra?")])
    vlm.processor = Refuses("zebra", ValueError("ragged"), together=True)
    with pytest.raises(DataError, match="questions good 0, good 1, good 2 together, and each of them alone it takes: ragged"):
        vlm.encode(GOOD)
    vlm.processor = Refuses("Which", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):  # not a question's fault: the batch is halved
        vlm.encode(GOOD)


def test_a_placeholder_in_the_words_is_to_be_taken_out():
    vlm = si.load("tiny-random/llava")
    for written in (f"What is this? {vlm.placeholder}", f"{vlm.placeholder}\nWhat is this?"):
        with pytest.raises(DataError, match=r"question marked: .*take it out of the question's text"):
            vlm.encode([*GOOD, question("marked", text=written)])
    with pytest.raises(DataError, match=r"question bare: .*placeholder"):
        vlm.encode([*GOOD, si.Question(f"What is {vlm.placeholder}?", ("yes", "no"), 0, id="bare")])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_prompt_beyond_the_positions_is_named(family):
    vlm = si.load(f"tiny-random/{family}")
    most = vlm.hf_model.config.get_text_config().max_position_embeddings
    long = question("long", text="word " * most)
    with pytest.warns(DataWarning, match=rf"question long: its prompt has .* and tiny-random/{family} {most} positions"):
        vlm.encode([GOOD[0], long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm.encode(GOOD)


def test_positions_are_counted_not_padding_or_image_tokens(qwen):
    """An image has a token for each merged patch, and positions for its longer side alone."""
    vlm = copy.deepcopy(qwen)
    config = vlm.hf_model.config.get_text_config()
    wide = question("wide", Image.new("RGB", (392, 392)))
    inputs = vlm.encode(wide)
    tokens, last = inputs["input_ids"].shape[1], int(vlm.position_ids(inputs).max())
    assert tokens > last + 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.max_position_embeddings = last + 1
        vlm.encode([GOOD[0], wide])
    config.max_position_embeddings = last
    with pytest.warns(DataWarning, match="question wide"):
        vlm.encode([GOOD[0], wide])


@pytest.mark.parametrize("targets", [r".*language_model.*(q|o)_proj", r".*language_model.*down_proj", r".*lm_head"])
def test_a_model_of_peft_is_taken_with_its_adapter(targets):
    plain = si.load("tiny-random/llava")
    torch.manual_seed(0)
    model = get_peft_model(si.load("tiny-random/llava").hf_model, LoraConfig(target_modules=targets, r=2, init_lora_weights=False)).eval()
    vlm = si.load(model, plain.processor)
    assert vlm.hf_model is model.base_model.model and "adapter: default" in vlm.name
    inputs = vlm.encode(GOOD[0])
    ids = [choice[0] for choice in vlm.choice_ids(GOOD[0])]
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1, ids]
    for path in ("packed", "reference"):
        assert torch.allclose(si.run_edits(vlm, GOOD[0], path=path)[0, 0], expected, atol=1e-4)
    assert (si.run_edits(plain, GOOD[0])[0, 0] - expected).abs().max() > 1e-3


def test_other_models_of_peft():
    plain = si.load("tiny-random/llava")
    ia3 = IA3Config(target_modules=r".*language_model.*v_proj", feedforward_modules=[], init_ia3_weights=False)
    vlm = si.load(get_peft_model(si.load("tiny-random/llava").hf_model, ia3), plain.processor)
    assert torch.allclose(*(si.run_edits(vlm, GOOD, path=path) for path in ("packed", "reference")), atol=1e-4)
    text = plain.hf_model.config.get_text_config()
    shape = {
        "task_type": "CAUSAL_LM",
        "num_layers": text.num_hidden_layers,
        "token_dim": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
    }
    prefix = get_peft_model(
        si.load("tiny-random/llava").hf_model, PrefixTuningConfig(num_virtual_tokens=2, num_transformer_submodules=1, **shape)
    )
    with pytest.raises(ModelError, match="learned tokens before the prompt"):
        si.load(prefix, plain.processor)
    with pytest.raises(ModelError, match="needs its processor"):
        si.load(vlm.hf_model)
    with pytest.raises(ModelError, match="cannot load a Linear"):
        si.load(torch.nn.Linear(2, 2))
