"""The check on load, on models that are wrong in one way each: what it lets pass is right on several tokens, caps and late edits."""

import pytest
import torch
from transformers import AttentionInterface, Gemma2Config, LlavaConfig, LlavaForConditionalGeneration

import scale_interp as si
from scale_interp.errors import EditError, ModelError, PathWarning
from scale_interp.interventions import check as check_module
from scale_interp.interventions import choices, packed, paths, prefix, rows
from scale_interp.interventions.check import check
from scale_interp.models import attached_check, zoo
from scale_interp.models.attached_check import check_attached, tested_transformers
from scale_interp.vlm import families
from scale_interp.vlm.cache import CACHE
from tests.support.zoo_models import CAUSAL, three_questions

EXACT = 2e-5


@pytest.fixture
def vlm():
    return si.load("tiny-random/llava")


def several_tokens():
    """Questions of different length, whose choices have one to four tokens and share beginnings."""
    return [
        si.Question(q.text, ("left", "left right above", "right left", "left right left right"), 0, image=q.image)
        for q in three_questions()
    ]


def gemma2_llava(final=30.0, attention=50.0):
    """A causal family with Gemma 2's text model: its attention logits are capped, and its head's are not, whatever its config says."""
    tiny = si.load("tiny-random/llava")
    old = tiny.hf_model.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = Gemma2Config(
        **{name: getattr(old.text_config, name) for name in same},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=12,
        final_logit_softcapping=final,
        attn_logit_softcapping=attention,
    )
    config = LlavaConfig(vision_config=old.vision_config, text_config=text, image_token_index=tiny.image_token_id, image_seq_length=4)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.lm_head.parameters():
            weight.normal_(0, 0.02)  # logits far below any cap
    return si.load(model, tiny.processor)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_family_that_passes_is_right_on_choicesof_several_tokens(name):
    vlm = si.load(f"tiny-random/{name}", check=True)
    assert vlm.report.path == "packed" and vlm.report.agrees
    draw = torch.Generator().manual_seed(1)
    edit = si.Edit(scale=2 * torch.rand(2, vlm.n_layers, vlm.n_heads, generator=draw), scope="each_new_token")
    packed_scores, whole = (si.run_edits(vlm, several_tokens(), edit, path=path) for path in ("packed", "reference"))
    assert (packed_scores - whole).abs().max() <= EXACT


def test_the_two_questions_have_different_lengths_and_the_second_several_tokens(vlm):
    for question in (check_module.SAMPLE, *three_questions()):
        other = check_module.of_several_tokens(question)
        lengths = [vlm.encode(q)["input_ids"].shape[1] for q in (question, other)]
        assert lengths[0] != lengths[1] and min(map(len, vlm.choice_ids(other))) >= 2
    assert vlm.report is None
    assert check(vlm).tokens == max(
        vlm.encode(q)["input_ids"].shape[1] for q in (other, check_module.of_several_tokens(check_module.SAMPLE))
    )


def test_variants_start_at_different_layers(vlm):
    edit = check_module._edit(vlm)
    assert edit.starts(vlm.n_layers).tolist() == [0, vlm.n_layers // 2, vlm.n_layers - 1]


# --- one fault each: none of them shows on one question of one token that is edited from the first layer on


def blind_branches(monkeypatch):
    """A choice's later tokens see only themselves and the prompt."""
    real = prefix.read_choices

    def blind(*given):
        found = real(*given)
        found.own.copy_(torch.eye(found.own.shape[1], dtype=torch.bool).expand_as(found.own))
        return found

    monkeypatch.setattr(prefix, "read_choices", blind)


def no_total(monkeypatch):
    """Log-likelihoods without their softmax's sum."""
    monkeypatch.setattr(choices.Choices, "_log_total", lambda self, vlm, head, hidden: torch.zeros(hidden.shape[:3]))


def flat_depth(monkeypatch):
    """Tokens of a choice all stand where the prompt's last token stands."""
    real = prefix.read_choices

    def flat(*given):
        found = real(*given)
        found.depth.zero_()
        return found

    monkeypatch.setattr(prefix, "read_choices", flat)


def visible_padding(monkeypatch):
    """The shorter prompt's padding is seen."""
    real = prefix.Prefix._mask
    monkeypatch.setattr(prefix.Prefix, "_mask", lambda self, window: real(self, window) | True)


def late_copies(monkeypatch):
    """Variants that start behind the first layer join with the first row of the batch."""
    real = packed.with_copies

    def late(inputs, R, n, new):
        (hidden, *rest), kwargs = real(inputs, R, n, new)
        if new and n > new:
            hidden = torch.cat([hidden[:, :-R], hidden[:, -R:] * 1.01], 1)
        return (hidden, *rest), kwargs

    monkeypatch.setattr(packed, "with_copies", late)


@pytest.mark.parametrize("fault", [blind_branches, no_total, flat_depth, visible_padding, late_copies])
def test_a_fault_of_several_tokens_batches_or_late_edits_is_found(vlm, monkeypatch, fault):
    fault(monkeypatch)
    with pytest.warns(PathWarning, match="differ by"):
        vlm = si.load(vlm.hf_model, vlm.processor, check=True)
    assert vlm.report.path == "reference" and not vlm.report.agrees


# --- caps


def test_a_final_cap_that_the_config_names_and_the_model_does_not_apply_is_left_out():
    vlm = gemma2_llava()
    with torch.no_grad():
        vlm.hf_model.lm_head.weight.mul_(20)  # logits beyond the cap
    assert check(vlm).path == "packed"
    wanted = si.run_edits(vlm, several_tokens(), path="reference")
    assert (si.run_edits(vlm, several_tokens(), path="packed") - wanted).abs().max() <= 5 * EXACT, "of logits beyond 30"


def test_a_final_cap_that_the_model_does_not_apply_is_found_at_small_logits(monkeypatch):
    monkeypatch.setattr(families, "after_head", lambda model: (1.0, 30.0))
    made = gemma2_llava()
    with pytest.warns(PathWarning, match="differ by"):
        vlm = si.load(made.hf_model, made.processor, check=True)
    assert vlm.report.path == "reference"
    with torch.no_grad():
        vlm.hf_model.lm_head.weight.mul_(400)
    wanted = si.run_edits(vlm, several_tokens(), path="reference")
    assert (si.run_edits(vlm, several_tokens()) - wanted).abs().max() <= EXACT
    assert (si.run_edits(vlm, several_tokens(), path="packed") - wanted).abs().max() > 0.1, "what the check kept from being used"


def test_a_final_cap_that_the_config_does_not_name_is_found(vlm):
    def cap(_, __, out):
        out.logits = 80 * torch.tanh(out.logits / 80)
        return out

    hook = vlm.hf_model.register_forward_hook(cap)
    with pytest.warns(PathWarning, match="differ by"):
        si.run_edits(vlm, three_questions())
    hook.remove()


def test_a_final_cap_of_the_head_itself_is_applied_on_both_paths(vlm):
    hook = vlm.hf_model.lm_head.register_forward_hook(lambda _, __, out: 2 * torch.tanh(out / 2))
    packed_scores, whole = (si.run_edits(vlm, three_questions(), path=path) for path in ("packed", "reference"))
    hook.remove()
    plain = si.run_edits(vlm, three_questions(), path="packed")
    torch.testing.assert_close(packed_scores, whole, atol=EXACT, rtol=0)
    assert (packed_scores - plain).nan_to_num().abs().max() > 100 * EXACT


@pytest.mark.parametrize("cap", [50.0, 5.0])
def test_a_capped_attention_passes(cap):
    vlm = gemma2_llava(final=None, attention=cap)
    assert check(vlm).path == "packed"
    packed_scores, whole = (si.run_edits(vlm, several_tokens(), path=path) for path in ("packed", "reference"))
    assert (packed_scores - whole).abs().max() <= EXACT


def test_an_attention_cap_that_packed_rows_drop_is_found(monkeypatch):
    vlm = gemma2_llava(final=None)
    uncapped = lambda *given, softcap=None, **more: rows.packed_attention(*given, **more)  # noqa: E731
    AttentionInterface.register(rows.NAME, uncapped)
    try:
        found = check(vlm)
    finally:
        AttentionInterface.register(rows.NAME, rows.packed_attention)
    assert found.path == "reference" and "differ by" in found.why
    usual = [layer.self_attn.scaling for layer in vlm.decoder.layers]
    assert usual == [16**-0.5] * vlm.n_layers, "the check leaves the model as it was"


# --- what raises


@pytest.mark.parametrize("error", [NotImplementedError("no kernel for 5 rows"), AttributeError("no attribute 'keys'"), KeyError("mask")])
@pytest.mark.parametrize("place", ["run_packed", "read_prefix"])
def test_whatever_the_packed_path_raises_leads_to_the_reference_path(vlm, monkeypatch, error, place):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr({"run_packed": paths, "read_prefix": check_module}[place], place, fails)
    questions = three_questions()
    edit = si.Edit(scale=torch.full((1, vlm.n_layers, vlm.n_heads), 0.5))
    with pytest.warns(PathWarning, match=f"{type(error).__name__}.*{error.args[0]}"):
        found = si.run_edits(vlm, questions, edit)
    assert torch.equal(found[found.isfinite()], (whole := si.run_edits(vlm, questions, edit, path="reference"))[whole.isfinite()])
    with pytest.warns(PathWarning, match=type(error).__name__):
        again = si.load(vlm.hf_model, vlm.processor, check=True)
    assert again.report.path == "reference" and not again.report.agrees


def test_logits_that_are_no_numbers_in_the_packed_path_alone_are_found(vlm, monkeypatch):
    real = packed.run_packed
    monkeypatch.setattr(paths, "run_packed", lambda *given: tuple(part * float("nan") for part in real(*given)))
    assert check(vlm).path == "reference"


def test_without_a_check_nothing_is_measured_before_the_first_use(vlm, monkeypatch):
    monkeypatch.setattr(paths, "run_packed", lambda *_: 1 / 0)
    quiet = si.load(vlm.hf_model, vlm.processor, check=False)
    assert quiet.report is None
    with pytest.warns(PathWarning, match="ZeroDivisionError"):
        si.run_edits(quiet, three_questions()[:1])


def test_an_attached_edit_is_still_refused(vlm):
    scale = si.ScAle(torch.full((vlm.n_layers, vlm.n_heads), 0.5), torch.ones(vlm.n_layers), 12, ())
    with scale.attached(vlm), pytest.raises(EditError, match="attached"):
        check(vlm)


def test_weights_that_are_not_finite_are_still_an_error(vlm):
    with torch.no_grad():
        vlm.decoder.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="up_proj"):
        check(vlm)


# --- edits attached to the model, in transformers' own generate


@pytest.mark.parametrize("name", zoo.NAMES)
def test_attached_edits_are_right_in_generate(name):
    assert check_attached(si.load(f"tiny-random/{name}")) is None


def read_more(vlm):
    """Fill the cache with three keys and values of nothing before every pass."""

    def fill(module, args, kwargs):
        for number in range(vlm.n_layers if kwargs.get(CACHE) is not None else 0):
            nothing = torch.zeros(1, vlm.n_kv_heads, 3, vlm.head_dim)
            kwargs[CACHE].update(nothing, nothing, number)

    vlm.decoder.register_forward_pre_hook(fill, with_kwargs=True)


def lose_the_first(vlm):
    """Keys and values of the prompt's first half that later passes do not find as they were."""

    def forget(module, args, kwargs):
        layer = kwargs[CACHE].layers[0] if kwargs.get(CACHE) is not None else None
        if layer is not None and layer.get_seq_length() > 0:
            layer.keys[:, :, : layer.keys.shape[2] // 2] *= 3

    vlm.decoder.register_forward_pre_hook(forget, with_kwargs=True)


@pytest.mark.parametrize(("fault", "what"), [(read_more, "they fail in it"), (lose_the_first, "from those of whole passes")])
def test_a_cache_that_is_not_what_attached_edits_expect_is_found_at_load(vlm, fault, what):
    fault(vlm)
    assert what in check_attached(vlm)
    with pytest.warns(PathWarning, match=f"not right in `generate`.*{what}"):
        si.load(vlm.hf_model, vlm.processor, check=True)


def test_every_model_is_checked_beside_a_transformers_that_nobody_tested(monkeypatch):
    assert tested_transformers()
    assert si.load("tiny-random/llava").report is None
    real = attached_check.version
    monkeypatch.setattr(attached_check, "version", lambda name: "5.99.0" if name == "transformers" else real(name))
    assert not tested_transformers()
    assert si.load("tiny-random/llava").report.agrees
