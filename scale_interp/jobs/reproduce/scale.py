"""ScAle's experiment in a run's folder: its code's task, split, prompt and recipe, beside the paper's row, and what they leave out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from ... import viz
from ...adapters.scale.scale import ScAle
from ...adapters.scale.trajectory import Trajectory
from ...core.files import write_bytes, write_json
from ...core.versions import versions
from ...data.load import load_questions
from ...data.scale_protocol import TASKS
from ...errors import DataError
from ...evaluation.accuracy import RANDOM_WEIGHTS
from ...evaluation.reproduction.scale import PARTS, ScaleFits, ScaleRun, answer_epochs, fit_parts, paper_row
from ...viz import Section
from ...vlm.named_prompts import prompt_template
from ..folder import ModelAndQuestions, RunFolder, Say
from ..info import FINDINGS
from ..inputs import Inputs
from ..job import Job, command

KINDS = ("released", "held_out")
FILES = ("scale.safetensors", "scale_config.json", "epochs.safetensors")
"""What a fit's folder contains."""


@dataclass(frozen=True)
class ScaleSettings(Inputs):
    """What is repeated.

    Attributes:
        model: a name that `si.load` takes.
        task: "map", "maze" or "grid".
        seed: of the release's split; its own are 0, 1 and 2.
        data: the set; None for spatialeval/vqa/TASK. "generated/vqa/TASK" needs no files.
        n: how many generated questions are split; of a set on disk, the first so many of each part.
        n_train, n_test: the first so many of each part, for a quick look; None for all.
        epochs: passes over the training questions.
        prompt: as in `si.load`; None for the release's, "scale-llava" on LLaVA and "scale-qwen" elsewhere.
    """

    model: str
    task: str = "map"
    seed: int = 0
    data: str | None = None
    n: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    epochs: int = 10

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise DataError(f"task {self.task!r}: ScAle's code trains on {', '.join(TASKS)}; give one of these")
        asked = self.asks.rpartition("/")[2]
        if asked in TASKS and asked != self.task:
            raise DataError(f"data {self.data!r} is of task {asked!r}, not {self.task!r}: give task={asked!r} too")
        for name in ("n", "n_train", "n_test", "epochs"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise DataError(f"{name}={given}: give at least 1")

    @property
    def asks(self) -> str:
        """The name of the set."""
        return self.data or f"spatialeval/vqa/{self.task}"

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        given = asdict(self)
        flags = {k: v for k, v in given.items() if k != "model"}
        fitted = tuple(f"{kind}/{part}/{file}" for kind in KINDS for part in PARTS for file in FILES)
        steps = {"fit": fitted, "answer": ("answers.safetensors",), "report": ("epochs.csv", "summary.json", "report.html", FINDINGS)}
        return Job("reproduce scale", command("reproduce", "scale", self.model, **flags), given | {"data": self.asks}, steps)

    def asked(self) -> ModelAndQuestions:
        """The model as the release asks it, and the questions of both parts in the release's order."""
        train, test = (load_questions(self.asks, part, self.n, self.seed, root=self.root, protocol="scale") for part in ("train", "test"))
        vlm = self.open_model(self.model)
        if self.prompt is None and vlm.family.startswith("llava"):
            vlm = vlm.with_prompt(prompt_template("scale-llava"))
        vlm.choice_space = "apart"
        return vlm, {"train": train[: self.n_train], "test": test[: self.n_test]}


def run_scale(settings: ScaleSettings, folder: Path, say: Say = lambda _: None) -> ScaleRun:
    """Repeat the experiment in a run's folder; what is there already is read.

    Args:
        settings: what is repeated.
        folder: the run's folder.
        say: called with a line about each step.
    """
    run_folder = RunFolder(folder, settings.job, settings.asked, say)
    with run_folder.working() as (vlm, asked):
        train, test = asked["train"], asked["test"]

        def fit() -> None:
            found = fit_parts(vlm, train, settings.epochs, settings.seed)
            for kind in KINDS:
                for part, scale in getattr(found, kind).items():
                    scale.save_pretrained(folder / kind / part)
                    scale.trajectory.save(folder / kind / part / "epochs.safetensors")

        says = f"fitting heads, MLPs and both on {len(train):,} questions, {settings.epochs} epochs, as released and with held-out images"
        fits = run_folder.run_step("fit", fit, lambda: _fits_in(folder), says)
        path = folder / "answers.safetensors"
        says = f"answering {len(test):,} test questions with the scalars of every epoch"
        found = run_folder.run_step("answer", lambda: answer_epochs(vlm, train, test, fits).save(path), lambda: ScaleRun.load(path), says)
        if run_folder.computed:
            run_folder.forget("report")
        run_folder.run_step("report", lambda: _report(found, settings, run_folder), lambda: None, "writing the report")
    return found


def _fits_in(folder: Path) -> ScaleFits:
    def read(place: Path) -> ScAle:
        return replace(ScAle.from_pretrained(place), trajectory=Trajectory.load(place / "epochs.safetensors"))

    return ScaleFits(*({part: read(folder / kind / part) for part in PARTS} for kind in KINDS))


def findings(found: ScaleRun, settings: ScaleSettings) -> list[str]:
    """The findings in plain words, random weights and the paper's other data named first."""
    out = found.findings(settings.model, settings.task)
    if settings.asks != f"spatialeval/vqa/{settings.task}":
        out.insert(1, f"The questions are {settings.asks}, not the paper's: its numbers are no measure of these.")
    if found.provenance.get("weights") == RANDOM_WEIGHTS:
        out.insert(0, "This model has random weights: its accuracies mean nothing. The page only shows that everything runs.")
    return out


def rows_beside_paper(found: ScaleRun, settings: ScaleSettings) -> pd.DataFrame:
    """The release's numbers, and the paper's row below them where it has one."""
    rows = found.to_frame().set_index("part")
    table = [{"": "here", "frozen": rows["base"].iloc[0], **{part: rows.loc[part, "last"] for part in PARTS}}]
    if (paper := paper_row(settings.model, settings.task)) is not None:
        table.append({"": "paper", "frozen": paper["base"], **{part: paper[part] for part in PARTS}})
    return pd.DataFrame(table)


def _report(found: ScaleRun, settings: ScaleSettings, run_folder: RunFolder) -> None:
    folder, job = run_folder.path, settings.job
    epochs, said = found.epochs_frame(), findings(found, settings)
    write_bytes(folder / "epochs.csv", epochs.to_csv(index=False).encode())
    summary = {
        "command": job.command,
        "settings": dict(job.settings),
        "findings": said,
        "rows": found.to_frame().to_dict("records"),
        "paper": paper_row(settings.model, settings.task),
        "trained_images": {"questions": int(found.trained.sum()), "share": float(found.trained.double().mean())},
        "provenance": dict(found.provenance),
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    run_folder.write_findings(said[0], said[1:])
    sections = [
        Section("What was found", [*said, rows_beside_paper(found, settings), found.to_frame()]),
        Section("Epoch by epoch", [lambda dark: viz.epoch_accuracy(epochs, dark=dark), epochs]),
        Section("How to reproduce", [job.command]),
    ]
    meta = {k: v for k, v in found.provenance.items() if isinstance(v, str | int)} | versions()
    viz.write_report(folder / "report.html", title=f"ScAle as released: {settings.model}, {settings.asks}", sections=sections, meta=meta)
