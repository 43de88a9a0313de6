"""The parts of a traced set: by axis where its answers are places, otherwise by answer."""

from dataclasses import replace

import torch

import scale_interp as si
from scale_interp.jobs.trace import by_axis


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
