"""Two finished runs side by side: settings, answers, verdicts, head maps and scalars, read from their folders. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import viz
from ..adapters.scale.scale import ScAle
from ..attribution import HeadMap
from ..core import statistics
from ..core.files import read_json
from ..core.manifest import DAMAGED, MISSING
from ..core.tensors import expect, read_tensors
from ..errors import DataError, FileError
from ..evaluation import Evaluation, Falsification, HeadSets
from ..interventions.edit import Head
from ..viz import Section
from ..viz.runs import Rows
from .info import read_run
from .run.page import FITS
from .run.run import MAPS, SCORES, Run

FIT_NAMES = {"base": "base"} | FITS
ROUNDING = 1e-6
"""A saved accuracy may differ by this much from that of the saved scores on the same questions."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run's folder holds.

    Attributes:
        name: how the run is called in tables.
        folder: where it is.
        about: settings, model, data, versions and machine.
        summary: its headline numbers.
        maps: attribution method -> head map.
        scales: fit -> scalars.
        suites: fit -> falsification.
        answers: fit -> answers to the test questions; empty where the questions cannot be loaded as they were.
        no_answers: why they cannot.
        command: the command that repeats it.
    """

    name: str
    folder: Path
    about: Mapping[str, Any]
    summary: Mapping[str, Any]
    maps: Mapping[str, HeadMap]
    scales: Mapping[str, ScAle]
    suites: Mapping[str, Falsification]
    answers: Mapping[str, Evaluation]
    no_answers: str
    command: str

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers and of heads per layer."""
        L, H = next(iter(self.maps.values())).scores.shape
        return L, H

    @property
    def top(self) -> list[Head]:
        """The heads that were fitted on."""
        return [(layer, head) for layer, head in self.summary["top_heads"]]


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """Two runs, and tables of how they differ.

    Attributes:
        runs: the two runs.
        settings: one row per setting, version or hash that differs.
        answers: one row per fit: accuracies, gains, and, where both runs answered the same questions, the second's minus the first's,
            paired, with p Holm-corrected over the fits.
        verdicts: one row per suite.
        agreement: one row per map, and two for the scalars: rank correlation, and how many top heads are shared, with the p-value of
            as many by chance.
        questions: how many test questions both runs answered.
        left_out: what could not be compared -> why.
    """

    runs: tuple[FinishedRun, FinishedRun]
    settings: pd.DataFrame
    answers: pd.DataFrame
    verdicts: pd.DataFrame
    agreement: pd.DataFrame
    questions: int
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ComparedRuns {' and '.join(run.name for run in self.runs)}: {len(self.settings)} settings differ>"

    @property
    def notes(self) -> list[str]:
        """What the tables are based on, and what they lack."""
        a, b = (run.name for run in self.runs)
        out = [f"{b} minus {a} is of the {self.questions} test questions that both answered, paired."] if self.questions else []
        return out + [f"Left out: {what}: {why}" for what, why in self.left_out.items()]


def compare_runs(a: str | Path, b: str | Path) -> ComparedRuns:
    """Compare the finished runs in two folders.

    What cannot be compared (maps of models of different shape, answers to different questions) is left out and named.

    Args:
        a: the folder of the first run.
        b: the folder of the second.

    Raises:
        FileError: a folder holds no run, an unfinished one, or a damaged result, or both are the same.
    """
    folders = Path(a), Path(b)
    if folders[0].resolve() == folders[1].resolve():
        raise FileError(f"{a} and {b} are one folder: name two runs")
    names = [folder.resolve().name for folder in folders]
    if names[0] == names[1]:
        names = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    one, two = (read_finished(folder, name) for folder, name in zip(folders, names, strict=True))
    left_out: dict[str, str] = {}
    pairs = _answered_by_both(one, two, left_out)
    agreement = _agreement(one, two, left_out)
    Q = len(pairs["base"][0].questions) if pairs else 0
    return ComparedRuns((one, two), _settings(one, two), _answers(one, two, pairs), _verdicts(one, two), agreement, Q, left_out)


def read_finished(folder: Path, name: str = "") -> FinishedRun:
    """Read the results of a finished run.

    Args:
        folder: the run's folder.
        name: how the run is called in tables; by default as its folder.

    Raises:
        FileError: the folder holds no finished run, or a damaged result.
    """
    info = read_run(folder)
    run = Run.existing(folder)
    remedy = f"`scale-interp report {folder}`"
    if not (folder / "summary.json").exists():
        raise FileError(f"{folder} holds a run that is not finished: {remedy} finishes it")
    for file in info.files:
        if file.state() in (DAMAGED, MISSING):
            raise FileError(f"{folder / file.name} is {file.state()}: {remedy} computes it again")
    summary = read_json(folder / "summary.json")
    maps = {method: HeadMap.load(folder / "head_maps" / f"{method}.safetensors") for method in run.maps}
    scales = {fit: ScAle.from_pretrained(folder / place) for fit, place in run.places.items()}
    suites = {fit: Falsification.load(folder / f"falsification_{fit}.json") for fit in ("all", "top")}
    try:
        _ = summary["base"]["accuracy"], summary["top_heads"], [summary["fits"][fit]["gain"] for fit in scales]
    except (KeyError, TypeError) as error:
        raise FileError(f"{folder / 'summary.json'} lacks {error}: {remedy} writes it again") from error
    recorded = info.about.get("data", {}).get("test", {}).get("content_hash", "")
    answers, why = _saved_answers(run, summary, recorded)
    return FinishedRun(
        name or folder.name, folder, info.about, summary, maps, scales, suites, answers, why, info.command or run.settings.job.command
    )


def _saved_answers(run: Run, summary: Mapping[str, Any], recorded: str) -> tuple[dict[str, Evaluation], str]:
    """The answers, if the questions are still those that were answered, or why they are not; recorded: the hash of those ("" if none)."""
    path = run.folder / "scores.safetensors"
    tensors, _ = read_tensors(path, SCORES)
    try:
        questions = run.test
        same = not recorded or run.settings.job.content(None, {"test": questions})["data"]["test"]["content_hash"] == recorded
    except (DataError, FileError) as error:
        return {}, f"the questions of {run.folder} cannot be loaded ({error})"
    found = {fit: expect(path, tensors, f"asked/{fit}", 2) for fit in ("base", *run.places)}
    if same and all(len(scores) == len(questions) for scores in found.values()):
        answers = {fit: Evaluation(questions, scores) for fit, scores in found.items()}
        saved = {"base": summary["base"]} | summary["fits"]
        if all(abs(answers[fit].accuracy - saved[fit]["accuracy"]) < ROUNDING for fit in answers):
            return answers, ""
    return {}, f"the questions of {run.settings.data} are no longer those that {run.folder} answered"


def _answered_by_both(a: FinishedRun, b: FinishedRun, left_out: dict[str, str]) -> dict[str, tuple[Evaluation, Evaluation]]:
    """Fit -> both runs' answers to the questions that they share, in the same order."""
    what = "paired differences"
    for run in (a, b):
        if run.no_answers:
            left_out[what] = run.no_answers
            return {}
    known = {q.id: i for i, q in enumerate(b.answers["base"].questions)}
    rows = [(i, known[q.id]) for i, q in enumerate(a.answers["base"].questions) if q.id in known]
    theirs = b.answers["base"].questions
    rows = [(i, j) for i, j in rows if (q := a.answers["base"].questions[i]) == theirs[j] and q.picture_digest == theirs[j].picture_digest]
    if len(rows) < 2:
        left_out[what] = f"the two runs share {len(rows)} test questions"
        return {}
    members = [list(side) for side in zip(*rows, strict=True)]
    out: dict[str, tuple[Evaluation, Evaluation]] = {}
    for fit in (fit for fit in a.answers if fit in b.answers):
        mine, yours = (_chosen(run.answers[fit], own) for run, own in zip((a, b), members, strict=True))
        out[fit] = mine, yours
    return out


def _chosen(answers: Evaluation, index: list[int]) -> Evaluation:
    return Evaluation([answers.questions[i] for i in index], answers.scores[index])


def _settings(a: FinishedRun, b: FinishedRun) -> pd.DataFrame:
    one, two = (_flat(run.about) for run in (a, b))
    names = [name for name in dict.fromkeys([*one, *two]) if one.get(name) != two.get(name)]
    rows = [{"setting": name, a.name: _recorded(one, name), b.name: _recorded(two, name)} for name in names]
    return pd.DataFrame(rows, columns=["setting", a.name, b.name])


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        out |= _flat(value, f"{above}{name} ") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return out


def _recorded(flat: Mapping[str, Any], name: str) -> str:
    return str(flat[name]) if name in flat else "not recorded"


def _answers(a: FinishedRun, b: FinishedRun, pairs: Mapping[str, tuple[Evaluation, Evaluation]]) -> pd.DataFrame:
    rows = []
    for fit, name in FIT_NAMES.items():
        if fit != "base" and not all(fit in run.summary["fits"] for run in (a, b)):
            continue
        row: dict[str, Any] = {"fit": name}
        for i, run in enumerate((a, b), 1):
            saved = run.summary["base"] if fit == "base" else run.summary["fits"][fit]
            row |= {f"accuracy_{i}": saved["accuracy"], f"gain_{i}": saved.get("gain", np.nan)}
            row |= {f"{end}_{i}": saved[end] if fit != "base" else np.nan for end in ("low", "high")}
        if pairs:
            mine, theirs = pairs[fit]
            d = statistics.paired_difference(theirs.per_question.numpy(), mine.per_question.numpy(), mine.groups)
            row |= {"difference": d.mean, "difference_low": d.low, "difference_high": d.high, "p": d.p}
            if fit != "base":
                gains = [e.per_question.numpy() - base.per_question.numpy() for e, base in zip(pairs[fit], pairs["base"], strict=True)]
                more = statistics.paired_difference(gains[1], gains[0], mine.groups)
                row |= {"gain_difference": more.mean, "gain_difference_low": more.low, "gain_difference_high": more.high}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.assign(p=statistics.holm(frame["p"].to_numpy(float))) if pairs else frame


def _verdicts(a: FinishedRun, b: FinishedRun) -> pd.DataFrame:
    def said(suite: Falsification) -> str:
        return f"{'survives' if suite.survives else 'does not survive'}: {suite.verdict}"

    return pd.DataFrame([{"on": FITS[n]} | {run.name: said(run.suites[n]) for run in (a, b)} for n in ("all", "top")])


def _agreement(a: FinishedRun, b: FinishedRun, left_out: dict[str, str]) -> pd.DataFrame:
    if a.shape != b.shape:
        shapes = " and ".join(f"{L} x {H}" for L, H in (a.shape, b.shape))
        left_out["agreement of heads"] = f"the models have {shapes} heads"
        return pd.DataFrame(columns=["of", "spearman", "p", "top", "shared", "by_chance", "p_shared"])
    k = min(len(a.top), len(b.top))
    rows = [_agreement_row(method.replace("_", " "), a.maps[method], b.maps[method], k) for method in _shared_maps(a, b)]
    for name, of in (("scalars", lambda s: s.scalars), ("scalars, distance from 1", lambda s: (s.scalars - 1).abs())):
        one, two = (HeadMap("", "", of(run.scales["all"]).double()[None], torch.zeros(1)) for run in (a, b))
        rows.append(_agreement_row(name, one, two, k))
    frame = pd.DataFrame(rows)
    return frame.assign(**{p: statistics.holm(frame[p].to_numpy(float)) for p in ("p", "p_shared")})


def _shared_maps(a: FinishedRun, b: FinishedRun) -> list[str]:
    """The methods by which both runs located heads."""
    return [method for method in MAPS if method in a.maps and method in b.maps]


def _agreement_row(name: str, one: HeadMap, two: HeadMap, k: int) -> dict[str, Any]:
    found = one.compare(two)
    row = {"of": name, "spearman": found["spearman"], "p": found["p"], "top": k}
    if np.isnan(found["spearman"]):  # all values of a run are equal: it has no top heads
        return row | {"shared": np.nan, "by_chance": np.nan, "p_shared": np.nan}
    L, H = one.scores.shape
    sets = HeadSets(L, H, {"a": tuple(one.top(k)), "b": tuple(two.top(k))}).overlap().iloc[0]
    return row | {"shared": int(sets["shared"]), "by_chance": float(sets["by_chance"]), "p_shared": float(sets["p"])}


def answers_table(found: ComparedRuns) -> pd.DataFrame:
    """The table of answers for reading: each number with its interval in one cell."""
    out = []
    for row in found.answers.to_dict("records"):
        cells = {"fit": row["fit"]}
        for i, run in enumerate(found.runs, 1):
            gain = "" if np.isnan(row[f"gain_{i}"]) else f", {_span(row, f'gain_{i}', f'low_{i}', f'high_{i}')}"
            cells[run.name] = f"{row[f'accuracy_{i}']:.3f}{gain}"
        if found.questions:
            cells["difference, paired"] = _span(row, "difference", "difference_low", "difference_high")
            cells["p, Holm"] = f"{row['p']:.2g}"
            more = _span(row, "gain_difference", "gain_difference_low", "gain_difference_high")
            cells["difference of gains"] = "" if row["fit"] == "base" else more
        out.append(cells)
    return pd.DataFrame(out)


def agreement_table(found: ComparedRuns) -> pd.DataFrame:
    """The table of agreement for reading."""
    out = []
    for row in found.agreement.to_dict("records"):
        cells = {"of": row["of"], "rank correlation": "none: all values of a run are equal", "top heads shared": ""}
        if not np.isnan(row["spearman"]):
            cells["rank correlation"] = f"{row['spearman']:+.2f}, p = {row['p']:.2g}"
            by_chance = f"{row['by_chance']:.1f} by chance, p = {row['p_shared']:.2g}"
            cells["top heads shared"] = f"{row['shared']:.0f} of {row['top']}; {by_chance}"
        out.append(cells)
    return pd.DataFrame(out)


def _span(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return f"{row[value]:+.3f} [{row[low]:+.3f}, {row[high]:+.3f}]"


def write_compared(found: ComparedRuns, path: str | Path) -> None:
    """Write a page: the tables, accuracies and gains with intervals, and the head maps side by side on one colour scale.

    Args:
        found: the comparison.
        path: the HTML file.
    """
    a, b = found.runs
    rows: Rows = found.answers.to_dict("records")
    names = a.name, b.name
    marks: Sequence[Sequence[Head]] = (a.top, b.top)
    first, *others = _shared_maps(a, b)
    corrected = (
        "Spearman's rank correlation over all heads, and the heads that both runs name first; p after Holm's correction over the rows."
    )
    agree = [corrected, agreement_table(found)] if len(found.agreement) else [f"Left out: {found.left_out['agreement of heads']}."]
    settings = [found.settings] if len(found.settings) else ["Every recorded setting, version and hash is the same."]
    sections = [
        Section("What was found", [*found.notes, answers_table(found), partial(viz.gains_of_runs, rows, names)]),
        Section("Verdicts", [found.verdicts]),
        Section("Settings that differ", settings),
        Section(
            "Head maps",
            [
                f"The top heads of each run are outlined: {len(a.top)} of {a.name}, {len(b.top)} of {b.name}. Both maps of a method have "
                "one colour scale.",
                partial(viz.maps_of_runs, [(a.maps[first], b.maps[first])], names, marks=marks),
                partial(viz.maps_of_runs, [(a.maps[m], b.maps[m]) for m in others], names, marks=marks),
            ],
        ),
        Section("How far heads and scalars agree", agree),
        Section("How to reproduce", [a.command, b.command, f"scale-interp compare-runs {a.folder} {b.folder} --out {Path(path).name}"]),
    ]
    one, two = (_flat(run.about) for run in found.runs)
    meta = {n: one[n] if one.get(n) == two.get(n) else f"{_recorded(one, n)} and {_recorded(two, n)}" for n in dict.fromkeys([*one, *two])}
    viz.write_report(path, title=f"{a.name} and {b.name}", sections=sections, meta=meta)
