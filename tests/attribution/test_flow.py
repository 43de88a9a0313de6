"""Knockout maps: windows, heads, relations, files, figures."""

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import measure
from scale_interp.errors import DataError


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", split="test", n=12, seed=3)


def test_windows_are_the_layers_around_the_named_one(vlm, questions):
    L, H = vlm.n_layers, vlm.n_heads
    some = questions[:4]
    clean = measure("correct_prob", si.run_edits(vlm, some)[:, 0], some)
    for window, layers in ((1, [[0], [1], [5]]), (2, [[0], [0, 1], [4, 5]]), (3, [[0, 1], [0, 1, 2], [4, 5]])):
        found = si.knockout(vlm, some, window=window, metric="correct_prob")
        assert found.window == window and found.per_question.shape == (4, L)
        for layer, edited in zip((0, 1, L - 1), layers, strict=True):
            heads = torch.zeros(1, L, H, dtype=torch.bool)
            heads[0, edited] = True
            scores = si.run_edits(vlm, some, si.AttentionEdit(heads))[:, 0]
            assert torch.allclose(found.per_question[:, layer], clean - measure("correct_prob", scores, some), atol=1e-6)


def test_heads_and_paths(vlm, questions):
    some = questions[:3]
    packed, whole = (si.knockout(vlm, some, by="head", path=path) for path in ("packed", "reference"))
    assert packed.scores.shape == (vlm.n_layers, vlm.n_heads)
    assert (packed.per_question - whole.per_question).abs().max() <= 1e-4
    assert packed.per_question.abs().max() > 1e-2
    assert torch.equal(packed.heads.scores, packed.scores) and packed.heads.top(1)[0] == divmod(int(packed.scores.argmax()), vlm.n_heads)
    with pytest.raises(DataError, match="no heads"):
        _ = si.knockout(vlm, some).heads


def test_a_map_keeps_its_relations_and_its_numbers(vlm, questions, tmp_path):
    found = si.knockout(vlm, questions, window=3)
    parts = found.by_relation()
    assert set(parts) == {q.relation for q in questions}
    assert sum(len(part.per_question) for part in parts.values()) == len(questions)
    for name, part in parts.items():
        rows = [i for i, q in enumerate(questions) if q.relation == name]
        assert torch.equal(part.per_question, found.per_question[rows])
    low, high = found.interval()
    assert ((low <= found.scores) & (found.scores <= high)).all() and found.significant().shape == found.scores.shape
    found.save(tmp_path / "flow.safetensors")
    again = si.FlowMap.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.effects, found.effects) and again.relations == found.relations and again.window == 3
    assert list(found.to_frame()) == ["layer", "score", "low", "high", "p"] and "knockout last -> image" in repr(found)
    with pytest.raises(DataError, match="no question has the relation"):
        found.relation("inside")
