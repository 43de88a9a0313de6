"""Sweeps over all heads, one head per variant: ablation and amplification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import OwnCheck, Seed, checked
from ..core.versions import versions
from ..data.contrast import Contrast
from ..data.items import describe, groups, require
from ..data.question import Question
from ..errors import EditError
from ..execution.batches import BatchResult, map_batches
from ..interventions.capture import capture
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.packed import last_token
from ..interventions.parts import halving
from ..interventions.paths import check_finite, join
from ..interventions.positions import choose_path_at
from ..interventions.prefix import Prefix, PrefixStore
from ..interventions.sweep import HeadSweep
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .headmap import HeadMap
from .metric import Metric, measure

Mode = Literal["zero", "mean", "resample"]
Clean = Float[Tensor, "questions layers heads dim"]
Scores = Float[Tensor, "questions choices"]


def provenance(vlm: VLM, items: Sequence[Question] | Sequence[Contrast], **settings: Any) -> dict[str, Any]:
    """Model, data, settings and library versions, as every result records them."""
    return vlm.describe() | describe(items) | settings | {"versions": versions()}


@checked
def ablate(
    vlm: VLM,
    questions: Sequence[Question],
    mode: Mode = "zero",
    *,
    metric: Metric = "logit_diff",
    reference: Sequence[Question] | None = None,
    seed: Seed = 0,
    at: Annotated[At, OwnCheck()] = "last",
    path: Path = "auto",
    prompts: PrefixStore | None = None,
) -> HeadMap:
    """How much the metric falls when one head's output is removed at the last token, or at a token group.

    A head that helps has a positive score: score = metric(clean) - metric(ablated). At a group of several tokens, "mean" and "resample"
    put the mean over a group's tokens at each of them.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        mode: what takes the place of the head's output z: "zero"; "mean", its mean over `reference`; or "resample", its value on
            another of the questions, drawn with `seed`.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        reference: questions for mode "mean"; by default the questions themselves.
        seed: for mode "resample".
        at: at which tokens: "last", another group of `vlm.token_groups`, a list of groups, or token numbers.
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.

    Returns:
        A HeadMap, per_question [Q, L, H] in units of the metric.

    Raises:
        EditError: for an unknown mode, and for mode "resample" with fewer than two questions.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> ablate(vlm, qs, mode="mean").scores.shape
    torch.Size([6, 8])
    """
    if mode not in ("zero", "mean", "resample"):
        raise EditError(f"mode {mode!r}: choose 'zero', 'mean' or 'resample'")
    questions = require(questions)
    if at != "last":
        source = None if mode == "zero" else capture(vlm, reference if mode == "mean" and reference is not None else questions, at=at).z
        source = source if source is None else source.mean(0, keepdim=True) if mode == "mean" else source[_other_questions(questions, seed)]
        sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, source, at)
        return _sweep(vlm, questions, sweep, metric, path, None, f"ablate {mode} at {at}", -1.0, seed=seed, at=at)
    if prompts is None:
        prompts = PrefixStore(vlm, questions, keep=mode != "zero")
    source = None
    if mode == "mean":
        source = read_clean(vlm, questions, path, prompts)[0] if reference is None else capture(vlm, reference).z
        source = source.mean(0, keepdim=True)
    elif mode == "resample":
        source = read_clean(vlm, questions, path, prompts)[0][_other_questions(questions, seed)]
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, source)
    return _sweep(vlm, questions, sweep, metric, path, prompts, f"ablate {mode}", -1.0, seed=seed)


@checked
def amplify(
    vlm: VLM,
    questions: Sequence[Question],
    factor: float = 2.0,
    *,
    metric: Metric = "logit_diff",
    at: Annotated[At, OwnCheck()] = "last",
    path: Path = "auto",
    prompts: PrefixStore | None = None,
) -> HeadMap:
    """How much the metric rises when one head's output is multiplied by `factor`, at the last token or at a token group.

    score = metric(amplified) - metric(clean).

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        factor: what the head's output z is multiplied by.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        at: at which tokens: "last", another group of `vlm.token_groups`, a list of groups, or token numbers.
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        prompts: the questions' prefixes, to reuse.

    Returns:
        A HeadMap, per_question [Q, L, H] in units of the metric.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> amplify(vlm, qs, factor=4.0).method
    'amplify x4'
    """
    questions = require(questions)
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, float(factor), at=at)
    name, where = f"amplify x{factor:g}", dict[str, Any]()
    if at != "last":
        name, where, prompts = f"{name} at {at}", {"at": at}, None
    elif prompts is None:
        prompts = PrefixStore(vlm, questions, keep=False)
    return _sweep(vlm, questions, sweep, metric, path, prompts, name, 1.0, factor=factor, **where)


def _sweep(
    vlm: VLM,
    questions: Sequence[Question],
    sweep: HeadSweep,
    name: Metric,
    path: Path,
    prompts: PrefixStore | None,
    method: str,
    sign: float,
    **settings: Any,
) -> HeadMap:
    path = choose_path(vlm, questions, path) if sweep.at == "last" else choose_path_at(vlm, questions[0], path)
    edited, clean = run_with_clean(vlm, questions, sweep, path, prompts=prompts, what=method)
    effect = sign * (measure(name, edited, questions) - measure(name, clean, questions))
    per_question = effect.cpu().unflatten(1, (vlm.n_layers, vlm.n_heads))
    made = provenance(vlm, questions, metric=name, path=path, **settings)
    return HeadMap(method, name.replace("_", " "), per_question, torch.from_numpy(groups(questions)), made)


def read_clean(vlm: VLM, questions: Sequence[Question], path: Path, prompts: PrefixStore) -> tuple[Clean, Scores]:
    """Read the clean last tokens' z and choice scores, once for each store that keeps: from prefixes, or in whole forward passes.

    Returns:
        z [Q, L, H, D] and scores [Q, C].
    """
    prompts.require(vlm, questions)
    if prompts.clean is None or not prompts.keep:
        prompts.clean = _clean_runs(vlm, questions, path, prompts)
    return prompts.clean


def _clean_runs(vlm: VLM, questions: Sequence[Question], path: Path, prompts: PrefixStore) -> tuple[Clean, Scores]:
    if choose_path(vlm, questions, path) == "reference":
        scores = run_with_clean(vlm, questions, None, "reference", what="clean runs")[0]
        return capture(vlm, questions, batch_size=1).z.to(vlm.device), scores[:, 0]
    found = [*map_batches(vlm, prompts, clean_work, "clean runs")]
    scores = join([part["scores"][:, None] for part in found])[:, 0]
    return torch.cat([part["z"] for part in found]).to(vlm.device), scores.to(vlm.device)


@halving
def clean_work(vlm: VLM, prefix: Prefix) -> BatchResult:
    """One batch's clean z and choice scores."""
    z, _, scores = last_token(vlm, prefix)
    check_finite(vlm, prefix.questions, scores[:, None])
    return {"z": z, "scores": scores}


def _other_questions(questions: Sequence[Question], seed: int) -> Tensor:
    """The index of another question for each question [Q]."""
    if len(questions) < 2:
        raise EditError(f"resample ablation of {len(questions)} question: give at least two, so that each has another")
    Q = len(questions)
    shift = torch.randint(1, Q, (Q,), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(Q) + shift) % Q
