"""One loop for every analysis: batches of questions, kept in a journal, shared out over machines, behind one progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..core.progress import track
from ..data.question import Question
from ..vlm.vlm import VLM
from .journal import Part
from .journal import current as journal
from .ray_cluster import current as machines

Found = dict[str, Tensor]
Work = Callable[..., Found]
"""work(vlm, batch): a function of a module, or a `partial` of one, so that it has a name and can be sent to another machine."""


class Batches(Protocol):
    """Questions in batches; plan(vlm) makes the same ones for another process's model."""

    @property
    def plan(self) -> Callable[[VLM], Batches]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def each(vlm: VLM, batches: Batches, work: Work, what: str) -> Iterator[Found]:
    """work(vlm, batch) of every batch, in order, on the CPU.

    Within `si.resumable` a batch that was done before is taken from disk and its prompts are not even read; within `si.cluster` the
    others are done by its workers. A model with hooks of its own is asked here and now: nobody else has them.
    """
    part, team = kept_part(vlm, what, batches.plan, work), machines()
    team = None if team is None or vlm.hooked else team
    steps = [f"{i:06}" for i in range(len(batches))]
    done = {i for i, step in enumerate(steps) if part is not None and step in part}

    def keep(i: int, found: Found) -> Found:
        found = {name: t.cpu() for name, t in found.items()}
        if part is not None:
            part.put(steps[i], found)
        return found

    todo = [i for i in range(len(steps)) if i not in done]
    here = (keep(i, work(vlm, batches[i])) for i in todo)
    computed = here if team is None else team.run(vlm, batches.plan, work, todo, keep)
    for i in track(range(len(steps)), what, len(steps)):
        before = part.get(steps[i]) if part is not None and i in done else None
        if before is not None:
            yield before[0]
        else:
            yield keep(i, work(vlm, batches[i])) if i in done else next(computed)


def kept_part(vlm: VLM, what: str, *asked: Any) -> Part | None:
    """Where the journal keeps a piece of work, named by the model, the libraries and all else that its numbers depend on.

    None outside `si.resumable`, and for a model with hooks of its own.
    """
    kept = journal()
    return None if kept is None or vlm.hooked else kept.part(what, vlm.identity, *asked)


@dataclass(frozen=True)
class Singles:
    """One question a batch: (row, question)."""

    questions: Sequence[Question]

    @property
    def plan(self) -> Callable[[VLM], Singles]:
        return partial(singles, tuple(self.questions))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question]:
        return range(len(self))[index], self.questions[index]


def singles(questions: Sequence[Question], vlm: VLM) -> Singles:
    return Singles(questions)


@dataclass(frozen=True)
class Rows:
    """Questions in batches that are given by their rows."""

    questions: Sequence[Question]
    rows: tuple[tuple[int, ...], ...]

    @staticmethod
    def in_order(questions: Sequence[Question], batch_size: int) -> Rows:
        Q = len(questions)
        return Rows(tuple(questions), tuple(tuple(range(i, min(i + batch_size, Q))) for i in range(0, Q, batch_size)))

    @staticmethod
    def of_equal_length(vlm: VLM, questions: Sequence[Question], batch_size: int) -> Rows:
        """Prompts of one length in tokens share a batch, so that no padding enters the numbers."""
        lengths = [vlm.encode(q)["input_ids"].shape[1] for q in questions]
        alike = [[q for q, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]
        rows = tuple(tuple(members[i : i + batch_size]) for members in alike for i in range(0, len(members), batch_size))
        return Rows(tuple(questions), rows)

    @property
    def plan(self) -> Callable[[VLM], Rows]:
        return partial(by_rows, self.questions, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Question]:
        return [self.questions[row] for row in self.rows[index]]

    def restore(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values of the batches [b, ...], a tensor a question, in the questions' order."""
        placed = dict(zip((row for rows in self.rows for row in rows), (v for batch in values for v in batch), strict=True))
        return [placed[row] for row in range(len(self.questions))]


def by_rows(questions: Sequence[Question], rows: tuple[tuple[int, ...], ...], vlm: VLM) -> Rows:
    return Rows(questions, rows)
