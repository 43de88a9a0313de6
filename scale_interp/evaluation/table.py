"""A result that is a table: rows of plain values, and where they come from."""

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
    """A table of plain values.

    Args:
        rows: mappings from column to value; None where a column does not apply to a row.
        about: what holds for the whole table, such as the base model's accuracy.
        provenance: model, data, settings and versions.
    """

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
    """The value, or None where it is not a number."""
    return None if math.isnan(value) else value


def difference_columns(name: str, d: statistics.Difference, corrected: float, start: str = "") -> dict[str, float]:
    """A difference as columns: its mean is called `name`; the names of interval, p and corrected p begin with `start`."""
    return {name: d.mean, f"{start}low": d.low, f"{start}high": d.high, f"{start}p": d.p, f"{start}p_corrected": float(corrected)}


def span(row: Mapping[str, Any], name: str, start: str = "") -> str:
    """A number of a row with its interval, as text."""
    return f"{row[name]:+.3f} [{row[f'{start}low']:+.3f}, {row[f'{start}high']:+.3f}]"
