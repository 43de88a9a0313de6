"""The zoo's families by how their prompts attend, and pictures for them."""

import numpy as np
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.models import zoo

BIDIRECTIONAL = ("paligemma", "paligemma2")
FIRST = zoo.NAMES[: zoo.NAMES.index("paligemma2") + 1]
"""The families that every test of families runs over; the others do so in the full suite."""
RECENT = zoo.NAMES[len(FIRST) :]
CAUSAL = tuple(name for name in FIRST if name not in BIDIRECTIONAL)
LONGER = [pytest.param(name, marks=pytest.mark.full) for name in RECENT]
EVERY, EVERY_CAUSAL = [*FIRST, *LONGER], [*CAUSAL, *LONGER]
FEW = ("llava", "qwen2_5_vl", "gemma3", "paligemma")
"""One of each way to attend, for the quick suite."""


def mostly_full(names):
    """These families as parameters, all but FEW of them for the full suite alone."""
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in names]


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def three_questions():
    """Three prompts of different lengths, on pictures of different sizes."""
    return [
        si.Question("Where is the red circle?", ("left", "right"), 0, picture=noise(60, 40), id="a"),
        si.Question(
            "Where is the blue square relative to the green star?", ("left", "right", "above"), 0, picture=noise(40, 90, 1), id="b"
        ),
        si.Question("Is there a cat?", ("yes", "no"), 0, picture=noise(33, 33, 2), id="c"),
    ]


class Models(dict):
    """The zoo by name, each model loaded when a test first asks for it."""

    def __missing__(self, name):
        self[name] = si.load(f"tiny-random/{name}")
        return self[name]
