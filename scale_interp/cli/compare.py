"""Commands that compare methods: compare, baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, Model, Others, app
from .machines import on_machines
from .options import DATA, MODEL, takes
from .printed import console, frame_table, say


@app.command()
@on_machines
@takes(MODEL, DATA)
def compare(
    model: Model = "demo",
    data: Data = "scenes/relation",
    others: Others = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a stopped run continues there [default: runs/compare-MODEL-DATA]")
    ] = None,
    n_train: Annotated[int, typer.Option(help="training questions, for heads, directions and scalars")] = 400,
    n_validation: Annotated[int, typer.Option(help="validation questions, for the choice of settings")] = 200,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 200,
    top: Annotated[int, typer.Option(help="how many heads to take from a method that only ranks them")] = 8,
    seed: int = 0,
    named: Annotated[str | None, typer.Option("--model", help="the same as MODEL")] = None,
    **given: Any,
) -> None:
    """Compare base, ScalingVis, AdaptVis, PASTA, ITI, CogVSR emphasis, latent heads and ScAle on the same splits, and their heads."""
    from ..jobs.compare import CompareSettings, run_comparison
    from ..jobs.job import folder_name

    model, elsewhere = named or model, tuple(others) if others else None
    settings = CompareSettings(model, data, elsewhere, n_train, n_validation, n_test, n_others, top, seed, **given)
    folder = out or Path("runs") / f"compare-{folder_name(model, data)}"
    found = run_comparison(settings, folder, say())
    frame_table(found.shown().drop(columns="tuned"), f"{model} on {data}, {len(found.right)} test questions")
    for line in found.findings():
        console().print(line, highlight=False)
    console().print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'comparison.json'}", sep="\n", soft_wrap=True)


@app.command()
@on_machines
@takes(MODEL, DATA)
def baselines(
    model: Model = "demo",
    data: Data = "scenes/relation",
    others: Others = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/baselines-MODEL-DATA]")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="a rank of LoRA; several may be given [default: 1, 4, 16]")] = None,
    rates: Annotated[int, typer.Option(help="learning rates that each method tries; held-out images decide")] = 2,
    epochs: Annotated[int, typer.Option(help="the largest number of epochs of any method")] = 16,
    n_train: Annotated[int, typer.Option(help="training questions")] = 240,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 100,
    seed: int = 0,
    **given: Any,
) -> None:
    """Compare ScAle with LoRA, IA3 and a last-token bias on one budget: gain, cost elsewhere, parameters, time (needs peft)."""
    from ..jobs.baselines import BaselineSettings, run_baselines, terminal_columns
    from ..jobs.job import folder_name

    ranks, elsewhere = tuple(rank or (1, 4, 16)), tuple(others) if others else None
    settings = BaselineSettings(model, data, elsewhere, ranks, rates, epochs, n_train, n_test, n_others, seed, **given)
    folder = out or Path("runs") / f"baselines-{folder_name(model, data)}"
    found = run_baselines(settings, folder, say())
    frame_table(found.to_frame()[terminal_columns(found)], f"{model} on {data}, {found.provenance['n']} test questions")
    console().print(found.verdict, highlight=False)
    console().print(f"numbers: {folder / 'baselines.json'}", f"figure: {folder / 'baselines.html'}", sep="\n", soft_wrap=True)
