"""A multiple-choice question about a picture."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..errors import DataError

Box = tuple[float, float, float, float]
Picture = Image.Image | str | Path | Callable[[], Image.Image]
LARGEST = 100_000_000
"""Pixels of the largest picture that is opened; PIL itself warns from 89 million on, and no model reads a tenth of it."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question about a picture, about several, or about none.

    picture: a PIL image, a path, a function that returns an image (opened only when asked for, or for an
    id), a list of these, or None.
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
    picture: Picture | Sequence[Picture] | None = field(default=None, repr=False, compare=False)
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
        if isinstance(self.picture, list):
            object.__setattr__(self, "picture", tuple(self.picture))
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError(f"{where}: choices {self.choices!r}: give at least two, all different")
        if not all(isinstance(c, str) and c.strip() for c in self.choices):
            raise DataError(f"{where}: choices {self.choices!r} hold one without text; every choice needs a word")
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"{where}: answer {self.answer} is no index of its {len(self.choices)} choices")
        if not self.id:
            content = f"{self.text}|{self.choices}|{self.answer}|".encode()
            content += b"".join(_picture_bytes(picture) for picture in self.pictures)
            object.__setattr__(self, "id", hashlib.blake2b(content, digest_size=8).hexdigest())
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def answer_text(self) -> str:
        return self.choices[self.answer]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures as given, none opened."""
        if self.picture is None:
            return ()
        return self.picture if isinstance(self.picture, tuple) else (self.picture,)  # type: ignore[return-value]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures in RGB, opened now. Raises DataError when a file is missing or no picture."""
        return [self._open(picture) for picture in self.pictures]

    @property
    def image(self) -> Image.Image | None:
        """The first picture in RGB, opened now; None for a question without one."""
        return self._open(self.pictures[0]) if self.pictures else None

    def _open(self, picture: Picture) -> Image.Image:
        return open_picture(picture, f"question {self.id}")

    def _repr_html_(self) -> str:
        from ..viz.page import question_card

        return question_card(self)


def open_picture(picture: Picture, where: str) -> Image.Image:
    """The picture in RGB. Raises DataError where it is missing, damaged, no picture, or above `LARGEST`."""
    with _explained(picture, where):
        if isinstance(picture, str | Path):
            with Image.open(picture) as opened:
                return _bounded(opened, picture, where).convert("RGB")
        image = picture if isinstance(picture, Image.Image) else picture()
        return _bounded(image, picture, where).convert("RGB")


def open_size(path: str | Path, where: str) -> tuple[int, int]:
    """Width and height of a picture, read without its pixels."""
    with _explained(path, where), Image.open(path) as opened:
        return opened.size


def _bounded(image: Image.Image, picture: Picture, where: str) -> Image.Image:
    width, height = image.size
    if width * height > LARGEST:
        raise DataError(f"{where}: {picture} has {width:,} x {height:,} pixels, more than {LARGEST:,}; scale it down")
    return image


@contextmanager
def _explained(picture: Picture, where: str) -> Iterator[None]:
    """Whatever keeps a picture from being opened, as a DataError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is a little higher
            yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{where}: no picture at {picture}; check the data folder") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {picture} has more than {LARGEST:,} pixels ({error}); scale it down") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: {picture} is damaged or no picture ({error}); fetch it again") from error


def _picture_bytes(picture: Picture) -> bytes:
    """What tells one picture from another in an id: a path's text, or the pixels."""
    if isinstance(picture, str | Path):
        return str(picture).encode()
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else picture()).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
