"""What `VLM.generate` takes, what it refuses by name, and the checkpoint's own settings that change greedy text."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, TopKLogitsWarper

import scale_interp as si
from scale_interp.attribution.answer_tokens import answer_activations
from scale_interp.errors import ArgumentError, DataError
from tests.support.zoo_models import three_questions


@pytest.fixture
def vlm():
    return si.load("tiny-random/llava")


@pytest.fixture(scope="module")
def questions():
    return three_questions()


def by_hand(vlm, question, n):
    """The tokens of the largest logits, from whole passes without a cache."""
    inputs = vlm.encode(question)
    ids, image = inputs["input_ids"], inputs["pixel_values"]
    T = ids.shape[1]
    with torch.no_grad():
        for _ in range(n):
            logits = vlm.hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=image, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits.argmax().view(1, 1)], 1)
    return ids[0, T:]


OWN = {
    "a repetition penalty": {"repetition_penalty": 5.0},
    "banned n-grams": {"no_repeat_ngram_size": 1},
    "banned tokens": {"suppress_tokens": [*range(300)]},
    "banned at the start": {"begin_suppress_tokens": [*range(400)]},
    "banned words": {"bad_words_ids": [[i] for i in range(300)]},
    "a bias": {"sequence_bias": [[[7], 50.0]]},
    "a forced end": {"forced_eos_token_id": 9},
    "beams": {"num_beams": 4},
    "sampling": {"do_sample": True, "temperature": 5.0},
    "several sequences": {"do_sample": True, "num_return_sequences": 3, "temperature": 5.0},
    "a whole output": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("kind", OWN)
def test_the_checkpoint_s_own_settings_do_not_change_greedy_text(vlm, questions, kind):
    wanted = [vlm.tokenizer.decode(by_hand(vlm, q, 6), skip_special_tokens=True).strip() for q in questions]
    assert [vlm.generate(q, 6) for q in questions] == wanted
    vlm.hf_model.generation_config = own = GenerationConfig(**OWN[kind])
    assert [vlm.generate(q, 6) for q in questions] == vlm.generate(questions, 6) == wanted
    assert vlm.hf_model.generation_config is own
    torch.manual_seed(0)
    theirs = vlm.generate(questions, 6, settings="checkpoint")
    assert (theirs != wanted) == (kind != "a whole output")
    assert list(si.answer_texts(vlm, questions, max_new_tokens=6)) == wanted
    made = si.evaluate_text(vlm, questions, max_new_tokens=6).provenance["generation"]
    assert made["decoding"] == "greedy" and made["checkpoint_settings_set_aside"] == OWN[kind]


def test_a_neutral_checkpoint_has_nothing_set_aside(vlm, questions, tmp_path):
    ev = si.evaluate_text(vlm, questions)
    assert ev.provenance["generation"] == {"decoding": "greedy", "max_new_tokens": 16, "checkpoint_settings_set_aside": {}}
    vlm.hf_model.generation_config = GenerationConfig(temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=3, use_cache=True)
    assert si.evaluate_text(vlm, questions).provenance["generation"]["checkpoint_settings_set_aside"] == {}


def test_settings_that_are_asked_for_are_taken(vlm, questions):
    greedy = vlm.generate(questions, 6)
    assert vlm.generate(questions, 6, repetition_penalty=5.0) != greedy
    assert vlm.generate(questions, 6, generation_config=GenerationConfig(repetition_penalty=5.0)) != greedy
    assert vlm.generate(questions, 6, logits_processor=LogitsProcessorList([TopKLogitsWarper(1)])) == greedy
    assert len(vlm.generate(questions[0], 6, stop_strings=[greedy[0][4:6]])) < len(greedy[0])
    assert vlm.generate(questions[0], 6, assistant_model=vlm.hf_model) == greedy[0]
    assert vlm.generate(questions[0], 6, use_cache=False) == greedy[0]


def test_sampled_answers(vlm, questions):
    torch.manual_seed(0)
    first = [vlm.generate(questions[0], 6, do_sample=True) for _ in range(8)]
    torch.manual_seed(0)
    assert first == [vlm.generate(questions[0], 6, do_sample=True) for _ in range(8)] and len(set(first)) > 1
    assert vlm.generate(questions[0], 6, do_sample=True, top_k=1) == vlm.generate(questions[0], 6)
    several = vlm.generate(questions[0], 6, do_sample=True, num_return_sequences=5)
    assert isinstance(several, list) and len(several) == 5 and len(set(several)) > 1
    together = vlm.generate(questions, 6, do_sample=True, num_return_sequences=2, top_k=1)
    assert together == [text for text in vlm.generate(questions, 6) for _ in range(2)]


def test_sampling_draws_from_the_model_s_own_distribution(vlm, questions):
    """All of the vocabulary, not transformers' largest 50."""
    torch.manual_seed(0)
    drawn = vlm.hf_model.generate
    seen = []
    vlm.hf_model.generate = lambda *args, **kwargs: seen.append(drawn(*args, **kwargs)) or seen[-1]
    vlm.generate(questions[0], 1, do_sample=True, num_return_sequences=600)
    del vlm.hf_model.generate
    with torch.no_grad():
        largest = vlm.hf_model(**vlm.encode(questions[0])).logits[0, -1].topk(50).indices
    assert not torch.isin(seen[0][:, -1], largest).all()


def test_beams_give_as_many_answers_as_asked(vlm, questions):
    ids = vlm.hf_model.generate(**vlm.encode(questions[0]), max_new_tokens=4, num_beams=4, num_return_sequences=3, do_sample=False)
    texts = [t.strip() for t in vlm.processor.batch_decode(ids[:, -4:], skip_special_tokens=True)]
    assert vlm.generate(questions[0], 4, num_beams=4, num_return_sequences=3) == texts
    assert vlm.generate(questions, 4, num_beams=4, num_return_sequences=3)[:3] == texts
    assert vlm.generate(questions[0], 4, num_beams=4, num_return_sequences=1) == texts[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"return_dict_in_generate": True}, r"return_dict_in_generate=\.\.\.\): answers come as text; .*vlm\.encode"),
        ({"output_scores": True}, "output_scores"),
        ({"output_attentions": True}, "output_attentions"),
        ({"max_length": 20}, "give max_new_tokens"),
        ({"token_healing": True}, "takes tokens from the prompt"),
        ({"num_return_sequences": 2}, "greedy decoding has one answer"),
        ({"num_return_sequences": 4, "num_beams": 2}, "num_beams=4 or more"),
        ({"repetition_penality": 2.0}, "did you mean 'repetition_penalty'"),
        ({"input_ids": torch.ones(1, 3)}, "not given again"),
        ({"pixel_values": torch.ones(1, 3)}, "not given again"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "by code from the hub only"),
        ({"num_beam_groups": 2, "num_beams": 2}, "by code from the hub only"),
        ({"settings": "greedy"}, "choose 'neutral' or 'checkpoint'"),
    ],
)
def test_what_is_refused_is_named(vlm, questions, given, says):
    for asked in (questions[0], questions):
        with pytest.raises(ArgumentError, match=says):
            vlm.generate(asked, 4, **given)
    assert vlm.generate(questions[0], 4, return_dict_in_generate=False, output_scores=None) == vlm.generate(questions[0], 4)


def test_answers_of_heads_are_read_under_neutral_settings(vlm, questions):
    before = answer_activations(vlm, questions, max_new_tokens=5)
    vlm.hf_model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1)
    assert torch.equal(answer_activations(vlm, questions, max_new_tokens=5), before)


def test_a_processor_that_pads_on_the_right_all_the_same_is_refused(vlm, questions, monkeypatch):
    vlm.tokenizer.padding_side = "right"
    left = vlm.generate(questions, 4)  # the side that a tokenizer was left at does not count
    vlm.tokenizer.padding_side = "left"
    assert vlm.generate(questions, 4) == left
    kind = type(vlm.processor)
    own = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, *args, **kwargs: own(self, *args, **kwargs | {"padding_side": "right"}))
    with pytest.raises(DataError, match="pads on the right"):
        vlm.encode(questions)
    assert vlm.encode(questions[0])["attention_mask"].all()


def test_a_length_that_is_none_is_refused(vlm, questions):
    for length in (0, -1, 2.5, True, None):
        with pytest.raises(ArgumentError, match=r"max_new_tokens=.* give a whole number of 1 or more"):
            vlm.generate(questions[0], length)
