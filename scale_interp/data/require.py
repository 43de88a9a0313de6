"""A list of items of one class, or an error that says what was given and where such items come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError


def require_items(items: Any, kind: type, source: str, instead: str) -> Sequence[Any]:
    """The items, or the single one, as a sequence that is not empty; DataError for anything else.

    Args:
        items: What a caller gave.
        kind: The class that each item must have.
        source: Code that returns such items, for the message.
        instead: What to do with items of another class, for the message.
    """
    if isinstance(items, kind):
        items = [items]
    if isinstance(items, str | bytes | Mapping | type) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise DataError(f"expected a list of {kind.__name__}s, found a {type(items).__name__}: give such as {source} returns")
    if len(items) == 0:
        raise DataError("an empty set of questions: load at least one")
    wrong = next((q for q in items if not isinstance(q, kind)), None)
    if wrong is not None:
        raise DataError(f"expected {kind.__name__}s, found a {type(wrong).__name__}: {instead}")
    return items
