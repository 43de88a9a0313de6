"""The command line. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .run import Run, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Model = Annotated[str, typer.Argument(help="demo, demo-healthy, demo-prior, a folder, or a hub id")]
Data = Annotated[str, typer.Option(help="a data set, such as scenes/relation")]
Out = Annotated[Path | None, typer.Option(help="the run's folder [default: runs/MODEL-DATA]")]
Folder = Annotated[Path, typer.Argument(help="the run's folder")]
Quick = Annotated[bool, typer.Option("--quick", help="fewer questions and one seed: a look, no result")]


def main() -> None:
    """Run the command line; a library error is printed in one line, exit code 2."""
    from rich.markup import escape

    from .errors import ScaleInterpError

    try:
        app()
    except ScaleInterpError as error:
        _console(stderr=True).print("[bold red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def run(
    model: Model = "demo",
    data: Data = "scenes/relation",
    out: Out = None,
    quick: Quick = False,
    n_train: Annotated[int, typer.Option(help="training questions")] = 500,
    n_locate: Annotated[int, typer.Option(help="training questions that heads are located on")] = 120,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_retain: Annotated[int, typer.Option(help="non-spatial questions a task")] = 200,
    top: Annotated[int, typer.Option(help="how many heads to fit on")] = 8,
    seeds: Annotated[int, typer.Option(help="fits of each kind in the falsification")] = 3,
    seed: int = 0,
) -> None:
    """The whole job: locate heads, fit ScAle, evaluate, falsify, and write a report."""
    from .run import Settings

    settings = Settings.quick(model, data) if quick else Settings(model, data, n_train, n_locate, n_test, n_retain, top, seeds, seed)
    job = _open(settings, out)
    summary = job.everything()
    _closing_table(summary, job.folder)


@app.command()
def locate(model: Model = "demo", data: Data = "scenes/relation", out: Out = None, quick: Quick = False) -> None:
    """Head maps by patching, ablation, amplification and gradients: OUT/head_maps/*.safetensors."""
    from .run import Settings

    job = _open(Settings.quick(model, data) if quick else Settings(model, data), out)
    for name, found in job.locate().items():
        _console().print(f"{name:22}", *(f"({i},{h}) {float(found.scores[i, h]):+.3f}" for i, h in found.top(4)))
    _console().print(f"head maps in {job.folder / 'head_maps'}")


@app.command()
def fit(folder: Folder) -> None:
    """Fit ScAle in a run folder that has head maps: FOLDER/scale/."""
    for name, scale in _existing(folder).fit().items():
        _console().print(f"{name:10}", scale)


@app.command()
def evaluate(folder: Folder) -> None:
    """Answer the test questions in a run folder that has scalars."""
    for task, fits in _existing(folder).evaluate().items():
        _console().print(f"{task:10}", *(f"{name} {found.accuracy:.3f}" for name, found in fits.items()))


@app.command()
def falsify(folder: Folder) -> None:
    """Run the falsification suites in a run folder that has head maps."""
    for name, found in _existing(folder).falsify().items():
        _console().print(f"[bold]{name}[/]: {found.verdict}")


@app.command()
def report(folder: Folder) -> None:
    """Finish whatever a run folder lacks, and write its summary.json and report.html anew."""
    job = _existing(folder)
    _closing_table(job.everything(), folder)


@app.command()
def bench(
    model: Model = "demo",
    questions: Annotated[int, typer.Option(help="questions in the batch")] = 8,
    repeats: Annotated[int, typer.Option(help="timings of each way; the median is shown")] = 5,
    out: Annotated[Path | None, typer.Option(help="write the numbers as JSON here")] = None,
) -> None:
    """How much a packed sweep of all heads saves against one forward pass a head, in one run."""
    from dataclasses import asdict

    from rich.table import Table

    from .bench import bench as measure
    from .data.load import load_questions
    from .models.load import load
    from .record import write_json

    found = measure(load(model), load_questions("scenes/relation", n=questions), repeats)
    table = Table(title=f"{found.about['variants']} heads, {found.about['questions']} questions of {found.about['tokens']} tokens")
    for name in ("way", "seconds", "x ours", "largest |difference|"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in found.rows:
        table.add_row(row["way"], f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", f"{row['largest_difference']:.1e}")
    _console().print(table)
    _console().print(f"nnsight's own share of the packed sweep: {found.nnsight_share:.1%}")
    if out is not None:
        write_json(out, asdict(found) | {"nnsight_share": found.nnsight_share})


@app.command("train-demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="where checkpoints and the three models go; a stopped run resumes there")] = Path(
        "demo-training"
    ),
    seed: int = 0,
) -> None:
    """Train the embedded models anew, about 40 minutes on two cores, and measure them."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .models.demo.card import write_cards
    from .models.demo.recipe import train

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console()) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=steps, loss=loss)
            bar.update(tasks[stage], completed=step, loss=loss)

        train(out, seed, show)
    write_cards(out)
    _console().print(f"models and their cards in {out}")


def _open(settings: Settings, out: Path | None) -> Run:
    from .run import Run, default_folder

    return Run(out or default_folder(settings), settings, _say())


def _existing(folder: Path) -> Run:
    from .run import Run

    return Run.existing(folder, _say())


def _say() -> Callable[[str], None]:
    import time

    started, console = time.perf_counter(), _console(stderr=True)
    return lambda text: console.print(f"[dim]{time.perf_counter() - started:5.0f} s[/]  {text}", highlight=False)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


def _closing_table(summary: dict[str, Any], folder: Path) -> None:
    from rich.panel import Panel
    from rich.table import Table

    from .run_report import FITS, sentences

    table = Table(title=f"{summary['model']['model']} on {summary['settings']['data']}, {summary['settings']['n_test']} test questions")
    for name in ("", "accuracy", "gain", "95% interval", "non-spatial change", "parameters"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("base", f"{summary['base']['accuracy']:.3f}", "", "", "", "")
    for name, row in summary["fits"].items():
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        elsewhere = f"{row['non_spatial_change']:+.3f}"
        table.add_row(FITS[name], f"{row['accuracy']:.3f}", f"{row['gain']:+.3f}", interval, elsewhere, str(row["parameters"]))
    console = _console()
    console.print(table)
    console.print(Panel("\n".join(f"• {s}" for s in sentences(summary)), title="in plain words"), highlight=False)
    console.print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'summary.json'}", sep="\n", soft_wrap=True)
