"""Copies of a model work and stand on their own; several threads may ask one model."""

import copy
import threading

import pytest
import torch

import scale_interp as si
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
