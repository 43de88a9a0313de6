"""What the commands print: lines about the work, and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say() -> Callable[[str], None]:
    """A function that prints a line about the work to the standard error stream, with the seconds since this call."""
    import time

    from rich.markup import escape

    from ..core.progress import lines_above_bars

    started, out = time.perf_counter(), console(stderr=True)

    def line(text: str) -> None:
        with lines_above_bars():
            out.print(f"[dim]{time.perf_counter() - started:5.0f} s[/]  {escape(text)}", highlight=False, soft_wrap=True)

    return line


def console(stderr: bool = False) -> Any:
    """A console of rich on the standard output or error stream."""
    from rich.console import Console

    return Console(stderr=stderr)


def frame_table(frame: pd.DataFrame, title: str) -> None:
    """Print a table, with floats to three decimals."""
    from pandas.api.types import is_numeric_dtype
    from rich.table import Table

    table = Table(title=title)
    for name in frame.columns:
        table.add_column(str(name), justify="right" if is_numeric_dtype(frame[name]) else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    print_whole(table)


def print_whole(table: Any) -> None:
    """Print a table; where a narrow terminal would cut words or numbers short, its lines are longer than the terminal's."""
    from rich.measure import Measurement

    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(width=1000), table).minimum)
    out.print(table)
