"""The public sets' own metrics, each with an interval, the chance level and the best constant answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..core import statistics
from ..core.arguments import checked
from ..errors import DataError, DataWarning
from .accuracy import Evaluation
from .answers import TextEvaluation

OPPOSITES = (("left", "right"), ("on", "under"), ("front", "behind"))
"""What'sUp's pairs: two photographs of the same two objects."""
KEPT = ("model", "revision", "weights", "data", "split", "seed", "n", "data_hash", "scoring", "scorer", "path")
"""What a table's `attrs` say about the run."""
NAN = float("nan")


class Row(NamedTuple):
    """One number of a table.

    Args:
        metric: the metric's name.
        group: which questions it is about.
        n: how many questions, pairs or sets it is a mean of.
        value: the number, between 0 and 1.
        low: the lower end of its 95% interval.
        high: the upper end.
        chance: what guessing at random reaches.
        majority: what the best constant answer reaches.
    """

    metric: str
    group: str
    n: int
    value: float
    low: float = NAN
    high: float = NAN
    chance: float = NAN
    majority: float = NAN


@checked
def benchmark(evaluation: Evaluation, legacy: bool = False) -> pd.DataFrame:
    """The metrics that are commonly reported for the questions' data set.

    The first part of the questions' `task` decides which: "whatsup", "vsr", "pope", "spatialeval", "generated"; any other set has its
    accuracy, overall and by relation. Questions of several sets are reported set by set.

    Args:
        evaluation: the answers, from `si.evaluate` or `si.evaluate_text`.
        legacy: for vsr, also what the AdaptVis release calls F1.

    Returns:
        One row per number: metric, group, n, value, low, high (95%), chance, majority (the best constant answer). The frame's `attrs`
        name the model, and say where its weights are random.

    Raises:
        DataError: for questions without what a metric needs, such as meta["set"] of What'sUp or the options yes and no of VSR and POPE.

    >>> import scale_interp as si
    >>> questions = si.load_questions("scenes/relation-yesno", n=40)
    >>> si.benchmark(si.evaluate(si.load("demo"), questions)).columns.tolist()[:4]
    ['metric', 'group', 'n', 'value']
    """
    families = np.array([_family(q.task) for q in evaluation.questions])
    rows: list[Row] = []
    attrs: dict[str, Any] = {}
    for family in dict.fromkeys(families.tolist()):
        part = evaluation.part(families == family)
        table = vsr_accuracy(part, legacy) if family == "vsr" else METRICS.get(family, _any_accuracy)(part)
        found = [Row(*row) for row in table.itertuples(index=False)]
        rows += found if len(set(families)) == 1 else [row._replace(group=f"{family or 'no task'}: {row.group}") for row in found]
        attrs |= {k: v for k, v in table.attrs.items() if k not in KEPT}
    return _table(rows, evaluation, **attrs)


def whatsup_accuracy(evaluation: Evaluation) -> pd.DataFrame:
    """What'sUp: individual accuracy, pair accuracy (left and right; on and under; front and behind), set accuracy (all four).

    A pair or a set is right where each of its questions is (arXiv 2310.19785). Chance is that of guessing each question independently:
    1/4, 1/16, 1/256; no constant answer is right twice in a pair. Intervals are over object pairs.

    Args:
        evaluation: answers to What'sUp questions.

    Returns:
        One row per metric and group. Incomplete pairs and sets do not count: they are listed in `attrs["incomplete"]`,
        object pair -> missing relations, and a DataWarning counts them.

    Raises:
        DataError: for a question without meta["set"], and for two questions of one relation in a set.
    """
    rows = [row for group, part in _parts(evaluation, "task", several=True) for row in _whatsup(part, group)]
    rows += [_accuracy(part, group, metric="individual accuracy") for group, part in _parts(evaluation, "relation")]
    incomplete = {name: words for name, members in _sets(evaluation).items() if (words := _missing(evaluation, members))}
    if incomplete:
        name, words = next(iter(incomplete.items()))
        warnings.warn(
            f"{len(incomplete)} object pair(s) are incomplete, {name!r} lacks {', '.join(words)}: they count in individual accuracy, "
            "but not in set accuracy, nor their halves in pair accuracy; evaluate the whole set for these",
            DataWarning,
            stacklevel=2,
        )
    return _table(rows, evaluation, incomplete=incomplete)


def vsr_accuracy(evaluation: Evaluation, legacy: bool = False) -> pd.DataFrame:
    """VSR: accuracy overall, by meta-category and by relation, and F1 of "yes".

    Args:
        evaluation: answers to yes-or-no questions.
        legacy: also what the AdaptVis release calls F1, the harmonic mean of the true positive and the true negative rate.

    Returns:
        One row per metric and group.

    Raises:
        DataError: for a question whose options are not yes and no.
    """
    rows = [_accuracy(evaluation), *_rates(evaluation, "all", ("f1", "legacy f1") if legacy else ("f1",))]
    rows += [_accuracy(part, group) for key in ("category", "relation") for group, part in _parts(evaluation, key)]
    return _table(rows, evaluation)


def pope_metrics(evaluation: Evaluation) -> pd.DataFrame:
    """POPE: accuracy, precision, recall and F1 of "yes", and the share of "yes", for all questions and each kind of absent object.

    Args:
        evaluation: answers to yes-or-no questions.

    Returns:
        One row per metric and group.

    Raises:
        DataError: for a question whose options are not yes and no.
    """
    rows = []
    for group, part in _parts(evaluation, "kind", several=True):
        rows += [_accuracy(part, group), *_rates(part, group, ("precision", "recall", "f1", "yes ratio"))]
    return _table(rows, evaluation)


def spatialeval_accuracy(evaluation: Evaluation) -> pd.DataFrame:
    """SpatialEval, and sets in its form: accuracy by form, by kind, by both, and by question type within a kind.

    Args:
        evaluation: answers to questions with "form", "kind" and "question_type" in their meta.

    Returns:
        One row per group.
    """
    keys = (("form",), ("kind",), ("form", "kind"), ("kind", "question_type"))
    rows = [_accuracy(part, group) for key in keys for group, part in _parts(evaluation, *key)]
    return _table([_accuracy(evaluation), *rows], evaluation)


def _family(task: str) -> str:
    """The family of sets that decides the metrics: the first part of the task, or the form that generated questions follow."""
    return "boxes/pope" if task.startswith("boxes/pope") else task.partition("/")[0]


def _any_accuracy(evaluation: Evaluation) -> pd.DataFrame:
    return _table([_accuracy(evaluation), *(_accuracy(part, group) for group, part in _parts(evaluation, "relation"))], evaluation)


METRICS: dict[str, Callable[[Evaluation], pd.DataFrame]] = {
    "whatsup": whatsup_accuracy,
    "pope": pope_metrics,
    "boxes/pope": pope_metrics,
    "spatialeval": spatialeval_accuracy,
    "generated": spatialeval_accuracy,
}


def _table(rows: Sequence[Row], evaluation: Evaluation, **attrs: Any) -> pd.DataFrame:
    """Rows as a frame; for answers in words, with the share that names no option."""
    rows = list(rows)
    if isinstance(evaluation, TextEvaluation) and all(row.metric != "unanswered" for row in rows):
        silent = ~evaluation.answered.numpy()
        rows.append(Row("unanswered", "all", len(silent), float(silent.mean()), *statistics.accuracy_interval(silent, evaluation.groups)))
    frame = pd.DataFrame(rows, columns=list(Row._fields))
    frame.attrs = {k: evaluation.provenance[k] for k in KEPT if k in evaluation.provenance} | attrs
    return frame


def _accuracy(evaluation: Evaluation, group: str = "all", clusters: np.ndarray | None = None, metric: str = "accuracy") -> Row:
    ends = statistics.accuracy_interval(evaluation.per_question.numpy(), evaluation.groups if clusters is None else clusters)
    return Row(metric, group, len(evaluation.questions), evaluation.accuracy, *ends, evaluation.chance, evaluation.majority)


def _parts(evaluation: Evaluation, *keys: str, several: bool = False) -> Iterator[tuple[str, Evaluation]]:
    """A label and a part for each combination of values of some fields or meta entries; questions that lack one are left out.

    several: yield all questions first, and parts only where there is more than one.
    """
    values = list(zip(*(evaluation.values(key) for key in keys), strict=True))
    known = sorted({v for v in values if "None" not in v})
    if several:
        yield "all", evaluation
    for value in known if len(known) > 1 or not several else []:
        yield ", ".join(f"{k} {v}" for k, v in zip(keys, value, strict=True)), evaluation.part(np.array([v == value for v in values]))


def _sets(evaluation: Evaluation) -> dict[str, dict[str, int]]:
    """Object pair -> right relation -> the question's index."""
    sets: dict[str, dict[str, int]] = {}
    for i, q in enumerate(evaluation.questions):
        if "set" not in q.meta:
            raise DataError(f"question {q.id}: it has no meta['set'], the name of its object pair; give one, or load a What'sUp set")
        members = sets.setdefault(f"{q.task}/{q.meta['set']}", {})
        if q.answer_text in members:
            other = evaluation.questions[members[q.answer_text]].id
            raise DataError(
                f"questions {other} and {q.id} are both {q.answer_text!r} in the set {q.meta['set']!r}: give each relation once"
            )
        members[q.answer_text] = i
    return sets


def _missing(evaluation: Evaluation, members: Mapping[str, int]) -> list[str]:
    """The relations that are offered in a set but are the right answer to none of its questions."""
    return sorted({c for i in members.values() for c in evaluation.questions[i].choices} - members.keys())


def _whatsup(evaluation: Evaluation, group: str) -> list[Row]:
    sets = _sets(evaluation)
    clusters = np.empty(len(evaluation.questions), int)
    for number, members in enumerate(sets.values()):
        clusters[list(members.values())] = number
    pairs = [[members[a], members[b]] for members in sets.values() for a, b in OPPOSITES if a in members and b in members]
    whole = [list(members.values()) for members in sets.values() if not _missing(evaluation, members)]
    rows = [_accuracy(evaluation, group, clusters, "individual accuracy")]
    for metric, units in (("pair accuracy", pairs), ("set accuracy", whole)):
        if not units:
            rows.append(Row(metric, group, 0, NAN))
            continue
        right = np.array([evaluation.per_question.numpy()[unit].min() for unit in units])
        chance = float(np.mean([np.prod([1 / len(evaluation.questions[i].choices) for i in unit]) for unit in units]))
        ends = statistics.accuracy_interval(right, np.array([clusters[unit[0]] for unit in units]))
        rows.append(Row(metric, group, len(units), float(right.mean()), *ends, chance, 0.0))
    return rows


Counts = Mapping[str, Any]
RATES: dict[str, Callable[[Counts], Any]] = {
    "precision": lambda c: c["hits"] / c["said"],
    "recall": lambda c: c["hits"] / c["yes"],
    "yes ratio": lambda c: c["said"] / (c["yes"] + c["no"]),
    "f1": lambda c: 2 * c["hits"] / (c["said"] + c["yes"]),
    "legacy f1": lambda c: _harmonic(c["hits"] / c["yes"], c["rejected"] / c["no"]),
}
"""Rates from counts: said is answers of "yes"; yes and no are the true labels; hits and rejected are those answered right."""


def _harmonic(a: Any, b: Any) -> Any:
    return np.where(a + b == 0, 0.0, 2 * a * b / (a + b))


def _rates(evaluation: Evaluation, group: str, metrics: Sequence[str]) -> list[Row]:
    """Rates of yes-or-no answers with intervals clustered by image; chance: a fair coin; majority: always "yes"."""
    for q in evaluation.questions:
        if {c.casefold() for c in q.choices} != {"yes", "no"}:
            raise DataError(
                f"question {q.id}: precision, recall and F1 need yes and no, but its options are {q.choices}; give yes-or-no questions"
            )
    yes = np.array([q.answer_text.casefold() == "yes" for q in evaluation.questions])
    said = np.array([(answer or "").casefold() == "yes" for answer in evaluation.answers])
    right, images, Q = evaluation.per_question.bool().numpy(), evaluation.groups, len(yes)
    columns = {"said": said, "yes": yes, "no": ~yes, "hits": yes & right, "rejected": ~yes & right}
    counts = {name: float(column.sum()) for name, column in columns.items()}
    coin = counts | {"said": Q / 2, "hits": counts["yes"] / 2, "rejected": counts["no"] / 2}
    always = counts | {"said": Q, "hits": counts["yes"], "rejected": 0.0}
    shares = {"precision": (right, said), "recall": (right, yes), "yes ratio": (said, np.full(Q, True))}
    rows = []
    for metric in metrics:
        with np.errstate(invalid="ignore", divide="ignore"):
            value, chance, constant = (float(RATES[metric]({k: np.float64(v) for k, v in c.items()})) for c in (counts, coin, always))
        if np.isnan(value):
            ends = NAN, NAN
        elif metric in shares:
            share, of = shares[metric]
            ends = statistics.accuracy_interval(share[of], images[of])
        else:
            ends = _ratio_interval(RATES[metric], columns, images)
        rows.append(Row(metric, group, Q, value, *ends, chance, constant))
    return rows


def _ratio_interval(rate: Callable[[Counts], Any], columns: Mapping[str, np.ndarray], clusters: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of a ratio of sums, whole images drawn with replacement; nan for one image."""
    sums = pd.DataFrame(columns).groupby(clusters).sum()
    G = len(sums)
    if G == 1:
        return NAN, NAN
    draws = np.random.default_rng(0).multinomial(G, np.full(G, 1 / G), statistics.RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = rate({name: draws @ sums[name].to_numpy(float) for name in columns})
    low, high = np.nanquantile(drawn, [(1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2])
    return float(low), float(high)
