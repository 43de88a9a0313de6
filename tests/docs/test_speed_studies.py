"""The studies of speed run at a tiny size on the CPU; what they measure on real sizes is in their pages."""

from typing import get_args

import pytest

from docs.studies import gpu, speed
from scale_interp.attribution.head_maps import Method

TINY = "realistic/2x2x32"


@pytest.mark.full
def test_the_gpu_study_runs_on_a_cpu():
    found = gpu.measure(["exactness", "sweep", "evaluate", "fit", "capped"], gpu.SMOKE)
    llava, qwen = found["models"]["llava"], found["models"]["qwen2_5_vl"]
    for about in (llava, qwen):
        assert about["exactness"]["path"] == "packed" and about["exactness"]["packed_reference"] < 1e-4
        assert 0 < about["evaluate"]["share"] < 1 and about["sweep"]["1"]["over_limit"] > 0
    assert "capped" not in qwen and sum(llava["capped"]["plan"]["placement"].values()) == gpu.SMOKE.job[0]
    assert "| evaluate: share of its time in forward passes | 0." in gpu.page(found) and "not measured" in gpu.page(found)


def test_the_speed_study_measures_what_it_says():
    found = speed.locate(2, TINY)
    assert found["largest_difference"] <= 1e-5 and set(found["one_by_one"]) == set(get_args(Method))
    for clock in ("wall", "cpu"):
        assert found["ratio"][clock] == pytest.approx(sum(took[clock] for took in found["one_by_one"].values()) / found["together"][clock])
        assert speed.evaluate(2, TINY, repeats=1)["ratio"][clock] > 0


def test_the_parts_of_a_step_add_up():
    found = speed.step(2, "realistic/{}x2x32", "tiny-random/llava", repeats=1)
    for name in ("small", "one", "two", "all"):
        parts = [found[name][part] for part in ("modules", "attention", "edits", "rest")]
        assert found[name]["whole"] == pytest.approx(sum(parts)) and "the step" in speed.steps(found)
    assert found["all"]["layers"] == 32 and found["all"]["rows"] == found["one"]["rows"] == 2
    for part in ("modules", "rest"):
        each = found["two"][part] - found["one"][part]
        assert found["all"][part] == pytest.approx(found["one"][part] + 31 * each)
