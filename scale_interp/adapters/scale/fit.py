"""Fitting ScAle: many fits side by side on one reading of the prompts.

Fits are variants of one packed run, so seeds, controls and head subsets cost little more than one fit. Each fit's loss depends only on its
own scalars, and all fits share the order of batches, so fits side by side equal fits one by one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ...attribution.ablation import provenance
from ...core.arguments import Count, Raises, Seed, checked, checked_settings
from ...core.progress import track
from ...core.there import there
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, EditError, PathWarning
from ...execution.batches import checkpoints_of
from ...execution.journal import Checkpoints
from ...execution.memory import micro_batch
from ...interventions.choices import read_choices
from ...interventions.edit import Edit, Head, Scope, check_heads, positioned
from ...interventions.engine import Path, require_packed
from ...interventions.packed import run_edited
from ...interventions.parts import in_parts
from ...interventions.paths import check_finite, join, packed_batch
from ...interventions.positions import choose_path_at
from ...interventions.prefix import Prefix, PrefixStore
from ...interventions.suffix import run_suffix
from ...interventions.whole_prompt import read_whole
from ...vlm.token_groups import positions_at
from ...vlm.vlm import VLM
from .scale import ScAle
from .trajectory import Trajectory

T = TypeVar("T")
Bound = Literal["tanh", "sigmoid", "clamp", "exp", "none"]
Recipe = Annotated[Literal["default", "release"], Raises(EditError)]
"""Settings by name: "default" is ours, "release" that of the paper's code (docs/methods.md has them side by side)."""
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "release": {
        "bound": "tanh",
        "radius": 10.0,
        "epochs": 10,
        "lr": 1e-3,
        "batch_size": 1,
        "validation": 0.0,
        "loss": "vocabulary",
        "l2": 1e-4,
        "eps": 1e-6,
        "clip": 5.0,
        "accumulate": 4,
        "order": "file",
        "keep": "last",
    },
}


@checked_settings
@dataclass(frozen=True)
class FitSettings:
    """How scalars are fitted; every default is ours, and `FitSettings.of("release")` has those of the paper's code (docs/methods).

    Args:
        bound: the scalar of a free parameter theta. "tanh": 1 + radius * tanh(theta); "sigmoid": 2 * sigmoid(theta); "clamp": 1 + theta,
            clamped to 1 -+ radius; "exp": exp(radius * tanh(theta)); "none": 1 + theta.
        radius: how far a scalar may move from 1 (for "exp", its logarithm from 0).
        granularity: one scalar per "head", or one per "layer".
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").
        at: the token group that the scalars act on; at any other than "last" the scope is "last", so that generated tokens are not
            edited. Prompts are then read again at every step.
        epochs: most passes over the training questions.
        lr: AdamW's learning rate.
        batch_size: questions per step.
        micro_batch: questions of a step that are in memory at once; None for as many as memory holds. It does not change the fit.
        l1: weight of the penalty on the mean |s - 1|.
        retain_weight: weight of the penalty on the KL divergence from the base model, on the questions to retain.
        validation: share of the training images held out for early stopping, between 0 and 1; they are drawn with the fit's seed. 0 holds
            none out, which takes keep="last".
        patience: epochs without a better validation loss before a fit stops; keep="last" never stops.
        loss: cross-entropy of the right answer over the "choices", or over the whole "vocabulary".
        l2: weight of the penalty on the sum of theta^2, added to the loss of every batch.
        eps: AdamW's epsilon.
        clip: largest norm of a step's gradient, of the heads' and of the MLPs' parameters each; None for no limit.
        accumulate: batches whose gradients are summed for one step.
        order: the batches' order in every epoch, "shuffled" or that of the "file".
        keep: the epoch whose scalars count: the "best" on held-out images, or the "last".
        every_epoch: whether the result has the scalars of every epoch (`ScAle.trajectory`), and its history their accuracies.

    Raises:
        EditError: for a setting out of its range.

    >>> FitSettings(bound="sigmoid", epochs=5).scalars(torch.zeros(2))
    tensor([1., 1.])
    """

    bound: Bound = "tanh"
    radius: float = 1.0
    granularity: Literal["head", "layer"] = "head"
    scope: Scope = "each_new_token"
    at: str = "last"
    epochs: int = 40
    lr: float = 0.05
    batch_size: Count = 64
    micro_batch: Count | None = None
    l1: float = 0.0
    retain_weight: float = 3.0
    validation: float = 0.2
    patience: int = 4
    loss: Annotated[Literal["choices", "vocabulary"], Raises(EditError)] = "choices"
    l2: float = 0.0
    eps: float = 1e-8
    clip: float | None = None
    accumulate: Count = 1
    order: Annotated[Literal["shuffled", "file"], Raises(EditError)] = "shuffled"
    keep: Annotated[Literal["best", "last"], Raises(EditError)] = "best"
    every_epoch: bool = False

    def __post_init__(self) -> None:
        if self.bound not in ("tanh", "sigmoid", "clamp", "exp", "none"):
            raise EditError(f"bound {self.bound!r}: choose 'tanh', 'sigmoid', 'clamp', 'exp' or 'none'")
        if self.granularity not in ("head", "layer"):
            raise EditError(f"granularity {self.granularity!r}: choose 'head' or 'layer'")
        if not 0 <= self.validation < 1 or (self.validation == 0 and self.keep == "best"):
            raise EditError(
                f"validation={self.validation}: give the share of images to hold out, between 0 and 1; "
                "0 is possible with keep='last', which needs none"
            )
        for name in ("radius", "lr", "epochs", "batch_size", "patience", "eps", "clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise EditError(f"{name}={getattr(self, name)}: give a number above 0")
        for name in ("l1", "l2", "retain_weight"):
            if getattr(self, name) < 0:
                raise EditError(f"{name}={getattr(self, name)}: give a number of at least 0")
        if self.at != "last":
            object.__setattr__(self, "scope", "last")

    @classmethod
    def of(cls, recipe: str = "default", **settings: Any) -> FitSettings:
        """The settings of a recipe, "default" or "release", with these fields in place of its own.

        Raises:
            EditError: for an unknown recipe, and as FitSettings.

        >>> FitSettings.of("release", epochs=3).scalars(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([-9.,  1., 11.])
        """
        if recipe not in RECIPES:
            raise EditError(f"recipe {recipe!r}: choose {' or '.join(map(repr, RECIPES))}")
        return cls(**{**RECIPES[recipe], **settings})

    @property
    def questions_per_step(self) -> int:
        """How many questions one step of the optimiser learns from, so the batch size of their PrefixStore."""
        return self.batch_size * self.accumulate

    def scalars(self, theta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The scalars of free parameters theta, of the same shape; 1 at theta = 0."""
        if self.bound == "tanh":
            return 1 + self.radius * torch.tanh(theta)
        if self.bound == "sigmoid":
            return 2 * torch.sigmoid(theta)
        if self.bound == "clamp":
            return (1 + theta).clamp(1 - self.radius, 1 + self.radius)
        if self.bound == "exp":
            return torch.exp(self.radius * torch.tanh(theta))
        return 1 + theta


@checked_settings
@dataclass(frozen=True)
class Fit:
    """One of several fits: which scalars are learned, from which answers, and with which seed.

    Args:
        name: the fit's name.
        heads: (layer, head) pairs; None for all.
        mlp: whether MLP scalars are learned too.
        answers: the index of the answer to teach for each training question; None for the right ones.
        seed: for the held-out images.
        frozen: learn nothing, as a control.

    >>> Fit("two heads", heads=((3, 1), (2, 0)), mlp=False).seed
    0
    """

    name: str = "fit"
    heads: tuple[Head, ...] | None = None
    mlp: bool = True
    answers: tuple[int, ...] | None = None
    seed: Seed = 0
    frozen: bool = False


@checked
def fit_scale(
    vlm: VLM,
    train: Sequence[Question],
    heads: Iterable[Head] | None = None,
    mlp: bool = True,
    *,
    layers: Iterable[int] | None = None,
    retain: Sequence[Question] | None = None,
    seed: Seed = 0,
    prompts: PrefixStore | None = None,
    path: Path = "auto",
    recipe: Recipe = "default",
    **settings: Any,
) -> ScAle:
    """Fit scalars on the last token's heads and MLPs of the frozen model (arXiv 2606.29579).

    By default only the choices' scores are trained on, by cross-entropy.

    Args:
        vlm: the model, from `si.load`.
        train: training questions.
        heads: (layer, head) pairs; None for all.
        mlp: whether to learn MLP scalars too.
        layers: only the heads and MLPs of these layers; None for all.
        retain: questions whose answers should stay as the base model gives them.
        seed: for the held-out images.
        prompts: the training questions' prefixes, to reuse.
        path: "auto" or "packed"; there is no reference path. Give "packed" where the prompt would have to be frozen (see run_edits).
        recipe: "default", or "release" for the settings of the paper's code.
        **settings: fields of FitSettings, in place of the recipe's.

    Returns:
        A ScAle, scalars [L, H] and mlp_scalars [L], of the epoch with the lowest validation loss, or of the last one with keep="last".

    Raises:
        EditError: for heads, layers or settings that are not possible, and for a model or path that is not packed.
        DataError: where no question is left to learn from after images were held out.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", split="train", n=64)
    >>> si.fit_scale(vlm, train, heads=[(2, 1), (3, 0)], mlp=False, epochs=2).n_parameters
    2
    >>> si.fit_scale(vlm, train[:16], recipe="release", epochs=2).settings["loss"]
    'vocabulary'
    """
    only = None if layers is None else _check_layers(layers, vlm.n_layers)
    fit = Fit("fit", None if heads is None else tuple(check_heads(heads, vlm.n_layers, vlm.n_heads)), mlp, seed=seed)
    return fit_scales(vlm, train, [fit], retain=retain, layers=only, prompts=prompts, path=path, recipe=recipe, **settings)[0]


@checked
def fit_scales(
    vlm: VLM,
    train: Sequence[Question],
    fits: Sequence[Fit],
    *,
    retain: Sequence[Question] | None = None,
    layers: Sequence[int] | None = None,
    prompts: PrefixStore | None = None,
    path: Path = "auto",
    recipe: Recipe = "default",
    **settings: Any,
) -> list[ScAle]:
    """Run several fits side by side on one reading of the training prompts; the numbers are the same as one after another.

    Args:
        vlm: the model, from `si.load`.
        train: training questions.
        fits: the fits to run.
        retain: as in fit_scale.
        layers: as in fit_scale.
        prompts: as in fit_scale.
        path: as in fit_scale.
        recipe: as in fit_scale.
        **settings: as in fit_scale.

    Returns:
        One ScAle per fit.

    Raises:
        EditError: for no fits, and as in fit_scale.
        DataError: as in fit_scale.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=16)
    >>> fits = [si.Fit("one head", ((3, 1),), mlp=False), si.Fit("all heads", mlp=False)]
    >>> [scale.n_parameters for scale in si.fit_scales(vlm, train, fits, epochs=1)]
    [1, 48]
    """
    train = require(train)
    options = FitSettings.of(recipe, **settings)
    if not fits:
        raise EditError("no fits: give at least one")
    for fit in fits:
        _check_fit(fit, train)
    if options.at == "last":
        require_packed(vlm, train, path, "fitting")
    elif choose_path_at(vlm, train[0], path) != "packed":
        raise EditError(
            f"fitting at {options.at!r} needs gradients, which only the packed path has, but {vlm.name} takes whole passes there"
        )
    if any(fit.mlp for fit in fits) and vlm.head_layers[0].norms[1] is not None:
        warnings.warn(
            f"{vlm.name} norms the MLP's output, which undoes a factor, so MLP scalars have almost no effect; use mlp=False",
            PathWarning,
            stacklevel=3,
        )
    learner = Learner(vlm, train, fits, options, layers)
    if prompts is None:
        prompts = prompts_to_fit(vlm, train, len(fits), options)
    prompts.require(vlm, train)
    size = prompts.within or prompts.batch_size
    if options.accumulate > 1 and size != options.questions_per_step:
        raise EditError(
            f"the prompts are in batches of {size}, but one step sums {options.accumulate} batches of "
            f"{options.batch_size}: give PrefixStore(vlm, train, {options.questions_per_step}), or none"
        )
    kept = _Retained(vlm, retain, len(fits), options) if retain is not None else None
    checkpoints = checkpoints_of(vlm, "fit", prompts.plan, learner.fits, learner.options, learner.on, learner.mlp_on, retain)
    order = np.random.default_rng(0)
    what = f"fitting {len(fits)} ScAle" + "s" * (len(fits) > 1)
    done = learner.resume(checkpoints)
    for epoch in track(range(options.epochs + 1), what, options.epochs + 1):
        steps: list[int] = order.permutation(len(prompts.steps)).tolist() if epoch else []
        steps = sorted(steps) if options.order == "file" else steps
        if epoch <= done or not len(learner.running):
            continue
        for step, i in enumerate(steps):
            learner.step(prompts, prompts.steps[i], kept, step)
        learner.validate(prompts, kept)
        learner.keep(checkpoints)
    made = provenance(vlm, train, path="packed", retain=None if retain is None else len(retain))
    return learner.results(made)


def prompts_to_fit(vlm: VLM, train: Sequence[Question], n_fits: int, options: FitSettings) -> PrefixStore:
    """The training prompts as fits read them: the questions of each step in the micro-batches that memory holds.

    Args:
        vlm: The model.
        train: The training questions.
        n_fits: How many fits run side by side.
        options: The settings of the fits.

    Returns:
        The prompts, to be given to `fit_scales` as prompts=...
    """
    size = min(options.questions_per_step, len(train))
    micro = options.micro_batch
    if micro is None:
        tokens, rows = prompt_size(vlm, train[0])
        micro = micro_batch(vlm, tokens, n_fits * rows, size)
    return PrefixStore(vlm, train, min(micro, size), within=options.questions_per_step)


def prompt_size(vlm: VLM, question: Question) -> tuple[int, int]:
    """The tokens of a question's prompt, and the rows of the tree of its choices, as which micro-batches count it."""
    tree = read_choices(vlm, [question], torch.zeros(1, dtype=torch.long))
    return vlm.encode(question)["input_ids"].shape[1], tree.tokens.shape[1]


def learning_mask(train: Sequence[Question], validation: float, seed: int) -> Bool[Tensor, " questions"]:
    """Which questions to learn from [Q]: a share of the images, drawn with the seed, is held out.

    Raises:
        DataError: where no question is left to learn from.
    """
    if not validation:
        return torch.ones(len(train), dtype=torch.bool)
    group = groups(train)
    count = int(group.max()) + 1
    held = np.random.default_rng([seed, 1]).permutation(count)[: max(1, round(count * validation))]
    learns = torch.from_numpy(~np.isin(group, held))
    if not learns.any():
        raise DataError(f"{len(train)} training questions on {count} image(s): none is left to learn from; give more images")
    return learns


class Learner:
    """Free parameters of F fits, their optimiser, and the best scalars of each by validation loss."""

    def __init__(self, vlm: VLM, train: Sequence[Question], fits: Sequence[Fit], options: FitSettings, layers: Sequence[int] | None):
        self.vlm, self.fits, self.options = vlm, fits, options
        self.layers = None if layers is None else _check_layers(layers, vlm.n_layers)
        F_, L, H = len(fits), vlm.n_layers, vlm.n_heads
        self.heads = [self._heads(fit) for fit in fits]
        self.on = torch.zeros(F_, L, H, dtype=torch.bool)
        self.mlp_on = torch.zeros(F_, L, dtype=torch.bool)
        for f, fit in enumerate(fits):
            for head in self.heads[f]:
                self.on[f][head] = True
            self.mlp_on[f, slice(None) if self.layers is None else self.layers] = fit.mlp
            if not (self.on[f].any() or self.mlp_on[f].any()):
                raise EditError(f"{fit.name}: no head and no MLP is left to learn; give heads, or mlp=True")
        shape = (F_, L, H) if options.granularity == "head" else (F_, L, 1)
        self.theta = torch.zeros(shape, dtype=torch.float32, requires_grad=True)
        self.phi = torch.zeros(F_, L, dtype=torch.float32, requires_grad=True)
        self.optimiser = torch.optim.AdamW([self.theta, self.phi], lr=options.lr, eps=options.eps, weight_decay=0.0)
        self.learning = torch.tensor([not f.frozen for f in fits])
        self.answers = torch.stack([torch.tensor(f.answers if f.answers is not None else [q.answer for q in train]) for f in fits])
        self.trains = torch.stack([learning_mask(train, options.validation, f.seed) for f in fits])
        self.best = [(float("inf"), 0)] * F_
        self.best_scalars = [t.detach().clone() for t in self.scalars()]
        self.stopped = ~self.learning
        self.histories: list[list[dict[str, float]]] = [[] for _ in fits]
        self.passed: list[tuple[Tensor, Tensor]] = []
        """The scalars of every epoch so far, where these are wanted."""
        self.epoch = -1

    def _heads(self, fit: Fit) -> tuple[Head, ...]:
        L, H = self.vlm.n_layers, self.vlm.n_heads
        chosen = [(i, h) for i in range(L) for h in range(H)] if fit.heads is None else check_heads(fit.heads, L, H)
        return tuple(head for head in chosen if self.layers is None or head[0] in self.layers)

    def scalars(self) -> tuple[Tensor, Tensor]:
        """Scalars [F, L, H] and MLP scalars [F, L]; exactly 1 where nothing is learned."""
        learned = self.learning[:, None] & self.mlp_on
        scale = torch.where(self.on & self.learning[:, None, None], self.options.scalars(self.theta), 1.0)
        return scale, torch.where(learned, self.options.scalars(self.phi), 1.0)

    @property
    def running(self) -> Tensor:
        """The fits that have not stopped; stopped fits cost nothing."""
        return (~self.stopped).nonzero().flatten()

    def _edit(self) -> Edit:
        scale, mlp = (t[self.running] for t in self.scalars())
        return Edit(scale=scale, mlp_scale=mlp if self.mlp_on.any() else None, scope=self.options.scope, at=self.options.at)

    def _losses(self, prefix: Prefix) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of each question for each running fit [B, R], which of them it learns from, and whether it answers as taught."""
        edit = self._edit()
        if self.options.loss == "vocabulary":
            prefix = replace(prefix, choices=prefix.choices.likelihoods())
        scores = edited_scores(self.vlm, prefix, edit)
        check_finite(self.vlm, prefix.questions, scores.detach(), edit, prefix.rows.start or 0)
        answers, learns = (there(t[self.running][:, prefix.rows].T, scores.device) for t in (self.answers, self.trains))
        if self.options.loss == "vocabulary":
            losses = -scores.gather(-1, answers[..., None])[..., 0]
        else:
            losses = F.cross_entropy(scores.flatten(0, 1), answers.flatten(), reduction="none").view(answers.shape)
        return losses, learns, scores.detach().argmax(-1) == answers

    def step(self, prompts: PrefixStore, batches: Sequence[int], kept: _Retained | None, step: int) -> None:
        """One step of the optimiser on these batches of prompts together, for all running fits.

        The loss is the sum over the settings' batches of the mean over a batch's questions.
        """
        first, last = prompts.slices[batches[0]].start, prompts.slices[batches[-1]].stop
        learns = self.trains[self.running][:, first:last].T
        by_batch = learns.split(self.options.batch_size if self.options.accumulate > 1 else len(learns))
        weights = torch.cat([part / part.sum(0).clamp(min=1) for part in by_batch])
        slopes = [torch.zeros_like(one) for one in (self.theta, self.phi)]

        def learn(part: Prefix) -> tuple[Tensor, ...]:
            losses, *_ = self._losses(part)
            return self._slopes((losses * there(weights[part.rows.start - first : part.rows.stop - first], losses.device)).sum())

        def retain(part: Prefix) -> tuple[Tensor, ...]:
            assert kept is not None
            return self._slopes(self.options.retain_weight * kept.divergence(part, self._edit()).sum())

        for i in batches:
            self._add(slopes, self._in_parts(prompts[i], learn))
        if self.options.l2:
            squares = self.theta.square().sum((1, 2)) + self.phi.square().sum(1)
            times = torch.stack([part.any(0).long() for part in by_batch]).sum(0)
            self._add(slopes, [self._slopes(self.options.l2 * (times * squares[self.running]).sum())])
        if kept is not None:
            for i in kept.batches(step):
                self._add(slopes, self._in_parts(kept.prompts[i], retain))
        if self.options.l1:
            scale, mlp = self.scalars()
            learned = self.on.sum((1, 2)) + self.mlp_on.sum(1)
            penalty = (((scale - 1).abs().sum((1, 2)) + (mlp - 1).abs().sum(1)) / learned).sum()
            self._add(slopes, [self._slopes(self.options.l1 * penalty)])
        if self.options.clip is not None:
            slopes = [_clipped(slope, self.options.clip) for slope in slopes]
        self.theta.grad, self.phi.grad = slopes
        self.optimiser.step()

    def _slopes(self, loss: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the free parameters, and of these two alone, so that a live model's own weights get none."""
        return torch.autograd.grad(loss, [self.theta, self.phi], materialize_grads=True)

    @staticmethod
    def _add(slopes: list[Tensor], more: Iterable[tuple[Tensor, ...]]) -> None:
        for parts in more:
            for slope, part in zip(slopes, parts, strict=True):
                slope += part

    def _in_parts(self, prefix: Prefix, work: Callable[[Prefix], T]) -> Iterator[T]:
        return in_parts(self.vlm, prefix, len(self.running), work, self.options.micro_batch)

    @torch.no_grad()
    def validate(self, prompts: PrefixStore, kept: _Retained | None) -> None:
        """Keep each fit's scalars where its held-out loss is the lowest so far; stop it after `patience` worse epochs.

        Called before the first epoch too, so a fit that never helps on held-out questions stays at 1. With keep="last", the scalars of
        every epoch take the place of the last one's.
        """
        self.epoch += 1
        found = [part for prefix in prompts for part in self._in_parts(prefix, self._losses)]
        losses, learns, right = (torch.cat(p) for p in zip(*found, strict=True))
        validation = (losses * ~learns).sum(0) / (~learns).sum(0)
        training = (losses * learns).sum(0) / learns.sum(0)
        divergence = torch.zeros_like(validation)
        if kept is not None:
            edit = self._edit()
            steps = [
                [part for i in step for part in self._in_parts(kept.prompts[i], partial(kept.divergence, edit=edit))]
                for step in kept.prompts.steps
            ]
            divergence = torch.stack([torch.stack(parts).sum(0) for parts in steps]).mean(0)
        held_out, last = bool(self.options.validation), self.options.keep == "last"
        now = self.scalars()
        if self.options.every_epoch:
            self.passed.append((now[0].clone(), now[1].clone()))
        for i, f in enumerate(self.running.tolist()):
            row = {"epoch": self.epoch, "train_loss": float(training[i])}
            row |= {"validation_loss": float(validation[i])} if held_out else {}
            if self.options.every_epoch:
                row["train_accuracy"] = float(right[:, i][learns[:, i]].float().mean())
                row |= {"validation_accuracy": float(right[:, i][~learns[:, i]].float().mean())} if held_out else {}
            self.histories[f].append(row | ({"retain_kl": float(divergence[i])} if kept is not None else {}))
            loss = float(validation[i] + self.options.retain_weight * divergence[i])
            if last or loss < self.best[f][0]:
                self.best[f] = (loss, self.epoch)
                for best, current in zip(self.best_scalars, now, strict=True):
                    best[f] = current[f]
            elif self.epoch - self.best[f][1] >= self.options.patience:
                self.stopped[f] = True

    def keep(self, checkpoints: Checkpoints | None) -> None:
        """Store all that the next epoch needs, in place of the last epoch."""
        if checkpoints is None:
            return
        adam = {f"{name} {key}": t for name, one in self._optimised() for key, t in self.optimiser.state[one].items()}
        best = dict(zip(("best scale", "best mlp_scale"), self.best_scalars, strict=True))
        best |= dict(zip(("every scale", "every mlp_scale"), map(torch.stack, zip(*self.passed, strict=True)), strict=False))
        tensors = {"theta": self.theta, "phi": self.phi, "stopped": self.stopped} | best | adam
        # As text, since a loss may still be infinite.
        checkpoints.put("epoch", tensors, {"epoch": self.epoch, "best": json.dumps(self.best), "histories": json.dumps(self.histories)})

    def resume(self, checkpoints: Checkpoints | None) -> int:
        """Continue from the stored epoch. Returns its number, or -1 where none is stored."""
        found = None if checkpoints is None else checkpoints.get("epoch")
        if found is None:
            return -1
        tensors, meta = found
        for name, one in self._optimised():
            one.data.copy_(tensors.pop(name))
            adam = {key.removeprefix(f"{name} "): t for key, t in tensors.items() if key.startswith(f"{name} ")}
            if adam:
                self.optimiser.state[one] = adam
        self.stopped, self.epoch = tensors["stopped"], meta["epoch"]
        self.best_scalars = [tensors["best scale"], tensors["best mlp_scale"]]
        if "every scale" in tensors:
            self.passed = list(zip(tensors["every scale"].clone(), tensors["every mlp_scale"].clone(), strict=True))
        self.best, self.histories = [tuple(best) for best in json.loads(meta["best"])], json.loads(meta["histories"])
        return self.epoch

    def _optimised(self) -> list[tuple[str, Tensor]]:
        return [("theta", self.theta), ("phi", self.phi)]

    def results(self, made: dict[str, Any]) -> list[ScAle]:
        """One ScAle per fit."""
        settings = asdict(self.options) | ({} if self.layers is None else {"layers": self.layers})
        out = []
        for f, fit in enumerate(self.fits):
            on = self.on[f] if self.options.granularity == "head" else self.on[f].any(1)
            count = 0 if fit.frozen else int(on.sum() + self.mlp_on[f].sum())
            scale, mlp = (t[f].clone() for t in self.best_scalars)
            info = settings | {"mlp": fit.mlp, "seed": fit.seed, "frozen": fit.frozen, "best_epoch": self.best[f][1]}
            scope, passed = self.options.scope, None
            if self.options.every_epoch:
                # A fit that has stopped no longer moves, so its own epochs are as many as its history has.
                own = self.passed[: len(self.histories[f]) or 1]
                passed = Trajectory(torch.stack([s[f] for s, _ in own]), torch.stack([m[f] for _, m in own]), scope)
            rows = tuple(self.histories[f])
            about = made | {"fit": fit.name}
            out.append(ScAle(scale, mlp, count, self.heads[f], scope, info, about, rows, passed, self.options.at))
        return out


class _Retained:
    """Questions whose answers should not move: the base model's choice probabilities, and the divergence from these."""

    def __init__(self, vlm: VLM, questions: Sequence[Question], n_fits: int, options: FitSettings):
        self.vlm, self.prompts = vlm, prompts_to_fit(vlm, require(questions), n_fits, options)
        with torch.no_grad():
            found = [packed_batch(vlm, prefix, None)[0].log_softmax(-1) for prefix in self.prompts]
        self.base = join(found)[:, 0]

    def batches(self, step: int) -> list[int]:
        """The batches of prompts that a step goes by."""
        return self.prompts.steps[step % len(self.prompts.steps)]

    def divergence(self, part: Prefix, edit: Edit) -> Tensor:
        """The share of some questions in the mean KL(base || edited) over their batch, for each variant [N]."""
        edited = edited_scores(self.vlm, part, edit).log_softmax(-1)
        base = self.base[part.rows, None, : edited.shape[-1]]
        whole = self.prompts.step_of(part.rows.start)
        return torch.where(base.isinf(), 0.0, base.exp() * (base - edited)).sum((0, 2)) / whole


def edited_scores(vlm: VLM, prefix: Prefix, edit: Edit) -> Tensor:
    """Scores [B, N, C] of an edit, with the graph; one at a token group reads the prompts in full, as it begins before their end."""
    if not positioned(edit):
        return run_edited(vlm, prefix, edit)
    read = replace(read_whole(vlm, prefix.questions), choices=prefix.choices)
    return run_suffix(vlm, read, edit, [positions_at(vlm, q, edit.at) for q in prefix.questions])[1]


def _clipped(slope: Tensor, most: float) -> Tensor:
    """Gradients [F, ...] of which no fit's norm is above `most`, as torch's clip_grad_norm_ does it for each fit alone."""
    norms = slope.flatten(1).norm(dim=1).view(-1, *[1] * (slope.ndim - 1))
    return slope * (most / (norms + 1e-6)).clamp(max=1.0)


def _check_layers(layers: Iterable[int], n_layers: int) -> list[int]:
    out = [i.item() if isinstance(i, Tensor | np.generic) else i for i in layers]
    wrong = [i for i in out if not isinstance(i, int) or not 0 <= i < n_layers]
    if wrong or len(set(out)) < len(out):
        raise EditError(f"layers {out}: give different numbers from 0 to {n_layers - 1}")
    return out


def _check_fit(fit: Fit, train: Sequence[Question]) -> None:
    if not isinstance(fit, Fit):
        raise EditError(f"a fit is a {type(fit).__name__}: give si.Fit(...)")
    if fit.answers is None:
        return
    if len(fit.answers) != len(train):
        raise EditError(f"{fit.name}: {len(fit.answers)} taught answers to {len(train)} questions; give one per question")
    wrong = [(q, a) for q, a in zip(train, fit.answers, strict=True) if not 0 <= a < len(q.choices)]
    if wrong:
        raise EditError(f"{fit.name}: {wrong[0][1]!r} is not an answer to question {wrong[0][0].id}; give an index of its choices")
