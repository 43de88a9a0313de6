"""What results with a value per question share: scores with intervals, and tests that a score differs from 0."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
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
        low, high = statistics.bootstrap_interval(self.per_question.numpy(), self.groups.numpy(), level)
        return torch.from_numpy(low), torch.from_numpy(high)


class Effects(PerQuestion):
    """A result whose values per question are effects, to be compared with 0."""

    @cached_property
    def p_values(self) -> Float[Tensor, ...]:
        """Two-sided t-test that a mean effect is 0, Holm-corrected over all of them, of the shape of `scores`."""
        return torch.from_numpy(statistics.holm(statistics.mean_p_values(self.per_question.numpy(), self.groups.numpy())))

    def significant(self, alpha: float = 0.05) -> Bool[Tensor, ...]:
        """Which mean effects differ from 0, after Holm's correction over all of them."""
        return self.p_values < alpha
