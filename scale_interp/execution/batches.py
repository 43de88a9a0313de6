"""One loop for every analysis: batches of questions, kept in a journal, distributed over machines, with one progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..core.progress import track
from ..data.question import Question
from ..errors import ModelError
from ..vlm.vlm import VLM
from .execution import execution_of
from .journal import Checkpoints

BatchResult = dict[str, Tensor]
Work = Callable[..., BatchResult]
"""work(vlm, batch): a function of a module, or a `partial` of one, so that it has a name and can be sent to another machine."""


class Batches(Protocol):
    """Questions in batches; plan(vlm) makes the same batches for the model of another process."""

    @property
    def plan(self) -> Callable[[VLM], Batches]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def map_batches(vlm: VLM, batches: Batches, work: Work, what: str) -> Iterator[BatchResult]:
    """Run work(vlm, batch) on every batch, in order.

    If the work is kept (`Execution`), batches that were done before are read from disk, without even reading their prompts. If there are
    workers, they do the rest. A model with foreign hooks runs in this process, as no other process has them.

    Args:
        vlm: The model.
        batches: The batches of questions.
        work: A function of a module, or a `partial` of one.
        what: The progress bar's text.

    Returns:
        One result per batch, on the CPU.

    Raises:
        ModelError: There is not enough memory for a batch that cannot be halved.
    """
    checkpoints, workers = checkpoints_of(vlm, _name(work), batches.plan, work), execution_of(vlm).workers
    workers = None if workers is None or vlm.hooked else workers
    steps = [f"{i:06}" for i in range(len(batches))]
    done = {i for i, step in enumerate(steps) if checkpoints is not None and step in checkpoints}

    def keep(i: int, found: BatchResult) -> BatchResult:
        found = {name: t.cpu() for name, t in found.items()}
        if checkpoints is not None:
            checkpoints.put(steps[i], found)
        return found

    def run(i: int) -> BatchResult:
        try:
            with vlm.alone():
                return work(vlm, batches[i])
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(
                f"{vlm.name}: no memory for {what} ({reason}): give smaller images or shorter prompts, load with dtype='bfloat16', or use "
                "a device with more room"
            ) from error

    todo = [i for i in range(len(steps)) if i not in done]
    here = (keep(i, run(i)) for i in todo)
    computed = here if workers is None else workers.run(vlm, batches.plan, work, todo, keep)
    for i in track(range(len(steps)), what, len(steps)):
        before = checkpoints.get(steps[i]) if checkpoints is not None and i in done else None
        if before is not None:
            yield before[0]
        else:
            yield keep(i, run(i)) if i in done else next(computed)


def _name(work: Work) -> str:
    return str(getattr(work, "func", work).__name__)


def checkpoints_of(vlm: VLM, name: str, *key: Any) -> Checkpoints | None:
    """Where the model's journal keeps a piece of work.

    Args:
        vlm: The model.
        name: The name of the work.
        key: Everything else that its numbers depend on.

    Returns:
        The checkpoints; None if nothing is kept, or for a model with foreign hooks.
    """
    journal = execution_of(vlm).journal
    return None if journal is None or vlm.hooked else journal.unfinished.checkpoints(name, vlm.identity, *key)


@dataclass(frozen=True)
class SingleQuestions:
    """One question per batch: (row, question)."""

    questions: Sequence[Question]

    @property
    def plan(self) -> Callable[[VLM], SingleQuestions]:
        """Makes the same batches for the model of another process."""
        return partial(single_questions, tuple(self.questions))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question]:
        return range(len(self))[index], self.questions[index]


def single_questions(questions: Sequence[Question], vlm: VLM) -> SingleQuestions:
    """The same batches for the model of another process."""
    return SingleQuestions(questions)


@dataclass(frozen=True)
class Rows:
    """Questions in batches, each given by the rows of its questions."""

    questions: Sequence[Question]
    rows: tuple[tuple[int, ...], ...]

    @staticmethod
    def in_order(questions: Sequence[Question], batch_size: int) -> Rows:
        """Batches of `batch_size` questions in their order."""
        Q = len(questions)
        return Rows(tuple(questions), tuple(tuple(range(i, min(i + batch_size, Q))) for i in range(0, Q, batch_size)))

    @staticmethod
    def of_equal_length(vlm: VLM, questions: Sequence[Question], batch_size: int) -> Rows:
        """Batches of prompts with the same number of tokens, so that padding does not affect the numbers."""
        lengths = [vlm.encode(q)["input_ids"].shape[1] for q in questions]
        alike = [[q for q, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]
        rows = tuple(tuple(members[i : i + batch_size]) for members in alike for i in range(0, len(members), batch_size))
        return Rows(tuple(questions), rows)

    @property
    def plan(self) -> Callable[[VLM], Rows]:
        """Makes the same batches for the model of another process."""
        return partial(by_rows, self.questions, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Question]:
        return [self.questions[row] for row in self.rows[index]]

    def restore(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The values of the batches [b, ...] as one tensor per question, in the questions' order."""
        placed = dict(zip((row for rows in self.rows for row in rows), (v for batch in values for v in batch), strict=True))
        return [placed[row] for row in range(len(self.questions))]


def by_rows(questions: Sequence[Question], rows: tuple[tuple[int, ...], ...], vlm: VLM) -> Rows:
    """The same batches for the model of another process."""
    return Rows(questions, rows)
