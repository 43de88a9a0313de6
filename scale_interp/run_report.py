"""The page of one run: what was asked, which heads, which scalars, and whether the gain is real."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import viz
from .viz import Section

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .run import Run

FITS = {"all": "ScAle, all heads and MLPs", "top": "ScAle, top heads", "retained": "ScAle with non-spatial answers retained"}

CONTROL_COLUMNS = [
    "control",
    "accuracy",
    "gain",
    "low",
    "high",
    "effect",
    "p_corrected",
    "others_change",
    "full_minus",
    "full_minus_effect",
    "full_minus_p_corrected",
]


def write_run_report(run: Run, summary: dict[str, Any]) -> None:
    """Write report.html into the run's folder, from its saved results and a fresh rescaling study."""
    maps, scales, evaluations, suites = run.locate(), run.fit(), run.evaluate(), run.falsify()
    asked, patching = evaluations["asked"], maps["patch"]
    marks = run.top_heads
    best = (scales["all"].scalars - 1).abs()
    sparsity = pd.DataFrame([{"method": n, **m.sparsity(), **m.compare(best.double())} for n, m in maps.items()])
    studies = run.rescaling()
    failures = example_failures(asked)
    costs = [row | {"fit": FITS[row["fit"]]} for row in summary["retention"]]
    sections = [
        Section(
            "What was found",
            [
                *sentences(summary),
                pd.DataFrame([{"fit": "base", **summary["base"]}])[["fit", "accuracy", "low", "high", "chance", "majority"]],
                pd.DataFrame([{"fit": FITS[n], **row} for n, row in summary["fits"].items()]),
                viz.accuracy_by({"base": asked["base"], **{FITS[n]: asked[n] for n in scales}}, "relation"),
            ],
        ),
        Section(
            "Which heads carry it",
            [
                f"Measured on {run.settings.n_locate} training questions; the test questions were not used. The top {len(marks)} heads by "
                "patching are outlined; dots mark heads whose effect differs from 0 after Holm's correction over all heads.",
                viz.head_heatmap(patching, marks=marks),
                viz.head_heatmaps(list(maps.values()), marks=marks),
                "How sparse each map is, and its rank correlation with the learned |scalar - 1|:",
                sparsity,
            ],
        ),
        Section(
            "Rescaling without training",
            ["All heads of one layer, or one layer's MLP, multiplied by a factor.", *(viz.rescaling(s) for s in studies.values())],
        ),
        Section(
            "Scalars against attribution",
            [
                "A head that matters need not be a head that ScAle changes: the correlation is what it is.",
                viz.coefficients_vs_attribution(scales["all"], patching),
                viz.scalar_heatmap(scales["all"]),
                viz.training_curve(scales["all"]),
            ],
        ),
        Section(
            "Is the gain real?",
            [
                item
                for name, found in suites.items()
                for item in (
                    f"{FITS[name]}: {found.verdict}",
                    viz.controls(found),
                    found.to_frame()[CONTROL_COLUMNS],
                    "\n".join(found.reasons),
                )
            ],
        ),
        Section("What it costs elsewhere", [viz.retention(costs), pd.DataFrame(costs)]),
        Section("Answers that changed", [part for text, question in failures for part in (text, question)] or ["No answer changed."]),
        Section("How to reproduce", [command(summary["settings"])]),
    ]
    title = f"{summary['model']['model']} on {summary['settings']['data']}"
    viz.write_report(
        run.folder / "report.html", title=title, sections=sections, meta=summary["model"] | summary["settings"] | summary["versions"]
    )


def example_failures(evaluations: dict[str, Evaluation], n: int = 4) -> list[tuple[str, Any]]:
    """A few questions that the base model or the fitted one gets wrong, with what each said."""
    base, fitted = evaluations["base"], evaluations["all"]
    out: list[tuple[str, Any]] = []
    for i, question in enumerate(base.questions):
        if base.per_question[i] != fitted.per_question[i] and len(out) < n:
            out.append((f"base said {base.answers[i]!r}, ScAle {fitted.answers[i]!r}; right: {question.answer_text!r}", question))
    return out


def sentences(summary: dict[str, Any]) -> list[str]:
    """The findings in plain words."""
    base, fits, spread = summary["base"], summary["fits"], summary["sparsity"]["patch"]
    agree = summary["scalars_against_attribution"]["patch"]
    lost = next(r for r in summary["retention"] if r["task"] == "all" and r["fit"] == "all")
    kept = next(r for r in summary["retention"] if r["task"] == "all" and r["fit"] == "retained")
    within = f"[{base['low']:.1%}, {base['high']:.1%}]"
    return [
        f"The base model answers {base['accuracy']:.1%} of the test questions {within}; chance is {base['chance']:.1%}.",
        f"Half of the recovered logit difference sits in {spread['heads_to_half']} of {spread['heads']} heads; the four largest hold "
        f"{spread['share_top4']:.0%} (Gini {spread['gini']:.2f}).",
        *(f"{FITS[n]} ({row['parameters']} parameters): {row['accuracy']:.1%}, {change(row, 'gain')}." for n, row in fits.items()),
        f"A head's patching effect and its learned scalar correlate with Spearman {_rank(agree['scalar'])}; "
        f"with the scalar's distance from 1, {_rank(agree['size'])}.",
        f"Non-spatial accuracy changes by {change(lost, 'change')}; with retention by {change(kept, 'change')}.",
        *(f"Falsification, {FITS[n]}: {found['verdict']}" for n, found in summary["falsification"].items()),
    ]


def change(row: dict[str, Any], name: str) -> str:
    """A number of a row with its interval."""
    return f"{row[name]:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _rank(found: dict[str, float]) -> str:
    if math.isnan(found["spearman"]):
        return "undefined, as all are equal"
    return f"{found['spearman']:+.2f} (p = {found['p']:.2g})"


def command(settings: dict[str, Any]) -> str:
    """The command that makes this run again."""
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in settings.items() if k not in ("model", "data"))
    return f"scale-interp run {settings['model']} --data {settings['data']} {flags}"
