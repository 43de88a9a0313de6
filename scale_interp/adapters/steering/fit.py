"""Fitting a steering: the direction from wrong to right answers, on the heads that separate them best (ITI, arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ...attribution.ablation import provenance, read_clean
from ...attribution.head_probe import held_out_guesses
from ...attribution.metric import measure
from ...core.arguments import AtLeast, Seed, checked
from ...data.items import groups, require
from ...data.question import Question
from ...errors import DataError, EditError
from ...interventions.capture import capture
from ...interventions.edit import Head, Scope, check_heads
from ...interventions.engine import Path, choose_path, run_edits
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from .steering import Steering

Direction = Literal["mean", "probe"]


@checked
def fit_steering(
    vlm: VLM,
    train: Sequence[Question],
    heads: int | Iterable[Head] = 48,
    alpha: float = 15.0,
    *,
    direction: Direction = "mean",
    scope: Scope = "each_new_token",
    at: str = "last",
    folds: Annotated[int, AtLeast(2)] = 2,
    seed: Seed = 0,
    prompts: PrefixStore | None = None,
    path: Path = "auto",
) -> Steering:
    """Fit directions from questions that the model answers wrong to questions that it answers right (ITI, arXiv 2306.03341).

    Two things differ from ITI: z is read at the prompt's last token, and right and wrong are the model's own answers instead of given
    true and false ones.

    Args:
        vlm: the model, from `si.load`.
        train: training questions, and only these.
        heads: (layer, head) pairs; or a number K, for the K heads whose probes separate right from wrong best on held-out images (balanced
            accuracy). 48 is the release's.
        alpha: the strength, in standard deviations of z; 15 is the release's.
        direction: from the "mean" z of wrong answers to that of right ones, or the weights of a logistic "probe"; the mean worked better in
            the paper (section 5).
        scope: the prompt's last token ("last"), or every generated token too ("each_new_token").
        at: the token group that is steered, and over which z is averaged; at any other than "last" the scope is "last".
        folds: parts of the images that are held out in turn, for choosing heads.
        seed: for the folds.
        prompts: the training questions' prefixes, to reuse.
        path: "packed" reads each prompt once, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A Steering, directions [L, H, D].

    Raises:
        DataError: where all answers are right, or all are wrong.
        EditError: for an unknown direction, for no heads, and for heads that the model does not have.

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
    z = (read_clean(vlm, train, path, prompts)[0] if at == "last" else capture(vlm, train, at=at).z).float().cpu()
    chosen = _best_heads(z, right, groups(train), heads, folds, seed) if isinstance(heads, int) else check_heads(heads, L, H)
    if not chosen:
        raise EditError("no heads to steer: give at least one")
    directions, sigma = torch.zeros(z.shape[1:], dtype=torch.float32), torch.zeros(L, H, dtype=torch.float32)
    for layer, head in chosen:
        of_head = z[:, layer, head]
        towards = of_head[right].mean(0) - of_head[~right].mean(0) if direction == "mean" else _probe_weights(of_head, right)
        directions[layer, head] = torch.nn.functional.normalize(towards, dim=0)
        sigma[layer, head] = (of_head @ directions[layer, head]).std()
    given = {"direction": direction, "chosen_by": "probe" if isinstance(heads, int) else "given", "right": int(right.sum())}
    made = provenance(vlm, train, path=path, seed_of_folds=seed)
    return Steering(directions, sigma, float(alpha), tuple(chosen), scope if at == "last" else "last", given, made, at)


def _best_heads(z: Tensor, right: Tensor, group: np.ndarray, k: int, folds: int, seed: int) -> list[Head]:
    """The k heads whose probes separate right from wrong best, by held-out balanced accuracy; ties go to the earlier head."""
    codes = right.numpy().astype(np.int64)
    hits = held_out_guesses(z.numpy(), codes, group, folds, seed) == codes[:, None, None]
    score = torch.from_numpy((hits[codes == 1].mean(0) + hits[codes == 0].mean(0)) / 2)
    order = score.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return [(i // z.shape[2], i % z.shape[2]) for i in order]


def _probe_weights(z: Tensor, right: Tensor) -> Tensor:
    """A logistic probe's weights [D] in the units of z [Q, D]."""
    spread = z.std(0).clamp(min=1e-8)
    fitted = LogisticRegression(max_iter=1000).fit((z / spread).numpy(), right.numpy())
    return torch.from_numpy(fitted.coef_[0]).float() / spread
