"""How much memory is free, how much of it one call may use, and how work goes on where it ran out."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import psutil
import torch

from ..core.out_of_memory import out_of_memory
from ..data.question import Question
from ..errors import MemoryWarning, ModelError
from ..vlm.vlm import VLM
from .execution import execution_of

T = TypeVar("T")

WEIGHTS_SHARE = 1 / 16
LEAST_BYTES = 64 * 2**20
MOST_QUESTIONS = 32
"""Prompts that are read at once at most."""
GRAPH_TIMES = 8
"""A pass with gradients keeps what each layer computes, so it may take this many times as much as one without."""


class Words(NamedTuple):
    """Of a message: no memory {to} 8 {things} at once; {next} 4."""

    to: str
    things: str
    next: str


WORKING = Words("for", "questions", "continuing with")
READING = Words("to read", "prompts", "reading")


def free_memory(device: torch.device) -> int:
    """The free memory of a GPU, with what torch holds there unused and within the process's cap, or of the machine, in bytes."""
    if device.type == "cuda":
        reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        room = free + max(0, reserved - allocated)
        if torch.cuda.is_initialized() and hasattr(torch.cuda, "get_per_process_memory_fraction"):
            room = min(room, int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated)
        return max(0, room)
    return psutil.virtual_memory().available


def working_bytes(vlm: VLM) -> int:
    """How much memory one packed call, or one batch of prefixes, may use.

    This is `vlm.memory` if set. Otherwise it is at most a quarter of the free memory and a sixteenth of the weights' size (or 64
    MiB), so that a sweep needs hardly more memory than a forward pass. A resumed run uses the value of the first run, as the last
    bits of a matrix product depend on its size.

    Args:
        vlm: The model.

    Returns:
        The size in bytes.
    """
    return _budget(vlm, 1, "working bytes")


def graph_budget(vlm: VLM) -> int:
    """How much memory one micro-batch of a pass with gradients may use, in bytes: `vlm.memory`, or 8 times `working_bytes`."""
    return _budget(vlm, GRAPH_TIMES, "bytes with gradients")


def _budget(vlm: VLM, times: int, what: str) -> int:
    if vlm.memory is not None:
        return vlm.memory
    share = times * max(LEAST_BYTES, int(vlm.n_bytes * WEIGHTS_SHARE))
    journal = execution_of(vlm).journal
    measured = lambda: min(free_memory(vlm.device) // 4, share)  # noqa: E731
    return measured() if journal is None else journal.unfinished.fact(f"{what} of {vlm.name}", measured)


def prompt_bytes(vlm: VLM, tokens: int) -> int:
    """The size of the keys and values of one prompt of so many tokens, in bytes; grouped heads share theirs."""
    return 2 * vlm.n_layers * vlm.n_kv_heads * vlm.head_dim * tokens * vlm.dtype.itemsize


def prompts_at_once(vlm: VLM, tokens: int) -> int:
    """How many prompts of so many tokens are read at once. On a GPU a pass over few rows waits for its launches, so there are more."""
    budget = working_bytes(vlm) if vlm.device.type == "cpu" else graph_budget(vlm)
    one = prompt_bytes(vlm, tokens) + (0 if vlm.device.type == "cpu" else reading_bytes(vlm, tokens))
    return min(MOST_QUESTIONS, max(1, budget // one))


def reading_bytes(vlm: VLM, tokens: int) -> int:
    """What reading one prompt of so many tokens takes beside its keys and values: one layer's activations."""
    return tokens * (vlm.dtype.itemsize * (6 * vlm.d_model + 3 * _inner(vlm)) + 4 * 2 * vlm.d_model)


def graph_bytes(vlm: VLM, rows: int) -> int:
    """What a pass with gradients keeps of so many rows, in bytes: each layer's norms, heads and MLP (see `gpu.py` of the studies)."""
    width, heads = vlm.d_model, vlm.n_heads * vlm.head_dim
    return rows * vlm.n_layers * (vlm.dtype.itemsize * (8 * width + 6 * heads + 4 * _inner(vlm)) + 4 * 4 * width)


def graph_questions(vlm: VLM, rows: int) -> int:
    """How many questions of so many rows a pass with gradients runs at once behind prompts that were read."""
    return max(1, graph_budget(vlm) // graph_bytes(vlm, rows))


def micro_batch(vlm: VLM, tokens: int, rows: int, batch_size: int) -> int:
    """How many questions of a fit's batch are read and run at once.

    Args:
        vlm: The model.
        tokens: Of a prompt.
        rows: Per question: one for each fit, times the rows of the tree of choices.
        batch_size: Questions per step of the optimiser.

    Returns:
        A number from 1 to `batch_size` that divides the batch into almost equal parts.
    """
    one = prompt_bytes(vlm, tokens) + reading_bytes(vlm, tokens) + graph_bytes(vlm, rows)
    parts = math.ceil(batch_size / max(1, graph_budget(vlm) // one))
    return math.ceil(batch_size / parts)


def _inner(vlm: VLM) -> int:
    config = vlm.hf_model.config.get_text_config()
    inner = getattr(config, "intermediate_size", 0) or 0
    return max(*(inner if isinstance(inner, list | tuple) else [inner]), vlm.d_model)  # Gemma 3n names one for each layer


def release(device: torch.device) -> None:
    """Free memory that is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_halves(vlm: VLM, questions: Sequence[Question], work: Callable[[Sequence[Question]], T], words: Words = WORKING) -> list[T]:
    """The result of work(questions), or where memory runs out the results of its halves, in order.

    Args:
        vlm: The model.
        questions: The questions.
        work: What is run; it must not leave anything behind where it fails.
        words: What there was no memory for, in messages.

    Returns:
        The results.

    Raises:
        ModelError: There is not enough memory for a single question.
    """
    try:
        return [work(questions)]
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    release(vlm.device)
    n = len(questions)
    if n == 1:
        raise ModelError(
            f"{vlm.name}: no memory {words.to} question {questions[0].id}: give a smaller image or a shorter prompt ({reason})"
        )
    said = f"{vlm.name}: no memory {words.to} {n} {words.things} at once; {words.next} {n // 2} ({reason})"
    warnings.warn(said, MemoryWarning, stacklevel=5)
    return [part for half in (questions[: n // 2], questions[n // 2 :]) for part in in_halves(vlm, half, work, words)]


def in_ranges(vlm: VLM, questions: Sequence[Question], work: Callable[[int, int], T]) -> list[T]:
    """`in_halves` of work(start, stop), which are numbers of questions."""
    done = 0

    def run(part: Sequence[Question]) -> T:
        nonlocal done
        found = work(done, done + len(part))
        done += len(part)
        return found

    return in_halves(vlm, questions, run)
