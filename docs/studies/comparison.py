"""docs/comparison.md and its images from a comparison's folder: python -m docs.studies.comparison runs/compare-demo-scenes-relation"""

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from scale_interp.core.files import read_json, write_bytes
from scale_interp.evaluation import Comparison
from scale_interp.evaluation.comparison import tuning
from scale_interp.jobs.compare import figures

from .tables import span, table

HERE = Path(__file__).parent
DOCS = HERE.parent


def main(folder: Path) -> None:
    """Write the page, the numbers, and one PNG a figure (needs kaleido and Chrome: pip install "scale-interp[notebook]")."""
    found, told = Comparison.load(folder / "comparison.safetensors"), read_json(folder / "comparison.json")
    shutil.copyfile(folder / "comparison.json", HERE / "comparison.json")
    for name, figure in figures(found).items():
        figure.write_image(DOCS / "images" / f"comparison_{name}.png", scale=2)
    write_bytes(DOCS / "comparison.md", page(found, told).encode())


def page(found: Comparison, told: dict[str, Any]) -> str:
    s = told["settings"]
    findings = "\n".join(f"- {line}" for line in found.findings())
    return f"""# All methods on the same splits

    {told["command"]}
    python -m docs.studies.comparison runs/compare-demo-scenes-relation

`scale-interp compare` learns every method on {s["n_train"]} training questions, tunes it on {s["n_validation"]} validation questions, and
answers {s["n_test"]} test questions once; no two of these share a set of things. "Elsewhere" are {s["n_others"]} test questions of each
of {", ".join(s["others"])}. In Python it is `si.compare(vlm, train, validation, test, others=...)`.
Differences are paired, with 95% intervals; p is Holm-corrected over the methods. Every grid contains doing nothing, and among equal
settings the gentlest is taken.

![methods](images/comparison_methods.png)

{table(found.shown())}

{findings}

{gate(found)}

Passes: forward passes per answer. All but PASTA change only the prompt's last token, so that any number of settings and questions
on an image share one reading of the prompt; PASTA changes the prompt's keys and values. Parameters: numbers learned or tuned.

## Elsewhere

{elsewhere(found)}

## What is learned and tuned

| method | learned on training questions | tuned on validation questions |
|---|---|---|
| ScalingVis | nothing | weight: {listed(tuning.WEIGHTS)} |
| AdaptVis | nothing | of the same, a weight up to 1 where unsure and one from 1 where sure; threshold: the paper's, or a decile |
| PASTA | heads in the order of what each alone gains (alpha {tuning.PASTA_ALPHAS[-1]:g}, logit difference, {tuning.PROFILED} questions) | \
number of heads: {listed(tuning.PASTA_HEADS)}; alpha: {listed(tuning.PASTA_ALPHAS)} |
| ITI | heads by a probe of right and wrong answers; directions | number of heads: {listed(tuning.ITI_HEADS)}; alpha: \
{listed(tuning.ITI_ALPHAS)} |
| CogVSR emphasis | functional heads (above the elbow); direction of right answers | gain: {listed(tuning.GAINS)}, or alpha: \
{listed((0.5, *tuning.ALPHAS))} |
| latent heads | as many heads just below the elbow; direction of right answers | the same |
| ScAle | scalars on the top {s["top"]} heads by patching, on all heads, on all heads and MLPs | which of the three; strength: \
{listed(tuning.STRENGTHS)} |

Functional heads are those of the question's own function ("relational reasoning" here), found by the joint probe on decomposed scenes of
the train split. Data other than scenes have no tagged steps: there the heads are ranked by a logistic probe of the right answer on each,
and cut at the elbow. Both are our choices.

## Heads that the methods name

![heads](images/comparison_heads.png)

{sets(found)}

![overlap](images/comparison_overlap.png)

Jaccard overlap: shared heads divided by heads in either. p: two random sets of these sizes share as many heads (hypergeometric, one-sided),
Holm-corrected over the {len(found.heads.overlap())} pairs. Pairs below 0.05:

{overlaps(found)}

{apart(found)}
"""


def listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def gate(found: Comparison) -> str:
    """What AdaptVis' gate adds to one weight for all."""
    one, two = (found.right[:, found.methods.index(name)] for name in ("ScalingVis", "AdaptVis"))
    return f"AdaptVis is right where ScalingVis is wrong, or wrong where it is right, on {int((one != two).sum())} of {len(one)} questions."


def apart(found: Comparison) -> str:
    """Sets that agree with none beyond chance."""
    frame = found.heads.overlap()
    sure = frame[frame["p_holm"] < 0.05]
    alone = [name for name in found.heads.sets if name not in {*sure["a"], *sure["b"]}]
    told = f"Sets that agree with no other beyond chance: {', '.join(alone) or 'none'}."
    return f"{told} With so few heads a set, only a large overlap can be told from chance."


def elsewhere(found: Comparison) -> str:
    frame = found.by_task()
    frame["shown"] = [span(r.change, r.low, r.high, "+") for r in frame.itertuples()]
    frame["task"] = [f"{r.task} (base {r.base:.3f})" for r in frame.itertuples()]
    wide = frame.pivot(index="method", columns="task", values="shown").reindex(found.methods[1:])
    return table(wide.reset_index())


def sets(found: Comparison) -> str:
    rows = [
        {"set": name, "heads": " ".join(f"({layer},{head})" for layer, head in heads), "found by": found.heads.about.get(name, "")}
        for name, heads in found.heads.sets.items()
    ]
    missing = "".join(f"\nNo {name} heads: {why}\n" for name, why in found.heads.left_out.items())
    return table(pd.DataFrame(rows)) + missing


def overlaps(found: Comparison) -> str:
    frame = found.heads.overlap()
    sure = frame[frame["p_holm"] < 0.05].sort_values("p_holm")
    if sure.empty:
        return "None: no two sets share more heads than chance, after correction."
    shown = pd.DataFrame(
        {
            "sets": sure["a"] + ", " + sure["b"],
            "shared": sure["shared"],
            "by chance": sure["by_chance"].map("{:.1f}".format),
            "Jaccard": sure["jaccard"].map("{:.2f}".format),
            "p, Holm": sure["p_holm"].map("{:.2g}".format),
        }
    )
    return table(shown)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
