import numpy as np
import pytest
import torch

import scale_interp as si
from scale_interp import viz
from scale_interp.adapters.steering.direction import AnswerDirection, answer_direction, answer_directions
from scale_interp.adapters.steering.emphasis import Interventions, emphasise, function_matrix, intervene
from scale_interp.attribution.answer_tokens import answer_activations
from scale_interp.attribution.functional import FunctionalHeads, functional_heads, joint_importance
from scale_interp.attribution.head_probe import ProbeMap, held_out_guesses, permutation_p, permuted, probe
from scale_interp.attribution.joint_probe import fit_joint_probe, importance
from scale_interp.attribution.metric import measure
from scale_interp.attribution.removal import RemovalCurve, remove_heads_curve
from scale_interp.data.decomposed import cog_questions
from scale_interp.data.items import require_disjoint
from scale_interp.data.readers.cogvsr import subquestions
from scale_interp.errors import ArgumentError, DataError, EditError, FileError, LeakError
from tests.support.oracle import plain_inputs

L, H, D, F = 4, 6, 8, 3
OWN = (((0, 1), (2, 5)), ((1, 0),), ((3, 2), (3, 4), (1, 3)))
"""The heads that speak up for each of three functions."""


@pytest.fixture(scope="module")
def planted():
    """Activations [Q, L, H, D] of noise; each function's heads gain a vector of their own on its questions."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.arange(360) % F
    z = torch.randn(360, L, H, D, generator=draw)
    for function, heads in enumerate(OWN):
        for layer, head in heads:
            z[codes == function, layer, head] += 3 * torch.nn.functional.normalize(torch.randn(D, generator=draw), dim=0)
    return z, codes.numpy(), np.arange(360) // 6


def auroc(scores, heads):
    """Share of (planted, other) pairs of heads that are in the right order."""
    on = torch.zeros(L, H, dtype=torch.bool)
    for head in heads:
        on[head] = True
    scores = torch.as_tensor(scores)
    gaps = scores[on][:, None] - scores[~on][None]
    return float((gaps > 0).double().mean() + 0.5 * (gaps == 0).double().mean())


@pytest.fixture(scope="module")
def joint(planted):
    z, codes, group = planted
    return joint_importance(z, codes, group, ("a", "b", "c"), tuple(map(str, range(60))), {"n": 360}, permutations=17, epochs=6)


@pytest.fixture(scope="module")
def guesses(planted):
    z, codes, group = planted
    return held_out_guesses(z.numpy(), codes, group, folds=2)


@pytest.fixture(scope="module")
def steps():
    return subquestions(cog_questions("train", n=32))


@pytest.fixture(scope="module")
def found(vlm, steps):
    return functional_heads(vlm, steps, positions="first", epochs=5, permutations=2)


def test_head_probes_find_the_planted_heads(planted, guesses):
    _, codes, group = planted
    score = (guesses == codes[:, None, None]).mean(0)
    every = [head for heads in OWN for head in heads]
    assert auroc(score, every) >= 0.99
    p = permutation_p(guesses, codes, group, 500, 0)
    assert all(p[head] < 0.01 for head in every) and (p < 0.05).sum() <= len(every) + 1


def test_head_probes_are_at_chance_on_permuted_labels(planted):
    z, codes, group = planted
    shuffled = permuted(codes, group, np.random.default_rng(1))
    assert (shuffled != codes).mean() > 0.5
    guesses = held_out_guesses(z.numpy(), shuffled, group, folds=2)
    score = (guesses == shuffled[:, None, None]).mean(0)
    assert abs(score.mean() - 1 / F) < 0.02 and score.max() < 1 / F + 0.1
    assert permutation_p(guesses, shuffled, group, 500, 0).min() > 0.01


def test_permuting_keeps_pictures_together():
    group = np.repeat(np.arange(40), [2, 3] * 20)
    whole = permuted(group % 3, group, np.random.default_rng(0))
    assert all(len(set(whole[group == g])) == 1 for g in range(40)) and (whole != group % 3).any()
    within = np.arange(len(group)) % 2
    assert sorted(permuted(within, group, np.random.default_rng(0))) == sorted(within)


def test_the_joint_probe_finds_each_functions_heads(joint):
    assert joint.accuracy >= 0.95 and joint.accuracy_p == pytest.approx(1 / 18)
    for function, heads in zip(joint.functions, OWN, strict=True):
        assert auroc(joint.map(function).scores.abs(), heads) >= 0.99
        assert set(joint.ranking(function)[: len(heads)]) == set(heads)


def test_the_joint_probe_is_at_chance_on_permuted_labels(joint):
    n = len(joint.codes)
    assert abs(float(joint.null_accuracy.mean()) - 1 / F) < 4 * (2 / 9 / n / 17) ** 0.5 + 0.02
    assert float(joint.null_accuracy.max()) < 0.5


def test_sparsity_is_a_test_against_permuted_labels(joint):
    frame = joint.to_frame().set_index("function")
    for function, heads in zip(joint.functions, OWN, strict=True):
        row = frame.loc[function]
        assert row["heads_low"] <= len(heads) <= row["heads_high"] + 1 and row["share"] == row["heads"] / (L * H)
        assert row["gini_low"] <= row["gini"] <= row["gini_high"] and row["gini"] > row["null_gini"] and row["p_sparse"] < 0.06
    layers = joint.layers()
    assert len(layers) == F * L and (layers.groupby("function")["heads"].sum() == frame["heads"]).all()
    overlap = joint.overlap()
    assert len(overlap) == 3 and (overlap["jaccard"] <= 0.25).all()
    assert joint.fewer(["b"]).mean < 0 < joint.fewer(["c"]).mean
    assert set(joint.latent("b")).isdisjoint(joint.heads("b")) and len(joint.latent("b", 3)) == 3


def test_answer_activations_follow_the_answer(vlm, mixed):
    got = {positions: answer_activations(vlm, mixed, positions) for positions in ("first", "last", "all")}
    assert torch.allclose(got["first"], si.capture(vlm, mixed).z)
    for q, question in enumerate(mixed):
        inputs = plain_inputs(vlm, question)
        T = inputs["input_ids"].shape[1]
        ids = vlm.hf_model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
        ends = (ids == vlm.tokenizer.eos_token_id).nonzero().flatten()
        told = ids[: int(ends[0])] if len(ends) else ids[:-1]
        seen = []
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
            for layer in vlm.decoder.layers
        ]
        with torch.no_grad():
            vlm.hf_model(**inputs | {"input_ids": told[None], "attention_mask": torch.ones_like(told[None])})
        for hook in hooks:
            hook.remove()
        z = torch.stack(seen).view(6, len(told), 8, 16)[:, T - 1 :]
        assert len(told) > T
        assert torch.allclose(got["all"][q], z.mean(1), atol=1e-4)
        assert torch.allclose(got["last"][q], z[:, -1], atol=1e-4)


def test_probe_of_a_model(vlm, tmp_path):
    questions = si.load_questions("scenes/relation", "train", n=60)
    m = probe(vlm, questions, label="relation", folds=2, permutations=200)
    assert m.scores.shape == (6, 8) and m.chance == 0.25 and m.classes == ("above", "below", "left", "right")
    (best,) = m.top(1)
    assert m.scores[best] > 0.5 and m.significant()[best] and not m.significant().all()
    m.save(tmp_path / "m.safetensors")
    again = ProbeMap.load(tmp_path / "m.safetensors")
    assert torch.equal(again.per_question, m.per_question) and torch.equal(again.p_values, m.p_values)
    assert (again.classes, again.chance, again.provenance) == (m.classes, m.chance, m.provenance)
    with pytest.raises(FileError, match="is not a saved HeadMap"):
        si.HeadMap.load(tmp_path / "m.safetensors")


def test_functional_heads_survive_the_disk(found, tmp_path):
    found.save(tmp_path / "f.safetensors")
    again = FunctionalHeads.load(tmp_path / "f.safetensors")
    assert again.to_frame().equals(found.to_frame()) and again.pictures == found.pictures and again.provenance == found.provenance
    again.save(tmp_path / "g.safetensors")
    assert (tmp_path / "f.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()
    assert len(found.pictures) == 32 and "probe right on" in repr(found)


def test_held_out_questions_share_no_picture_with_the_rest(found, steps):
    scored = {q.group for q in steps} - set()
    assert len(set(found.groups.tolist())) == round(0.4 * len(scored))
    assert len(found.codes) == 7 * round(0.4 * len(scored))


@pytest.fixture(scope="module")
def by_ablation(vlm):
    return si.ablate(vlm, si.load_questions("scenes/relation", "train", n=60)).top(48)


def test_removing_heads_that_matter_hurts_more_than_random_ones(vlm, by_ablation, tmp_path):
    test = si.load_questions("scenes/relation", "test", n=60)
    curve = remove_heads_curve(vlm, test, by_ablation, (1, 4, 8), draws=4)
    area = curve.area()
    assert area.mean < 0 and area.high < 0 and area.p < 0.01
    by_hand = si.run_edits(vlm, test, si.Edit.scaling(by_ablation[:4], 0.0, 6, 8))
    assert np.array_equal(curve.values(4, "top"), measure("accuracy", by_hand, test)[:, 0].numpy())
    kept = si.run_edits(vlm, test, si.Edit.scaling(by_ablation[8:], 0.0, 6, 8))
    assert np.array_equal(curve.values(8, "keep"), measure("accuracy", kept, test)[:, 0].numpy())
    low = si.run_edits(vlm, test, si.Edit.scaling(by_ablation[-8:], 0.0, 6, 8))
    assert np.array_equal(curve.values(8, "low"), measure("accuracy", low, test)[:, 0].numpy())
    assert curve.base.mean() == pytest.approx(si.evaluate(vlm, test).accuracy)
    assert len(curve.differences()) == 3 and (curve.to_frame()["low"] <= curve.to_frame()["high"]).all()
    curve.save(tmp_path / "c.safetensors")
    again = RemovalCurve.load(tmp_path / "c.safetensors")
    assert again.to_frame().equals(curve.to_frame()) and again.provenance == curve.provenance
    assert again.differences().equals(curve.differences())


def test_random_sets_are_compared_one_by_one():
    """Two of four random sets lower the metric as far as the first k do."""
    per_question = torch.tensor([[0.0, 0.5, 1, 1], [1, 0.5, 1, 1]]).repeat(10, 1)[:, None]
    curve = RemovalCurve((2,), "accuracy", per_question, torch.tensor([[0.4, 0.5, 0.6, 0.7]]).double(), torch.ones(20), torch.arange(20))
    assert curve.differences()["p_draws"].item() == pytest.approx(3 / 5)
    assert curve.differences()["difference"].item() == 0


def test_the_released_factor_is_as_good_as_zero(vlm, by_ablation):
    test = si.load_questions("scenes/relation", "test", n=20)
    zero, released = (remove_heads_curve(vlm, test, by_ablation, (4,), draws=1, factor=f, metric="logit_diff") for f in (0.0, 1e-4))
    assert 0 < (zero.per_question - released.per_question).abs().max() < 0.01


@pytest.fixture(scope="module")
def direction(vlm):
    return answer_direction(vlm, si.load_questions("scenes/relation", "train", n=80))


def test_the_direction_leads_from_wrong_to_right_answers(vlm, direction):
    train = si.load_questions("scenes/relation", "train", n=80)
    acts = si.capture(vlm, train)
    right = acts.logits.argmax(1) == torch.tensor([q.answer for q in train])
    z = acts.z[:, 3, 1].numpy()
    gap = z[right.numpy()].mean(0) - z[~right.numpy()].mean(0)
    unit = gap / np.linalg.norm(gap)
    assert np.allclose(direction.unit[3, 1].numpy(), unit, atol=1e-5)
    edit = direction.edit([(3, 1)], alpha=5)
    assert np.allclose(edit.shift[0, 3, 1].numpy(), 5 * (z @ unit).std(ddof=1) * unit, atol=1e-4)
    assert int((edit.shift != 0).any(-1).sum()) == 1


def test_emphasis_over_a_grid(vlm, direction, tmp_path):
    test = si.load_questions("scenes/relation", "test", n=40)
    heads = [(3, 1), (2, 2)]
    made = emphasise(vlm, test, heads, direction, alphas=(5.0,), gains=(1.0, 2.0), by="relation")
    assert made.names == ("gain 1", "gain 2", "alpha 5") and not made.change[0].any()
    by_hand = measure("accuracy", si.run_edits(vlm, test, direction.edit(heads, 5.0)), test)[:, 0]
    assert torch.equal(made.per_question[:, 2], by_hand)
    frame = made.to_frame()
    assert len(frame) == 12 and np.allclose(frame["accuracy"] - frame["base"], frame["change"])
    made.save(tmp_path / "i.safetensors")
    again = Interventions.load(tmp_path / "i.safetensors")
    assert again.to_frame().equals(frame) and again.provenance == made.provenance
    direction.save(tmp_path / "d.safetensors")
    assert torch.equal(AnswerDirection.load(tmp_path / "d.safetensors").edit(heads, 2.0).shift, direction.edit(heads, 2.0).shift)


def test_the_function_matrix(vlm, found):
    test = subquestions(cog_questions("test", n=12))
    matrix = function_matrix(vlm, test, found)
    assert matrix.names == matrix.functions == found.functions and matrix.change.shape == (7, 7)
    by_hand = si.run_edits(vlm, test, si.Edit.scaling(found.heads("counting"), 0.0, 6, 8))
    assert torch.equal(matrix.per_question[:, matrix.names.index("counting")], measure("accuracy", by_hand, test)[:, 0])
    table = matrix.specificity()
    assert np.allclose(table["own"] - table["others"], table["difference"])
    row = table.set_index("function").loc["counting"]
    own = matrix.change[matrix.names.index("counting"), matrix.functions.index("counting")]
    assert row["own"] == pytest.approx(float(own))
    assert matrix.provenance["heads"]["counting"] == [list(head) for head in found.heads("counting")]
    gained = function_matrix(vlm, test, found, "gain", gain=1.0, latent=True)
    assert not gained.change.any()


def test_functions_without_wrong_answers_have_no_direction(vlm, found):
    asked = ("relational reasoning", "spatial perception", "inference")
    train = [q for q in subquestions(cog_questions("train", n=28)) if q.meta["function"] in asked]
    directions = answer_directions(vlm, train)
    right = si.evaluate(vlm, train).by("function").set_index("function")
    wrong = ((1 - right["accuracy"]) * right["n"]).round()
    assert directions.keys() == set(wrong.index[wrong >= 5]) and "spatial perception" not in directions
    own = [q for q in train if q.meta["function"] == "relational reasoning"]
    assert torch.equal(directions["relational reasoning"].unit, answer_direction(vlm, own).unit)
    test = [q for q in subquestions(cog_questions("test", n=8)) if q.meta["function"] in asked]
    matrix = function_matrix(vlm, test, found, "direction", directions=directions)
    assert set(matrix.names) == directions.keys() and "counting" in matrix.provenance["without_direction"]
    edit = directions["inference"].edit(found.heads("inference"), 5.0)
    by_hand = measure("accuracy", si.run_edits(vlm, test, edit), test)[:, 0]
    assert torch.equal(matrix.per_question[:, matrix.names.index("inference")], by_hand)


def test_the_best_edit_is_chosen_by_its_metric():
    per_question = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 0]])
    made = Interventions(
        ("gain 1", "gain 2", "gain 4", "alpha 1"), ("a",), "accuracy", per_question, torch.zeros(2), torch.zeros(2), torch.arange(2)
    )
    assert (made.best(), made.best("gain"), made.best("alpha")) == ("gain 2", "gain 2", "alpha 1")
    assert made.difference("gain 1").mean == 0.5


def test_nothing_is_tested_on_pictures_that_chose_it(vlm, found, steps, direction):
    with pytest.raises(LeakError, match="both training and test"):
        function_matrix(vlm, steps, found)
    train = si.load_questions("scenes/relation", "train", n=80)
    with pytest.raises(LeakError, match="both training and test"):
        emphasise(vlm, train, [(3, 1)], direction)
    with pytest.raises(LeakError, match="both training and test"):
        emphasise(vlm, train, [(3, 1)], chosen_on=train[:1])
    with pytest.raises(LeakError, match="both training and test"):
        remove_heads_curve(vlm, steps, found.ranking("counting"), (1,), chosen_on=found.pictures)
    require_disjoint(found.pictures, subquestions(cog_questions("test", n=4)))
    require_disjoint(steps, subquestions(cog_questions("test", n=4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, s, f: probe(v, s, label="colour"), "has no 'colour'"),
        (lambda v, s, f: probe(v, s, label=lambda q: "same"), "at least two"),
        (lambda v, s, f: probe(v, s[:14], label="function"), "fewer than the 5 parts"),
        (lambda v, s, f: answer_activations(v, s[:1], "middle"), "choose 'first'"),
        (lambda v, s, f: functional_heads(v, s, held_out=1.0), "held_out=1.0"),
        (lambda v, s, f: functional_heads(v, s, permutations=0), "permutations=0"),
        (lambda v, s, f: f.heads("smell"), "unknown function 'smell'"),
        (lambda v, s, f: f.fewer(f.functions), "leave some"),
        (lambda v, s, f: remove_heads_curve(v, s, [(0, 0)]), "give all of them"),
        (lambda v, s, f: remove_heads_curve(v, s, f.ranking("counting"), (25,)), "half of all"),
        (lambda v, s, f: intervene(v, s, {}), "no edits"),
        (lambda v, s, f: function_matrix(v, subquestions(cog_questions("test", n=4)), f, "direction"), "no direction for any"),
        (lambda v, s, f: function_matrix(v, subquestions(cog_questions("test", n=4)), f, "hide"), "choose 'remove'"),
        (lambda v, s, f: answer_direction(v, si.load_questions("scenes/shape", "train", n=1)), "questions of both kinds"),
        (lambda v, s, f: function_matrix(v, subquestions(cog_questions("test", n=4)), f).best("alpha"), "no edit begins"),
        (lambda v, s, f: intervene(v, s[:7], {"none": si.Edit.identity(6, 8)}).specificity(), "no edit is named"),
    ],
)
def test_wrong_requests_are_refused(vlm, steps, found, call, message):
    with pytest.raises((ArgumentError, DataError, EditError), match=message):
        call(vlm, steps, found)


def test_the_layer_histogram_shows_the_heads_above_the_elbow(joint):
    figure, table = joint.plot(), joint.layers()
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [list(bar.y) for bar in bars] == [list(own["heads"]) for _, own in table.groupby("function")]
    assert figure.layout.annotations[1].text.startswith(f"b<br>{len(joint.heads('b'))} of 24 heads")
    lines = [trace for trace in figure.data if trace.type == "scatter"]
    assert all(np.allclose(line.y, table["null"][:L]) for line in lines)
    assert joint.plot(dark=True).layout.template.layout.paper_bgcolor != figure.layout.template.layout.paper_bgcolor


def test_the_matrix_figure_marks_what_differs():
    draw = torch.Generator().manual_seed(0)
    base = torch.ones(60)
    per_question = torch.stack([torch.zeros(60), (torch.rand(60, generator=draw) < 0.97).float()], 1)
    made = Interventions(("a", "b"), ("a", "b"), "accuracy", per_question, base, torch.arange(60) % 2, torch.arange(60))
    cells, values = made.plot(dark=True).data
    assert np.allclose(cells.z, made.change.numpy())
    assert values.text[:2] == ("-1.00*", "-1.00*") and not any("*" in text for text in values.text[2:])
    assert len(made.plot().layout.shapes) == 2


def test_removal_curves_show_the_means(vlm, by_ablation):
    curve = remove_heads_curve(vlm, si.load_questions("scenes/relation", "test", n=60), by_ablation, (1, 4), draws=4)
    figure, table = curve.plot(), curve.to_frame()
    lines = {trace.legendgroup: trace for trace in figure.data if trace.legendgroup}
    for kind, own in table.groupby("heads"):
        assert list(lines[kind].y) == list(own["accuracy"])
    filled = [symbol == "circle" for symbol in lines["top"].marker.symbol]
    assert filled == list(curve.differences()["p"] < 0.05) and any(filled)
    both = viz.removal_curves({"one": curve, "two": curve}, dark=True)
    assert [a.text for a in both.layout.annotations] == ["one", "two"]
    with pytest.raises(DataError, match="no curves"):
        viz.removal_curves({})


def test_a_probe_maps_figure_speaks_of_chance(planted, guesses):
    _, codes, group = planted
    hits = torch.from_numpy((guesses == codes[:, None, None]).astype(np.float32))
    p = torch.from_numpy(permutation_p(guesses, codes, group, 200, 0))
    m = ProbeMap("probe", "held-out accuracy", hits, torch.from_numpy(group), {}, p=p, classes=("a", "b", "c"), chance=1 / F)
    assert "above chance" in m.plot().layout.title.subtitle.text


def test_damaged_files_are_refused(found, tmp_path):
    path = tmp_path / "f.safetensors"
    found.save(path)
    for kind in (ProbeMap, RemovalCurve, Interventions, AnswerDirection):
        with pytest.raises(FileError, match="but 'FunctionalHeads'"):
            kind.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="damaged"):
        FunctionalHeads.load(path)


def test_the_released_probe_is_the_published_loop(planted):
    """Single questions in their order, unscaled inputs, AdamW 1e-4; gradient x activation averaged over the 64 numbers."""
    z, codes = planted[0][:24, :2, :3], torch.from_numpy(np.asarray(planted[1][:24]))
    ours = fit_joint_probe(z, codes, F, 2, seed=3, recipe="release")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        x = torch.cat([z, z.mean(2, keepdim=True).expand_as(z)], -1).reshape(24, 6, 2 * D)
        project = torch.nn.Linear(2 * D, 64)
        read = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64 * 6, 512), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(512, F)
        )
        optimiser = torch.optim.AdamW([*project.parameters(), *read.parameters()], lr=1e-4)
        for _ in range(2):
            for q in range(24):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(read(project(x[q : q + 1])), codes[q : q + 1]).backward()
                optimiser.step()
    read.eval()
    assert torch.allclose(ours.project.weight, project.weight, atol=1e-6) and torch.allclose(ours.read[4].weight, read[4].weight, atol=1e-6)
    found, said = importance(ours, z, codes, "release")
    for q in range(4):
        projected = project(x[q : q + 1]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(read(projected)[0, codes[q]], projected)
        assert torch.allclose(found[q].flatten(), (slope * projected).mean(-1)[0], atol=1e-7)
    assert torch.allclose(importance(ours, z, codes)[0], 64 * found, atol=1e-6)
    assert torch.equal(said, read(project(x)).argmax(1))
    assert not torch.allclose(fit_joint_probe(z, codes, F, 2, seed=3).project.weight, project.weight, atol=1e-4)


@pytest.mark.full
def test_functional_heads_by_the_released_recipe(vlm):
    steps = si.subquestions(si.cog_questions("train", n=12))
    found = functional_heads(vlm, steps, permutations=1, recipe="release", epochs=2)
    assert found.provenance["recipe"] == "release" and found.provenance["epochs"] == 2
    assert "recipe" not in functional_heads(vlm, steps, permutations=1, epochs=1).provenance
