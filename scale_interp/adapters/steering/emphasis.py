"""Emphasis of functional heads, latent heads made active, and what each function's heads do to every other function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution.ablation import provenance
from ...attribution.functional import FunctionalHeads
from ...attribution.head_probe import Label, label_name, read_labels
from ...attribution.metric import Metric, measure
from ...core import statistics
from ...core.arguments import checked
from ...core.figures import draw
from ...core.result import Result, require_below
from ...data.items import groups, require, require_disjoint
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.edit import Edit, Head, check_heads
from ...interventions.engine import Path, choose_path, run_with_clean
from ...vlm.vlm import VLM
from .direction import AnswerDirection

ALPHAS = (1.0, 2.0, 5.0, 10.0)
"""The release uses 5."""
GAINS = (1.5, 2.0, 4.0)
How = Literal["remove", "gain", "direction"]


@dataclass(frozen=True, eq=False)
class Interventions(Result):
    """Named edits on questions of several functions: per_question [Q, N] and base [Q] of a metric, codes [Q] of functions.

    >>> changed, base = torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 1.0])
    >>> found = Interventions(("gain 2",), ("counting",), "accuracy", changed, base, torch.tensor([0, 0]), torch.tensor([0, 1]))
    >>> found.best(), found.change
    ('gain 2', tensor([[0.5000]], dtype=torch.float64))
    """

    names: Annotated[tuple[str, ...], "edits"]
    functions: tuple[str, ...]
    metric: str
    per_question: Float[Tensor, "questions edits"]
    base: Float[Tensor, " questions"]
    codes: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Interventions: {len(self.names)} edits on {len(self.functions)} functions, {len(self.base)} questions, {self.metric}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        found = zip(self.names, self.change.tolist(), strict=True)
        return ({"change of " + self.metric: name} | dict(zip(self.functions, row, strict=True)) for name, row in found)

    @property
    def change(self) -> Tensor:
        """Mean change of the metric [N, F]."""
        delta = (self.per_question - self.base[:, None]).double()
        return torch.stack([delta[self.codes == f].mean(0) for f in range(len(self.functions))], 1)

    def to_frame(self) -> pd.DataFrame:
        """A row an edit and function: base, metric, change with its interval, p Holm-corrected over all rows."""
        rows = []
        for i, name in enumerate(self.names):
            for f, function in enumerate(self.functions):
                own = (self.codes == f).numpy()
                found, base = self.per_question[:, i].numpy()[own], self.base.numpy()[own]
                d = statistics.paired_difference(found, base, self.groups.numpy()[own])
                spread = {"change": d.mean, "low": d.low, "high": d.high, "p": d.p}
                rows.append({"edit": name, "function": function, "base": base.mean(), self.metric: found.mean()} | spread)
        frame = pd.DataFrame(rows)
        return frame.assign(p=statistics.holm(frame["p"].to_numpy()))

    def specificity(self) -> pd.DataFrame:
        """For edits named as a function: change on its own questions minus mean change on all others, by picture.

        Pictures without questions of the own and of another function are left out; p is Holm-corrected. Raises DataError
        where no edit is named as a function, or no picture has questions of both kinds.
        """
        delta, codes, group = (self.per_question - self.base[:, None]).double().numpy(), self.codes.numpy(), self.groups.numpy()
        rows = []
        for i, name in enumerate(self.names):
            if name not in self.functions:
                continue
            own = codes == self.functions.index(name)
            shared = np.intersect1d(group[own], group[~own])
            if not len(shared):
                raise DataError(f"no picture has questions of {name!r} and of another function: ask all functions of each picture")
            sides = [
                statistics.cluster_means(delta[side, i], group[side])
                for side in (own & np.isin(group, shared), ~own & np.isin(group, shared))
            ]
            d = statistics.paired_difference(sides[0], sides[1], np.arange(len(shared)))
            means = {"own": sides[0].mean(), "others": sides[1].mean(), "difference": d.mean}
            rows.append({"function": name} | means | {"low": d.low, "high": d.high, "p": d.p})
        if not rows:
            raise DataError(f"no edit is named as a function ({', '.join(self.functions)}): use function_matrix")
        frame = pd.DataFrame(rows)
        return frame.assign(p=statistics.holm(frame["p"].to_numpy()))

    def best(self, kind: str = "") -> str:
        """The edit whose name begins with `kind` and whose metric is largest, the first of equals: to be asked of validation questions."""
        among = [i for i, name in enumerate(self.names) if name.startswith(kind)]
        if not among:
            raise DataError(f"no edit begins with {kind!r}: there are {', '.join(self.names)}")
        means = self.per_question.double().mean(0)
        return self.names[max(among, key=lambda i: float(means[i]))]

    def difference(self, name: str) -> statistics.Difference:
        """The metric with one edit minus without, over all questions, paired."""
        if name not in self.names:
            raise DataError(f"no edit {name!r}: there are {', '.join(self.names)}")
        found = self.per_question[:, self.names.index(name)]
        return statistics.paired_difference(found.numpy(), self.base.numpy(), self.groups.numpy())

    def plot(self, **options: Any) -> Any:
        """A heatmap of the change, edit by function (see viz.function_heatmap)."""
        return draw("function_heatmap", self, **options)

    def _validate(self, meta: Mapping[str, Any]) -> None:
        require_below("codes", self.codes, len(self.functions))


@checked
def intervene(
    vlm: VLM,
    test: Sequence[Question],
    edits: Mapping[str, Edit],
    by: Label = "function",
    *,
    metric: Metric = "accuracy",
    path: Path = "auto",
    **settings: Any,
) -> Interventions:
    """Run named edits of one variant side by side and keep the metric by function.

    by: what names a question's function, as the label of `probe`. settings: noted in the provenance.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> silent = si.Edit.scaling([(3, 1)], 0.0, vlm.n_layers, vlm.n_heads)
    >>> intervene(vlm, qs, {"silent": silent}, by="task").change.shape
    torch.Size([1, 1])
    """
    test = require(test)
    if not edits:
        raise EditError("no edits: give at least one, by name")
    functions, codes = read_labels(test, by, least=1)
    path = choose_path(vlm, test, path)
    scores, clean = run_with_clean(vlm, test, Edit.stack(list(edits.values())), path, what="intervening")
    made = provenance(vlm, test, path=path, by=label_name(by), **settings)
    found, base = measure(metric, scores, test).cpu(), measure(metric, clean[:, :1], test)[:, 0].cpu()
    return Interventions(tuple(edits), functions, metric, found, base, torch.from_numpy(codes), torch.from_numpy(groups(test)), made)


@checked
def emphasise(
    vlm: VLM,
    test: Sequence[Question],
    heads: Sequence[Head],
    direction: AnswerDirection | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    gains: Sequence[float] = GAINS,
    chosen_on: Iterable[Question | str] = (),
    by: Label = "function",
    metric: Metric = "accuracy",
    path: Path = "auto",
) -> Interventions:
    """Emphasis of heads over a grid: by a gain, and by the direction of right answers where one is given.

    Give `FunctionalHeads.heads(function)` to emphasise what is used, `.latent(function)` to make latent heads active.
    chosen_on: the questions that the heads were chosen on, or the names of their pictures. A value is to be chosen on
    validation questions, by `best`. Raises LeakError where heads or direction come from a test picture.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=8)
    >>> emphasise(vlm, qs, [(3, 1)], gains=(2.0,), by="answer_text").names
    ('gain 2',)
    """
    require_disjoint([*chosen_on, *(direction.pictures if direction else ())], require(test))
    chosen = check_heads(heads, vlm.n_layers, vlm.n_heads)
    edits = {f"gain {gain:g}": _gain(vlm, chosen, gain) for gain in gains}
    if direction is not None:
        edits |= {f"alpha {alpha:g}": direction.edit(chosen, alpha) for alpha in alphas}
    return intervene(vlm, test, edits, by, metric=metric, path=path, heads=[list(head) for head in chosen])


@checked
def function_matrix(
    vlm: VLM,
    test: Sequence[Question],
    found: FunctionalHeads,
    how: How = "remove",
    *,
    gain: float = 2.0,
    directions: Mapping[str, AnswerDirection] | None = None,
    alpha: float = 5.0,
    latent: bool = False,
    by: Label = "function",
    metric: Metric = "accuracy",
    path: Path = "auto",
) -> Interventions:
    """The effect of each function's heads on every function's questions: one edit a function, named as it.

    how: "remove" them, multiply them by `gain`, or add alpha * sigma * unit of the function's own direction; functions
    without one are left out and named in the provenance. latent: the heads just below the elbow instead of those above
    it. Raises LeakError where test pictures chose the heads or directions, EditError for "direction" without any.

    >>> import scale_interp as si
    >>> vlm, steps = si.load("demo"), si.subquestions(si.cog_questions("train", n=12))
    >>> found = si.functional_heads(vlm, steps, epochs=1, permutations=1)
    >>> function_matrix(vlm, si.subquestions(si.cog_questions("test", n=4)), found).change.shape
    torch.Size([7, 7])
    """
    if how not in ("remove", "gain", "direction"):
        raise EditError(f"how={how!r}: choose 'remove', 'gain' or 'direction'")
    directions = directions or {}
    named = [f for f in found.functions if how != "direction" or f in directions]
    if not named:
        raise EditError("no direction for any function: learn them with answer_directions on training questions")
    require_disjoint([*found.pictures, *(p for f in named if f in directions for p in directions[f].pictures)], require(test))
    heads = {f: found.latent(f) if latent else found.heads(f) for f in named}
    edits = {
        f: directions[f].edit(heads[f], alpha) if how == "direction" else _gain(vlm, heads[f], 0.0 if how == "remove" else gain)
        for f in named
    }
    settings: dict[str, Any] = {"how": how, "latent": latent} | ({"gain": gain} if how == "gain" else {})
    settings |= {"alpha": alpha, "without_direction": [f for f in found.functions if f not in named]} if how == "direction" else {}
    return intervene(
        vlm, test, edits, by, metric=metric, path=path, heads={f: [list(h) for h in own] for f, own in heads.items()}, **settings
    )


def _gain(vlm: VLM, heads: Iterable[Head], gain: float) -> Edit:
    return Edit(scale=torch.full((1, vlm.n_layers, vlm.n_heads), gain), scope="each_new_token").restrict(heads)
