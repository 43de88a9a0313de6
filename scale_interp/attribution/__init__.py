"""Which heads matter: ablation, amplification, patching, paths, gradients, logits, probes and attention, and the HeadMap they return."""

from .ablation import ablate as ablate
from .ablation import amplify as amplify
from .answer_tokens import answer_activations as answer_activations
from .attention.box_tokens import box_tokens as box_tokens
from .attention.grid import PatchGrid as PatchGrid
from .attention.grid import patch_grid as patch_grid
from .attention.last_token import read_attention as read_attention
from .attention.localization import LocalizationHeads as LocalizationHeads
from .attention.localization import localization_heads as localization_heads
from .attention.objects import ObjectAttention as ObjectAttention
from .attention.objects import object_attention as object_attention
from .elbow_rule import elbow as elbow
from .functional import FunctionalHeads as FunctionalHeads
from .functional import functional_heads as functional_heads
from .gradient import attribute as attribute
from .head_probe import ProbeMap as ProbeMap
from .head_probe import probe as probe
from .headmap import HeadMap as HeadMap
from .integrated import integrated_gradients as integrated_gradients
from .logits import logit_attribution as logit_attribution
from .patching import patch as patch
from .path_patching import path_patch as path_patch
from .removal import RemovalCurve as RemovalCurve
from .removal import remove_heads_curve as remove_heads_curve
from .rescaling import Rescaling as Rescaling
from .rescaling import rescale as rescale
