"""The page of one run: what was asked, which heads matter, which scalars were learned, and whether the gain is real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ... import viz
from ...adapters.scale.scale import ScAle
from ...attribution.headmap import HeadMap
from ...data.items import Questions
from ...evaluation.accuracy import Evaluation
from ...evaluation.falsification.suite import Falsification
from ...interventions.edit import Head
from ...viz import Section
from .settings import Settings

if TYPE_CHECKING:
    from ...adapters import ScAle
    from ...attribution import HeadMap
    from ...data.items import Questions
    from ...evaluation import Evaluation, Falsification
    from ...interventions.edit import Head

FITS = {"all": "ScAle, all heads and MLPs", "top": "ScAle, top heads", "retained": "ScAle with other answers retained"}

ELSEWHERE = {"non_spatial_change": "change elsewhere"}
"""How the page names a column that has the name of the first sets it was measured on."""
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
SPLIT_COLUMNS = ["control", "mass", "nll", "nll_mass", "nll_choice"]


@dataclass(frozen=True, eq=False)
class Results:
    """All results of a run.

    Args:
        settings: what the run is of.
        content: model, questions, versions and machine, as in settings.json.
        asked: the questions of each split, as in settings.json.
        ranked_by: the method whose top heads were fitted on.
        notes: what this run could not do or does not mean.
        maps: attribution method -> head map.
        top_heads: the heads with its largest effect.
        scales: fit -> scalars.
        evaluations: task -> fit -> answers.
        suites: fit -> falsification.
        rescaling: unit (layer or mlp) -> study of its factors.
    """

    settings: Settings
    content: dict[str, Any]
    asked: Mapping[str, Questions]
    ranked_by: str
    notes: list[str]
    maps: Mapping[str, HeadMap]
    top_heads: list[Head]
    scales: Mapping[str, ScAle]
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    suites: Mapping[str, Falsification]
    rescaling: Mapping[str, Any]


def write_run_report(path: Path, results: Results, summary: dict[str, Any]) -> None:
    """Write the page of a run.

    Args:
        path: the HTML file.
        results: what the figures and tables show.
        summary: the headline numbers, as in summary.json.
    """
    settings, made, maps, scales = results.settings, results.content, results.maps, results.scales
    asked, ranking, marks = results.evaluations["asked"], maps[results.ranked_by], results.top_heads
    patched = results.ranked_by == "patch"
    method = "patching" if patched else f"{results.ranked_by} ablation"
    measured = f"{len(ranking.per_question)} {'pairs of training questions' if patched else 'training questions'}"
    best = (scales["all"].scalars - 1).abs()
    sparsity = pd.DataFrame([{"method": n, **m.sparsity(), **m.compare(best.double())} for n, m in maps.items()])
    costs = [row | {"fit": FITS[row["fit"]]} for row in summary["retention"]]
    key = "relation" if any(q.relation for q in results.asked["test"]) else "answer_text"
    sections = [
        Section("What was asked", what_was_asked(results)),
        Section(
            "What was found",
            [
                *results.notes,
                *sentences(summary),
                pd.DataFrame([{"fit": "base", **summary["base"]}])[["fit", "accuracy", "low", "high", "chance", "majority"]],
                pd.DataFrame([{"fit": FITS[n], **row} for n, row in summary["fits"].items()])
                .rename(columns=ELSEWHERE)
                .dropna(axis=1, how="all"),
                partial(viz.accuracy_by, {"base": asked["base"], **{FITS[n]: asked[n] for n in scales}}, key),
            ],
        ),
        Section(
            "Which heads carry it",
            [
                f"Measured on {measured}; the test questions were not used. The top {len(marks)} heads by "
                f"{method} are outlined; dots mark heads whose effect differs from 0 after Holm's correction over all heads.",
                partial(viz.head_heatmap, ranking, marks=marks),
                f"The {len(marks)} chosen heads, with the scalars that they were given:",
                chosen_heads(ranking, marks, scales),
                partial(viz.head_heatmaps, list(maps.values()), marks=marks),
                "How sparse each map is, and its rank correlation with the learned |scalar - 1|:",
                sparsity,
            ],
        ),
        Section(
            "Rescaling without training",
            [
                "All heads of one layer, or one layer's MLP, multiplied by a factor.",
                *(partial(viz.rescaling, study) for study in results.rescaling.values()),
            ],
        ),
        Section(
            "Scalars against attribution",
            [
                "A head that matters need not be a head that ScAle changes: the correlation is what it is.",
                partial(viz.coefficients_vs_attribution, scales["all"], ranking),
                partial(viz.scalar_heatmap, scales["all"]),
                partial(viz.training_curve, scales["all"]),
            ],
        ),
        Section(
            "Is the gain real?",
            [
                item
                for name, found in results.suites.items()
                for item in (
                    f"{FITS[name]}: {found.verdict}",
                    partial(viz.controls, found),
                    found.to_frame()[[name for name in CONTROL_COLUMNS if name in found.to_frame()]],
                    *split_of_likelihood(found),
                    "\n".join(found.reasons),
                )
            ],
        ),
        Section("What it costs elsewhere", [partial(viz.retention, costs), pd.DataFrame(costs)] if costs else ["No other set was asked."]),
        Section("Failures", failures(asked["base"], asked["all"])),
        Section("How to reproduce", [settings.job.command, how_to_check(made)]),
    ]
    title = f"{summary['model']['model']} on {summary['settings']['data']}"
    about = made["model"] | made["settings"] | made["versions"] | made["machine"]
    viz.write_report(path, title=title, sections=sections, meta=about)


def what_was_asked(results: Results) -> list[Any]:
    """The question in words, two of the test questions, and the hashes that identify this model and these questions."""
    s, model, train, test = results.settings, results.content["model"], results.asked["train"], results.asked["test"]
    splits = [
        {
            "split": split,
            "data": found["data"],
            "seed": found["seed"],
            "questions": found["n"],
            "images": len({q.group for q in results.asked[split]}),
            "hash of words, answers and images": found["content_hash"],
        }
        for split, found in results.content["data"].items()
    ]
    return [
        f"Which of the {model['n_layers']} x {model['n_heads']} attention heads of {model['model']} carry its answers to {s.data}, do "
        "learned scalars on heads and MLPs make more of these answers right, and is that gain what it seems?",
        f"Heads were located on {min(s.n_locate, len(train))} training questions, scalars fitted on {len(train)}, and {len(test)} test "
        "questions were answered with and without them. No image is in both splits. Two of the test questions:",
        *test[:2],
        pd.DataFrame(splits),
        pd.DataFrame([{k: model[k] for k in ("model", "family", "dtype")} | {"hash of the weights": model["fingerprint"]}]).assign(
            **{"hub revision": model["revision"] or "none: not from a hub"}
        ),
    ]


def chosen_heads(head_map: HeadMap, heads: list[Head], scales: Mapping[str, ScAle]) -> pd.DataFrame:
    """One row per chosen head: its score with interval and corrected p, and its scalars."""
    table = head_map.to_frame().set_index(["layer", "head"]).loc[heads].reset_index()
    scalars = {f"scalar, {FITS[name]}": [float(scales[name].scalars[head]) for head in heads] for name in ("all", "top")}
    return table[["rank", "layer", "head", "score", "low", "high", "p"]].assign(**scalars)


def failures(base: Evaluation, fitted: Evaluation, n: int = 3) -> list[Any]:
    """What the scalars repaired, broke and left wrong: how many questions, and the first n of each with both answers."""
    was, now = base.per_question.bool().tolist(), fitted.per_question.bool().tolist()
    out: list[Any] = []
    for kind, before, after in (
        ("Still wrong", False, False),
        ("Broken by the scalars", True, False),
        ("Repaired by the scalars", False, True),
    ):
        members = [i for i in range(len(was)) if (was[i], now[i]) == (before, after)]
        out.append(f"{kind}: {len(members)} of {len(was)} questions{', the first of them:' if len(members) > n else '.'}")
        out += [(base.questions[i], f"Base said {base.answers[i]!r}, ScAle {fitted.answers[i]!r}.") for i in members[:n]]
    return out


def how_to_check(made: dict[str, Any]) -> str:
    """What must be the same for the numbers to be the same."""
    packages = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"Computed with {packages}. The same numbers can be expected where the hashes of weights and questions are those above."


def sentences(summary: dict[str, Any]) -> list[str]:
    """The findings in plain words."""
    base, fits, ranked = summary["base"], summary["fits"], summary.get("ranked_by", "patch")
    spread, agree = summary["sparsity"][ranked], summary["scalars_against_attribution"][ranked]
    elsewhere = [change(r, "change") for fit in ("all", "retained") for r in summary["retention"] if (r["task"], r["fit"]) == ("all", fit)]
    method = "patching" if ranked == "patch" else f"{ranked} ablation"
    if ranked == "patch":
        sparse = (
            f"Half of the recovered logit difference sits in {spread['heads_to_half']} of {spread['heads']} heads; the four largest hold "
            f"{spread['share_top4']:.0%} (Gini {spread['gini']:.2f})."
        )
    else:
        sparse = (
            f"Removing one head changes the logit difference for {spread['significant']} of {spread['heads']} heads (Holm, 0.05; Gini "
            f"{spread['gini']:.2f})."
        )
    within = f"[{base['low']:.1%}, {base['high']:.1%}]"
    return [
        f"The base model answers {base['accuracy']:.1%} of the test questions {within}; chance is {base['chance']:.1%}.",
        sparse,
        *(f"{FITS[n]} ({row['parameters']} parameters): {row['accuracy']:.1%}, {change(row, 'gain')}." for n, row in fits.items()),
        f"A head's {method} effect and its learned scalar correlate with Spearman {_rank(agree['scalar'])}; "
        f"with the scalar's distance from 1, {_rank(agree['size'])}.",
        *([f"Accuracy on other sets changes by {'; with retention by '.join(elsewhere)}."] if elsewhere else []),
        *(f"Falsification, {FITS[n]}: {found['verdict']}" for n, found in summary["falsification"].items()),
    ]


def change(row: dict[str, Any], name: str) -> str:
    """A number of a row with its interval."""
    return f"{row[name]:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _rank(found: dict[str, float]) -> str:
    if math.isnan(found["spearman"]):
        return "undefined, as all are equal"
    return f"{found['spearman']:+.2f} (p = {found['p']:.2g})"


def split_of_likelihood(found: Falsification) -> list[Any]:
    """The table of what is format and what is choice in every control, with a line that explains it; nothing where it was not measured."""
    if not found.base_split:
        return []
    base = pd.DataFrame([{"control": "base model"} | dict(found.base_split)])
    explained = (
        "Format and choice: `mass` is the probability that any option is answered; -log P(right option), `nll`, is the sum of "
        "`nll_mass`, -log of that probability, and `nll_choice`, -log of the right option's share of it."
    )
    return [explained, pd.concat([base, found.to_frame().reindex(columns=SPLIT_COLUMNS).dropna()], ignore_index=True)]
