"""The benchmark's ways agree and say what they did; nothing here is a test of time."""

import json
import subprocess
import sys

import pytest

import scale_interp as si
from scale_interp.bench import BRIDGE, COPIED, LIMIT, OURS, PER_HEAD, Benchmark, bench, read_benchmarks, timing, write_benchmarks
from scale_interp.bench.memory import measure_memory
from scale_interp.bench.realistic import SIDE, open_model, realistic
from scale_interp.errors import DataError, FileError, ModelError
from scale_interp.viz import speed

QUESTIONS = si.load_questions("scenes/relation", n=2)


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def found(request):
    return bench(si.load(f"tiny-random/{request.param}"), QUESTIONS, repeats=1)


def test_every_way_gives_the_same_scores(found):
    pytest.importorskip("transformer_lens")
    assert found.left_out == {}
    assert [row.way for row in found.rows if row.largest_difference is None] == [LIMIT]
    assert all(row.largest_difference < 1e-5 for row in found.rows if row.way != LIMIT)
    assert {row.heads_timed for row in found.rows} == {found.about["variants"]} == {12}
    assert not any(found.sampled(row) for row in found.rows) and found.ratio(OURS) == 1


def test_a_sweep_over_budget_is_sampled_and_says_so(monkeypatch):
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    vlm = si.load("tiny-random/llava")
    found = bench(vlm, QUESTIONS[:1], repeats=2, sample=3)
    heads = {row.way: row.heads_timed for row in found.rows}
    assert heads[PER_HEAD] == 3 and heads[COPIED] == heads[OURS] == 12
    assert {row.way: row.repeats for row in found.rows} == {row.way: 2 if row.way in (PER_HEAD, BRIDGE) else 1 for row in found.rows}
    assert found.sampled(next(row for row in found.rows if row.way == COPIED)) == "timed once"
    row = next(row for row in found.rows if row.way == PER_HEAD)
    assert found.sampled(row) == "3 of 12 heads timed" and row.largest_difference < 1e-5
    assert "3 of 12 heads timed" in str(speed([found]).data[0].y)
    assert {row.heads_timed for row in bench(vlm, QUESTIONS[:1], repeats=1, sample=0).rows} == {12}


def test_json_round_trip(found, tmp_path):
    write_benchmarks(tmp_path / "a.json", [found, found])
    assert read_benchmarks(tmp_path / "a.json") == [found, found]
    one = json.loads((tmp_path / "a.json").read_text())["benchmarks"][0]
    assert one["nnsight_share"] == found.nnsight_share and one["over_limit"] == found.over_limit
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(FileError, match="no benchmarks"):
        read_benchmarks(tmp_path / "b.json")


def test_no_bridge_for_a_family_that_it_does_not_know():
    pytest.importorskip("transformer_lens")
    found = bench(si.load("tiny-random/internvl"), QUESTIONS[:1], repeats=1)
    assert BRIDGE not in {row.way for row in found.rows} and "does not run internvl" in found.left_out[BRIDGE]


def test_the_bridge_installs_nothing(monkeypatch):
    pytest.importorskip("transformer_lens")
    calls = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: calls.append(a))
    bench(si.load("tiny-random/llava_onevision"), QUESTIONS[:1], repeats=1)
    assert calls == []


def test_no_bridge_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    found = bench(si.load("tiny-random/llava"), QUESTIONS[:1], repeats=1)
    assert "cannot be imported" in found.left_out[BRIDGE] and "transformer-lens" not in found.about["versions"]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ModelError, match="both directions"):
        bench(si.load("tiny-random/paligemma"), QUESTIONS)
    long = si.Question("Where is it?", ("above left", "below"), 0, picture=QUESTIONS[0].picture, id="long")
    with pytest.raises(DataError, match="one token"):
        bench(si.load("tiny-random/llava"), [long])


def test_realistic_shape():
    vlm = realistic(2, 4, 64)
    found = bench(vlm, QUESTIONS[:1], repeats=1)
    assert set(found.left_out) <= {BRIDGE} and found.about["tokens"] > 590
    assert all(row.largest_difference < 1e-5 for row in found.rows if row.way != LIMIT)
    inputs = vlm.encode(QUESTIONS[:1])
    assert (vlm.n_layers, vlm.n_heads, vlm.head_dim, vlm.d_model) == (2, 4, 16, 64)
    assert int((inputs["input_ids"] == vlm.image_token_id).sum()) == 576 and inputs["pixel_values"].shape[-1] == SIDE
    scores = si.run_edits(vlm, QUESTIONS[:1], path="reference")
    assert scores.std() > 0.05
    for wrong, message in (("realistic/2x4", "LAYERSxHEADSxWIDTH"), ("realistic/2x4x63", "63 units")):
        with pytest.raises(ModelError, match=message):
            open_model(wrong)
    with pytest.raises(ModelError, match="choose from float32"):
        open_model("demo", dtype="float8")


@pytest.mark.full
def test_memory_is_that_of_fresh_processes():
    found = measure_memory("realistic/2x4x64", 1)
    assert 1e8 < found.loaded <= found.forward and found.loaded <= found.sweep and found.ratio == found.sweep / found.forward


def test_figure_has_a_group_a_model(found):
    fig = speed([found, Benchmark(found.rows, found.about | {"variants": 1024}, {})], dark=True)
    assert len(fig.data) == 2 and sorted(fig.data[0].x) == sorted(row.ratio for row in found.rows)
    assert "1,024 heads" in fig.layout.annotations[1].text and fig.layout.xaxis.type == "log"
    with pytest.raises(DataError):
        speed([])
