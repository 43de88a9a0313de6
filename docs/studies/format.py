"""docs/format.md and format.json, measured again on an embedded model: python -m docs.studies.format [PART ...], all parts by default"""

import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd

import scale_interp as si
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.evaluation.falsification.verdict import FORMAT, FULL

from .tables import span, table

HERE = Path(__file__).parent
RESULTS = HERE / "format.json"
N = {"train": 240, "test": 400}
SEEDS = 2
SHOWN = (FULL, *FORMAT, "shuffled labels", "output bias", "text-only correction", "another image")
"""The controls that the page lists."""


class Part(NamedTuple):
    """What a suite is run on."""

    model: str
    prompt: str | None
    options: str
    says: str


PARTS = {
    "demo-format": Part("demo-format", "scale-llava", "letters", "`demo-format`, asked for letters without its chat template"),
}


def main(names: list[str]) -> None:
    """Measure the parts, keep the others as they were measured before, and write the page."""
    for name in names or list(PARTS):
        started = perf_counter()
        found = measure(PARTS[name])
        write_json(RESULTS, measured() | {name: found | {"seconds": round(perf_counter() - started)}})
    write_bytes(HERE.parent / "format.md", page(measured()).encode())


def measured() -> dict[str, Any]:
    return read_json(RESULTS) if RESULTS.exists() else {}


def measure(part: Part) -> dict[str, Any]:
    vlm = si.load(part.model, prompt=part.prompt)
    train, test = (si.load_questions("scenes/relation", split=s, n=n, options=part.options) for s, n in N.items())
    found = si.falsify(vlm, train, test, seeds=SEEDS)
    said = {"verdict": found.verdict, "survives": found.survives, "format": found.format, "format_share": found.format_share}
    return said | {"base": dict(found.base_split) | {"accuracy": found.base_accuracy}, "rows": list(found.rows)}


def page(found: dict[str, Any]) -> str:
    return "\n".join([HEAD, *(section(PARTS[name], found[name]) for name in PARTS if name in found), TAIL])


def section(part: Part, found: dict[str, Any]) -> str:
    base = found["base"]
    rows = [["base model", f"{base['accuracy']:.3f}", "", *parts(base)]]
    for name in SHOWN:
        for row in found["rows"]:
            if row["control"] == name:
                rows.append([name, f"{row['accuracy']:.3f}", span(row["gain"], row["low"], row["high"], "+"), *parts(row)])
    listed = table(pd.DataFrame(rows, columns=["", "accuracy", "gain", "mass", "-log P(right)", "of which mass", "of which choice"]))
    return f"## {part.says}\n\n> {found['verdict']}\n\n{listed}\n"


def parts(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[name]:.3f}" for name in ("mass", "nll", "nll_mass", "nll_choice")]


HEAD = f"""# Is a gain format?

A suite on the embedded model that was taught a shortfall of format: {N["train"]} training and {N["test"]} test questions about
relations of two things, {SEEDS} fits per control. What the controls are: [falsification](falsification.md#is-the-gain-format).
*mass* is the mean probability that the answer is any option; -log P(right option) splits exactly into the two columns behind it.
On `demo`, whose shortfall is one of choice, the largest gain of a format control is 4% of ScAle's
([tutorial](tutorial.md#5-is-the-gain-real)).

```sh
python -m docs.studies.format
```
"""
TAIL = """## What follows

- A gain of accuracy over options says nothing about how often an option is answered; report both.
- Ask the base model in the way that suits it best before anything is fitted: that figure is the one to beat.
- A model can gain in the same way from a bias, or from labels without signal: these are cheap to run, and the suite runs them.

Next: [falsification](falsification.md), [ScAle](papers/scale.md)
"""

if __name__ == "__main__":
    main(sys.argv[1:])
