"""Where the records of a set are found: in a folder first, then on the hub."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from .catalog import CATALOG, Entry
from .records import JsonLines, JsonList, Lines, Records, Table

ROOT = "SCALE_INTERP_DATA"
SHARD = re.compile(r"-of-(\d+)\.parquet$")


class Source:
    """The folder that sets are looked for in: the one given, else $SCALE_INTERP_DATA, else ./data."""

    def __init__(self, root: str | Path | None = None):
        self.given = root is not None
        given = Path(root if root is not None else os.environ.get(ROOT) or "data")
        try:
            self.root = given.expanduser()
        except RuntimeError as error:
            raise DataError(f"root {str(given)!r}: {error}; write the folder out") from error

    def places(self, entry: Entry) -> list[Path]:
        """Where the files of a set may lie; the folder may also be the set's own, or a copy of its authors' repository."""
        own = [self.root / folder / below for folder in entry.folders for below in ("", "data")]
        return [*own, self.root / "data" / entry.folders[0], self.root / "data", self.root]

    def files(self, entry: Entry, split: str) -> list[Path]:
        """The file of a split, or its parts; empty where there is none."""
        for place in self.places(entry):
            for name in entry.files[split]:
                found = sorted(file for file in place.glob(name) if file.is_file()) if place.is_dir() else []
                if found:
                    _require_all_parts(found)
                    return found
        return []

    def records(self, entry: Entry, split: str) -> Records:
        """The records of a split. Raises one DataError that names file, places, publisher and the hub's failure."""
        if self.given and not self.root.is_dir():
            raise DataError(f"root {str(self.root)!r} is no folder, so {entry.name} has no file there; give the folder that holds the sets")
        files = self.files(entry, split)
        if files:
            return _read(entry, files)
        if entry.hub is not None:
            print(f"{entry.name} is not in {self.root}: asking the hub for {entry.hub.id}", file=sys.stderr)
        try:
            return _from_hub(entry, split)
        except _NoHub as why:
            tried = ", ".join(str(place) for place in self.places(entry))
            raise DataError(
                f"{entry.name}: no file {' or '.join(entry.files[split])}; looked in {tried}. Its authors publish it at {entry.url}: "
                f"put it into {self.root / entry.folders[0]}, or name another folder by root= or {ROOT}. {why}"
            ) from why.__cause__


class _NoHub(Exception):
    """Why the hub gave nothing."""


def _read(entry: Entry, files: list[Path]) -> Records:
    first = files[0]
    if first.suffix == ".txt":
        return Lines(first)
    if first.suffix == ".parquet":
        package = _datasets(first)
        try:
            table = package.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        except Exception as error:  # the package has no one type for a file that it cannot read
            raise DataError(f"{first}: no table that can be read ({error.__cause__ or error}); fetch it again") from error
        return Table(table, str(first), entry.hub.image if entry.hub else None, folder=first.parent)
    return JsonList(first) if entry.family in ("whatsup", "coco_qa", "vg_qa") else JsonLines(first)


def _datasets(file: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{file} is read with the package `datasets`: pip install 'scale-interp[hub]'") from error
    return datasets


def _from_hub(entry: Entry, split: str) -> Table:
    hub = entry.hub
    if hub is None:
        raise _NoHub("There is no official copy on the hub.")
    try:
        import datasets
    except ImportError as error:
        raise _NoHub(f"To take it from the hub ({hub.id}): pip install 'scale-interp[hub]'.") from error
    files = {"data_files": {hub.splits[split]: hub.files[split]}} if hub.files else {}
    try:
        table = datasets.load_dataset(hub.id, hub.config, split=hub.splits[split], **files)
    except Exception as error:  # whatever the hub fails by becomes part of one message
        raise _NoHub(f"The hub ({hub.id}) failed too: {type(error).__name__}: {error}") from error
    return Table(table, f"{hub.id} {hub.config or ''} {hub.splits[split]}".replace("  ", " "), hub.image)


def _require_all_parts(files: list[Path]) -> None:
    wanted = SHARD.search(files[0].name)
    if wanted and len(files) != int(wanted[1]):
        raise DataError(f"{files[0].parent}: {len(files)} of {int(wanted[1])} parts {files[0].name} ...; fetch the missing ones")


@dataclass(frozen=True)
class SplitOnDisk:
    """One split on disk: its file (from the root; None where it is missing), and its number of records where that is cheap to count."""

    entry: Entry
    split: str
    file: Path | None
    count: int | None
    problem: str = ""

    @property
    def state(self) -> str:
        """What is wrong, the missing name, or the file with its count."""
        if self.problem:
            return self.problem
        if self.file is None:
            return f"missing: {self.entry.files[self.split][0]}"
        official = self.entry.counts[self.split]
        short = f", {self.count:,} of {official:,}" if self.count not in (None, official) else ""
        return f"{self.file}{short}"


def inventory(root: str | Path | None = None) -> list[SplitOnDisk]:
    """Every split of every set of the catalogue, and what the folder holds of it; the hub is not asked."""
    source = Source(root)
    return [_found(source, entry, split) for entry in CATALOG.values() for split in entry.files]


def _found(source: Source, entry: Entry, split: str) -> SplitOnDisk:
    try:
        files = source.files(entry, split)
        count = None if not files or files[0].suffix == ".parquet" else len(_read(entry, files))
    except DataError as error:
        return SplitOnDisk(entry, split, None, None, str(error))
    return SplitOnDisk(entry, split, files[0].relative_to(source.root) if files else None, count)
