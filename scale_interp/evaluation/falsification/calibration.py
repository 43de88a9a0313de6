"""How often the falsification suite is wrong: on answers without signal, and on planted shortfalls.

A null suite asks new questions whose right answers are drawn at random, independent of image and text: every rejection is
a false one. A planted suite asks a model with known damaged heads: a gain that is not found is a miss.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ...core.figures import draw
from ...core.files import write_bytes
from ...core.progress import track
from ...core.result import APART, Misfit, Result, entries
from ...core.versions import versions
from ...data.items import Questions
from ...data.load import load_questions
from ...errors import DataError
from ...execution.execution import with_journal
from ...execution.journal import Journal
from ...interventions.edit import Head
from ...models.load import load
from ...models.testbeds import plant
from ...vlm.vlm import VLM
from .suite import falsify
from .verdict import ALPHA, FULL

NULL, PLANTED = "no signal", "planted"
KEPT = ("accuracy", "base_accuracy", "gain", "low", "high", "effect", "changed", "test", "p", "p_corrected")
"""Columns of ScAle's row that a calibration keeps of each suite."""
ROW = {"kind": Literal[NULL, PLANTED], "gains": bool, "survives": bool} | dict.fromkeys(("p", "p_corrected", "low", "high"), float)
"""Columns from which the shares are computed."""
Shortfall = tuple[tuple[Head, ...], float]
"""Damaged heads, and the factor that their output weights are multiplied by."""
SHORTFALLS: tuple[Shortfall, ...] = (
    (((2, 4), (4, 3), (2, 0), (5, 1), (4, 0), (1, 6), (3, 1), (4, 6)), -0.5),
    (((2, 4), (4, 0), (4, 3), (4, 4), (5, 1), (5, 5)), -0.5),
    (((2, 4), (4, 0), (4, 3), (4, 4), (5, 1), (5, 5), (2, 0), (1, 6)), -0.5),
)
"""The three shortfalls, of 26 tried on validation questions, whose repair by scalars exceeds that by a bias over options the most.

We tried the heads with the largest effects by patching and by ablation, at factors from -2 to 8. A scalar between 0 and 2 can
mute a head with a negative factor, but cannot restore its sign.
"""


@dataclass(frozen=True)
class Suites:
    """What the suites of a calibration run on. Suite i of a kind uses seed + i; the two kinds never use the same seed.

    Args:
        data: the name of a rendered data set.
        null_model: the model that is asked questions with random answers.
        planted_model: the model in which the shortfalls are planted.
        shortfalls: damaged heads and their factor, used in turn.
        n_train: training questions per suite.
        n_test: test questions per suite.
        seeds: fits per control.
        epochs: the most epochs per fit.
        seed: the first suite's seed.
    """

    data: str = "scenes/relation"
    null_model: str = "demo"
    planted_model: str = "demo-healthy"
    shortfalls: tuple[Shortfall, ...] = SHORTFALLS
    n_train: int = 120
    n_test: int = 200
    seeds: int = 2
    epochs: int = 12
    seed: int = 1000


@dataclass(frozen=True)
class Share:
    """How many of n suites have an outcome, with the exact binomial interval of the share (Clopper & Pearson 1934).

    Args:
        count: suites with the outcome.
        n: all suites.
        low: the lower end of the share's 95% interval.
        high: the upper end.
    """

    count: int
    n: int
    low: float
    high: float

    @staticmethod
    def of(outcomes: list[bool]) -> Share:
        """The share of true outcomes, one per suite."""
        count, n = sum(outcomes), len(outcomes)
        interval = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
        return Share(count, n, float(interval.low), float(interval.high))

    @property
    def share(self) -> float:
        """count / n."""
        return self.count / self.n

    def __str__(self) -> str:
        return f"{self.count} of {self.n}, {self.share:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True, eq=False)
class Calibration(Result):
    """The outcomes of many suites.

    Args:
        rows: one row per suite: kind, number, ScAle's gain and p-values, survives, not_beaten.
        about: the settings of the suites, and versions.
    """

    rows: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]
    most = 100
    file = "json"
    kind_key = "method"

    def __repr__(self) -> str:
        return f"<Calibration: {'; '.join(f'{name}: {share}' for name, share in self.shares().items())}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"share of suites": name, "found": str(share)} for name, share in self.shares().items())

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The suites of one kind, "no signal" or "planted"."""
        return [row for row in self.rows if row["kind"] == kind]

    def shares(self) -> dict[str, Share]:
        """How often each outcome occurred; without signal all of these are errors, on planted shortfalls they are hits."""
        out = {}
        for kind in (NULL, PLANTED):
            if rows := self.of(kind):
                out[f"{kind}: p < {ALPHA} (ScAle against base)"] = Share.of([r["p"] < ALPHA for r in rows])
                out[f"{kind}: corrected p < {ALPHA}"] = Share.of([r["p_corrected"] < ALPHA for r in rows])
                out[f"{kind}: 95% interval excludes 0"] = Share.of([not r["low"] <= 0 <= r["high"] for r in rows])
                out[f"{kind}: gains"] = Share.of([r["gains"] for r in rows])
                out[f"{kind}: survives"] = Share.of([r["survives"] for r in rows])
        return out

    @property
    def false_rejections(self) -> Share:
        """The share of null suites whose primary test, ScAle against base without correction, rejects at 0.05."""
        return Share.of([r["p"] < ALPHA for r in self.of(NULL)])

    @property
    def calibrated(self) -> bool:
        """Whether the interval of the share of false rejections contains 0.05."""
        return self.false_rejections.low <= ALPHA <= self.false_rejections.high

    @property
    def power(self) -> Share:
        """The share of planted suites that survive."""
        return Share.of([r["survives"] for r in self.of(PLANTED)])

    def table(self) -> pd.DataFrame:
        """One row per share: count, number of suites, share and its interval."""
        return pd.DataFrame([{"what": name, **asdict(s), "share": s.share} for name, s in self.shares().items()])

    def to_frame(self) -> pd.DataFrame:
        """One row per suite."""
        return pd.DataFrame(list(self.rows))

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the distribution of p-values against the uniform one (see viz.calibration)."""
        return draw("calibration", self, **options)

    def _summary(self) -> dict[str, Any]:
        return {"shares": {name: asdict(s) | {"share": s.share} for name, s in self.shares().items()}}

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        if missing := {"rows", "about"} - meta.keys():
            raise Misfit(f"it is not a Calibration, as it lacks {' and '.join(sorted(missing))}", "give the file that one was saved in")
        found = super()._arguments(path, meta)
        for row in found["rows"]:
            entries(path, row, ROW)
        return found

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if not self.rows:
            raise Misfit(f"{APART}: it holds no suite")


def calibrate(
    suites: int = 200,
    power: int = 40,
    *,
    folder: str | Path | None = None,
    journal: Journal | None = None,
    of: Suites | None = None,
    device: str | None = None,
) -> Calibration:
    """Run falsification suites on answers without signal and on planted shortfalls, each on new questions with a seed of its own.

    Args:
        suites: how many null suites.
        power: how many planted suites.
        folder: where every suite is kept, in one file each with its seconds. The same call continues where the last one ended, and
            computes a suite whose file is damaged again.
        journal: in place of folder, the journal of the command that calibrates.
        of: models, data and sizes.
        device: where the models run, as in `si.load`.

    Returns:
        A Calibration, one row per suite.

    Raises:
        DataError: for a negative number of suites, or none at all.
        FileError: for a folder of other suites.
    """
    of = of or Suites()
    if min(suites, power) < 0 or suites + power == 0:
        raise DataError(f"{suites} null and {power} planted suites: give 0 or more of each, and at least one in all")
    if journal is None and folder is not None:
        with Journal(folder).opened() as journal:
            return calibrate(suites, power, journal=journal, of=of, device=device)
    if journal is not None:
        journal.claim("calibration", asdict(of))
    models: dict[Any, VLM] = {}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    # Both kinds advance together, so that a stopped calibration has results of each.
    jobs = sorted([((i + 1) / suites, NULL, i) for i in range(suites)] + [((i + 1) / power, PLANTED, i) for i in range(power)])
    for _, kind, number in track(jobs, "suites", len(jobs)):
        asked = kind, number, of, models, device
        rows[kind, number] = _suite(*asked) if journal is None else _kept_suite(journal, *asked)
    in_order = (rows[kind, number] for kind, n in ((NULL, suites), (PLANTED, power)) for number in range(n))
    # Without the seconds, so that the same suites give an equal calibration.
    untimed = tuple({name: value for name, value in row.items() if name != "seconds"} for row in in_order)
    return Calibration(untimed, _plain(asdict(of)) | {"versions": versions()})


def _kept_suite(journal: Journal, kind: str, number: int, of: Suites, models: dict[Any, VLM], device: str | None) -> dict[str, Any]:
    """The suite from the journal, or computed now and kept there."""
    name = f"{kind.replace(' ', '-')}-{number:04}.json"
    path = journal.folder / name

    def write() -> list[str]:
        write_bytes(path, (json.dumps(_suite(kind, number, of, models, device, journal)) + "\n").encode())
        return [name]

    found: dict[str, Any] = journal.step(f"{kind} {number}", write, lambda: json.loads(path.read_text()))
    return found


def _suite(
    kind: str, number: int, of: Suites, models: dict[Any, VLM], device: str | None, journal: Journal | None = None
) -> dict[str, Any]:
    started = time.perf_counter()
    shortfall = of.shortfalls[number % len(of.shortfalls)] if kind == PLANTED else None
    if shortfall not in models:
        opened = load(of.null_model if shortfall is None else of.planted_model, device=device)
        opened = opened if shortfall is None else plant(opened, *shortfall)
        models[shortfall] = with_journal(opened, journal)
    # An offset of 20,000 keeps the seeds of the two kinds apart.
    seed = of.seed + number + 20_000 * (kind == PLANTED)
    train, test = (load_questions(of.data, split, n, seed) for split, n in (("train", of.n_train), ("test", of.n_test)))
    if kind == NULL:
        draw = np.random.default_rng([seed, 5])
        train, test = (_random_answers(questions, draw) for questions in (train, test))
    found = falsify(models[shortfall], train, test, seeds=of.seeds, epochs=of.epochs, format_controls=False)
    said = {
        "survives": found.survives,
        "gains": found.gains,
        "not_beaten": found.not_beaten,
        "frozen_changed": found.frozen_changed,
        "frozen_bits_changed": found.frozen_bits_changed,
        "registration": found.registration,
        "model": models[shortfall].name,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return {"kind": kind, "number": number, "seed": seed} | {name: found[FULL][name] for name in KEPT} | said


def _random_answers(questions: Questions, draw: np.random.Generator) -> Questions:
    """The questions with right answers drawn uniformly from their choices, so that neither image nor text predicts them."""
    changed = [replace(q, answer=int(draw.integers(len(q.choices))), relation=None) for q in questions]
    return Questions(changed, f"{questions.source} with random answers", questions.split, questions.seed)


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """The content as JSON returns it: lists in place of tuples."""
    return json.loads(json.dumps(content))
