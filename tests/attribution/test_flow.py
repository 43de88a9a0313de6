"""Knockout maps: windows, heads, relations, files, figures."""

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import measure
from scale_interp.errors import DataError, RunWarning


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


@pytest.mark.parametrize(("source", "target"), [("image", "last"), ("last", "last"), ([3], [4, 5])])
def test_a_target_that_no_source_sees_is_warned_of(vlm, questions, source, target):
    with pytest.warns(RunWarning, match="no score of 2 questions changed beyond rounding"):
        assert si.knockout(vlm, questions[:2], source=source, target=target).scores.abs().max() <= 1e-5


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


@pytest.mark.parametrize("name", ["one-head", "three-heads", "relay"])
def test_circuits_lose_what_their_construction_says(name):
    """Written down from the construction (models/testbeds): which heads of the last token see the image, and who can change the answer.

    Parked heads and word heads do not see the image: no change at all. A decoy sees it and reaches the logits through the final norm, one
    positive factor for all words: no answer changes. A listed head alone moves its words. In `relay` the last token sees no image, and
    listed heads and decoys read the token before it.
    """
    bed, circuit = si.load(f"testbed/{name}"), si.testbeds.circuit(name)
    questions = si.load_questions("scenes/position", split="test", n=16)
    through = [-2] if circuit.relay else "image"
    heads = [(layer, head) for layer in range(bed.n_layers) for head in range(bed.n_heads)]
    falls = si.knockout(bed, questions, target=through, by="head").per_question.abs().amax(0)
    wrong = si.knockout(bed, questions, target=through, by="head", metric="accuracy").per_question.abs().amax(0)
    for head in heads:
        kind = circuit.kind(head)
        if kind == "listed":
            assert falls[head] > 1 and wrong[head] == 1, head
        elif kind == "decoy":
            assert falls[head] > 1e-3 and wrong[head] == 0, head
        else:
            assert falls[head] <= 1e-5 and wrong[head] == 0, head
    if circuit.relay:
        assert si.knockout(bed, questions, by="head").per_question.abs().max() <= 1e-5
    # without the flow the answer's logits no longer depend on the image
    asked = [si.Question(questions[0].text, questions[0].choices, 0, picture=q.picture, id=q.id) for q in questions[:3]]
    everywhere = torch.ones(1, bed.n_layers, bed.n_heads, dtype=torch.bool)
    seen = si.run_edits(bed, asked)[:, 0]
    blind = si.run_edits(bed, asked, si.AttentionEdit(everywhere, source=through if circuit.relay else "last", target="image"))[:, 0]
    assert (blind - blind[:1]).abs().max() <= 1e-5 and (seen - seen[:1]).abs().max() > 1
