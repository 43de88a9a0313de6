"""Commands that compare methods: compare, baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Data, Model, app
from .machines import on_machines
from .printed import console, frame_table, say


@app.command()
@on_machines
def compare(
    model: Annotated[str, typer.Option(help="demo, demo-healthy, demo-prior, a folder, or a hub id")] = "demo",
    data: Data = "scenes/relation",
    others: Annotated[
        list[str] | None, typer.Option(help="a data set that no method should change; several may be given [default: other scenes]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a stopped run continues there [default: runs/compare-MODEL-DATA]")
    ] = None,
    n_train: Annotated[int, typer.Option(help="training questions, for heads, directions and scalars")] = 400,
    n_validation: Annotated[int, typer.Option(help="validation questions, for the choice of settings")] = 200,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 200,
    top: Annotated[int, typer.Option(help="how many heads to take from a method that only ranks them")] = 8,
    seed: int = 0,
) -> None:
    """Compare base, ScalingVis, AdaptVis, PASTA, ITI, CogVSR emphasis, latent heads and ScAle on the same splits, and their heads."""
    from ..jobs.compare import CompareSettings, run_comparison
    from ..jobs.job import folder_name

    given = {"others": tuple(others)} if others else {}
    settings = CompareSettings(
        model, data, n_train=n_train, n_validation=n_validation, n_test=n_test, n_others=n_others, top=top, seed=seed, **given
    )
    folder = out or Path("runs") / f"compare-{folder_name(model, data)}"
    found = run_comparison(settings, folder, say())
    frame_table(found.shown().drop(columns="tuned"), f"{model} on {data}, {len(found.right)} test questions")
    for line in found.findings():
        console().print(line, highlight=False)
    console().print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'comparison.json'}", sep="\n", soft_wrap=True)


@app.command()
@on_machines
def baselines(
    model: Model = "demo",
    data: Data = "scenes/relation",
    others: Annotated[
        list[str] | None, typer.Option(help="a data set that no method should change; several may be given [default: other scenes]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/baselines-MODEL-DATA]")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="a rank of LoRA; several may be given [default: 1, 4, 16]")] = None,
    rates: Annotated[int, typer.Option(help="learning rates that each method tries; held-out images decide")] = 2,
    epochs: Annotated[int, typer.Option(help="the largest number of epochs of any method")] = 16,
    n_train: Annotated[int, typer.Option(help="training questions")] = 240,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 100,
    seed: int = 0,
) -> None:
    """Compare ScAle with LoRA, IA3 and a last-token bias on one budget: gain, cost elsewhere, parameters, time (needs peft)."""
    from ..jobs.baselines import BaselineSettings, run_baselines, terminal_columns
    from ..jobs.job import folder_name

    ranks, elsewhere = tuple(rank or (1, 4, 16)), tuple(others) if others else None
    settings = BaselineSettings(model, data, elsewhere, ranks, rates, epochs, n_train, n_test, n_others, seed)
    folder = out or Path("runs") / f"baselines-{folder_name(model, data)}"
    found = run_baselines(settings, folder, say())
    frame_table(found.to_frame()[terminal_columns(found)], f"{model} on {data}, {n_test} test questions")
    console().print(found.verdict, highlight=False)
    console().print(f"numbers: {folder / 'baselines.json'}", f"figure: {folder / 'baselines.html'}", sep="\n", soft_wrap=True)
