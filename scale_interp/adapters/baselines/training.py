"""Training a baseline as ScAle is fitted: the same batches, held-out images, epochs and patience, with a few learning rates tried."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution.ablation import provenance
from ...core.progress import track
from ...data.items import require
from ...data.question import Question
from ...errors import EditError
from ...execution.batches import checkpoints_of
from ...execution.journal import Checkpoints
from ...interventions.engine import Path, require_packed
from ...interventions.prefix import Prefix, read_prefix
from ...vlm.vlm import VLM
from ..scale.fit import FitSettings, learning_mask

FREE_RATES = (1e-2, 3e-3, 3e-2)
"""Learning rates tried for IA3 and for the shift."""
BUDGET = ("epochs", "batch_size", "validation", "patience")


@dataclass(frozen=True)
class Batch:
    """Prompts that were read, and the indices [B] of the right answers."""

    prefix: Prefix
    answers: Int[Tensor, " questions"]


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


@dataclass(frozen=True)
class Training:
    """What the trials of a baseline share: settings, batches, and where epochs are kept.

    Args:
        options: epochs, patience and scope.
        seed: of the held-out images.
        learn: batches to learn from, which are those of fit_scales without the held-out images.
        held: held-out batches, for early stopping.
        checkpoints: where each epoch is stored, to resume from.
        provenance: model, data and versions.
    """

    options: FitSettings
    seed: int
    learn: list[Batch]
    held: list[Batch]
    checkpoints: Checkpoints | None
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, vlm: VLM, train: Sequence[Question], name: str, path: Path, seed: int, settings: Mapping[str, Any], *kind: Any) -> Training:
        """Check the training questions and the settings of a baseline, and read the prompts.

        Args:
            vlm: the model.
            train: training questions.
            name: the baseline's name.
            path: "auto" or "packed".
            seed: of the held-out images.
            settings: epochs, batch_size, validation, patience and scope of FitSettings.
            kind: what else tells this training from others of that name.

        Raises:
            EditError: for a model or path that is not packed, as there are no gradients, and for a setting that no baseline has.
        """
        if wrong := settings.keys() - {*BUDGET, "scope"}:
            raise EditError(
                f"settings {sorted(wrong)}: a baseline has no such settings; use epochs, batch_size, validation, patience or scope"
            )
        train = require(train)
        require_packed(vlm, train, path, "training a baseline")
        options = FitSettings(**settings)
        learns, size = learning_mask(train, options.validation, seed).tolist(), options.batch_size
        chosen = [[q for q, on in zip(train[i : i + size], learns[i : i + size], strict=True) if on] for i in range(0, len(train), size)]
        held = [q for q, on in zip(train, learns, strict=True) if not on]
        return cls(
            options,
            seed,
            [_read(vlm, part) for part in chosen if part],
            [_read(vlm, held[i : i + size]) for i in range(0, len(held), size)],
            checkpoints_of(vlm, name, train, options, seed, *kind),
            provenance(vlm, train, path="packed"),
        )

    def best_of(self, trial: Callable[[float], Fitted], rates: Sequence[float]) -> tuple[Fitted, dict[str, Any]]:
        """Train once per learning rate. Returns the trial with the lowest held-out loss, and what was tried."""
        if not rates or min(rates) <= 0:
            raise EditError(f"learning_rates={list(rates)}: give at least one, all above 0")
        trials = [trial(rate) for rate in rates]
        best = min(range(len(trials)), key=lambda i: trials[i].loss)
        budget = {name: getattr(self.options, name) for name in BUDGET}
        found = {"lr": rates[best], "best_epoch": trials[best].epoch, "validation_loss": trials[best].loss, "seconds": trials[best].seconds}
        tried = [{"lr": rate, "validation_loss": t.loss, "seconds": t.seconds} for rate, t in zip(rates, trials, strict=True)]
        return trials[best], budget | found | {"seed": self.seed, "tried": tried}

    def fit(self, parameters: list[Tensor], scores: Callable[[Batch], Float[Tensor, "questions choices"]], rate: float) -> Fitted:
        """Minimise the cross-entropy over the choices [B, C] by AdamW without weight decay, in the order of epochs of fit_scales.

        The history's train_loss is the mean over the epoch's steps, each before its own update.

        Args:
            parameters: what is trained, in place.
            scores: the choice scores of a batch [B, C].
            rate: the learning rate.

        Raises:
            EditError: where the held-out loss is not finite from the start.
        """
        started = time.perf_counter()
        trial = _Trial(parameters, torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0))
        done = trial.resume(self.checkpoints, rate)
        order = np.random.default_rng(0)
        for epoch in track(
            range(self.options.epochs + 1), f"training {sum(p.numel() for p in parameters):,} parameters", self.options.epochs + 1
        ):
            batches: list[int] = order.permutation(len(self.learn)).tolist() if epoch else []
            if epoch <= done:
                continue
            if trial.history and trial.history[-1]["epoch"] - trial.best_epoch >= self.options.patience:
                break
            row = {"epoch": float(epoch)}
            if epoch:
                losses = []
                for i in batches:
                    loss = F.cross_entropy(scores(self.learn[i]), self.learn[i].answers)
                    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                        parameter.grad = gradient
                    trial.optimiser.step()
                    losses.append(float(loss.detach()))
                row["train_loss"] = float(np.mean(losses))
            with torch.no_grad():
                found = [F.cross_entropy(scores(batch), batch.answers, reduction="none") for batch in self.held]
            row["validation_loss"] = float(torch.cat(found).mean())
            trial.history.append(row)
            if row["validation_loss"] < trial.best_loss:
                trial.best_loss, trial.best_epoch = row["validation_loss"], epoch
                trial.best = [p.detach().clone() for p in parameters]
            trial.keep(self.checkpoints, rate, time.perf_counter() - started)
        if not trial.best:
            raise EditError(f"lr={rate:g}: the held-out loss is not finite from the start; check the model's weights")
        seconds = trial.seconds + time.perf_counter() - started
        return Fitted(trial.best, trial.best_loss, trial.best_epoch, tuple(trial.history), seconds)


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
