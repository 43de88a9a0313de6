"""Progress bars on long work, drawn by tqdm; hidden without a terminal or notebook, or when TQDM_DISABLE is set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield the items behind a bar with count, rate, time spent and time left. The bar goes away at the end.

    Args:
        items: what is iterated over.
        what: the text in front of the bar.
        total: how many items there are; a single one gets no bar.

    >>> list(track("abc", "letters", 3))
    ['a', 'b', 'c']
    """
    if total < 2:
        yield from items
        return
    with _bar(what, total, leave=False) as bar:
        for item in items:
            yield item
            bar.update()


class StageBars:
    """One bar per stage of a training, with the loss of its last step. The bars stay.

    >>> with StageBars() as bars:
    ...     bars("pretraining", 1, 100, 0.7)
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def __call__(self, stage: str, step: int, steps: int, loss: float) -> None:
        """Show that `step` of `steps` steps are done. After a resume, the first call for a stage may be for a later step."""
        if stage not in self._bars:
            self._bars[stage] = _bar(stage, steps, leave=True, initial=step - 1)
        bar = self._bars[stage]
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bar.update(step - bar.n)

    def __enter__(self) -> StageBars:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()


def lines_above_bars() -> AbstractContextManager[None]:
    """A context for printing to the standard error stream: open bars are cleared before and drawn again after."""
    return tqdm.external_write_mode(file=sys.stderr)


def _bar(what: str, total: int, leave: bool, initial: int = 0) -> tqdm[Any]:
    # tqdm itself ignores TQDM_DISABLE in notebooks.
    disable = bool(os.environ.get("TQDM_DISABLE")) or not (sys.stderr.isatty() or _in_notebook())
    return tqdm(desc=what, total=total, initial=initial, leave=leave, disable=disable, dynamic_ncols=True)


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose streams are not terminals."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")
