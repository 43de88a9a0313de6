"""The zoo's families by how their prompts attend, and pictures for them."""

import numpy as np
from PIL import Image

from scale_interp.models import zoo

BIDIRECTIONAL = ("paligemma", "paligemma2")
CAUSAL = tuple(name for name in zoo.NAMES if name not in BIDIRECTIONAL)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))
