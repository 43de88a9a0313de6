"""Which files each finished step wrote, with their checksums. Read without torch, so that a list of runs is there at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
WHOLE, DAMAGED, MISSING = "whole", "damaged", "missing"


@dataclass(frozen=True)
class ResultFile:
    """One result: its name in the folder, bytes, the recorded checksum, and the step that made it."""

    folder: Path
    name: str
    size: int
    sha256: str
    step: str = ""

    def state(self) -> str:
        """Whether the file is as it was written; reads it whole."""
        path = self.folder / self.name
        if not path.is_file():
            return MISSING
        return WHOLE if file_hash(path) == self.sha256 else DAMAGED


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
