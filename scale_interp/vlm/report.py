"""What was measured of a model on two questions: which path its edits take, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.notebook import NotebookView


@dataclass(frozen=True)
class Report(NotebookView):
    """What a model is, which path its edits take and why, and what was measured on two questions.

    Differences are of logits. packed_reference: effects (edited minus clean of the same path) of a random edit of every
    head and MLP; clean: the unedited runs of the two paths; nnsight: the reference path against a plain nnsight trace
    that zeroes one head; rounding: clean variants that are computed through every layer, against the clean row of the
    same packed call. allowed: what counts as rounding in this dtype. sweep_bytes: working memory of a packed sweep of
    all heads, in chunks of `at_once` variants.
    """

    model: str
    family: str
    known: bool
    model_class: str
    processor_class: str
    attention: str
    dtype: str
    device: str
    layers: int
    heads: int
    head_dim: int
    groups: int
    weight_bytes: int
    tokens: int
    path: Literal["packed", "reference"]
    why: str
    packed_reference: float
    clean: float
    nnsight: float
    rounding: float
    allowed: float
    sweep_bytes: int
    at_once: int

    def __repr__(self) -> str:
        return f"<Report of {self.model}: {self.path} path. {self.why}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        largest = {"packed against reference": self.packed_reference, "unedited": self.clean, "against plain nnsight": self.nnsight}
        return (
            {"difference of logits": name, "largest": f"{value:.1e}", "allowed": f"{self.allowed:.0e}"} for name, value in largest.items()
        )

    @property
    def agrees(self) -> bool:
        """Whether all paths mean the same by an edit, up to rounding."""
        return max(self.packed_reference, self.clean, self.nnsight) <= self.allowed

    def rows(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)
