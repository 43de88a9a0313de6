"""A question about a picture, a contrast of two questions, and sequences of both."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DataError

Box = tuple[float, float, float, float]
Picture = Image.Image | str | Path | Callable[[], Image.Image] | None


@dataclass(frozen=True)
class Question:
    """One multiple-choice question about one picture.

    picture: a PIL image, a path, a function that returns an image (opened only when asked for), or None.
    choices: at least two different, non-empty strings; answer: index of the right one.
    group: what questions may share (a scene, a photograph): splits and intervals go by it. Default: the id.
    boxes: name -> (left, top, right, bottom) in pixels of the picture; about: the names asked about, subject first.

    >>> q = Question("Where is the cat?", ("left", "right"), answer=0, picture=Image.new("RGB", (8, 8)))
    >>> q.answer_text
    'left'
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    picture: Picture = field(default=None, repr=False, compare=False)
    id: str = ""
    group: str = ""
    task: str = ""
    relation: str | None = None
    about: tuple[str, ...] = ()
    boxes: Mapping[str, Box] = field(default_factory=dict, repr=False, compare=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"question {self.id or self.text!r}"
        if not self.text.strip():
            raise DataError(f"{where}: the text is empty; give the words to ask")
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError(f"{where}: choices {self.choices!r}: give at least two, all different")
        if not all(isinstance(c, str) and c.strip() for c in self.choices):
            raise DataError(f"{where}: choices {self.choices!r} hold one without text; every choice needs a word")
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"{where}: answer {self.answer} is no index of its {len(self.choices)} choices")
        if not self.id:
            content = f"{self.text}|{self.choices}|{self.answer}|".encode() + _picture_bytes(self.picture)
            object.__setattr__(self, "id", hashlib.blake2b(content, digest_size=8).hexdigest())
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def answer_text(self) -> str:
        return self.choices[self.answer]

    @property
    def image(self) -> Image.Image | None:
        """The picture in RGB, opened now; None for a question without one.

        Raises DataError when the file is missing or no picture.
        """
        picture = self.picture
        if picture is None:
            return None
        try:
            if isinstance(picture, str | Path):
                with Image.open(picture) as opened:
                    return opened.convert("RGB")
            if callable(picture) and not isinstance(picture, Image.Image):
                picture = picture()
            return picture.convert("RGB")
        except FileNotFoundError as error:
            raise DataError(f"question {self.id}: no picture at {picture}; check the data folder") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"question {self.id}: {picture} is damaged or no picture ({error}); fetch it again") from error

    def _repr_html_(self) -> str:
        from ..viz.page import question_card

        return question_card(self)


def _picture_bytes(picture: Picture) -> bytes:
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()
    return str(picture).encode() if isinstance(picture, str | Path) else b""


class Questions(Sequence[Question]):
    """Questions in a fixed order, with where they came from; slices keep that."""

    def __init__(self, items: Iterable[Question], source: str = "given", split: str = "", seed: int | None = None):
        self.items = tuple(items)
        self.source, self.split, self.seed = source, split, seed

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Questions: ...
    def __getitem__(self, index: int | slice) -> Question | Questions:
        if isinstance(index, slice):
            return Questions(self.items[index], self.source, self.split, self.seed)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.items)

    def __repr__(self) -> str:
        return f"<{len(self)} questions of {self.source}{' ' + self.split if self.split else ''}>"

    def provenance(self) -> dict[str, Any]:
        """Source, split, seed, count and a content hash, as results record them."""
        return describe(self)


def describe(items: Sequence[Question] | Sequence[Contrast]) -> dict[str, Any]:
    """What a result records of the questions it was measured on."""
    ids = [q.id for q in items]
    return {
        "data": getattr(items, "source", "given"),
        "split": getattr(items, "split", ""),
        "seed": getattr(items, "seed", None),
        "n": len(ids),
        "data_hash": hashlib.blake2b("|".join(ids).encode(), digest_size=8).hexdigest(),
    }


@dataclass(frozen=True)
class Contrast:
    """Two questions of equal token length whose right answers differ: same words or same picture, other answer."""

    clean: Question
    corrupt: Question

    def __post_init__(self) -> None:
        if self.clean.choices != self.corrupt.choices:
            raise DataError(f"contrast {self.clean.id}: the choices differ ({self.clean.choices} / {self.corrupt.choices})")
        if self.clean.answer == self.corrupt.answer:
            raise DataError(f"contrast {self.clean.id}: both questions have the answer {self.clean.answer_text!r}")

    @property
    def id(self) -> str:
        return f"{self.clean.id}>{self.corrupt.id}"

    @property
    def group(self) -> str:
        return self.clean.group


class Contrasts(Sequence[Contrast]):
    """Contrasts in a fixed order, and the questions for which none could be built (`skipped`: id -> why)."""

    def __init__(self, items: Iterable[Contrast], skipped: Mapping[str, str], source: str, split: str = "", seed: int | None = None):
        self.items, self.skipped = tuple(items), dict(skipped)
        self.source, self.split, self.seed = source, split, seed

    @overload
    def __getitem__(self, index: int) -> Contrast: ...
    @overload
    def __getitem__(self, index: slice) -> Contrasts: ...
    def __getitem__(self, index: int | slice) -> Contrast | Contrasts:
        if isinstance(index, slice):
            return Contrasts(self.items[index], self.skipped, self.source, self.split, self.seed)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<{len(self)} contrasts of {self.source}, {len(self.skipped)} questions without one>"


Change = Literal["mirror", "swap"]


def contrasts(questions: Sequence[Question], change: Change = "mirror") -> Contrasts:
    """Pair each question with one that has other content, the same words and another right answer.

    change: "mirror" moves every thing to its mirror place along the asked axis; "swap" exchanges the places of the
    two things asked about. Needs questions that know their scene (`scenes/...`) and ask for a place or a relation.
    Questions for which no such partner exists are listed in `.skipped` with the reason.

    >>> from scale_interp import load_questions
    >>> contrasts(load_questions("scenes/relation", n=8))
    <8 contrasts of scenes/relation mirror, 0 questions without one>
    """
    from .scene_questions import partner

    if change not in ("mirror", "swap"):
        raise DataError(f"change {change!r}: choose 'mirror' or 'swap'")
    made, skipped = [], {}
    for question in require(questions):
        other = partner(question, change)
        if isinstance(other, str):
            skipped[question.id] = other
        else:
            made.append(Contrast(question, other))
    if not made:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise DataError(f"no contrast could be built from {len(questions)} questions: {reasons}")
    source = f"{getattr(questions, 'source', 'given')} {change}"
    return Contrasts(made, skipped, source, getattr(questions, "split", ""), getattr(questions, "seed", None))


def require(questions: Sequence[Any] | Any, kind: type = Question) -> Sequence[Any]:
    """The questions as a non-empty sequence, or DataError."""
    if isinstance(questions, Question | Contrast):
        questions = [questions]
    if len(questions) == 0:
        raise DataError("an empty set of questions: load at least one")
    wrong = next((q for q in questions if not isinstance(q, kind)), None)
    if wrong is not None:
        mend = "build pairs with si.contrasts(questions)" if kind is Contrast else "pass questions, not pairs"
        raise DataError(f"expected {kind.__name__}s, found a {type(wrong).__name__}: {mend}")
    return questions


def groups(items: Sequence[Question] | Sequence[Contrast]) -> np.ndarray:
    """The number of each item's group, [Q]; items of one picture share it."""
    return np.unique([q.group for q in items], return_inverse=True)[1]


def shuffled_answers(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions with their right answers permuted among those with the same choices: labels without signal."""
    rng = np.random.default_rng(seed)
    out = list(questions)
    for choices in dict.fromkeys(q.choices for q in questions):
        members = [i for i, q in enumerate(questions) if q.choices == choices]
        for i, j in zip(members, rng.permutation(members), strict=True):
            out[i] = replace(questions[i], answer=questions[j].answer)
    return out
