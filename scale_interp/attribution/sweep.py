"""Sweeps over all heads, one head a variant: ablation and amplification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.contrast import Contrast
from ..data.items import describe, groups, require
from ..data.question import Question
from ..errors import EditError
from ..interventions.capture import capture
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.packed import last_token
from ..interventions.prefix import Prompts
from ..interventions.sweep import HeadSweep
from ..models.vlm import VLM
from ..record import versions
from .headmap import HeadMap
from .metric import Metric, measure

Mode = Literal["zero", "mean", "resample"]


def provenance(vlm: VLM, items: Sequence[Question] | Sequence[Contrast], **settings: Any) -> dict[str, Any]:
    """Model, data, settings and library versions, as every result records them."""
    return vlm.describe() | describe(items) | settings | {"versions": versions()}


def ablate(
    vlm: VLM,
    questions: Sequence[Question],
    mode: Mode = "zero",
    *,
    metric: Metric = "logit_diff",
    reference: Sequence[Question] | None = None,
    seed: int = 0,
    path: Path = "auto",
) -> HeadMap:
    """How much the metric falls when one head's last-token output is removed.

    mode: "zero"; "mean": replaced by the head's mean over `reference` (default: the questions themselves);
    "resample": replaced by its value on another question, drawn with `seed`. score = metric(clean) - metric(ablated),
    so a head that helps has a positive score.
    """
    if mode not in ("zero", "mean", "resample"):
        raise EditError(f"mode {mode!r}: choose 'zero', 'mean' or 'resample'")
    questions = require(questions)
    prompts = Prompts(vlm, questions)
    source = None
    if mode == "mean":
        source = read_z(vlm, questions, path, prompts) if reference is None else capture(vlm, reference).z
        source = source.mean(0, keepdim=True)
    elif mode == "resample":
        source = read_z(vlm, questions, path, prompts)[_others(questions, seed)]
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, source)
    return _sweep(vlm, questions, sweep, metric, path, prompts, f"ablate {mode}", -1.0, seed=seed)


def amplify(
    vlm: VLM,
    questions: Sequence[Question],
    factor: float = 2.0,
    *,
    metric: Metric = "logit_diff",
    path: Path = "auto",
) -> HeadMap:
    """How much the metric rises when one head's last-token output is multiplied by `factor`.

    score = metric(amplified) - metric(clean).
    """
    questions = require(questions)
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, float(factor))
    return _sweep(vlm, questions, sweep, metric, path, Prompts(vlm, questions), f"amplify x{factor:g}", 1.0, factor=factor)


def _sweep(
    vlm: VLM,
    questions: Sequence[Question],
    sweep: HeadSweep,
    name: Metric,
    path: Path,
    prompts: Prompts,
    method: str,
    sign: float,
    **settings: Any,
) -> HeadMap:
    path = choose_path(vlm, questions, path)
    edited, clean = run_with_clean(vlm, questions, sweep, path, prompts=prompts, what=method)
    effect = sign * (measure(name, edited, questions) - measure(name, clean, questions))
    per_question = effect.cpu().unflatten(1, (vlm.n_layers, vlm.n_heads))
    made = provenance(vlm, questions, metric=name, path=path, **settings)
    return HeadMap(method, name.replace("_", " "), per_question, torch.from_numpy(groups(questions)), made)


def read_z(vlm: VLM, questions: Sequence[Question], path: Path, prompts: Prompts) -> Tensor:
    """The clean last token's z [Q, L, H, D], from prefixes that are read anyway, or in whole forward passes."""
    if choose_path(vlm, questions, path) == "reference":
        return capture(vlm, questions, batch_size=1).z.to(vlm.device)
    return torch.cat([last_token(vlm, prefix)[0] for prefix in prompts.track("reading activations")])


def _others(questions: Sequence[Question], seed: int) -> Tensor:
    """For each question the index of another one."""
    if len(questions) < 2:
        raise EditError("resample ablation needs at least two questions")
    Q = len(questions)
    shift = torch.randint(1, Q, (Q,), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(Q) + shift) % Q
