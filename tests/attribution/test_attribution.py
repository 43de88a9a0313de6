import json

import numpy as np
import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import contrast_diff, measure
from scale_interp.errors import DataError, EditError, FileError
from tests.support.oracle import hooked_scores


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", "train", n=12)


@pytest.fixture(scope="module")
def pairs(questions):
    return si.contrasts(questions)


@pytest.fixture(scope="module")
def patched(vlm, pairs):
    return si.patch(vlm, pairs)


def hooked_metric(vlm, questions, edit_of):
    """logit_diff [Q] by hooks; edit_of(q) is the edit of question q."""
    scores = torch.stack([hooked_scores(vlm, q, edit_of(i), 0) for i, q in enumerate(questions)])
    return measure("logit_diff", scores, questions)


def single(vlm, layer, head, factor, value=None):
    scale, shift = torch.ones(1, vlm.n_layers, vlm.n_heads), torch.zeros(1, vlm.n_layers, vlm.n_heads, vlm.head_dim)
    scale[0, layer, head] = factor
    if value is not None:
        shift[0, layer, head] = value
    return si.Edit(scale, shift)


def test_measures():
    qs = [si.Question("a", ("x", "y", "z"), 1), si.Question("b", ("x", "y"), 0)]
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.5, 1.0, float("-inf")]])
    assert measure("logit_diff", scores, qs).tolist() == [1.0, -0.5]
    assert measure("accuracy", scores, qs).tolist() == [1.0, 0.0]
    assert torch.allclose(measure("correct_prob", scores, qs), torch.stack([scores[0].softmax(0)[1], scores[1, :2].softmax(0)[0]]))
    assert measure("logit_diff", scores[:, None].expand(-1, 4, -1), qs).shape == (2, 4)
    with pytest.raises(DataError, match="choose 'logit_diff'"):
        measure("loss", scores, qs)


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_ablation_is_what_hooks_measure(vlm, questions, mode):
    found = si.ablate(vlm, questions, mode)
    mean = si.capture(vlm, questions).z.mean(0)
    base = hooked_metric(vlm, questions, lambda q: single(vlm, 0, 0, 1.0))
    for layer, head in [(0, 1), (3, 4), (5, 7)]:
        value = mean[layer, head] if mode == "mean" else None
        ablated = hooked_metric(vlm, questions, lambda q, at=(layer, head), v=value: single(vlm, *at, 0.0, v))
        assert torch.allclose(found.per_question[:, layer, head], base - ablated, atol=2e-5)


def test_resample_uses_another_question(vlm, questions):
    found = si.ablate(vlm, questions, "resample", seed=1)
    z = si.capture(vlm, questions).z
    base = hooked_metric(vlm, questions[:1], lambda q: single(vlm, 0, 0, 1.0))
    layer, head = found.top(1)[0]
    options = [
        base - hooked_metric(vlm, questions[:1], lambda q, d=d: single(vlm, layer, head, 0.0, z[d, layer, head])) for d in range(1, 12)
    ]
    assert min(abs(float(o - found.per_question[0, layer, head])) for o in options) < 2e-5
    assert torch.equal(found.per_question, si.ablate(vlm, questions, "resample", seed=1).per_question)
    with pytest.raises(EditError, match="at least two"):
        si.ablate(vlm, questions[:1], "resample")


def test_amplification_is_what_hooks_measure(vlm, questions):
    found = si.amplify(vlm, questions, factor=3.0)
    base = hooked_metric(vlm, questions, lambda q: single(vlm, 0, 0, 1.0))
    amplified = hooked_metric(vlm, questions, lambda q: single(vlm, 3, 4, 3.0))
    assert torch.allclose(found.per_question[:, 3, 4], amplified - base, atol=2e-5)
    exact = si.load("demo", dtype=torch.float64)  # float32 rounds the last bits as the machine's products do
    assert si.amplify(exact, questions, factor=1.0).per_question.abs().max() < 1e-9


def test_patching_is_what_hooks_measure(vlm, pairs, patched):
    clean, corrupt = [p.clean for p in pairs], [p.corrupt for p in pairs]
    z = si.capture(vlm, clean).z

    def diff(questions, edit_of):
        return contrast_diff(torch.stack([hooked_scores(vlm, q, edit_of(i), 0) for i, q in enumerate(questions)]), pairs)

    m_clean, m_corrupt = (diff(qs, lambda i: single(vlm, 0, 0, 1.0)) for qs in (clean, corrupt))
    layer, head = patched.top(1)[0]
    m_patched = diff(corrupt, lambda i: single(vlm, layer, head, 0.0, z[i, layer, head]))
    assert torch.allclose(patched.per_question[:, layer, head], (m_patched - m_corrupt) / (m_clean - m_corrupt).mean(), atol=2e-5)


def test_patching_all_heads_and_mlps_would_restore_the_clean_run(vlm, pairs):
    """The last token's residual stream is its embedding plus heads and MLPs: patching every head recovers most."""
    z = si.capture(vlm, [p.clean for p in pairs]).z
    corrupt = [p.corrupt for p in pairs]
    every = si.Edit(torch.zeros(1, vlm.n_layers, vlm.n_heads), z[:, None])
    restored = contrast_diff(si.run_edits(vlm, corrupt, every), pairs)[:, 0]
    clean = contrast_diff(si.run_edits(vlm, [p.clean for p in pairs]), pairs)[:, 0]
    assert torch.allclose(restored, clean, atol=1e-4)


def test_gradient_is_ablation_to_first_order(vlm, questions):
    found = si.attribute(vlm, questions)
    step = 1e-3
    base = si.run_edits(vlm, questions)
    for layer, head in [*found.top(2), (0, 0)]:
        nudged = si.run_edits(vlm, questions, single(vlm, layer, head, 1 + step))
        slope = (measure("logit_diff", nudged, questions) - measure("logit_diff", base, questions))[:, 0] / step
        assert torch.allclose(found.per_question[:, layer, head], slope, atol=2e-2)


def test_attribution_patching_follows_patching(vlm, pairs, patched):
    found = si.attribute(vlm, pairs)
    assert found.unit == patched.unit
    assert found.compare(patched)["spearman"] > 0.5


def test_reference_path_gives_the_same_maps(vlm, pairs, questions, patched):
    short = si.patch(vlm, pairs[:2], path="reference")
    assert torch.allclose(short.per_question * short.provenance["gap"], patched.per_question[:2] * patched.provenance["gap"], atol=1e-4)
    a, b = (si.ablate(vlm, questions[:2], "resample", path=p) for p in ("reference", "packed"))
    assert torch.allclose(a.per_question, b.per_question, atol=2e-5)
    assert (a.provenance["path"], b.provenance["path"]) == ("reference", "packed")


def test_rescaling_layers_and_mlps(vlm, questions):
    for unit, count in (("layer", 6), ("mlp", 6), ("head", 48)):
        study = si.rescale(vlm, questions, (0.0, 1.0), unit=unit, metric="logit_diff")
        assert study.per_question.shape == (12, 2, count)
        assert study.change[1].abs().max() < 1e-6 and study.change[0].abs().max() > 0.1
        assert len(study.to_frame()) == 2 * count
    scale = torch.ones(1, 6, 8)
    scale[0, 3] = 0
    layer3 = measure("logit_diff", si.run_edits(vlm, questions, si.Edit(scale=scale)), questions)[:, 0]
    base = measure("logit_diff", si.run_edits(vlm, questions), questions)[:, 0]
    found = si.rescale(vlm, questions, (0.0,), unit="layer", metric="logit_diff").per_question[:, 0, 3]
    assert torch.allclose(found, layer3 - base, atol=1e-5)


def test_head_map_statistics():
    values = torch.zeros(40, 2, 3)
    values[:, 1, 2] = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 3
    values[:, 0, 1] = -1.0
    m = si.HeadMap("test", "logit diff", values, torch.arange(40))
    assert m.top(1) == [(1, 2)] and m.top(2, by="abs") == [(1, 2), (0, 1)] and (1, 2) not in m.bottom(4)
    assert m.significant().tolist() == [[False, True, False], [False, False, True]]
    low, high = m.interval()
    assert low[1, 2] < m.scores[1, 2] < high[1, 2] and low[0, 1] == high[0, 1] == -1
    assert m.sparsity()["heads_to_half"] == 1 and m.sparsity()["significant"] == 2
    assert m.compare(m)["spearman"] == pytest.approx(1)
    assert np.isnan(m.compare(torch.ones(2, 3))["spearman"])
    frame = m.to_frame()
    assert frame.loc[frame["rank"] == 1, ["layer", "head"]].to_numpy().tolist() == [[1, 2]]
    assert "top head (1, 2)" in repr(m)
    with pytest.raises(DataError, match="6 heads"):
        m.top(7)
    with pytest.raises(DataError, match="cannot be compared"):
        m.compare(torch.zeros(3, 3))


def test_head_map_survives_the_disk(patched, tmp_path):
    patched.save(tmp_path / "m.safetensors")
    again = si.HeadMap.load(tmp_path / "m.safetensors")
    assert torch.equal(again.per_question, patched.per_question) and torch.equal(again.groups, patched.groups)
    assert (again.method, again.unit, again.provenance) == (patched.method, patched.unit, patched.provenance)
    again.save(tmp_path / "n.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()
    assert {"model", "data", "n", "versions", "path", "metric"} <= again.provenance.keys()


def test_damaged_and_foreign_files_are_refused(patched, vlm, tmp_path):
    path = tmp_path / "m.safetensors"
    patched.save(path)
    whole = path.read_bytes()
    cases = [(whole[: len(whole) // 2], "damaged"), (b"", "damaged"), (json.dumps({"a": 1}).encode(), "damaged")]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(FileError, match=message):
            si.HeadMap.load(path)
    si.ScAle.neutral(vlm).save_pretrained(tmp_path / "scale")
    with pytest.raises(FileError, match="is not a saved HeadMap but 'ScAle'"):
        si.HeadMap.load(tmp_path / "scale" / "scale.safetensors")
    with pytest.raises(FileError, match="no file"):
        si.HeadMap.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, q: si.ablate(v, []), "empty set"),
        (lambda v, q: si.patch(v, q), "build pairs with si.contrasts"),
        (lambda v, q: si.ablate(v, si.contrasts(q)), "pass questions"),
        (lambda v, q: si.ablate(v, q, "noise"), "choose 'zero'"),
        (lambda v, q: si.attribute(v, q, metric="accuracy"), "no gradient"),
        (lambda v, q: si.rescale(v, q, unit="neuron"), "choose 'head'"),
        (lambda v, q: si.rescale(v, q, ()), "no factors"),
    ],
)
def test_wrong_requests_are_refused(vlm, questions, call, message):
    with pytest.raises((DataError, EditError), match=message):
        call(vlm, questions)
