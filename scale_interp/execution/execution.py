"""Where the work on a model is kept, and who does it: handed on with the model, or given by a user's block."""

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
    """Processes that hold the model and do its batches, such as those of a Ray cluster."""

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
    """The journal that keeps the work, and the workers that do it; None: nothing is kept, and this process does it."""

    journal: Journal | None = None
    workers: Workers | None = None


_NOTHING = Execution()
_block: ContextVar[Execution] = ContextVar("execution", default=_NOTHING)
"""What the user's `si.resumable` and `si.cluster` blocks give.

The one exception to "state is handed on": a user's block has no other way to reach the functions inside. It is read by `execution_of`
alone. Inside the package a journal is handed on with the model (`with_journal`).
"""


def execution_of(vlm: VLM) -> Execution:
    """What was handed on with the model, and where nothing was, what the user's block gives."""
    given, block = vlm.execution or Execution(), _block.get()
    return Execution(given.journal or block.journal, given.workers or block.workers)


def with_journal(vlm: Model, journal: Journal | None) -> Model:
    """The same model, whose work is kept in this journal; None: as it is."""
    if journal is None:
        return vlm
    kept = copy(vlm)
    kept.execution = replace(vlm.execution or Execution(), journal=journal)
    return kept


@contextmanager
def block(**given: Any) -> Iterator[None]:
    """A user's block: these fields of Execution for every model that is asked inside."""
    token = _block.set(replace(_block.get(), **given))
    try:
        yield
    finally:
        _block.reset(token)


@checked
@contextmanager
def resumable(folder: str | Path) -> Iterator[Journal]:
    """Everything inside the block that asks a model about questions keeps each batch in `folder`, and takes from there what it holds.

    Killed and run again, the block gives the same numbers, and a fit goes on after its last epoch. What is kept is named by the
    weights, the questions with their pictures, the edit and the scoring, so that other work never mixes in; work on a model with
    hooks of its own is not kept. The folder may be deleted when the work is done. One process may use it at a time: FileError for
    the second.

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
