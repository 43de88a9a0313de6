"""ScAle: a few bounded scalars on the last token's heads and MLPs of a frozen model (arXiv 2606.29579)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.arguments import checked_settings, fits
from ...core.result import Adapter, Misfit
from ...data.question import Question
from ...errors import EditError
from ...interventions.edit import Edit, Head, Scope, check_heads
from ...vlm.vlm import VLM
from ..attach import attach, known_prompts
from .trajectory import Trajectory

ROUNDING = 1e-5
"""How far a scalar may exceed the bounds of its fit."""


@checked_settings
@dataclass(frozen=True, eq=False)
class ScAle(Adapter):
    """Learned scalars on heads and MLPs; 1 changes nothing (arXiv 2606.29579).

    Args:
        scalars: what each head's output z is multiplied by [L, H].
        mlp_scalars: what each layer's MLP output is multiplied by [L].
        n_parameters: how many numbers were learned; fewer than L * H + L where heads were chosen or a layer shares one scalar.
        heads: the (layer, head) pairs that were learned.
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").
        settings: how it was fitted.
        provenance: model, data and versions.
        history: one row per epoch of the fit.
        trajectory: the scalars of every epoch, where the fit was asked for them (every_epoch=True). They are not saved with the others;
            `trajectory.save` writes them.
        at: the token group that the scalars act on.

    Raises:
        EditError: for scalars that are not finite or not of these shapes, and for heads outside them.

    >>> scale = ScAle(torch.tensor([[1.0, 0.5]]), torch.ones(1), 1, ((0, 1),))
    >>> scale.ranking(), scale.edit(strength=0.5).scale
    ([((0, 1), 0.5)], tensor([[[1.0000, 0.7500]]]))
    """

    scalars: Float[Tensor, "layers heads"]
    mlp_scalars: Float[Tensor, " layers"]
    n_parameters: int
    heads: tuple[Head, ...]
    scope: Scope = "each_new_token"
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    trajectory: Trajectory | None = None
    at: str = "last"
    not_saved = ("trajectory",)
    config_file = "scale_config.json"
    weights_file = "scale.safetensors"

    def __post_init__(self) -> None:
        for name, ndim in (("scalars", 2), ("mlp_scalars", 1)):
            part = getattr(self, name)
            if not isinstance(part, Tensor) or part.ndim != ndim or not part.is_floating_point() or not torch.isfinite(part).all():
                raise EditError(f"{name}: give a tensor {'[L, H]' if ndim == 2 else '[L]'} of finite numbers, where 1 changes nothing")
        if len(self.scalars) != len(self.mlp_scalars):
            raise EditError(f"scalars of {len(self.scalars)} layers but {len(self.mlp_scalars)} MLP scalars: give one per layer")
        object.__setattr__(self, "heads", tuple(check_heads(self.heads, *self.scalars.shape)))
        self.edit()

    def __repr__(self) -> str:
        moved = int((self.scalars != 1).sum() + (self.mlp_scalars != 1).sum())
        low, high = float(self.scalars.min()), float(self.scalars.max())
        return f"<ScAle of {self.n_parameters} parameters, {moved} differ from 1; heads {low:.2f} to {high:.2f}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"layer": layer, "head": head, "scalar": scalar} for (layer, head), scalar in self.ranking())

    def edit(self, strength: float = 1.0) -> Edit:
        """The scalars as an edit of one variant; strength 0 is the base model, 1 the fitted one, with a linear fade between."""
        fade = [1 + strength * (s - 1) for s in (self.scalars, self.mlp_scalars)]
        return Edit(scale=fade[0][None], mlp_scale=fade[1][None], scope=self.scope, at=self.at)

    def ranking(self) -> list[tuple[Head, float]]:
        """The learned heads with their scalars, the largest |s - 1| first."""
        return sorted(((h, float(self.scalars[h])) for h in self.heads), key=lambda item: -abs(item[1] - 1))

    def _largest(self) -> list[dict[str, float]]:
        """The scalars that differ most from 1, for readers of the saved configuration."""
        return [{"layer": h[0], "head": h[1], "scalar": round(s, 4)} for h, s in self.ranking()[:20]]

    def to_frame(self) -> pd.DataFrame:
        """One row per learned scalar: part, layer, head (None for an MLP), scalar."""
        rows = [{"part": "head", "layer": layer, "head": head, "scalar": float(self.scalars[layer, head])} for layer, head in self.heads]
        rows += [{"part": "mlp", "layer": i, "head": None, "scalar": float(self.mlp_scalars[i])} for i in self.mlp_layers]
        return pd.DataFrame(rows)

    def attached(self, vlm: VLM | torch.nn.Module, questions: Sequence[Question] = ()) -> AbstractContextManager[None]:
        """The model with these scalars in place, for plain transformers forward and generate.

        Args:
            vlm: the model.
            questions: those that will be asked, for scalars at another token group than the last token: in a pass only token ids can be
                seen, and these say which tokens are in the group.

        Raises:
            EditError: a prompt that is none of the questions' is read, with scalars at a token group.

        >>> import scale_interp as si
        >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
        >>> scale = si.ScAle.neutral(vlm)
        >>> with scale.attached(vlm):
        ...     answer = vlm.generate(q)
        """
        return attach(vlm.hf_model if isinstance(vlm, VLM) else vlm, self.edit(), known_prompts(vlm, self.at, questions))

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = super()._parts()
        return tensors, {name: value for name, value in meta.items() if (name, value) != ("at", "last")}  # as before there were groups

    @classmethod
    def _opened(cls, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in super()._opened(path, content).items() if (name, value) != ("at", "last")}

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        return super()._arguments(path, {"at": "last"} | dict(meta))

    @staticmethod
    def neutral(vlm: VLM) -> ScAle:
        """A ScAle whose scalars are all 1."""
        every = tuple((layer, h) for layer in range(vlm.n_layers) for h in range(vlm.n_heads))
        return ScAle(torch.ones(vlm.n_layers, vlm.n_heads, dtype=torch.float32), torch.ones(vlm.n_layers, dtype=torch.float32), 0, every)

    def permuted(self, seed: int) -> ScAle:
        """The same scalars, shuffled among the learned heads and among the MLPs."""
        draw = torch.Generator().manual_seed(seed)
        return self._change_scalars([self.scalars[h] for h in self.heads], lambda v: v[torch.randperm(len(v), generator=draw)])

    def randomised(self, seed: int) -> ScAle:
        """Scalars from a normal distribution with the mean and spread of the learned ones, on the same heads."""
        draw = torch.Generator().manual_seed(seed)
        spread = lambda v: v.mean() + v.std(correction=0) * torch.randn(len(v), generator=draw, dtype=torch.float32)  # noqa: E731
        found = self._change_scalars([self.scalars[h] for h in self.heads], spread)
        return replace(found, settings={k: v for k, v in self.settings.items() if k != "bound"})  # these have no bounds

    @property
    def mlp_layers(self) -> list[int]:
        """The layers whose MLP scalars were learned."""
        return list(self.settings.get("layers") or range(len(self.mlp_scalars))) if self.settings.get("mlp") else []

    def _change_scalars(self, heads: list[Tensor], change: Any) -> ScAle:
        scalars, mlps = self.scalars.clone(), self.mlp_scalars.clone()
        if heads:
            layers, numbers = zip(*self.heads, strict=True)
            scalars[list(layers), list(numbers)] = change(torch.stack(heads))
        if self.mlp_layers:
            mlps[self.mlp_layers] = change(self.mlp_scalars[self.mlp_layers])
        return replace(self, scalars=scalars, mlp_scalars=mlps, history=(), trajectory=None)

    def _weights_meta(self) -> dict[str, Any]:
        return {"n_parameters": self.n_parameters}

    def _summary(self) -> dict[str, Any]:
        return {"largest": self._largest()}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if not 0 <= self.n_parameters <= self.scalars.numel() + len(self.mlp_scalars):
            heads = f"{self.scalars.numel()} heads and {len(self.mlp_scalars)} MLPs"
            raise Misfit(f"n_parameters {self.n_parameters} for {heads}")
        if "largest" in meta and meta["largest"] != self._largest():
            raise Misfit(f"it describes other scalars than {self.weights_file} holds", "give a whole saved folder")
        if self.settings.get("at", self.at) != self.at:
            raise Misfit(f"its scalars act at {self.at!r}, but were fitted at {self.settings['at']!r}")
        low, high = _bounds(self.settings)
        if not all(bool(((part >= low - ROUNDING) & (part <= high + ROUNDING)).all()) for part in (self.scalars, self.mlp_scalars)):
            raise Misfit(f"a scalar is outside {low:g} to {high:g}, the bounds of its fit")


def _bounds(settings: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest scalar that a fit with these settings can give; without bounds for scalars that were not fitted."""
    if "bound" not in settings:
        return -math.inf, math.inf
    bound: Any = settings["bound"]
    radius: Any = settings.get("radius")
    if not fits(radius, float):
        raise Misfit(f"'radius' is {radius!r}, not a finite number")
    spans = {
        "tanh": (1 - radius, 1 + radius),
        "clamp": (1 - radius, 1 + radius),
        "sigmoid": (0.0, 2.0),
        "exp": (math.exp(-radius), math.exp(radius)),
        "none": (-math.inf, math.inf),
    }
    if bound not in spans:
        raise Misfit(f"'bound' is {bound!r}, not one of {', '.join(spans)}")
    return spans[bound]
