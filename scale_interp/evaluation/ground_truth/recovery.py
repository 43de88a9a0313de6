"""Whether learned scalars find a planted shortfall, and how much of the lost accuracy they recover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...adapters.scale.fit import Fit, fit_scales
from ...attribution.ablation import provenance
from ...core import statistics
from ...core.arguments import Count, checked
from ...core.notebook import NotebookView
from ...data.items import groups, require, require_disjoint
from ...data.question import Question
from ...errors import DataError, ModelError
from ...models.testbeds import PlantedVLM
from ...vlm.vlm import VLM
from ..accuracy import evaluate, evaluate_many
from .localisation import Localisation


@dataclass(frozen=True, eq=False)
class Recovery(NotebookView):
    """S fits on a model with a planted shortfall, each with its own seed, and their answers to the same test questions.

    Args:
        planted: the P damaged heads.
        factor: what their output weights are multiplied by.
        intact: right answers of the intact model [Q].
        damaged: right answers of the damaged model [Q].
        repaired: right answers with each fit [S, Q].
        scalars: the learned scalars of each fit [S, L, H].
        groups: the number of each question's image [Q].
        provenance: model, data, settings and versions.

    >>> intact, damaged = torch.ones(4), torch.tensor([1.0, 0.0, 0.0, 1.0])
    >>> scalars = torch.tensor([[[1.0, 3.0], [1.0, 1.2]]])
    >>> found = Recovery(((0, 1),), 0.25, intact, damaged, intact[None], scalars, torch.arange(4))
    >>> found.lost().mean, found.ranks().tolist()
    (0.5, [[1]])
    """

    planted: tuple[tuple[int, int], ...]
    factor: float
    intact: Float[Tensor, " questions"]
    damaged: Float[Tensor, " questions"]
    repaired: Float[Tensor, "fits questions"]
    scalars: Float[Tensor, "fits layers heads"]
    groups: Int[Tensor, " questions"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        share, low, high = self.recovered()
        return f"<Recovery of {len(self.planted)} planted heads: {share:.2f} [{low:.2f}, {high:.2f}] of the lost accuracy>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        parts = {"intact": self.intact, "damaged": self.damaged, "repaired, mean of fits": self.repaired}
        return ({"model": name, "accuracy": float(right.double().mean())} for name, right in parts.items())

    def lost(self) -> statistics.Difference:
        """Accuracy of the intact model minus that of the damaged one, paired by question."""
        return statistics.paired_difference(self.intact.numpy(), self.damaged.numpy(), self.groups.numpy())

    def recovered(self) -> tuple[float, float, float]:
        """The share of the lost accuracy that the scalars recover, a mean over fits.

        Returns:
            The share and the ends of its interval; nan where it is not certain that any accuracy is lost.
        """
        regained = self.repaired.double().mean(0) - self.damaged.double()
        lost = self.intact.double() - self.damaged.double()
        return statistics.share_interval(regained.numpy(), lost.numpy(), self.groups.numpy())

    def localisation(self) -> Localisation:
        """How the scalars rank the damaged heads: by |s - 1|, and by |log s|, for which halving counts as much as doubling."""
        size = self.scalars.clamp(min=1e-6).log().abs()
        scores = torch.stack([(self.scalars - 1).abs(), size])
        nothing = torch.full(scores.shape[:2], float("nan"), dtype=torch.double)
        return Localisation(("|s - 1|", "|log s|"), self.planted, scores, nothing, nothing, self.provenance)

    def ranks(self, method: int = 1) -> Int[np.ndarray, "fits planted"]:
        """The rank of each damaged head among all heads, from 1.

        Args:
            method: a row of `localisation`: 0 for |s - 1|, 1 for |log s|.

        Returns:
            Ranks [S, P].
        """
        H = self.scalars.shape[-1]
        order = (-self.localisation().scores[method].flatten(1)).argsort(dim=1, stable=True).argsort(dim=1)
        return order[:, [layer * H + head for layer, head in self.planted]].numpy() + 1


@checked
def recover(
    damaged: PlantedVLM, intact: VLM, train: Sequence[Question], test: Sequence[Question], *, seeds: Count = 5, **settings: Any
) -> Recovery:
    """Fit scalars on all heads of a model with a planted shortfall, one fit per seed side by side, and answer the test questions.

    Args:
        damaged: a model from `si.testbeds.plant`.
        intact: the model in which the shortfall was planted.
        train: questions to learn from.
        test: Q test questions.
        seeds: S fits; a seed draws the images that are held out for early stopping.
        settings: fields of FitSettings.

    Returns:
        A Recovery, repaired [S, Q].

    Raises:
        ModelError: for a model without a planted shortfall, or planted in another model.
        LeakError: where training and test questions share an image.

    >>> import scale_interp as si
    >>> intact = si.load("demo-healthy")
    >>> damaged = si.testbeds.plant(intact, [(3, 0)], 0.25)
    >>> train, test = (si.load_questions("scenes/relation", split, n=16) for split in ("train", "test"))
    >>> recover(damaged, intact, train, test, seeds=2, epochs=1).repaired.shape
    torch.Size([2, 16])
    """
    if not isinstance(damaged, PlantedVLM) or damaged.origin != intact.name:
        raise ModelError(f"{damaged.name} is not a planted shortfall of {intact.name}: give plant(vlm, heads, factor) and the same vlm")
    if seeds < 1:
        raise DataError(f"seeds={seeds}: give at least 1")
    train, test = require(train), require(test)
    require_disjoint(train, test)
    fits = fit_scales(damaged, train, [Fit(f"seed {s}", mlp=False, seed=s) for s in range(seeds)], **settings)
    repaired = [found.per_question for found in evaluate_many(damaged, test, fits)]
    return Recovery(
        damaged.planted,
        damaged.factor,
        evaluate(intact, test).per_question,
        evaluate(damaged, test).per_question,
        torch.stack(repaired),
        torch.stack([fit.scalars for fit in fits]),
        torch.from_numpy(groups(test)),
        provenance(damaged, test, seeds=seeds, train=len(train), **settings),
    )
