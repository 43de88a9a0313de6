"""How well residual patching finds the tokens by which the listed heads of a known circuit are fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...attribution.position_patching import patch_positions
from ...core import statistics
from ...data.contrast import contrasts
from ...data.question import Question
from ...data.scenes.task import POSITIONS
from ...models.testbeds.circuits import Circuit
from ...vlm.vlm import VLM
from .localisation import auroc

AXES: Mapping[str, tuple[str, ...]] = {"left or right": POSITIONS[:2], "top or bottom": POSITIONS[2:]}
RELAY = {"relay": [-2]}
"""The token before the last, as a span of a question."""


def localise_positions(vlm: VLM, draws: Sequence[Sequence[Question]], circuit: Circuit) -> pd.DataFrame:
    """Patch the residual stream before each layer at each token group, and compare the recovered shares with a circuit's construction.

    Args:
        vlm: a known-circuit model.
        draws: S sets of its questions.
        circuit: its circuit.

    Returns:
        One row per pair of answer words: how many places (layer and token group) decide between them, how many do not, AUROC (the chance
        that one of the former scores higher than one of the latter) with its interval over draws, the lowest score of the former and the
        largest of the latter.

    >>> import scale_interp as si
    >>> questions = si.load_questions("scenes/position", "train", n=12, seed=0)
    >>> localise_positions(si.load("testbed/one-head"), [questions], si.testbeds.circuit("one-head"))["auroc"].tolist()
    [1.0, 1.0]
    """
    groups = ("image", "question", *(RELAY if circuit.relay else ()), "last")
    maps = []
    for questions in draws:
        named = [replace(q, meta={**q.meta, "spans": RELAY}) for q in questions] if circuit.relay else questions
        maps.append(patch_positions(vlm, contrasts(named), groups=groups))
    rows = []
    for axis, words in AXES.items():
        fed = circuit.fed(words)
        scores = torch.stack([m.only(*words).scores for m in maps])
        flat = np.stack([scores[:, layer, groups.index(group)] for layer, group in fed], 1)
        known = np.array([*fed.values()])
        area = auroc(flat, known)
        low, high = statistics.bootstrap_interval(area, np.arange(len(area)))
        row: dict[str, Any] = {"pairs": axis, "feeding": int(known.sum()), "others": int((~known).sum())}
        row |= {"auroc": float(area.mean()), "auroc_low": float(low), "auroc_high": float(high)}
        rows.append(row | {"lowest_feeding": float(flat[:, known].min()), "largest_other": float(np.abs(flat[:, ~known]).max())})
    return pd.DataFrame(rows)
