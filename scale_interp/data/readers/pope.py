"""POPE: is there such a thing in the image? (Li et al. 2023, EMNLP)"""

from __future__ import annotations

import re
from typing import Any

from ...errors import DataError
from ..prompts import Ask
from ..question import Question
from .catalog import Entry
from .image_files import COCO, ImageFiles, coco_names, coco_number, require_inside
from .records import Key, Table, entries, text
from .source import Source

THING = re.compile(r"\bthere\s+(?:an?\s+)?(.+?)\s+in\s+the\s+\w+\s*\?*\s*$", re.I)
HUB_FIELDS = {"text": "question", "label": "answer", "image": "image_source"}
"""The names that the hub's copy has for the authors' fields."""


class POPE:
    """JSON lines {"question_id", "image", "text", "label": "yes" or "no"}."""

    def __init__(self, entry: Entry, source: Source, split: str):
        self.entry, self.records = entry, source.records(entry, split)
        bases = (source.root / "coco", source.root, self.records.folder, *source.places(entry))
        self.images = ImageFiles(bases, ("", *COCO), source.root / "coco" / "val2014")
        self.fields = HUB_FIELDS if isinstance(self.records, Table) else {}

    def _parts(self, i: int, record: Any) -> tuple[str, str, str, str]:
        where = self.records.where(i)
        record = entries(record, where)
        asked, label, image = (text(record, self.fields.get(name, name), where) for name in ("text", "label", "image"))
        if label not in self.entry.choices:
            raise DataError(f"{where}: label {label!r}; it must be 'yes' or 'no'")
        number = record.get("question_id")
        if isinstance(number, bool) or not isinstance(number, int | str):
            raise DataError(f"{where}: question_id {number!r}; it must be a number or a text")
        image = image if "." in image else f"{image}.jpg"
        return f"{self.entry.name}/{number}", asked, label, require_inside(image, where)

    def key(self, i: int, record: Any) -> Key | str:
        name, _, _, image = self._parts(i, record)
        number = coco_number(image)
        group = f"coco/{number}" if number else f"pope/{image}"
        return Key(name, group, group)

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        key = self.key(i, record)
        assert isinstance(key, Key)
        _, asked, label, image = self._parts(i, record)
        thing = THING.search(asked)
        records = self.records
        return ask(
            {"question": asked, **({"object": thing[1]} if thing else {})},
            self.entry.choices,
            label,
            id=key.id,
            group=key.group,
            task=self.entry.name,
            image=records.embedded(i) if isinstance(records, Table) else self.images.find(coco_names(image), records.where(i)),
            about=(thing[1],) if thing else (),
            meta={"kind": self.entry.name.partition("/")[2], "image": image, "question_id": record["question_id"]},
        )
