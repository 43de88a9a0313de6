"""Nothing stale: whatever a number depends on is in the key of what is kept, so that a changed model never gets an old result."""

import types

import pytest
import torch
from PIL import Image

import scale_interp as si
from scale_interp.bench.realistic import realistic
from scale_interp.errors import EditError
from scale_interp.interventions.prefix import PrefixStore
from scale_interp.vlm import vlm as vlm_module
from scale_interp.vlm.fingerprint import checksum, fingerprint


@pytest.fixture
def model():
    return si.load("demo")


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", n=4)


def zero_head(model):
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.self_attn.o_proj.weight[:, 16:32] *= 0


def zero_head_behind_torchs_back(model):
    for layer in model.decoder.layers:
        layer.self_attn.o_proj.weight.data[:, 16:32] = 0


def swap_heads(model):
    """The same numbers in other places: a sum that forgets places would not see it."""
    with torch.no_grad():
        weight = model.decoder.layers[3].self_attn.o_proj.weight
        weight[:, :32] = torch.cat([weight[:, 16:32], weight[:, :16]], 1)


def scale_a_norm(model):
    model.decoder.norm.weight.data[5] *= 3


def turn_positions(model):
    model.decoder.rotary_emb.inv_freq *= 0.5


def add_lora(model):
    from peft import LoraConfig, inject_adapter_in_model

    targets = r".*language_model\.layers\.3\.mlp\.up_proj"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), model.hf_model)


def other_prompt(model):
    model.prompt = "{images} Please answer. {text}"


def other_template(model):
    model.processor.chat_template += "the "


def smaller_images(model):
    model.processor.image_processor.image_mean = [0.1, 0.1, 0.1]


CHANGES = [
    zero_head,
    zero_head_behind_torchs_back,
    swap_heads,
    scale_a_norm,
    turn_positions,
    add_lora,
    other_prompt,
    other_template,
    smaller_images,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_never_gets_an_old_number(model, questions, tmp_path, change):
    with si.resumable(tmp_path):
        before = si.ablate(model, questions)
        change(model)
        resumed = si.ablate(model, questions)
    fresh = si.ablate(model, questions)
    assert torch.equal(resumed.per_question, fresh.per_question)
    assert not torch.equal(before.per_question, fresh.per_question)


def test_every_head_of_a_wide_model_counts(tmp_path):
    """Weights of more than 64 MiB are read whole, whichever columns of o_proj change."""
    model = realistic(4, 16, 1024)
    marks = [model.fingerprint]
    for layer in model.decoder.layers:
        with torch.no_grad():
            layer.self_attn.o_proj.weight[:, 64:128] *= 0
        marks.append(model.fingerprint)
    assert len(set(marks)) == 5


def test_a_lora_that_is_scaled_or_switched_off_is_another_model(model):
    add_lora(model)
    layer = model.decoder.layers[3].mlp.up_proj
    marks = [fingerprint(model.hf_model)]
    layer.scaling["default"] *= 2
    marks.append(fingerprint(model.hf_model))
    layer.enable_adapters(False)
    marks.append(fingerprint(model.hf_model))
    assert len(set(marks)) == 3


def test_the_same_content_has_the_same_fingerprint(model):
    assert model.fingerprint == si.load("demo").fingerprint == si.load("demo").fingerprint
    assert model.fingerprint != si.load("demo-healthy").fingerprint
    half = model.hf_model.to(torch.bfloat16)
    assert fingerprint(half) != si.load("demo").fingerprint


def test_tracing_does_not_change_the_fingerprint(model, questions):
    before = model.fingerprint
    with model.trace(questions[0]):
        model.nn.output.logits.save()
    assert model.fingerprint == before and not model.hooked


@pytest.mark.parametrize("place", [0, 1, 2**15, 2**18 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_checksum_sees_every_place(dtype, place):
    values = torch.arange(2**18 + 3).remainder(100).to(dtype)
    changed = values.clone()
    changed[place] += 1
    assert checksum(changed) != checksum(values) == checksum(values.clone())


def test_a_checksum_sees_order_sign_and_length():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    others = [values.flip(0), -values, values.roll(1), values[:-1], torch.cat([values[500:], values[:500]])]
    assert len({checksum(one) for one in [values, *others]}) == 6


def test_other_libraries_have_other_results(model, questions, tmp_path, monkeypatch):
    real = vlm_module.versions()
    with si.resumable(tmp_path):
        si.ablate(model, questions)
        folders = set(tmp_path.glob("*/"))
        monkeypatch.setattr(vlm_module, "versions", lambda: real | {"transformers": "another"})
        si.ablate(model, questions)
    assert len(set(tmp_path.glob("*/"))) == 2 * len(folders) > 0


def test_autocast_is_part_of_what_is_kept(model, questions, tmp_path):
    with si.resumable(tmp_path):
        plain = si.run_edits(model, questions)
        with torch.autocast("cpu", torch.bfloat16):
            cast = si.run_edits(model, questions, path="reference")
        again = si.run_edits(model, questions)
    assert torch.equal(plain, again) and not torch.equal(plain, cast)


@pytest.mark.parametrize("kind", ["a lambda", "a method", "an nnsight edit", "a hook on every module"])
def test_a_model_with_other_code_in_it_is_not_kept(model, questions, tmp_path, kind):
    layer = model.decoder.layers[2].mlp
    old = layer.forward
    with si.resumable(tmp_path):
        plain = si.evaluate(model, questions, path="reference").scores
        if kind == "a lambda":
            layer.forward = lambda x: 0 * old(x)
        elif kind == "a method":
            layer.forward = types.MethodType(lambda self, x: 0 * old(x), layer)
        elif kind == "an nnsight edit":
            with model.nn.edit(inplace=True):
                model.layers[2].mlp.output[:] = 0
        else:
            hook = torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: 0 * out if m is layer else None)
        assert model.hooked
        changed = si.evaluate(model, questions, path="reference").scores
        layer.forward = old
        model.nn.clear_edits()
        if kind == "a hook on every module":
            hook.remove()
        assert not model.hooked
        assert torch.equal(si.evaluate(model, questions, path="reference").scores, plain)
    if kind != "an nnsight edit":  # which acts inside traces alone
        assert not torch.equal(changed, plain)


def test_a_function_that_was_written_again_under_its_name_is_another_one():
    from scale_interp.execution.journal import digest

    first = {}
    exec("def metric(x):\n    return x.mean()", first)
    second = {}
    exec("def metric(x):\n    return x.sum()", second)
    assert digest(first["metric"]) != digest(second["metric"])
    assert digest(first["metric"]) == digest(first["metric"])


def test_prompts_of_changed_weights_are_refused(model, questions):
    prompts = PrefixStore(model, questions)
    kept = si.run_edits(model, questions, prompts=prompts)
    assert torch.equal(kept, si.run_edits(model, questions))
    zero_head(model)
    with pytest.raises(EditError, match="changed since these prompts were made: make them again"):
        si.run_edits(model, questions, prompts=prompts)


def test_an_image_that_changed_under_its_path_is_another_question(model, questions, tmp_path):
    path = tmp_path / "scene.png"
    scene, other = (q.images[0] for q in questions[:2])
    scene.save(path)
    asked = [si.Question(questions[0].text, questions[0].choices, 0, str(path))]
    with si.resumable(tmp_path / "kept"):
        first = si.run_edits(model, asked)
        other.save(path)
        asked = [si.Question(questions[0].text, questions[0].choices, 0, str(path))]
        second = si.run_edits(model, asked)
    assert not torch.equal(first, second) and torch.equal(second, si.run_edits(model, asked))
    assert isinstance(other, Image.Image)
