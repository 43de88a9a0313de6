"""A command of one step that writes a page: it shows a table and findings, and reads them where the folder has them already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from ..core.files import read_json
from ..data.question import Question
from ..evaluation.accuracy import RANDOM
from ..vlm.vlm import VLM
from .folder import ModelAndQuestions, RunFolder, Say
from .job import Job

SUMMARY = "summary.json"
"""Has the findings in words as "notes"."""
Write = Callable[[VLM, Sequence[Question]], tuple[list[str], list[str]]]


def without_meaning(model: str) -> list[str]:
    """A note that a page's numbers mean nothing, for a model of random weights; empty for others."""
    said = "This model has random weights: none of these numbers means anything. The page only shows that everything runs."
    return [said] if model.startswith(RANDOM) else []


class PageSettings(Protocol):
    """What the page is about."""

    @property
    def job(self) -> Job: ...
    def asked(self) -> ModelAndQuestions: ...


def run_page(settings: PageSettings, folder: Path, say: Say, message: str, table: str, write: Write) -> tuple[pd.DataFrame, list[str]]:
    """Write a page in a run's folder; what is there already is read.

    Args:
        settings: The job, whose one step has its kind's name, and its model and questions.
        folder: The run's folder.
        say: Called with a line about the step.
        message: That line.
        table: The file that has the table.
        write: Writes the files, and returns the findings in words and the names of the files.

    Returns:
        The table, and the findings.
    """

    def make() -> list[str]:
        (first, *others), files = write(vlm, asked["all"])
        return [*files, run_folder.write_findings(first, others)]

    def load() -> tuple[pd.DataFrame, list[str]]:
        return pd.read_csv(folder / table), read_json(folder / SUMMARY)["notes"]

    run_folder = RunFolder(folder, settings.job, settings.asked, say)
    with run_folder.working() as (vlm, asked):
        return run_folder.run_step(settings.job.kind, make, load, message)
