"""Packed path = reference path = plain torch hooks."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import scale_interp as si
from scale_interp.errors import EditError, ModelError
from scale_interp.interventions import check, engine, paths, storage
from scale_interp.interventions.engine import run_with_clean
from scale_interp.interventions.packed import run_packed
from scale_interp.interventions.paths import packed_batch
from scale_interp.interventions.prefix import PrefixStore, read_prefix
from scale_interp.interventions.rows import packed_attention
from scale_interp.models.demo import build
from tests.support.oracle import hooked_scores
from tests.support.watched import inputs_of

KINDS = ("zero", "amplify", "patch", "steer", "all heads", "mlp", "everything")


def distance(scores, questions, vlm, edit, scope="last"):
    """Largest difference from the hooks' scores."""
    worst = 0.0
    for q, question in enumerate(questions):
        for n in range(edit.n_variants):
            expected = hooked_scores(vlm, question, edit, n, scope)
            worst = max(worst, float((scores[q, n, : len(expected)] - expected).abs().max()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_hooks(vlm, mixed, random_edits, kind, attention):
    vlm.decoder.set_attn_implementation(attention)
    try:
        edited, clean = run_with_clean(vlm, mixed, random_edits[kind], "packed")
        assert distance(edited, mixed, vlm, random_edits[kind]) <= 1e-5
        assert (edited - clean)[edited.isfinite()].abs().max() > 1e-3
        assert vlm.decoder.config._attn_implementation == attention
    finally:
        vlm.decoder.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kind", KINDS)
def test_reference_equals_hooks(vlm, mixed, random_edits, kind):
    questions = mixed[::3]
    scores = si.run_edits(vlm, questions, random_edits[kind], path="reference")
    assert distance(scores, questions, vlm, random_edits[kind]) <= 1e-5


@pytest.mark.parametrize("path", ["packed", "reference"])
@pytest.mark.parametrize("scope", ["last", "each_new_token"])
def test_long_choices_equal_hooks(vlm, long_choices, random_edits, path, scope):
    everything = random_edits["everything"]
    edit = si.Edit(everything.scale, everything.shift, everything.mlp_scale, scope)
    scores = si.run_edits(vlm, long_choices, edit, path=path)
    whole = [long_choices[1], long_choices[2]]
    assert distance(scores[1:], whole, vlm, edit, scope) <= 1e-5


def test_choice_that_begins_another_ends_in_the_end_token(vlm, long_choices, random_edits):
    packed, reference = (si.run_edits(vlm, long_choices[:1], random_edits["all heads"], path=p) for p in ("packed", "reference"))
    assert torch.allclose(packed, reference, atol=1e-5)
    assert not torch.allclose(packed[..., 0], packed[..., 1])


def test_scope_changes_long_choices_only(vlm, long_choices, random_edits):
    scale = random_edits["all heads"].scale
    last, each = (si.run_edits(vlm, long_choices, si.Edit(scale=scale, scope=s)) for s in ("last", "each_new_token"))
    assert (last[1] - each[1])[:, :3].abs().max() > 1e-3
    assert torch.allclose(last[2], each[2], atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 16, 33])
def test_identity_is_bit_equal(vlm, mixed, random_edits, n):
    ones = torch.ones(n, vlm.n_layers, vlm.n_heads)
    identity = si.Edit(ones, torch.zeros(n, vlm.n_layers, vlm.n_heads, vlm.head_dim), torch.ones(n, vlm.n_layers))
    for edit in (identity, si.Edit.stack([identity, random_edits["everything"]])):
        edited, clean = run_with_clean(vlm, mixed, edit, "packed")
        assert torch.equal(edited[:, :n], clean[:, :n])
    assert not torch.equal(edited[:, n:], clean[:, n:])


def test_identity_computed_through_every_layer_stays_the_same(vlm, mixed):
    scale = torch.ones(5, vlm.n_layers, vlm.n_heads, requires_grad=True)
    assert si.Edit(scale=scale).starts(vlm.n_layers).tolist() == [0] * 5
    edited, clean = run_with_clean(vlm, mixed, si.Edit(scale=scale), "packed")
    assert torch.allclose(edited, clean, atol=2e-6)


def test_staircase_equals_computing_every_row(vlm, mixed, random_edits):
    edit = random_edits["patch"]
    whole = si.Edit(edit.scale.clone().requires_grad_(), edit.shift)
    assert edit.starts(vlm.n_layers).tolist() == [2, vlm.n_layers - 1]
    assert whole.starts(vlm.n_layers).tolist() == [0, 0]
    a, b = (si.run_edits(vlm, mixed, e, path="packed") for e in (edit, whole))
    assert torch.allclose(a, b, atol=2e-6)


def test_sweep_equals_dense_edits_in_chunks(vlm, mixed, monkeypatch):
    source = si.capture(vlm, mixed).z
    sweep = si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, source)
    with inputs_of(vlm.decoder.layers[-1]):  # prompts are read again where there are other hooks than these
        prompts = PrefixStore(vlm, mixed, len(mixed))
        assert len(list(prompts)) == 1
    with inputs_of(vlm.decoder.layers[-1]) as passes:
        whole = si.run_edits(vlm, mixed, sweep, path="packed", prompts=prompts)
    with inputs_of(vlm.decoder.layers[-1]) as more_passes:
        monkeypatch.setattr(vlm, "memory", 2**19)
        chunked = si.run_edits(vlm, mixed, sweep, path="packed", prompts=prompts)
    assert len(more_passes) > 2 * len(passes)
    assert torch.allclose(whole, chunked, atol=2e-6)
    for n in (0, 17, 47):
        layer, head = sweep.heads[n]
        scale, shift = torch.ones(1, vlm.n_layers, vlm.n_heads), torch.zeros(len(mixed), 1, vlm.n_layers, vlm.n_heads, vlm.head_dim)
        scale[0, layer, head], shift[:, 0, layer, head] = 0, source[:, layer, head]
        dense = si.run_edits(vlm, mixed, si.Edit(scale, shift), path="packed")
        assert torch.allclose(whole[:, n], dense[:, 0], atol=2e-6)


@pytest.mark.parametrize(("heads", "kv", "rows", "kept", "prompt"), [(4, 4, 7, 30, 30), (4, 2, 5, 20, 30), (8, 2, 1, 9, 9)])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_kernel_equals_the_written_out_attention(heads, kv, rows, kept, prompt, padded):
    """Without gradients torch's fused kernel reads the prompt; a plain softmax over prompt and own key is the oracle."""
    draw = torch.Generator().manual_seed(0)
    B, D = 3, 16
    query, key, value = (torch.randn(B, h, n, D, generator=draw) for h, n in ((heads, rows), (kv, kept + rows), (kv, kept + rows)))
    mask = torch.ones(B, 1, 1, prompt + 1, dtype=torch.bool)
    for b in range(B * padded):
        mask[b, ..., prompt - kept : prompt - kept + b] = False
    with torch.no_grad():
        fused, _ = packed_attention(None, query, key, value, mask, 0.3)
    written, _ = packed_attention(None, query, key, value, mask, 0.3)
    whole = torch.cat([mask[..., -1 - kept : -1].expand(B, 1, rows, kept), torch.eye(rows, dtype=torch.bool).expand(B, 1, rows, rows)], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, whole, scale=0.3, enable_gqa=True).transpose(1, 2)
    assert torch.allclose(fused, expected, atol=2e-6) and torch.allclose(written, expected, atol=2e-6)


def test_gradient_of_scale_is_the_finite_difference(vlm):
    question = si.load_questions("scenes/relation", n=1)
    read = read_prefix(vlm, question)
    scale = torch.ones(1, vlm.n_layers, vlm.n_heads, requires_grad=True)
    score = run_packed(vlm, read, si.Edit(scale=scale))[1][0, 0]
    (score[0] - score[1]).backward()
    for layer, head in [(0, 0), (2, 5), (vlm.n_layers - 1, 7)]:
        moved = []
        for step in (1e-2, -1e-2):
            nudged = torch.ones(1, vlm.n_layers, vlm.n_heads)
            nudged[0, layer, head] += step
            s = hooked_scores(vlm, question[0], si.Edit(scale=nudged), 0)
            moved.append(float(s[0] - s[1]))
        assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float(scale.grad[0, layer, head]), rel=1e-2, abs=1e-3)


def test_batches_do_not_matter(vlm, mixed, random_edits):
    whole = si.run_edits(vlm, mixed, random_edits["everything"], path="packed")
    for q, question in enumerate(mixed):
        alone = si.run_edits(vlm, question, random_edits["everything"], path="packed")
        assert torch.allclose(whole[q, :, : len(question.choices)], alone[0], atol=1e-5)
    parts = [packed_batch(vlm, batch, random_edits["everything"])[0] for batch in PrefixStore(vlm, mixed, batch_size=3)]
    assert [len(p) for p in parts] == [3, 3, 2]


def test_edits_see_the_picture(vlm):
    question, other = si.load_questions("scenes/relation", n=2)
    blind = si.Question(question.text, question.choices, question.answer, picture=other.picture)
    assert (si.run_edits(vlm, question) - si.run_edits(vlm, blind)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_tolerance(mixed, dtype):
    half = si.load("demo", dtype=dtype)
    edit = si.Edit(scale=torch.full((1, half.n_layers, half.n_heads), 0.5))
    a, b = (si.run_edits(half, mixed, edit, path=p) for p in ("packed", "reference"))
    seen = a.isfinite()
    assert ((a - b)[seen].abs().max() / b[seen].abs().max()) <= check.TOLERANCE[dtype]
    assert engine.choose_path(half, mixed) == "packed"


def test_disagreement_falls_back_and_says_so(monkeypatch):
    other = si.load("demo")
    real = paths.run_packed
    monkeypatch.setattr(paths, "run_packed", lambda *a: tuple(s + 1 for s in real(*a)))
    question = si.load_questions("scenes/relation", n=1)
    with pytest.warns(si.errors.PathWarning, match="differ by"):
        scores = si.run_edits(other, question)
    monkeypatch.undo()
    assert torch.equal(scores, si.run_edits(other, question, path="reference"))


def test_weights_that_are_not_finite_are_named(mixed):
    broken = si.load("demo")
    with torch.no_grad():
        broken.decoder.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.3\.mlp\.up_proj\.weight"):
        si.run_edits(broken, mixed)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: si.Edit(scale=torch.ones(1, 5, 8)), "the model needs"),
        (lambda: si.Edit(scale=torch.ones(3, 1, 6, 8)), "for 3 questions"),
        (lambda: si.Edit(scale=torch.full((1, 6, 8), float("nan"))), "not finite"),
        (lambda: si.Edit(), "without scale"),
        (lambda: si.Edit(scale=torch.ones(6, 8)), r"scale has shape \(6, 8\): give \[N, L, H\]"),
        (lambda: si.Edit(scale=torch.ones(2, 6, 8), mlp_scale=torch.ones(3, 6)), "the same N"),
        (lambda: si.Edit(scale=torch.ones(0, 6, 8)), "at least 1"),
        (lambda: si.HeadSweep(((6, 0),), 8, 0.0), "out of range"),
        (lambda: si.HeadSweep(((1, 0), (1, 0)), 8, 0.0), "given twice"),
        (lambda: "zero", "expected an Edit"),
    ],
)
def test_wrong_edits_are_refused(vlm, mixed, edit, message):
    with pytest.raises(EditError, match=message):
        si.run_edits(vlm, mixed, edit())


def test_unknown_path_is_refused(vlm, mixed):
    with pytest.raises(EditError, match="choose 'auto'"):
        si.run_edits(vlm, mixed, path="fast")


@pytest.mark.parametrize(("layers", "heads", "kv", "head_dim"), [(1, 1, 1, 128), (2, 8, 2, 24), (3, 6, 3, 10)])
def test_other_shapes_of_heads(mixed, layers, heads, kv, head_dim):
    """One head; grouped queries; a head dimension that is not width / heads."""
    config = build.config()
    config.text_config.update({"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim})
    torch.manual_seed(0)
    other = si.load(LlavaForConditionalGeneration(config), build.processor())
    assert (other.n_layers, other.n_heads, other.n_kv_heads, other.head_dim) == (layers, heads, kv, head_dim)
    draw = torch.Generator().manual_seed(1)
    edit = si.Edit(2 * torch.rand(2, layers, heads, generator=draw), torch.randn(2, layers, heads, head_dim, generator=draw))
    scores = si.run_edits(other, mixed, edit, path="packed")
    assert distance(scores, mixed, other, edit) <= 1e-5
    found = si.ablate(other, mixed)
    assert found.scores.shape == (layers, heads) and len(found.top(1)) == 1
    assert found.plot().data


def test_prefixes_beyond_the_memory_are_read_again(vlm, mixed, random_edits, monkeypatch):
    whole = PrefixStore(vlm, mixed, batch_size=2)
    assert whole[1] is whole[1]
    monkeypatch.setattr(storage, "free_memory", lambda device: 4 * whole[0].nbytes + 1)
    tight = PrefixStore(vlm, mixed, batch_size=2)
    assert tight[0] is tight[0] and tight[1] is not tight[1]
    a, b = (si.run_edits(vlm, mixed, random_edits["patch"], path="packed", prompts=p) for p in (whole, tight))
    assert torch.equal(a, b)


def test_where_numbers_stop_being_finite_is_named(vlm, mixed):
    plain, wild = si.Edit.identity(6, 8), si.Edit.scaling([(3, 2)], 1e38, 6, 8)
    with pytest.raises(ModelError, match=rf"question {mixed[0].id}, edit 1: the logits are not finite, first after layer 3"):
        si.run_edits(vlm, mixed, [plain, wild])
    with pytest.raises(ModelError, match=r"edit 1 \(head \(4, 0\)\): the logits are not finite, first after layer 4"):
        si.run_edits(vlm, mixed, si.HeadSweep(((5, 7), (4, 0)), 8, 1e38))


def test_prompts_of_other_questions_are_refused(vlm, mixed):
    prompts = PrefixStore(vlm, mixed[:2])
    for wrong in (
        lambda: si.run_edits(vlm, mixed[2:4], prompts=prompts),
        lambda: si.fit_scale(vlm, mixed[2:4], prompts=prompts),
        lambda: si.evaluate_scaled(vlm, mixed[2:4], [si.AttentionScale(0.5)], prompts=prompts),
    ):
        with pytest.raises(EditError, match="the prompts are those of other questions"):
            wrong()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ["zero"], "found a str in it"),
        (lambda: si.Edit(scale=[[1.0]]), "scale is a list: give a tensor"),
        (lambda: si.HeadSweep(((0, 0),), 8, float("nan")), "scale=nan: give a finite number"),
        (lambda: si.HeadSweep(((0, 0),), 4, 0.0), "for 4 heads per layer, the model has 8"),
        (lambda: si.HeadSweep(((0, 0),), 8, 0.0, torch.zeros(1, 6, 8, 4)), r"shape \(1, 6, 8, 4\): give \[1 or 8, 6, 8, 16\]"),
        (lambda: si.HeadSweep(((0, 0),), 8, 0.0, torch.full((1, 6, 8, 16), float("nan"))), "source holds values that are not finite"),
        (lambda: si.Edit(mlp_scale=torch.ones(1, 6)).restrict([], [99]), "MLP of layer 99: the edit has 6 layers"),
    ],
)
def test_edits_that_cannot_be_are_refused(vlm, mixed, make, message):
    with pytest.raises(EditError, match=message):
        si.run_edits(vlm, mixed, make())
