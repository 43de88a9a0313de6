"""ScAle: a handful of bounded scalars on the last token's heads and MLPs of a frozen model (arXiv 2606.29579)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from ...core.arguments import checked_settings
from ...core.card import Card
from ...core.record import entry, expect, heads_of, made, read_json, read_tensors, write_json, write_tensors
from ...errors import EditError, FileError
from ...interventions.edit import Edit, Head, Scope, check_heads
from ...vlm.vlm import VLM
from ..attach import attach

KIND = "ScAle"
CONFIG, WEIGHTS = "scale_config.json", "scale.safetensors"
ROUNDING = 1e-5
"""By which a scalar may pass the bounds of its fit."""


@checked_settings
@dataclass(frozen=True, eq=False)
class ScAle(Card):
    """Learned scalars: scalars [L, H] on heads, mlp_scalars [L] on MLPs; 1 changes nothing.

    n_parameters: how many numbers were learned (fewer than L * H + L where heads were chosen or a layer shares one).
    scope: the prompt's last token ("last"), or every generated token too. history: a row an epoch of the fit.

    >>> scale = ScAle(torch.tensor([[1.0, 0.5]]), torch.ones(1), 1, ((0, 1),))
    >>> scale.ranking(), scale.edit(strength=0.5).scale
    ([((0, 1), 0.5)], tensor([[[1.0000, 0.7500]]]))
    """

    scalars: Tensor
    mlp_scalars: Tensor
    n_parameters: int
    heads: tuple[Head, ...]
    scope: Scope = "each_new_token"
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, ndim in (("scalars", 2), ("mlp_scalars", 1)):
            part = getattr(self, name)
            if not isinstance(part, Tensor) or part.ndim != ndim or not part.is_floating_point() or not torch.isfinite(part).all():
                raise EditError(f"{name} must be a tensor {'[L, H]' if ndim == 2 else '[L]'} of finite numbers: 1 changes nothing")
        if len(self.scalars) != len(self.mlp_scalars):
            raise EditError(f"scalars of {len(self.scalars)} layers but {len(self.mlp_scalars)} MLP scalars: give one a layer")
        object.__setattr__(self, "heads", tuple(check_heads(self.heads, *self.scalars.shape)))
        self.edit()

    def __repr__(self) -> str:
        moved = int((self.scalars != 1).sum() + (self.mlp_scalars != 1).sum())
        low, high = float(self.scalars.min()), float(self.scalars.max())
        return f"<ScAle of {self.n_parameters} parameters, {moved} differ from 1; heads {low:.2f} to {high:.2f}>"

    def _card_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"layer": layer, "head": head, "scalar": scalar} for (layer, head), scalar in self.ranking())

    def edit(self, strength: float = 1.0) -> Edit:
        """The edit of one variant; strength 0 is the base model, 1 the fitted one, between is a linear fade."""
        fade = [1 + strength * (s - 1) for s in (self.scalars, self.mlp_scalars)]
        return Edit(scale=fade[0][None], mlp_scale=fade[1][None], scope=self.scope)

    def ranking(self) -> list[tuple[Head, float]]:
        """The learned heads with their scalars, the largest |s - 1| first."""
        return sorted(((h, float(self.scalars[h])) for h in self.heads), key=lambda item: -abs(item[1] - 1))

    def _largest(self) -> list[dict[str, float]]:
        """The scalars that differ from 1 most, for readers of the saved configuration."""
        return [{"layer": h[0], "head": h[1], "scalar": round(s, 4)} for h, s in self.ranking()[:20]]

    def to_frame(self) -> pd.DataFrame:
        """A row a learned scalar: part, layer, head (none for an MLP), scalar."""
        rows = [{"part": "head", "layer": layer, "head": head, "scalar": float(self.scalars[layer, head])} for layer, head in self.heads]
        if self.settings.get("mlp"):
            rows += [{"part": "mlp", "layer": i, "head": None, "scalar": float(s)} for i, s in enumerate(self.mlp_scalars)]
        return pd.DataFrame(rows)

    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]:
        """The model with these scalars in place, for plain transformers forward and generate.

        >>> import scale_interp as si
        >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
        >>> scale = si.ScAle.neutral(vlm)
        >>> with scale.attached(vlm):
        ...     answer = vlm.generate(q)
        """
        model = vlm.hf_model if isinstance(vlm, VLM) else vlm
        return attach(model, self.edit())

    @staticmethod
    def neutral(vlm: VLM) -> ScAle:
        """Every scalar 1."""
        every = tuple((layer, h) for layer in range(vlm.n_layers) for h in range(vlm.n_heads))
        return ScAle(torch.ones(vlm.n_layers, vlm.n_heads), torch.ones(vlm.n_layers), 0, every)

    def permuted(self, seed: int) -> ScAle:
        """The same scalars dealt anew among the learned heads, and among the MLPs."""
        draw = torch.Generator().manual_seed(seed)
        return self._with([self.scalars[h] for h in self.heads], lambda v: v[torch.randperm(len(v), generator=draw)])

    def randomised(self, seed: int) -> ScAle:
        """Scalars drawn from a normal distribution with the mean and spread of the learned ones, on the same heads."""
        draw = torch.Generator().manual_seed(seed)
        spread = lambda v: v.mean() + v.std(correction=0) * torch.randn(len(v), generator=draw)  # noqa: E731
        found = self._with([self.scalars[h] for h in self.heads], spread)
        return replace(found, settings={k: v for k, v in self.settings.items() if k != "bound"})  # they keep to no bounds

    def _with(self, heads: list[Tensor], change: Any) -> ScAle:
        scalars = self.scalars.clone()
        if heads:
            layers, numbers = zip(*self.heads, strict=True)
            scalars[list(layers), list(numbers)] = change(torch.stack(heads))
        return replace(self, scalars=scalars, mlp_scalars=change(self.mlp_scalars) if self.settings.get("mlp") else self.mlp_scalars)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write scale.safetensors and a readable scale_config.json.

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> ScAle(torch.tensor([[1.0, 0.5]]), torch.ones(1), 1, ((0, 1),)).save_pretrained(folder)
        >>> ScAle.from_pretrained(folder).scalars
        tensor([[1.0000, 0.5000]])
        """
        folder = Path(folder)
        tensors = {"scalars": self.scalars, "mlp_scalars": self.mlp_scalars}
        write_tensors(folder / WEIGHTS, KIND, tensors, {"n_parameters": self.n_parameters})
        config = {
            "method": KIND,
            "n_parameters": self.n_parameters,
            "scope": self.scope,
            "settings": dict(self.settings),
            "largest": self._largest(),
            "heads": [list(h) for h in self.heads],
            "provenance": dict(self.provenance),
            "history": [dict(h) for h in self.history],
        }
        write_json(folder / CONFIG, config, sealed=True)

    @staticmethod
    def from_pretrained(folder: str | Path) -> ScAle:
        """Read saved scalars. Raises FileError for a damaged or foreign folder."""
        folder = Path(folder)
        config = read_json(folder / CONFIG)
        if config.get("method") != KIND:
            raise FileError(f"{folder / CONFIG} describes {config.get('method', 'no method')!r}, no {KIND}; give the folder of one")
        tensors, _ = read_tensors(folder / WEIGHTS, KIND)
        scalars, mlp = expect(folder / WEIGHTS, tensors, "scalars", 2), expect(folder / WEIGHTS, tensors, "mlp_scalars", 1)
        if len(mlp) != len(scalars):
            raise FileError(f"{folder}: scalars for {len(scalars)} layers but {len(mlp)} MLPs; save it again")
        path = folder / CONFIG
        count, scope = entry(path, config, "n_parameters", int), entry(path, config, "scope", Scope)
        settings, about = (entry(path, config, name, dict[str, Any]) for name in ("settings", "provenance"))
        heads, history = heads_of(path, entry(path, config, "heads", list), *scalars.shape), entry(path, config, "history", list[Any])
        if not 0 <= count <= scalars.numel() + len(mlp):
            raise FileError(f"{path}: n_parameters {count} for {scalars.numel()} heads and {len(mlp)} MLPs; save it again")
        found = made(path, lambda: ScAle(scalars, mlp, count, heads, scope, settings, about, tuple(history)))
        if "largest" in config and config["largest"] != found._largest():
            raise FileError(f"{path} describes other scalars than {WEIGHTS} holds; give a whole saved folder")
        low, high = _bounds(path, settings)
        if not all(bool(((part >= low - ROUNDING) & (part <= high + ROUNDING)).all()) for part in (scalars, mlp)):
            raise FileError(f"{folder}: a scalar is outside {low:g} to {high:g}, the bounds of its fit; save it again")
        return found


def _bounds(path: Path, settings: Mapping[str, Any]) -> tuple[float, float]:
    """What a fit with these settings can give; everything for scalars that were not fitted."""
    if "bound" not in settings:
        return -math.inf, math.inf
    radius = entry(path, settings, "radius", float)
    spans = {
        "tanh": (1 - radius, 1 + radius),
        "clamp": (1 - radius, 1 + radius),
        "sigmoid": (0.0, 2.0),
        "exp": (math.exp(-radius), math.exp(radius)),
        "none": (-math.inf, math.inf),
    }
    return spans[entry(path, settings, "bound", Literal["tanh", "clamp", "sigmoid", "exp", "none"])]
