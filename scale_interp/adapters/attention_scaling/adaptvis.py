"""AdaptVis: attention to the image, smoothed where the model is unsure of its answer and sharpened where it is sure (arXiv 2503.01773)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.arguments import checked_settings
from ...errors import EditError
from ...interventions.attention.logits import LogitEdit, Rows, Steps, attach_logits
from ...interventions.attention.run import Answers
from ...interventions.edit import Head
from ...vlm.vlm import VLM
from .method import SavedSettings, all_scores, as_tuples, check_weight, head_mask, model_shape
from .scalingvis import AttentionScale

Confidence = Literal["vocabulary", "choices"]


@checked_settings
@dataclass(frozen=True)
class AdaptVis(SavedSettings):
    """Read a question once unedited, then again with a weight that depends on how sure the model was (arXiv 2503.01773, section 5).

    Confidence is the largest probability of the first new token. Below `threshold` the answer is read with `weight_low`, otherwise with
    `weight_high`.

    Args:
        weight_low: the weight where the model is unsure; see AttentionScale.
        weight_high: the weight where it is sure.
        threshold: a probability.
        rows: as in AttentionScale.
        layers: as in AttentionScale.
        heads: as in AttentionScale.
        steps: as in AttentionScale.
        confidence: probabilities over the whole "vocabulary", as in the paper, or over the question's "choices", the softmax of their
            scores (ours).
        legacy: gate as the authors' release does: the confidence is rounded to two decimals, and on VSR questions it is the largest
            logit instead of its probability.

    Raises:
        EditError: for a setting out of its range, and for legacy with confidence "choices".

    >>> import scale_interp as si
    >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
    >>> with AdaptVis(0.5, 1.5, 0.35).attached(vlm):
    ...     answer = vlm.generate(q)
    """

    weight_low: float
    weight_high: float
    threshold: float
    rows: Rows = "last"
    layers: tuple[int, ...] | None = None
    heads: tuple[Head, ...] | None = None
    steps: Steps = "prefill"
    confidence: Confidence = "vocabulary"
    legacy: bool = False
    passes: ClassVar[int] = 2
    n_parameters: ClassVar[int] = 3

    def __post_init__(self) -> None:
        for name in ("weight_low", "weight_high", "threshold"):
            check_weight(name, getattr(self, name))
        as_tuples(self)
        if self.confidence not in get_args(Confidence):
            raise EditError(f"confidence={self.confidence!r}: choose 'vocabulary' or 'choices'")
        if self.legacy and self.confidence != "vocabulary":
            raise EditError("legacy=True is the release's gate, which has no access to the choices: use confidence='vocabulary'")
        AttentionScale(1.0, self.rows, steps=self.steps)

    @property
    def whole(self) -> bool:
        """Whether every answer takes whole forward passes."""
        return self.rows == "all"

    def confidences(self, answers: Answers) -> Float[Tensor, " questions"]:
        """How sure the unedited model is of each question [B], as the gate uses it."""
        if self.confidence == "choices":
            return answers.scores().double().softmax(-1).amax(-1)
        logits = answers.next_logits().double()
        sure = logits.softmax(-1).amax(-1)
        if not self.legacy:
            return sure
        raw = torch.tensor([q.task.startswith("vsr") for q in answers.questions], device=logits.device)
        return torch.where(raw, logits.amax(-1), sure).round(decimals=2)

    def weights(self, confidences: Float[Tensor, " questions"]) -> Float[Tensor, " questions"]:
        """The weight of each question [B], from its confidence [B]."""
        low, high = (torch.tensor(float(weight), dtype=torch.float32) for weight in (self.weight_low, self.weight_high))
        return torch.where(confidences < self.threshold, low, high)

    def logits(self, weights: Float[Tensor, " questions"], n_layers: int, n_heads: int) -> LogitEdit:
        """What happens to the attention logits of B prompts with these weights [B]."""
        on = head_mask(self.layers, self.heads, n_layers, n_heads).to(weights.device)
        weight = torch.where(on, weights[:, None, None], 1.0)
        return LogitEdit(weight, torch.zeros_like(weight), self.rows, self.steps)

    def scores(self, vlm: VLM, answers: Answers) -> Float[Tensor, "questions choices"]:
        """Choice scores [B, C]."""
        return answers.scores(self.logits(self.weights(self.confidences(answers)), vlm.n_layers, vlm.n_heads))

    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]:
        """The model that gates itself, for plain transformers forward and generate; each prompt is read twice.

        Raises EditError where the gate needs to know the question: confidence="choices", or legacy.
        """
        if self.confidence != "vocabulary" or self.legacy:
            raise EditError("a plain model knows no choices and no data set: attach with confidence='vocabulary' and legacy=False")
        model = vlm.hf_model if isinstance(vlm, VLM) else vlm

        def decide(logits: Tensor) -> LogitEdit:
            return self.logits(self.weights(logits.double().softmax(-1).amax(-1)), *model_shape(model))

        head_mask(self.layers, self.heads, *model_shape(model))
        return attach_logits(model, None, decide)


def gated_scores(vlm: VLM, batch: Answers, gate: AdaptVis, scales: Sequence[AttentionScale]) -> list[Float[Tensor, "questions _"]]:
    """The scores of the unedited model [B, C], how sure it is [B, 1], and the scores at each scale [B, C]."""
    return [batch.scores(), gate.confidences(batch)[:, None], *all_scores(vlm, batch, scales)]
