"""What'sUp's controlled photographs: four images of each object pair, one for each relation (Kamath et al. 2023, section 2)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ...errors import DataError
from ..decoding import ImageSource
from ..prompts import Ask
from ..question import Question
from ..wording import clean
from .captions import read_relation
from .catalog import Entry
from .image_files import ImageFiles, require_inside
from .records import Key, entries, text, texts
from .source import Source


class WhatsUp:
    """Records {"image_path", "caption_options": [4 captions, the true one first]}; a file is named object_relation_object."""

    def __init__(self, entry: Entry, source: Source, split: str):
        self.entry, self.records = entry, source.records(entry, split)
        folder = self.records.folder or source.root
        self.images = ImageFiles((folder, source.root), ("",), folder)

    def _parts(self, i: int, record: Any) -> tuple[str, list[str]]:
        where = self.records.where(i)
        record = entries(record, where)
        path, captions = text(record, "image_path", where), texts(record, "caption_options", where)
        different = len(set(map(clean, captions)))
        if len(captions) != 4 or different != 4:
            raise DataError(f"{where}: caption_options holds {different} captions, not 4 different ones: {captions}; give four")
        return require_inside(path, where), captions

    def key(self, i: int, record: Any) -> Key | str:
        path, captions = self._parts(i, record)
        if read_relation(captions[0], self.entry.choices) is None:
            return "its true caption names no relation of the set"
        stem = PurePosixPath(path).stem
        return Key(f"{self.entry.name}/{stem}", f"whatsup/{stem}", f"whatsup/{_pair(stem)}")

    def own_group(self, record: Any) -> bool:
        return False

    def image_sources(self, i: int, record: Any) -> list[ImageSource]:
        path, _ = self._parts(i, record)
        return [self.images.find([path.removeprefix("data/"), path], self.records.where(i))]

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        path, captions = self._parts(i, record)
        subject, word, other = read_relation(captions[0], self.entry.choices) or ("", "", "")
        stem = PurePosixPath(path).stem
        return ask(
            {"subject": subject, "object": other},
            self.entry.choices,
            word,
            id=f"{self.entry.name}/{stem}",
            group=f"whatsup/{stem}",
            task=self.entry.name,
            image_sources=self.image_sources(i, record),
            relation=word,
            about=(subject, other),
            meta={"set": _pair(stem), "captions": captions, "image_path": path},
        )


def _pair(stem: str) -> str:
    """The object pair of a file name, as the authors' scorer takes it: the first and the last part."""
    parts = stem.split("_")
    return f"{parts[0]}|{parts[-1]}"
