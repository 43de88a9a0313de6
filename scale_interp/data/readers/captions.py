"""Sets of true and false captions: What'sUp's one-object and two-object questions about COCO and Visual Genome images.

Kamath et al. 2023 (EMNLP), section 3: a record is [image number, true caption, false caption].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import DataError
from ..prompts import Ask
from ..question import Question
from .catalog import Entry
from .image_files import COCO, ImageFiles, coco_names, is_image_number
from .records import Key
from .source import Source

OPENING = re.compile(r"^\s*(?:an? (?:photo|picture|image) of\s+)?(?:(?:an|a|the|some)\s+)?", re.I)
PLACE = re.compile(
    r"^(?P<subject>.+?)\s+(?:(?:is|are)\s+)?(?:on|at|in) the (?P<word>left|right|top|bottom)"
    r"(?: side)?(?: of the (?:photo|picture|image))?\s*\.?\s*$",
    re.I,
)
RELATIONS = (
    (r"(?:(?:to|on|at) the )?left(?: side)? of", ("left",)),
    (r"(?:(?:to|on|at) the )?right(?: side)? of", ("right",)),
    (r"in (?:the )?front of", ("front",)),
    (r"behind", ("behind",)),
    (r"(?:on (?:the )?top of|above|over)", ("above", "on")),
    (r"(?:below|beneath|underneath|under)", ("below", "under")),
    (r"on", ("on", "above")),
)
"""Phrases, the telling ones first ("a man on a horse to the left of a car" is left), and the set's words for them."""


def read_place(caption: str, choices: Sequence[str]) -> tuple[str, str] | None:
    """Thing and place of a one-object caption, or None.

    >>> read_place("A photo of a dining table on the bottom", ("left", "right", "top", "bottom"))
    ('dining table', 'bottom')
    """
    found = PLACE.match(OPENING.sub("", caption))
    word = found["word"].lower() if found else None
    return (found["subject"], word) if found and word in choices else None  # type: ignore[return-value]


def read_relation(caption: str, choices: Sequence[str]) -> tuple[str, str, str] | None:
    """Subject, relation word and object of a two-object caption, or None.

    >>> read_relation("A mug to the left of a plate", ("left", "right", "front", "behind"))
    ('mug', 'left', 'plate')
    """
    said = OPENING.sub("", caption)
    for phrase, words in RELATIONS:
        found = re.match(rf"^(.+?)\s+(?:(?:is|are)\s+)?{phrase}\s+(.+?)\s*\.?\s*$", said, re.I)
        word = next((w for w in words if w in choices), None)
        if found and word:
            return found[1], word, OPENING.sub("", found[2])
    return None


class Captions:
    """Records of a COCO or Visual Genome caption set."""

    def __init__(self, entry: Entry, source: Source, split: str):
        self.entry, self.records = entry, source.records(entry, split)
        self.coco = entry.family == "coco_qa"
        folders = COCO if self.coco else ("vg_images", "VG_100K", "VG_100K_2", "images")
        room = "coco" if self.coco else "vg"
        bases = (source.root / room, source.root, self.records.folder, *source.places(entry))
        self.images = ImageFiles(bases, ("", *folders), source.root / room / folders[0])

    def _parts(self, i: int, record: Any) -> tuple[str, str, str]:
        where = self.records.where(i)
        if not isinstance(record, list) or len(record) != 3:
            size = f"{len(record)} entries" if isinstance(record, list) else f"a {type(record).__name__}"
            raise DataError(f"{where}: {size}, not [image number, true caption, false caption]; give these three")
        number, *captions = record
        if isinstance(number, bool) or not isinstance(number, int | str) or not is_image_number(str(number)):
            raise DataError(f"{where}: {str(number)[:40]!r} is no image number; give the digits of its file name")
        if not all(isinstance(c, str) and c.strip() for c in captions):
            raise DataError(f"{where}: captions {captions!r}; both must be texts")
        return f"{int(number):012d}" if self.coco else str(number), captions[0], captions[1]

    def _read(self, caption: str) -> tuple[str, ...] | None:
        if self.entry.template == "one object":
            return read_place(caption, self.entry.choices)
        return read_relation(caption, self.entry.choices)

    def key(self, i: int, record: Any) -> Key | str:
        number, true, _ = self._parts(i, record)
        if self._read(true) is None:
            return "its true caption names no place or relation of the set"
        group = f"{'coco' if self.coco else 'vg'}/{number}"
        return Key(f"{self.entry.name}/{i}", group, group)

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        number, true, false = self._parts(i, record)
        subject, word, *other = self._read(true) or ("", "")
        key = self.key(i, record)
        assert isinstance(key, Key)
        return ask(
            {"subject": subject, **({"object": other[0]} if other else {})},
            self.entry.choices,
            word,
            id=key.id,
            group=key.group,
            task=self.entry.name,
            image=self.images.find(coco_names(f"{number}.jpg") if self.coco else [f"{number}.jpg"], self.records.where(i)),
            relation=word,
            about=(subject, *other),
            meta={"captions": [true, false], "image": number},
        )
