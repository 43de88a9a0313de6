import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, T5Config

import scale_interp as si
from scale_interp.errors import DataError, ModelError


def test_demo_is_a_plain_llava(vlm):
    assert type(vlm.hf_model).__name__ == "LlavaForConditionalGeneration"
    assert type(vlm.processor).__name__ == "LlavaProcessor"
    assert (vlm.n_layers, vlm.n_heads, vlm.head_dim, vlm.family) == (6, 8, 16, "llava")


def test_name_folder_and_live_model_are_one(vlm, mixed, tmp_path):
    vlm.hf_model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    live = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    expected = si.run_edits(vlm, mixed)
    for other in (si.load(tmp_path), si.load(str(tmp_path)), si.load(live, vlm.processor)):
        assert torch.equal(si.run_edits(other, mixed), expected)


def test_capture_reads_what_hooks_read(vlm, mixed):
    acts = si.capture(vlm, mixed)
    assert acts.z.shape == (len(mixed), 6, 8, 16) and acts.mlp.shape == (len(mixed), 6, 128)
    for q, question in enumerate(mixed):
        seen, hooks = {}, []
        for i, layer in enumerate(vlm.decoder.layers):
            hooks.append(
                layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a, i=i, seen=seen: seen.update({("z", i): a[0][0, -1]}))
            )
            hooks.append(layer.mlp.register_forward_hook(lambda m, a, o, i=i, seen=seen: seen.update({("mlp", i): o[0, -1]})))
        with torch.no_grad():
            logits = vlm.hf_model(**vlm.encode(question)).logits[0, -1]
        for hook in hooks:
            hook.remove()
        for i in range(6):
            assert torch.allclose(acts.z[q, i].flatten(), seen["z", i], atol=1e-5)
            assert torch.allclose(acts.mlp[q, i], seen["mlp", i], atol=1e-5)
        ids = [c[0] for c in vlm.choice_ids(question)]
        assert torch.allclose(acts.logits[q, : len(ids)], logits[ids], atol=1e-5)


def test_plain_nnsight_trace(vlm, mixed):
    with vlm.trace(mixed[0]):
        z = vlm.layers[2].self_attn.o_proj.input[:, -1].save()
    assert torch.allclose(z[0], si.capture(vlm, mixed[:1]).z[0, 2].flatten(), atol=1e-6)


def test_generate_gives_the_chosen_answer(vlm):
    questions = si.load_questions("scenes/relation", n=12)
    ev = si.evaluate(vlm, questions)
    assert vlm.generate(list(questions), max_new_tokens=2) == ev.answers
    assert vlm.generate(questions[0], max_new_tokens=2) == ev.answers[0]


def test_choice_ids_continue_the_prompt(vlm):
    question = si.load_questions("scenes/relation", n=1)[0]
    words = [vlm.tokenizer.convert_ids_to_tokens(ids) for ids in vlm.choice_ids(question)]
    assert words == [["left"], ["right"], ["above"], ["below"]]


def test_own_prompt_replaces_the_template(vlm):
    question = si.load_questions("scenes/relation", n=1)[0]
    own = si.load("demo", prompt="<s>user: <image>\n{text} assistant:")
    assert torch.equal(own.encode(question)["input_ids"], vlm.encode(question)["input_ids"])
    blind = si.load("demo", prompt="<s>user: {text} assistant:")
    with pytest.raises(DataError, match="0 image placeholder"):
        blind.encode(question)


def test_placeholder_in_the_words_is_refused(vlm):
    question = si.Question("Where is <image> the cat?", ("left", "right"), 0, picture=Image.new("RGB", (56, 56)))
    with pytest.raises(DataError, match="2 image placeholder"):
        si.run_edits(vlm, question)


def test_unknown_words_as_choices_are_refused(vlm):
    question = si.Question("Where is the red circle?", ("zebra", "giraffe"), 0, picture=Image.new("RGB", (56, 56)))
    with pytest.raises(DataError, match="does not know these words"):
        si.run_edits(vlm, question)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(1, 1), (56, 56), (300, 20)])
def test_odd_pictures_are_read(vlm, mode, size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    question = si.Question("Where is the red circle relative to the blue square?", ("left", "right"), 0, picture=picture)
    assert si.run_edits(vlm, question).isfinite().all()


def test_text_only_question_runs_without_a_picture(vlm):
    question = si.Question("Where is the red circle relative to the blue square?", ("left", "right"), 0)
    packed, reference = (si.run_edits(vlm, question, path=p) for p in ("packed", "reference"))
    assert torch.allclose(packed, reference, atol=1e-5)


def text_model(folder):
    config = LlamaConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(folder)


def without_processor(folder):
    si.load("demo").hf_model.save_pretrained(folder)


def encoder_decoder(folder):
    T5Config().save_pretrained(folder)


def encoder_decoder_of_images(folder):
    config = AutoConfig.for_model("florence2")
    assert config.is_encoder_decoder
    config.save_pretrained(folder)


def quantised_without_its_library(folder):
    vlm = si.load("tiny-random/llava")
    vlm.hf_model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


def damaged_weights(folder):
    vlm = si.load("demo")
    vlm.hf_model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def incomplete_weights(folder):
    vlm = si.load("demo")
    vlm.hf_model.save_pretrained(folder, state_dict={k: v for k, v in vlm.hf_model.state_dict().items() if "layers.2.mlp" not in k})
    vlm.processor.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no folder with a config.json"),
        (text_model, "takes no images"),
        (encoder_decoder, "takes no images"),
        (encoder_decoder_of_images, "encoder-decoder"),
        (quantised_without_its_library, "cannot be loaded: .*bitsandbytes"),
        (without_processor, "no usable processor|no processor for images"),
        (damaged_weights, "cannot be loaded"),
        (incomplete_weights, "lack .*layers.2.mlp"),
    ],
)
def test_folders_that_are_no_vlm_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ModelError, match=message):
        si.load(tmp_path)


def test_quantised_weights_run_and_say_so():
    """int8 layers whose rounding hangs on the whole batch: the check sees it, and edits run by the reference path."""
    vlm = si.load("tiny-random/llava")
    torch.ao.quantization.quantize_dynamic(vlm.hf_model.model.language_model, {torch.nn.Linear}, inplace=True)
    torch.ao.quantization.quantize_dynamic(vlm.hf_model, {"lm_head": torch.ao.quantization.default_dynamic_qconfig}, inplace=True)
    with pytest.warns(UserWarning, match="not a plain linear layer"):
        vlm = si.load(vlm.hf_model, vlm.processor)
    assert not isinstance(vlm.hf_model.lm_head.weight, torch.Tensor)
    question = si.Question("Where is the red circle?", ("left", "right"), 0, picture=Image.new("RGB", (28, 28), "red"))
    with pytest.warns(si.errors.PathWarning, match="differ by"):
        found = si.run_edits(vlm, question, si.Edit(scale=torch.full((1, vlm.n_layers, vlm.n_heads), 0.5)))
    assert found.isfinite().all()
    packed, reference = (si.run_edits(vlm, question, path=p) for p in ("packed", "reference"))
    assert (packed - reference).abs().max() < 0.5


def test_other_wrong_models_are_refused(vlm, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call, message in (
        (lambda: si.load("no-such/model"), "no model 'no-such/model'"),
        (lambda: si.load("dmeo"), "demo, demo-healthy, demo-prior"),
        (lambda: si.load(vlm.hf_model), "needs its processor"),
        (lambda: si.load(3), "cannot load a int"),
    ):
        with pytest.raises(ModelError, match=message):
            call()


def test_a_release_of_transformers_that_cannot_run_a_family_is_named(monkeypatch):
    """No edit would be right there, and nothing in this package is to blame."""
    from scale_interp.vlm import families

    live = si.load("tiny-random/llava")
    monkeypatch.setitem(families.BROKEN, ("llava", families.transformers.__version__), "it asks for what is not there")
    for given in ((live.hf_model, live.processor), ("tiny-random/llava",)):
        with pytest.raises(ModelError, match=r"transformers \S+ itself cannot run it \(it asks for what is not there\): install another"):
            si.load(*given)
