"""Commands that repeat published experiments: reproduce scale, reproduce adaptvis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Commands, app
from .machines import on_machines
from .options import MODEL, Root, takes
from .printed import console, frame_table, say

reproduce = typer.Typer(cls=Commands, no_args_is_help=True, help="Repeat a published experiment as its authors' code does it.")
app.add_typer(reproduce, name="reproduce")

Asked = Annotated[str, typer.Argument(help="the model: a hub id, a folder, or an embedded one")]


@reproduce.command("scale")
@on_machines
@takes(MODEL, {"root": Root})
def reproduce_scale(
    model: Asked,
    task: Annotated[str, typer.Option(help="map, maze or grid")] = "map",
    seed: Annotated[int, typer.Option(help="of the authors' split: 0, 1 or 2")] = 0,
    data: Annotated[str | None, typer.Option(help="the set [default: spatialeval/vqa/TASK]; generated/vqa/TASK needs no files")] = None,
    n: Annotated[int | None, typer.Option(help="how many generated questions are split [default: 200]")] = None,
    n_train: Annotated[int | None, typer.Option(help="only the first of the training questions")] = None,
    n_test: Annotated[int | None, typer.Option(help="only the first of the test questions")] = None,
    epochs: int = 10,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a stopped run continues there [default: runs/scale-MODEL-TASK]")
    ] = None,
    **given: Any,
) -> None:
    """ScAle as released: baseline, 10 epochs, test accuracy of each, heads, MLPs and both; then without leak and choice of epoch."""
    from ..jobs.job import folder_name
    from ..jobs.reproduce.scale import ScaleSettings, findings, rows_beside_paper, run_scale

    settings = ScaleSettings(model, task, seed, data, n, n_train, n_test, epochs, **given)
    folder = out or Path("runs") / f"scale-{folder_name(model, f'{task}-{seed}')}"
    found = run_scale(settings, folder, say())
    frame_table(rows_beside_paper(found, settings), f"ScAle on {settings.asks}, seed {seed}, {len(found.trained):,} test questions")
    for line in findings(found, settings):
        console().print(line, highlight=False)
    console().print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'summary.json'}", sep="\n", soft_wrap=True)


@reproduce.command("adaptvis")
@on_machines
@takes(MODEL, {"root": Root})
def reproduce_adaptvis(
    model: Asked,
    data: Annotated[
        str, typer.Option(help="whatsup/controlled_a, whatsup/controlled_b, coco_qa/one, ..., vg_qa/two")
    ] = "whatsup/controlled_a",
    seed: Annotated[int, typer.Option(help="draws the fifth that settings are tuned on")] = 1,
    n: Annotated[int | None, typer.Option(help="only the first n questions")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="the authors' file of prompts, or its folder [default: our own words in the same form]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="the longest answer")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a stopped run continues there [default: runs/adaptvis-MODEL-DATA]")
    ] = None,
    **given: Any,
) -> None:
    """ScalingVis and AdaptVis as released: layers below 32, greedy text, substring scoring, settings tuned on a fifth."""
    from ..jobs.job import folder_name
    from ..jobs.reproduce.adaptvis import AdaptVisSettings, findings, repeat_adaptvis, rows_beside_paper

    settings = AdaptVisSettings(model, data, seed, n, None if prompts is None else str(prompts), max_new_tokens, **given)
    folder = out or Path("runs") / f"adaptvis-{folder_name(model, data)}"
    found = repeat_adaptvis(settings, folder, say())
    frame_table(rows_beside_paper(found, settings), f"{model} on {data}, {int(found.tested.sum()):,} test questions")
    for line in findings(found, settings):
        console().print(line, highlight=False)
    console().print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'summary.json'}", sep="\n", soft_wrap=True)
