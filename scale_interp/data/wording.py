"""Words as they are compared and shown: normal white space, and long values shortened."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

UNSEEN = re.compile("[\u200b\u2060\ufeff\u00ad]")
"""Characters that take no room and join nothing: zero-width spaces, the byte order mark, the soft hyphen."""
EDGE = "\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Joiners and marks of direction: part of a word inside it (Persian, emoji), nothing at its ends."""
MOST = 80
"""Characters of a value that a message shows."""


def clean(words: str) -> str:
    """Words of one line, such as a choice: composed characters (NFC), single plain spaces, nothing unseen.

    >>> clean(" on\\u00a0top\\n of\\u200b ")
    'on top of'
    """
    return " ".join(_seen(words).split()).strip(EDGE).strip()


def clean_text(text: str) -> str:
    """A text of several lines: as `clean`, but its line breaks and indents stay, for they may draw a map or a table.

    >>> clean_text("  Where is\\u00a0it?\\r\\n  A. left ")
    'Where is it?\\n  A. left'
    """
    lines = _seen(text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n").split("\n")
    plain = (re.sub(r"[^\S\n]", " ", line) for line in lines)
    return "\n".join(plain).strip().strip(EDGE).strip()


def alike(words: Iterable[str]) -> tuple[str, str] | None:
    """The first two of the words that a reader cannot tell apart, as they were given, or None.

    >>> alike(("left", "right", "left "))
    ('left', 'left ')
    """
    first: dict[str, str] = {}
    for word in words:
        key = re.sub(f"[{EDGE}]", "", clean(word))
        if key in first:
            return first[key], word
        first[key] = word
    return None


def short(value: object, most: int = MOST) -> str:
    """A value as a message shows it, shortened in the middle where it is long.

    >>> short("data:image/png;base64," + "A" * 5000, 30)
    "'data:image/png;base64,A...' (5,022 characters)"
    """
    shown = repr(value)
    if len(shown) <= most:
        return shown
    if isinstance(value, str):
        return f"{shown[: most - 6]}...{shown[0]} ({len(value):,} characters)"
    return f"{shown[: most - 3]}... ({len(shown):,} characters)"


def _seen(words: str) -> str:
    return UNSEEN.sub("", unicodedata.normalize("NFC", words))
