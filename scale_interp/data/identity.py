"""Which questions show the same image: by what is shown, not by the name of a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Protocol

from PIL import Image

from ..errors import DataError
from .decoding import ImageSource, decode

PIXELS = "pixels/"
"""How the names of images that results keep begin where they stand for pixels."""
KNOWN_FILES = 200_000
"""Files whose digest is kept, 300 bytes each: one that did not change is not opened again."""


class Shown(Protocol):
    """What a question, a contrast and a decomposed question share."""

    @property
    def group(self) -> str: ...
    @property
    def pixel_keys(self) -> tuple[Hashable, ...]: ...


def pixel_key(source: ImageSource, where: str, largest: int) -> Hashable | None:
    """Equal for images of which the same pixels are shown; None where it cannot be opened, which asking about it will say.

    A file is opened once, and again when its time or size changes (on one core 4 ms for 640 x 480 pixels of JPEG). What a
    scene or a layout of ours renders is known by the scene.
    """
    if isinstance(source, MethodType) and getattr(source.__self__, "renders_its_content", False):
        return source.__self__
    try:
        if isinstance(source, str | Path):
            state = os.stat(source)
            return _file_digest(str(source), state.st_mtime_ns, state.st_size, state.st_ino, largest)
        return image_digest(decode(source, where, largest))
    except (DataError, OSError, ValueError):
        return None


def image_digest(image: Image.Image) -> str:
    """A hash of an RGB image's size and pixels.

    >>> image_digest(Image.new("RGB", (2, 3))) == image_digest(Image.new("RGB", (3, 2)))
    False
    """
    return hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


@lru_cache(KNOWN_FILES)
def _file_digest(path: str, time: int, size: int, inode: int, largest: int) -> str:
    return image_digest(decode(path, path, largest))


class Families:
    """Names that belong together because something joins them, each family under its first name in the order of letters."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._first: dict[Hashable, str] = {}

    def add(self, name: str, key: Hashable) -> None:
        """Join the name with every other that has the key."""
        other = self._first.setdefault(key, name)
        low, high = sorted((self.of(name), self.of(other)))
        self._above[high] = low

    def of(self, name: str) -> str:
        while (above := self._above.get(name, name)) != name:
            name = above
        return name


def merged_groups(items: Sequence[Shown]) -> list[str]:
    """The group of each item, groups that show the same image being one.

    Several images of one question count together; one of them alone only where another question shows nothing else.
    """
    singles = {item.pixel_keys[0] for item in items if len(item.pixel_keys) == 1}
    families = Families()
    for item in items:
        for key in _marks(item.pixel_keys, singles):
            families.add(item.group, key)
    return [families.of(item.group) for item in items]


def image_names(items: Iterable[Shown]) -> tuple[str, ...]:
    """What a result keeps of the images that it learned from: the names of their groups, and the pixels of each alone."""
    items = list(items)
    pixels = {f"{PIXELS}{item.pixel_keys[0]}" for item in items if len(item.pixel_keys) == 1 and isinstance(item.pixel_keys[0], str)}
    return (*sorted({item.group for item in items}), *sorted(pixels))


def count_images(names: Iterable[str]) -> int:
    """How many groups of images the names stand for."""
    return sum(not name.startswith(PIXELS) for name in names)


def same_image(train: Iterable[Shown | str], test: Iterable[Shown]) -> tuple[str, str] | None:
    """The groups of an item to learn from and of one to test on that show the same image, or None."""
    seen: dict[Hashable, str] = {}
    train, test = list(train), list(test)
    items = [item for item in train if not isinstance(item, str)]
    singles = {item.pixel_keys[0] for item in (*items, *test) if len(item.pixel_keys) == 1}
    for item in train:
        if isinstance(item, str):
            if item.startswith(PIXELS):
                seen[item.removeprefix(PIXELS)] = "an image that was learned from"
                singles.add(item.removeprefix(PIXELS))
        else:
            for key in _marks(item.pixel_keys, singles):
                seen.setdefault(key, item.group)
    for item in test:
        for key in _marks(item.pixel_keys, singles):
            if key in seen:
                return seen[key], item.group
    return None


def _marks(keys: tuple[Hashable, ...], singles: set[Hashable]) -> list[Hashable]:
    """What an item is compared by: its images together, and those that another item shows alone."""
    if not keys or None in keys:
        return []
    if len(keys) == 1:
        return [keys[0]]
    return [(frozenset(keys), len(keys)), *(key for key in keys if key in singles)]
