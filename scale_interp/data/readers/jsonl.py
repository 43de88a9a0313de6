"""Any multiple-choice set as JSON lines: how users bring their own."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, DataWarning
from ..decoding import DATA_URI, ImageSource, open_size
from ..prompts import LETTERS, Ask, digest, without_marks
from ..question import Box, Question
from ..wording import alike, clean, short
from .answers import Answers, read_answer
from .image_files import ImageFiles, require_place
from .json_keys import KNOWN, require_keys
from .records import JsonLines, Key, entries, is_number, text, texts

SURELY, PERHAPS = 0.01, 0.1
"""How likely a file counted from 0 has no answer 0: below the one it is refused, below the other a warning says so."""


class JsonL:
    """JSON lines {"image": path, list or null, "question", "choices", "answer": text, letter or index, ...}.

    Paths go from the file's folder; a data URI may stand for a path, and "images" for "image". "choices" may be an object
    {"A": "left", "B": "right"}. Optional: "id", "group", "task", "relation", "about", "boxes":
    {name: [left, top, right, bottom]}, "meta"; whatever else a line holds is kept in meta.
    """

    def __init__(self, name: str, path: Path, answers: Answers | None = None):
        if not path.is_file():
            raise DataError(f"{name}: there is no file {path}; give the path of a file of JSON lines after 'jsonl:'")
        self.name, self.path, self.records, self.answers = name, path, JsonLines(path), answers
        self.images = ImageFiles((path.parent,), ("",), path.parent)
        self._read = -1
        self._counted, self._zeros, self._chance = 0, 0, 0.0
        self._with_image = 0
        self._blind: list[int] = []

    def key(self, i: int, record: Any) -> Key | str:
        where = self.records.where(i)
        record = entries(record, where)
        require_keys(record, where)
        text(record, "question", where)
        choices, labels = _choices(record, where)
        read_answer(record.get("answer"), choices, labels, self.answers, where)
        _boxes(record, where)
        images = _images(record, where)
        without_marks(record["question"], len(images), where)
        for name in ("id", "group", "task", "relation"):
            if record.get(name) is not None:
                text(record, name, where)
        if "about" in record:
            texts(record, "about", where)
        if not isinstance(record.get("meta", {}), dict):
            raise DataError(f"{where}: 'meta' is {short(record['meta'])}; give an object")
        if i > self._read:
            self._read = i
            self._count(i, record, choices, images)
        own = record.get("id") or f"{self.path.stem}/{i + 1}"
        group = record.get("group") or (f"jsonl/{'|'.join(map(_label, images))}" if images else own)
        return Key(own, group, group)

    def own_group(self, record: Any) -> bool:
        """Whether the user says what belongs together, so that no image needs to be looked at."""
        return bool(record.get("group"))

    def image_sources(self, i: int, record: Any) -> list[ImageSource]:
        where = self.records.where(i)
        return [self.images.source(image, where) for image in _images(record, where)]

    def finish(self) -> None:
        """Once all records were read: what only the whole file can tell."""
        if self._counted and not self._zeros and (chance := math.exp(self._chance)) < PERHAPS:
            said = (
                f"{self.path}: none of {self._counted} answers that are numbers is 0: are they counted from 1? They "
                f"{'would be' if chance < SURELY else 'are'} read as counted from 0; say answers='index1' or answers='index', or words"
            )
            if chance < SURELY:
                raise DataError(said)
            warnings.warn(said, DataWarning, stacklevel=5)
        if self._with_image and self._blind:
            warnings.warn(
                f"{self.name}: {len(self._blind)} of {len(self.records)} questions have no 'image', and the others have one; the first is "
                f"{self.records.where(self._blind[0])}: it is asked without; give its image, or write null where there is none",
                DataWarning,
                stacklevel=5,
            )

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        where, key = self.records.where(i), self.key(i, record)
        assert isinstance(key, Key)
        choices, labels = _choices(record, where)
        images = self.image_sources(i, record)
        boxes = _boxes(record, where)
        meta = {**{name: value for name, value in record.items() if name not in KNOWN}, **record.get("meta", {})}
        if boxes:
            size = _require_inside_image(boxes, images, where)
            # Beside boxes "size" is the size of the image that they lie in, whatever a line calls so.
            meta = {name: value for name, value in meta.items() if name != "size"} | (
                {"size": list(size)} if size and "size" in meta else {}
            )
        return ask(
            {"question": without_marks(record["question"], len(images), where)},
            choices,
            choices[read_answer(record["answer"], choices, labels, self.answers, where)],
            id=key.id,
            labels=labels if isinstance(record["choices"], dict) else None,
            group=key.group,
            task=record.get("task") or self.name,
            image_sources=images,
            relation=record.get("relation"),
            about=tuple(record.get("about", ())),
            boxes=boxes,
            meta=meta,
        )

    def _count(self, i: int, record: Mapping[str, Any], choices: list[str], images: list[str]) -> None:
        if self.answers is None and isinstance(record.get("answer"), int) and str(record["answer"]) not in choices:
            self._counted += 1
            self._zeros += record["answer"] == 0
            self._chance += math.log1p(-1 / len(choices))
        if images:
            self._with_image += 1
        elif "image" not in record or record["image"] == []:
            self._blind.append(i)


def _choices(record: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """The choices, and the letters that stand for them."""
    given = record.get("choices")
    if isinstance(given, dict):
        if not all(isinstance(choice, str) and choice.strip() for choice in given.values()):
            raise DataError(f"{where}: 'choices' is {short(given)}; give a text for each letter")
        choices, labels = list(given.values()), [clean(label) for label in given]
    else:
        choices = texts(record, "choices", where)
        labels = list(LETTERS[: len(choices)])
    if same := alike(choices):
        raise DataError(f"{where}: choices {same[0]!r} and {same[1]!r} read the same; give at least two, all different")
    if len(choices) < 2:
        raise DataError(f"{where}: choices {choices}; give at least two, all different")
    return [clean(choice) for choice in choices], labels


def _images(record: Mapping[str, Any], where: str) -> list[str]:
    name = "images" if "images" in record and record.get("image") is None else "image"
    images = record.get(name)
    listed = images if isinstance(images, list) else [] if images is None else [images]
    if not all(isinstance(image, str) and image for image in listed):
        raise DataError(f"{where}: {name!r} is {short(images)}; give a path, a list of paths, or null")
    return [require_place(image, where) for image in listed]


def _label(image: str) -> str:
    """What a group's name says of an image."""
    return f"data:{digest(image):016x}" if DATA_URI.match(image) else image


def _boxes(record: Mapping[str, Any], where: str) -> dict[str, Box]:
    boxes = {} if record.get("boxes") is None else record["boxes"]
    if not isinstance(boxes, dict):
        raise DataError(f"{where}: 'boxes' is {short(boxes)}; give {{name: [left, top, right, bottom]}}")
    for name, box in boxes.items():
        numbers = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        if not numbers or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise DataError(f"{where}: box {name!r} is {short(box)}; give [left, top, right, bottom] in pixels, none negative")
    return {name: tuple(box) for name, box in boxes.items()}


def _require_inside_image(boxes: dict[str, Box], images: list[ImageSource], where: str) -> tuple[int, int] | None:
    """The size of the first image, which boxes are of; None where it is not a file that is there."""
    if not images:
        raise DataError(f"{where}: it has boxes but no image; give the image that they lie in, or remove them")
    first = images[0]
    if not isinstance(first, str | Path) or not os.path.exists(first):
        return None
    width, height = open_size(first, where)
    for name, (_, _, right, bottom) in boxes.items():
        if right > width or bottom > height:
            size = f"{width} x {height} pixels; correct it"
            raise DataError(f"{where}: box {name!r} ends at ({right:g}, {bottom:g}), outside {first} of {size}")
    return width, height
