"""A result that is a table: rows of plain values, and where they came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from ..core import statistics
from ..core.result import Misfit, Result


@dataclass(frozen=True, eq=False)
class Table(Result):
    """rows: mappings with the same columns; None where a column says nothing of a row. about: what else was found."""

    rows: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that every row of this kind of table has."""
    most = 100
    file = "json"

    def to_frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        return pd.DataFrame(list(self.rows))

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({name: row.get(name) for name in self.columns or row} for row in self.rows)

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if not self.rows:
            raise Misfit("it holds no rows")
        if missing := {name for row in self.rows for name in set(self.columns) - set(row)}:
            raise Misfit(f"its rows lack {', '.join(sorted(missing))}")


def known(value: float) -> float | None:
    """The value, or None where it is no number."""
    return None if math.isnan(value) else value


def difference_columns(name: str, d: statistics.Difference, corrected: float, start: str = "") -> dict[str, float]:
    """A difference as columns: its mean under `name`; interval, p and corrected p behind `start`."""
    return {name: d.mean, f"{start}low": d.low, f"{start}high": d.high, f"{start}p": d.p, f"{start}p_corrected": float(corrected)}


def span(row: Mapping[str, Any], name: str, start: str = "") -> str:
    """A number of a row with its interval."""
    return f"{row[name]:+.3f} [{row[f'{start}low']:+.3f}, {row[f'{start}high']:+.3f}]"
