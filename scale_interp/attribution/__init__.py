"""Which heads matter: ablation, amplification, patching, paths, gradients, logits, probes, attention, and the map they all give."""

from .ablation import ablate, amplify
from .answer_tokens import answer_activations
from .attention.box_tokens import box_tokens
from .attention.grid import PatchGrid, patch_grid
from .attention.last_token import read_attention
from .attention.localization import LocalizationHeads, localization_heads
from .attention.objects import ObjectAttention, object_attention
from .elbow_rule import elbow
from .functional import FunctionalHeads, functional_heads
from .gradient import attribute
from .head_probe import ProbeMap, probe
from .headmap import HeadMap
from .integrated import integrated_gradients
from .logits import logit_attribution
from .patching import patch
from .path_patching import path_patch
from .removal import RemovalCurve, remove_heads_curve
from .rescaling import Rescaling, rescale

__all__ = [
    "FunctionalHeads",
    "HeadMap",
    "LocalizationHeads",
    "ObjectAttention",
    "PatchGrid",
    "ProbeMap",
    "RemovalCurve",
    "Rescaling",
    "ablate",
    "amplify",
    "answer_activations",
    "attribute",
    "box_tokens",
    "elbow",
    "functional_heads",
    "integrated_gradients",
    "localization_heads",
    "logit_attribution",
    "object_attention",
    "patch",
    "patch_grid",
    "path_patch",
    "probe",
    "read_attention",
    "remove_heads_curve",
    "rescale",
]
