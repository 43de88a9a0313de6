"""Commands of the main job: run, locate, fit, evaluate, falsify, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import Data, Folder, Model, Others, Out, Quick, app
from .machines import on_machines
from .options import DATA, MODEL, PLACE, takes
from .printed import console, say

if TYPE_CHECKING:
    from ..jobs.run.run import Run
    from ..jobs.run.settings import Settings


@app.command()
@on_machines
@takes(MODEL, DATA)
def run(
    model: Model = "demo",
    data: Data = "scenes/relation",
    out: Out = None,
    quick: Quick = False,
    n_train: Annotated[int | None, typer.Option(help="training questions [default: 500, quick 200]")] = None,
    n_locate: Annotated[int | None, typer.Option(help="training questions that heads are located on [default: 120, quick 40]")] = None,
    n_test: Annotated[int | None, typer.Option(help="test questions [default: 400, quick 200]")] = None,
    n_retain: Annotated[int | None, typer.Option(help="questions of each other data set [default: 200, quick 100]")] = None,
    top: Annotated[int, typer.Option(help="how many heads to fit on")] = 8,
    seeds: Annotated[int | None, typer.Option(help="fits per control in the falsification [default: 3, quick 1]")] = None,
    seed: int = 0,
    others: Others = None,
    recipe: Annotated[str, typer.Option(help="how scalars are fitted: default, or release as the paper's code does")] = "default",
    **given: Any,
) -> None:
    """Do the whole job: locate heads, fit ScAle, evaluate, falsify, and write a report."""
    from ..jobs.run.settings import Settings

    counts = {"n_train": n_train, "n_locate": n_locate, "n_test": n_test, "n_retain": n_retain, "seeds": seeds}
    given |= {"recipe": recipe, "top": top, "seed": seed} | {name: count for name, count in counts.items() if count is not None}
    given |= {"others": tuple(others)} if others else {}
    job = _open((Settings.quick if quick else Settings)(model, data, **given), out)
    summary = job.everything()
    _closing_table(summary, job.folder)


@app.command()
@on_machines
@takes(MODEL, DATA)
def locate(model: Model = "demo", data: Data = "scenes/relation", out: Out = None, quick: Quick = False, **given: Any) -> None:
    """Make head maps by patching, ablation, amplification and gradients: OUT/head_maps/*.safetensors."""
    from ..jobs.run.settings import Settings

    job = _open((Settings.quick if quick else Settings)(model, data, **given), out)
    for name, found in job.locate().items():
        console().print(f"{name:22}", *(f"({i},{h}) {float(found.scores[i, h]):+.3f}" for i, h in found.top(4)))
    console().print(f"head maps in {job.folder / 'head_maps'}")


@app.command()
@takes(PLACE)
def fit(folder: Folder, **given: Any) -> None:
    """Fit ScAle in a run folder that has head maps: FOLDER/scale/."""
    for name, scale in _existing(folder, given).fit().items():
        console().print(f"{name:10}", scale)


@app.command()
@on_machines
@takes(PLACE)
def evaluate(folder: Folder, **given: Any) -> None:
    """Answer the test questions in a run folder that has scalars."""
    for task, fits in _existing(folder, given).evaluate().items():
        console().print(f"{task:10}", *(f"{name} {found.accuracy:.3f}" for name, found in fits.items()))


@app.command()
@on_machines
@takes(PLACE)
def falsify(folder: Folder, **given: Any) -> None:
    """Run the falsification suites in a run folder that has head maps."""
    for name, found in _existing(folder, given).falsify().items():
        console().print(f"[bold]{name}[/]: {found.verdict}")


@app.command()
@on_machines
@takes(PLACE)
def report(folder: Folder, **given: Any) -> None:
    """Complete whatever a run folder lacks, and write its summary.json and report.html again."""
    job = _existing(folder, given)
    _closing_table(job.everything(again=True), folder)


def _open(settings: Settings, out: Path | None) -> Run:
    from ..jobs.run.run import Run
    from ..jobs.run.settings import default_folder

    return Run(out or default_folder(settings), settings, say())


def _existing(folder: Path, place: Mapping[str, str | None]) -> Run:
    from ..jobs.run.run import Run

    return Run.existing(folder, say(), {name: value for name, value in place.items() if value is not None})


def _closing_table(summary: dict[str, Any], folder: Path) -> None:
    from rich.panel import Panel
    from rich.table import Table

    from ..jobs.run.page import FITS, sentences

    table = Table(title=f"{summary['model']['model']} on {summary['settings']['data']}, {summary['questions']['test']} test questions")
    for name in ("", "accuracy", "gain", "95% interval", "change elsewhere", "parameters"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("base", f"{summary['base']['accuracy']:.3f}", "", "", "", "")
    for name, row in summary["fits"].items():
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        elsewhere = "" if row["non_spatial_change"] is None else f"{row['non_spatial_change']:+.3f}"
        table.add_row(FITS[name], f"{row['accuracy']:.3f}", f"{row['gain']:+.3f}", interval, elsewhere, str(row["parameters"]))
    out = console()
    out.print(table)
    out.print(Panel("\n".join(f"• {s}" for s in (*summary["notes"], *sentences(summary))), title="in plain words"), highlight=False)
    out.print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'summary.json'}", sep="\n", soft_wrap=True)
