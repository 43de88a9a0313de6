"""Suggest the known name that is closest to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: object, known: Iterable[str]) -> str:
    """A question that suggests the known name closest to this one, or an empty string.

    >>> near("realtion", ["relation", "position"])
    "; did you mean 'relation'?"
    """
    found = get_close_matches(str(name), list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""
