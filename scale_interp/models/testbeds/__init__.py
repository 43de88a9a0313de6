"""Test instruments with a known answer: models with known circuits, and planted shortfalls.

>>> import scale_interp as si
>>> si.testbeds.NAMES, si.load("testbed/one-head").n_layers
(('one-head', 'three-heads', 'relay'), 2)
"""

from ...core.names import public_names
from .circuits import CIRCUITS as CIRCUITS
from .circuits import NAMES as NAMES
from .circuits import Circuit as Circuit
from .circuits import circuit as circuit
from .circuits import folder as folder
from .planting import PLANTINGS as PLANTINGS
from .planting import PlantedVLM as PlantedVLM
from .planting import Planting as Planting
from .planting import plant as plant
from .planting import planted as planted

__all__ = public_names(__file__)
