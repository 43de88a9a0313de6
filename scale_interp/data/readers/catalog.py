"""The public sets that can be loaded by name: what each asks, its licence, its official counts and files, and who publishes it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType

from ...core.suggest import near
from ...errors import DataError
from ..scenes.task import TASKS

FORMS = ("vqa", "vtqa", "tqa")
KINDS = {"map": "spatialmap", "maze": "mazenav", "grid": "spatialgrid", "real": "spatialreal"}
"""Our names of SpatialEval's tasks, and its authors'."""


@dataclass(frozen=True)
class Hub:
    """A set on the hub: its id, its name of each split, config, the split's file where the hub does not know it, the picture column."""

    id: str
    splits: Mapping[str, str]
    config: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True)
class Entry:
    """One set. files: for each split ("all" where its authors publish none) the names looked for, patterns allowed."""

    name: str
    asks: str
    licence: str
    url: str
    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    template: str
    pictures: str
    choices: tuple[str, ...] = ()
    hub: Hub | None = None

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """The authors' splits; none where ours are used."""
        return tuple(s for s in self.files if s != "all")


def _read() -> Iterator[Entry]:
    """The entries of catalog.toml, whose head explains its fields."""
    for publication in tomllib.loads((files(__package__) / "catalog.toml").read_text("utf-8"))["publication"]:
        shared = {name: value for name, value in publication.items() if name != "sets"}
        for name, own in publication["sets"].items():
            about = shared | own
            lists = {key: tuple(about.get(key, ())) for key in ("folders", "choices")}
            names = {split: tuple(patterns) for split, patterns in about["files"].items()}
            hub = Hub(**about["hub"]) if "hub" in about else None
            yield Entry(**about | lists | {"name": name, "files": names, "hub": hub})


CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _read()})
RENDERED = {
    f"scenes/{{{','.join(TASKS)}}}": "coloured shapes, every place known",
    f"generated/{{{','.join(FORMS)}}}/{{{','.join(k for k in KINDS if k != 'real')}}}": "SpatialEval's form, one right option proved",
}
"""Sets that are rendered, not read: their names, and what they ask."""


def find_entry(name: str) -> Entry:
    """The set of that name, or DataError."""
    if name not in CATALOG:
        if os.path.isfile(name):
            raise DataError(f"unknown data set {name!r}, which is a file: JSON lines are named jsonl:{name}, boxes of COCO boxes:{name}")
        raise DataError(
            f"unknown data set {name!r}: choose from {', '.join((*CATALOG, *RENDERED))}, jsonl:PATH and boxes:PATH{near(name, CATALOG)}"
        )
    return CATALOG[name]
