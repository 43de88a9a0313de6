"""The comparison of all methods in a run's folder: questions loaded, steps run_folder, the table, its numbers and a page written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import viz
from ..core.arguments import Count, Seed, checked_settings
from ..core.files import write_json
from ..core.versions import versions
from ..data.question import Question
from ..evaluation.comparison.comparison import Comparison, compare
from ..evaluation.comparison.tuning import ORDER
from ..viz import Section
from ..vlm.vlm import VLM
from .folder import ModelAndQuestions, RunFolder, Say
from .info import FINDINGS, comparison_headline
from .inputs import Inputs, Several, usual_others
from .job import Job, command

STEPS = "steps"
"""The folder of the comparison's own steps: a set of heads, a learned method, its answers."""


@checked_settings
@dataclass(frozen=True)
class CompareSettings(Inputs):
    """What is compared.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        others: data sets that no method should change, whose test splits are asked; None for other scenes where these are scenes.
        n_train, n_validation, n_test, n_others: how many questions of each.
        top: how many heads are taken from a method that only ranks them.
        seed: of the questions and the fits.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    others: tuple[str, ...] | None = None
    n_train: Several = 400
    n_validation: Count = 200
    n_test: Count = 400
    n_others: Count = 200
    top: Count = 8
    seed: Seed = 0

    @property
    def command(self) -> str:
        """The command that repeats this comparison."""
        usual = CompareSettings()
        flags = {k: v for k, v in asdict(self).items() if k == "data" or (k != "model" and v != getattr(usual, k))}
        return command("compare", self.model, **flags)

    @property
    def job(self) -> Job:
        """The comparison as a job of its folder."""
        steps = {"compare": ("comparison.safetensors",), "report": ("comparison.json", "report.html", FINDINGS)}
        return Job("compare", self.command, asdict(self), steps)

    def asked(self) -> ModelAndQuestions:
        """The model, and the questions of each split."""
        wanted = {"train": self.n_train, "validation": self.n_validation, "test": self.n_test}
        names = self.others if self.others is not None else usual_others(self.model, self.data)
        splits: dict[str, Sequence[Question]] = {
            split: self.questions(self.data, split, n, self.seed, names) for split, n in wanted.items()
        }
        others = [q for name in names for q in self.questions(name, "test", self.n_others, self.seed, (self.data, *names))]
        return self.open_model(self.model), splits | {"others": others}


def run_comparison(settings: CompareSettings, folder: Path, say: Say = lambda _: None) -> Comparison:
    """Compare in a run's folder, and write comparison.safetensors, comparison.json and report.html.

    Steps whose results are there are not repeated.

    Args:
        settings: what is compared.
        folder: the run's folder.
        say: called with a line about each step.
    """
    run_folder = RunFolder(folder, settings.job, settings.asked, say)
    path = folder / "comparison.safetensors"
    with run_folder.working() as (vlm, asked):
        found = run_folder.run_step("compare", lambda: _compare(settings, run_folder, vlm, asked), lambda: Comparison.load(path))
        if run_folder.computed:
            run_folder.forget("report")
        run_folder.run_step("report", lambda: _report(found, settings, run_folder), lambda: None, "writing the report")
    return found


def _compare(settings: CompareSettings, run_folder: RunFolder, vlm: VLM, asked: Mapping[str, Sequence[Question]]) -> None:
    s, steps = settings, run_folder.journal.inside(STEPS)
    splits = (asked[split] for split in ("train", "validation", "test"))
    found = compare(vlm, *splits, others=asked["others"], top=s.top, seed=s.seed, journal=steps, say=run_folder.say)
    found.save(run_folder.path / "comparison.safetensors")


def _report(found: Comparison, settings: CompareSettings, run_folder: RunFolder) -> None:
    content = summary(found, settings)
    write_json(run_folder.path / "comparison.json", content)
    run_folder.write_findings(comparison_headline(content), found.findings())
    _write_page(found, settings, run_folder.path / "report.html")


def summary(found: Comparison, settings: CompareSettings) -> dict[str, Any]:
    """All numbers of a comparison as JSON values."""
    tuned = {name: dict(about) for name, about in found.tuned.items()}
    return {
        "command": settings.command,
        "settings": asdict(settings),
        "findings": found.findings(),
        "methods": _records(found.to_frame()),
        "tuned": tuned,
        "by_task": _records(found.by_task()),
        "heads": found.heads.content(),
        "overlap": _records(found.heads.overlap()),
        "left_out": dict(found.left_out),
        "provenance": dict(found.provenance),
        "versions": versions(),
    }


def figures(found: Comparison) -> dict[str, Any]:
    """The figures that have something to show, by name."""
    out = {"methods": viz.comparison(found)} if len(found.methods) > 1 else {}
    if len(found.heads.sets) > 1:
        out |= {"overlap": viz.head_overlap(found.heads), "heads": viz.head_marks(found.heads)}
    return out


def _write_page(found: Comparison, settings: CompareSettings, path: Path) -> None:
    drawn = figures(found)
    about = pd.DataFrame([{"set": n, "heads": len(h), "found by": found.heads.about.get(n, "")} for n, h in found.heads.sets.items()])
    not_made = [f"No {name} heads: {why}" for name, why in found.heads.left_out.items()]
    grids = [part for name, t in found.tuned.items() for part in (f"{name}, accuracy on the validation questions:", best_of(t["grid"]))]
    sections = [
        Section("What was found", [*found.findings(), found.shown(), *(drawn[k] for k in ("methods",) if k in drawn)]),
        Section("What it costs elsewhere", [found.by_task()] if len(found.others) else ["No other tasks were asked."]),
        Section("The heads that the methods select", [*not_made, about, *(drawn[k] for k in ("heads", "overlap") if k in drawn)]),
        Section("Overlap, pair by pair", [found.heads.overlap()]),
        Section("What was tuned", grids),
        Section("How to reproduce", [settings.command]),
    ]
    title = f"Methods on {settings.model}, {settings.data}"
    meta = {k: v for k, v in found.provenance.items() if isinstance(v, str | int)} | versions()
    viz.write_report(path, title=title, sections=sections, meta=meta)


def best_of(grid: Sequence[Any], n: int = 12) -> pd.DataFrame:
    """The n best rows of a grid, in the order in which they were tried where they are equal."""
    frame = pd.DataFrame(list(grid)).sort_values("accuracy", ascending=False, kind="stable").head(n)
    return frame[[name for name in ORDER if name in frame]]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")
