"""The keys of a JSON line, and what people write in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from ...errors import DataError
from ..wording import short

CONTRAST = ("contrast_of", "contrast_image", "contrast_answer")
KNOWN = ("image", "images", "question", "choices", "answer", "id", "group", "task", "relation", "about", "boxes", "meta", *CONTRAST)
OTHER_NAMES = {
    name: re.compile(words, re.VERBOSE)
    for name, words in {
        "image": "(img|image|picture|pic|photo|frame|visual)s? (path|file|filename|name|source|ur[il])?s? | (file|filename|path|ur[il])s?",
        "question": "questions? (text)? | query | prompt | text | instruction | problem | stem",
        "choices": "choices? | options? | candidates? | alternatives | answers? (choice|option)?s | multiplechoice",
        "answer": "(correct|right|gold|true)? (answer|choice|option|label|target)s? (index|idx|id|key|letter)? "
        "| correct | gold | gt | groundtruth",
        "boxes": "(bound(ing)?)? (box|boxes) | bbox(es)?",
        "group": "groups? (id|name)?",
    }.items()
}
"""Other names of a key, without capitals and signs."""
FILE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|ppm|pgm|jp2)\s*$", re.I)
SHOWN = re.compile(r"image|img|picture|photo", re.I)
CLOSE = 0.8
"""Share of a key's letters that are in place where it is taken for a slip."""


def require_keys(record: Mapping[str, Any], where: str) -> None:
    """DataError where a key was probably meant as one that is read, and would be passed over.

    >>> require_keys({"image_path": "a.png", "question": "Where?"}, "line 1")
    Traceback (most recent call last):
    scale_interp.errors.DataError: line 1: the key 'image_path' is not read; did you mean 'image'?
    """
    if record.get("image") is not None and "images" in record and _listed(record["image"]) != _listed(record["images"]):
        raise DataError(f"{where}: 'image' and 'images' differ; give one of them")
    for name in KNOWN:
        if name != "images" and not (name == "image" and "images" in record):
            require_key(name, record, KNOWN, where)


def require_key(name: str, record: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """DataError where a key that is not known is the name in other letters, or is probably meant as it and the name is missing."""
    for key in record:
        plain = re.sub(r"[\W_]", "", key).casefold()
        if key in (name, *known):
            continue
        if plain == name or (name not in record and (_meant(key, plain, name) or (name == "image" and _names_image(record[key])))):
            raise DataError(f"{where}: the key {short(key)} is not read; did you mean {name!r}?")


def _meant(key: str, plain: str, name: str) -> bool:
    if name == "image" and SHOWN.search(key):
        return True
    close = len(name) > 3 and SequenceMatcher(None, plain, name).ratio() >= CLOSE
    return close or (name in OTHER_NAMES and OTHER_NAMES[name].fullmatch(plain) is not None)


def _names_image(value: Any) -> bool:
    words = (part for part in _listed(value) if isinstance(part, str))
    return any(part.lstrip().startswith("data:image/") or FILE.search(part[-20:]) is not None for part in words)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
