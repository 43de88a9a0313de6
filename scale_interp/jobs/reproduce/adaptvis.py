"""AdaptVis' experiment in a run's folder: its code's prompts, draw, layers, scoring and generation, beside the paper's row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from ... import viz
from ...core.files import write_bytes, write_json
from ...core.versions import versions
from ...errors import DataError
from ...evaluation.accuracy import RANDOM_WEIGHTS
from ...evaluation.reproduction.adaptvis import NEW_TOKENS, PROMPT, AdaptVisRun, adaptvis_questions, paper_row, run_adaptvis
from ...viz import Section
from ..folder import ModelAndQuestions, RunFolder, Say
from ..info import FINDINGS
from ..inputs import Inputs
from ..job import Job, command


@dataclass(frozen=True)
class AdaptVisSettings(Inputs):
    """What is repeated.

    Attributes:
        model: a name that `si.load` takes.
        data: one of the paper's sets, such as "whatsup/controlled_a".
        seed: draws the fifth of the questions that settings are tuned on; the release's is 1.
        n: the first n questions, for a quick look; None for all.
        prompts: the authors' file of prompts for this set, or the folder that contains it; None for our own words in the same form.
        max_new_tokens: the longest answer, in tokens.
        prompt: as in `si.load`; None for the release's.
    """

    model: str
    data: str = "whatsup/controlled_a"
    seed: int = 1
    n: int | None = None
    prompts: str | None = None
    max_new_tokens: int = NEW_TOKENS

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise DataError(f"{name}={given}: give at least 1")

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        flags = {k: v for k, v in asdict(self).items() if k != "model"}
        steps = {"answer": ("answers.safetensors",), "report": ("grid.csv", "summary.json", "report.html", FINDINGS)}
        return Job("reproduce adaptvis", command("reproduce", "adaptvis", self.model, **flags), asdict(self), steps)

    def asked(self) -> ModelAndQuestions:
        """The model as the release asks it, and the questions."""
        asked = adaptvis_questions(self.data, self.root, self.prompts, self.n)
        vlm = replace(self, prompt=self.prompt or PROMPT).open_model(self.model)
        vlm.choice_space = "with"  # words are generated, so it matters to nothing, and nobody need be warned of it
        return vlm, {"all": asked}


def repeat_adaptvis(settings: AdaptVisSettings, folder: Path, say: Say = lambda _: None) -> AdaptVisRun:
    """Repeat the experiment in a run's folder; what is there already is read.

    Args:
        settings: what is repeated.
        folder: the run's folder.
        say: called with a line about each step.
    """
    run_folder = RunFolder(folder, settings.job, settings.asked, say)
    path = folder / "answers.safetensors"
    with run_folder.working() as (vlm, asked):
        says = f"answering {len(asked['all']):,} questions of {settings.data} under each weight"

        def answer() -> None:
            run_adaptvis(vlm, asked["all"], settings.seed, settings.max_new_tokens).save(path)

        found = run_folder.run_step("answer", answer, lambda: AdaptVisRun.load(path), says)
        if run_folder.computed:
            run_folder.forget("report")
        run_folder.run_step("report", lambda: _report(found, settings, run_folder), lambda: None, "writing the report")
    return found


def findings(found: AdaptVisRun, settings: AdaptVisSettings) -> list[str]:
    """The findings in plain words, random weights and other words than the authors' named first."""
    out = found.findings(settings.model, settings.data)
    if settings.prompts is None:
        out.insert(
            1,
            "Asked in our own words in the release's form, as its prompts carry no licence; --prompts takes the authors' file.",
        )
    if found.provenance.get("weights") == RANDOM_WEIGHTS:
        out.insert(0, "This model has random weights: its accuracies mean nothing. The page only shows that everything runs.")
    return out


def rows_beside_paper(found: AdaptVisRun, settings: AdaptVisSettings) -> pd.DataFrame:
    """One row per method: the setting, the accuracy as released, strictly scored, and the paper's."""
    paper = paper_row(settings.model, settings.data)
    rows = found.to_frame()
    return rows if paper is None else rows.assign(paper=[paper[name] for name in rows["method"]])


def _report(found: AdaptVisRun, settings: AdaptVisSettings, run_folder: RunFolder) -> None:
    folder, job = run_folder.path, settings.job
    grid, said, rows = found.grid(), findings(found, settings), rows_beside_paper(found, settings)
    write_bytes(folder / "grid.csv", grid.to_csv(index=False).encode())
    summary = {
        "command": job.command,
        "settings": dict(job.settings),
        "findings": said,
        "rows": rows.to_dict("records"),
        "grid": grid.to_dict("records"),
        "provenance": dict(found.provenance),
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    run_folder.write_findings(said[0], said[1:])
    sections = [
        Section("What was found", [*said, rows]),
        Section("Every setting", ["Tuned on a fifth of the questions, tested on the others.", grid]),
        Section("How to reproduce", [job.command]),
    ]
    meta = {k: v for k, v in found.provenance.items() if isinstance(v, str | int)} | versions()
    viz.write_report(folder / "report.html", title=f"AdaptVis as released: {settings.model}, {settings.data}", sections=sections, meta=meta)
