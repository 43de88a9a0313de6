"""A multiple-choice question about an image."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from types import EllipsisType
from typing import Any, ClassVar

from PIL import Image

from ..errors import DataError
from . import decoding
from .decoding import DECODER, ImageSource, decode, explained, image_source, plain_file
from .identity import pixel_key
from .question_card import question_card
from .require import require_items
from .wording import alike, clean, clean_text, short

Box = tuple[float, float, float, float]
LETTERED = "lettered"
"""The entry of a question's meta that says what the letters stand for, where its choices are letters."""
Picture = ImageSource
"""An older name of `ImageSource`."""
FORMATS = decoding.FORMATS
LARGEST = decoding.LARGEST
"""Pixels of the largest image that is opened, which no model reads a tenth of; set this to open a larger one."""


@dataclass(frozen=True, init=False)
class Question:
    """One multiple-choice question about an image, about several images, or about none.

    Args:
        text: The words to ask.
        choices: At least two different, non-empty strings.
        answer: The index of the right choice, from 0.
        image: A PIL image, a path, a function that returns an image (called when the image is asked for, or for an id),
            a list of these, or None. `picture=` is accepted as an older name.
        id: Default: a hash of the content.
        group: What several questions may share, such as a scene or a photograph; splits and intervals go by it. Default: the id.
        task: The name of what is asked.
        relation: The relation that is asked about, where there is one.
        about: The names of the things asked about, the subject first.
        boxes: Name -> (left, top, right, bottom) in pixels of the image.
        meta: Anything else.

    Raises:
        DataError: For a value that cannot be used; the message names it.

    >>> q = Question("Where is the cat?", ("left", "right"), answer=0, image=Image.new("RGB", (8, 8)))
    >>> q.answer_text, q.image.size
    ('left', (8, 8))
    """

    asked_for: ClassVar[str] = "a Question, as in si.load_questions('scenes/relation')[0]"

    text: str
    choices: tuple[str, ...]
    answer: int
    image_sources: tuple[ImageSource, ...] = field(default=(), repr=False, compare=False)
    """The images as given, none opened."""
    id: str = ""
    group: str = ""
    task: str = ""
    relation: str | None = None
    about: tuple[str, ...] = ()
    boxes: Mapping[str, Box] = field(default_factory=dict, repr=False, compare=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __init__(
        self,
        text: str,
        choices: Sequence[str],
        answer: int,
        image: ImageSource | Sequence[ImageSource] | EllipsisType | None = ...,
        id: str = "",
        group: str = "",
        task: str = "",
        relation: str | None = None,
        about: Sequence[str] = (),
        boxes: Mapping[str, Box] | None = None,
        meta: Mapping[str, Any] | None = None,
        *,
        picture: ImageSource | Sequence[ImageSource] | EllipsisType | None = ...,
        image_sources: Sequence[ImageSource] = (),
    ):
        if image is not ... and picture is not ...:
            raise DataError(f"question {id or text!r}: both image= and picture= are given; give image= alone")
        # dataclasses.replace(question, image=...) hands over the old sources as well: what is named wins.
        given = image_sources if image is picture is ... else picture if image is ... else image
        sources = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
        values = (text, choices, answer, sources, id, group, task, relation, about, {} if boxes is None else boxes)
        for given_field, value in zip(fields(self), (*values, {} if meta is None else meta), strict=True):
            object.__setattr__(self, given_field.name, value)
        self._check()

    @classmethod
    def require_items(cls, items: Any) -> Sequence[Any]:
        """The items as a non-empty sequence of this class, or DataError."""
        return require_items(items, cls, "si.load_questions('scenes/relation')", "pass questions, not pairs")

    def _check(self) -> None:
        where = f"question {self.id or short(self.text)}"
        for name in ("text", "id", "group", "task"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{where}: {name}={short(getattr(self, name))} is a {type(getattr(self, name)).__name__}; give a text")
        object.__setattr__(self, "text", clean_text(self.text))
        if not self.text:
            raise DataError(f"{where}: the text is empty; give the words to ask")
        object.__setattr__(self, "image_sources", tuple(image_source(given, where) for given in self.image_sources))
        if isinstance(self.choices, str) or not isinstance(self.choices, Iterable):
            raise DataError(f"{where}: choices {short(self.choices)} are not a list; give at least two texts")
        given = tuple(self.choices)
        if not all(isinstance(c, str) and clean(c) for c in given):
            raise DataError(f"{where}: choices {short(given)} have one without text; give every choice a word")
        if same := alike(given):
            raise DataError(f"{where}: choices {short(same[0])} and {short(same[1])} read the same; give at least two, all different")
        if len(given) < 2:
            raise DataError(f"{where}: choices {short(given)}: give at least two, all different")
        object.__setattr__(self, "choices", tuple(map(clean, given)))
        if isinstance(self.answer, bool) or not isinstance(self.answer, Integral) or not 0 <= self.answer < len(self.choices):
            mend = f"no index of its {len(self.choices)} choices; give a whole number from 0"
            raise DataError(f"{where}: answer {short(self.answer)} is {mend}")
        if not (self.relation is None or isinstance(self.relation, str)):
            raise DataError(f"{where}: relation={short(self.relation)} is a {type(self.relation).__name__}; give a text or None")
        if isinstance(self.about, str) or not isinstance(self.about, Iterable) or not all(isinstance(name, str) for name in self.about):
            raise DataError(f"{where}: about={short(self.about)} is no list of names; give one, the subject first")
        object.__setattr__(self, "relation", None if self.relation is None else clean(self.relation))
        object.__setattr__(self, "about", tuple(map(clean, self.about)))
        if not isinstance(self.meta, Mapping):
            raise DataError(f"{where}: meta is a {type(self.meta).__name__}; give a mapping")
        _require_boxes(self.boxes, where)
        if any(clean(name) != name for name in self.boxes if isinstance(name, str)):
            if same := alike(self.boxes):
                raise DataError(f"{where}: the boxes {same[0]!r} and {same[1]!r} read the same; give each thing a name of its own")
            object.__setattr__(self, "boxes", {clean(name): box for name, box in self.boxes.items()})
        if not self.id:
            content = f"{self.text}|{self.choices}|{self.answer}|".encode()
            content += b"".join(_image_bytes(image) for image in self.image_sources)
            object.__setattr__(self, "id", hashlib.blake2b(content, digest_size=8).hexdigest())
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def answer_text(self) -> str:
        return self.choices[self.answer]

    @property
    def choice_words(self) -> tuple[str, ...]:
        """What each choice says: the words that a letter stands for, otherwise the choice itself."""
        words = self.meta.get(LETTERED)
        if not isinstance(words, Mapping) or set(words) != set(self.choices):
            return self.choices
        return tuple(words[choice] for choice in self.choices)

    @property
    def answer_words(self) -> str:
        """What the right choice says."""
        return self.choice_words[self.answer]

    @property
    def image_source(self) -> ImageSource | tuple[ImageSource, ...] | None:
        """The image as given, not opened: one, a tuple of several, or None."""
        return self.image_sources[0] if len(self.image_sources) == 1 else self.image_sources or None

    picture = image_source
    """An older name of `image_source`."""

    @property
    def pictures(self) -> tuple[ImageSource, ...]:
        """An older name of `image_sources`."""
        return self.image_sources

    @cached_property
    def image_digest(self) -> str:
        """A hash of what the images show: of files their bytes and the decoder's version, else the pixels; "" without one.

        Raises DataError when a file is missing.
        """
        state = hashlib.blake2b(digest_size=16)
        for source in self.image_sources:
            if isinstance(source, str | Path):
                with explained(source, f"question {self.id}"), plain_file(source).open("rb") as file:
                    state.update(DECODER + hashlib.file_digest(file, "blake2b").digest())
            else:
                image = self._open(source)
                state.update(f"{image.size}".encode() + image.tobytes())
        return state.hexdigest() if self.image_sources else ""

    @property
    def picture_digest(self) -> str:
        """An older name of `image_digest`."""
        return self.image_digest

    @cached_property
    def pixel_keys(self) -> tuple[Hashable, ...]:
        """For each image what tells its pixels from those of others (`identity.pixel_key`); files are opened for it."""
        return tuple(pixel_key(source, f"question {self.id}", LARGEST) for source in self.image_sources)

    @property
    def images(self) -> list[Image.Image]:
        """The images in RGB, opened now. Raises DataError when a file is missing or no image."""
        return [self._open(source) for source in self.image_sources]

    @property
    def image(self) -> Image.Image | None:
        """The first image in RGB, opened now; None for a question without one."""
        return self._open(self.image_sources[0]) if self.image_sources else None

    def _open(self, source: ImageSource) -> Image.Image:
        return open_image(source, f"question {self.id}")

    def _repr_html_(self) -> str:
        return question_card(self)


def open_image(source: ImageSource, where: str) -> Image.Image:
    """`decode` with the limit that is set here."""
    return decode(source, where, LARGEST)


open_picture = open_image
"""An older name of `open_image`."""


def _image_bytes(source: ImageSource) -> bytes:
    """What tells one image from another in an id: a path's text, or the pixels."""
    if isinstance(source, str | Path):
        return str(source).encode()
    buffer = io.BytesIO()
    open_image(source, "a question without an id").save(buffer, "PNG")
    return buffer.getvalue()


def _require_boxes(boxes: Any, where: str) -> None:
    """DataError for boxes that are no name -> (left, top, right, bottom) in finite numbers."""
    if not isinstance(boxes, Mapping):
        raise DataError(f"{where}: boxes is a {type(boxes).__name__}; give name -> (left, top, right, bottom)")
    for name, box in boxes.items():
        if isinstance(box, str) or not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(v, Real) for v in box):
            raise DataError(f"{where}: box {name!r} is {short(box)}; give (left, top, right, bottom) in pixels")
        if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
            raise DataError(f"{where}: box {name!r} is {short(box)}; give finite numbers, left below right and top below bottom")
