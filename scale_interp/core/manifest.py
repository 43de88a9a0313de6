"""Which files each finished step wrote, with their checksums. Read without torch, so that runs are listed quickly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
WHOLE, DAMAGED, MISSING = "whole", "damaged", "missing"


@dataclass(frozen=True)
class ResultFile:
    """One result file: its name in the folder, its size in bytes, its recorded checksum, and the step that wrote it."""

    folder: Path
    name: str
    size: int
    sha256: str
    step: str = ""

    def state(self) -> str:
        """Whether the file is unchanged since it was written. This reads the whole file."""
        path = self.folder / self.name
        if not path.is_file():
            return MISSING
        return WHOLE if file_hash(path) == self.sha256 else DAMAGED


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
