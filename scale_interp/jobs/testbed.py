"""The `testbed` command: every attribution method on models whose circuit is known, and learned scalars on planted shortfalls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.files import read_json, write_bytes, write_json
from ..core.template import render
from ..core.versions import versions
from ..data.load import load_questions
from ..errors import ModelError
from ..evaluation import Faithfulness, Localisation, Recovery, evaluate, faithfulness, localise, recover
from ..evaluation.ground_truth.localisation import ranking
from ..evaluation.ground_truth.positions import localise_positions
from ..execution.execution import with_journal
from ..execution.journal import Journal
from ..models.load import load
from ..models.testbeds import NAMES, PLANTINGS, circuit, planted
from ..models.testbeds.circuits import PREFIX, TASK
from .folder import RunFolder, Say
from .info import FINDINGS
from .job import Job, command

DRAWS = 5
N_LOCATE = 60
"""Training questions per draw."""
N_TEST = 200
N_FAITHFULNESS = 100
"""The first of the test questions, on which faithfulness is measured."""
N_FIT = 200
BOUND: dict[str, Any] = {"bound": "exp", "radius": 2.5}
"""Scalars from 0.08 to 12.2, which can undo a planted factor of 0.1."""
PENALTIES = (0.0, 1.0)
SHOWN = ("patching", "zero ablation", "probe", "attention to object")
"""Rankings whose faithfulness curves are drawn."""


@dataclass(frozen=True)
class ScoredCircuit:
    """What was measured on one known-circuit model: accuracy (with interval), methods, faithfulness curves, and where heads are fed."""

    name: str
    found: Localisation
    accuracy: tuple[float, float, float]
    curves: Mapping[str, Faithfulness]
    positions: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """The printed table: method, AUROC and precision with intervals, CPR and CMD."""
        table = self.found.to_frame()
        parts = {"AUROC": "auroc", "precision": "precision", "CPR": "cpr", "CMD": "cmd"}
        return pd.DataFrame(
            {"method": table["method"]} | {title: [_interval(r, key) for r in table.to_dict("records")] for title, key in parts.items()}
        )


def score_circuit(name: str, draws: int = DRAWS, journal: Journal | None = None, device: str | None = None) -> ScoredCircuit:
    """Score all methods on training questions of `draws` seeds, and the faithfulness of some rankings on test questions."""
    chosen = circuit(name)
    vlm = with_journal(load(PREFIX + chosen.name, device=device), journal)
    sets = [load_questions(f"scenes/{TASK}", "train", n=N_LOCATE, seed=seed) for seed in range(draws)]
    test = load_questions(f"scenes/{TASK}", "test", n=N_TEST)
    found = localise(vlm, sets, chosen.heads, faithful_on=test[:N_FAITHFULNESS])
    answers = evaluate(vlm, test)
    curves = {
        m: faithfulness(vlm, test[:N_FAITHFULNESS], ranking(found.scores[found.methods.index(m), 0]), chosen_on=sets[0]) for m in SHOWN
    }
    positions = localise_positions(vlm, sets, chosen)
    return ScoredCircuit(PREFIX + chosen.name, found, (answers.accuracy, *answers.interval()), curves, positions)


def score_planting(name: str, seeds: int = DRAWS, journal: Journal | None = None, device: str | None = None) -> dict[str, Recovery]:
    """Fit scalars on a planted shortfall, without and with a penalty on mean |s - 1|, and test them on test questions."""
    chosen = PLANTINGS[name]
    damaged, intact = with_journal(planted(name, device), journal), with_journal(load(chosen.model, device=device), journal)
    train, test = load_questions(chosen.data, "train", n=N_FIT), load_questions(chosen.data, "test", n=2 * N_TEST)
    return {f"{name}, penalty {l1:g}": recover(damaged, intact, train, test, seeds=seeds, l1=l1, **BOUND) for l1 in PENALTIES}


def measure(
    name: str | None = None, draws: int = DRAWS, journal: Journal | None = None, device: str | None = None
) -> tuple[list[ScoredCircuit], dict[str, Recovery]]:
    """Score one known-circuit model or planted shortfall by name, or all of them; the work is kept in the journal."""
    if name is None:
        found = [score_planting(n, draws, journal, device) for n in PLANTINGS]
        return [score_circuit(n, draws, journal, device) for n in NAMES], {k: r for part in found for k, r in part.items()}
    if name in PLANTINGS:
        return [], score_planting(name, draws, journal, device)
    return [score_circuit(name, draws, journal, device)], {}


def rebuild(name: str | None, folder: Path, progress: Callable[[str, int, int, float], None] | None = None) -> None:
    """Train a known-circuit model again, and write its card.

    Args:
        name: the model.
        folder: the model goes into `folder`/NAME; a stopped training continues there.
        progress: called with stage, step, steps and loss after each step.

    Raises:
        ModelError: no model is named.
    """
    from ..models.testbeds.card import write_card
    from ..models.testbeds.training import train

    if name is None:
        raise ModelError(f"name the model to rebuild: {', '.join(NAMES)}")
    short = circuit(name).name
    train(short, folder, progress=progress)
    write_card(short, folder / short)


def recovery_frame(found: Mapping[str, Recovery]) -> pd.DataFrame:
    """One row per planted shortfall: what it costs, what scalars bring back, and how they rank the damaged heads."""
    rows = []
    for name, r in found.items():
        lost, (share, low, high) = r.lost(), r.recovered()
        ranks = r.localisation().to_frame().set_index("method")
        rows.append(
            {
                "planting": name,
                "heads": " ".join(map(str, r.planted)),
                "factor": r.factor,
                "intact": float(r.intact.mean()),
                "damaged": float(r.damaged.mean()),
                "lost": lost.mean,
                "lost_low": lost.low,
                "lost_high": lost.high,
                "repaired": float(r.repaired.mean()),
                "recovered": share,
                "recovered_low": low,
                "recovered_high": high,
                **{f"auroc {m}": float(ranks.loc[m, "auroc"]) for m in ranks.index},
                **{f"precision {m}": float(ranks.loc[m, "precision"]) for m in ranks.index},
                "ranks": "; ".join(" ".join(map(str, row)) for row in r.ranks().tolist()),
            }
        )
    return pd.DataFrame(rows)


def recovery_summary(found: Mapping[str, Recovery]) -> pd.DataFrame:
    """The printed table of planted shortfalls."""
    rows = [
        {
            "planting": r["planting"],
            "intact, damaged, repaired": f"{r['intact']:.3f}, {r['damaged']:.3f}, {r['repaired']:.3f}",
            "recovered": f"{r['recovered']:.2f} [{r['recovered_low']:.2f}, {r['recovered_high']:.2f}]",
            "AUROC by size, log": f"{r['auroc |s - 1|']:.3f}, {r['auroc |log s|']:.3f}",
            "precision": f"{r['precision |s - 1|']:.2f}, {r['precision |log s|']:.2f}",
        }
        for _, r in recovery_frame(found).iterrows()
    ]
    return pd.DataFrame(rows)


def run_testbeds(
    name: str | None, draws: int, folder: Path, say: Say, show: Callable[[str, pd.DataFrame], None], device: str | None = None
) -> list[str]:
    """Measure in a run's folder, with a page and images.

    Args:
        name: a known-circuit model or a planted shortfall; None for all.
        draws: draws of questions.
        folder: the run's folder.
        say: called with a line about the step.
        show: called with the title and the table of each model as soon as it is measured.
        device: where the models run.

    Returns:
        The findings in words.
    """

    def make() -> list[str]:
        known, plantings = measure(name, draws, run_folder.working_journal, device)
        show_tables(known, plantings, show)
        best = [f"{k.name}: {', '.join(f'{row.method} {row.AUROC}' for row in k.summary().itertuples())}" for k in known]
        made = write_docs(known, plantings, folder, job.command)
        return [*made, run_folder.write_findings("AUROC and recovered shares, by test-bed", [*best, *_recovered(plantings)])]

    again = command("testbed", *filter(None, [name]), draws=draws, device=device)
    job = Job("testbed", again, {"name": name, "draws": draws}, {"testbed": ()})
    run_folder = RunFolder(folder, job, lambda: (None, {}), say)
    with run_folder.working():
        found: list[str] = run_folder.run_step("testbed", make, lambda: read_json(folder / FINDINGS)["findings"], "measuring the test-beds")
    return found


def show_tables(known: Sequence[ScoredCircuit], plantings: Mapping[str, Recovery], show: Callable[[str, pd.DataFrame], None]) -> None:
    """Show the table of each known circuit, and that of the planted shortfalls."""
    for k in known:
        show(k.name, k.summary())
    if plantings:
        show("scalars on planted shortfalls", recovery_summary(plantings))


def _recovered(plantings: Mapping[str, Recovery]) -> list[str]:
    return [f"{row.planting}: recovered {row.recovered}" for row in recovery_summary(plantings).itertuples()] if plantings else []


def write_docs(known: Sequence[ScoredCircuit], plantings: Mapping[str, Recovery], folder: Path, command: str) -> list[str]:
    """Write testbeds.json, testbeds.md and images/testbed_*.png (PNG needs kaleido and Chrome); returns their names."""
    from ..viz import faithfulness_curves, localisation

    record: dict[str, Any] = {
        "command": command,
        "versions": versions(),
        "circuits": {
            k.name: {
                "known": [list(h) for h in k.found.known],
                "accuracy": dict(zip(("accuracy", "low", "high"), k.accuracy, strict=True)),
                "methods": k.found.to_frame().to_dict("records"),
                "auroc": {m: row.tolist() for m, row in zip(k.found.methods, k.found.auroc(), strict=True)},
                "positions": k.positions.to_dict("records"),
                "provenance": dict(k.found.provenance),
            }
            for k in known
        },
        "plantings": recovery_frame(plantings).to_dict("records"),
    }
    write_json(folder / "testbeds.json", record)
    write_bytes(folder / "testbeds.md", page(record).encode())
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    drawn = {f"testbed_faithfulness_{k.name.removeprefix(PREFIX)}.png": faithfulness_curves(k.curves) for k in known}
    drawn |= {"testbed_methods.png": localisation({k.name: k.found for k in known})} if known else {}
    for name, figure in drawn.items():
        figure.write_image(images / name, scale=2)
    return ["testbeds.json", "testbeds.md", *(f"images/{name}" for name in drawn)]


def page(record: Mapping[str, Any]) -> str:
    """The page of what testbeds.json records."""
    circuits = [
        {
            "name": name,
            "short": name.removeprefix(PREFIX),
            "listed": [tuple(head) for head in found["known"]],
            "heads": circuit(name).n_layers * circuit(name).n_heads,
            "accuracy": [found["accuracy"][part] for part in ("accuracy", "low", "high")],
            "methods": [
                {
                    "name": row["method"],
                    "scores": [_interval(row, part) for part in ("auroc", "precision", "cpr", "cmd")],
                    "why": row["why"],
                }
                for row in found["methods"]
            ],
            "positions": [row | {"auroc": _interval(row, "auroc")} for row in found["positions"]],
        }
        for name, found in record["circuits"].items()
    ]
    plantings = record["plantings"]
    text = render(
        "scale_interp.jobs",
        "testbeds.md.jinja",
        command=record["command"],
        first=NAMES[0],
        task=TASK,
        draws=max((len(draws) for found in record["circuits"].values() for draws in found["auroc"].values()), default=DRAWS),
        locate=N_LOCATE,
        circuits=circuits,
        plantings=plantings,
        fits=plantings[0]["ranks"].count(";") + 1 if plantings else 0,
        fit=N_FIT,
        test=2 * N_TEST,
    )
    return str(text)


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
