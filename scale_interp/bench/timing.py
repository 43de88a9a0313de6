"""All ways of sweeping over the heads, timed in alternation on the same questions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor

from ..core.progress import track
from ..core.versions import versions
from ..data.question import Question
from ..errors import DataError, ModelError
from ..interventions.choices import choice_sequences
from ..interventions.storage import now
from ..interventions.sweep import HeadSweep
from ..vlm.vlm import VLM
from .result import BRIDGE, OURS, Benchmark, Memory, Row
from .ways import Way, ways

BUDGET = 60.0
"""Seconds that a sweep may take in every repeat. Above it, one run per head is timed on a sample of heads, and other ways once."""


@torch.no_grad()
def bench(vlm: VLM, questions: Sequence[Question], repeats: int = 5, sample: int = 32, memory: Memory | None = None) -> Benchmark:
    """Sweep all heads of the model over the questions in every way, including reading the prompts; medians over repeats.

    Each repeat times every way, starting with a different one, and a ratio is the median of the repeats' own ratios, so that a machine that
    is slow for a while slows all ways.

    Args:
        vlm: the model.
        questions: the questions, with choices of one token.
        repeats: how often each way is timed.
        sample: how many heads, spread over layers and repeats, are timed where one run per head exceeds the BUDGET; 0: all.
        memory: peaks that were measured separately, stored with the result.

    Raises:
        ModelError: the model's prompts attend in both directions.
        DataError: a choice has several tokens.
    """
    if vlm.quirks.bidirectional:
        raise ModelError(
            f"{vlm.name}: its prompts attend in both directions, so no way with a cache computes the same; take a causal model"
        )
    if any(len(ids) > 1 for q in questions for ids in choice_sequences(vlm, q)):
        raise DataError(f"{vlm.name} reads some choices as several tokens; the benchmark compares choices of one token")
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    run, left_out = ways(vlm, questions)
    expected = run[OURS].run(sweep)
    assert expected is not None
    every = list(range(sweep.n_variants))
    plans: dict[str, dict[int, list[int]]] = {}
    seconds: dict[str, dict[int, float]] = {name: {} for name in run}
    away: dict[str, list[float]] = {name: [] for name in run}

    def measure(name: str, heads: list[int], repeat: int) -> None:
        took, scores = _clock(vlm, run[name], _part(sweep, heads))
        seconds[name][repeat] = took * len(every) / len(heads)
        away[name] = [] if scores is None else [*away[name], float((scores - expected[:, heads]).nan_to_num().abs().max())]

    for name, way in run.items():
        if way.by_head:
            plans[name] = _plan(vlm, way, sweep, repeats, sample)
            continue
        measure(name, every, 0)
        # The first run is a warm-up, but one that takes minutes is not repeated.
        plans[name] = {repeat: every for repeat in range(repeats)} if seconds[name][0] <= BUDGET else {}
    for repeat in track(range(repeats), "timing", repeats):
        names = list(run)[repeat % len(run) :] + list(run)[: repeat % len(run)]
        for name in names:
            if repeat in plans[name]:
                measure(name, plans[name][repeat], repeat)
    ours = seconds[OURS]
    usual = statistics.median(ours.values())
    rows = []
    for name, times in seconds.items():
        timed = {head for heads in plans[name].values() for head in heads} or every
        ratio = statistics.median(times[r] / (ours[r] if len(times) == len(ours) else usual) for r in times)
        rows.append(Row(name, statistics.median(times.values()), ratio, len(timed), len(times), max(away[name], default=None)))
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


def _plan(vlm: VLM, way: Way, sweep: HeadSweep, repeats: int, sample: int) -> dict[int, list[int]]:
    """Which heads to time in which repeat, after one untimed run per head on two heads."""
    every = list(range(sweep.n_variants))
    way.run(_part(sweep, [0]))
    took, _ = _clock(vlm, way, _part(sweep, [every[-1]]))
    if sample == 0 or sample >= len(every) or took * len(every) <= BUDGET:
        return {repeat: every for repeat in range(repeats)}
    spread = torch.linspace(0, len(every) - 1, max(sample, repeats)).round().long().tolist()
    return {repeat: spread[repeat::repeats] for repeat in range(repeats)}


def _part(sweep: HeadSweep, heads: Sequence[int]) -> HeadSweep:
    return replace(sweep, heads=tuple(sweep.heads[i] for i in heads))


def _clock(vlm: VLM, way: Way, sweep: HeadSweep) -> tuple[float, Tensor | None]:
    started = now(vlm.device)
    scores = way.run(sweep)
    return now(vlm.device) - started, scores
