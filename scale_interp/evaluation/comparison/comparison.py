"""Every method of the toolkit on the same splits: learned on training questions, tuned on validation questions, tested once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attribution.ablation import provenance
from ...core import statistics
from ...core.arguments import Count, Seed, checked
from ...core.figures import draw
from ...core.result import APART, Misfit, Result, entries
from ...data.items import describe, groups, require, require_disjoint
from ...data.question import Question
from ...errors import DataError
from ...execution.execution import with_journal
from ...execution.journal import Journal, Say
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from .head_sets import HeadSets
from .located import CANNOT, locate
from .tuning import EMPHASIS, LATENT_HEADS, LEARN, Chosen, Tuner, answer_with, describe_setting

BASE = "base"
ALPHA = 0.05
TUNED = {"setting": dict[str, Any], "parameters": int, "passes": float, "grid": list[Any]}
"""What is kept of each method's tuning."""

R = TypeVar("R", bound=Result)


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Right and wrong answers of every method to the same test questions, the base model first.

    Args:
        methods: names of the M methods, "base" first.
        right: 1.0 where a test question is answered right, else 0.0 [Q, M].
        groups: the number of each test question's image [Q].
        others: the same for P questions of other tasks [P, M].
        others_groups: the number of each of their images [P].
        others_tasks: the task of each of them [P].
        tuned: method -> its setting, parameters, passes (forward passes per answer) and grid (one row per setting with its accuracy on the
            validation questions).
        heads: the head sets of all methods.
        left_out: method -> why it could not run on this model or data.
        provenance: model, data, settings and versions.

    >>> right, sets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), HeadSets(6, 8, {})
    >>> about = {"ScAle": {"setting": {"strength": 1.0}, "parameters": 54, "passes": 1.0, "grid": []}}
    >>> Comparison(("base", "ScAle"), right, torch.arange(4), right[:0], torch.arange(0), (), about, sets)
    <Comparison on 4 questions: base 0.500, ScAle 0.750>
    """

    methods: Annotated[tuple[str, ...], "methods"]
    right: Float[Tensor, "questions methods"]
    groups: Int[Tensor, " questions"]
    others: Float[Tensor, "others methods"]
    others_groups: Int[Tensor, " others"]
    others_tasks: Annotated[tuple[str, ...], "others"]
    tuned: Mapping[str, Mapping[str, Any]]
    heads: HeadSets
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    most = 100
    may_be_empty = ("others",)

    def __repr__(self) -> str:
        accuracy = ", ".join(f"{name} {value:.3f}" for name, value in zip(self.methods, self.right.mean(0).tolist(), strict=True))
        return f"<Comparison on {len(self.right)} questions: {accuracy}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        right, others = self.right.double().mean(0).tolist(), self.others.double().mean(0).tolist()
        for i, name in enumerate(self.methods):
            row = {"method": name, "accuracy": right[i], "minus base": right[i] - right[0] if i else None}
            change = {"elsewhere": others[i] - others[0] if i else None} if len(self.others) else {}
            yield row | change | {"tuned": describe_setting(self.tuned[name]["setting"]) if i else ""}

    def difference(self, method: str) -> statistics.Difference:
        """A method's accuracy minus the base model's on the test questions, paired by question."""
        return _paired(self.right, self.methods.index(method), self.groups)

    def change_elsewhere(self, method: str) -> statistics.Difference:
        """A method's accuracy minus the base model's on all questions of other tasks, paired by question."""
        return _paired(self.others, self.methods.index(method), self.others_groups)

    def to_frame(self) -> pd.DataFrame:
        """One row per method.

        Returns:
            accuracy with interval, paired difference from base with interval, p and p_holm (over the methods), parameters, tuned setting,
            forward passes per answer, and the change on other tasks with interval (nan without others).
        """
        rows = []
        for i, name in enumerate(self.methods):
            right, about = self.right[:, i].numpy(), self.tuned.get(name, {})
            low, high = statistics.accuracy_interval(right, self.groups.numpy())
            row = {"method": name, "accuracy": float(right.mean()), "low": low, "high": high}
            row |= _columns(self.difference(name) if i else None, ("difference", "difference_low", "difference_high", "p"))
            row |= {
                "parameters": about.get("parameters", 0),
                "tuned": describe_setting(about["setting"]) if about else "",
                "passes": about.get("passes", 1.0),
            }
            elsewhere = self.change_elsewhere(name) if i and len(self.others) else None
            rows.append(row | _columns(elsewhere, ("others_change", "others_low", "others_high")))
        frame = pd.DataFrame(rows)
        frame.insert(8, "p_holm", statistics.holm(frame["p"].to_numpy(float)))
        return frame

    def by_task(self) -> pd.DataFrame:
        """One row per method and other task: the base accuracy, and the change with its interval."""
        tasks, rows = np.array(self.others_tasks), []
        for task in dict.fromkeys(self.others_tasks):
            own = torch.from_numpy(tasks == task)
            for i, name in enumerate(self.methods[1:], 1):
                change = _paired(self.others[own], i, self.others_groups[own])
                row = {"method": name, "task": task, "n": int(own.sum()), "base": float(self.others[own, 0].mean())}
                rows.append(row | _columns(change, ("change", "low", "high")))
        return pd.DataFrame(rows)

    def findings(self) -> list[str]:
        """What was found, one sentence per method."""
        frame = self.to_frame()
        base = frame.iloc[0]
        out = [f"The base model answers {base['accuracy']:.3f} [{base['low']:.3f}, {base['high']:.3f}] of {len(self.right)} questions."]
        for row in frame.iloc[1:].to_dict("records"):
            if not self.tuned[row["method"]]["setting"]:
                out.append(f"{row['method']}: on the validation questions nothing of its grid beat doing nothing, so it is the base model.")
                continue
            verb = "does not differ from base:"
            if row["p_holm"] < ALPHA:
                verb = ("raises" if row["difference"] > 0 else "lowers") + " accuracy by"
            said = f"{row['method']} ({row['tuned']}) {verb} {_span(row, 'difference')}, corrected p = {row['p_holm']:.2g}"
            elsewhere = {"others": row["others_change"]} | row
            out.append(said + (f"; other tasks change by {_span(elsewhere, 'others')}." if len(self.others) else "."))
        return [*out, *(f"{name} could not run: {why}" for name, why in self.left_out.items())]

    def shown(self) -> pd.DataFrame:
        """The table for readers: one row per method, each difference and its interval in one cell."""
        rows = [
            {
                "method": row["method"],
                "accuracy": f"{row['accuracy']:.3f}",
                "minus base": "0" if row["tuned"] == describe_setting({}) else _span(row, "difference"),
                "p, Holm": "" if np.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
                "elsewhere": "0" if row["tuned"] == describe_setting({}) and len(self.others) else _span(row, "others"),
                "parameters": row["parameters"],
                "tuned": row["tuned"],
                "passes": f"{row['passes']:g}",
            }
            for row in self.to_frame().rename(columns={"others_change": "others"}).to_dict("records")
        ]
        return pd.DataFrame(rows)

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the differences from base, on the data and elsewhere (see viz.comparison)."""
        return draw("comparison", self, **options)

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._arguments(path, meta)
        for method in found["tuned"].values():
            entries(path, method, TUNED)
        # Restore the order of the methods, which the sorted keys of the header have lost.
        tuned = found["tuned"]
        return found | {"tuned": {name: tuned[name] for name in (*found["methods"], *tuned) if name in tuned}}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if self.methods != (BASE, *self.tuned):
            raise Misfit(f"{APART}: the tuned methods are not those that answered")


@checked
def compare(
    vlm: VLM,
    train: Sequence[Question],
    validation: Sequence[Question],
    test: Sequence[Question],
    *,
    others: Sequence[Question] = (),
    methods: Sequence[str] = tuple(LEARN),
    top: Count = 8,
    seed: Seed = 0,
    folder: str | Path | None = None,
    journal: Journal | None = None,
    say: Say = lambda _: None,
) -> Comparison:
    """Compare ScalingVis, AdaptVis, PASTA, ITI, CogVSR emphasis, latent heads and ScAle with the base model on the same splits.

    Heads, directions and scalars are learned on `train`. The setting of each method is the one of its grid (evaluation/comparison/tuning)
    with the most right answers on `validation`, where doing nothing is one of the settings. `test` is answered last, once per method.

    Args:
        vlm: the model, from `si.load`.
        train: questions to learn from.
        validation: questions to choose settings on.
        test: Q test questions.
        others: questions of other tasks, whose answers no method should change.
        methods: names of the methods to compare; by default all.
        top: the size of a head set where a method only ranks heads.
        seed: for fits, probes and decomposed scenes.
        folder: where the result of every step is kept; a step whose result is there is not run again.
        journal: in place of folder, the journal of the command that compares.
        say: called with a line of text before each step.

    Returns:
        A Comparison, right [Q, M]. A method that cannot run on this model or data is left out, with the reason in `left_out`.

    Raises:
        DataError: for an unknown method.
        LeakError: where two splits, or a learning split and `others`, share an image.
        FileError: where the folder contains another comparison.

    >>> import scale_interp as si
    >>> vlm, (a, b, c) = si.load("demo"), [si.load_questions("scenes/relation", s, n=12) for s in ("train", "validation", "test")]
    >>> compare(vlm, a, b, c, methods=["ScalingVis"], top=2).to_frame()["method"].tolist()
    ['base', 'ScalingVis']
    """
    train, validation, test, others = require(train), require(validation), require(test), list(others)
    unknown = [name for name in methods if name not in LEARN]
    if unknown or not methods:
        raise DataError(f"methods {list(methods)}: choose from {', '.join(LEARN)}")
    require_disjoint(train, validation)
    require_disjoint([*train, *validation], [*test, *others])
    if journal is None and folder is not None:
        options: dict[str, Any] = {"others": others, "methods": methods, "top": top, "seed": seed, "say": say}
        with Journal(folder).opened() as journal:
            return compare(vlm, train, validation, test, **options, journal=journal)
    vlm = with_journal(vlm, journal)
    splits = {"train": train, "validation": validation, "test": test, "others": others}
    if journal is not None:
        about = vlm.describe() | {"fingerprint": vlm.fingerprint, "top": top, "seed": seed}
        journal.claim("comparison", about | {name: _mark(questions) for name, questions in splits.items()})
    steps = _Steps(journal, say)
    functional = EMPHASIS in methods or LATENT_HEADS in methods
    makers = locate(vlm, train, [*validation, *test, *others], top, seed, functional)
    sets = HeadSets.join([steps.run_step(f"heads/{_slug(name)}.json", f"heads by {name}", make, HeadSets) for name, make in makers.items()])
    chosen, left_out = _learn(steps, Tuner(vlm, train, validation, sets, top, seed), methods)
    named = {c.name: c for c in chosen if c.heads}
    own = HeadSets(vlm.n_layers, vlm.n_heads, {n: c.heads for n, c in named.items()}, {n: c.about for n, c in named.items()})
    asked = [(questions, PrefixStore(vlm, questions) if questions else None) for questions in (test, others)]
    answers = [
        steps.run_step(f"answers/{_slug(name)}.safetensors", f"test questions: {name}", partial(_Answers.of, vlm, asked, method), _Answers)
        for name, method in [(BASE, None), *((c.name, c.method) for c in chosen)]
    ]
    return Comparison(
        (BASE, *(c.name for c in chosen)),
        torch.stack([a.right for a in answers], 1),
        torch.from_numpy(groups(test)),
        torch.stack([a.others for a in answers], 1),
        torch.from_numpy(groups(others)) if others else torch.zeros(0, dtype=torch.long),
        tuple(q.task for q in others),
        {
            c.name: {"setting": dict(c.setting), "parameters": c.parameters, "passes": a.passes, "grid": [dict(row) for row in c.grid]}
            for c, a in zip(chosen, answers[1:], strict=True)
        },
        HeadSets.join([sets, own]),
        left_out,
        provenance(vlm, test, train=describe(train), validation=describe(validation), top=top, comparison_seed=seed),
    )


def _learn(steps: _Steps, tuner: Tuner, methods: Sequence[str]) -> tuple[list[Chosen], dict[str, str]]:
    chosen, left_out = [], {}
    for name in (name for name in LEARN if name in methods):
        try:
            learn = partial(LEARN[name], tuner)
            chosen.append(steps.run_step(f"methods/{_slug(name)}.safetensors", f"learning and tuning {name}", learn, Chosen))
        except CANNOT as error:
            left_out[name] = str(error)
    return chosen, left_out


@dataclass(frozen=True, eq=False)
class _Answers(Result):
    """One method's right answers to the test questions [Q] and the others [P], and its forward passes per answer."""

    kind: ClassVar[str] = "Answers"
    may_be_empty = ("others",)

    right: Float[Tensor, " questions"]
    others: Float[Tensor, " others"]
    passes: float

    @staticmethod
    def of(vlm: VLM, asked: Sequence[tuple[Sequence[Question], PrefixStore | None]], method: Any) -> _Answers:
        (test, test_prompts), (others, prompts) = asked
        right, passes = answer_with(vlm, test, method, test_prompts)
        return _Answers(right, answer_with(vlm, others, method, prompts)[0] if others else torch.zeros(0), passes)


@dataclass(frozen=True)
class _Steps:
    """Runs steps; with a journal, a result that it holds is read, and any other is saved when its step is done."""

    journal: Journal | None
    say: Say

    def run_step(self, file: str, message: str, make: Callable[[], R], kind: type[R]) -> R:
        """The result of a step, which is named after its file."""

        def made() -> R:
            self.say(message)
            return make()

        if self.journal is None:
            return made()
        path = self.journal.folder / file

        def write() -> list[str]:
            made().save(path)
            return [file]

        found: R = self.journal.step(file, write, lambda: kind.load(path))
        return found


def _mark(questions: Sequence[Question]) -> dict[str, Any]:
    """What identifies these questions and their right answers."""
    answers = "|".join(f"{q.id}={q.answer_text}" for q in questions)
    return describe(questions) | {"answers_hash": hashlib.blake2b(answers.encode(), digest_size=8).hexdigest()}


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _paired(right: Tensor, method: int, group: Tensor) -> statistics.Difference:
    return statistics.paired_difference(right[:, method].numpy(), right[:, 0].numpy(), group.numpy())


def _columns(found: statistics.Difference | None, names: Sequence[str]) -> dict[str, float]:
    values = (float("nan"),) * 4 if found is None else (found.mean, found.low, found.high, found.p)
    return dict(zip(names, values, strict=False))


def _span(row: Mapping[str, Any], name: str) -> str:
    return "" if np.isnan(row[name]) else f"{row[name]:+.3f} [{row[f'{name}_low']:+.3f}, {row[f'{name}_high']:+.3f}]"
