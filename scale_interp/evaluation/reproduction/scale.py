"""ScAle's experiment as its code does it (arXiv 2606.29579), and what its split and its choice of epoch are worth.

The code trains on a fifth of a task's questions for ten epochs, computes the accuracy on the test questions after each, and has no
validation split. Three questions share an image, so test questions show images that were trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...adapters.scale.fit import Fit, FitSettings, fit_scales, prompts_to_fit
from ...adapters.scale.scale import ScAle
from ...core import statistics
from ...core.result import Result
from ...data.items import groups, shared_images
from ...data.question import Question
from ...vlm.vlm import VLM
from ..accuracy import answering, evaluate_many

PARTS = {"heads": Fit("heads", mlp=False), "MLPs": Fit("MLPs", (), mlp=True), "both": Fit("both")}
"""The release's modes."""
HELD_OUT = 0.2
"""The share of the training images on which our second fit chooses its epoch."""
PAPER: Mapping[str, Mapping[str, tuple[float, float | None, float | None, float]]] = {
    "llava-v1.6-vicuna-7b": {"maze": (31.7, 68.9, 44.0, 69.7), "grid": (29.3, 68.6, 30.7, 75.3), "map": (22.7, 45.0, 38.0, 45.3)},
    "llava-v1.6-vicuna-13b": {"maze": (26.7, None, None, 69.8), "grid": (36.7, None, None, 62.0), "map": (28.0, None, None, 51.5)},
    "qwen2.5-vl-3b": {"maze": (26.0, None, None, 70.3), "grid": (63.7, None, None, 75.8), "map": (51.7, None, None, 66.8)},
    "qwen2.5-vl-7b": {"maze": (38.3, None, None, 66.2), "grid": (73.7, None, None, 83.8), "map": (66.3, None, None, 76.8)},
}
"""Model -> task -> accuracy in percent: frozen, heads, MLPs, both. From a third party's reading of the paper: check before quoting."""


def paper_row(model: str, task: str) -> dict[str, float | None] | None:
    """What the paper reports of a model on a task, as shares; None for a model that it does not have."""
    found = next((rows for name, rows in PAPER.items() if name in model.lower()), {}).get(task)
    if found is None:
        return None
    return {name: None if value is None else round(value / 100, 4) for name, value in zip(("base", *PARTS), found, strict=True)}


@dataclass(frozen=True)
class ScaleFits:
    """The fits of all parts: as released, and with training images held out to choose the epoch on."""

    released: Mapping[str, ScAle]
    held_out: Mapping[str, ScAle]


def fit_parts(vlm: VLM, train: Sequence[Question], epochs: int = 10, seed: int = 0) -> ScaleFits:
    """Fit heads, MLPs and both by the release's recipe, side by side, on one reading of the prompts.

    Args:
        vlm: the model.
        train: training questions, in the release's order.
        epochs: passes over them.
        seed: draws the images that the second fits hold out.
    """
    prompts = prompts_to_fit(vlm, train, len(PARTS), FitSettings.of("release"))
    fits = [replace(fit, seed=seed) for fit in PARTS.values()]
    both = [
        fit_scales(vlm, train, fits, prompts=prompts, recipe="release", epochs=epochs, every_epoch=True, validation=share)
        for share in (0.0, HELD_OUT)
    ]
    released, held = (dict(zip(PARTS, scales, strict=True)) for scales in both)
    return ScaleFits(released, held)


def chosen_epoch(scale: ScAle) -> int:
    """The epoch with the highest accuracy on the images that were held out; of equals the one with the lowest loss there."""
    best = max(scale.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    return int(best["epoch"])


@dataclass(frozen=True, eq=False)
class ScaleRun(Result):
    """What was found.

    Attributes:
        right: 1 where a test question is answered right, by part and epoch [parts, epochs, Q]; epoch 0 is the base model.
        loss: mean cross-entropy of the right letter over the vocabulary, on the test questions [parts, epochs].
        letters: mean probability that the answer is any of the letters [parts, epochs].
        trained: 1 where a test question shows an image that was trained on [Q].
        groups: the number of each test question's image [Q].
        chosen_epochs: the epoch that held-out images chose, by part, with a second fit that did not learn from these.
        history: the release's fits, one row per epoch, by part.
        provenance: model, data, settings and versions.
    """

    right: Float[Tensor, "parts epochs questions"]
    loss: Float[Tensor, "parts epochs"]
    letters: Float[Tensor, "parts epochs"]
    trained: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    chosen_epochs: Annotated[tuple[int, ...], "parts"]
    history: Annotated[tuple[tuple[Mapping[str, Any], ...], ...], "parts"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        last = ", ".join(f"{part} {float(self.right[p, -1].mean()):.3f}" for p, part in enumerate(PARTS))
        return f"<ScaleRun on {len(self.trained)} test questions: {self.base:.3f} before, {last} after {self.right.shape[1] - 1} epochs>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return self.to_frame().to_dict("records")

    @property
    def clean(self) -> Bool[Tensor, " questions"]:
        """Which test questions show no image that was trained on [Q]."""
        return self.trained == 0

    @property
    def base(self) -> float:
        """The base model's accuracy on all test questions."""
        return float(self.right[0, 0].mean())

    def epochs_frame(self) -> pd.DataFrame:
        """One row per part and epoch: accuracy and loss on training and test questions, and accuracy on images not trained on."""
        rows = []
        for p, part in enumerate(PARTS):
            for epoch, known in enumerate(self.history[p]):
                right = self.right[p, epoch]
                rows.append(
                    {"part": part, "epoch": epoch, "train_accuracy": known["train_accuracy"], "train_loss": known["train_loss"]}
                    | {"test_accuracy": float(right.mean()), "test_loss": float(self.loss[p, epoch])}
                    | {"letter_mass": float(self.letters[p, epoch]), "untrained_accuracy": _mean(right[self.clean])}
                )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per part: the release's number, its best epoch on the test set, and both without leak and choice.

        Returns:
            Columns: part; base; last (the release's number) with its interval over images; best_on_test and best_epoch; base_untrained and
            last_untrained, on images that were not trained on; chosen, there too, of the same fit at chosen_epoch, the epoch that held-out
            images chose; leak = (last - base) minus the same on images that were not trained on; choice = best_epoch there minus chosen.
        """
        rows = []
        for p, part in enumerate(PARTS):
            every, untrained = self.right[p].double().mean(1), self.right[p][:, self.clean].double().mean(1)  # nan where there is none
            low, high = statistics.accuracy_interval(self.right[p, -1].numpy(), self.groups.numpy())
            best = int(every[1:].argmax()) + 1
            chosen = float(untrained[self.chosen_epochs[p]])
            rows.append(
                {"part": part, "base": float(every[0]), "last": float(every[-1]), "low": low, "high": high}
                | {"best_on_test": float(every[best]), "best_epoch": best}
                | {"base_untrained": float(untrained[0]), "last_untrained": float(untrained[-1])}
                | {"chosen": chosen, "chosen_epoch": self.chosen_epochs[p]}
                | {"leak": float((every[-1] - every[0]) - (untrained[-1] - untrained[0]))}
                | {"choice": float(untrained[best] - chosen)}
            )
        return pd.DataFrame(rows)

    def findings(self, model: str, task: str) -> list[str]:
        """The findings in plain words, the paper's row beside them."""
        rows = self.to_frame().set_index("part")
        both, paper = rows.loc["both"], paper_row(model, task)
        Q, trained, last = len(self.trained), int(self.trained.sum()), self.right.shape[1] - 1
        out = [
            f"As released: {both['base']:.1%} before, "
            + ", ".join(f"{part} {rows.loc[part, 'last']:.1%}" for part in PARTS)
            + f" after {last} epoch{'s' * (last > 1)}, on {Q:,} test questions.",
        ]
        if paper is None:
            out.append(f"The paper has no {model}.")
        else:
            shown = [f"{name} {value:.1%}" for name, value in paper.items() if value is not None]
            out.append(f"The paper, as read by third parties: {', '.join(shown)}.")
        if not trained:
            out.append("No test question shows an image that was trained on.")
        elif trained == Q:
            out.append("Every test question shows an image that was trained on, so nothing can be said of other images.")
            return out
        else:
            out.append(
                f"{trained:,} of {Q:,} test questions ({trained / Q:.1%}) show an image that was trained on. On the others: "
                f"{both['base_untrained']:.1%} before, both {both['last_untrained']:.1%}; the leak is worth "
                f"{100 * both['leak']:+.1f} points."
            )
        out.append(
            f"The best epoch on the test set is {both['best_epoch']:.0f} ({both['best_on_test']:.1%}). Held-out training images choose "
            f"epoch {both['chosen_epoch']:.0f}: on images that were not trained on {both['chosen']:.1%}; the choice is worth "
            f"{100 * both['choice']:+.1f} points."
        )
        out.append(
            f"Probability that the answer is a letter at all: {self.letters[-1, 0]:.1%} before, {self.letters[-1, last]:.1%} after (both)."
        )
        return out


def answer_epochs(vlm: VLM, train: Sequence[Question], test: Sequence[Question], fits: ScaleFits) -> ScaleRun:
    """Answer the test questions with the scalars of every epoch of every fit, on one reading of the prompts.

    Args:
        vlm: the model.
        train: the questions that were trained on.
        test: test questions.
        fits: the fits of `fit_parts`.
    """
    paths = [_trajectory(scale).edit() for scale in fits.released.values()]
    found = evaluate_many(vlm, test, paths, scoring="whole")
    E = paths[0].n_variants
    shape = (len(PARTS), E)
    right = torch.stack([answers.per_question for answers in found])
    scores = torch.stack([answers.scores.double() for answers in found])
    gold = torch.tensor([q.answer for q in test])[None, :, None].expand(len(found), -1, 1)
    return ScaleRun(
        right.unflatten(0, shape),
        -scores.gather(2, gold)[..., 0].mean(1).float().view(shape),
        scores.exp().sum(2).mean(1).float().view(shape),
        torch.from_numpy(shared_images(train, test)).long(),
        torch.from_numpy(groups(test)),
        tuple(map(chosen_epoch, fits.held_out.values())),
        tuple(tuple(scale.history) for scale in fits.released.values()),
        answering(vlm, test, scoring="whole", train=len(train)),
    )


def _trajectory(scale: ScAle) -> Any:
    assert scale.trajectory is not None  # every_epoch=True
    return scale.trajectory


def _mean(right: Tensor) -> float:
    return float(right.double().mean())
