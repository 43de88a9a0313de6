"""Methods learned on training questions, each with its best setting on validation questions; doing nothing is one of the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Self

import torch
from torch import Tensor

from ...adapters.attention_scaling.adaptvis import AdaptVis
from ...adapters.attention_scaling.method import AttentionMethod, SavedSettings
from ...adapters.attention_scaling.pasta import PASTA
from ...adapters.attention_scaling.scalingvis import AttentionScale
from ...adapters.scale.fit import Fit, FitSettings, fit_scales, prompts_to_fit
from ...adapters.steering.direction import answer_direction
from ...adapters.steering.emphasis import ALPHAS, GAINS
from ...adapters.steering.fit import fit_steering
from ...attribution.metric import measure
from ...core.result import Result, build, declared, entries
from ...core.tensors import expect
from ...data.question import Question
from ...errors import DataError, FileError
from ...interventions.edit import Edit, Head
from ...interventions.engine import run_edits
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from ..accuracy import evaluate
from ..attention_scaling.answers import Tuned, evaluate_scaled, tune_adaptvis, tune_scaling
from .head_sets import HeadSets
from .located import FUNCTIONAL, LATENT

EMPHASIS, LATENT_HEADS = "CogVSR emphasis", "latent heads"
WEIGHTS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)
"""Weights of ScalingVis; the paper's end at 2. AdaptVis takes those up to 1 where the model is unsure and those from 1 where it is sure."""
PASTA_HEADS, PASTA_ALPHAS = (4, 8, 16, 48), (0.3, 0.1, 0.01)
"""The paper's alpha is 0.01."""
PROFILED = 16
"""PASTA's heads are ranked on this many training questions; each takes one whole forward pass per head."""
ITI_HEADS, ITI_ALPHAS = (4, 8, 16, 48), (0.5, 1.0, 2.0, 5.0, 15.0)
"""The release uses 48 heads and alpha 15."""
STRENGTHS = (0.5, 1.0)
"""How far ScAle's scalars go from 1 (at 0) to the learned values (at 1)."""
CLASSES: dict[str, type[SavedSettings]] = {"AttentionScale": AttentionScale, "AdaptVis": AdaptVis, "PASTA": PASTA}
ORDER = ("of", "heads", "weight", "weight_low", "weight_high", "threshold", "gain", "alpha", "strength", "accuracy")
"""The order in which a setting is shown, whatever its order in a file."""
AXES = {"scale": 3, "shift": 4, "mlp_scale": 2}
"""Number of axes of each tensor of an edit of one variant."""
Setting = Mapping[str, float | str]
Method = Edit | AttentionMethod


@dataclass(frozen=True)
class Option:
    """A setting to try.

    Args:
        setting: its values by name; empty for doing nothing.
        method: the edit or attention method with this setting.
        parameters: how many learned or tuned numbers it adds to the model.
    """

    setting: Setting
    method: Method
    parameters: int


@dataclass(frozen=True, eq=False)
class Chosen(Result):
    """A method with the setting that has the highest accuracy on validation questions; of equal ones the gentlest.

    Args:
        name: the method's name.
        method: an Edit of one variant or an attention method.
        setting: its values by name; empty where doing nothing was best.
        parameters: how many learned or tuned numbers it adds to the model.
        grid: one row per setting, in the order tried, with its accuracy on validation questions.
        heads: its head set, if it has one.
        about: how that set was found.
    """

    name: str
    method: Method
    setting: Setting
    parameters: int
    grid: tuple[Mapping[str, Any], ...]
    heads: tuple[Head, ...] = ()
    about: str = ""

    def __repr__(self) -> str:
        return f"<Chosen {self.name}: {describe_setting(self.setting)}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return sorted(self.grid, key=lambda row: -row["accuracy"])

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = super()._parts()
        if not isinstance(self.method, Edit):
            return tensors, meta | {"method": self.method.config()}
        parts = {name: part for name in AXES if (part := getattr(self.method, name)) is not None}
        return parts, meta | {"method": {"scope": self.method.scope}}

    @classmethod
    def _tensors(cls, path: FilePath, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        if unknown := tensors.keys() - AXES:
            raise FileError(f"{path} holds an unknown tensor {min(unknown)!r}, and one of the edit is missing; save it again")
        return {"method": {name: expect(path, tensors, name, AXES[name]) for name in tensors}}

    @classmethod
    def _read(cls, path: FilePath, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        config = entries(path, meta, {"method": dict[str, Any]})["method"]
        if "scope" in config:
            method: Any = build(path, lambda: Edit(**tensors["method"], scope=config["scope"]))
        else:
            method = build(path, lambda: CLASSES[config["method"]]).from_content(config, path)
        return super()._read(path, {"method": method}, meta)

    @classmethod
    def _arguments(cls, path: FilePath, meta: Mapping[str, Any]) -> dict[str, Any]:
        return entries(path, meta, {name: hint for name, hint in declared(cls).metadata.items() if name != "method"})


def describe_setting(setting: Setting) -> str:
    """A setting in words.

    >>> describe_setting({"heads": 8, "alpha": 0.5}), describe_setting({})
    ('heads 8, alpha 0.5', 'do nothing')
    """
    items = ((name, setting[name]) for name in ORDER if name in setting)
    parts = (f"{name} {value:.3g}" if isinstance(value, int | float) else f"{name} {value}" for name, value in items)
    return ", ".join(parts) or "do nothing"


class Tuner:
    """Training and validation questions, whose prompts are read once, and the head sets located on the training questions."""

    def __init__(self, vlm: VLM, train: Sequence[Question], validation: Sequence[Question], sets: HeadSets, top: int = 8, seed: int = 0):
        self.vlm, self.train, self.validation, self.sets, self.top, self.seed = vlm, train, validation, sets, top, seed
        self.every = [(layer, head) for layer in range(vlm.n_layers) for head in range(vlm.n_heads)]
        self.train_prompts = prompts_to_fit(vlm, train, 1, FitSettings())
        self.prompts = PrefixStore(vlm, validation)

    @cached_property
    def nothing(self) -> Option:
        """The model as it is."""
        edit = Edit.identity(self.vlm.n_layers, self.vlm.n_heads)
        return Option({}, replace(edit, scope="each_new_token"), 0)

    def choose(self, name: str, options: Sequence[Option], heads: Sequence[Head] = (), about: str = "") -> Chosen:
        """The option with the highest accuracy on the validation questions; of equal ones the first."""
        edits = [option.method for option in options if isinstance(option.method, Edit)]
        if len(edits) == len(options):
            scores = run_edits(self.vlm, self.validation, Edit.stack(edits), prompts=self.prompts, what="tuning")
            accuracy = measure("accuracy", scores, self.validation).double().mean(0).tolist()
        else:
            methods: Any = [option.method for option in options]
            answers = evaluate_scaled(self.vlm, self.validation, methods, prompts=self.prompts)
            accuracy = [float(e.per_question.double().mean()) for e in answers]
        best = options[max(range(len(options)), key=accuracy.__getitem__)]
        grid = tuple({**option.setting, "accuracy": value} for option, value in zip(options, accuracy, strict=True))
        return Chosen(name, best.method, best.setting, best.parameters, grid, tuple(heads), about)


def _scaling(t: Tuner) -> Chosen:
    return _of_tuned("ScalingVis", tune_scaling(t.vlm, t.validation, WEIGHTS, prompts=t.prompts))


def _adaptvis(t: Tuner) -> Chosen:
    low, high = [w for w in WEIGHTS if w <= 1], [w for w in WEIGHTS if w >= 1]
    return _of_tuned("AdaptVis", tune_adaptvis(t.vlm, t.validation, low, high, prompts=t.prompts))


def _of_tuned(name: str, found: Tuned) -> Chosen:
    """A tuned setting; among equal ones both tuners prefer weights closest to 1, and their grids contain 1."""
    settings = {key: value for key, value in asdict(found.method).items() if key in found.grid[0]}
    idle = all(value == 1 for key, value in settings.items() if key.startswith("weight"))
    return Chosen(name, found.method, {} if idle else settings, 0 if idle else found.method.n_parameters, found.grid)


def _pasta(t: Tuner) -> Chosen:
    """Heads are profiled one by one, as in the paper's section 3.2, by logit difference; then the best few are tuned."""
    asked = t.train[:PROFILED]
    strong = PASTA_ALPHAS[-1]
    singles = evaluate_scaled(t.vlm, asked, [PASTA((head,), strong) for head in t.every])
    gains = torch.stack([measure("logit_diff", single.scores, asked).mean() for single in singles])
    order = [t.every[i] for i in gains.argsort(descending=True, stable=True).tolist()]
    options = [Option({}, PASTA(tuple(order[:1]), 1.0), 0)]
    for count in _counts(PASTA_HEADS, len(order)):
        options += [Option({"heads": count, "alpha": alpha}, PASTA(tuple(order[:count]), alpha), 1) for alpha in PASTA_ALPHAS]
    about = f"the top {t.top} profiled one by one with alpha {strong:g}, of {len(asked)} training questions"
    return t.choose("PASTA", options, order[: t.top], about)


def _iti(t: Tuner) -> Chosen:
    most = min(ITI_HEADS[-1], len(t.every))
    found = fit_steering(t.vlm, t.train, most, seed=t.seed, prompts=t.train_prompts)
    options = [t.nothing]
    for alpha in ITI_ALPHAS:
        for count in _counts(ITI_HEADS, most):
            edit = found.edit(alpha).restrict(found.heads[:count])
            options.append(Option({"heads": count, "alpha": alpha}, edit, count * t.vlm.head_dim))
    about = f"the top {t.top} by a probe of right and wrong answers, {len(t.train)} training questions"
    return t.choose("ITI", options, found.heads[: t.top], about)


def _emphasis(t: Tuner) -> Chosen:
    return _emphasised(t, EMPHASIS, FUNCTIONAL)


def _latent(t: Tuner) -> Chosen:
    return _emphasised(t, LATENT_HEADS, LATENT)


def _emphasised(t: Tuner, name: str, of: str) -> Chosen:
    """Functional or latent heads, amplified by a gain or shifted along the direction of right answers, whichever is best."""
    heads = t.sets.sets.get(of, ())
    if not heads:
        raise DataError(f"no {of} heads: {t.sets.left_out.get(FUNCTIONAL, 'none were found; leave this method out')}")
    louder = {g: Edit.scaling(heads, g, t.vlm.n_layers, t.vlm.n_heads) for g in GAINS}
    options = [t.nothing, *(Option({"gain": g}, replace(edit, scope="each_new_token"), 1) for g, edit in louder.items())]
    size = len(heads) * t.vlm.head_dim
    with suppress(DataError):  # all training answers are right, or all wrong: there is no direction, and gains alone are tried
        direction = answer_direction(t.vlm, t.train)
        options += [Option({"alpha": a}, direction.edit(heads, a), size) for a in (0.5, *ALPHAS)]
    return t.choose(name, options)


def _scale(t: Tuner) -> Chosen:
    """ScAle on the top heads, on all heads, and on all heads and MLPs; which of these, and how strong, is tuned."""
    ranked = next((name for name in ("patching", "zero ablation") if name in t.sets.sets), None)
    fits = [Fit("all heads", mlp=False, seed=t.seed), Fit("all heads and MLPs", seed=t.seed)]
    if ranked is not None:
        fits.insert(0, Fit(f"top {t.top} heads", t.sets.sets[ranked], mlp=False, seed=t.seed))
    scales = fit_scales(t.vlm, t.train, fits, prompts=t.train_prompts)
    options = [t.nothing]
    for strength in STRENGTHS:
        for fit, scale in zip(fits, scales, strict=True):
            options.append(Option({"of": fit.name, "strength": strength}, scale.edit(strength), scale.n_parameters))
    moved = [head for head, scalar in scales[-1].ranking()[: t.top] if scalar != 1]
    return t.choose(
        "ScAle",
        options,
        moved,
        f"the top {t.top} by the scalar's distance from 1, all heads and MLPs fitted, {len(t.train)} training questions",
    )


def _counts(wanted: Sequence[int], most: int) -> list[int]:
    """The wanted numbers of heads, none above how many there are."""
    return sorted({min(count, most) for count in wanted})


LEARN: dict[str, Callable[[Tuner], Chosen]] = {
    "ScalingVis": _scaling,
    "AdaptVis": _adaptvis,
    "PASTA": _pasta,
    "ITI": _iti,
    EMPHASIS: _emphasis,
    LATENT_HEADS: _latent,
    "ScAle": _scale,
}


def answer_with(vlm: VLM, questions: Sequence[Question], method: Method | None, prompts: PrefixStore | None = None) -> tuple[Tensor, float]:
    """Right answers [Q] of the model under a method (None: as it is), and the forward passes that one answer takes."""
    if method is None or isinstance(method, Edit):
        return evaluate(vlm, questions, method, prompts=prompts).per_question, 1.0
    (found,) = evaluate_scaled(vlm, questions, [method], prompts=prompts)
    return found.per_question, found.provenance["passes"] / len(questions)
