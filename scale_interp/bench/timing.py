"""All ways of sweeping over the heads timed on the same questions, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor

from ..data.question import Question
from ..errors import DataError, ModelError
from ..interventions.choices import choice_sequences
from ..interventions.sweep import HeadSweep
from ..models.vlm import VLM
from ..progress import track
from ..record import versions
from .result import BRIDGE, OURS, Benchmark, Memory, Row
from .ways import Way, ways

BUDGET = 60.0
"""Seconds that a sweep of one run a head may take; a longer one is timed on a sample of heads."""


@torch.no_grad()
def bench(vlm: VLM, questions: Sequence[Question], repeats: int = 5, sample: int = 32, memory: Memory | None = None) -> Benchmark:
    """Sweep all heads of the model over the questions in every way, reading the prompts counted; medians over repeats.

    sample: how many heads, spread over the layers, stand for all where one run a head exceeds the BUDGET; 0: all are
    timed. memory: peaks measured beside it, kept with the result. Raises ModelError for a model whose prompts attend in
    both directions, DataError for choices of several tokens.
    """
    if vlm.quirks.bidirectional:
        raise ModelError(
            f"{vlm.name}: its prompts attend in both directions, where no way with a cache computes the same; take another model"
        )
    if any(len(ids) > 1 for q in questions for ids in choice_sequences(vlm, q)):
        raise DataError(f"{vlm.name} reads some choices as several tokens; the benchmark compares choices of one token")
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    run, left_out = ways(vlm, questions)
    heads = {name: _warm_up(vlm, way, sweep, sample) for name, way in run.items()}
    seconds: dict[str, list[float]] = {name: [] for name in run}
    scores: dict[str, Tensor | None] = {}
    for _ in track(range(repeats), "timing", repeats):
        for name, way in run.items():
            took, scores[name] = _clock(vlm, way, _part(sweep, heads[name]))
            seconds[name].append(took * sweep.n_variants / len(heads[name]))
    ours, expected = statistics.median(seconds[OURS]), scores[OURS]
    assert expected is not None
    rows = []
    for name, times in seconds.items():
        found = scores[name]
        difference = None if found is None else float((found - expected[:, heads[name]]).nan_to_num().abs().max())
        median = statistics.median(times)
        rows.append(Row(name, median, median / ours, len(heads[name]), difference))
    about = vlm.describe() | {
        "questions": len(questions),
        "tokens": int(vlm.encode(questions)["attention_mask"].sum(1).max()),
        "variants": sweep.n_variants,
        "repeats": repeats,
        "device": torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else vlm.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions() | ({} if BRIDGE in left_out else {"transformer-lens": version("transformer-lens")}),
    }
    return Benchmark(tuple(rows), about, left_out, memory)


def _warm_up(vlm: VLM, way: Way, sweep: HeadSweep, sample: int) -> list[int]:
    """Run a way once untimed, or on two heads where it is one run a head; which heads to time."""
    N = sweep.n_variants
    if not way.by_head:
        way.run(sweep)
        return list(range(N))
    way.run(_part(sweep, [0]))
    took, _ = _clock(vlm, way, _part(sweep, [N - 1]))
    if sample == 0 or sample >= N or took * N <= BUDGET:
        return list(range(N))
    return torch.linspace(0, N - 1, sample).round().long().tolist()


def _part(sweep: HeadSweep, heads: Sequence[int]) -> HeadSweep:
    return replace(sweep, heads=tuple(sweep.heads[i] for i in heads))


def _clock(vlm: VLM, way: Way, sweep: HeadSweep) -> tuple[float, Tensor | None]:
    _wait(vlm)
    started = time.perf_counter()
    scores = way.run(sweep)
    _wait(vlm)
    return time.perf_counter() - started, scores


def _wait(vlm: VLM) -> None:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
