"""Visual Spatial Reasoning: is a sentence about two objects in a COCO image true? (Liu et al. 2023, TACL)"""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..prompts import Ask
from ..question import Question
from .catalog import Entry
from .image_files import COCO, ImageFiles, coco_names, coco_number, require_inside
from .records import Key, entries, text
from .source import Source

RELATIONS = {
    "Adjacency": "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, at the back of, "
    "ahead of, against, at the edge of",
    "Directional": "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, across from, through, "
    "down from",
    "Orientation": "facing, facing away from, parallel to, perpendicular to, congruent",
    "Projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, in the middle of",
    "Proximity": "by, close to, near, far from, far away from",
    "Topological": "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, surrounding, among, "
    "consists of, out of, between, inside, outside, touching",
    "Unallocated": "beyond, next to, opposite to, after, among, enclosed by",
}
"""The meta-categories of Liu et al. 2023, table 1; "congruent", which the files hold and the table lacks, is about orientation."""
CATEGORY = {relation: category for category, relations in reversed(RELATIONS.items()) for relation in relations.split(", ")}
"""Relation -> meta-category; "among" is in two, the first counts."""


class VSR:
    """JSON lines {"image", "caption", "label": 0 or 1, "relation", "subj", "obj", ...}; names are kept as they are, typos too."""

    def __init__(self, entry: Entry, source: Source, split: str):
        self.entry, self.split, self.records = entry, split, source.records(entry, split)
        bases = (source.root / "coco", source.root, self.records.folder, *source.places(entry))
        self.images = ImageFiles(bases, ("", *COCO, "trainval2017"), source.root / "coco" / "train2017")

    def key(self, i: int, record: Any) -> Key | str:
        where = self.records.where(i)
        record = entries(record, where)
        image, label = require_inside(text(record, "image", where), where), record.get("label")
        text(record, "caption", where), text(record, "relation", where)
        if isinstance(label, bool) or label not in (0, 1):
            raise DataError(f"{where}: label {label!r}; it must be 0 (false) or 1 (true)")
        number = coco_number(image)
        group = f"coco/{number}" if number else f"vsr/{image}"
        return Key(f"{self.entry.name}/{self.split}/{i}", group, group)

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        key = self.key(i, record)
        assert isinstance(key, Key)
        names = [record.get(name) for name in ("subj", "obj")]
        about = tuple(names) if all(isinstance(name, str) and name.strip() for name in names) else ()
        relation = record["relation"]
        fields = {"caption": record["caption"], "relation": relation, **dict(zip(("subject", "object"), about, strict=False))}
        rest = {name: value for name, value in record.items() if name not in ("caption", "relation", "subj", "obj")}
        return ask(
            fields,
            self.entry.choices,
            "yes" if record["label"] == 1 else "no",
            id=key.id,
            group=key.group,
            task=self.entry.name,
            image=self.images.find(coco_names(record["image"]), self.records.where(i)),
            relation=relation,
            about=about,
            meta={"category": CATEGORY.get(relation), "caption": record["caption"], **rest},
        )
