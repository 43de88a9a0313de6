"""JSON as the standard defines it: UTF-8, no duplicate keys, no NaN, and not more than fits in memory.

Own code around `json`, which silently accepts duplicate keys, NaN and half a surrogate pair, and reads a file of any size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_FILE = 1_000_000_000
"""The largest JSON file that is read at once, in bytes (COCO's largest has 470 million); increase it to read a larger file."""
LARGEST_LINE = 10_000_000
"""The longest line of a file of records, in bytes; increase it to read longer lines."""
HERE = "scale_interp.core.strict_json"
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped surrogate, which is half a character unless its other half follows."""


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.

    Returns:
        The value, in Python's types.

    Raises:
        ValueError: The text is not JSON, has a duplicate key or NaN, or is nested too deeply.

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
    """The value of a JSON file.

    Args:
        path: The file.

    Returns:
        The value, in Python's types.

    Raises:
        ValueError: As for `parsed`, and for a file that is larger than LARGEST_FILE or not in UTF-8.
        OSError: The file cannot be read.
    """
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
    raise ValueError(f"{word} is not a number")
