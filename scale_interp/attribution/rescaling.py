"""Rescaling without training: one head, one layer's heads or one MLP, multiplied by each of a grid of factors.

ScAle's preliminary study (arXiv 2606.29579) rescales activations of chosen layers without training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import statistics
from ..core.arguments import checked
from ..core.notebook import NotebookView
from ..data.items import groups, require
from ..data.question import Question
from ..errors import EditError
from ..interventions.edit import Edit
from ..interventions.engine import Path, choose_path, run_with_clean
from ..interventions.prefix import PrefixStore
from ..interventions.sweep import HeadSweep
from ..vlm.vlm import VLM
from .ablation import provenance
from .metric import Metric, measure

Unit = Literal["head", "layer", "mlp"]
FACTORS = (0.0, 0.5, 1.5, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class Rescaling(NotebookView):
    """Change of a metric for every rescaled unit and factor.

    Attributes:
        unit: "head", "layer" or "mlp".
        units: the names of the U units.
        factors: the F factors.
        metric: the metric's name.
        per_question: metric(rescaled) - metric(clean) [Q, F, U].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

    >>> change = torch.tensor([[[0.0, 0.5]], [[0.0, 1.0]]])
    >>> Rescaling("mlp", ("0", "1"), (2.0,), "accuracy", change, torch.arange(2), {})
    <Rescaling of 2 mlps: best 1 x2, accuracy +0.750>
    """

    unit: Unit
    units: tuple[str, ...]
    factors: tuple[float, ...]
    metric: str
    per_question: Float[Tensor, "questions factors units"]
    groups: Int[Tensor, " questions"]
    provenance: dict[str, Any]

    @property
    def change(self) -> Float[Tensor, "factors units"]:
        """Mean change of the metric [F, U]."""
        return self.per_question.mean(0)

    def __repr__(self) -> str:
        best = int(self.change.argmax())
        factor, unit = self.factors[best // len(self.units)], self.units[best % len(self.units)]
        return f"<Rescaling of {len(self.units)} {self.unit}s: best {unit} x{factor:g}, {self.metric} {self.change.max():+.3f}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        U = len(self.units)
        order = self.change.flatten().argsort(descending=True, stable=True).tolist()
        return ({self.unit: self.units[i % U], "factor": self.factors[i // U], "change": float(self.change.flatten()[i])} for i in order)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit and factor: the change with its interval, and p Holm-corrected over all rows."""
        values = self.per_question.numpy()
        low, high = statistics.bootstrap_interval(values, self.groups.numpy())
        p = statistics.holm(statistics.mean_p_values(values, self.groups.numpy()))
        rows = [
            {"unit": u, "factor": f, "change": float(self.change[i, j]), "low": low[i, j], "high": high[i, j], "p": p[i, j]}
            for i, f in enumerate(self.factors)
            for j, u in enumerate(self.units)
        ]
        return pd.DataFrame(rows)


@checked
def rescale(
    vlm: VLM,
    questions: Sequence[Question],
    factors: Sequence[float] = FACTORS,
    unit: Unit = "layer",
    *,
    metric: Metric = "accuracy",
    path: Path = "auto",
) -> Rescaling:
    """Multiply one unit at a time by each factor (arXiv 2606.29579, preliminary study).

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        factors: F factors; 1 changes nothing.
        unit: "head", one head; "layer", all heads of a layer; or "mlp", a layer's MLP.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A Rescaling, per_question [Q, F, U].

    Raises:
        EditError: for an unknown unit, or no factors.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> rescale(vlm, qs, factors=(0.0, 2.0)).change.shape
    torch.Size([2, 6])
    """
    questions = require(questions)
    if unit not in ("head", "layer", "mlp"):
        raise EditError(f"unit {unit!r}: choose 'head', 'layer' or 'mlp'")
    if not factors:
        raise EditError("no factors: give at least one")
    path, prompts = choose_path(vlm, questions, path), PrefixStore(vlm, questions)
    names = (
        tuple(f"({i}, {h})" for i in range(vlm.n_layers) for h in range(vlm.n_heads))
        if unit == "head"
        else tuple(map(str, range(vlm.n_layers)))
    )
    changes = []
    for factor in factors:
        edited, clean = run_with_clean(vlm, questions, _variants(vlm, unit, factor), path, prompts=prompts, what=f"{unit} x{factor:g}")
        changes.append((measure(metric, edited, questions) - measure(metric, clean, questions)).cpu())
    made = provenance(vlm, questions, metric=metric, path=path, unit=unit, factors=list(factors))
    return Rescaling(unit, names, tuple(factors), metric, torch.stack(changes, 1), torch.from_numpy(groups(questions)), made)


def _variants(vlm: VLM, unit: Unit, factor: float) -> Edit | HeadSweep:
    """The edit that multiplies each unit by the factor, one variant per unit."""
    L, H = vlm.n_layers, vlm.n_heads
    if unit == "head":
        return HeadSweep.all(L, H, float(factor))
    on = torch.ones(L, L, dtype=torch.float32).fill_diagonal_(factor)
    return Edit(scale=on[..., None].repeat(1, 1, H)) if unit == "layer" else Edit(mlp_scale=on)
