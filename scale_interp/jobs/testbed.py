"""The `testbed` command: every attribution method on models whose circuit is known, and learned scalars on planted shortfalls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.files import read_json, write_bytes, write_json
from ..core.versions import versions
from ..data.load import load_questions
from ..errors import ModelError
from ..evaluation import Faithfulness, Localisation, Recovery, evaluate, faithfulness, localise, recover
from ..evaluation.ground_truth.localisation import ranking
from ..execution.execution import with_journal
from ..execution.journal import Journal
from ..models.load import load
from ..models.testbeds import NAMES, PLANTINGS, circuit, planted
from ..models.testbeds.circuits import PREFIX, TASK
from .folder import RunFolder, Say
from .info import FINDINGS
from .job import Job, command

DRAWS = 5
LOCATE = 60
"""Training questions of a draw."""
TEST = 200
FAITHFUL = 100
"""The first of the test questions, on which faithfulness is measured."""
FIT = 200
BOUND: dict[str, Any] = {"bound": "exp", "radius": 2.5}
"""Scalars from 0.08 to 12.2: what undoes a planted factor of 0.1 is in reach."""
PENALTIES = (0.0, 1.0)
SHOWN = ("patching", "zero ablation", "probe", "attention to object")
"""Rankings whose faithfulness curves are drawn."""


@dataclass(frozen=True)
class Known:
    """What was measured on one known-circuit model."""

    name: str
    found: Localisation
    accuracy: tuple[float, float, float]
    curves: Mapping[str, Faithfulness]

    def summary(self) -> pd.DataFrame:
        """The printed table: method, AUROC and precision with intervals, CPR and CMD."""
        table = self.found.to_frame()
        parts = {"AUROC": "auroc", "precision": "precision", "CPR": "cpr", "CMD": "cmd"}
        return pd.DataFrame(
            {"method": table["method"]} | {title: [_interval(r, key) for r in table.itertuples()] for title, key in parts.items()}
        )


def known_circuit(name: str, draws: int = DRAWS, journal: Journal | None = None) -> Known:
    """All methods on training questions of `draws` seeds, the rankings' faithfulness on test questions."""
    chosen = circuit(name)
    vlm = with_journal(load(PREFIX + chosen.name), journal)
    sets = [load_questions(f"scenes/{TASK}", "train", n=LOCATE, seed=seed) for seed in range(draws)]
    test = load_questions(f"scenes/{TASK}", "test", n=TEST)
    found = localise(vlm, sets, chosen.heads, faithful_on=test[:FAITHFUL])
    answers = evaluate(vlm, test)
    curves = {m: faithfulness(vlm, test[:FAITHFUL], ranking(found.scores[found.methods.index(m), 0]), chosen_on=sets[0]) for m in SHOWN}
    return Known(PREFIX + chosen.name, found, (answers.accuracy, *answers.interval()), curves)


def shortfall(name: str, seeds: int = DRAWS, journal: Journal | None = None) -> dict[str, Recovery]:
    """Scalars fitted on a planted shortfall, without and with a penalty on mean |s - 1|, and tested on test questions."""
    chosen = PLANTINGS[name]
    damaged, intact = with_journal(planted(name), journal), with_journal(load(chosen.model), journal)
    train, test = load_questions(chosen.data, "train", n=FIT), load_questions(chosen.data, "test", n=2 * TEST)
    return {f"{name}, penalty {l1:g}": recover(damaged, intact, train, test, seeds=seeds, l1=l1, **BOUND) for l1 in PENALTIES}


def measure(name: str | None = None, draws: int = DRAWS, journal: Journal | None = None) -> tuple[list[Known], dict[str, Recovery]]:
    """One known-circuit model or planted shortfall by name, or all of them; the work is kept in the journal."""
    if name is None:
        found = [shortfall(n, draws, journal) for n in PLANTINGS]
        return [known_circuit(n, draws, journal) for n in NAMES], {k: r for part in found for k, r in part.items()}
    if name in PLANTINGS:
        return [], shortfall(name, draws, journal)
    return [known_circuit(name, draws, journal)], {}


def rebuild(name: str | None, folder: Path, progress: Callable[[str, int, int, float], None] | None = None) -> None:
    """Train a known-circuit model anew into `folder`/NAME, and write its card."""
    from ..models.testbeds.card import write_card
    from ..models.testbeds.training import train

    if name is None:
        raise ModelError(f"name the model to rebuild: {', '.join(NAMES)}")
    short = circuit(name).name
    train(short, folder, progress=progress)
    write_card(short, folder / short)


def recovery_frame(found: Mapping[str, Recovery]) -> pd.DataFrame:
    """A row a planted shortfall: what it costs, what scalars bring back, and how they rank the damaged heads."""
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


def run_testbeds(name: str | None, draws: int, folder: Path, say: Say, show: Callable[[str, pd.DataFrame], None]) -> list[str]:
    """Measure in a run's folder, with a page and pictures; `show` is given each table as soon as it is measured. The findings."""

    def make() -> list[str]:
        known, plantings = measure(name, draws, run_folder.working_journal)
        show_tables(known, plantings, show)
        best = [f"{k.name}: {', '.join(f'{row.method} {row.AUROC}' for row in k.summary().itertuples())}" for k in known]
        made = write_docs(known, plantings, folder, job.command)
        return [*made, run_folder.write_findings("AUROC and recovered shares, by test-bed", [*best, *_recovered(plantings)])]

    again = command("testbed", *filter(None, [name]), draws=draws)
    job = Job("testbed", again, {"name": name, "draws": draws}, {"testbed": ()})
    run_folder = RunFolder(folder, job, lambda: (None, {}), say)
    with run_folder.working():
        found: list[str] = run_folder.run_step("testbed", make, lambda: read_json(folder / FINDINGS)["findings"], "measuring the test-beds")
    return found


def show_tables(known: Sequence[Known], plantings: Mapping[str, Recovery], show: Callable[[str, pd.DataFrame], None]) -> None:
    """Show the table of each known circuit, and that of the planted shortfalls."""
    for k in known:
        show(k.name, k.summary())
    if plantings:
        show("scalars on planted shortfalls", recovery_summary(plantings))


def _recovered(plantings: Mapping[str, Recovery]) -> list[str]:
    return [f"{row.planting}: recovered {row.recovered}" for row in recovery_summary(plantings).itertuples()] if plantings else []


def write_docs(known: Sequence[Known], plantings: Mapping[str, Recovery], folder: Path, command: str) -> list[str]:
    """testbeds.json, testbeds.md and pictures/testbed_*.png (PNG needs kaleido and Chrome); their names."""
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
                "provenance": dict(k.found.provenance),
            }
            for k in known
        },
        "plantings": recovery_frame(plantings).to_dict("records"),
    }
    write_json(folder / "testbeds.json", record)
    write_bytes(folder / "testbeds.md", _page(known, plantings, command).encode())
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = {f"testbed_faithfulness_{k.name.removeprefix(PREFIX)}.png": faithfulness_curves(k.curves) for k in known}
    drawn |= {"testbed_methods.png": localisation({k.name: k.found for k in known})} if known else {}
    for name, figure in drawn.items():
        figure.write_image(pictures / name, scale=2)
    return ["testbeds.json", "testbeds.md", *(f"pictures/{name}" for name in drawn)]


def _page(known: Sequence[Known], plantings: Mapping[str, Recovery], command: str) -> str:
    sections = "\n".join(_circuit_section(k) for k in known)
    draws = known[0].found.scores.shape[1] if known else DRAWS
    return f"""# Test-beds: do the methods find heads that are known to matter?

    {command}

measures this; with `--out FOLDER` it writes this page, its numbers (`testbeds.json`) and pictures. Two kinds of test instruments:

**Known circuits** (`si.load("testbed/{NAMES[0]}")` and so on): models of the embedded architecture, trained with fixed weights
that decide which heads can carry the picture to the answer. At the last token a *listed* head sees the picture, and it alone writes to
the channels that its answer words are read from; a *decoy* sees as much and was trained to hold the answer, in channels that no answer is
read from; a *word head* sees the question's words; all other heads are *parked* on the first token and say one constant. All heads are in
use at other tokens. Why this makes the listed heads necessary and the others not, is in each model's card
(`scale_interp/models/testbeds/weights/*/README.md`); the tests verify it on the weights and by ablation.

**Planted shortfalls** (`si.testbeds.plant`): `demo-healthy`, or a known circuit, with the output weights of named heads scaled.

Methods are scored on {draws} draws of {LOCATE} training questions; intervals are over draws (bootstrap, wider by Student's t)
and have no width where all draws agree. AUROC: the chance that a listed head outscores another. Precision at k: the share of listed
heads among the k best, k their number. CPR and CMD: area under the faithfulness curve and its mean distance from 1 (MIB, arXiv
2504.13151), with heads outside the first k replaced by their means, on other (test) questions.

![methods](pictures/testbed_methods.png)

{sections}
{_planting_section(plantings) if plantings else ""}"""


def _circuit_section(k: Known) -> str:
    parts = ("auroc", "precision", "cpr", "cmd")
    rows = "\n".join(
        f"| {r.method} | {' | '.join(_interval(r, part) for part in parts)} | {_cell(r.why)} |"
        for r in k.found.to_frame().itertuples(index=False)
    )
    right, low, high = k.accuracy
    short = k.name.removeprefix(PREFIX)
    heads = ", ".join(map(str, k.found.known))
    return f"""## `{k.name}`

Listed: {heads}, of {k.found.scores[0, 0].numel()} heads. Test accuracy on scenes/{TASK} {right:.3f}
[{low:.3f}, {high:.3f}], chance 0.25.

| method | AUROC | precision at k | CPR | CMD | why |
|---|---|---|---|---|---|
{rows}

![faithfulness](pictures/testbed_faithfulness_{short}.png)
"""


def _planting_section(plantings: Mapping[str, Recovery]) -> str:
    draws = len(next(iter(plantings.values())).scalars)
    rows = "\n".join(_planting_row(r) for _, r in recovery_frame(plantings).iterrows())
    return f"""## Planted shortfalls

Scalars from 0.08 to 12.2 on all heads (no MLPs), {draws} fits of different seeds on {FIT} training questions, without and with a penalty
on the mean of |s - 1|, tested on {2 * TEST} others. Recovered: the share of the lost accuracy that the scalars bring back, mean of the
fits, with a 95% interval over pictures. AUROC and precision at k of the damaged heads among all, by |s - 1| and by |log s|, to which
halving is as much as doubling. Places: where each damaged head stands by |log s|, fit by fit. Without a penalty scalars also move heads
that were never damaged: the fit asks what helps, not what is broken.

| planting | damaged heads | intact | damaged | repaired | recovered share | AUROC: size, log | precision: size, log | places |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


def _planting_row(r: Any) -> str:
    auroc, precision = (f"{r[f'{name} |s - 1|']:.3f}, {r[f'{name} |log s|']:.3f}" for name in ("auroc", "precision"))
    share = f"{r['recovered']:.2f} [{r['recovered_low']:.2f}, {r['recovered_high']:.2f}]"
    accuracies = f"{r['intact']:.3f} | {r['damaged']:.3f} | {r['repaired']:.3f}"
    return f"| {r['planting']} | {r['heads']} x {r['factor']:g} | {accuracies} | {share} | {auroc} | {precision} | {r['ranks']} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _interval(row: Any, name: str) -> str:
    low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
    return f"{getattr(row, name):.3f} [{low:.3f}, {high:.3f}]"
