"""Activation patching, head by head: a clean run's z put into the corrupt run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch

from ..core.arguments import OwnCheck, checked
from ..data.contrast import Contrast
from ..data.items import groups, require
from ..data.question import Question
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.prefix import PrefixStore
from ..interventions.sweep import HeadSweep
from ..vlm.token_groups import At
from ..vlm.vlm import VLM
from .ablation import Clean, Scores, provenance, read_clean
from .headmap import HeadMap
from .metric import contrast_diff
from .position_patching import checked_gap, patch_heads_at


@checked
def patch(vlm: VLM, pairs: Sequence[Contrast], *, at: Annotated[At, OwnCheck()] = "last", path: Path = "auto") -> HeadMap:
    """The fraction of the logit difference that each head's clean output recovers in the corrupt run (Heimersheim & Nanda 2024).

    With m = score of the clean answer minus score of the corrupt answer, at the last token:
    score = mean(m_patched - m_corrupt) / mean(m_clean - m_corrupt), where 1 restores the clean run and 0 changes nothing.
    The ratio is of means, so that a pair with a small difference does not dominate.

    Args:
        vlm: the model, from `si.load`.
        pairs: Q pairs from `si.contrasts`.
        at: at which tokens: "last", another group of `vlm.token_groups`, a list of groups, or token numbers; see `patch_positions` for
            groups whose tokens differ in the two prompts.
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A HeadMap, per_question [Q, L, H]: recovered fractions.

    Raises:
        DataError: where clean and corrupt questions give the same logit difference.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> m = patch(vlm, si.contrasts(qs))
    >>> m.scores.shape, m.unit
    (torch.Size([6, 8]), 'recovered fraction')
    >>> patch(vlm, si.contrasts(qs), at="object").method
    'patch at object'
    """
    pairs = require(pairs, Contrast)
    if at != "last":
        return patch_heads_at(vlm, pairs, at, path)
    at_clean, at_corrupt = (PrefixStore(vlm, part, keep=False) for part in ([p.clean for p in pairs], [p.corrupt for p in pairs]))
    return patching(vlm, pairs, at_clean, at_corrupt, path)


def patching(vlm: VLM, pairs: Sequence[Contrast], at_clean: PrefixStore, at_corrupt: PrefixStore, path: Path) -> HeadMap:
    """`patch` behind prompts that may have been read before; the clean ones may be among others."""
    corrupt = at_corrupt.questions
    path = choose_path(vlm, corrupt, path)
    z, clean_scores = clean_sides(vlm, pairs, at_clean, path)
    m_clean = contrast_diff(clean_scores, pairs)
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, z)
    edited, unpatched = run_with_clean(vlm, corrupt, sweep, path, prompts=at_corrupt, what="patching")
    m_corrupt = contrast_diff(unpatched, pairs)
    gap = checked_gap(m_clean - m_corrupt[:, 0])
    per_question = ((contrast_diff(edited, pairs) - m_corrupt) / gap).cpu().unflatten(1, (vlm.n_layers, vlm.n_heads))
    made = provenance(vlm, pairs, metric="recovered logit_diff", path=path, gap=gap)
    return HeadMap("patch", "recovered fraction", per_question, torch.from_numpy(groups(pairs)), made)


def clean_sides(vlm: VLM, pairs: Sequence[Contrast], at_clean: PrefixStore, path: Path) -> tuple[Clean, Scores]:
    """What the clean questions' last tokens compute, z [Q, L, H, D] and scores [Q, C], read behind prompts that contain them."""
    z, scores = read_clean(vlm, at_clean.questions, path, at_clean)
    rows = rows_of([p.clean for p in pairs], at_clean.questions)
    return z[rows], scores[rows]


def rows_of(wanted: Sequence[Question], among: Sequence[Question]) -> list[int]:
    """Where each of these very questions is among others. Raises KeyError for one that is not."""
    row = {id(question): i for i, question in enumerate(among)}
    return [row[id(question)] for question in wanted]
