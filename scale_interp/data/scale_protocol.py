"""ScAle's own task and split, as its code has them (arXiv 2606.29579): SpatialEval's texts, letters as choices, a fifth to train on.

The split is by question. Three questions share an image, so many test questions show an image that was trained on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from ..core.arguments import Raises
from ..errors import DataError, DataWarning
from .items import Questions
from .readers.catalog import KINDS, find_entry
from .readers.source import Source
from .readers.spatialeval import SpatialEval

SplitProtocol = Annotated[Literal["ours", "scale"], Raises(DataError)]
"""Whose task and split: ours by image, or those of ScAle's code by question."""
TASKS = ("map", "maze", "grid")
"""The order in which one generator draws the three tasks' splits."""
TRAIN = 0.2


def scale_split(counts: Sequence[int], seed: int) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """The release's split of several tasks by question: one RandomState permutes them in turn, and the first fifth is trained on.

    Args:
        counts: how many questions each task has.
        seed: the release's are 0, 1 and 2.

    Returns:
        The places of the training and of the test questions of each task, in the order in which they are used.

    Raises:
        DataError: for a seed that numpy's RandomState does not take.

    >>> [(len(train), len(test)) for train, test in scale_split([1500, 1500], seed=0)]
    [(300, 1200), (300, 1200)]
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"seed={seed}: protocol='scale' draws with numpy's RandomState; give 0 to {2**32 - 1}")
    generator = np.random.RandomState(seed)
    orders = [generator.permutation(count) for count in counts]
    return [(order[: math.floor(len(order) * TRAIN)], order[math.floor(len(order) * TRAIN) :]) for order in orders]


def scale_questions(name: str, split: str | None, n: int | None, seed: int, source: Source) -> Questions:
    """The release's questions of one task, in the release's order; those that it passes over are left out with a DataWarning.

    Args:
        name: "spatialeval/vqa/map", "maze" or "grid".
        split: "train" or "test"; None is "test".
        n: the first n of them; None for all.
        seed: of the split.
        source: where the set is found.

    Raises:
        DataError: for another set or split.
    """
    kind = name.removeprefix("spatialeval/vqa/")
    if kind not in TASKS:
        raise DataError(f"protocol='scale' of {name}: ScAle's code trains on {', '.join(f'spatialeval/vqa/{task}' for task in TASKS)}")
    reader = SpatialEval(find_entry(name), source, "test")
    places = {task: [i for i, one in enumerate(reader.ids) if one.startswith(KINDS[task])] for task in TASKS}
    own = dict(zip(TASKS, scale_split([len(places[task]) for task in TASKS], seed), strict=True))[kind]
    order = part_of(own, split, name)
    found = [reader.released(int(i), places[kind][int(i)]) for i in order]
    kept = [one for one in found if one is not None]
    if not kept:
        raise DataError(
            f"{name}: none of the {len(order)} {split or 'test'} questions has a letter from A to D as its answer; fetch it again"
        )
    if len(kept) < len(found):
        warnings.warn(
            f"{name}: {len(found) - len(kept)} of {len(found)} records are left out, their answer is no letter from A to D",
            DataWarning,
            stacklevel=4,
        )
    return Questions(kept[:n], name, split or "test", seed)


def scale_part(questions: Questions, split: str | None, seed: int) -> Questions:
    """The same split of other questions, as of a first task."""
    order = part_of(scale_split([len(questions)], seed)[0], split, questions.source)
    return Questions([questions[int(i)] for i in order], questions.source, split or "test", seed)


def part_of(parts: tuple[Any, Any], split: str | None, name: str) -> Any:
    """The training or the test part of a split. Raises DataError for another one, and where nothing is left to train on."""
    if split not in (None, "train", "test"):
        raise DataError(f"unknown split {split!r} of {name} by protocol='scale': choose from train, test")
    if not len(parts[0]):
        raise DataError(f"{name}: a fifth of {len(parts[1])} questions is none to train on; give at least {math.ceil(1 / TRAIN)}")
    return parts[0] if split == "train" else parts[1]
