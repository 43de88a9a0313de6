"""The logit lens: what the model's own head would answer from the residual stream after each layer (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core.arguments import Count, checked
from ..core.figures import draw
from ..core.result import Misfit
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, ModelError
from ..execution.batches import BatchResult, SingleQuestions, map_batches
from ..interventions.check import TOLERANCE
from ..interventions.choices import VOCABULARY_ROWS, choice_sequences
from ..interventions.knockout.edit import marked, words
from ..interventions.prompt_end import require_none_attached
from ..vlm.decoder import stream_of
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .ablation import provenance
from .effects import PerQuestion


@dataclass(frozen=True, eq=False)
class LogitLens(PerQuestion):
    """The choices and the most likely words that the model's head reads after each layer, at P tokens of each prompt.

    Attributes:
        logits: of each choice's first token, [Q, L, P, C]; the lowest number where a question has fewer choices or tokens.
        log_total: the logarithm of the sum of all words' exponentials, [Q, L, P].
        top: the most likely words, as numbers into `words`, [Q, L, P, k].
        top_probs: their probabilities among all words, [Q, L, P, k].
        tokens: the place of each token in its prompt, [Q, P].
        lengths: how many of the P tokens a question has, [Q].
        answers: the right choice, [Q].
        given: the choice that the model gives, [Q].
        groups: the number of each question's image [Q]; intervals treat questions of one image as dependent.
        ids: the questions' names.
        relations: the questions' relations.
        words: the words that `top` counts in.
        at: the tokens asked for.
        provenance: model, data, settings and versions.

    >>> import scale_interp as si
    >>> lens = si.logit_lens(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> lens.probs.shape, len(lens.top_words(0, layer=5))
    (torch.Size([4, 6, 1, 4]), 5)
    """

    logits: Float[Tensor, "questions layers tokens choices"]
    log_total: Float[Tensor, "questions layers tokens"]
    top: Int[Tensor, "questions layers tokens best"]
    top_probs: Float[Tensor, "questions layers tokens best"]
    tokens: Int[Tensor, "questions tokens"]
    lengths: Int[Tensor, " questions"]
    answers: Int[Tensor, " questions"]
    given: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    ids: Annotated[tuple[str, ...], "questions"]
    relations: Annotated[tuple[str | None, ...], "questions"]
    words: tuple[str, ...]
    at: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        Q, L, P, _ = self.logits.shape
        many = "" if P == 1 else f" ({int(self.lengths.min())} to {P} tokens)" if self.lengths.min() < P else f" ({P} tokens)"
        last = f"right choice {float(self.scores[-1]):.3f} after the last layer"
        return f"<LogitLens at {self.at}{many}: {L} layers, {Q} question{'s' * (Q != 1)}; {last}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return self.to_frame().to_dict("records")

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if int(self.top.max()) >= len(self.words) or not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= self.tokens.shape[1]:
            raise Misfit("its words or tokens do not fit together")
        if int(torch.maximum(self.answers, self.given).max()) >= self.logits.shape[-1]:
            raise Misfit("its answers and choices do not fit together")

    @cached_property
    def real(self) -> Bool[Tensor, "questions tokens"]:
        """Which of the P tokens each question has."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @cached_property
    def probs(self) -> Float[Tensor, "questions layers tokens choices"]:
        """Probabilities among the choices [Q, L, P, C]; 0 for tokens and choices that a question does not have."""
        return self.logits.double().softmax(-1) * self.real[:, None, :, None]

    @cached_property
    def vocabulary_probs(self) -> Float[Tensor, "questions layers tokens choices"]:
        """Probabilities of the choices' first tokens among all words [Q, L, P, C]."""
        return (self.logits.double() - self.log_total.double()[..., None]).exp() * self.real[:, None, :, None]

    @cached_property
    def right(self) -> Float[Tensor, "questions layers tokens"]:
        """The right choice's probability among the choices [Q, L, P]; 0 for tokens that a question does not have."""
        index = self.answers.view(-1, 1, 1, 1).expand(*self.probs.shape[:-1], 1)
        return self.probs.gather(-1, index)[..., 0]

    @cached_property
    def per_question(self) -> Float[Tensor, "questions layers"]:
        """The right choice's probability on each question, mean over its tokens [Q, L]."""
        return self.right.sum(-1) / self.lengths[:, None]

    @cached_property
    def appears(self) -> Int[Tensor, " questions"]:
        """The first layer from which on the model's given choice is the most likely one, mean over tokens [Q]; L if it never is."""
        leads = self.probs.sum(2).argmax(-1) == self.given[:, None]
        return leads.shape[1] - leads.flip(1).int().cumprod(1).sum(1)

    def top_words(self, question: int, layer: int, token: int = 0) -> list[tuple[str, float]]:
        """The most likely words and their probabilities among all words.

        Args:
            question: the number of the question.
            layer: from 0; negative ones count from the last.
            token: the number of the token among the P.

        Raises:
            DataError: there is no such question, layer or token.
        """
        Q, L = self.log_total.shape[:2]
        if not (-Q <= question < Q and -L <= layer < L and 0 <= token < int(self.lengths[question])):
            raise DataError(
                f"question {question}, layer {layer}, token {token}: there are {Q} questions, {L} layers and {self.at} tokens; "
                "give numbers of these"
            )
        numbers, probs = self.top[question, layer, token].tolist(), self.top_probs[question, layer, token].tolist()
        return [(self.words[number], prob) for number, prob in zip(numbers, probs, strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: layer, score, low, high, appeared (the share of questions whose given choice leads from there on)."""
        low, high = self.interval()
        L = len(low)
        appeared = [(self.appears <= layer).double().mean().item() for layer in range(L)]
        columns = {"layer": np.arange(L), "score": self.scores.numpy(), "low": low.numpy(), "high": high.numpy(), "appeared": appeared}
        return pd.DataFrame(columns)

    def plot(self, **options: Any) -> Any:
        """A plotly figure: the right choice's probability by layer, and the share of answers that have appeared (see viz.lens_curves)."""
        return draw("lens_curves", [self], **options)


@checked
def logit_lens(vlm: VLM, questions: Question | Sequence[Question], at: At = "last", *, top: Count = 5) -> LogitLens:
    """Read the residual stream after each layer with the model's own final norm, head and soft cap.

    After the last layer these are exactly the model's own logits, which is checked on every question. A choice is read by its first token.

    Args:
        vlm: the model, from `si.load`.
        questions: one question, or several.
        at: the tokens to read: a token group or several (`vlm.token_groups`), or token numbers (negative ones count from the prompt's
            end).
        top: how many of the most likely words to keep for each token.

    Returns:
        A LogitLens.

    Raises:
        DataError: for choices that begin with the same token, and for a question without such tokens.
        ModelError: where norm, head and cap are not what the model does after its last layer.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> si.logit_lens(vlm, qs, at="image").probs.shape
    torch.Size([4, 6, 49, 4])
    """
    questions = require(questions)
    require_none_attached(vlm.hf_model)
    vlm.require_no_traced_edits()
    found = [*map_batches(vlm, SingleQuestions(questions), partial(lens_work, at=at, top=top), "logit lens")]
    P = max(part["logits"].shape[1] for part in found)
    C = max(part["logits"].shape[2] for part in found)
    lowest = float(torch.finfo(torch.float32).min)
    logits = [F.pad(part["logits"], (0, C - part["logits"].shape[2], 0, P - part["logits"].shape[1]), value=lowest) for part in found]
    along = {name: torch.stack([F.pad(p[name], (0, P - p[name].shape[-1])) for p in found]) for name in ("log_total", "tokens")}
    best, probs = (torch.stack([F.pad(p[name], (0, 0, 0, P - p[name].shape[1])) for p in found]) for name in ("top", "top_probs"))
    used, numbers = best.unique(return_inverse=True)
    return LogitLens(
        torch.stack(logits),
        along["log_total"],
        numbers,
        probs,
        along["tokens"],
        torch.tensor([part["tokens"].shape[0] for part in found]),
        torch.tensor([q.answer for q in questions]),
        torch.tensor([int(part["given"]) for part in found]),
        torch.from_numpy(groups(questions)),
        tuple(q.id for q in questions),
        tuple(q.relation for q in questions),
        tuple(vlm.tokenizer.decode([token]) for token in used.tolist()),
        words(at),
        provenance(vlm, questions, at=at, top=top),
    )


@torch.no_grad()
def lens_work(vlm: VLM, batch: tuple[int, Question], at: At, top: int) -> BatchResult:
    """One question's logits [L, P, C], log_total [L, P], top and top_probs [L, P, k], tokens [P], and its given choice."""
    _, question = batch
    inputs = vlm.encode(question)
    ids = inputs["input_ids"][0]
    places = marked(vlm, question, at, ids).nonzero()[:, 0]
    if not len(places):
        raise DataError(f"question {question.id}: at={at!r} names no token: give at least one")
    streams, own = residual_streams(vlm, inputs, places)
    first = torch.tensor([tokens[0] for tokens in choice_sequences(vlm, question, "first")])
    found: dict[str, list[Tensor]] = {"logits": [], "log_total": [], "top": [], "top_probs": []}
    for stream in streams:
        parts = [read_out(vlm, rows).cpu() for rows in stream.split(VOCABULARY_ROWS)]
        every = torch.cat(parts)
        total = every.logsumexp(-1)
        best = every.topk(min(top, every.shape[-1]))
        values = (every[:, first], total, best.indices, (best.values - total[:, None]).exp())
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return {name: torch.stack(values) for name, values in found.items()} | {
        "tokens": places,
        "given": own[first].argmax(),
    }


def residual_streams(vlm: VLM, inputs: Mapping[str, Any], places: Int[Tensor, " tokens"]) -> tuple[list[Tensor], Tensor]:
    """The residual stream after each layer at some places of one prompt, from one whole pass.

    Args:
        vlm: The model.
        inputs: The encoded question.
        places: The places, [P].

    Returns:
        One tensor [P, d_model] per layer, and the model's own logits of the next token [V].

    Raises:
        ModelError: Norm, head and cap after the last layer do not give these logits.
    """
    streams: list[Tensor] = []
    ends: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        hidden = stream_of(out)
        if hidden.ndim != 3:
            raise ModelError(
                f"{vlm.name} ({vlm.family}): its layers hand on several streams, of which none is read by its head: use edits (patch, "
                "knockout) instead"
            )
        streams.append(hidden[0, places.to(hidden.device)])
        ends[:] = [hidden[0, -1:]]

    hooks = [layer.register_forward_hook(keep) for layer in vlm.all_layers]
    try:
        own = vlm.hf_model(**inputs, use_cache=False).logits[0, -1].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    read = read_out(vlm, ends[0])[0].cpu()
    differs, allowed = float((read - own).abs().max()), TOLERANCE.get(vlm.dtype, 0.1) * max(1.0, float(own.abs().max()))
    if not differs <= allowed:
        raise ModelError(
            f"{vlm.name} ({vlm.family}): final norm, head and soft cap after its last layer differ from its own logits by {differs:.2g}, "
            "so a lens through them would not show what it answers: use edits (patch, knockout) instead"
        )
    return streams, own


def read_out(vlm: VLM, stream: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
    """Logits of every word from a residual stream: the model's final norm, head and soft cap."""
    head = vlm.head
    return vlm.cap(head(vlm.norm(stream[None])))[0].float()
