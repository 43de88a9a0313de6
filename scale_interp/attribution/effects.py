"""What results with a value per question share: scores with intervals, and tests that a score differs from 0."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core import statistics
from ..core.notebook import FigureView
from ..core.result import Result


class PerQuestion(Result, FigureView):
    """A result whose `per_question` values, [Q, ...], average to scores; `groups` says which questions are of one image."""

    if TYPE_CHECKING:

        @property
        def per_question(self) -> Tensor: ...
        @property
        def groups(self) -> Tensor: ...

    @cached_property
    def scores(self) -> Float[Tensor, ...]:
        """Mean over the questions, [...] for per_question [Q, ...]."""
        return self.per_question.double().mean(0)

    def interval(self, level: float = 0.95) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
        """Bootstrap interval of every score, whole images drawn with replacement.

        Args:
            level: the interval's coverage, between 0 and 1.

        Returns:
            The lower and the upper end, each of the shape of `scores`.
        """
        low, high = statistics.bootstrap_interval(self.per_question.double().numpy(), self.groups.numpy(), level)
        return torch.from_numpy(low), torch.from_numpy(high)


class Effects(PerQuestion):
    """A result whose values per question are effects, [Q, layers, ...], to be compared with 0."""

    if TYPE_CHECKING:

        @property
        def provenance(self) -> Mapping[str, Any]: ...

    @cached_property
    def p_values(self) -> Float[Tensor, ...]:
        """Two-sided t-test that a mean effect is 0, Holm-corrected over all of them, of the shape of `scores`."""
        return torch.from_numpy(statistics.holm(statistics.mean_p_values(self.per_question.double().numpy(), self.groups.numpy())))

    def significant(self, alpha: float = 0.05) -> Bool[Tensor, ...]:
        """Which mean effects differ from 0, after Holm's correction over all of them."""
        return self.p_values < alpha

    @property
    def layer_numbers(self) -> list[int]:
        """The number in the decoder of each layer of the map: in a hybrid, layers without heads are not in it."""
        return list(self.provenance.get("layer_numbers") or range(self.per_question.shape[1]))

    def layer_columns(self, each: int) -> dict[str, Int[np.ndarray, " rows"]]:
        """The columns of a table with as many rows for each layer: layer, and of a hybrid before it decoder_layer."""
        L = self.per_question.shape[1]
        numbers = {"decoder_layer": np.repeat(self.layer_numbers, each)} if self.layer_numbers != [*range(L)] else {}
        return numbers | {"layer": np.repeat(np.arange(L), each)}
