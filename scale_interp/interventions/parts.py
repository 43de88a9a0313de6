"""Questions of one batch in parts that fit in memory: what keeps a graph needs far more of it than what does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..errors import MemoryWarning, ModelError
from ..execution.batches import BatchResult
from ..execution.memory import graph_bytes, graph_questions, in_ranges, release
from ..vlm.vlm import VLM
from .paths import join
from .prefix import Prefix

T = TypeVar("T")


def in_parts(vlm: VLM, prefix: Prefix, variants: int, work: Callable[[Prefix], T], usual: int | None = None) -> Iterator[T]:
    """Run work(part) on parts of a batch, in order. If memory runs out, also in a backward pass, the part is halved, and later ones too.

    Args:
        vlm: The model.
        prefix: B prompts that were read.
        variants: How many edited copies of the last token keep a graph.
        work: What is run; it must not leave anything behind where it fails.
        usual: Questions per part as long as memory lasts; by default all.

    Returns:
        The results of the parts.

    Raises:
        ModelError: There is not enough memory for one question.
    """
    B, R = prefix.choices.tokens.shape
    rows, done = variants * R, 0
    while done < B:
        n = min(B - done, usual or B)
        if (most := vlm.measured.graph_bytes.get(vlm.memory)) is not None:
            n = max(1, min(n, most // graph_bytes(vlm, rows)))
        found, reason = _attempt(work, prefix if n == B else prefix.part(done, done + n))
        if reason:
            _halve(vlm, prefix, n, rows, reason)
            continue
        done += n
        yield found  # type: ignore[misc]


def joined_parts(vlm: VLM, prefix: Prefix, variants: int, work: Callable[[Prefix], BatchResult]) -> BatchResult:
    """The results [b, ...] of `in_parts` as one batch [B, ...]; parts are as large as a graph may be (`graph_questions`)."""
    usual = graph_questions(vlm, variants * prefix.choices.tokens.shape[1])
    found = [*in_parts(vlm, prefix, variants, work, usual)]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _attempt(work: Callable[[Prefix], T], part: Prefix) -> tuple[T | None, str]:
    """The result, or why there was no memory for it; the error itself would keep what it was computing."""
    try:
        return work(part), ""
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None, str(error).splitlines()[0]


def _halve(vlm: VLM, prefix: Prefix, n: int, rows: int, reason: str) -> None:
    release(vlm.device)
    if n == 1:
        raise ModelError(
            f"{vlm.name}: no memory for the gradients of one question of {prefix.seen.shape[1] + 1} tokens in {rows} rows: "
            f"give fewer fits, or fewer steps, at once ({reason})"
        )
    vlm.measured.graph_bytes[vlm.memory] = (n // 2) * graph_bytes(vlm, rows)
    warnings.warn(f"{vlm.name}: no memory for gradients of {n} questions; continuing with {n // 2} ({reason})", MemoryWarning, stacklevel=6)


W = TypeVar("W", bound=Callable[..., BatchResult])


def halving(work: W) -> W:
    """Work on a batch of prompts that goes on with its halves where memory runs out; results are one row per question."""

    @wraps(work)
    def run(vlm: VLM, batch: Any, **settings: Any) -> BatchResult:
        questions, part = _divisible(batch)
        found = in_ranges(vlm, questions, lambda start, stop: work(vlm, part(start, stop), **settings))
        return found[0] if len(found) == 1 else {name: _rows([one[name] for one in found]) for name in found[0]}

    return run  # type: ignore[return-value]


def _divisible(batch: Any) -> tuple[Sequence[Any], Callable[[int, int], Any]]:
    """The questions (or pairs) of a batch, and its part from one number of them to another."""
    if isinstance(batch, Prefix):
        return batch.questions, batch.part
    one, other = batch
    if isinstance(one, Prefix):
        return one.questions, lambda start, stop: (one.part(start, stop), other.part(start, stop))
    if isinstance(one, slice):
        first = one.start or 0
        return other, lambda start, stop: (slice(first + start, first + stop), other[start:stop])
    return one, lambda start, stop: (one[start:stop], other[start:stop])


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several parts; scores [b, n, C] with -inf where a part has fewer choices."""
    return join(parts) if parts[0].ndim == 3 else torch.cat([*parts])
