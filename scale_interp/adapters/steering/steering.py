"""ITI: the best heads pushed along the direction that tells right answers from wrong ones (arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ...attribution.ablation import provenance, read_clean
from ...attribution.head_probe import held_out_guesses
from ...attribution.metric import measure
from ...core.arguments import AtLeast, Seed, checked
from ...core.result import Adapter, Misfit, entries, require_heads
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.attention.run import Answers
from ...interventions.edit import Edit, Head, Scope, check_heads
from ...interventions.engine import Path, choose_path, run_edits
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from ..attach import attach

Direction = Literal["mean", "probe"]


@dataclass(frozen=True, eq=False)
class Steering(Adapter):
    """z += alpha * sigma * direction on chosen heads (arXiv 2306.03341, section 3.2).

    directions [L, H, D]: unit vectors, 0 on heads that are left alone; sigma [L, H]: the standard deviation of the training
    questions' z along them. scope: the prompt's last token ("last"), or every generated token too.

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
        return len(self.heads) * self.directions.shape[-1]

    def edit(self, alpha: float | None = None) -> Edit:
        """The edit of one variant; alpha: in place of its own."""
        strength = self.alpha if alpha is None else alpha
        return Edit(shift=(strength * self.sigma[..., None] * self.directions)[None], scope=self.scope)

    def scores(self, vlm: VLM, answers: Answers) -> Tensor:
        """Choice scores [B, C]."""
        return answers.edited(self.edit())

    def attached(self, vlm: VLM | torch.nn.Module) -> AbstractContextManager[None]:
        """The steered model, for plain transformers forward and generate."""
        return attach(vlm.hf_model if isinstance(vlm, VLM) else vlm, self.edit())

    def config(self) -> dict[str, Any]:
        """The method's name and its settings."""
        heads = [list(h) for h in self.heads]
        return {"method": self.kind, "settings": {"alpha": self.alpha, "scope": self.scope, "heads": heads} | dict(self.settings)}

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return super()._parts()[0], {"settings": self.config()["settings"], "provenance": self.provenance}

    @classmethod
    def _arguments(cls, path: FilePath, meta: Mapping[str, Any]) -> dict[str, Any]:
        found = entries(path, meta, {"settings": dict[str, Any], "provenance": dict[str, Any]})
        own = entries(path, found["settings"], {"alpha": float, "heads": tuple[Head, ...], "scope": Scope})
        rest = {name: value for name, value in found["settings"].items() if name not in own}
        return own | {"settings": rest, "provenance": found["provenance"]}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        require_heads(self.heads, *self.sigma.shape)
        if wrong := [head for head in self.sigma.nonzero().tolist() if tuple(head) not in self.heads]:
            where = f"{self.weights_file}, which steers head {tuple(wrong[0])}"
            raise Misfit(f"it is of another steering than {where}", "give a whole saved folder")
        self.edit()


@checked
def fit_steering(
    vlm: VLM,
    train: Sequence[Question],
    heads: int | Iterable[Head] = 48,
    alpha: float = 15.0,
    *,
    direction: Direction = "mean",
    scope: Scope = "each_new_token",
    folds: Annotated[int, AtLeast(2)] = 2,
    seed: Seed = 0,
    prompts: PrefixStore | None = None,
    path: Path = "auto",
) -> Steering:
    """Directions from the questions that the model answers wrong to those that it answers right, among training questions.

    heads: these, or the best K by how well a probe on one head tells right from wrong on pictures it did not learn from
    (balanced accuracy over `folds` parts). direction: from the mean z of wrong to that of right answers, or the "probe"'s
    weights; ITI finds the mean better (section 5). K = 48 and alpha = 15 are the release's. Ours: z of the prompt's last token,
    and the model's own answers in place of given true and false ones. Give training questions only: test questions leak.

    Raises DataError where all answers are right, or all wrong; EditError for more heads than the model has.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", split="train", n=64)
    >>> fit_steering(vlm, train, heads=[(2, 1), (3, 0)], alpha=2.0).edit().shift.shape
    torch.Size([1, 6, 8, 16])
    """
    train = require(train)
    if direction not in ("mean", "probe"):
        raise EditError(f"direction {direction!r}: choose 'mean' or 'probe'")
    L, H = vlm.n_layers, vlm.n_heads
    if isinstance(heads, int) and not 1 <= heads <= L * H:
        raise EditError(f"heads={heads}: the model has {L * H}; ask for 1 to {L * H} of them")
    path = choose_path(vlm, train, path)
    prompts = prompts or PrefixStore(vlm, train)
    right = measure("accuracy", run_edits(vlm, train, path=path, prompts=prompts, what="answering")[:, 0], train).bool().cpu()
    if right.all() or not right.any():
        raise DataError(f"all {len(train)} training answers are {'right' if right[0] else 'wrong'}: give questions of both kinds")
    z = read_clean(vlm, train, path, prompts)[0].float().cpu()
    chosen = _best(z, right, groups(train), heads, folds, seed) if isinstance(heads, int) else check_heads(heads, L, H)
    if not chosen:
        raise EditError("no heads to steer: give at least one")
    directions, sigma = torch.zeros(z.shape[1:]), torch.zeros(L, H)
    for layer, head in chosen:
        of_head = z[:, layer, head]
        towards = of_head[right].mean(0) - of_head[~right].mean(0) if direction == "mean" else _probe_weights(of_head, right)
        directions[layer, head] = torch.nn.functional.normalize(towards, dim=0)
        sigma[layer, head] = (of_head @ directions[layer, head]).std()
    given = {"direction": direction, "chosen_by": "probe" if isinstance(heads, int) else "given", "right": int(right.sum())}
    made = provenance(vlm, train, path=path, seed_of_folds=seed)
    return Steering(directions, sigma, float(alpha), tuple(chosen), scope, given, made)


def _best(z: Tensor, right: Tensor, group: np.ndarray, k: int, folds: int, seed: int) -> list[Head]:
    """The k heads whose probes tell right from wrong best, by held-out balanced accuracy; ties go to the earlier head."""
    codes = right.numpy().astype(np.int64)
    hits = held_out_guesses(z.numpy(), codes, group, folds, seed) == codes[:, None, None]
    score = torch.from_numpy((hits[codes == 1].mean(0) + hits[codes == 0].mean(0)) / 2)
    order = score.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return [(i // z.shape[2], i % z.shape[2]) for i in order]


def _probe_weights(z: Tensor, right: Tensor) -> Tensor:
    """A logistic probe's weights in z's own units: z [Q, D] -> [D]."""
    spread = z.std(0).clamp(min=1e-8)
    fitted = LogisticRegression(max_iter=1000).fit((z / spread).numpy(), right.numpy())
    return torch.from_numpy(fitted.coef_[0]).float() / spread
