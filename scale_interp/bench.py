"""How much the packed sweep saves: all heads zero-ablated, once as users write it today and once packed, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data.question import Question
from .interventions.attention import attention
from .interventions.choices import read_choices
from .interventions.engine import packed_batch, variants_at_once
from .interventions.packed import edit_heads, with_copies
from .interventions.prefix import Prefix, read_prefix
from .interventions.sweep import HeadSweep
from .models.vlm import VLM
from .progress import track
from .record import versions

Contender = Callable[[], Tensor]


@dataclass(frozen=True)
class Benchmark:
    """Median seconds of each way of sweeping, the ratio to ours, and the largest difference from our scores."""

    rows: tuple[dict[str, Any], ...]
    about: dict[str, Any]

    def ratio(self, name: str) -> float:
        """How many times longer this way takes than ours."""
        return next(r["ratio"] for r in self.rows if r["way"] == name)

    @property
    def nnsight_share(self) -> float:
        """The share of our packed sweep's time that nnsight takes, against the same sweep with bare torch hooks."""
        return 1 - self.ratio(BARE)


PER_HEAD = "one nnsight trace a head"
OURS = "packed (ours)"
BARE = "packed with bare hooks"


@torch.no_grad()
def bench(vlm: VLM, questions: Sequence[Question], repeats: int = 5) -> Benchmark:
    """Sweep all heads of the model over the questions in every way, reading the prompts counted; medians over repeats."""
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    ways: dict[str, Contender] = {
        PER_HEAD: lambda: _trace_per_head(vlm, questions, sweep),
        BARE: lambda: _bare(vlm, read_prefix(vlm, questions), sweep),
        OURS: lambda: packed_batch(vlm, read_prefix(vlm, questions), sweep)[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores = {name: way() for name, way in ways.items()}
    for _ in track(range(repeats), "timing", repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    ours = statistics.median(seconds[OURS])
    rows = [
        {
            "way": name,
            "seconds": statistics.median(times),
            "ratio": statistics.median(times) / ours,
            "largest_difference": float((scores[name] - scores[OURS]).nan_to_num().abs().max()),
        }
        for name, times in seconds.items()
    ]
    tokens = int(vlm.encode(questions)["attention_mask"].sum(1).max())
    about = vlm.describe() | {
        "questions": len(questions),
        "tokens": tokens,
        "variants": sweep.n_variants,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return Benchmark(tuple(rows), about)


def _trace_per_head(vlm: VLM, questions: Sequence[Question], sweep: HeadSweep) -> Tensor:
    inputs = vlm.encode(questions)
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1])
    D, out = vlm.head_dim, []
    for number, head in sweep.heads:
        with vlm.nn.trace(**inputs, logits_to_keep=1):
            o_proj = vlm.layers[number].self_attn.o_proj
            z = o_proj.input.clone()
            z[:, -1, head * D : (head + 1) * D] = 0
            o_proj.input = z
            logits = vlm.nn.output.logits[:, -1].save()
        out.append(logits.gather(1, choices.token[..., 0]))
    return torch.stack(out, 1)


def _bare(vlm: VLM, prefix: Prefix, sweep: HeadSweep) -> Tensor:
    """The packed sweep with torch hooks in nnsight's place, in the same chunks."""
    out = [_bare_chunk(vlm, prefix, sweep, chunk) for chunk in torch.arange(sweep.n_variants).split(variants_at_once(vlm, prefix))]
    return torch.cat(out, 1)


def _bare_chunk(vlm: VLM, prefix: Prefix, sweep: HeadSweep, alive: Tensor) -> Tensor:
    starts, hooks, R = sweep.starts(vlm.n_layers)[alive], [], prefix.choices.tokens.shape[1]

    def copies(number: int) -> Callable:
        n, new = int((starts <= number).sum()), int((starts == number).sum())
        return lambda module, args, kwargs: with_copies((args, kwargs), R, n, new) if new or (n and R > 1) else None

    def edits(number: int) -> Callable:
        n = int((starts <= number).sum())
        part = sweep.at(number, alive[:n], starts[:n], prefix.rows) if n else None
        return lambda module, args: None if part is None else (edit_heads(args[0], part, vlm.n_heads, R, sweep.scope),)

    layers: Sequence[nn.Module] = vlm.decoder.layers
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(copies(number), with_kwargs=True))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(edits(number)))  # type: ignore[union-attr, operator]
    try:
        with attention(vlm.decoder):
            hidden = vlm.decoder(**prefix.inputs()).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))[:, 1:]
