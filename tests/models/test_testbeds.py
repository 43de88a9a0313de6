"""Test-beds: what is claimed of known circuits holds in their weights and by ablation, and methods find what is there."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import scale_interp as si
from scale_interp.core.files import read_json
from scale_interp.evaluation.ground_truth import localisation
from scale_interp.evaluation.ground_truth.positions import localise_positions
from scale_interp.models import testbeds
from scale_interp.models.testbeds import build, training
from scale_interp.models.testbeds.build import HEAD_DIM, WIDTH, Construction
from tests.support import ROOT

ABLATIONS = ("zero ablation", "mean ablation", "resample ablation", "patching")


@pytest.fixture(scope="module", params=testbeds.NAMES)
def bed(request):
    return testbeds.circuit(request.param), si.load(f"testbed/{request.param}")


@pytest.fixture(scope="module")
def healthy():
    return si.load("demo-healthy")


def asked(n=24, split="test"):
    return si.load_questions("scenes/position", split, n=n)


def last_states(vlm, questions, silenced=()):
    """The last token's z of every layer [Q, L, H, D], its final state and logits, by plain hooks; silenced heads say 0."""
    seen, hooks = {}, []

    def hook(layer):
        def pre(module, inputs):
            z = inputs[0].clone()
            for at, head in silenced:
                if at == layer:
                    z[:, -1, head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
            seen[layer] = z[:, -1].unflatten(-1, (vlm.n_heads, HEAD_DIM))
            return (z,)

        return pre

    for i, layer in enumerate(vlm.decoder.layers):
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(hook(i)))
    hooks.append(vlm.decoder.norm.register_forward_hook(lambda m, i, out: seen.__setitem__("final", out[:, -1])))
    with torch.no_grad():
        # one at a time: a batch's rounding may differ from row to row
        parts = []
        for q in questions:
            logits = vlm.hf_model(**vlm.encode(q), logits_to_keep=1).logits[:, -1]
            parts.append((torch.stack([seen[i] for i in range(vlm.n_layers)], 1), seen["final"], logits))
    for handle in hooks:
        handle.remove()
    return tuple(torch.cat(p) for p in zip(*parts, strict=True))


def test_weights_hold_the_construction(bed):
    circuit, vlm = bed
    assert Construction.of(circuit, vlm.hf_model).is_intact()
    with torch.no_grad():
        broken = testbeds.planting._copy(vlm)
        broken.get_decoder().layers[0].mlp.down_proj.weight[0, 0] += 1
    assert not Construction.of(circuit, broken).is_intact()


def test_weights_are_small_and_the_card_says_what_is_measured(bed):
    circuit, vlm = bed
    place = testbeds.folder(circuit.name)
    assert sum(f.stat().st_size for f in place.iterdir()) < 2e6
    card = (place / "README.md").read_text()
    measured = si.evaluate(vlm, si.load_questions("scenes/position", n=400)).accuracy
    assert measured >= 0.75
    assert f"(chance 0.25): {measured:.3f}." in card


def test_picture_reaches_the_last_token_through_listed_heads_alone(bed):
    circuit, vlm = bed
    pairs = si.contrasts(asked(6))
    clean, corrupt = ([getattr(p, side) for p in pairs] for side in ("clean", "corrupt"))
    _, a, a_logits = last_states(vlm, clean)
    _, b, b_logits = last_states(vlm, corrupt)
    assert (a - b).abs().amax(1).min() > 1e-3
    sources = (*circuit.heads, *circuit.decoys)
    _, a, a_logits = last_states(vlm, clean, sources)
    _, b, b_logits = last_states(vlm, corrupt, sources)
    assert torch.equal(a, b) and torch.equal(a_logits, b_logits)


def test_without_its_listed_head_a_words_logit_is_zero(bed):
    circuit, vlm = bed
    vocabulary = vlm.tokenizer.get_vocab()
    questions = asked(6)
    for head, words in circuit.owners.items():
        ids = [vocabulary[w] for w in words]
        assert (last_states(vlm, questions)[2][:, ids] != 0).all()
        assert (last_states(vlm, questions, [head])[2][:, ids] == 0).all()
    all_silent = si.run_edits(vlm, questions, si.Edit.scaling(circuit.heads, 0.0, vlm.n_layers, vlm.n_heads))
    assert (all_silent == 0).all()


def test_parked_heads_say_one_constant_and_word_heads_no_picture(bed):
    circuit, vlm = bed
    pairs = si.contrasts(asked(8))
    every = [(layer, h) for layer in range(vlm.n_layers) for h in range(vlm.n_heads)]
    z, _, _ = last_states(vlm, [p.clean for p in pairs])
    other, _, _ = last_states(vlm, [p.corrupt for p in pairs])
    first = min(layer for layer, _ in circuit.heads)
    for layer, head in every:
        kind = circuit.kind((layer, head))
        values = z[:, layer, head]
        assert values.abs().max() > 1e-3, "every head is live"
        if kind == "parked":
            # bit by bit within a pair; over prompts of different length the matrix products round differently
            assert torch.equal(values, other[:, layer, head]) and torch.allclose(values, values[:1].expand_as(values), atol=1e-5)
        elif kind == "word" and layer == first:
            assert torch.equal(values, other[:, layer, head])
        else:
            assert not torch.equal(values, other[:, layer, head])


def test_decoys_and_word_heads_change_no_answer(bed):
    circuit, vlm = bed
    questions = asked(20)
    base = si.run_edits(vlm, questions)[:, 0]
    silent = si.run_edits(vlm, questions, si.Edit.scaling([*circuit.decoys, *circuit.word_heads], 0.0, vlm.n_layers, vlm.n_heads))[:, 0]
    factor = (silent / base).double()
    assert (factor > 0).all()
    assert torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=1e-4)
    assert torch.equal(base.argmax(1), silent.argmax(1))


def test_a_last_token_gives_exactly_no_attention_to_what_its_head_must_not_see(bed):
    circuit, vlm = bed
    channel = {"word": build.WORD, "image": build.IMAGE, "relay": build.RELAY, "last": build.LAST}
    question = asked(1)[0]
    inputs = vlm.encode(question)
    tokens = vlm.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    kinds = ["image" if t == "<image>" else "word" for t in tokens]
    kinds[0], kinds[-1] = "first", "last"
    if circuit.relay:
        kinds[-2] = "relay"
    copy = testbeds.planting._copy(vlm)
    copy.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(copy(**inputs, output_attentions=True).attentions, 1)[0, :, :, -1]
    for layer in range(vlm.n_layers):
        for head in range(vlm.n_heads):
            closed = build.hidden_from_head(circuit.kind((layer, head)), circuit.relay)
            barred = torch.tensor([channel.get(kind) in closed for kind in kinds])
            assert (weights[layer, head, barred] == 0).all() and weights[layer, head, ~barred].sum() == pytest.approx(1, abs=1e-5)


def test_patching_and_ablation_find_the_circuits(bed):
    circuit, vlm = bed
    found = si.localise(
        vlm,
        [asked(40, "train")],
        circuit.heads,
        ["zero ablation", "mean ablation", "resample ablation", "patching", "integrated gradients"],
        faithful_on=asked(20),
    )
    assert (found.auroc()[:4] >= 0.99).all() and (found.precision()[:4] == 1).all()
    # the known heads alone keep all that varies
    curve = si.faithfulness(vlm, asked(20), localisation.ranking(found.scores[3, 0]))
    k = len(circuit.heads)
    assert curve.curve("keep")[curve.ks.index(k)] == pytest.approx(1, abs=0.15) and curve.curve("remove")[curve.ks.index(k)] < 0.1


def test_every_method_is_scored_and_explained():
    circuit, vlm = testbeds.circuit("one-head"), si.load("testbed/one-head")
    found = si.localise(vlm, [asked(40, "train")], circuit.heads)
    table = found.to_frame().set_index("method")
    assert list(table.index) == list(localisation.METHODS) and table["why"].str.len().gt(20).all()
    assert table["auroc"].between(0, 1).all() and table["cpr"].isna().all()
    # what can be read is not what is used: the decoy holds the answer too
    assert found.scores[list(found.methods).index("probe"), 0][circuit.decoys[0]] > 0.6


def test_attention_sees_nothing_of_a_relay():
    circuit, vlm = testbeds.circuit("relay"), si.load("testbed/relay")
    found = si.localise(vlm, [asked(6, "train")], circuit.heads, ["attention to object"])
    assert (found.scores == 0).all() and found.auroc() == 0.5
    assert found.precision() == pytest.approx(len(circuit.heads) / (vlm.n_layers * vlm.n_heads))


def test_auroc_and_precision_of_fixed_scores():
    scores = torch.tensor([[3.0, 1.0], [1.0, 0.0]])
    nothing = torch.full((1, 1), float("nan"))
    found = localisation.Localisation(("m",), ((0, 0), (0, 1)), scores[None, None], nothing, nothing)
    # (0, 0) beats both others, (0, 1) ties with one and beats one: 3.5 of 4 pairs
    assert found.auroc() == 0.875
    assert found.precision() == 0.75
    flat = localisation.Localisation(("m",), ((0, 0),), torch.zeros(1, 1, 2, 2), nothing, nothing)
    assert flat.auroc() == 0.5 and flat.precision() == 0.25


def test_localisation_survives_saving(tmp_path):
    circuit, vlm = testbeds.circuit("one-head"), si.load("testbed/one-head")
    draws = [si.load_questions("scenes/position", "train", n=8, seed=s) for s in (0, 1)]
    found = si.localise(vlm, draws, circuit.heads, ["patching", "gradient"])
    found.save(tmp_path / "found.safetensors")
    again = si.Localisation.load(tmp_path / "found.safetensors")
    assert again.to_frame().equals(found.to_frame()) and again.provenance["draws"] == 2
    curve = si.faithfulness(vlm, si.load_questions("scenes/position", n=8), localisation.ranking(found.scores[0, 0]))
    curve.save(tmp_path / "curve.safetensors")
    assert si.Faithfulness.load(tmp_path / "curve.safetensors").to_frame().equals(curve.to_frame())
    with pytest.raises(si.errors.FileError, match="is not a saved Localisation"):
        si.Localisation.load(tmp_path / "curve.safetensors")


def test_localise_refuses_what_makes_no_sense():
    vlm = si.load("testbed/one-head")
    train = si.load_questions("scenes/position", "train", n=6)
    with pytest.raises(si.errors.EditError, match="unknown method 'magic'"):
        si.localise(vlm, [train], [(1, 2)], ["magic"])
    with pytest.raises(si.errors.EditError, match="0 of 8 heads"):
        si.localise(vlm, [train], [])
    with pytest.raises(si.errors.LeakError):
        si.localise(vlm, [train], [(1, 2)], ["gradient"], faithful_on=train)
    with pytest.raises(si.errors.DataError, match="no draws"):
        si.localise(vlm, [], [(1, 2)])


def test_integrated_gradients_sum_to_what_all_heads_add(vlm):
    questions = si.load_questions("scenes/relation", n=6)
    found = si.integrated_gradients(vlm, questions, steps=64, metric="correct_prob")
    ends = si.run_edits(vlm, questions, si.Edit(scale=torch.stack([torch.zeros(6, 8), torch.ones(6, 8)])))
    from scale_interp.attribution.metric import measure

    added = measure("correct_prob", ends, questions).diff(dim=1)[:, 0]
    assert added.abs().min() > 0.1
    assert torch.allclose(found.per_question.sum((1, 2)), added, atol=0.01)
    with pytest.raises(si.errors.EditError, match="no gradient"):
        si.integrated_gradients(vlm, questions, metric="accuracy")


def test_faithfulness_against_single_edits(vlm):
    questions = si.load_questions("scenes/relation", n=12)
    order = [(layer, h) for layer in range(5, -1, -1) for h in range(8)]
    curve = si.faithfulness(vlm, questions, order, ks=(3,), mode="zero", metric="correct_prob")
    assert curve.ks == (0, 3, 48)
    from scale_interp.attribution.metric import measure

    L, H = vlm.n_layers, vlm.n_heads
    edits = [si.Edit.scaling(heads, 0.0, L, H) for heads in (order, order[3:], order[:3])]
    none, keep, remove = measure("correct_prob", si.run_edits(vlm, questions, edits), questions).mean(0)
    whole = measure("correct_prob", si.run_edits(vlm, questions), questions).mean()
    assert curve.curve("keep") == pytest.approx(((torch.stack([none, keep, whole]) - none) / (whole - none)).numpy(), abs=1e-4)
    assert curve.curve("remove")[1] == pytest.approx(float((remove - none) / (whole - none)), abs=1e-4)
    shares = np.array([0, 3, 48]) / 48
    assert curve.cpr == pytest.approx(np.trapezoid(curve.curve("keep"), shares))
    assert curve.cmd == pytest.approx(np.trapezoid(abs(1 - curve.curve("keep")), shares))
    low, high = curve.interval("cpr")
    assert low <= curve.cpr <= high
    with pytest.raises(si.errors.LeakError):
        si.faithfulness(vlm, questions, order, chosen_on=questions)
    with pytest.raises(si.errors.EditError, match="47 heads of 48"):
        si.faithfulness(vlm, questions, order[1:])


def test_planting_damages_the_named_heads_alone_and_says_so(healthy):
    questions = si.load_questions("scenes/relation", "validation", n=6)
    before = si.run_edits(healthy, questions)
    damaged = si.testbeds.plant(healthy, [(3, 0), (2, 5)], 0.25)
    assert "planted shortfall: (3, 0) (2, 5) x 0.25" in repr(damaged)
    said = si.evaluate(damaged, questions).provenance
    assert said["planted_shortfall"] == {"of": "demo-healthy", "heads": [[3, 0], [2, 5]], "factor": 0.25}
    assert torch.equal(si.run_edits(healthy, questions), before)
    ours, theirs = (dict(m.hf_model.named_parameters()) for m in (damaged, healthy))
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {f"model.language_model.layers.{i}.self_attn.o_proj.weight" for i in (2, 3)}
    weight, intact = (p["model.language_model.layers.3.self_attn.o_proj.weight"] for p in (ours, theirs))
    assert torch.equal(weight[:, :16], intact[:, :16] * 0.25) and torch.equal(weight[:, 16:], intact[:, 16:])


def test_a_scalar_undoes_a_planting_at_the_last_token():
    # one listed head read at the last token only: its planting is undone whole
    vlm, questions = si.load("testbed/one-head"), si.load_questions("scenes/position", n=8)
    damaged = si.testbeds.plant(vlm, [(1, 2)], 0.5)
    mended = si.run_edits(damaged, questions, si.Edit.scaling([(1, 2)], 2.0, 2, 4))
    assert torch.allclose(mended, si.run_edits(vlm, questions), atol=1e-4)
    assert not torch.allclose(si.run_edits(damaged, questions), si.run_edits(vlm, questions), atol=1e-2)


def test_planting_refuses_what_makes_no_sense(healthy):
    for heads, factor, said in (([], 0.5, "no heads"), ([(9, 0)], 0.5, "out of range"), ([(0, 0)], 1, "other than 1")):
        with pytest.raises(si.errors.EditError, match=said):
            si.testbeds.plant(healthy, heads, factor)
    with pytest.raises(si.errors.EditError, match="finite"):
        si.testbeds.plant(healthy, [(0, 0)], float("nan"))
    with pytest.raises(si.errors.ModelError, match="already"):
        si.testbeds.plant(si.testbeds.plant(healthy, [(0, 0)], 0.5), [(0, 1)], 0.5)
    with pytest.raises(si.errors.ModelError, match="no planting"):
        si.testbeds.planted("nothing")


def test_names_that_are_not_there(monkeypatch, tmp_path):
    with pytest.raises(si.errors.ModelError, match="testbed/one-head"):
        si.load("testbed/nothing")
    monkeypatch.setattr(testbeds, "folder", lambda name: tmp_path / name)
    with pytest.raises(si.errors.ModelError, match="testbed --rebuild"):
        si.load("testbed/one-head")


def test_construction_survives_training_and_training_resumes(tmp_path, monkeypatch):
    from dataclasses import replace

    from scale_interp.models.demo import recipe

    small = replace(testbeds.CIRCUITS["relay"], steps=6, questions=4)
    monkeypatch.setitem(testbeds.CIRCUITS, "relay", small)
    monkeypatch.setattr(training, "VISION_STEPS", 4)
    monkeypatch.setattr(recipe, "CHECKPOINT_EVERY", 2)

    class StopHere(Exception):
        pass

    def stop(stage, step, steps, loss):
        if stage == "relay" and step == 4:
            raise StopHere

    training.train("relay", tmp_path / "whole")
    with pytest.raises(StopHere):
        training.train("relay", tmp_path / "stopped", progress=stop)
    training.train("relay", tmp_path / "stopped")
    a, b = (load_file(tmp_path / run / "relay" / "model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    vlm = si.load(tmp_path / "whole" / "relay")
    assert Construction.of(small, vlm.hf_model).is_intact() and vlm.n_heads == 8
    free = build.untrained(small, 0)
    assert not torch.equal(free.lm_head.weight.bfloat16(), vlm.hf_model.lm_head.weight.bfloat16())


def test_decoys_loss_reads_their_own_heads():
    circuit = testbeds.CIRCUITS["one-head"]
    model = build.untrained(circuit, 0)
    last = training._LastToken(circuit, model)
    assert [r.in_features for r in last.readers] == [HEAD_DIM] and model.config.text_config.hidden_size == WIDTH
    last.seen[1] = torch.zeros(2, 4 * HEAD_DIM)
    last.seen[1][:, :HEAD_DIM] = 1.0
    nn.init.ones_(last.readers[0].weight)
    nn.init.zeros_(last.readers[0].bias)
    last.readers[0].weight.data[0] = 2.0
    first = sorted(["left", "right", "top", "bottom"])[0]
    assert last.loss([first, first]).item() == pytest.approx(float(np.log(1 + 3 * np.exp(-16.0))), abs=1e-6)


@pytest.fixture(scope="module")
def record():
    """What docs/testbeds.md says was measured."""
    return read_json(ROOT / "docs" / "studies" / "testbeds.json")


def test_docs_hold_the_promises(record):
    for name, found in record["circuits"].items():
        rows = {r["method"]: r for r in found["methods"]}
        assert set(rows) == set(localisation.METHODS), name
        assert all(rows[m]["auroc"] >= 0.99 for m in ABLATIONS)
        assert [row["pairs"] for row in found["positions"]] == ["left or right", "top or bottom"]
        assert all(row["auroc"] == 1 and row["lowest_feeding"] > 0.9 and row["largest_other"] < 0.1 for row in found["positions"]), name
    plantings = {p["planting"]: p for p in record["plantings"]}
    assert {name.split(",")[0] for name in plantings} == set(testbeds.PLANTINGS)
    for name in ("loud", "inverted", "soft-relay"):
        found = plantings[f"{name}, penalty 1"]
        assert found["auroc |log s|"] == 1 and found["recovered_low"] > 0.4


@pytest.mark.full
def test_the_docs_numbers_of_circuits_are_measured_again(bed, record):
    circuit, vlm = bed
    written = record["circuits"][f"testbed/{circuit.name}"]
    assert written["known"] == [list(head) for head in circuit.heads]
    assert written["accuracy"]["accuracy"] == pytest.approx(si.evaluate(vlm, asked(200)).accuracy, abs=0.01)
    rows = {r["method"]: r for r in written["methods"]}
    draws = [si.load_questions("scenes/position", "train", n=60, seed=seed) for seed in range(written["provenance"]["draws"])]
    found = si.localise(vlm, draws, circuit.heads, ABLATIONS)
    assert found.auroc().mean(1) == pytest.approx([rows[m]["auroc"] for m in ABLATIONS], abs=0.02)
    assert found.precision().mean(1) == pytest.approx([rows[m]["precision"] for m in ABLATIONS], abs=0.02)
    assert localise_positions(vlm, draws[:1], circuit)["auroc"].tolist() == [row["auroc"] for row in written["positions"]]


@pytest.mark.full
@pytest.mark.parametrize("name", testbeds.PLANTINGS)
def test_the_docs_numbers_of_plantings_are_measured_again(record, name):
    written = next(p for p in record["plantings"] if p["planting"] == f"{name}, penalty 1")
    damaged, planting = testbeds.planted(name), testbeds.PLANTINGS[name]
    train, test = si.load_questions(planting.data, "train", n=200), si.load_questions(planting.data, "test", n=400)
    found = si.recover(damaged, si.load(planting.model), train, test, seeds=1, l1=1.0, bound="exp", radius=2.5)
    assert float(found.intact.mean()) == pytest.approx(written["intact"], abs=0.01)
    assert float(found.damaged.mean()) == pytest.approx(written["damaged"], abs=0.01)
    assert written["recovered_low"] - 0.1 <= found.recovered()[0] <= written["recovered_high"] + 0.1
    if written["auroc |log s|"] == 1:
        assert sorted(found.ranks()[0].tolist()) == list(range(1, len(planting.heads) + 1))


def test_training_silences_other_heads_at_the_last_token_alone():
    circuit = testbeds.CIRCUITS["three-heads"]
    last = training._LastToken(circuit, build.untrained(circuit, 0))
    last.draw = torch.Generator().manual_seed(0)
    passed = last._pass(2, torch.ones(200, 5, 8 * HEAD_DIM)).unflatten(-1, (8, HEAD_DIM))
    assert (passed[:, [0, 1, 2, 4]] == 1).all() and (passed[:, 3, 1] == 1).all()
    others = [h for h in range(8) if h != 1]
    assert 0.2 < float((passed[:, 3, others] == 0).float().mean()) < 0.4
