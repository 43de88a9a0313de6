"""Training a baseline as ScAle is fitted: the same batches, held-out images, epochs and patience, with a few learning rates tried."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...core.progress import track
from ...data.items import require
from ...data.question import Question
from ...errors import EditError
from ...execution.journal import Checkpoints
from ...execution.memory import micro_batch
from ...interventions.engine import Path, require_packed
from ...interventions.parts import in_parts
from ...interventions.prefix import Prefix, PrefixStore
from ...vlm.vlm import VLM
from ..scale.fit import FitSettings, learning_mask, prompt_size

T = TypeVar("T")
FREE_RATES = (1e-2, 3e-3, 3e-2)
"""Learning rates tried for IA3 and for the shift."""
BUDGET = ("epochs", "batch_size", "validation", "patience")


def prepare_training(
    vlm: VLM, train: Sequence[Question], path: Path, settings: Mapping[str, Any]
) -> tuple[Sequence[Question], FitSettings]:
    """Check the training questions and the settings of a baseline.

    Raises:
        EditError: for a model or path that is not packed, as there are no gradients, and for a setting that no baseline has.
    """
    if wrong := settings.keys() - {*BUDGET, "scope"}:
        raise EditError(f"settings {sorted(wrong)}: a baseline has no such settings; use epochs, batch_size, validation, patience or scope")
    train = require(train)
    require_packed(vlm, train, path, "training a baseline")
    return train, FitSettings(**settings)


@dataclass(frozen=True)
class Training:
    """The questions of a baseline in steps, each in the micro-batches that memory holds.

    Attributes:
        prompts: the prompts to learn from, then the held-out ones.
        learn: the batches of each step, which are those of fit_scales without the held-out images.
        held: the batches of held-out questions.
        rows: rows of one question that a pass with gradients keeps.
    """

    prompts: PrefixStore
    learn: list[list[int]]
    held: list[list[int]]
    rows: int

    def answers(self, rows: slice) -> Int[Tensor, " questions"]:
        """The right answers of some of the prompts."""
        return torch.tensor([q.answer for q in self.prompts.questions[rows]], device=self.prompts.vlm.device)


def in_steps(
    vlm: VLM, train: Sequence[Question], options: FitSettings, seed: int, whole_prompt: bool = False, keep: bool = True
) -> Training:
    """The steps of a baseline.

    Args:
        vlm: the model.
        train: the training questions.
        options: its settings.
        seed: for the held-out images.
        whole_prompt: whether gradients go through the whole prompt, and not only through a copy of its last token.
        keep: whether prompts that were read are kept.
    """
    learns, size = learning_mask(train, options.validation, seed).tolist(), options.batch_size
    chosen = [[q for q, on in zip(train[i : i + size], learns[i : i + size], strict=True) if on] for i in range(0, len(train), size)]
    learn, held = [part for part in chosen if part], [q for q, on in zip(train, learns, strict=True) if not on]
    later = [held[i : i + size] for i in range(0, len(held), size)]
    asked = [q for part in (*learn, *later) for q in part]
    tokens, R = prompt_size(vlm, asked[0])
    rows = tokens + R if whole_prompt else R
    micro = micro_batch(vlm, tokens, rows, max(map(len, (*learn, *later))))
    prompts = PrefixStore(vlm, asked, micro, keep=keep, within=[len(part) for part in (*learn, *later)])
    return Training(prompts, prompts.steps[: len(learn)], prompts.steps[len(learn) :], rows)


@dataclass(frozen=True)
class Fitted:
    """The parameters of the epoch with the lowest held-out loss."""

    state: list[Tensor]
    loss: float
    epoch: int
    history: tuple[Mapping[str, float], ...]
    seconds: float


def try_rates(trial: Callable[[float], Fitted], rates: Sequence[float], options: FitSettings, seed: int) -> tuple[Fitted, dict[str, Any]]:
    """Train once per learning rate. Returns the trial with the lowest held-out loss, and what was tried."""
    if not rates or min(rates) <= 0:
        raise EditError(f"learning_rates={list(rates)}: give at least one, all above 0")
    trials = [trial(rate) for rate in rates]
    best = min(range(len(trials)), key=lambda i: trials[i].loss)
    budget = {name: getattr(options, name) for name in BUDGET}
    found = {"lr": rates[best], "best_epoch": trials[best].epoch, "validation_loss": trials[best].loss, "seconds": trials[best].seconds}
    tried = [{"lr": rate, "validation_loss": t.loss, "seconds": t.seconds} for rate, t in zip(rates, trials, strict=True)]
    return trials[best], budget | found | {"seed": seed, "tried": tried}


def train_parameters(
    parameters: list[Tensor],
    scores: Callable[[Prefix], Float[Tensor, "questions choices"]],
    training: Training,
    read: Callable[[int], Prefix],
    options: FitSettings,
    rate: float,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Minimise the cross-entropy over the choices [B, C] by AdamW without weight decay, in the order of epochs of fit_scales.

    The history's train_loss is the mean over the epoch's steps, each before its own update.

    Args:
        parameters: what is trained, in place.
        scores: the choice scores of prompts [B, C].
        training: the questions in steps; the held-out ones are for early stopping.
        read: the prompts of a batch, by its number.
        options: epochs and patience.
        rate: the learning rate.
        checkpoints: where each epoch is stored, to resume from.

    Raises:
        EditError: where the held-out loss is not finite from the start.
        ModelError: where there is no memory for one question.
    """
    started = time.perf_counter()

    def losses_of(prefix: Prefix) -> Tensor:
        return F.cross_entropy(scores(prefix), training.answers(prefix.rows), reduction="none")

    def learn_from(prefix: Prefix, whole: int) -> tuple[Tensor, ...]:
        loss = losses_of(prefix).mean() * (len(prefix.questions) / whole)
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    trial = _Trial(parameters, torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0))
    done = trial.resume(checkpoints, rate)
    order = np.random.default_rng(0)
    for epoch in track(range(options.epochs + 1), f"training {sum(p.numel() for p in parameters):,} parameters", options.epochs + 1):
        steps: list[int] = order.permutation(len(training.learn)).tolist() if epoch else []
        if epoch <= done:
            continue
        if trial.history and trial.history[-1]["epoch"] - trial.best_epoch >= options.patience:
            break
        row = {"epoch": float(epoch)}
        if epoch:
            losses = []
            for step in steps:
                batches = training.learn[step]
                whole = training.prompts.slices[batches[-1]].stop - training.prompts.slices[batches[0]].start
                (loss, *slopes), *more = _in_parts(training, read, batches, partial(learn_from, whole=whole))
                for part in more:
                    loss, slopes = loss + part[0], [slope + other for slope, other in zip(slopes, part[1:], strict=True)]
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                trial.optimiser.step()
                losses.append(float(loss))
            row["train_loss"] = float(np.mean(losses))
        with torch.no_grad():
            found = [part for batches in training.held for part in _in_parts(training, read, batches, losses_of)]
        row["validation_loss"] = float(torch.cat(found).mean())
        trial.history.append(row)
        if row["validation_loss"] < trial.best_loss:
            trial.best_loss, trial.best_epoch = row["validation_loss"], epoch
            trial.best = [p.detach().clone() for p in parameters]
        trial.keep(checkpoints, rate, time.perf_counter() - started)
    if not trial.best:
        raise EditError(f"lr={rate:g}: the held-out loss is not finite from the start; check the model's weights")
    seconds = trial.seconds + time.perf_counter() - started
    return Fitted(trial.best, trial.best_loss, trial.best_epoch, tuple(trial.history), seconds)


def _in_parts(training: Training, read: Callable[[int], Prefix], batches: Sequence[int], work: Callable[[Prefix], T]) -> Iterator[T]:
    """The results of work on these batches; where memory runs out, on smaller parts."""
    for i in batches:
        prefix = read(i)
        yield from in_parts(training.prompts.vlm, prefix, training.rows // prefix.choices.tokens.shape[1], work)


@dataclass
class _Trial:
    """The parameters and optimiser of one learning rate, and the best parameters so far; seconds: time spent in earlier processes."""

    parameters: list[Tensor]
    optimiser: torch.optim.Optimizer
    best: list[Tensor] = field(default_factory=list)
    best_loss: float = float("inf")
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def keep(self, checkpoints: Checkpoints | None, rate: float, seconds: float) -> None:
        """Store all that the next epoch needs, in place of the last epoch."""
        if checkpoints is None:
            return
        tensors = {f"{i} now": p for i, p in enumerate(self.parameters)} | {f"{i} best": p for i, p in enumerate(self.best)}
        for i, parameter in enumerate(self.parameters):
            tensors |= {f"{i} adam {key}": t for key, t in self.optimiser.state[parameter].items()}
        # As text, since a loss may be infinite.
        progress = json.dumps([self.best_loss, self.best_epoch, self.history, self.seconds + seconds])
        checkpoints.put(f"rate {rate:g}", tensors, {"progress": progress})

    def resume(self, checkpoints: Checkpoints | None, rate: float) -> int:
        """Continue from the stored epoch. Returns its number, or -1 where none is stored."""
        found = None if checkpoints is None else checkpoints.get(f"rate {rate:g}")
        if found is None:
            return -1
        tensors, meta = found
        self.best_loss, self.best_epoch, self.history, self.seconds = json.loads(meta["progress"])
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[f"{i} now"])
            adam = {key.removeprefix(f"{i} adam "): t for key, t in tensors.items() if key.startswith(f"{i} adam ")}
            if adam:
                self.optimiser.state[parameter] = {k: t if k == "step" else t.to(parameter.device) for k, t in adam.items()}
        self.best = [tensors[f"{i} best"].to(p.device) for i, p in enumerate(self.parameters) if f"{i} best" in tensors]
        return int(self.history[-1]["epoch"])
