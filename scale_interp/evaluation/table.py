"""A result that is a table: rows of plain values, and where they came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from ..core import statistics
from ..core.card import Card
from ..core.record import entry, read_json, write_json
from ..errors import FileError

PARTS = ("about", "provenance")


@dataclass(frozen=True, eq=False)
class Table(Card):
    """rows: mappings with the same columns; None where a column says nothing of a row. about: what else was found."""

    rows: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that every row of this kind of table has."""
    most = 100

    def to_frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        return pd.DataFrame(list(self.rows))

    def _card_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({name: row.get(name) for name in self.columns or row} for row in self.rows)

    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        parts = {"rows": list(self.rows), "about": dict(self.about), "provenance": dict(self.provenance)}
        write_json(Path(path), {"kind": type(self).__name__} | parts, sealed=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a saved table. Raises FileError for a damaged or foreign file."""
        found = read_json(Path(path))
        if found.get("kind") != cls.__name__:
            raise FileError(f"{path} is no {cls.__name__} but {found.get('kind', 'a foreign file')!r}; give the file of a {cls.__name__}")
        rows = found.get("rows")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise FileError(f"{path} holds no rows; save it again")
        if missing := {name for row in rows for name in set(cls.columns) - set(row)}:
            raise FileError(f"{path}: its rows lack {', '.join(sorted(missing))}; save it again")
        about, provenance = (entry(Path(path), {"about": {}, "provenance": {}} | found, name, dict[str, Any]) for name in PARTS)
        return cls(tuple(rows), about, provenance)


def known(value: float) -> float | None:
    """The value, or None where it is no number."""
    return None if math.isnan(value) else value


def difference_columns(name: str, d: statistics.Difference, corrected: float, start: str = "") -> dict[str, float]:
    """A difference as columns: its mean under `name`; interval, p and corrected p behind `start`."""
    return {name: d.mean, f"{start}low": d.low, f"{start}high": d.high, f"{start}p": d.p, f"{start}p_corrected": float(corrected)}


def span(row: Mapping[str, Any], name: str, start: str = "") -> str:
    """A number of a row with its interval."""
    return f"{row[name]:+.3f} [{row[f'{start}low']:+.3f}, {row[f'{start}high']:+.3f}]"
