"""Which heads matter: ablation, amplification, patching, paths, gradients, logits, probes, attention, and the map they all give."""

from .answer_tokens import answer_activations
from .box_attention import ObjectAttention, object_attention
from .boxed import box_tokens
from .cut import elbow
from .direct import logit_attribution
from .functional import FunctionalHeads, functional_heads
from .gradient import attribute
from .grid import PatchGrid, patch_grid
from .head_probe import ProbeMap, probe
from .headmap import HeadMap
from .image_attention import read_attention
from .integrated import integrated_gradients
from .localization import LocalizationHeads, localization_heads
from .patching import patch
from .path_patching import path_patch
from .removal import RemovalCurve, remove_heads_curve
from .rescaling import Rescaling, rescale
from .sweep import ablate, amplify

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
