"""PASTA: chosen heads attend less to everything but the selected tokens (arXiv 2311.02262), a baseline for AdaptVis."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.arguments import checked_settings, fits
from ...errors import EditError
from ...interventions.attention.logits import LogitEdit, attach_logits
from ...interventions.attention.run import Answers
from ...interventions.edit import Head
from ...vlm.vlm import VLM
from .method import SavedSettings, as_pairs, head_mask, model_shape


@checked_settings
@dataclass(frozen=True)
class PASTA(SavedSettings):
    """Add log(alpha) to the attention logits of chosen heads over unselected prompt tokens, in all rows (arXiv 2311.02262, section 3).

    After the softmax, attention to unselected tokens is alpha times what it was, relative to the selected tokens. The image tokens are
    selected, or those given as `selected` to evaluate_scaled (for example those of `box_tokens`); tokens after the prompt are selected too.
    It changes the prompt's keys, so every answer takes a whole forward pass.

    Args:
        heads: (layer, head) pairs.
        alpha: above 0; 1 changes nothing, and 0.01 is the paper's.

    Raises:
        EditError: for heads that are not pairs, and for an alpha that is not a finite number above 0.

    >>> PASTA([(3, 1)])
    PASTA(heads=((3, 1),), alpha=0.01)
    """

    heads: tuple[Head, ...]
    alpha: float = 0.01
    whole: ClassVar[bool] = True
    passes: ClassVar[int] = 1
    n_parameters: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_pairs(self.heads))
        if not (fits(self.alpha, float) and math.isfinite(self.alpha) and self.alpha > 0):
            raise EditError(f"alpha={self.alpha}: give a finite number above 0 (1 changes nothing)")

    def logits(self, n_layers: int, n_heads: int) -> LogitEdit:
        """What happens to the attention logits of a model with `n_layers` layers of `n_heads` heads."""
        on = head_mask(None, self.heads, n_layers, n_heads)
        return LogitEdit(torch.ones(on.shape, dtype=torch.float32), on.float() * math.log(self.alpha), "all", "each_new_token", "other")

    def scores(self, vlm: VLM, answers: Answers) -> Float[Tensor, "questions choices"]:
        """Choice scores [B, C]."""
        return answers.scores(None if self.alpha == 1 else self.logits(vlm.n_layers, vlm.n_heads))

    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]:
        """The model with these heads looking at the image, for plain transformers forward and generate."""
        model = vlm.hf_model if isinstance(vlm, VLM) else vlm
        return attach_logits(model, self.logits(*model_shape(model)))
