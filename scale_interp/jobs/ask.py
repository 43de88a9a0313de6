"""One model asked one data set: answers scored as the set's authors score them, contrasts, head maps, and a page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from .. import viz
from ..attribution import HeadMap, ablate, patch
from ..core.arguments import Count, Raises, Seed, checked_settings
from ..core.files import write_bytes, write_json
from ..core.versions import versions
from ..data import Contrasts, Question, contrasts
from ..data.contrast import Change
from ..data.items import describe
from ..errors import DataError
from ..evaluation import Evaluation, benchmark, evaluate, evaluate_text
from ..evaluation.answers import TextEvaluation
from ..viz import Section
from ..vlm.vlm import VLM
from .folder import ModelAndQuestions, Say
from .inputs import Inputs
from .job import Job, command
from .page import run_page

SHOWN = 12
"""How many questions the page shows, wrong answers first."""


@checked_settings
@dataclass(frozen=True)
class AskSettings(Inputs):
    """What is asked.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        split, n, seed: as in `load_questions`.
        change, sweep, text: as in `ask`.
    """

    model: str
    data: str
    split: str | None = None
    n: Count | None = None
    seed: Seed = 0
    change: Annotated[Change, Raises(DataError)] = "mirror"
    sweep: Count = 40
    text: bool = False

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        settings = asdict(self)
        flags = {k: v for k, v in settings.items() if k not in ("model", "data")}
        return Job("ask", command("ask", self.model, self.data, **flags), settings, {"ask": ()})

    def asked(self) -> ModelAndQuestions:
        """The model and the questions."""
        return self.of_one_set(self.model, self.data, self.split, self.n, self.seed)


@dataclass(frozen=True)
class AskResults:
    """What was found.

    Attributes:
        answers: answers by the scores of the choices.
        table: the set's own metrics of these.
        text: answers in words, or None.
        text_table: the set's own metrics of those, or None.
        maps: method -> head map.
        pairs: contrast pairs, or None.
        no_pairs: why there are none.
    """

    answers: Evaluation
    table: pd.DataFrame
    text: TextEvaluation | None
    text_table: pd.DataFrame | None
    maps: dict[str, HeadMap]
    pairs: Contrasts | None
    no_pairs: str


def ask(vlm: VLM, questions: Sequence[Question], *, change: Change = "mirror", sweep: int = 40, text: bool = False) -> AskResults:
    """Answer the questions, score the answers, and locate heads on the first of them.

    Nothing is fitted, so no question needs to be held out.

    Args:
        vlm: the model.
        questions: the questions.
        change: how contrasts are made (see `contrasts`).
        sweep: how many questions heads are located on.
        text: whether the model also writes its answers.
    """
    answers = evaluate(vlm, questions)
    written = evaluate_text(vlm, questions) if text else None
    some, pairs, no_pairs = questions[:sweep], None, ""
    maps = {"ablate zero": ablate(vlm, some)}
    try:
        pairs = contrasts(some, change, vlm)
        maps["patch"] = patch(vlm, pairs)
    except DataError as error:
        no_pairs = str(error)
    return AskResults(answers, benchmark(answers), written, None if written is None else benchmark(written), maps, pairs, no_pairs)


def run_ask(settings: AskSettings, folder: Path, say: Say = lambda _: None) -> tuple[pd.DataFrame, list[str]]:
    """Ask in a run's folder; what is there already is read.

    Args:
        settings: what is asked.
        folder: the run's folder.
        say: called with a line about each step.

    Returns:
        The table of the set's metrics, and the findings in words.
    """

    def write(vlm: VLM, questions: Sequence[Question]) -> tuple[list[str], list[str]]:
        found = ask(vlm, questions, change=settings.change, sweep=settings.sweep, text=settings.text)
        return notes(found), write_results(found, vlm, folder, settings.job.command)

    return run_page(settings, folder, say, f"asking {settings.model} the questions of {settings.data}", "benchmark.csv", write)


def write_results(found: AskResults, vlm: VLM, folder: Path, command: str) -> list[str]:
    """Write answers.csv, benchmark.csv, the head maps, summary.json and report.html.

    Args:
        found: the results.
        vlm: the model.
        folder: where the files go.
        command: the command that repeats this.

    Returns:
        The names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "benchmark.csv", found.table.to_csv(index=False).encode())
    write_bytes(folder / "answers.csv", found.answers.to_frame().to_csv(index=False).encode())
    maps = {f"{name.replace(' ', '_')}.safetensors": head_map for name, head_map in found.maps.items()}
    for name, head_map in maps.items():
        head_map.save(folder / name)
    about = vlm.describe() | describe(found.answers.questions)
    skipped = {} if found.pairs is None else found.pairs.skipped
    summary = about | {"benchmark": found.table.to_dict("records"), "notes": notes(found), "skipped_contrasts": skipped}
    write_json(folder / "summary.json", summary | {"versions": versions()})
    sections = [
        Section("What was found", [*notes(found), found.table]),
        Section("Which heads matter", [viz.head_heatmap(head_map) for head_map in found.maps.values()]),
        Section("Some questions", _example_questions(found)),
        Section("How to reproduce", [command]),
    ]
    if found.text_table is not None:
        sections.insert(1, Section("Answers in words", [found.text_table]))
    title = f"{vlm.name} on {about['data']}"
    viz.write_report(folder / "report.html", title=title, sections=sections, meta=about | versions())
    return ["benchmark.csv", "answers.csv", *maps, "summary.json", "report.html"]


def notes(found: AskResults) -> list[str]:
    """The findings in plain words, with what they cannot mean."""
    answers = found.answers
    low, high = answers.interval()
    out = [
        f"{answers.accuracy:.1%} of {len(answers.questions)} questions right [{low:.1%}, {high:.1%}]; chance is {answers.chance:.1%}, "
        f"the best constant answer {answers.majority:.1%}."
    ]
    if answers.random_weights:
        out.insert(
            0, "This model has random weights: its accuracy and its head maps mean nothing. The page only shows that everything runs."
        )
    if found.pairs is None:
        out.append(f"No contrast pairs, so no patching: {found.no_pairs}")
    else:
        reasons = pd.Series(found.pairs.skipped, dtype=str).value_counts()
        left = "; ".join(f"{n} x {why}" for why, n in reasons.items())
        out.append(f"{len(found.pairs)} contrast pairs; {len(found.pairs.skipped)} questions without one{': ' + left if left else ''}.")
    return out


def _example_questions(found: AskResults) -> list[Any]:
    answers = found.answers
    order = sorted(range(len(answers.questions)), key=lambda i: float(answers.per_question[i]))[:SHOWN]
    return [answers.to_frame().iloc[order], *(answers.questions[i] for i in order)]
