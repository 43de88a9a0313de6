"""Which heads matter: ablation, amplification, patching, gradients, and the map they all give."""

from .gradient import attribute
from .headmap import HeadMap
from .patching import patch
from .rescaling import Rescaling, rescale
from .sweep import ablate, amplify

__all__ = ["HeadMap", "Rescaling", "ablate", "amplify", "attribute", "patch", "rescale"]
