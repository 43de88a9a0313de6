"""The table of a falsification suite: every control against the base model, and against ScAle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ...core import statistics
from ...data.image_controls import with_noise, with_other_image, without_image
from ...data.items import Questions
from ...data.question import Question
from ...errors import DataError
from ...vlm.vlm import VLM
from ..accuracy import relative_gain
from .format import Split
from .verdict import FULL, IMAGES, UNTRAINED


@dataclass(frozen=True, eq=False)
class Answered:
    """Right answers of a control and of the base model to the same questions.

    Args:
        right: of the control, a mean over its fits, from 0 to 1 [Q].
        base: of the base model, 0.0 or 1.0 [Q].
        fits: how many fits.
        parameters: how many learned numbers; None where nothing is learned.
        elsewhere: the change of accuracy on questions of other tasks, where these were asked.
        split: the log-likelihood of right options in two parts, where it was measured.
    """

    right: Float[np.ndarray, " questions"]
    base: Float[np.ndarray, " questions"]
    fits: int = 1
    parameters: int | None = None
    elsewhere: float | None = None
    split: Split | None = None


def cohen_h(first: float, second: float) -> float:
    """Cohen's h, the difference of two shares as 2 asin sqrt(first) - 2 asin sqrt(second).

    0.2 is called small, 0.5 medium, 0.8 large (Cohen 1988, *Statistical Power Analysis*, sections 6.1 and 6.2).

    Args:
        first: a share from 0 to 1.
        second: the share to compare it with.

    Returns:
        The effect size, between -pi and pi.

    >>> round(cohen_h(0.65, 0.45), 4)
    0.4049
    """
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def image_controls(vlm: VLM, questions: Sequence[Question]) -> tuple[dict[str, Questions], dict[str, str]]:
    """The questions without their image, and with the image of another question.

    A model that needs an image in every prompt is shown random pixels in place of none.

    Args:
        vlm: the model, from `si.load`.
        questions: test questions.

    Returns:
        Control -> its questions, and control -> why it is left out.
    """
    made: dict[str, Questions] = {}
    left_out: dict[str, str] = {}
    none, noise, other = IMAGES

    def add(name: str, make: Callable[[Sequence[Question]], Questions]) -> None:
        try:
            changed = make(questions)
            if name == none:
                vlm.encode(changed[0])
            made[name] = changed
        except DataError as error:
            left_out[name] = str(error)

    add(none, without_image)
    if none in left_out:
        add(noise, with_noise)
    add(other, with_other_image)
    return made, left_out


def control_rows(answered: Mapping[str, Answered], group: Int[np.ndarray, " questions"]) -> list[dict[str, Any]]:
    """The table of controls, ScAle first; `Falsification.to_frame` documents its columns.

    Args:
        answered: control -> its answers; "ScAle" must be among them.
        group: the number of each question's image [Q].

    Returns:
        One row per control.
    """
    full = answered[FULL]
    names = [FULL, *(n for n in answered if n != FULL)]
    gains = {n: statistics.paired_difference(answered[n].right, answered[n].base, group) for n in names}
    against = {n: _advantage(full, answered[n], group) for n in names[1:]}
    with_image = {n: statistics.paired_difference(full.right, answered[n].right, group) for n in names if n in IMAGES}
    corrected = iter(statistics.holm(np.array([d.p for part in (gains, against, with_image) for d in part.values()])))
    rows = {n: _row(n, answered[n], gains[n], next(corrected)) for n in names}
    for title, part in (("full_minus", against), ("picture_minus", with_image)):
        for name, found in part.items():
            rows[name] |= {
                title: found.mean,
                f"{title}_low": found.low,
                f"{title}_high": found.high,
                f"{title}_effect": cohen_h(float(full.right.mean()), float(answered[name].right.mean())),
                f"{title}_p": found.p,
                f"{title}_p_corrected": float(next(corrected)),
            }
    return list(rows.values())


def format_rows(full: Answered, answered: Mapping[str, Answered], group: Int[np.ndarray, " questions"]) -> list[dict[str, Any]]:
    """The rows of format controls, in the form of `control_rows`, with p-values corrected among themselves.

    Args:
        full: ScAle's answers.
        answered: format control -> its answers to the same questions.
        group: the number of each question's image [Q].

    Returns:
        One row per control.
    """
    gains = {n: statistics.paired_difference(a.right, a.base, group) for n, a in answered.items()}
    against = {n: _advantage(full, a, group) for n, a in answered.items()}
    corrected = iter(statistics.holm(np.array([d.p for part in (gains, against) for d in part.values()])))
    rows = {n: _row(n, a, gains[n], next(corrected)) for n, a in answered.items()}
    for name, found in against.items():
        effect = cohen_h(float(full.right.mean()), float(answered[name].right.mean()))
        rows[name] |= _against(found, effect, next(corrected))
    return list(rows.values())


def untrained_row(full: Answered, leaked: Bool[np.ndarray, " questions"], group: Int[np.ndarray, " questions"]) -> dict[str, Any] | None:
    """ScAle's row on the test questions whose images were not trained on; None where these, or the others, show fewer than two images.

    `full_minus` is its gain on all test questions minus that on these; the test is one of leaked against other images.

    Args:
        full: ScAle's answers to all test questions.
        leaked: the questions whose images were trained on [Q].
        group: the number of each question's image [Q].

    Returns:
        The row.
    """
    clean = ~leaked
    if min(len(np.unique(group[part])) for part in (leaked, clean)) < 2:
        return None
    gains = full.right - full.base
    own = Answered(full.right[clean], full.base[clean], full.fits, full.parameters)
    more = statistics.unpaired_difference(gains[leaked], gains[clean], group[leaked], group[clean])
    scaled = replace(more, mean=more.mean * leaked.mean(), low=more.low * leaked.mean(), high=more.high * leaked.mean())
    found = statistics.paired_difference(own.right, own.base, group[clean])
    corrected = statistics.holm(np.array([found.p, scaled.p]))
    row = _row(UNTRAINED, own, found, float(corrected[0])) | {"questions": int(clean.sum())}
    return row | _against(scaled, cohen_h(float(full.right.mean()), float(own.right.mean())), float(corrected[1]))


def _against(found: statistics.Difference, effect: float, corrected: float) -> dict[str, Any]:
    names = ("full_minus", "full_minus_low", "full_minus_high", "full_minus_effect", "full_minus_p", "full_minus_p_corrected")
    return dict(zip(names, (found.mean, found.low, found.high, effect, found.p, float(corrected)), strict=True))


def _advantage(full: Answered, other: Answered, group: np.ndarray) -> statistics.Difference:
    """ScAle's gain minus the control's; on the same questions the base model cancels."""
    if np.array_equal(full.base, other.base):
        return statistics.paired_difference(full.right, other.right, group)
    return statistics.paired_difference(full.right - full.base, other.right - other.base, group)


def _row(name: str, found: Answered, gain: statistics.Difference, corrected: float) -> dict[str, Any]:
    accuracy, base = float(found.right.mean()), float(found.base.mean())
    row = {
        "control": name,
        "accuracy": accuracy,
        "base_accuracy": base,
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "relative_gain": relative_gain(accuracy, base),
        "effect": cohen_h(accuracy, base),
        "changed": float((found.right != found.base).mean()),
        "test": gain.test,
        "p": gain.p,
        "p_corrected": float(corrected),
        "parameters": found.parameters,
        "fits": found.fits,
    }
    if found.split is not None:
        row |= found.split.columns()
    return row if found.elsewhere is None else row | {"others_change": found.elsewhere}
