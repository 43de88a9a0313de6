"""Steering: chosen heads pushed along a direction from wrong to right answers (ITI, arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.result import Adapter, Misfit, entries, require_heads
from ...data.question import Question
from ...interventions.attention.run import Answers
from ...interventions.edit import Edit, Head, Scope
from ...vlm.vlm import VLM
from ..attach import attach, known_prompts


@dataclass(frozen=True, eq=False)
class Steering(Adapter):
    """Add alpha * sigma * direction to z of chosen heads (ITI, arXiv 2306.03341, section 3.2).

    Args:
        directions: unit vectors, 0 on heads that are left alone [L, H, D].
        sigma: the standard deviation of the training questions' z along them [L, H].
        alpha: the strength; 0 changes nothing.
        heads: the steered (layer, head) pairs.
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").
        settings: how it was fitted.
        provenance: model, data and versions.
        at: the token group that is steered.

    >>> directions = torch.zeros(6, 8, 16)
    >>> directions[3, 1, 0] = 1.0
    >>> Steering(directions, torch.ones(6, 8), alpha=2.0, heads=((3, 1),)).edit()
    <Edit of 1 variant: shift [1, 6, 8, 16]; scope each_new_token>
    """

    directions: Float[Tensor, "layers heads dim"]
    sigma: Float[Tensor, "layers heads"]
    alpha: float
    heads: tuple[Head, ...]
    scope: Scope = "each_new_token"
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    at: str = "last"
    whole: ClassVar[bool] = False
    passes: ClassVar[int] = 1
    config_file = "steering_config.json"
    weights_file = "steering.safetensors"

    def __repr__(self) -> str:
        return f"<Steering of {len(self.heads)} heads, alpha {self.alpha:g}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"layer": h[0], "head": h[1], "length of the shift": self.alpha * float(self.sigma[h])} for h in self.heads)

    @property
    def n_parameters(self) -> int:
        """D numbers per steered head."""
        return len(self.heads) * self.directions.shape[-1]

    def edit(self, alpha: float | None = None) -> Edit:
        """The steering as an edit of one variant; alpha: another strength than its own."""
        strength = self.alpha if alpha is None else alpha
        return Edit(shift=(strength * self.sigma[..., None] * self.directions)[None], scope=self.scope, at=self.at)

    def scores(self, vlm: VLM, answers: Answers) -> Float[Tensor, "questions choices"]:
        """Choice scores [B, C]."""
        return answers.edited(self.edit())

    def attached(self, vlm: VLM | torch.nn.Module, questions: Sequence[Question] = ()) -> AbstractContextManager[None]:
        """The steered model, for plain transformers forward and generate; questions: those that will be asked, as for `ScAle.attached`."""
        return attach(vlm.hf_model if isinstance(vlm, VLM) else vlm, self.edit(), known_prompts(vlm, self.at, questions))

    def config(self) -> dict[str, Any]:
        """The method's name and its settings."""
        heads = [list(h) for h in self.heads]
        own = {"alpha": self.alpha, "scope": self.scope, "heads": heads} | ({} if self.at == "last" else {"at": self.at})
        return {"method": self.kind, "settings": own | dict(self.settings)}

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return super()._parts()[0], {"settings": self.config()["settings"], "provenance": self.provenance}

    @classmethod
    def _arguments(cls, path: FilePath, meta: Mapping[str, Any]) -> dict[str, Any]:
        found = entries(path, meta, {"settings": dict[str, Any], "provenance": dict[str, Any]})
        named = {"at": str} if "at" in found["settings"] else {}
        own = entries(path, found["settings"], {"alpha": float, "heads": tuple[Head, ...], "scope": Scope} | named)
        rest = {name: value for name, value in found["settings"].items() if name not in own}
        return own | {"settings": rest, "provenance": found["provenance"]}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        require_heads(self.heads, *self.sigma.shape)
        if wrong := [head for head in self.sigma.nonzero().tolist() if tuple(head) not in self.heads]:
            where = f"{self.weights_file}, which steers head {tuple(wrong[0])}"
            raise Misfit(f"its heads are not those of {where}", "give a whole saved folder")
        self.edit()
