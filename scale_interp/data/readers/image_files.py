"""Where the images of a set are: found by name, never opened, never outside their folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import DataError
from ..decoding import ADDRESS, DATA_URI, ImageSource, image_source
from ..wording import short

COCO = ("val2017", "train2017", "val2014", "train2014", "images")
NUMBER = re.compile(r"^(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg$")


class ImageFiles:
    """The folders that a set's images are looked for in, and the place to name where an image is in none of them."""

    def __init__(self, bases: Iterable[Path | None], folders: Sequence[str], expected: Path):
        places = (base / folder for base in bases if base is not None for folder in folders)
        self.folders = list(dict.fromkeys(place for place in places if place.is_dir()))
        self.expected = expected

    def source(self, image: str, where: str) -> ImageSource:
        """The image of a data URI, or that of a path as `find` finds it."""
        return image_source(image, where) if DATA_URI.match(image) else self.find([image], where)

    def find(self, names: Sequence[str], where: str) -> Path:
        """The first image there is; where there is none, the place it is expected in. Raises DataError for a path that leaves it."""
        for name in names:
            require_inside(name, where)
        for folder in self.folders:
            for name in names:
                if os.path.exists(f"{folder}/{name}"):  # five times as fast as by Path, and asked a million times of a large set
                    return _require_real_place_inside(folder / name, folder, where)
        return self.expected / names[0]


def require_inside(name: str, where: str) -> str:
    """The name of an image, or DataError where it is absolute or climbs out of its folder."""
    if ADDRESS.match(name):
        image_source(name, where)  # says what to do with an address
    parts = re.split(r"[\\/]", name)
    if ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise DataError(f"{where}: the image {short(name)} leaves the set's folder; give a path inside it")
    return name


def require_place(image: str, where: str) -> str:
    """What a record says of its image: a path inside the set's folder or a data URI, or DataError."""
    return image if DATA_URI.match(image) else require_inside(image, where)


def _require_real_place_inside(path: Path, folder: Path, where: str) -> Path:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {path} is a link to {path.resolve()}, outside {folder}; put the image itself there")
    return path


def coco_names(name: str) -> list[str]:
    """The names that a COCO image goes by: with and without the prefix of the 2014 release; any other name as it is."""
    number = coco_number(name)
    if number is None:
        return [name]
    return list(dict.fromkeys([name, f"{number}.jpg", f"COCO_val2014_{number}.jpg", f"COCO_train2014_{number}.jpg"]))


def coco_number(name: str) -> str | None:
    """The twelve digits that tell a COCO image in every release, or None for another image.

    >>> coco_number("COCO_val2014_000000310196.jpg") == coco_number("000000310196.jpg")
    True
    """
    found = NUMBER.match(name)
    return found[1] if found else None


def is_image_number(text: str) -> bool:
    """Whether a text is the number of an image: at most 18 digits."""
    return text.isdecimal() and text.isascii() and len(text) <= 18
