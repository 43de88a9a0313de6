"""A free shift of the last token's heads: what can be gained there with every number free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...attribution.ablation import provenance
from ...core.arguments import Seed, checked
from ...core.notebook import NotebookView
from ...data.question import Question
from ...execution.batches import checkpoints_of
from ...interventions.edit import Edit, Scope
from ...interventions.engine import Path
from ...interventions.packed import run_edited
from ...vlm.vlm import VLM
from ..attach import attach
from .training import FREE_RATES, Fitted, in_steps, prepare_training, train_parameters, try_rates


@dataclass(frozen=True, eq=False)
class LastTokenBias(NotebookView):
    """A free shift of the last token's head outputs z, without the constraint to one scalar per head.

    Args:
        shift: [L, H, D], in units of z.
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").
        settings: how it was fitted: the chosen learning rate, all that were tried, and the seconds.
        provenance: model, data and versions.
        history: one row per epoch of the fit.

    >>> LastTokenBias(torch.zeros(6, 8, 16)).edit()
    <Edit of 1 variant: shift [1, 6, 8, 16]; scope each_new_token>
    """

    shift: Float[Tensor, "layers heads dim"]
    scope: Scope = "each_new_token"
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()

    def __repr__(self) -> str:
        return f"<LastTokenBias of {self.n_parameters:,} parameters>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"setting": name, "value": str(value)} for name, value in self.settings.items() if name != "tried")

    @property
    def name(self) -> str:
        """The method's name."""
        return "last-token bias"

    @property
    def n_parameters(self) -> int:
        """L * H * D."""
        return self.shift.numel()

    def edit(self) -> Edit:
        """The shift as an edit of one variant."""
        return Edit(shift=self.shift[None], scope=self.scope)

    def attached(self, vlm: VLM | nn.Module) -> AbstractContextManager[None]:
        """The shifted model, for plain transformers forward and generate."""
        return attach(vlm.hf_model if isinstance(vlm, VLM) else vlm, self.edit())


@checked
def fit_bias(
    vlm: VLM,
    train: Sequence[Question],
    *,
    learning_rates: Sequence[float] = FREE_RATES,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> LastTokenBias:
    """Fit a shift of every number of the last token's head outputs, with the batches, epochs and early stopping of fit_scale.

    Args:
        vlm: the model, from `si.load`.
        train: training questions.
        learning_rates: rates to try; the one with the lowest held-out loss is kept.
        seed: for the held-out images.
        path: "auto" or "packed"; there is no reference path.
        **settings: epochs, batch_size, validation, patience and scope of FitSettings.

    Returns:
        A LastTokenBias, shift [L, H, D].

    Raises:
        EditError: for a model or path that is not packed, and for a setting out of its range.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", split="train", n=16)
    >>> fit_bias(vlm, train, epochs=1, learning_rates=[1e-2])
    <LastTokenBias of 768 parameters>
    """
    train, options = prepare_training(vlm, train, path, settings)
    training = in_steps(vlm, train, options, seed)
    checkpoints = checkpoints_of(vlm, "last-token bias", train, options, seed)

    def trial(rate: float) -> Fitted:
        shift = torch.zeros(1, vlm.n_layers, vlm.n_heads, vlm.head_dim, dtype=torch.float32, requires_grad=True)
        edit = Edit(shift=shift, scope=options.scope)
        scores = lambda prefix: run_edited(vlm, prefix, edit)[:, 0]  # noqa: E731
        return train_parameters([shift], scores, training, training.prompts.__getitem__, options, rate, checkpoints)

    best, info = try_rates(trial, learning_rates, options, seed)
    made = provenance(vlm, train, path="packed")
    return LastTokenBias(best.state[0][0], options.scope, info, made, best.history)
