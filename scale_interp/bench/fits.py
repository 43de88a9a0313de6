"""What many fits side by side cost against one, including reading the prompts, and whether they equal single fits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..adapters.scale.fit import Fit, fit_scales
from ..adapters.scale.scale import ScAle
from ..core.files import read_json, write_json
from ..core.progress import track
from ..core.versions import versions
from ..data.question import Question
from ..errors import EditError, FileError
from ..interventions.prefix import PrefixStore
from ..vlm.vlm import VLM
from .fit_step import measure_fit_step, seconds_of

BATCH = 8
"""Questions per step."""


@dataclass(frozen=True)
class FitsBenchmark:
    """Time of fits of all heads and MLPs with different seeds.

    Attributes:
        one: seconds of one fit, which reads the prompts (median over the repeats).
        together: seconds of all fits side by side, which read the prompts (median over the repeats).
        ratio: median over the repeats of the second by the first.
        reading: seconds that reading the prompts takes.
        largest_difference: of any scalar between a fit side by side and the same fit alone.
        step: what is in a step of one fit, as FitStep has it; nothing in older files.
    """

    fits: int
    one: float
    together: float
    ratio: float
    reading: float
    largest_difference: float
    about: dict[str, Any]
    step: dict[str, Any] = field(default_factory=dict)


def bench_fits(vlm: VLM, train: Sequence[Question], fits: int = 32, epochs: int = 10, repeats: int = 3) -> FitsBenchmark:
    """Time one fit, and many side by side, in alternation on the same questions; then do each fit alone and compare the scalars.

    No fit stops early, so all of them take all epochs. The single fits share one reading of the prompts and are not timed.

    Args:
        vlm: the model.
        train: the training questions.
        fits: how many fits run side by side, two or more.
        epochs: epochs of each fit.
        repeats: how often each is timed.

    Raises:
        EditError: fewer than two fits.
    """
    if fits < 2:
        raise EditError(f"{fits} fit(s): give at least two to run side by side")
    plan = [Fit(f"seed {seed}", seed=seed) for seed in range(fits)]

    def run(chosen: Sequence[Fit], prompts: PrefixStore | None = None) -> list[ScAle]:
        read = prompts or PrefixStore(vlm, train, BATCH)
        return fit_scales(vlm, train, chosen, prompts=read, epochs=epochs, patience=epochs, batch_size=BATCH)

    run(plan[:1])
    one, together, reading = [], [], []
    for _ in track(range(repeats), "timing fits", repeats):
        one.append(seconds_of(vlm, lambda: run(plan[:1])))
        together.append(seconds_of(vlm, lambda: run(plan)))
        reading.append(seconds_of(vlm, lambda: list(PrefixStore(vlm, train, BATCH))))
    shared = PrefixStore(vlm, train, BATCH)
    beside = run(plan, shared)
    alone = [run([fit], shared)[0] for fit in track(plan, "fits one by one", fits)]
    about = vlm.describe() | {
        "questions": len(train),
        "tokens": int(vlm.encode(train)["attention_mask"].sum(1).max()),
        "epochs": epochs,
        "repeats": repeats,
        "batch": BATCH,
        "parameters": beside[0].n_parameters,
        "moved": max(float((s.scalars - 1).abs().max()) for s in beside),
        "device": torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else vlm.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    return FitsBenchmark(
        fits,
        statistics.median(one),
        statistics.median(together),
        statistics.median(t / o for t, o in zip(together, one, strict=True)),
        statistics.median(reading),
        max(_difference(a, b) for a, b in zip(beside, alone, strict=True)),
        about,
        measure_fit_step(vlm, train[:BATCH], repeats=repeats).content(),
    )


def write_fits(path: Path, found: FitsBenchmark) -> None:
    """Write a benchmark of fits as JSON."""
    write_json(path, asdict(found))


def read_fits(path: Path) -> FitsBenchmark:
    """Read what `write_fits` wrote.

    Raises:
        FileError: the file does not hold that.
    """
    try:
        return FitsBenchmark(**read_json(path))
    except TypeError as error:
        raise FileError(f"{path} is not a benchmark of fits ({error}); measure again with `scale-interp bench --fits --out`") from error


def _difference(a: ScAle, b: ScAle) -> float:
    return max(float((a.scalars - b.scalars).abs().max()), float((a.mlp_scalars - b.mlp_scalars).abs().max()))
