"""Questions by name."""

from __future__ import annotations

from ..errors import DataError
from .items import Questions
from .scene_questions import scene_questions
from .task import TASKS


def load_questions(name: str, split: str = "test", n: int = 200, seed: int = 0) -> Questions:
    """Questions of a data set by name: "scenes/" and one of the scene tasks.

    n questions are drawn with `seed`; the same arguments give the same questions. Splits share no scene.
    Raises DataError for an unknown name or split.

    >>> load_questions("scenes/relation", split="train", n=4)
    <4 questions of scenes/relation train>
    """
    room, _, task = name.partition("/")
    if room != "scenes":
        known = ", ".join(f"scenes/{t}" for t in TASKS)
        raise DataError(f"unknown data set {name!r}: known are {known}")
    return scene_questions(task, split, n, seed)
