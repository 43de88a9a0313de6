"""A multiple-choice question about a picture."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .question_card import question_card
from .require import require_items

Box = tuple[float, float, float, float]
Picture = Image.Image | str | Path | Callable[[], Image.Image]
LARGEST = 100_000_000
"""Pixels of the largest picture that is opened, which no model reads a tenth of; set this to open a larger one.

PIL has a limit of its own, 2 * PIL.Image.MAX_IMAGE_PIXELS: 179 million.
"""
HERE = "scale_interp.data.question"
DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, MemoryError, OverflowError)
"""What PIL's readers raise for a file that they cannot read."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""Formats that are opened; PIL knows more, some of which (EPS) run another program."""


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

    asked_for: ClassVar[str] = "a Question, as in si.load_questions('scenes/relation')[0]"

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

    @classmethod
    def require_items(cls, items: Any) -> Sequence[Any]:
        """The items as a non-empty sequence of this class, or DataError."""
        return require_items(items, cls, "si.load_questions('scenes/relation')", "pass questions, not pairs")

    def __post_init__(self) -> None:
        where = f"question {self.id or self.text!r}"
        for name in ("text", "id", "group", "task"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{where}: {name}={getattr(self, name)!r} is a {type(getattr(self, name)).__name__}; give a text")
        if not self.text.strip():
            raise DataError(f"{where}: the text is empty; give the words to ask")
        if isinstance(self.picture, list):
            object.__setattr__(self, "picture", tuple(self.picture))
        for picture in self.pictures:
            if not (isinstance(picture, Image.Image | str | Path) or callable(picture)):
                raise DataError(f"{where}: its picture is a {type(picture).__name__}; give a PIL image, a path, or a function to open one")
        if isinstance(self.choices, str) or not isinstance(self.choices, Iterable):
            raise DataError(f"{where}: choices {self.choices!r} are no list; give at least two texts")
        object.__setattr__(self, "choices", tuple(self.choices))
        if not all(isinstance(c, str) and c.strip() for c in self.choices):
            raise DataError(f"{where}: choices {self.choices!r} hold one without text; every choice needs a word")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError(f"{where}: choices {self.choices!r}: give at least two, all different")
        if isinstance(self.answer, bool) or not isinstance(self.answer, Integral) or not 0 <= self.answer < len(self.choices):
            raise DataError(f"{where}: answer {self.answer!r} is no index of its {len(self.choices)} choices; give a whole number from 0")
        if not (self.relation is None or isinstance(self.relation, str)):
            raise DataError(f"{where}: relation={self.relation!r} is a {type(self.relation).__name__}; give a text or None")
        if isinstance(self.about, str) or not isinstance(self.about, Iterable) or not all(isinstance(name, str) for name in self.about):
            raise DataError(f"{where}: about={self.about!r} is no list of names; give one, the subject first")
        object.__setattr__(self, "about", tuple(self.about))
        if not isinstance(self.meta, Mapping):
            raise DataError(f"{where}: meta is a {type(self.meta).__name__}; give a mapping")
        _require_boxes(self.boxes, where)
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
        return self.picture if isinstance(self.picture, tuple) else (self.picture,)

    @cached_property
    def picture_digest(self) -> str:
        """A hash of what the pictures show: of files their bytes, else the pixels; "" without one.

        Raises DataError when a file is missing.
        """
        state = hashlib.blake2b(digest_size=16)
        for picture in self.pictures:
            if isinstance(picture, str | Path):
                with _explained(picture, f"question {self.id}"), _plain(picture).open("rb") as file:
                    state.update(hashlib.file_digest(file, "blake2b").digest())
            else:
                image = self._open(picture)
                state.update(f"{image.size}".encode() + image.tobytes())
        return state.hexdigest() if self.pictures else ""

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
        return question_card(self)


def open_picture(picture: Picture, where: str) -> Image.Image:
    """The picture in RGB. Raises DataError where it is missing, damaged, no picture, or above `LARGEST`."""
    with _explained(picture, where):
        if isinstance(picture, str | Path):
            with _opened(picture) as opened:
                return _bounded(opened, picture, where).convert("RGB")
        image = picture if isinstance(picture, Image.Image) else picture()
        if not isinstance(image, Image.Image):
            raise DataError(f"{where}: its picture's function returned a {type(image).__name__}; return a PIL image")
        return _bounded(image, picture, where).convert("RGB")


def open_size(path: str | Path, where: str) -> tuple[int, int]:
    """Width and height of a picture, read without its pixels."""
    with _explained(path, where), _opened(path) as opened:
        return opened.size


def open_embedded(content: bytes) -> Image.Image:
    """A picture whose file's bytes lie in a table."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _opened(path: str | Path) -> Image.Image:
    return Image.open(_plain(path), formats=FORMATS)


def _plain(path: str | Path) -> Path:
    """The path of a file, or of nothing; OSError for a pipe, which would be waited for without end, or a device."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no plain file")
    return Path(path)


def _bounded(image: Image.Image, picture: Picture, where: str) -> Image.Image:
    width, height = image.size
    if width * height > LARGEST:
        raise DataError(
            f"{where}: {picture} has {width:,} x {height:,} pixels, more than {LARGEST:,}; scale it down, or set {HERE}.LARGEST to open it"
        )
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
        raise DataError(
            f"{where}: {picture} has more than {LARGEST:,} pixels ({error}); scale it down, or set {HERE}.LARGEST and PIL's own limit"
        ) from error
    except DAMAGED as error:
        raise DataError(f"{where}: {picture} is damaged or no picture ({error}); fetch it again") from error


def _picture_bytes(picture: Picture) -> bytes:
    """What tells one picture from another in an id: a path's text, or the pixels."""
    if isinstance(picture, str | Path):
        return str(picture).encode()
    buffer = io.BytesIO()
    open_picture(picture, "a question without an id").save(buffer, "PNG")
    return buffer.getvalue()


def _require_boxes(boxes: Any, where: str) -> None:
    """DataError for boxes that are no name -> (left, top, right, bottom) in finite numbers."""
    if not isinstance(boxes, Mapping):
        raise DataError(f"{where}: boxes is a {type(boxes).__name__}; give name -> (left, top, right, bottom)")
    for name, box in boxes.items():
        if isinstance(box, str) or not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(v, Real) for v in box):
            raise DataError(f"{where}: box {name!r} is {box!r}; give (left, top, right, bottom) in pixels")
        if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
            raise DataError(f"{where}: box {name!r} is {box!r}; its numbers must be finite, left below right and top below bottom")
