"""Training a baseline as ScAle is fitted: the same batches, held-out pictures, epochs and patience, a few learning rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.progress import track
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.engine import Path, require_packed
from ...interventions.prefix import Prefix, read_prefix
from ...vlm.vlm import VLM
from ..scale.fit import FitSettings

BUDGET = ("epochs", "batch_size", "validation", "patience")


def prepared(vlm: VLM, train: Sequence[Question], path: Path, settings: Mapping[str, Any]) -> tuple[Sequence[Question], FitSettings]:
    """The training questions and the settings; an error where there are no gradients, or a setting is none of a baseline's."""
    if wrong := settings.keys() - {*BUDGET, "scope"}:
        raise EditError(f"settings {sorted(wrong)}: a baseline takes epochs, batch_size, validation, patience and scope")
    train = require(train)
    require_packed(vlm, train, path, "training a baseline")
    return train, FitSettings(**settings)


@dataclass(frozen=True)
class Batch:
    """Prompts that were read, and the indices [B] of the right answers."""

    prefix: Prefix
    answers: Tensor


def read_batches(vlm: VLM, train: Sequence[Question], options: FitSettings, seed: int) -> tuple[list[Batch], list[Batch]]:
    """The batches to learn from, which are those of fit_scales without the held-out pictures, and the held-out ones."""
    learns, size = learning(train, options.validation, seed).tolist(), options.batch_size
    chosen = [[q for q, on in zip(train[i : i + size], learns[i : i + size], strict=True) if on] for i in range(0, len(train), size)]
    held = [q for q, on in zip(train, learns, strict=True) if not on]
    return [_read(vlm, part) for part in chosen if part], [_read(vlm, held[i : i + size]) for i in range(0, len(held), size)]


def _read(vlm: VLM, questions: Sequence[Question]) -> Batch:
    return Batch(read_prefix(vlm, questions), torch.tensor([q.answer for q in questions], device=vlm.device))


@dataclass(frozen=True)
class Fitted:
    """The parameters of the epoch with the lowest held-out loss."""

    state: list[Tensor]
    loss: float
    epoch: int
    history: tuple[Mapping[str, float], ...]
    seconds: float


def best_rate(trial: Callable[[float], Fitted], rates: Sequence[float], options: FitSettings, seed: int) -> tuple[Fitted, dict[str, Any]]:
    """The trial with the lowest held-out loss, and what was tried."""
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
    scores: Callable[[Batch], Tensor],
    learn: list[Batch],
    held: list[Batch],
    options: FitSettings,
    rate: float,
) -> Fitted:
    """Cross-entropy over the choices [B, C] by AdamW without decay; the epochs go as those of fit_scales.

    The history's train_loss is that of the epoch's steps, each before its own update.
    """
    started = time.perf_counter()
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    best: tuple[float, int, list[Tensor]] = (float("inf"), 0, [])
    history: list[dict[str, float]] = []
    order = np.random.default_rng(0)
    for epoch in track(range(options.epochs + 1), f"training {sum(p.numel() for p in parameters):,} parameters", options.epochs + 1):
        row = {"epoch": float(epoch)}
        if epoch:
            losses = []
            for i in order.permutation(len(learn)):
                loss = F.cross_entropy(scores(learn[i]), learn[i].answers)
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                optimiser.step()
                losses.append(float(loss.detach()))
            row["train_loss"] = float(np.mean(losses))
        with torch.no_grad():
            found = [F.cross_entropy(scores(batch), batch.answers, reduction="none") for batch in held]
        row["validation_loss"] = float(torch.cat(found).mean())
        history.append(row)
        if row["validation_loss"] < best[0]:
            best = (row["validation_loss"], epoch, [p.detach().clone() for p in parameters])
        elif epoch - best[1] >= options.patience:
            break
    if not best[2]:
        raise EditError(f"lr={rate:g}: the held-out loss is not finite from the start; check the model's weights")
    return Fitted(best[2], best[0], best[1], tuple(history), time.perf_counter() - started)


def learning(train: Sequence[Question], validation: float, seed: int) -> Tensor:
    """True on the questions to learn from [Q]; the same pictures are held out as by fit_scales."""
    group = groups(train)
    count = int(group.max()) + 1
    held = np.random.default_rng([seed, 1]).permutation(count)[: max(1, round(count * validation))]
    learns = torch.from_numpy(~np.isin(group, held))
    if not learns.any():
        raise DataError(f"{len(train)} training questions on {count} picture(s): none is left to learn from; give more pictures")
    return learns
