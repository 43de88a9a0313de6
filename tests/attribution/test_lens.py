"""The logit lens: the model's own head at the last layer, the residual stream by transformers' own record, words, files, figures."""

import functools

import pytest
import torch

import scale_interp as si
from scale_interp.errors import DataError, ModelError
from scale_interp.models import zoo
from tests.support.oracle import plain_inputs
from tests.support.zoo_models import mostly_full, three_questions


@functools.cache
def model(name):
    return si.load(f"tiny-random/{name}")


@pytest.fixture(scope="module")
def questions():
    return three_questions()


@pytest.mark.parametrize("name", mostly_full(zoo.NAMES))
def test_the_last_layer_is_the_models_own_head_and_earlier_ones_are_the_residual_stream(questions, name):
    vlm = model(name)
    lens, image = si.logit_lens(vlm, questions), si.logit_lens(vlm, questions, at="image", top=3)
    config = vlm.hf_model.config.get_text_config()
    for q, question in enumerate(questions):
        inputs = plain_inputs(vlm, question)
        with torch.no_grad():
            out = vlm.hf_model(**inputs, output_hidden_states=True)
            hidden = out.hidden_states[1]  # after the first layer; the last entry is normed already
            decoder = vlm.hf_model.get_decoder()
            decoder = getattr(decoder, "model", decoder)
            norm = decoder.embedding_norm if name == "lfm2_vl" else decoder.norm
            early = vlm.hf_model.get_output_embeddings()(norm(hidden))[0]
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            early = cap * torch.tanh(early / cap)
        ids = [tokens[0] for tokens in vlm.choice_ids(question)]
        n = len(ids)
        assert (lens.logits[q, -1, 0, :n] - out.logits[0, -1, ids]).abs().max() <= 1e-6
        assert abs(lens.log_total[q, -1, 0] - out.logits[0, -1].logsumexp(-1)) <= 1e-5
        at = torch.tensor(vlm.token_groups(question)["image"])
        P = len(at)
        assert image.lengths[q] == P and torch.equal(image.tokens[q, :P], at)
        assert (image.logits[q, -1, :P, :n] - out.logits[0, at][:, ids]).abs().max() <= 1e-6
        assert int(image.given[q]) == int(out.logits[0, -1, ids].argmax())
        best = out.logits[0, at].softmax(-1).max(-1)
        words = [image.top_words(q, -1, p)[0] for p in range(P)]
        assert [word for word, _ in words] == [vlm.tokenizer.decode([i]) for i in best.indices.tolist()]
        assert torch.allclose(torch.tensor([prob for _, prob in words]), best.values, atol=1e-5)
        if name != "qwen3_vl":  # DeepStack adds to the stream between the layers
            assert (image.logits[q, 0, :P, :n] - early[at][:, ids]).abs().max() <= 1e-5
        assert (lens.logits[q, 0, 0, :n] - early[-1, ids]).abs().max() <= 1e-5
        assert (lens.probs[q, :, 0, n:] == 0).all() and torch.allclose(lens.probs[q].sum(-1), torch.ones(lens.logits.shape[1], 1).double())


def test_probabilities_of_demo_and_when_its_answers_appear(vlm, tmp_path):
    questions = si.load_questions("scenes/relation", split="test", n=24, seed=1)
    lens = si.logit_lens(vlm, questions)
    scores = si.run_edits(vlm, questions)[:, 0].double().softmax(-1)
    right = scores[torch.arange(24), torch.tensor([q.answer for q in questions])]
    assert torch.allclose(lens.per_question[:, -1], right, atol=1e-5)
    assert torch.equal(lens.given, scores.argmax(-1).cpu())
    for q in range(24):
        leads = [int(lens.probs[q, layer, 0].argmax()) == int(lens.given[q]) for layer in range(vlm.n_layers)]
        first = next(layer for layer in range(vlm.n_layers) if all(leads[layer:]))
        assert int(lens.appears[q]) == first
    assert 0 < float(lens.appears.double().mean()) < vlm.n_layers
    assert lens.to_frame()["appeared"].iloc[-1] == 1.0
    lens.save(tmp_path / "lens.safetensors")
    again = si.LogitLens.load(tmp_path / "lens.safetensors")
    assert torch.equal(again.logits, lens.logits) and again.top_words(3, 2) == lens.top_words(3, 2)
    assert (lens.vocabulary_probs.sum(-1) <= 1 + 1e-6).all() and "at last" in repr(lens)


def test_what_a_lens_cannot_show_is_refused(questions):
    vlm = model("llava")
    with pytest.raises(DataError, match="no token group 'imgae'"):
        si.logit_lens(vlm, questions, at="imgae")
    with pytest.raises(DataError, match="no token group 'image'"):
        si.logit_lens(vlm, si.Question("Is it?", ("yes", "no"), 0), at="image")
    lens = si.logit_lens(vlm, questions)
    with pytest.raises(DataError, match="question 3, layer 0"):
        lens.top_words(3, 0)
    with pytest.raises(DataError, match="does not read token"):
        si.viz.lens_over_image(lens, questions[0], si.patch_grid(vlm, questions[0]))
    with pytest.raises(DataError, match="has no question"):
        si.viz.lens_over_image(lens, si.Question("?", ("a", "b"), 0, id="x"), si.patch_grid(vlm, questions[0]))
    with pytest.raises(DataError, match="give some from 0"):
        si.viz.lens_over_image(si.logit_lens(vlm, questions, at="image"), questions[0], si.patch_grid(vlm, questions[0]), layers=[9])


def test_a_model_that_scales_its_logits_is_refused(questions):
    vlm = si.load("tiny-random/llava")
    vlm.hf_model.lm_head.register_forward_hook(lambda module, args, out: out * 3 if out.shape[1] > 1 else out)
    with pytest.raises(ModelError, match="differ from its own logits"):
        si.logit_lens(vlm, questions)
