"""Questions or contrasts in a fixed order, with where they came from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar, overload

import numpy as np

from ..core.arguments import SelfChecking
from ..core.notebook import NotebookView
from ..errors import LeakError
from .identity import PIXELS, merged_groups, same_image
from .question import Question


class Item(Protocol):
    """What a question and a contrast share."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def pixel_keys(self) -> tuple[Hashable, ...]: ...


T = TypeVar("T", bound=Item, covariant=True)


class Items(NotebookView, Sequence[T]):
    """Items of one data set, split and seed; slices keep these."""

    noun = "items"

    def __init__(self, items: Iterable[T], source: str = "given", split: str = "", seed: int | None = None):
        self.items = tuple(items)
        self.source, self.split, self.seed = source, split, seed

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return map(self._card_row, self.items)

    def _card_row(self, item: Any) -> Mapping[str, Any]:
        return {"id": item.id}

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        if not isinstance(index, slice):
            return self.items[index]
        part = copy.copy(self)
        part.items = self.items[index]
        return part

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<{len(self)} {self.noun} of {self.source}{' ' + self.split if self.split else ''}>"


class Questions(Items[Question]):
    """Questions, as `load_questions` gives them.

    >>> from scale_interp import load_questions
    >>> load_questions("scenes/relation", "train", n=8)[:2]
    <2 questions of scenes/relation train>
    """

    noun = "questions"

    def _card_row(self, item: Any) -> Mapping[str, Any]:
        return {"question": item.text, "choices": ", ".join(item.choices), "right": item.answer_text}


def describe(items: Sequence[Item]) -> dict[str, Any]:
    """What a result records of its questions: source, split, seed, count and a hash of their ids."""
    ids = [q.id for q in items]
    return {
        "data": getattr(items, "source", "given"),
        "split": getattr(items, "split", ""),
        "seed": getattr(items, "seed", None),
        "n": len(ids),
        "data_hash": hashlib.blake2b("|".join(ids).encode(), digest_size=8).hexdigest(),
    }


def require(questions: Sequence[Any] | Any, kind: type[SelfChecking] = Question) -> Sequence[Any]:
    """The questions (or contrasts) as a non-empty sequence, or DataError."""
    return kind.require_items(questions)


def groups(items: Sequence[Item]) -> np.ndarray:
    """The number of each item's group, [Q]; items that show the same pixels share it, whatever their files are called."""
    return np.unique(merged_groups(items), return_inverse=True)[1]


def require_disjoint(train: Iterable[Item | str], test: Iterable[Item], rendered: bool = True) -> None:
    """Raise LeakError where anything was learned or chosen on an image of the test questions.

    Images are compared by group and by pixels, so that a copy under another name is found; files are opened for it, once.

    Args:
        train: The questions, or the names of their images, as results keep them (`identity.image_names`).
        test: The questions to test on.
        rendered: Whether test images that a function makes are compared by their pixels too, and so are made now.
    """
    train, test = list(train), list(test)
    names = {item if isinstance(item, str) else item.group for item in train}
    mend = "use different splits, or different seeds of one split without overlap"
    if shared := {name for name in names if not name.startswith(PIXELS)} & {q.group for q in test}:
        raise LeakError(f"{len(shared)} image(s) are in both training and test questions, {sorted(shared)[0]!r} among them: {mend}")
    if same := same_image(train, [item for item in test if rendered or not _is_rendered(item)]):
        raise LeakError(
            f"an image is in both training and test questions under two names: {same[0]!r} and {same[1]!r} show the same pixels; "
            f"give questions about one image the same group, and {mend}"
        )


def shared_images(train: Iterable[Item], test: Sequence[Item]) -> np.ndarray:
    """Which test questions show an image of the training questions, by group or by pixels [Q]."""
    train = list(train)
    merged = groups([*train, *test])
    return np.isin(merged[len(train) :], merged[: len(train)])


def _is_rendered(item: Item) -> bool:
    return any(callable(source) for source in getattr(item, "image_sources", ()))


def shuffled_answers(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions with their right answers permuted among those with the same choices: labels without signal."""
    rng = np.random.default_rng(seed)
    out = list(questions)
    for choices in dict.fromkeys(q.choices for q in questions):
        members = [i for i, q in enumerate(questions) if q.choices == choices]
        for i, j in zip(members, rng.permutation(members), strict=True):
            out[i] = replace(questions[i], answer=questions[j].answer)
    return out
