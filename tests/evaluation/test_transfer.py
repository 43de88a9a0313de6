"""Transfer between tasks, what a gain costs elsewhere, and how few scalars it needs."""

import numpy as np
import pytest
import torch

import scale_interp as si
from scale_interp import viz
from scale_interp.adapters.scale.fit import fit_scale
from scale_interp.core.statistics import holm, paired_difference
from scale_interp.errors import DataError, EditError, FileError, LeakError
from scale_interp.evaluation.retention import TOLERANCE

TASKS = ("relation", "position", "exists")


def questions(split, n, tasks=TASKS):
    return {task: si.load_questions(f"scenes/{task}", split=split, n=n) for task in tasks}


@pytest.fixture(scope="module")
def tasks():
    return questions("train", 48), questions("test", 40)


@pytest.fixture(scope="module")
def moved(vlm, tasks):
    return si.transfer(vlm, *tasks, epochs=3, lr=0.3)


@pytest.fixture(scope="module")
def curve(vlm, tasks):
    train, test = tasks
    return si.retention_curve(vlm, train["relation"], test["relation"], train["exists"], test["exists"], (100.0, 0.0), epochs=4, lr=0.3)


@pytest.fixture(scope="module")
def path(vlm, tasks):
    train, test = tasks
    return si.sparsity_path(vlm, train["relation"], test["relation"], (1.0, 30.0), (1, 4, 48), epochs=6)


def test_a_cell_is_a_fit_on_one_task_and_answers_on_another(vlm, tasks, moved):
    train, test = tasks
    scale = fit_scale(vlm, train["position"], epochs=3, lr=0.3)
    base, fitted = si.evaluate(vlm, test["exists"]), si.evaluate(vlm, test["exists"], scale)
    wanted = fitted.compare(base)
    cell = next(r for r in moved.rows if (r["fitted_on"], r["tested_on"]) == ("position", "exists"))
    assert (cell["gain"], cell["low"], cell["high"], cell["p"]) == pytest.approx((wanted.mean, wanted.low, wanted.high, wanted.p))
    assert (cell["base"], cell["accuracy"]) == pytest.approx((base.accuracy, fitted.accuracy))


def test_transfer_matrix_and_correction(moved):
    assert moved.fitted == moved.tested == list(TASKS)
    matrix = moved.matrix()
    assert matrix.shape == (3, 3) and list(matrix.index) == list(TASKS)
    assert matrix.loc["relation", "exists"] == next(
        r["gain"] for r in moved.rows if (r["fitted_on"], r["tested_on"]) == ("relation", "exists")
    )
    assert np.allclose([r["p_corrected"] for r in moved.rows], holm(np.array([r["p"] for r in moved.rows])))
    with pytest.raises(DataError, match="no column"):
        moved.matrix("loss")


def test_transfer_is_saved_whole(moved, tmp_path):
    moved.save(tmp_path / "transfer.json")
    again = si.Transfer.load(tmp_path / "transfer.json")
    assert again.rows == moved.rows and again.about == moved.about and again.verdict == moved.verdict
    assert "fitted on" in again._repr_html_()
    with pytest.raises(FileError):
        si.RetentionCurve.load(tmp_path / "transfer.json")


def test_transfer_figure_shows_every_value(moved):
    figure = viz.transfer_heatmap(moved)
    assert np.allclose(figure.data[0].z, moved.matrix())
    texts = [a.text.strip("</b>") for a in figure.layout.annotations]
    assert sorted(texts) == sorted(f"{r['gain']:+.2f}" for r in moved.rows)


def test_transfer_refuses_leaks_and_nothing(vlm, tasks):
    train, test = tasks
    with pytest.raises(LeakError):
        si.transfer(vlm, train, {"relation": train["relation"]})
    with pytest.raises(DataError, match="no tasks"):
        si.transfer(vlm, {}, test)


@pytest.mark.full
def test_a_retained_fit_moves_other_answers_less(vlm, tasks, curve):
    free, kept = curve.rows
    assert (free["weight"], kept["weight"]) == (0, 100)
    assert abs(kept["others_change"]) <= abs(free["others_change"])
    train, test = tasks
    scale = si.fit_scale(vlm, train["relation"], epochs=4, lr=0.3)
    wanted = paired_difference(*(si.evaluate(vlm, test["exists"], s).per_question.numpy() for s in (scale, None)), np.arange(40))
    assert free["others_change"] == pytest.approx(wanted.mean)
    assert np.allclose(
        [r[f"{s}p_corrected"] for s in ("", "others_change_") for r in curve.rows],
        holm(np.array([r[f"{s}p"] for s in ("", "others_change_") for r in curve.rows])),
    )


def test_retention_verdict_is_of_the_rows(curve):
    rows = [r for r in curve.rows if r["others_change_low"] > -TOLERANCE]
    assert (f"is {rows[0]['weight']:g}, gain" in curve.verdict) if rows else ("no weight" in curve.verdict)
    figure = viz.retention_curve(curve)
    assert list(figure.data[0].x) == [r["gain"] for r in curve.rows]
    assert [t.name for t in figure.data[1:]] == ["weight 0", "weight 100"]


def test_retention_refuses_what_it_cannot_do(vlm, tasks):
    train, test = tasks
    with pytest.raises(LeakError):
        si.retention_curve(vlm, train["relation"], test["relation"], test["exists"], test["exists"])
    with pytest.raises(EditError, match="weights"):
        si.retention_curve(vlm, train["relation"], test["relation"], train["exists"], test["exists"], (-1.0,))


@pytest.mark.full
def test_a_stronger_penalty_leaves_fewer_scalars(path):
    rows = path.of("l1").rows
    assert [r["value"] for r in rows] == [0, 1, 30]
    assert rows[0]["moved"] >= rows[1]["moved"] >= rows[2]["moved"] and rows[0]["moved"] > rows[2]["moved"]


def test_cuts_are_of_the_full_fit(vlm, tasks, path):
    train, test = tasks
    full = si.fit_scale(vlm, train["relation"], mlp=False, epochs=6)
    assert path.about["order"] == [list(h) for h, _ in full.ranking()]
    cut = {r["moved"]: r for r in path.of("cut").rows}
    whole = path.of("l1").rows[0]
    assert cut[48]["accuracy"] == whole["accuracy"] and cut[48]["full_minus"] == 0
    scalars = torch.ones_like(full.scalars)
    for head, value in full.ranking()[:4]:
        scalars[head] = value
    assert cut[4]["accuracy"] == pytest.approx(si.evaluate(vlm, test["relation"], si.Edit(scale=scalars[None])).accuracy)
    refit = si.fit_scale(vlm, train["relation"], [h for h, _ in full.ranking()[:1]], mlp=False, epochs=6)
    assert path.of("refit").rows[0]["accuracy"] == pytest.approx(si.evaluate(vlm, test["relation"], refit).accuracy)


def test_enough_is_the_fewest_within_tolerance(path):
    for kind in ("l1", "cut", "refit"):
        near = [r["moved"] for r in path.of(kind).rows if r["full_minus_high"] < TOLERANCE]
        row = path.enough(kind)
        assert (row["moved"] == min(near)) if near else (row is None)
    assert "heads" in path.verdict and len(viz.sparsity_path(path).data) == 3


def test_sparsity_refuses_what_it_cannot_do(vlm, tasks):
    train, test = tasks
    with pytest.raises(EditError, match="k from 1 to 48"):
        si.sparsity_path(vlm, train["relation"], test["relation"], kept=(49,))
    with pytest.raises(LeakError):
        si.sparsity_path(vlm, train["relation"], train["relation"])
