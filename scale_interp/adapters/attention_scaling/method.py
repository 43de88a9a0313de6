"""What the attention methods share: their protocol, their saved settings, and the checks of layers, heads and weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.arguments import fits
from ...core.result import Adapter, entries
from ...errors import EditError
from ...interventions.attention.run import Answers
from ...interventions.edit import Head, check_heads
from ...vlm.families import describe
from ...vlm.vlm import VLM
from ..attach import require_model


class AttentionMethod(Protocol):
    """What AttentionScale, AdaptVis, PASTA and Steering share: they answer a batch, attach to a plain model, and are saved as settings.

    Attributes:
        whole: whether every answer takes whole forward passes.
        passes: forward passes per answer.
        n_parameters: how many numbers were set.
    """

    @property
    def whole(self) -> bool: ...
    @property
    def passes(self) -> int: ...
    @property
    def n_parameters(self) -> int: ...
    def scores(self, vlm: VLM, answers: Answers) -> Float[Tensor, "questions choices"]: ...
    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]: ...
    def config(self) -> dict[str, Any]: ...
    def save_pretrained(self, folder: str | Path) -> None: ...


@dataclass(frozen=True)
class SavedSettings(Adapter):
    """Settings that are saved as a folder with one readable JSON file, and loaded from it."""

    most = 100
    config_file = "attention_config.json"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"setting": name, "value": "all" if value is None else str(value)} for name, value in asdict(self).items())

    def config(self) -> dict[str, Any]:
        """The method's name and its settings."""
        return {"method": type(self).__name__, "settings": asdict(self)}

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"settings": asdict(self)}

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        return entries(path, meta, {"settings": dict[str, Any]})["settings"]


def model_shape(model: Any) -> tuple[int, int]:
    """How many layers, and heads per layer, a transformers model's text decoder has."""
    require_model(model)
    heads = describe(model, type(model).__name__).heads
    return len(heads), heads[0].n_heads


def head_mask(layers: Iterable[int] | None, heads: Iterable[Head] | None, n_layers: int, n_heads: int) -> Bool[Tensor, "layers heads"]:
    """Which heads are chosen.

    Args:
        layers: layers to choose from; None for all.
        heads: (layer, head) pairs to choose from; None for all.
        n_layers: L.
        n_heads: H.

    Returns:
        True [L, H] for the given heads in the given layers.

    Raises:
        EditError: for layers or heads that the model does not have, and where no head is chosen.
    """
    on = torch.zeros(n_layers, n_heads, dtype=torch.bool)
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    for layer, head in every if heads is None else check_heads(heads, n_layers, n_heads):
        on[layer, head] = True
    if layers is not None:
        wrong = [layer for layer in layers if not 0 <= layer < n_layers]
        if wrong:
            raise EditError(f"layers {list(layers)}: give numbers from 0 to {n_layers - 1}")
        on[[layer for layer in range(n_layers) if layer not in list(layers)]] = False
    if not on.any():
        raise EditError("no head is left to change: give heads within the given layers, or None for all")
    return on


def check_weight(name: str, value: float) -> None:
    """Raise EditError for a weight of attention logits that is negative or not a finite number."""
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise EditError(f"{name}={value!r}: give a finite number from 0 (1 changes nothing)")


def as_tuples(settings: Any) -> None:
    """Turn the settings' layers and heads into tuples of ints. Raises EditError for anything but whole numbers."""
    if settings.layers is not None:
        if not fits(settings.layers, Iterable[int]):
            raise EditError(f"layers={settings.layers!r}: give whole numbers, or None for all")
        object.__setattr__(settings, "layers", tuple(int(layer) for layer in settings.layers))
    if settings.heads is not None:
        object.__setattr__(settings, "heads", as_pairs(settings.heads))


def as_pairs(heads: Iterable[Head]) -> tuple[Head, ...]:
    """(layer, head) pairs as ints. Raises EditError for anything but pairs of whole numbers."""
    found: tuple[Any, ...] = tuple(heads) if fits(heads, Iterable[Head]) else (heads,)
    if wrong := [head for head in found if not fits(head, Head)]:
        raise EditError(f"head {wrong[0]!r} is not a (layer, head) pair: give two whole numbers, such as (3, 0)")
    return tuple((int(layer), int(head)) for layer, head in found)


def all_scores(vlm: VLM, batch: Answers, methods: Sequence[AttentionMethod]) -> list[Float[Tensor, "questions choices"]]:
    """Each method's choice scores [B, C] of one batch."""
    return [method.scores(vlm, batch) for method in methods]
