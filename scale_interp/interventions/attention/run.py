"""Answers with edited attention logits: the last token alone after a prompt that was read once, or full forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from ...data.question import Question
from ...errors import DataError, EditError
from ...execution.batches import Batches, BatchResult, SingleQuestions, Work, map_batches
from ...execution.memory import in_ranges
from ...vlm.vlm import VLM
from ..choices import Scoring, as_likelihoods, choice_sequences
from ..edit import Variants
from ..engine import Path, choose_path
from ..paths import join, packed_batch
from ..prefix import Prefix, PrefixStore
from ..reference import forward, run_reference
from ..rows import NAME as PACKED
from ..rows import attention
from .logits import LogitEdit, Pass, rewriting


class Answers(Protocol):
    """A batch of B questions that can be answered repeatedly.

    Attributes:
        questions: The questions.
        passes: The number of forward passes so far, of last tokens or of full prompts.
    """

    questions: Sequence[Question]
    passes: int

    def scores(self, edit: LogitEdit | None = None) -> Tensor:
        """Choice scores [B, C]."""
        ...

    def edited(self, edit: Variants) -> Tensor:
        """Choice scores [B, C] under one variant of an edit of the last token."""
        ...

    def next_logits(self) -> Tensor:
        """Logits of the unedited model's next token [B, V]."""
        ...


class PackedAnswers:
    """The last tokens after one prefix. Unedited runs, and heads that an edit does not touch, give exactly the engine's numbers."""

    def __init__(self, vlm: VLM, prefix: Prefix):
        self.vlm, self.prefix, self.questions, self.passes = vlm, prefix, prefix.questions, 0

    @cached_property
    def _plain(self) -> Tensor:
        self.passes += len(self.questions)
        with self.prefix.state_layers(self.vlm), attention(self.vlm.decoder):
            return self.vlm.decoder(**self.prefix.inputs()).last_hidden_state

    @torch.no_grad()
    def scores(self, edit: LogitEdit | None = None) -> Tensor:
        choices = self.prefix.choices
        if edit is None:
            return choices.read(self.vlm, self._plain[:, None])[:, 0]
        edit.check(self.vlm.n_layers, self.vlm.n_heads)
        if edit.rows != "last":
            raise EditError('rows="all" changes the prompt\'s keys and values, which were read already: use path="reference"')
        ids = torch.cat([self.prefix.tokens, choices.tokens[:, :1]], 1)
        running, R = Pass(), choices.tokens.shape[1]
        running.begin(edit, edit.choose(ids, self.vlm.image_token_id), ids.shape[1] + R - 1)
        running.rows = slice(0, 1 if edit.steps == "prefill" else None)
        self.passes += len(self.questions)
        with self.prefix.state_layers(self.vlm), rewriting(self.vlm.decoder, running, PACKED):
            hidden = self.vlm.decoder(**self.prefix.inputs()).last_hidden_state
        return choices.read(self.vlm, hidden[:, None])[:, 0]

    @torch.no_grad()
    def edited(self, edit: Variants) -> Tensor:
        self.passes += len(self.questions)
        return packed_batch(self.vlm, self.prefix, edit)[0][:, 0]

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        head = self.vlm.head
        return self.vlm.cap(head(self._plain[:, 0])).float()


class WholeAnswers:
    """One question in full forward passes; `selected` [T] marks the prompt tokens that an edit of "other" columns does not touch."""

    def __init__(self, vlm: VLM, question: Question, scoring: Scoring, selected: Tensor | None = None):
        self.questions: Sequence[Question] = [question]
        self.vlm, self.scoring, self.selected, self.passes = vlm, scoring, selected, 0

    @torch.no_grad()
    def scores(self, edit: LogitEdit | None = None) -> Tensor:
        question, vlm = self.questions[0], self.vlm
        if edit is None:
            return self._run(None)
        edit.check(vlm.n_layers, vlm.n_heads)
        ids = vlm.encode(question)["input_ids"]
        running, columns = Pass(), edit.choose(ids, vlm.image_token_id)
        if self.selected is not None:
            if self.selected.shape != ids.shape[1:]:
                raise DataError(f"question {question.id}: {len(self.selected)} tokens are selected or not, its prompt has {ids.shape[1]}")
            columns = (self.selected if edit.columns == "image" else ~self.selected)[None].to(ids.device)

        def before(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            new = next(x for x in (*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")) if x is not None).shape[1]
            running.begin(edit, columns, new, ids.shape[1])

        hook = vlm.decoder.register_forward_pre_hook(before, with_kwargs=True)
        try:
            with rewriting(vlm.decoder, running):
                return self._run(None)
        finally:
            hook.remove()

    @torch.no_grad()
    def edited(self, edit: Variants) -> Tensor:
        return self._run(edit)

    def _run(self, edit: Variants | None) -> Tensor:
        sequences = choice_sequences(self.vlm, self.questions[0], self.scoring)
        self.passes += len(sequences) if as_likelihoods(sequences, self.scoring) else 1
        return run_reference(self.vlm, self.questions[0], 0, edit, torch.arange(1), self.scoring)

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        self.passes += 1
        inputs = dict(self.vlm.encode(self.questions[0]))
        return forward(self.vlm, inputs, {}, inputs["input_ids"].shape[1], "last")[:, -1].float()


Run = Callable[[VLM, Answers], Sequence[Tensor]]
"""Computes columns [B, C] for a batch: a function of a module, or a `partial` of one."""


def answer_all(
    vlm: VLM,
    questions: Sequence[Question],
    run: Run,
    path: Path = "auto",
    *,
    whole: bool = False,
    prompts: PrefixStore | None = None,
    scoring: Scoring = "auto",
    selected: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], int]:
    """Apply `run` to every batch of the questions.

    Args:
        vlm: The model.
        questions: The questions.
        run: Computes columns [B, C] for a batch.
        path: "packed", "reference", or "auto".
        whole: Whether its edits change the prompt, so that each needs a full forward pass.
        prompts: A PrefixStore of the same questions.
        scoring: How choices are scored.
        selected: Per question, the tokens that count as image for edits in full passes, booleans [T].

    Returns:
        The columns, each [Q, C], and the number of forward passes.

    Raises:
        EditError: path="packed" where full passes are needed.
        DataError: The number of selections is not the number of questions.
    """
    if path == "packed" and (whole or selected is not None):
        raise EditError('rows="all" and selected tokens need whole forward passes: use path="auto" or "reference"')
    if prompts is not None:
        prompts.require(vlm, questions, scoring)
    if selected is not None and len(selected) != len(questions):
        raise DataError(f"{len(selected)} selections for {len(questions)} questions: give one each")
    batches: Batches = SingleQuestions(questions)
    work: Work = partial(whole_work, run=run, scoring=scoring, selected=selected)
    if not (whole or selected is not None) and choose_path(vlm, questions, path) == "packed":
        batches, work = prompts or PrefixStore(vlm, questions, keep=False, scoring=scoring), partial(packed_work, run=run)
    found = [*map_batches(vlm, batches, work, "answering")]
    passes = sum(int(part.pop("passes")) for part in found)
    return [join([part[name] for part in found]).to(vlm.device) for name in found[0]], passes


def packed_work(vlm: VLM, prefix: Prefix, run: Run) -> BatchResult:
    """The columns of one batch of prompts that were read."""
    found = in_ranges(vlm, prefix.questions, lambda start, stop: _columns(vlm, PackedAnswers(vlm, prefix.part(start, stop)), run))
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0] if name != "passes"}
    return joined | {"passes": torch.stack([part["passes"] for part in found]).sum()}


def whole_work(vlm: VLM, batch: tuple[int, Question], run: Run, scoring: Scoring, selected: Sequence[Tensor] | None) -> BatchResult:
    """The columns of one question, from full forward passes."""
    row, question = batch
    return _columns(vlm, WholeAnswers(vlm, question, scoring, None if selected is None else selected[row]), run)


def _columns(vlm: VLM, batch: Answers, run: Run) -> BatchResult:
    columns = {f"{i:04}": column for i, column in enumerate(run(vlm, batch))}
    return columns | {"passes": torch.tensor(batch.passes)}
