"""Test instruments whose truth is known: models with known circuits, and planted shortfalls.

>>> import scale_interp as si
>>> si.testbeds.NAMES, si.load("testbed/one-head").n_layers
(('one-head', 'three-heads', 'relay'), 2)
"""

from pathlib import Path

from ...core.suggest import near
from ...errors import ModelError
from .circuits import CIRCUITS, Circuit
from .planting import PLANTINGS, PlantedVLM, Planting, plant, planted

PREFIX = "testbed/"
NAMES = tuple(CIRCUITS)

__all__ = ["CIRCUITS", "NAMES", "PLANTINGS", "Circuit", "PlantedVLM", "Planting", "circuit", "folder", "plant", "planted"]


def circuit(name: str) -> Circuit:
    """The circuit of a known-circuit model, by its name with or without "testbed/".

    >>> circuit("testbed/three-heads").heads
    ((2, 1), (3, 4), (3, 6))
    """
    short = name.removeprefix(PREFIX)
    if short not in CIRCUITS:
        raise ModelError(f"no known-circuit model {name!r}: choose from {', '.join(PREFIX + n for n in NAMES)}{near(short, NAMES)}")
    return CIRCUITS[short]


def folder(name: str) -> Path:
    """Where the weights, tokenizer, processor and card of a known-circuit model lie.

    >>> (folder("testbed/one-head") / "config.json").is_file()
    True
    """
    return Path(__file__).parent / "weights" / circuit(name).name
