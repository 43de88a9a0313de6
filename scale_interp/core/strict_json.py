"""JSON as its standard has it: UTF-8, no key twice, no NaN, and no more of it than memory holds.

Own code around `json`, which takes a key twice, NaN and half a character without a word, and reads a file of any size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_FILE = 1_000_000_000
"""Bytes of the largest JSON file that is read at once (COCO's largest has 470 million); set this to read a larger one."""
LARGEST_LINE = 10_000_000
"""Bytes of the longest line of a file of records; set this to read longer ones."""
HERE = "scale_interp.core.strict_json"
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that is half a character, unless its other half follows."""


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is no JSON, a key that is there twice, NaN, and endless nesting.

    >>> parsed('{"answer": "left", "answer": "right"}')
    Traceback (most recent call last):
    ValueError: the key 'answer' is there twice
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        if HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return found


def read(path: Path) -> Any:
    """The value of a JSON file. Raises ValueError as `parsed`, for a file above LARGEST_FILE and for one not in UTF-8; OSError."""
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes, the most that is read; set {HERE}.LARGEST_FILE to read more")
    return parsed(content.decode("utf-8-sig"))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")
