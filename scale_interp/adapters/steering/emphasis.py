"""Emphasis of functional heads, activation of latent heads, and the effect of each function's heads on every other function."""

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
"""Strengths along a direction; the release of arXiv 2512.10978 uses 5."""
GAINS = (1.5, 2.0, 4.0)
How = Literal["remove", "gain", "direction"]


@dataclass(frozen=True, eq=False)
class Interventions(Result):
    """A metric under named edits, on questions of several functions.

    Attributes:
        names: the names of the N edits.
        functions: the names of the F functions.
        metric: the metric's name.
        per_question: the metric under each edit [Q, N].
        base: the metric without an edit [Q].
        codes: the number of each question's function [Q].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

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
    def change(self) -> Float[Tensor, "edits functions"]:
        """Mean change of the metric [N, F]."""
        delta = (self.per_question - self.base[:, None]).double()
        return torch.stack([delta[self.codes == f].mean(0) for f in range(len(self.functions))], 1)

    def to_frame(self) -> pd.DataFrame:
        """One row per edit and function: base, metric, change with its interval, and p Holm-corrected over all rows."""
        rows = []
        for i, name in enumerate(self.names):
            for f, function in enumerate(self.functions):
                own = (self.codes == f).numpy()
                found, base = self.per_question[:, i].numpy()[own], self.base.numpy()[own]
                d = statistics.paired_difference(found, base, self.groups.numpy()[own])
                row = {"edit": name, "function": function, "base": base.mean(), self.metric: found.mean()}
                rows.append(row | d.columns("change"))
        frame = pd.DataFrame(rows)
        return frame.assign(p=statistics.holm(frame["p"].to_numpy()))

    def specificity(self) -> pd.DataFrame:
        """For edits named after a function: the change on its own questions minus the mean change on all others, within images.

        Returns:
            One row per function; images without questions of both kinds are left out, and p is Holm-corrected over rows.

        Raises:
            DataError: where no edit is named after a function, and where no image has questions of both kinds.
        """
        delta, codes, group = (self.per_question - self.base[:, None]).double().numpy(), self.codes.numpy(), self.groups.numpy()
        rows = []
        for i, name in enumerate(self.names):
            if name not in self.functions:
                continue
            own = codes == self.functions.index(name)
            shared = np.intersect1d(group[own], group[~own])
            if not len(shared):
                raise DataError(f"no image has questions of {name!r} and of another function: ask all functions about each image")
            sides = [
                statistics.cluster_means(delta[side, i], group[side])
                for side in (own & np.isin(group, shared), ~own & np.isin(group, shared))
            ]
            d = statistics.paired_difference(sides[0], sides[1], np.arange(len(shared)))
            means = {"own": sides[0].mean(), "others": sides[1].mean(), "difference": d.mean}
            rows.append({"function": name} | means | {"low": d.low, "high": d.high, "p": d.p})
        if not rows:
            raise DataError(f"no edit is named after a function ({', '.join(self.functions)}): use function_matrix")
        frame = pd.DataFrame(rows)
        return frame.assign(p=statistics.holm(frame["p"].to_numpy()))

    def best(self, kind: str = "") -> str:
        """The edit with the largest metric, the first of equals. Use it on validation questions.

        Args:
            kind: how the names of the edits to choose from begin.

        Raises:
            DataError: where no name begins so.
        """
        among = [i for i, name in enumerate(self.names) if name.startswith(kind)]
        if not among:
            raise DataError(f"no edit begins with {kind!r}: choose from {', '.join(self.names)}")
        means = self.per_question.double().mean(0)
        return self.names[max(among, key=lambda i: float(means[i]))]

    def difference(self, name: str) -> statistics.Difference:
        """The metric with one edit minus without, paired over all questions. Raises DataError for an unknown edit."""
        if name not in self.names:
            raise DataError(f"no edit {name!r}: choose from {', '.join(self.names)}")
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
    """Run named edits side by side, and keep the metric of every question.

    Args:
        vlm: the model, from `si.load`.
        test: Q questions.
        edits: N edits of one variant, by name.
        by: what gives a question's function, as the label of `probe`.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.
        **settings: recorded in the provenance.

    Returns:
        An Interventions, per_question [Q, N].

    Raises:
        EditError: for no edits.
        DataError: for a question without a function.

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
    """Emphasise heads over a grid of strengths: by a gain, and along the direction of right answers where one is given.

    Give `FunctionalHeads.heads(function)` to emphasise the heads that are used, and `.latent(function)` to activate latent ones. Choose a
    strength on validation questions, with `best`.

    Args:
        vlm: the model, from `si.load`.
        test: Q questions.
        heads: (layer, head) pairs.
        direction: of right answers, from `answer_direction`.
        alphas: strengths along the direction, in standard deviations of z.
        gains: what z is multiplied by.
        chosen_on: the questions that the heads were chosen on, or the names of their images.
        by: what gives a question's function, as the label of `probe`.
        metric: as in `intervene`.
        path: as in `intervene`.

    Returns:
        An Interventions, with one edit per strength.

    Raises:
        LeakError: where heads or direction come from a test image.

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
    """The effect of each function's heads on every function's questions, with one edit per function, named after it.

    Args:
        vlm: the model, from `si.load`.
        test: Q questions.
        found: the functions' heads, from `functional_heads`.
        how: "remove" the heads; multiply them by `gain`; or push them along the "direction" of the function's right answers by alpha *
            sigma. For the last, functions without a direction are left out and named in the provenance.
        gain: what z is multiplied by for how="gain".
        directions: by the function's name, from `answer_directions`.
        alpha: the strength for how="direction", in standard deviations of z.
        latent: use the heads just below the elbow instead of those above it.
        by: what gives a question's function, as the label of `probe`.
        metric: as in `intervene`.
        path: as in `intervene`.

    Returns:
        An Interventions, with one edit per function.

    Raises:
        LeakError: where test images chose the heads or directions.
        EditError: for an unknown `how`, and for "direction" without any direction.

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
        raise EditError("no direction for any function: give those of answer_directions on training questions")
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
    """The edit that multiplies the given heads."""
    return Edit(scale=torch.full((1, vlm.n_layers, vlm.n_heads), gain, dtype=torch.float32), scope="each_new_token").restrict(heads)
