"""What a model's work will take on this machine, said before it begins: memory, batches, places, and times from a measured step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from ..adapters.scale.fit import FitSettings, prompts_to_fit
from ..core.arguments import checked
from ..core.out_of_memory import out_of_memory
from ..data.items import require
from ..data.question import Question
from ..execution.memory import free_memory
from ..interventions.edit import Edit
from ..interventions.engine import choose_path
from ..interventions.packed import run_edited
from ..interventions.paths import packed_batch, reference_work, variants_at_once
from ..interventions.placement import measure_places, placement
from ..interventions.prefix import Prefix, PrefixStore, read_prefix
from ..interventions.storage import now
from ..interventions.sweep import HeadSweep
from ..models.placement import device_name
from ..vlm.vlm import VLM

FITS, MORE = 2, 8
"""Fits side by side in the two measured steps: as in the main job, all heads and MLPs and the top heads; and as in a suite."""
WAITS = {"memory": "in the device's memory", "host": "in the machine's memory", "disk": "on disk", "recompute": "read again when needed"}


@dataclass(frozen=True)
class Plan:
    """What work on some questions will take. Sizes are in bytes, times in seconds.

    Attributes:
        model, device, dtype, path: what runs where, and how edits run.
        weights, free: the size of the weights, and the memory that is free beside them.
        questions: how many questions were planned for.
        tokens: of the first question's prompt.
        heads: how many heads there are, and how many share keys and values.
        windows: sliding window in tokens -> how many layers have it.
        prompt: the keys and values of that prompt, as they were read.
        reading: prompts that are read at once.
        at_once: variants of one packed call.
        batch, micro_batch: questions per step of a fit, and how many of them are in memory at once.
        places: where prompts are kept while they are needed again -> how many.
        seconds: of one question: "reading" it, an edit of every head ("heads"), one pass of two fits ("fit"), each further fit ("row").
        steps: what each step of the job takes, where fits stop after the usual number of epochs.
    """

    model: str
    device: str
    dtype: str
    path: Literal["packed", "reference"]
    weights: int
    free: int
    questions: int
    tokens: int
    heads: tuple[int, int]
    windows: Mapping[int, int]
    prompt: int
    reading: int
    at_once: int
    batch: int
    micro_batch: int
    places: Mapping[str, int]
    seconds: Mapping[str, float]
    steps: Mapping[str, float] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self) | {"windows": {str(window): layers for window, layers in self.windows.items()}}

    def rows(self) -> list[tuple[str, str]]:
        """The plan in words: (what, how much)."""
        query, shared = self.heads
        sharing = "" if query == shared else f"; {query // shared} heads share theirs"
        sliding = "".join(f"; {layers} layers see {window} tokens" for window, layers in self.windows.items())
        out = [
            ("model", f"{self.model}, {self.dtype}, on {self.device}"),
            ("weights", f"{_size(self.weights)}, and {_size(self.free)} free beside them"),
            ("keys and values", f"{_size(self.prompt)} for a prompt of {self.tokens:,} tokens{sharing}{sliding}"),
        ]
        if self.path == "reference":
            out.append(("path", "reference: every edit runs a whole forward pass, and nothing can be fitted"))
        else:
            kept = ", ".join(f"{n:,} {WAITS[place]}" for place, n in self.places.items())
            out += [
                ("prompts", f"{self.reading} read at once; of {self.questions:,}: {kept}"),
                ("a packed call", f"{self.at_once:,} variants of each of {self.reading} questions"),
                ("a step of a fit", f"{self.batch} questions, {self.micro_batch} of them at once"),
            ]
        parts = {
            "reading": "reading it",
            "heads": "every head edited once",
            "fit": f"one pass of {FITS} fits",
            "row": "of each further fit",
        }
        out.append(("one question", ", ".join(f"{parts[name]} {_time(s)}" for name, s in self.seconds.items())))
        if self.steps:
            steps = ", ".join(f"{name} {_time(seconds)}" for name, seconds in self.steps.items())
            out.append(("expected", f"about {_time(sum(self.steps.values()))}: {steps}"))
        return out


@checked
def make_plan(vlm: VLM, questions: Sequence[Question]) -> Plan:
    """Read a few prompts, edit all heads and run one pass of a fit on them, and say what more of it takes.

    Sizes come from the functions that the work itself asks: `prompts_at_once`, `variants_at_once`, `micro_batch` and `placement`.

    Args:
        vlm: the model.
        questions: the questions of the work; a first batch of them is measured.

    Raises:
        ModelError: there is not enough memory for a single prompt.
    """
    questions = require(questions)
    with torch.no_grad():
        one = read_prefix(vlm, questions[:1])
    tokens, path = one.seen.shape[1] + 1, choose_path(vlm, questions)
    windows = [window for window in one.windows if window is not None]
    places, batch, seconds = {}, PrefixStore(vlm, questions, keep=False), {}
    reading = at_once = micro = size = 1
    if path == "packed":
        measured = measure_places(vlm, questions[0])
        places = {str(name): n for name, n in placement(vlm, measured, tokens, len(questions)).items()}
        prefix, seconds["reading"] = _timed(vlm, lambda: batch[0])
        reading = len(prefix.questions)
        seconds["reading"] /= reading
        at_once = min(variants_at_once(vlm, prefix), vlm.n_layers * vlm.n_heads)
        seconds["heads"] = _heads(vlm, prefix, at_once)
        options = FitSettings()
        store, size = prompts_to_fit(vlm, questions, FITS, options), min(options.batch_size, len(questions))
        micro = store.batch_size
        seconds["fit"], more = (_fit(vlm, store[0], fits) for fits in (FITS, MORE))
        seconds["row"] = max(0.0, (more - seconds["fit"]) / (MORE - FITS))
    else:
        _, whole = _timed(vlm, lambda: reference_work(vlm, (0, questions[0]), None, "auto"))
        seconds = {"reading": whole, "heads": whole * vlm.n_layers * vlm.n_heads}
    return Plan(
        model=vlm.name,
        device=device_name(vlm.device),
        dtype=str(vlm.dtype).removeprefix("torch."),
        path=path,
        weights=vlm.n_bytes,
        free=free_memory(vlm.device),
        questions=len(questions),
        tokens=tokens,
        heads=(vlm.n_heads, vlm.n_kv_heads),
        windows={window: windows.count(window) for window in sorted(set(windows))},
        prompt=one.nbytes,
        reading=reading,
        at_once=at_once,
        batch=size,
        micro_batch=micro,
        places=places,
        seconds=seconds,
    )


def _heads(vlm: VLM, prefix: Prefix, at_once: int) -> float:
    """Seconds of editing every head on one question, from one packed call of the usual size in the middle of the model."""
    sweep = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
    first = max(0, (len(sweep.heads) - at_once) // 2)
    part = HeadSweep(sweep.heads[first : first + at_once], vlm.n_heads, 0.0)
    with torch.no_grad():
        _, seconds = _timed(vlm, lambda: packed_batch(vlm, prefix, part))
    return seconds * len(sweep.heads) / len(part.heads) / len(prefix.questions)


def _fit(vlm: VLM, prefix: Prefix, fits: int) -> float:
    """Seconds of one forward and backward pass of fits on one question; nan where memory runs out, which a fit itself avoids."""
    scale = torch.ones(fits, vlm.n_layers, vlm.n_heads, requires_grad=True)
    mlp_scale = torch.ones(fits, vlm.n_layers, requires_grad=True)

    def one_pass() -> None:
        scores = run_edited(vlm, prefix, Edit(scale=scale, mlp_scale=mlp_scale))
        torch.autograd.grad(scores[scores.isfinite()].sum(), [scale, mlp_scale])

    try:
        return _timed(vlm, one_pass)[1] / len(prefix.questions)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return float("nan")


def _timed(vlm: VLM, work: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds of a second run, as the first one loads kernels and fills caches."""
    with vlm.alone():
        work()
        started = now(vlm.device)
        found = work()
        return found, now(vlm.device) - started


def _size(n: int) -> str:
    return next(f"{n / unit:,.1f} {name}" for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if n >= unit or unit == 1e3)


def _time(seconds: float) -> str:
    if seconds != seconds:
        return "not measured, as memory ran out"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
