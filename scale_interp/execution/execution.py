"""Where the work on a model is kept and which process does it: passed on with the model, or set by a user's block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ..core.arguments import checked
from ..vlm.vlm import VLM
from .journal import Journal, UnfinishedWork

Model = TypeVar("Model", bound=VLM)


class Workers(Protocol):
    """Processes that hold the model and run its batches, such as those of a Ray cluster."""

    def run(
        self,
        vlm: VLM,
        plan: Any,
        work: Any,
        todo: Sequence[int],
        keep: Callable[[int, dict[str, Tensor]], dict[str, Tensor]],
    ) -> Iterator[dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Execution:
    """The journal that keeps the work and the workers that do it. With None, nothing is kept and this process does the work."""

    journal: Journal | None = None
    workers: Workers | None = None


_NOTHING = Execution()
_block: ContextVar[Execution] = ContextVar("execution", default=_NOTHING)
"""What the user's `si.resumable` and `si.cluster` blocks set.

The only exception to "state is passed in": a user's block has no other way to reach the functions inside it. Only `execution_of` reads
it. Inside the package a journal is passed on with the model (`with_journal`).
"""


def execution_of(vlm: VLM) -> Execution:
    """What was passed on with the model, or otherwise what the user's block sets."""
    given, block = vlm.execution or Execution(), _block.get()
    return Execution(given.journal or block.journal, given.workers or block.workers)


def with_journal(vlm: Model, journal: Journal | None) -> Model:
    """A copy of the model whose work is kept in this journal; the model itself for None."""
    if journal is None:
        return vlm
    kept = copy(vlm)
    kept.execution = replace(vlm.execution or Execution(), journal=journal)
    return kept


@contextmanager
def block(**given: Any) -> Iterator[None]:
    """A user's block, which sets these fields of Execution for every model used inside it."""
    token = _block.set(replace(_block.get(), **given))
    try:
        yield
    finally:
        _block.reset(token)


@checked
@contextmanager
def resumable(folder: str | Path) -> Iterator[Journal]:
    """Keep every batch inside the block in a folder, and reuse what the folder already contains.

    If the block is killed and run again, it gives the same numbers, and a fit continues after its last epoch. Work is identified by
    the weights, the questions with their images, the edit and the scoring, so different work never mixes. Work on a model with
    foreign hooks is not kept. The folder may be deleted when the work is done.

    Args:
        folder: The folder, which is created.

    Returns:
        A context with the journal.

    Raises:
        FileError: Another process is using the folder.

    >>> import tempfile
    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> with tempfile.TemporaryDirectory() as folder, si.resumable(folder):
    ...     first, second = si.ablate(vlm, qs), si.ablate(vlm, qs)  # the second is read from the folder
    >>> bool((first.scores == second.scores).all())
    True
    """
    journal = Journal(folder, unfinished=UnfinishedWork(folder))
    with journal.opened(), block(journal=journal):
        yield journal
