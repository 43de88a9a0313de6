"""Knockout maps: windows, heads, relations, files, figures."""

import pytest
import torch

import scale_interp as si
from scale_interp.attribution.metric import measure
from scale_interp.errors import DataError, EditError, RunWarning


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


def test_a_map_over_the_image_is_one_knockout_per_patch(vlm, questions, tmp_path):
    some = questions[:3]
    found = si.knockout_image(vlm, some, source=["subject", "object"], layers=[1, 2])
    heads = torch.zeros(1, vlm.n_layers, vlm.n_heads, dtype=torch.bool)
    heads[0, 1:3] = True
    for q, question in enumerate(some):
        groups, per_patch = vlm.token_groups(question), found.of(question.id)
        assert list(per_patch) == groups["image"]
        for token in groups["box:object"][:2] + groups["image"][-1:]:
            edit = si.AttentionEdit(heads, ("subject", "object"), [token])
            clean, edited = (measure("logit_diff", si.run_edits(vlm, [question], e)[:, 0], [question]) for e in (None, edit))
            assert per_patch[token] == pytest.approx(float(clean - edited), abs=1e-4)
        at_object = sum(per_patch[token] for token in groups["box:object"]) / len(groups["box:object"])
        assert float(found.per_place[q, 1]) == pytest.approx(at_object, abs=1e-6)
    table = found.to_frame()
    assert table["place"].tolist() == ["subject", "object", "elsewhere"] and (table["low"] <= table["high"]).all()
    found.save(tmp_path / "image.safetensors")
    again = si.ImageMap.load(tmp_path / "image.safetensors")
    assert torch.equal(again.effects, found.effects) and again.ids == found.ids and repr(again) == repr(found)
    figure = found.plot(some[0], si.patch_grid(vlm, some[0]))
    assert figure.data[1].z.size == len(found.of(some[0].id)) and len(figure.layout.shapes) == 4
    with pytest.raises(EditError, match=r"layers=\[6\]: give some of 0 to 5"):
        si.knockout_image(vlm, some, layers=[6])
    with pytest.raises(DataError, match="the map has no question"):
        found.of("x")
    with pytest.raises(DataError, match="2 maps and 1 names"):
        si.viz.image_maps([found, found], some[0], si.patch_grid(vlm, some[0]), ["a"])


@pytest.mark.parametrize("name", ["one-head", "relay"])
def test_a_circuit_reads_the_object_it_is_asked_about(name):
    """In `one-head` the last token reads the image at one object alone; in `relay` it does not see the image at all."""
    vlm, questions = si.load(f"testbed/{name}"), si.load_questions("scenes/position", n=4)
    effects = si.knockout_image(vlm, questions).effects
    assert (effects.abs().max() <= 1e-5) == (name == "relay")
