"""Copies of a model work and stand on their own; several threads may ask one model."""

import copy
import threading

import pytest
import torch

import scale_interp as si
from scale_interp.adapters.attention_scaling.scalingvis import AttentionScale
from scale_interp.adapters.baselines.last_token_bias import LastTokenBias
from scale_interp.errors import EditError
from scale_interp.vlm.lock import alone

QUESTIONS = si.load_questions("scenes/relation", n=4)


@pytest.fixture
def model():
    return si.load("demo")


def halved(vlm, path="packed"):
    return si.run_edits(vlm, QUESTIONS, si.Edit(scale=torch.full((1, vlm.n_layers, vlm.n_heads), 0.5)), path=path)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda vlm: copy.deepcopy(copy.deepcopy(vlm)), lambda vlm: copy.deepcopy([vlm])[0]]
)
def test_a_copy_gives_the_same_numbers(model, copied):
    expected = halved(model)  # a model that was traced before
    made = copied(model)
    assert torch.equal(halved(made), expected)
    assert torch.allclose(halved(made, "reference"), expected, atol=1e-4)
    with made.trace(QUESTIONS[0]):
        z = made.layers[2].self_attn.o_proj.input.save()
    assert z.shape[-1] == model.n_heads * model.head_dim
    assert made.generate(QUESTIONS[0]) == model.generate(QUESTIONS[0])
    assert type(made) is type(model) and made.name == model.name and made.fingerprint == model.fingerprint


def test_a_deep_copy_stands_on_its_own(model):
    expected = halved(model)
    made = copy.deepcopy(model)
    made.hf_model.get_output_embeddings().weight.data *= 0.5
    made.measured.chunk_bytes[None] = 1
    made.tokenizer.pad_token = made.tokenizer.convert_ids_to_tokens(3)
    assert made.tokenizer is made.processor.tokenizer and made.tokenizer is not model.tokenizer
    assert made.decoder is made.hf_model.get_decoder() and made.decoder is not model.decoder
    assert torch.allclose(halved(made), expected / 2, atol=1e-4)
    assert torch.equal(halved(model), expected) and not model.measured.chunk_bytes


def test_a_planted_model_is_copied_with_what_was_planted():
    planted = si.testbeds.plant(si.load("demo-healthy"), [(3, 0)], factor=0.25)
    made = copy.deepcopy(planted)
    assert made.planted == planted.planted and made.describe() == planted.describe()
    assert torch.equal(halved(made), halved(planted))


def test_threads_ask_one_model(model):
    expected, before, found = halved(model), model.decoder.config._attn_implementation, []

    def ask(path):
        for _ in range(3):
            try:
                found.append(halved(model, path))
            except BaseException as error:  # reported by the test itself
                found.append(error)

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("packed", "reference", "auto", "packed")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and all(torch.allclose(scores, expected, atol=1e-4) for scores in found)
    assert model.decoder.config._attn_implementation == before and torch.equal(halved(model), expected)


def test_threads_ask_for_different_things(model):
    """Text, activations, a sweep: each as by itself."""
    asks = [
        lambda: model.generate(QUESTIONS, max_new_tokens=2),
        lambda: si.ablate(model, QUESTIONS).scores.tolist(),
        lambda: si.capture(model, QUESTIONS).z.tolist(),
        lambda: model.encode(QUESTIONS)["input_ids"].tolist(),
        lambda: model.fingerprint,
    ]
    expected, found = [ask() for ask in asks], {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: asks[i]()})) for i in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(i) for i in range(len(asks))] == expected


def test_a_run_that_fails_in_one_thread_leaves_the_model_to_the_others(model):
    expected, before = halved(model), model.decoder.config._attn_implementation

    def broken(*_):
        raise RuntimeError("broken on purpose")

    def ask():
        hook = model.decoder.layers[1].mlp.register_forward_pre_hook(broken)
        try:
            with pytest.raises(Exception, match="broken on purpose"):
                halved(model)
        finally:
            hook.remove()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert model.decoder.config._attn_implementation == before
    assert torch.equal(halved(model), expected)


def test_a_block_has_the_model_alone(model):
    """Another thread waits for the block; the same thread does not, nor do other models."""
    order = []

    def ask():
        halved(model)
        order.append("other thread")

    with model.alone():
        thread = threading.Thread(target=ask)
        thread.start()
        halved(model)
        with alone(model.decoder):
            order.append("this thread")
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()
    assert order == ["this thread", "other thread"]


def in_a_thread(ask):
    """What the function returns or raises in a thread of its own."""
    found = []

    def run():
        try:
            found.append(ask())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return found[0]


def shifted_heads(vlm):
    return LastTokenBias(torch.ones(vlm.n_layers, vlm.n_heads, vlm.head_dim)).attached(vlm)


def scaled_attention(vlm):
    return AttentionScale(2.0).attached(vlm)


def lora(vlm):
    return si.fit_lora(vlm, si.load_questions("scenes/relation", "train", n=8), rank=1, epochs=1, learning_rates=[1e-3]).attached(vlm)


@pytest.mark.parametrize("attach", [shifted_heads, scaled_attention, lora])
def test_an_edit_that_one_thread_attached_does_not_act_on_anothers_run(model, attach):
    expected, inputs = halved(model), model.encode(QUESTIONS[0])
    attached = attach(model)
    runs = [
        lambda: halved(model),
        lambda: halved(model, "reference"),
        lambda: model.generate(QUESTIONS[0]),
        lambda: model.hf_model(**inputs),
        lambda: model.hf_model.generate(**inputs, max_new_tokens=1),
        lambda: attach(model).__enter__(),
    ]
    with attached:
        own = model.generate(QUESTIONS[0])
        for run in runs:
            error = in_a_thread(run)
            assert isinstance(error, EditError) and "another thread has attached" in str(error)
        assert model.generate(QUESTIONS[0]) == own
    assert torch.equal(halved(model), expected) and torch.equal(in_a_thread(lambda: halved(model)), expected)
    assert not model.decoder._forward_pre_hooks


def test_a_plain_pass_of_another_thread_is_refused_during_a_run(model):
    inputs = model.encode(QUESTIONS[0])
    with model.alone():
        error = in_a_thread(lambda: model.hf_model(**inputs))
        assert isinstance(error, EditError) and "with vlm.alone()" in str(error)
        copied = copy.deepcopy(model)
        assert torch.equal(in_a_thread(lambda: copied.hf_model(**inputs).logits), model.hf_model(**inputs).logits)
    assert not copied.decoder._forward_pre_hooks and not model.decoder._forward_pre_hooks and not model.hooked
    assert torch.equal(in_a_thread(lambda: model.hf_model(**inputs).logits), model.hf_model(**inputs).logits)


def test_traces_of_several_threads_take_turns(model):
    def traced():
        with model.trace(QUESTIONS[0]):
            z = model.layers[2].self_attn.o_proj.input.save()
        return z

    expected, expected_halved, found = traced(), halved(model), []
    threads = [threading.Thread(target=lambda: found.extend((traced(), halved(model)) for _ in range(3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and all(torch.equal(z, expected) and torch.equal(scores, expected_halved) for z, scores in found)


def test_fits_in_two_threads_give_the_numbers_of_one():
    train = si.load_questions("scenes/relation", "train", n=16)

    def fit(vlm, seed):
        return si.fit_scale(vlm, train, heads=[(2, 1), (4, 3)], epochs=2, seed=seed).scalars

    vlm, found = si.load("demo"), {}
    expected = [fit(vlm, seed) for seed in range(2)]
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: fit(vlm, seed)})) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(2))
