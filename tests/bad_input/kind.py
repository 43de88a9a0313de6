"""A kind of bad input: what is given it, what is wrong, and the error that must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """call: makes the mistake, given the room (see test_bad_input.py); says: what the message must match beside a mend."""

    target: str
    mistake: str
    error: type[Exception]
    says: str
    call: Callable[[Any], Any]

    @property
    def id(self) -> str:
        return f"{self.target}: {self.mistake}"
