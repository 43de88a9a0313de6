"""Any multiple-choice set as JSON lines: how users bring their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError
from ..prompts import Ask
from ..question import Box, Question, open_size
from .image_files import ImageFiles, require_inside
from .records import JsonLines, Key, entries, is_number, text, texts

KNOWN = ("image", "question", "choices", "answer", "id", "group", "task", "relation", "about", "boxes", "meta")


class JsonL:
    """JSON lines {"image": path, list or null, "question", "choices", "answer": text or index, ...}; paths go from the file's folder.

    Optional: "id", "group", "task", "relation", "about", "boxes": {name: [left, top, right, bottom]}, "meta"; whatever else
    a line holds is kept in meta.
    """

    def __init__(self, name: str, path: Path):
        if not path.is_file():
            raise DataError(f"{name}: there is no file {path}; give the path of a file of JSON lines after 'jsonl:'")
        self.name, self.path, self.records = name, path, JsonLines(path)
        self.images = ImageFiles((path.parent,), ("",), path.parent)

    def key(self, i: int, record: Any) -> Key | str:
        where = self.records.where(i)
        record = entries(record, where)
        text(record, "question", where)
        choices = texts(record, "choices", where)
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise DataError(f"{where}: choices {choices}; give at least two, all different")
        _answer(record, choices, where)
        _boxes(record, where)
        images = _images(record, where)
        for name in ("id", "group", "task", "relation"):
            if record.get(name) is not None:
                text(record, name, where)
        if "about" in record:
            texts(record, "about", where)
        if not isinstance(record.get("meta", {}), dict):
            raise DataError(f"{where}: 'meta' is {record['meta']!r}; it must hold an object")
        own = record.get("id") or f"{self.path.stem}/{i + 1}"
        group = record.get("group") or (f"jsonl/{'|'.join(images)}" if images else own)
        return Key(own, group, group)

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        where, key = self.records.where(i), self.key(i, record)
        assert isinstance(key, Key)
        images = [self.images.find([image], where) for image in _images(record, where)]
        boxes = _boxes(record, where)
        if boxes:
            _require_inside_image(boxes, images, where)
        return ask(
            {"question": record["question"]},
            record["choices"],
            _answer(record, record["choices"], where),
            id=key.id,
            group=key.group,
            task=record.get("task") or self.name,
            image=images[0] if len(images) == 1 else images or None,
            relation=record.get("relation"),
            about=tuple(record.get("about", ())),
            boxes=boxes,
            meta={**{name: value for name, value in record.items() if name not in KNOWN}, **record.get("meta", {})},
        )


def _answer(record: Any, choices: list[str], where: str) -> str:
    answer = record.get("answer")
    if isinstance(answer, str) and answer in choices:
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return choices[answer]
    raise DataError(f"{where}: answer {answer!r} is none of the choices {choices}, and no index of them; give one of these")


def _images(record: Any, where: str) -> list[str]:
    images = record.get("image")
    listed = images if isinstance(images, list) else [] if images is None else [images]
    if not all(isinstance(image, str) and image for image in listed):
        raise DataError(f"{where}: 'image' is {images!r}; it must be a path, a list of paths, or null")
    return [require_inside(image, where) for image in listed]


def _boxes(record: Any, where: str) -> dict[str, Box]:
    boxes = {} if record.get("boxes") is None else record["boxes"]
    if not isinstance(boxes, dict):
        raise DataError(f"{where}: 'boxes' is {boxes!r}; it must hold {{name: [left, top, right, bottom]}}")
    for name, box in boxes.items():
        numbers = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        if not numbers or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise DataError(f"{where}: box {name!r} is {box!r}; it must be [left, top, right, bottom] in pixels, none negative")
    return {name: tuple(box) for name, box in boxes.items()}


def _require_inside_image(boxes: dict[str, Box], images: list[Path], where: str) -> None:
    """Boxes are of the first image; of it only the size is read, and nothing where it is missing."""
    if not images:
        raise DataError(f"{where}: it has boxes but no image; boxes are places in an image")
    if not images[0].exists():
        return
    width, height = open_size(images[0], where)
    for name, (_, _, right, bottom) in boxes.items():
        if right > width or bottom > height:
            size = f"{width} x {height} pixels; correct it"
            raise DataError(f"{where}: box {name!r} ends at ({right:g}, {bottom:g}), outside {images[0]} of {size}")
