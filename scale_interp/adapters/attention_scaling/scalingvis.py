"""ScalingVis: the last token's attention to the image, sharpened or smoothed by one weight (arXiv 2503.01773)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.arguments import checked_settings
from ...errors import EditError
from ...interventions.attention.logits import LogitEdit, Rows, Steps, attach_logits
from ...interventions.attention.run import Answers
from ...interventions.edit import Head
from ...vlm.vlm import VLM
from .method import SavedSettings, as_tuples, check_weight, head_mask, model_shape


@checked_settings
@dataclass(frozen=True)
class AttentionScale(SavedSettings):
    """Multiply the attention logits over image tokens by one weight, before mask and softmax (ScalingVis, arXiv 2503.01773).

    Logits have a sign, so this is not exactly a temperature. The defaults are the paper's; the other choices are ours.

    Args:
        weight: 1 changes nothing, a weight below 1 smooths and one above 1 sharpens.
        rows: "last", the prompt's last token; or "all", every token of the prompt, which needs whole forward passes.
        columns: "image", the only choice.
        layers: layers to change; None for all.
        heads: (layer, head) pairs to change; None for all.
        steps: "prefill", the prompt alone; or "each_new_token", the tokens after the prompt too.

    Raises:
        EditError: for a setting out of its range.

    >>> import scale_interp as si
    >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
    >>> with AttentionScale(1.5).attached(vlm):
    ...     answer = vlm.generate(q)
    """

    weight: float
    rows: Rows = "last"
    columns: Literal["image"] = "image"
    layers: tuple[int, ...] | None = None
    heads: tuple[Head, ...] | None = None
    steps: Steps = "prefill"
    passes: ClassVar[int] = 1
    n_parameters: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        as_tuples(self)
        if self.columns != "image":
            raise EditError(f"columns={self.columns!r}: only the logits over image tokens are scaled; use columns='image'")
        self.logits(1, 1, torch.ones(1, 1, dtype=torch.bool))

    @property
    def whole(self) -> bool:
        """Whether every answer takes whole forward passes."""
        return self.rows == "all"

    def logits(self, n_layers: int, n_heads: int, on: Bool[Tensor, "layers heads"] | None = None) -> LogitEdit:
        """What happens to the attention logits of a model with L layers of H heads.

        Args:
            n_layers: L.
            n_heads: H.
            on: which heads to change [L, H]; by default those of the settings.
        """
        on = head_mask(self.layers, self.heads, n_layers, n_heads) if on is None else on
        return LogitEdit(
            torch.where(on, torch.tensor(float(self.weight), dtype=torch.float32), 1.0),
            torch.zeros(on.shape, dtype=torch.float32),
            self.rows,
            self.steps,
        )

    def scores(self, vlm: VLM, answers: Answers) -> Float[Tensor, "questions choices"]:
        """Choice scores [B, C]; with weight 1, bit for bit those of the unedited model."""
        return answers.scores(None if self.weight == 1 else self.logits(vlm.n_layers, vlm.n_heads))

    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]:
        """The model with its attention scaled, for plain transformers forward and generate."""
        model = vlm.hf_model if isinstance(vlm, VLM) else vlm
        return attach_logits(model, self.logits(*model_shape(model)))
