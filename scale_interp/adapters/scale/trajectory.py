"""The scalars of a fit after every epoch: what became of the answers on the way, on one reading of the prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...core.result import Result
from ...errors import EditError
from ...interventions.edit import Edit, Scope


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """The scalars of a fit at its start, where all are 1, and after each epoch; as an edit, E variants side by side.

    Args:
        scalars: what each head's output z is multiplied by [E, L, H].
        mlp_scalars: what each layer's MLP output is multiplied by [E, L].
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", split="train", n=8)
    >>> scale = si.fit_scale(vlm, qs, recipe="release", epochs=2, every_epoch=True)
    >>> len(scale.trajectory), len(si.evaluate_many(vlm, qs, scale.trajectory))
    (3, 3)
    """

    scalars: Float[Tensor, "epochs layers heads"]
    mlp_scalars: Float[Tensor, "epochs layers"]
    scope: Scope = "each_new_token"

    def __len__(self) -> int:
        return len(self.scalars)

    def __repr__(self) -> str:
        last = self.scalars[-1]
        return f"<Trajectory of {len(self) - 1} epochs; heads {float(last.min()):.2f} to {float(last.max()):.2f} at the end>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        for epoch, (heads, mlps) in enumerate(zip(self.scalars, self.mlp_scalars, strict=True)):
            yield {"epoch": epoch, "heads moved by": float((heads - 1).abs().mean()), "MLPs moved by": float((mlps - 1).abs().mean())}

    def edit(self, epoch: int | None = None) -> Edit:
        """All epochs as an edit of E variants, or one of them. Raises EditError for an epoch that there is not."""
        if epoch is not None and not 0 <= epoch < len(self):
            raise EditError(f"epoch {epoch}: give a number from 0, the start, to {len(self) - 1}")
        part = slice(None) if epoch is None else slice(epoch, epoch + 1)
        return Edit(scale=self.scalars[part], mlp_scale=self.mlp_scalars[part], scope=self.scope)
