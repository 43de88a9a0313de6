"""Test instruments whose truth is known: models with known circuits, and planted shortfalls.

>>> import scale_interp as si
>>> si.testbeds.NAMES, si.load("testbed/one-head").n_layers
(('one-head', 'three-heads', 'relay'), 2)
"""

from .circuits import CIRCUITS, NAMES, Circuit, circuit, folder
from .circuits import PREFIX as PREFIX
from .planting import PLANTINGS, PlantedVLM, Planting, plant, planted

__all__ = ["CIRCUITS", "NAMES", "PLANTINGS", "Circuit", "PlantedVLM", "Planting", "circuit", "folder", "plant", "planted"]
