"""Questions or contrasts in a fixed order, with where they came from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar, overload

import numpy as np

from ..core.arguments import SelfChecking
from ..core.notebook import NotebookView
from ..errors import LeakError
from .question import Question


class Item(Protocol):
    """What a question and a contrast share."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...


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
    """The number of each item's group, [Q]; items of one picture share it."""
    return np.unique([q.group for q in items], return_inverse=True)[1]


def require_disjoint(train: Iterable[Item | str], test: Iterable[Item]) -> None:
    """Raise LeakError where anything was learned or chosen on a picture of the test questions.

    train: the questions, or the names of their pictures (`group`), as results keep them.
    """
    shared = {item if isinstance(item, str) else item.group for item in train} & {q.group for q in test}
    if shared:
        raise LeakError(
            f"{len(shared)} picture(s) are in both training and test questions, {sorted(shared)[0]!r} among them: "
            "use different splits, or different seeds of one split without overlap"
        )


def shuffled_answers(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions with their right answers permuted among those with the same choices: labels without signal."""
    rng = np.random.default_rng(seed)
    out = list(questions)
    for choices in dict.fromkeys(q.choices for q in questions):
        members = [i for i, q in enumerate(questions) if q.choices == choices]
        for i, j in zip(members, rng.permutation(members), strict=True):
            out[i] = replace(questions[i], answer=questions[j].answer)
    return out
