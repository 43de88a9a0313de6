"""The attention heads of a vision encoder: the layers whose attention ends in one projection of its concatenated heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ModelError
from .vlm import VLM

ATTENTIONS = ("self_attn", "attn", "attention")
PROJECTIONS = ("out_proj", "o_proj", "proj", "projection_layer")
"""What transformers calls a vision layer's attention (CLIP and SigLIP, Qwen-VL, InternVL), and the projection at its end."""


@dataclass(frozen=True)
class VisionTower:
    """The heads of a vision encoder.

    Attributes:
        projections: The projection of each layer, whose input is the concatenated heads [..., H * D].
        n_heads: Heads per layer.
    """

    projections: Sequence[nn.Linear]
    n_heads: int

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return len(self.projections)

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.projections[0].in_features // self.n_heads


def vision_tower(vlm: VLM) -> VisionTower:
    """Find the heads of a model's vision encoder.

    Args:
        vlm: The model.

    Returns:
        Its heads.

    Raises:
        ModelError: The model has no vision encoder whose layers have separable heads.
    """
    decoder = {id(module) for module in vlm.decoder.modules()}
    for module in vlm.hf_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and not decoder & {id(layer) for layer in module}:
            found = [_projection(layer) for layer in module]
            if all(isinstance(projection, nn.Linear) for projection in found):
                return VisionTower(found, _n_heads(vlm))  # type: ignore[arg-type]
    raise ModelError(
        f"{vlm.name} ({vlm.family}): no layers of a vision encoder have an attention that ends in one projection of its heads, so these "
        "cannot be edited one by one; use the decoder's heads (si.ablate, si.patch)"
    )


def _projection(layer: nn.Module) -> nn.Module | None:
    attention: Any = next((found for name in ATTENTIONS if (found := getattr(layer, name, None)) is not None), None)
    return next((found for name in PROJECTIONS if (found := getattr(attention, name, None)) is not None), None)


def _n_heads(vlm: VLM) -> int:
    config: Any = getattr(vlm.hf_model.config, "vision_config", None)
    heads = next((found for name in ("num_attention_heads", "num_heads") if (found := getattr(config, name, None))), None)
    if heads is None:
        raise ModelError(f"{vlm.name} ({vlm.family}): its configuration does not say how many heads its vision encoder has")
    return int(heads)
