"""Which heads matter: ablation, amplification, patching, paths, gradients, logits, and the map they all give."""

from .direct import logit_attribution
from .gradient import attribute
from .headmap import HeadMap
from .patching import patch
from .path_patching import path_patch
from .rescaling import Rescaling, rescale
from .sweep import ablate, amplify

__all__ = ["HeadMap", "Rescaling", "ablate", "amplify", "attribute", "logit_attribution", "patch", "path_patch", "rescale"]
