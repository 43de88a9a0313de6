"""Planted shortfalls: a copy of a model in which chosen heads are damaged, so that the right repair is known."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import EditError, ModelError
from ...interventions.edit import check_heads
from ...vlm.plain import is_plain
from ...vlm.vlm import VLM
from ..checkpoint import open_checkpoint
from ..demo import NAMES as DEMOS
from ..demo import folder as demo_folder
from .circuits import folder as circuit_folder

Heads = tuple[tuple[int, int], ...]


class PlantedVLM(VLM):
    """A VLM with a planted shortfall, which its name, its repr and the provenance of every result report.

    Attributes:
        planted: The damaged heads.
        factor: What their output weights were multiplied by.
        origin: The name of the intact model.

    >>> import scale_interp as si
    >>> damaged = si.testbeds.plant(si.load("demo-healthy"), [(3, 0)], factor=0.25)
    >>> damaged.origin, damaged.planted
    ('demo-healthy', ((3, 0),))
    """

    asked_for = "a model with a planted shortfall, as si.testbeds.plant makes it"
    planted: Heads
    factor: float
    origin: str

    def describe(self) -> dict[str, Any]:
        """What a result records about the model, with the planted shortfall."""
        heads = [list(head) for head in self.planted]
        return super().describe() | {"planted_shortfall": {"of": self.origin, "heads": heads, "factor": self.factor}}


def plant(vlm: VLM, heads: Iterable[tuple[int, int]], factor: float) -> PlantedVLM:
    """Copy the model, and multiply the output weights (the columns of o_proj) of the given heads by `factor`.

    This is a test instrument: the damage is known, and a scalar of 1 / factor on each damaged head undoes it. It damages a head at every
    token, whereas scalars repair the last token, so what the head does at other tokens stays damaged. The given model is not changed.

    Args:
        vlm: The intact model.
        heads: (layer, head) pairs, counted from 0.
        factor: The factor, finite and not 1.

    Returns:
        The damaged copy.

    Raises:
        EditError: A head is out of range, there are no heads, or the factor is not finite or is 1.
        ModelError: The model already has a planted shortfall, or its o_proj is not a plain linear layer.

    >>> import scale_interp as si
    >>> si.testbeds.plant(si.load("demo-healthy"), [(3, 0)], factor=0.25)
    <VLM demo-healthy [planted shortfall: (3, 0) x 0.25]: llava, 6 layers x 8 heads of 16, torch.float32>
    """
    chosen = tuple(check_heads(heads, vlm.n_layers, vlm.n_heads))
    if not chosen:
        raise EditError("no heads: name at least one to damage")
    if factor == 1 or not torch.isfinite(torch.tensor(float(factor))):
        raise EditError(f"factor={factor}: give a finite number other than 1, such as 0.25")
    if isinstance(vlm, PlantedVLM):
        raise ModelError(f"{vlm.name} already has a planted shortfall: plant into the intact {vlm.origin}")
    for layer, _ in chosen:
        if not is_plain(vlm.head_layers[layer].output()):
            raise ModelError(
                f"{vlm.name}: o_proj of layer {layer} is not a plain linear layer (quantised, adapted or hooked); load a plain model"
            )
    name = f"{vlm.name} [planted shortfall: {' '.join(map(str, chosen))} x {factor:g}]"
    damaged = PlantedVLM(_copy(vlm), vlm.processor, name, vlm.prompt)
    damaged.execution = vlm.execution
    damaged.planted, damaged.factor, damaged.origin = chosen, float(factor), vlm.name
    with torch.no_grad():
        for layer, head in chosen:
            weight = damaged.head_layers[layer].output().weight
            weight[:, head * vlm.head_dim : (head + 1) * vlm.head_dim] *= factor
    return damaged


def _copy(vlm: VLM) -> Any:
    """The same weights in a new module tree, without the hooks that tracing has left on the original."""
    model = vlm.hf_model
    fresh = type(model)(copy.deepcopy(model.config)).to(device=model.device, dtype=model.dtype)
    fresh.load_state_dict(model.state_dict())
    return fresh.requires_grad_(False)


@dataclass(frozen=True)
class Planting:
    """A named shortfall: the model, the data on which it costs accuracy, the damaged heads, and the factor on their output weights.

    >>> PLANTINGS["loud"].heads, PLANTINGS["loud"].factor
    (((2, 4), (4, 3)), 4.0)
    """

    model: str
    data: str
    heads: Heads
    factor: float


PLANTINGS = {
    "soft": Planting("demo-healthy", "scenes/relation", ((2, 4), (4, 3), (2, 0), (4, 0), (5, 1), (1, 6)), 0.1),
    "loud": Planting("demo-healthy", "scenes/relation", ((2, 4), (4, 3)), 4.0),
    "inverted": Planting("demo-healthy", "scenes/relation", ((2, 4),), -1.0),
    "soft-relay": Planting("testbed/relay", "scenes/position", ((4, 5),), 0.1),
}
"""The first three were chosen on 200 validation questions, on which the accuracy of `demo-healthy` is 0.990. The candidates were the
first 1, 2, 3, 5, 6, 8 or 12 heads in the order of patching on 120 of these questions, scaled by -1, 0, 0.1, 0.25, 0.5, 2, 3 or 4.
Silencing one or two heads costs only 0.03, so "soft" damages six at once (accuracy 0.765). "loud" leaves 0.825 and "inverted" 0.685,
where a nonnegative scalar can at best silence the head (0.905). The last one damages one of the two listed heads of a known circuit."""


def planted(name: str, device: str | None = None) -> PlantedVLM:
    """The damaged model of a named planting.

    Args:
        name: One of PLANTINGS.
        device: Where it runs, as in `si.load`.

    Returns:
        The damaged model.

    Raises:
        ModelError: There is no such planting.

    >>> planted("inverted").name
    'demo-healthy [planted shortfall: (2, 4) x -1]'
    """
    if name not in PLANTINGS:
        raise ModelError(f"no planting {name!r}: choose from {', '.join(PLANTINGS)}, or plant your own with plant(vlm, heads, factor)")
    chosen = PLANTINGS[name]
    place = demo_folder(chosen.model) if chosen.model in DEMOS else circuit_folder(chosen.model)
    return plant(open_checkpoint(str(place), chosen.model, device=device), chosen.heads, chosen.factor)
