"""Whether scalars fitted on one task help on another: every fit answers every task's test questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..adapters.scale.fit import fit_scale
from ..adapters.scale.scale import ScAle
from ..attribution.ablation import provenance
from ..core import statistics
from ..core.arguments import Seed, checked
from ..core.figures import draw
from ..data.items import groups, require, require_disjoint
from ..data.question import Question
from ..errors import DataError
from ..interventions.edit import Head
from ..interventions.engine import Path
from ..vlm.vlm import VLM
from .accuracy import evaluate_many
from .table import Table


@dataclass(frozen=True, eq=False)
class Transfer(Table):
    """One row per pair of tasks: fitted on one, tested on the other.

    The columns: fitted_on, tested_on, n, the base model's and the fit's accuracy on the test task (base, accuracy), and the gain with low,
    high, p and p_corrected (Holm over the whole matrix).

    >>> tasks = ("relation", "count")
    >>> rows = [{"fitted_on": a, "tested_on": b, "gain": 0.25 if a == b else 0.0} for a in tasks for b in tasks]
    >>> Transfer(tuple(rows)).matrix().to_numpy().tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """

    columns = ("fitted_on", "tested_on", "base", "accuracy", "gain", "low", "high", "p", "p_corrected")

    def __repr__(self) -> str:
        return f"<Transfer: {self.verdict}>"

    @property
    def fitted(self) -> list[str]:
        """The tasks that were fitted on."""
        return list(dict.fromkeys(row["fitted_on"] for row in self.rows))

    @property
    def tested(self) -> list[str]:
        """The tasks that were tested."""
        return list(dict.fromkeys(row["tested_on"] for row in self.rows))

    def matrix(self, column: str = "gain") -> pd.DataFrame:
        """One column of the table as a matrix.

        Args:
            column: the column's name.

        Returns:
            One row per task that was fitted on, one column per task that was tested.

        Raises:
            DataError: for an unknown column.
        """
        if column not in self.rows[0]:
            raise DataError(f"no column {column!r}: choose from {', '.join(self.rows[0])}")
        return self.to_frame().pivot(index="fitted_on", columns="tested_on", values=column).loc[self.fitted, self.tested]

    @property
    def verdict(self) -> str:
        """How many cells gain, lose, or do neither, on the task itself and on others, in plain words."""
        words = []
        for name, own in (("on the task itself", True), ("on other tasks", False)):
            rows = [r for r in self.rows if (r["fitted_on"] == r["tested_on"]) == own]
            sure = [r for r in rows if r["p_corrected"] < 0.05]
            up, down = sum(r["gain"] > 0 for r in sure), sum(r["gain"] < 0 for r in sure)
            words.append(f"{name} {up} of {len(rows)} gain and {down} lose")
        return f"after Holm's correction, {', '.join(words)}; the rest cannot be told from no change."

    def plot(self, **options: Any) -> Any:
        """A plotly heatmap of the gains with their values (see viz.transfer_heatmap)."""
        return draw("transfer_heatmap", self, **options)


@checked
def transfer(
    vlm: VLM,
    train: Mapping[str, Sequence[Question]],
    test: Mapping[str, Sequence[Question]],
    *,
    heads: Iterable[Head] | None = None,
    mlp: bool = True,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> Transfer:
    """Fit ScAle on each task of `train`, and answer each task of `test` with every fit, all fits side by side.

    Args:
        vlm: the model, from `si.load`.
        train: task -> questions to learn from.
        test: task -> test questions.
        heads: the heads on which ScAle learns; None for all.
        mlp: whether ScAle also learns a scalar per MLP.
        seed: draws the images that are held out for early stopping.
        path: "auto" or "packed"; scalars are not fitted on the reference path.
        settings: fields of FitSettings.

    Returns:
        A Transfer table, one row per pair of tasks.

    Raises:
        DataError: for no task to fit on or to test.
        LeakError: where any training question shares an image with any test question.

    >>> import scale_interp as si
    >>> vlm, tasks = si.load("demo"), ("relation", "exists")
    >>> asked = {s: {t: si.load_questions(f"scenes/{t}", split=s, n=16) for t in tasks} for s in ("train", "test")}
    >>> transfer(vlm, asked["train"], asked["test"], epochs=1).matrix().shape
    (2, 2)
    """
    if not train or not test:
        raise DataError("no tasks: give at least one to fit on and one to test, name -> questions")
    train, test = ({name: require(questions) for name, questions in part.items()} for part in (train, test))
    require_disjoint([q for questions in train.values() for q in questions], [q for questions in test.values() for q in questions])
    chosen = None if heads is None else list(heads)
    scales = {name: fit_scale(vlm, questions, chosen, mlp, seed=seed, path=path, **settings) for name, questions in train.items()}
    one = next(iter(scales.values()))
    neutral = replace(ScAle.neutral(vlm), scope=one.scope, at=one.at)
    rows = []
    for name, questions in test.items():
        base, *found = evaluate_many(vlm, questions, [neutral, *scales.values()], path=path)
        for fitted, answers in zip(scales, found, strict=True):
            d = statistics.paired_difference(answers.per_question.numpy(), base.per_question.numpy(), groups(questions))
            row = {"fitted_on": fitted, "tested_on": name, "n": len(questions), "base": base.accuracy, "accuracy": answers.accuracy}
            rows.append(row | d.columns("gain"))
    corrected = statistics.holm(np.array([row["p"] for row in rows]))
    rows = [row | {"p_corrected": float(p)} for row, p in zip(rows, corrected, strict=True)]
    asked = [q for questions in test.values() for q in questions]
    made = provenance(vlm, asked, train={name: len(questions) for name, questions in train.items()}, seed=seed)
    about = {name: {"parameters": s.n_parameters, "epochs": s.settings["best_epoch"]} for name, s in scales.items()}
    return Transfer(tuple(rows), about, made)
