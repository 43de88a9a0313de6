"""Format controls: how much of a gain is that an answer comes in the form that is scored, rather than that it is the right one.

A model that knows the answer, but does not give it as one of the options, gains as soon as anything moves probability to them: another
prompt, a bias, or scalars. The log-likelihood of the right option splits exactly,

    -log P(right) = -log P(any option) - log P(right | an option),

and only the second part is a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.prompts import in_words
from ...data.question import LETTERED, Question
from ...errors import DataError, ModelError
from ...interventions.packed import run_packed
from ...interventions.prefix import PrefixStore
from ...vlm.named_prompts import PROMPTS
from ...vlm.vlm import VLM
from .text_only import TextCorrection, fit_text_correction
from .verdict import CHAT, RAW, WORDS

RAW_PROMPT = PROMPTS["scale-llava"]
"""Without a chat template, as ScAle's release asks LLaVA."""
REST = 1e-30
"""The least probability of everything that is no option, so that its logarithm is finite."""


@dataclass(frozen=True, eq=False)
class Split:
    """The log-likelihood of right options in two parts, means over the fits of a control.

    Args:
        mass: the probability that the answer is any option [Q].
        nll_mass: -log of that [Q].
        nll_choice: -log of the right option's share of it [Q].
    """

    mass: Float[np.ndarray, " questions"]
    nll_mass: Float[np.ndarray, " questions"]
    nll_choice: Float[np.ndarray, " questions"]

    @staticmethod
    def of(logs: Float[Tensor, "questions *fits choices"], questions: Sequence[Question]) -> Split:
        """The split of log-likelihoods [Q, C], or [Q, fits, C] of several fits, whose parts are averaged."""
        logs = logs.double().view(len(questions), -1, logs.shape[-1])
        total = logs.logsumexp(-1).clamp(max=0.0)  # rounding may exceed 1
        answers = torch.tensor([q.answer for q in questions])
        right = logs.gather(-1, answers[:, None, None].expand(-1, logs.shape[1], 1))[..., 0]
        parts = (total.exp(), -total, total - right)
        return Split(*(part.mean(1).numpy() for part in parts))

    def columns(self) -> dict[str, float]:
        """The means over questions, as columns of a suite's table."""
        mass, choice = float(self.nll_mass.mean()), float(self.nll_choice.mean())
        return {"mass": float(self.mass.mean()), "nll": mass + choice, "nll_mass": mass, "nll_choice": choice}


def prompt_controls(vlm: VLM, questions: Sequence[Question]) -> tuple[dict[str, tuple[VLM, list[Question]]], dict[str, str]]:
    """The same questions asked otherwise: under the chat template, without it, and with options named in words.

    Args:
        vlm: the model, from `si.load`.
        questions: test questions.

    Returns:
        Control -> the model with that prompt, and its questions; and control -> why it is left out.
    """
    made: dict[str, tuple[VLM, list[Question]]] = {}
    left_out: dict[str, str] = {}
    asked: list[tuple[str, str | None, list[Question]]] = [(CHAT, None, list(questions)), (RAW, RAW_PROMPT, list(questions))]
    asked = [control for control in asked if control[1] != vlm.prompt]
    if any(LETTERED in q.meta for q in questions):
        asked.append((WORDS, vlm.prompt, [in_words(q) for q in questions]))
    for name, prompt, changed in asked:
        try:
            made[name] = _asked_by(vlm, prompt, changed[0]), changed
        except (DataError, ModelError) as error:
            left_out[name] = str(error)
    return made, left_out


def _asked_by(vlm: VLM, prompt: str | None, question: Question) -> VLM:
    """The model with this prompt, without a space at its end where the choices do not follow that as tokens of their own.

    Choices are read as they follow the prompt, also where the model's own rule is that of ScAle's release ("apart").
    """
    other = vlm.with_prompt(prompt)
    other.choice_space = "auto" if vlm.choice_space == "apart" else vlm.choice_space
    try:
        other.choice_ids(question)  # from the text alone: test images are not opened before all is fitted
    except DataError:
        if prompt is None or prompt == prompt.rstrip():
            raise
        return _asked_by(vlm, prompt.rstrip(), question)
    return other


def likelihoods(vlm: VLM, prompts: PrefixStore) -> Float[Tensor, "questions choices"]:
    """The base model's log-likelihoods of the choices of questions whose prompts were read before."""
    with torch.no_grad():
        scores = [run_packed(vlm, replace(prefix, choices=prefix.choices.likelihoods()), None)[0].cpu() for prefix in prompts]
    widest = max(part.shape[1] for part in scores)
    return torch.cat([torch.nn.functional.pad(part, (0, widest - part.shape[1]), value=float("-inf")) for part in scores])


def with_rest(logs: Float[Tensor, "questions choices"]) -> Float[Tensor, "questions choices+1"]:
    """Log-likelihoods with a last column for everything that is no choice."""
    rest = (1 - logs.double().exp().sum(-1, keepdim=True)).clamp(min=REST).log().to(logs.dtype)
    return torch.cat([logs, rest], -1)


def fit_vocabulary_bias(logs: Float[Tensor, "questions choices"], questions: Sequence[Question]) -> TextCorrection:
    """Learn a bias per option by the loss over the whole vocabulary, where it also moves probability to the options at all.

    Tokens that are never right get no bias of their own: one on all of them is the same as its opposite on all options.

    Args:
        logs: the base model's log-likelihoods of the training questions' choices [Q, C].
        questions: the Q training questions.

    Returns:
        The learned bias.
    """
    return fit_text_correction(with_rest(logs), questions, from_words=False)


def biased(logs: Float[Tensor, "questions choices"], bias: TextCorrection, questions: Sequence[Question]) -> Tensor:
    """The log-likelihoods of the choices [Q, C] once their bias is added and everything is normalised again."""
    return bias.correct(with_rest(logs), questions).log_softmax(-1)[:, :-1]
