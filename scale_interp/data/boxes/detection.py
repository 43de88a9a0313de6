"""Photographs with boxes, read from COCO detection JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..question import Box
from ..readers.image_files import coco_number
from ..readers.records import entries, is_number, read_json_file, text
from ..wording import clean

ROUNDING = 1.0
"""Pixels by which a box may reach over the image's edge; it is cut there."""


@dataclass(frozen=True)
class Instance:
    """One thing in a photograph; box: (left, top, right, bottom) in pixels."""

    name: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Photo:
    """A photograph and what is in it; crowds: the classes of which it holds an uncounted crowd.

    name: its file's name without the ending; group: what all questions about it share.
    """

    name: str
    group: str
    file: Path
    width: int
    height: int
    instances: tuple[Instance, ...]
    crowds: frozenset[str]

    @cached_property
    def counts(self) -> Counter[str]:
        """Instances of each class."""
        return Counter(i.name for i in self.instances)

    @property
    def alone(self) -> tuple[Instance, ...]:
        """The instances that are the only ones of their class, so that "the dog" is one dog."""
        return tuple(i for i in self.instances if self.counts[i.name] == 1 and i.name not in self.crowds)

    @cached_property
    def boxes(self) -> dict[str, Box]:
        """Every instance's box: the largest of a class by the class's name, the others as "dog 2", "dog 3"."""
        found: dict[str, Box] = {}
        number: Counter[str] = Counter()
        for instance in sorted(self.instances, key=lambda i: (i.name, -i.area)):
            number[instance.name] += 1
            n = number[instance.name]
            found[instance.name if n == 1 else f"{instance.name} {n}"] = instance.box
        return found


@dataclass(frozen=True)
class Boxes:
    """Photographs with boxes; classes: all names that the set knows; crowds: how many crowd regions were left out."""

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    crowds: int
    source: str

    def __repr__(self) -> str:
        n = sum(len(p.instances) for p in self.photos)
        return f"<{n} boxes of {len(self.classes)} classes in {len(self.photos)} photographs of {self.source}>"


def read_boxes(path: str | Path, images: str | Path | None = None) -> Boxes:
    """Photographs and their boxes from a COCO detection JSON: "images", "annotations" (bbox [x, y, width, height]), "categories".

    Crowd regions (iscrowd) are not boxes, but their class is known to be in the image. No image is opened.

    Args:
        path: The JSON file.
        images: The folder of the images; default: `images` beside the file, else the file's own folder.

    Raises:
        DataError: Naming file and record: not such a JSON, an id that is unknown or there twice, a box without size or
            outside its image, an image outside the folder.
    """
    path = Path(path)
    folder = _folder(path, images)
    content = _content(path)
    classes = {_id(c, path): clean(text(c, "name", f"{path}, category {c['id']}")) for c in content["categories"]}
    _require_once([c["id"] for c in content["categories"]], "category id", path)
    _require_once(list(classes.values()), "category name", path)
    _require_once([_id(i, path) for i in content["images"]], "image id", path)
    _require_once([_name(text(i, "file_name", f"{path}, image {i['id']}")) for i in content["images"]], "image name", path)
    _require_once([_id(a, path) for a in content["annotations"]], "annotation id", path)
    sizes = {i["id"]: (_pixels(i, "width", path), _pixels(i, "height", path)) for i in content["images"]}
    instances: dict[Any, list[Instance]] = defaultdict(list)
    crowds: dict[Any, list[str]] = defaultdict(list)
    for a in content["annotations"]:
        where = f"annotation {a['id']} of {path}"
        image, category = a.get("image_id"), a.get("category_id")
        if not isinstance(image, int | str) or image not in sizes:
            raise DataError(f'{where}: image_id {image!r} is no id in "images"; correct it or remove the annotation')
        if not isinstance(category, int | str) or category not in classes:
            raise DataError(f'{where}: category_id {category!r} is no id in "categories"; correct it or remove the annotation')
        if a.get("iscrowd") not in (None, 0, 1):
            raise DataError(f"{where}: iscrowd is {a['iscrowd']!r}; it must be 0 or 1")
        if a.get("iscrowd"):
            crowds[image].append(classes[category])
        else:
            instances[image].append(Instance(classes[category], _box(a.get("bbox"), sizes[image], where)))
    root = folder.resolve()
    photos = tuple(
        Photo(
            _name(i["file_name"]),
            _group(i["file_name"], path),
            _inside(root, i["file_name"], path),
            *sizes[i["id"]],
            tuple(instances[i["id"]]),
            frozenset(crowds[i["id"]]),
        )
        for i in content["images"]
    )
    if not photos:
        raise DataError(f"{path} lists no images: there is nothing to ask about")
    return Boxes(photos, tuple(classes.values()), sum(map(len, crowds.values())), str(path))


def _folder(path: Path, images: str | Path | None) -> Path:
    if not path.is_file():
        raise DataError(f"no file {path}: give the place of a COCO detection JSON")
    if images is None:
        beside = path.parent / "images"
        return beside if beside.is_dir() else path.parent
    if not Path(images).is_dir():
        raise DataError(f"images={str(images)!r} is no folder: give the folder that holds the images of {path}")
    return Path(images)


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    content = read_json_file(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f'{path} has no list "{part}": give a COCO detection JSON with "images", "annotations" and "categories"')
        for i, record in enumerate(content[part]):
            entries(record, f'{path}, "{part}" record {i + 1}')
    return content


def _id(record: Mapping[str, Any], path: Path) -> Any:
    if not isinstance(record.get("id"), int | str) or isinstance(record["id"], bool):
        raise DataError(f"{path}: a record's id is {record.get('id')!r}; give a number or a text: {str(dict(record))[:80]}")
    return record["id"]


def _pixels(record: Mapping[str, Any], field: str, path: Path) -> int:
    value = record.get(field)
    if not is_number(value) or not isinstance(value, int) or value < 1:
        raise DataError(f"{path}: image {record['id']} has the {field} {value!r}; it must be a whole number of pixels")
    return value


def _require_once(values: list[Any], what: str, path: Path) -> None:
    value, times = next(iter(Counter(values).most_common(1)), (None, 0))
    if times > 1:
        raise DataError(f"{path}: {what} {value!r} is there {times} times; each must be there once")


def _box(bbox: Any, size: tuple[int, int], where: str) -> Box:
    """(left, top, right, bottom) within the image."""
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))
    if not numbers:
        raise DataError(f"{where}: bbox {str(bbox)[:60]} is no [x, y, width, height] in pixels; give four finite numbers")
    (x, y, w, h), (width, height) = bbox, size
    if w <= 0 or h <= 0:
        raise DataError(f"{where}: bbox {bbox} has no size; width and height must be above 0")
    box = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    outside = min(x, y) < -ROUNDING or x + w > width + ROUNDING or y + h > height + ROUNDING
    if outside or box[0] >= box[2] or box[1] >= box[3]:
        raise DataError(f"{where}: bbox {bbox} lies outside its image of {width} x {height} pixels; give [x, y, width, height] within it")
    return box


def _inside(root: Path, name: str, path: Path) -> Path:
    try:
        file = (root / name).resolve()
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{path}: file_name {name!r} is no name of a file ({error}); correct it") from error
    if not file.is_relative_to(root):
        raise DataError(f"{path}: file_name {name!r} leads out of the image folder {root}; it must stay inside")
    return file


def _name(file_name: str) -> str:
    return (Path(file_name).parent / Path(file_name).stem).as_posix()


def _group(name: str, path: Path) -> str:
    """COCO's photographs go by their COCO number, so that they meet those of other sets; others by folder and name."""
    number = coco_number(Path(name).name)
    return f"coco/{number}" if number else f"{path.resolve().parent.name}/{_name(name)}"
