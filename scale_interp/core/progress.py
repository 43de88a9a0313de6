"""Progress bars on long work; silent where nobody looks (no terminal, no notebook)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True)


class Rate(ProgressColumn):
    """How many are done in a second, or in a minute where that is less than one.

    >>> [rate(speed) for speed in (12.34, 0.25, None)]
    ['12.3/s', '15.0/min', '']
    """

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed))


def rate(speed: float | None) -> str:
    if speed is None:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield the items behind a bar with count, rate, time spent and time left."""
    if not (console.is_terminal or console.is_jupyter) or total < 2:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=what)
