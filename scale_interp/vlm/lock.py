"""One thread at a time on a model: runs change its attention function and its hooks for a moment, and tokenizers their padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_adding = Lock()


@contextmanager
def alone(shared: Any) -> Iterator[None]:
    """The block has a decoder, or a tokenizer, for itself: other threads wait, and the same thread may enter again."""
    with _adding:
        lock = _locks.get(shared) or _locks.setdefault(shared, RLock())
    with lock:
        yield
