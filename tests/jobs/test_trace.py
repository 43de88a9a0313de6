"""Pages of traces and attention: a traced set by axis where its answers are places, otherwise by answer; and notes."""

from dataclasses import replace

import torch

import scale_interp as si
from scale_interp.jobs.attention import AttentionSettings, run_attention
from scale_interp.jobs.trace import TraceSettings, by_axis, run_trace


def test_maps_are_apart_by_axis_or_answer_whatever_the_answers_are(vlm):
    def parts(*relations):
        pairs = si.contrasts(si.load_questions("scenes/relation", n=1))
        pm = si.patch_positions(vlm, pairs, groups=["last"])
        n = len(relations)
        made = pm.provenance | {"gaps": list(pm.provenance["gaps"]) * n}
        return by_axis(
            replace(pm, per_question=pm.per_question.repeat(n, 1, 1), groups=torch.arange(n), relations=relations, provenance=made)
        )

    assert [*parts(*["left", "right", "above"] * 5, "below")] == ["left or right", "above or below"]
    assert [*parts(*["top", "left"] * 5, "bottom")] == ["bottom or top", "left"]
    found = parts(*["a cup", "a dog"] * 5, *["a hat"] * 4)
    assert [*found] == ["a cup", "a dog"] and len(found["a dog"].per_question) == 5
    assert parts(*["on", "under"] * 5) == {}  # one axis is all of them


def test_pages_of_a_model_of_random_weights_say_that_they_mean_nothing(tmp_path):
    for name, settings, work in (("trace", TraceSettings, run_trace), ("attention", AttentionSettings, run_attention)):
        _, said = work(settings("tiny-random/llava", n=8), tmp_path / name)
        assert "random weights" in said[0] and "random weights" in (tmp_path / name / "report.html").read_text()
