"""docs/baselines.md and .json, measured again on the embedded models: python -m docs.studies.baselines [PART ...], all parts by default"""

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

import scale_interp as si
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.data.items import Questions
from scale_interp.data.scenes.task import NON_SPATIAL, TASKS
from scale_interp.evaluation.table import Table

from .tables import p_value, span, table

HERE = Path(__file__).parent
DOCS = HERE.parent
RESULTS = HERE / "baselines.json"
N = {"train": 240, "test": 400, "retain": 60, "others": 100, "transfer": 160, "transfer test": 200}
EPOCHS = 16


def main(parts: list[str]) -> None:
    """Measure the parts, keep the others as they were measured before, and write the images and the page."""
    for name in parts or list(PARTS):
        started = perf_counter()
        result: Table = PARTS[name]()
        rows = {"rows": list(result.rows), "about": dict(result.about), "provenance": dict(result.provenance)}
        rows |= {"verdict": result.verdict, "seconds": perf_counter() - started}
        write_json(RESULTS, measured() | {name: rows})
    found = measured()
    for name, (kind, image) in IMAGES.items():
        if name in found:
            result = kind(tuple(found[name]["rows"]), found[name]["about"], found[name]["provenance"])
            result.plot().write_image(DOCS / "images" / f"{image}.png", scale=2)
    write_bytes(DOCS / "baselines.md", page(found).encode())


def measured() -> dict[str, Any]:
    return read_json(RESULTS) if RESULTS.exists() else {}


def questions(task: str, split: str, n: int) -> Questions:
    return si.load_questions(f"scenes/{task}", split=split, n=n)


def non_spatial(split: str, n: int) -> list[si.Question]:
    return [q for task in NON_SPATIAL for q in questions(task, split, n)]


def baselines(model: str) -> si.Baselines:
    train, test = questions("relation", "train", N["train"]), questions("relation", "test", N["test"])
    return si.compare_baselines(si.load(model), train, test, others=non_spatial("test", N["others"]), rates=2, epochs=EPOCHS)


def retention() -> Table:
    train, test = questions("relation", "train", N["train"]), questions("relation", "test", N["test"])
    retain, others = non_spatial("train", N["retain"]), non_spatial("test", N["others"])
    return si.retention_curve(si.load("demo"), train, test, retain, others, epochs=EPOCHS)


def sparsity() -> Table:
    train, test = questions("relation", "train", N["train"]), questions("relation", "test", N["test"])
    return si.sparsity_path(si.load("demo"), train, test, epochs=EPOCHS)


def transfer() -> Table:
    train, test = (
        {task: questions(task, split, N[n]) for task in TASKS} for split, n in (("train", "transfer"), ("test", "transfer test"))
    )
    return si.transfer(si.load("demo"), train, test, epochs=EPOCHS)


PARTS: dict[str, Callable[[], Any]] = {
    "baselines": lambda: baselines("demo"),
    "baselines-prior": lambda: baselines("demo-prior"),
    "retention": retention,
    "sparsity": sparsity,
    "transfer": transfer,
}
IMAGES: dict[str, Any] = {
    "baselines": (si.Baselines, "baselines"),
    "retention": (si.RetentionCurve, "retention-curve"),
    "sparsity": (si.SparsityPath, "sparsity"),
    "transfer": (si.Transfer, "transfer"),
}


def page(found: dict[str, Any]) -> str:
    took = ", ".join(f"{name} {found[name]['seconds']:.0f}" for name in PARTS if name in found)
    writers = {
        "baselines": lambda part: compared("demo", part, "![gain and change elsewhere](images/baselines.png)\n"),
        "baselines-prior": lambda part: compared("demo-prior", part, PRIOR),
        "retention": retained,
        "sparsity": sparse,
        "transfer": transferred,
    }
    return "\n".join([HEAD.format(took=took), *(write(found[name]) for name, write in writers.items() if name in found)])


HEAD = f"""# Baselines, retention, sparsity, transfer

    python -m docs.studies.baselines

writes this page, `baselines.json` and the images; with names of parts it measures only those again and keeps the rest. The comparison by
itself, for any model and data set: `scale-interp baselines demo --data scenes/relation`. Scenes of the train and test splits share no
set of things. Fits see {N["train"]} training questions of `scenes/relation` (a fifth of the images held out for early stopping), at most
{EPOCHS} epochs, batches of 64, patience 4; {N["test"]} test questions are answered once. "Elsewhere": {N["others"]} test questions each of
{", ".join(NON_SPATIAL)}. Intervals are 95% ([what they hold](intervals.md)), differences paired, p Holm-corrected within a table. Seconds,
on one thread of a machine that was not idle: {{took}}.
"""
PRIOR = """A text-only correction gains more than ScAle on this model ([results](results.md)): it shows the removal of a bias, not spatial
reasoning.
"""


def compared(model: str, part: dict[str, Any], after: str) -> str:
    rows, base = part["rows"], part["about"]["base"]
    shown = pd.DataFrame(
        {
            "method": [r["method"] for r in rows],
            "parameters": [f"{r['parameters']:,}" for r in rows],
            "seconds": [f"{r['seconds']:.1f}" for r in rows],
            "lr": [f"{r['lr']:g}" for r in rows],
            "kept epoch": [r["epochs"] for r in rows],
            "accuracy": [f"{r['accuracy']:.3f}" for r in rows],
            "gain": [columns(r, "gain") for r in rows],
            "p": [p_value(r["p_corrected"]) for r in rows],
            "ScAle minus it": ["" if r["scale_minus"] is None else columns(r, "scale_minus", "scale_minus_") for r in rows],
            "p of that": ["" if r["scale_minus"] is None else p_value(r["scale_minus_p_corrected"]) for r in rows],
            "ScAle's share of its gain": [
                "" if r["recovered"] is None else f"{r['recovered']:.0%} [{r['recovered_low']:.0%}, {r['recovered_high']:.0%}]"
                for r in rows
            ],
            "change elsewhere": [columns(r, "others_change", "others_change_") for r in rows],
            "p elsewhere": [p_value(r["others_change_p_corrected"]) for r in rows],
        }
    )
    return f"""## ScAle beside its baselines, `{model}`

{part["verdict"]} Base accuracy {span(base["accuracy"], base["low"], base["high"])}.

{table(shown)}

Every method tries two learning rates, between which the loss on the held-out training images decides; seconds are those of the kept fit.
LoRA and IA3 adapt every layer of the text decoder at every position (never the vision tower), so each step runs the whole prompt; ScAle
and the last-token bias (a free shift of every head's output) run the last token behind prompts that are read once.{budget_note(part)}

{after}"""


def budget_note(part: dict[str, Any]) -> str:
    """Which methods still improved when the budget ended."""
    late = [r["method"] for r in part["rows"] if r["epochs"] == part["about"]["budget"]["epochs"]]
    return f" Still improving on held-out images when the epochs ended: {', '.join(late)}." if late else ""


def columns(row: dict[str, Any], name: str, start: str = "") -> str:
    return span(row[name], row[f"{start}low"], row[f"{start}high"], "+")


def retained(part: dict[str, Any]) -> str:
    rows = part["rows"]
    shown = pd.DataFrame(
        {
            "weight": [f"{r['weight']:g}" for r in rows],
            "accuracy": [f"{r['accuracy']:.3f}" for r in rows],
            "gain": [columns(r, "gain") for r in rows],
            "p": [p_value(r["p_corrected"]) for r in rows],
            "change elsewhere": [columns(r, "others_change", "others_change_") for r in rows],
            "p elsewhere": [p_value(r["others_change_p_corrected"]) for r in rows],
        }
    )
    return f"""## Retention, `demo`

ScAle on all heads and MLPs with a penalty on the KL divergence from the base model on {N["retain"]} training questions each of the
non-spatial tasks. {capital(part["verdict"])} Base accuracy elsewhere {part["about"]["others_base"]:.3f}.

{table(shown)}

![gain against change elsewhere](images/retention-curve.png)
"""


def sparse(part: dict[str, Any]) -> str:
    words = {"l1": "L1 penalty", "cut": "largest k, cut", "refit": "largest k, fitted alone"}
    rows = part["rows"]
    shown = pd.DataFrame(
        {
            "path": [words[r["path"]] for r in rows],
            "penalty or k": [f"{r['value']:g}" for r in rows],
            "scalars that differ from 1": [r["moved"] for r in rows],
            "accuracy": [f"{r['accuracy']:.3f}" for r in rows],
            "gain": [columns(r, "gain") for r in rows],
            "full fit minus it": [columns(r, "full_minus", "full_minus_") for r in rows],
            "p of that": [p_value(r["full_minus_p_corrected"]) for r in rows],
        }
    )
    top = ", ".join(f"({layer}, {head})" for layer, head in part["about"]["order"][:8])
    return f"""## How few scalars suffice, `demo`

Head scalars alone. The penalty is on the mean |s - 1|; a scalar counts as different beyond {part["about"]["threshold"]:g}. k heads: those
with the largest |s - 1| of the unpenalised fit ({top}, ...). {part["verdict"]}

{table(shown)}

![gain by number of scalars](images/sparsity.png)
"""


def transferred(part: dict[str, Any]) -> str:
    result = si.Transfer(tuple(part["rows"]), part["about"], part["provenance"])
    cells = {(r["fitted_on"], r["tested_on"]): r for r in result.rows}
    lines = [
        [a, *(columns(cells[a, b], "gain") + ("*" if cells[a, b]["p_corrected"] < 0.05 else "") for b in result.tested)]
        for a in result.fitted
    ]
    still = [name for name, fit in result.about.items() if fit["epochs"] == 0]
    note = f" No epoch lowered the held-out loss for {', '.join(still)}: these fits stay at 1." if still else ""
    bases = ["base accuracy", *(f"{cells[result.fitted[0], b]['base']:.3f}" for b in result.tested)]
    shown = pd.DataFrame([bases, *lines], columns=["fitted on", *result.tested])
    return f"""## Transfer, `demo`

ScAle on all heads and MLPs, fitted on {N["transfer"]} training questions of one task (a row), tested on {N["transfer test"]} test questions
of each (a column): gain in accuracy. `*`: p < 0.05 after Holm's correction over the whole matrix. {capital(part["verdict"])}{note}

{table(shown)}

![transfer](images/transfer.png)
"""


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    main(sys.argv[1:])
