"""The benchmark from the command line: one model or the usual shapes, in a run's folder where one is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from ..bench import Benchmark, bench, read_benchmarks, write_benchmarks
from ..bench.fits import FitsBenchmark, bench_fits, read_fits, write_fits
from ..bench.memory import DATA, measure_memory
from ..bench.realistic import SHAPES, open_model
from ..core.arguments import AtLeast, Count, checked_settings
from ..data.load import load_questions
from .folder import RunFolder, Say
from .info import FINDINGS
from .job import Job, command


@checked_settings
@dataclass(frozen=True)
class BenchSettings:
    """What is timed, as the command's options say.

    Attributes:
        model: a name that `open_model` takes; None for the usual shapes, with their peak memory.
        questions: how many are in the batch; None for the default.
        repeats: timings of each way.
        sample: how many heads are timed where one run per head takes too long; 0 for all.
        memory: whether peak memory is measured.
        fits: whether fits are timed instead of sweeps.
        device, dtype: where and in which precision the model runs.
    """

    model: str | None = None
    questions: Count | None = None
    repeats: Count = 5
    sample: Annotated[int, AtLeast(0)] = 32
    memory: bool = False
    fits: bool = False
    device: str | None = None
    dtype: str | None = None

    @property
    def job(self) -> Job:
        """The benchmark as a job of its folder."""
        flags = {k: v for k, v in asdict(self).items() if k != "model"}
        files = ("fits.json" if self.fits else "bench.json", FINDINGS)
        again = command("bench", *filter(None, [self.model]), **flags)
        return Job("bench", again, asdict(self), {"bench": files}, timed=True)


def time_sweeps(settings: BenchSettings, show: Callable[[Benchmark], None] = lambda _: None) -> list[Benchmark]:
    """Time the sweep on each model.

    Args:
        settings: what is timed.
        show: called with each benchmark as soon as it is measured.
    """
    s = settings
    n = s.questions or (8 if s.model else 1)
    asked, found = load_questions(DATA, n=n), []
    for name in (s.model,) if s.model else SHAPES:
        taken = measure_memory(name, n, s.device, s.dtype) if s.memory or s.model is None else None
        found.append(bench(open_model(name, s.device, s.dtype), asked, s.repeats, s.sample, taken))
        show(found[-1])
    return found


def time_fits(settings: BenchSettings) -> FitsBenchmark:
    """Time many fits side by side against one."""
    s = settings
    train = load_questions(DATA, "train", n=s.questions or 16)
    return bench_fits(open_model(s.model or SHAPES[0], s.device, s.dtype), train, repeats=s.repeats)


def run_sweeps(settings: BenchSettings, folder: Path, say: Say, show: Callable[[Benchmark], None]) -> list[Benchmark]:
    """Time sweeps in a run's folder: bench.json, measured or, where it is there already, read.

    Args:
        settings: what is timed.
        folder: the run's folder.
        say: called with a line about the step.
        show: called with each benchmark.
    """
    path = folder / "bench.json"

    def make() -> None:
        found = time_sweeps(settings)
        write_benchmarks(path, found)
        run_folder.write_findings("; ".join(f"{b.about['model']}: {b.over_limit:.2f} of the limit's time" for b in found), [])

    run_folder = RunFolder(folder, settings.job, lambda: (None, {}), say)
    with run_folder.working():
        found = run_folder.run_step("bench", make, lambda: read_benchmarks(path), "timing sweeps over all heads")
    for benchmark in found:
        show(benchmark)
    return found


def run_fits(settings: BenchSettings, folder: Path, say: Say) -> FitsBenchmark:
    """Time fits in a run's folder: fits.json, measured or, where it is there already, read."""
    path = folder / "fits.json"

    def make() -> None:
        found = time_fits(settings)
        write_fits(path, found)
        run_folder.write_findings(f"{found.fits} fits side by side take {found.ratio:.2f} times one", [])

    run_folder = RunFolder(folder, settings.job, lambda: (None, {}), say)
    with run_folder.working():
        return run_folder.run_step("bench", make, lambda: read_fits(path), "timing fits side by side")
