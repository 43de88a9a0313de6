"""Integrated gradients from all heads silenced to all heads as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from ..core.arguments import checked
from ..data.items import groups, require
from ..data.question import Question
from ..errors import EditError
from ..execution.batches import BatchResult, map_batches
from ..interventions.edit import Edit
from ..interventions.engine import Path, require_packed
from ..interventions.packed import run_edited
from ..interventions.parts import joined_parts
from ..interventions.prefix import Prefix, PrefixStore
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap
from .metric import Metric, measure


@checked
def integrated_gradients(
    vlm: VLM, questions: Sequence[Question], *, steps: int = 16, metric: Metric = "logit_diff", path: Path = "auto"
) -> HeadMap:
    """Each head's share of what all heads together add to the metric: its slope, averaged while all heads fade in.

    All heads' scales go from 0 to 1 together; score = mean over alpha of d metric / d scale[l, h] at scale = alpha (integrated
    gradients, Sundararajan et al. 2017, arXiv 1703.01365, equation 1, from the silenced baseline). The scores of a question sum to its
    metric minus the metric with all heads silenced, up to the error of the midpoint rule.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        steps: points of the midpoint rule, which run side by side.
        metric: "logit_diff" (logits) or "correct_prob".
        path: "auto" or "packed"; there is no reference path.

    Returns:
        A HeadMap, per_question [Q, L, H] in units of the metric.

    Raises:
        EditError: for metric "accuracy", which has no gradient, for steps below 1, and for a model or path that is not packed.

    >>> import scale_interp as si
    >>> m = integrated_gradients(si.load("demo"), si.load_questions("scenes/relation", n=4), steps=4)
    >>> m.per_question.shape
    torch.Size([4, 6, 8])
    """
    if metric == "accuracy":
        raise EditError("accuracy has no gradient: use metric='logit_diff' or 'correct_prob'")
    if steps < 1:
        raise EditError(f"steps={steps}: give at least 1")
    questions = require(questions)
    require_packed(vlm, questions, path, "integrated_gradients")
    found = map_batches(
        vlm, PrefixStore(vlm, questions, keep=False), partial(integrated_work, steps=steps, metric=metric), "integrated gradients"
    )
    effects = torch.cat([part["effects"] for part in found])
    made = provenance(vlm, questions, metric=metric, path="packed", steps=steps)
    return HeadMap("integrated gradients", metric.replace("_", " "), effects, torch.from_numpy(groups(questions)), made)


def integrated_work(vlm: VLM, prefix: Prefix, steps: int, metric: Metric) -> BatchResult:
    """One batch's slopes [B, L, H], averaged over the steps."""
    return joined_parts(vlm, prefix, steps, lambda part: _slopes(vlm, part, steps, metric))


def _slopes(vlm: VLM, prefix: Prefix, steps: int, metric: Metric) -> BatchResult:
    members = prefix.questions
    alphas = (torch.arange(steps, dtype=torch.float32, device=vlm.device) + 0.5) / steps
    scale = alphas[:, None, None].expand(len(members), steps, vlm.n_layers, vlm.n_heads).clone().requires_grad_()
    # the edit's question axis is this batch's own
    scores = run_edited(vlm, replace(prefix, rows=slice(None)), Edit(scale=scale))
    (slope,) = torch.autograd.grad(measure(metric, scores, members).sum(), scale)
    return {"effects": slope.mean(1)}
