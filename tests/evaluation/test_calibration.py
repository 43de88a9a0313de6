"""The calibration counts what happened, and a stopped one goes on; tiny suites, so that no share here means anything."""

import json
import shutil

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli, viz
from scale_interp.errors import DataError, DataWarning, FileError
from scale_interp.evaluation.falsification import calibration
from scale_interp.evaluation.falsification.calibration import NULL, PLANTED, Calibration, Share, Suites, _random_answers, calibrate
from scale_interp.jobs.calibrate import run_calibration

SMALL = Suites(n_train=24, n_test=16, seeds=1, epochs=2, shortfalls=((((2, 4), (4, 3)), 0.25),))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "suites"
    return calibrate(2, 1, folder=folder, of=SMALL), folder


@pytest.mark.full
def test_every_suite_is_there_with_questions_of_its_own(ran):
    found, _ = ran
    assert [(r["kind"], r["number"]) for r in found.rows] == [(NULL, 0), (NULL, 1), (PLANTED, 0)]
    assert len({r["seed"] for r in found.rows}) == len({r["registration"] for r in found.rows}) == 3
    assert all(r["frozen_changed"] == r["frozen_bits_changed"] == 0 for r in found.rows)
    assert found.rows[0]["model"] == "demo" and "planted shortfall: (2, 4) (4, 3) x 0.25" in found.rows[2]["model"]
    assert found.about["n_test"] == 16 and set(found.to_frame()["kind"]) == {NULL, PLANTED}


@pytest.mark.full
def test_a_stopped_calibration_goes_on_and_gives_the_same(ran, tmp_path, monkeypatch):
    found, whole = ran
    stopped = tmp_path / "suites"
    shutil.copytree(whole, stopped)
    manifest = json.loads((stopped / "manifest.json").read_text())
    last = list(manifest["steps"])[-1]
    # Two suites done, the third one's file cut short by a crash, and its step not recorded.
    (cut,) = manifest["steps"].pop(last)
    (stopped / cut).write_bytes((stopped / cut).read_bytes()[:20])
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    asked = []
    suite = calibration._suite
    monkeypatch.setattr(calibration, "_suite", lambda kind, number, *rest: asked.append((kind, number)) or suite(kind, number, *rest))
    again = calibrate(2, 1, folder=stopped, of=SMALL)
    assert [f"{kind} {number}" for kind, number in asked] == [last]
    assert again.rows == found.rows
    assert {p.name for p in stopped.glob("*-*.json")} == {p.name for p in whole.glob("*-*.json")} and len(
        list(stopped.glob("*-*.json"))
    ) == 3
    path = stopped / "no-signal-0000.json"
    harmed = path.read_text().replace('"accuracy": 0.', '"accuracy": 1.', 1)
    assert harmed != path.read_text()
    path.write_text(harmed)
    with pytest.warns(DataWarning, match="checksum differs"):
        assert calibrate(2, 1, folder=stopped, of=SMALL).rows == found.rows
    assert len(asked) == 2
    with pytest.raises(FileError, match="another calibration"):
        calibrate(2, 1, folder=stopped, of=Suites(n_train=25))


@pytest.mark.full
def test_it_survives_the_disk(ran, tmp_path):
    found, _ = ran
    found.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json")
    assert again.rows == found.rows and again.shares() == found.shares() and dict(again.about) == dict(found.about)
    (tmp_path / "c.json").write_text('{"method": "Calibration"}')
    with pytest.raises(FileError, match="is not a Calibration"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize(("suites", "power"), [(0, 0), (-1, 2), (3, -1)])
def test_numbers_that_are_none_are_refused(suites, power):
    with pytest.raises(DataError, match="at least one in all"):
        calibrate(suites, power)


def test_random_answers_follow_neither_picture_nor_words():
    questions = si.load_questions("scenes/relation", "train", n=400)
    changed = _random_answers(questions, np.random.default_rng(0))
    assert [q.id for q in changed] == [q.id for q in questions] and all(q.relation is None for q in changed)
    agree = np.mean([a.answer == b.answer for a, b in zip(changed, questions, strict=True)])
    counts = np.bincount([q.answer for q in changed], minlength=4)
    assert abs(agree - 0.25) < 0.07 and (abs(counts / 400 - 0.25) < 0.07).all()


@pytest.mark.full
def test_the_command_writes_numbers_and_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "Suites", lambda: SMALL)
    result = CliRunner().invoke(cli.app, ["calibrate", "--suites", "1", "--power", "0", "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert len(Calibration.load(tmp_path / "a" / "calibration.json").rows) == 1 and "1 suites without signal" in result.output
    assert [p.name for p in (tmp_path / "a" / "suites").glob("*-*.json")] == ["no-signal-0000.json"]
    # Another folder that has nothing but the first suite: the same bytes, without computing it.
    shutil.copytree(tmp_path / "a" / "suites", tmp_path / "b" / "suites")
    monkeypatch.setattr(calibration, "_suite", None)
    again = run_calibration(1, 0, tmp_path / "b")
    assert again.rows == Calibration.load(tmp_path / "a" / "calibration.json").rows
    assert (tmp_path / "a" / "calibration.json").read_bytes() == (tmp_path / "b" / "calibration.json").read_bytes()


def made(p, survives, kind=NULL):
    row = {"low": -0.1, "high": 0.1, "gains": survives, "p_corrected": min(1.0, 20 * p), "seconds": 1.0}
    return row | {"kind": kind, "p": p, "survives": survives}


def test_shares_and_their_intervals():
    rejected = [made(0.01, False)] * 6 + [made(0.4, False)] * 94
    found = Calibration((*rejected, *[made(1e-6, True, PLANTED)] * 39, made(0.2, False, PLANTED)), {})
    low, high = proportion_confint(6, 100, method="beta")
    assert found.false_rejections == Share(6, 100, pytest.approx(low), pytest.approx(high))
    assert found.calibrated and found.power.share == 39 / 40
    assert found.shares()["no signal: survives"].count == 0 and len(found.table()) == 10
    assert not Calibration((*[made(0.01, False)] * 30, *[made(0.5, False)] * 70), {}).calibrated
    assert not Calibration((*[made(0.5, False)] * 200,), {}).calibrated


def test_the_figure_holds_every_suite():
    found = Calibration((*[made(p, False) for p in np.linspace(0.005, 1, 40)], made(1e-5, True, PLANTED)), {})
    band, line, null, planted = viz.calibration(found, dark=True).data
    assert len(null.x) == 42 and list(null.y[1:-1]) == pytest.approx([i / 40 for i in range(1, 41)])
    assert planted.x[1] == 1e-5 and len(band.x) == 402 and list(line.x) == [0, 1]
    with pytest.raises(DataError, match="without signal"):
        viz.calibration(Calibration((made(0.1, True, PLANTED),), {}))
