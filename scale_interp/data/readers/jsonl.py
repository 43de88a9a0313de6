"""Any multiple-choice set as JSON lines: how users bring their own."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DataError, DataWarning
from ..contrast import OWN
from ..decoding import DATA_URI, ImageSource, open_size
from ..prompts import LETTERS, Ask, digest, without_marks
from ..question import Box, Question
from ..wording import alike, clean, short
from .answers import Answers, read_answer
from .image_files import ImageFiles, require_place
from .json_keys import CONTRAST, KNOWN, require_keys
from .records import JsonLines, Key, entries, is_number, text, texts

SURELY, PERHAPS = 0.01, 0.1
"""How likely a file counted from 0 has no answer 0: below the one it is refused, below the other a warning says so."""


class JsonL:
    """JSON lines {"image": path, list or null, "question", "choices", "answer": text, letter or index, ...}.

    Paths go from the file's folder; a data URI may stand for a path, and "images" for "image". "choices" may be an object
    {"A": "left", "B": "right"}. Optional: "id", "group", "task", "relation", "about", "boxes":
    {name: [left, top, right, bottom]}, "meta"; whatever else a line holds is kept in meta.

    A line's contrast partner, `meta["contrast"]`, is another line with "contrast_of": its id, which is asked in no other place, or the
    line's own words about a "contrast_image", whose right answer is the other choice, or "contrast_answer" where there are more than two.
    """

    def __init__(self, name: str, path: Path, answers: Answers | None = None):
        if not path.is_file():
            raise DataError(f"{name}: there is no file {path}; give the path of a file of JSON lines after 'jsonl:'")
        self.name, self.path, self.records, self.answers = name, path, JsonLines(path), answers
        self.images = ImageFiles((path.parent,), ("",), path.parent)
        self._partners = self._take_partners()
        self._read = -1
        self._counted, self._zeros, self._chance = 0, 0, 0.0
        self._with_image = 0
        self._blind: list[int] = []

    def _take_partners(self) -> dict[str, tuple[str, Any]]:
        """The lines that are the contrast of another one: its id -> place and record. They leave the records."""
        with self.path.open("rb") as file:
            if not any(b'"contrast_of"' in line for line in file):
                return {}
        partners: dict[str, tuple[str, Any]] = {}
        kept, ids = [], set()
        for i, record in enumerate(self.records):
            where = self.records.where(i)
            record = entries(record, where)
            if record.get("contrast_of") is None:
                kept.append(i)
                ids.add(record.get("id"))
                continue
            of = text(record, "contrast_of", where)
            if of in partners:
                raise DataError(f"{where}: {partners[of][0]} is the contrast of {of!r} already; give each line one contrast")
            require_keys(record, where)
            partners[of] = where, record
        for of, (where, _) in partners.items():
            if of not in ids:
                raise DataError(
                    f"{where}: 'contrast_of' names {short(of)}, which is the id of no line that is asked; give the id of the line that "
                    "this is the contrast of, which must not be a contrast itself"
                )
        self.records = self.records.only(kept)
        return partners

    def _partner(self, i: int, record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
        """The place and record of a line's contrast, or None. Raises DataError for one that does not fit the line."""
        where, found = self.records.where(i), self._partners.get(record.get("id") or "")
        if (image := record.get("contrast_image")) is None:
            if record.get("contrast_answer") is not None:
                raise DataError(
                    f"{where}: 'contrast_answer' without 'contrast_image'; give the image that it is the answer to, or remove it"
                )
            if found is None:
                return None
        elif found is not None:
            raise DataError(f"{where}: it has a 'contrast_image', and {found[0]} is its contrast too; give one of them")
        choices, labels = _choices(record, where)
        right = read_answer(record.get("answer"), choices, labels, self.answers, where)
        if found is None:
            answer = record.get("contrast_answer")
            if answer is None and len(choices) > 2:
                raise DataError(f"{where}: 'contrast_image' with {len(choices)} choices; give the right one there as 'contrast_answer'")
            changed = {name: value for name, value in record.items() if name not in ("image", "images", "boxes", *CONTRAST)}
            found = where, changed | {"image": image, "answer": choices[1 - right] if answer is None else answer}
        there, partner = found
        others, their_labels = _choices(partner, there)
        if set(others) != set(choices):
            raise DataError(f"{there}: a contrast with the choices {others}, but {where} has {choices}; give both the same")
        # The answer that was filled in is words, however the file gives its answers.
        filled = "text" if there == where and record.get("contrast_answer") is None else self.answers
        answer = others[read_answer(partner.get("answer"), others, their_labels, filled, there)]
        if answer == choices[right]:
            raise DataError(f"{there}: the right answer of a contrast is {answer!r}, as that of {where}; give a pair with different ones")
        text(partner, "question", there)
        return there, {**partner, "choices": record["choices"], "answer": answer}

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
        self._partner(i, record)
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
        return self._sources(record, self.records.where(i))

    def partner_sources(self, i: int, record: Any) -> list[ImageSource]:
        """The images of the record's contrast partner; none without one."""
        found = self._partner(i, record)
        return [] if found is None else self._sources(found[1], found[0])

    def _sources(self, record: Mapping[str, Any], where: str) -> list[ImageSource]:
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
        key = self.key(i, record)
        assert isinstance(key, Key)
        asked = self._question(record, self.records.where(i), key, key.id, ask, self.answers)
        found = self._partner(i, record)
        if found is None:
            return asked
        where, partner = found
        name = partner["id"] if record.get("contrast_image") is None and partner.get("id") else f"{key.id}~contrast"
        other = self._question(partner, where, key, name, ask, "text")
        return replace(asked, meta={**asked.meta, OWN: other})

    def _question(self, record: Mapping[str, Any], where: str, key: Key, name: str, ask: Ask, answers: Answers | None) -> Question:
        """A line as a question of this id, whose options are in the order of the key's."""
        choices, labels = _choices(record, where)
        images = self._sources(record, where)
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
            choices[read_answer(record["answer"], choices, labels, answers, where)],
            id=name,
            key=key.id,
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
