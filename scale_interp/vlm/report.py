"""The check of a model on two questions: which path its edits take, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.notebook import NotebookView


@dataclass(frozen=True)
class Report(NotebookView):
    """What a model is, which path its edits take and why, and what was measured on two questions.

    All differences are the largest absolute differences of logits.

    Attributes:
        packed_reference: Between the two paths, in the effect (edited minus clean) of a random edit of every head and MLP.
        clean: Between the unedited runs of the two paths.
        nnsight: Between the reference path and a plain nnsight trace that zeroes one head.
        rounding: Between clean variants that are computed through every layer and the clean row of the same packed call.
        allowed: What rounding explains in this dtype.
        sweep_bytes: Working memory of a packed sweep over all heads, in bytes.
        at_once: How many variants such a sweep runs at a time.
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
        """Whether all paths give the same result for an edit, up to rounding."""
        return max(self.packed_reference, self.clean, self.nnsight) <= self.allowed

    def rows(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)
