"""The command that traces where in the prompt an answer is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, Model, app
from .machines import on_machines
from .options import DATA, MODEL, takes
from .printed import console, frame_table, say


@app.command()
@on_machines
@takes(MODEL, DATA)
def trace(
    model: Model = "demo",
    data: Data = "scenes/relation",
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/trace-MODEL-DATA]")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all")] = None,
    n: Annotated[int | None, typer.Option(help="how many questions")] = 40,
    seed: int = 0,
    change: Annotated[str, typer.Option(help="how contrast pairs are made: mirror, swap or set")] = "mirror",
    group: Annotated[
        list[str] | None, typer.Option(help="a token group; several may be given [default: image, boxes, words, last]")
    ] = None,
    **given: Any,
) -> None:
    """Where in the prompt, and from which layer on, the answer is: patching by layer and token group, and a page that shows it."""
    from ..jobs.job import folder_name
    from ..jobs.trace import TraceSettings, run_trace

    settings = TraceSettings(model, data, split, n, seed, change, tuple(group) if group else None, **given)  # type: ignore[arg-type]
    folder = out or Path("runs") / f"trace-{folder_name(model, data)}"
    table, notes = run_trace(settings, folder, say())
    shown = table[(table["component"] == "resid") & (table["questions"] == "all")]
    wide = shown.pivot(index="layer", columns="tokens", values="score")[list(dict.fromkeys(shown["tokens"]))]
    frame_table(wide.reset_index(), f"recovered fraction, {model} on {data}")
    for note in notes:
        console().print(note, highlight=False)
    console().print(f"report: {folder / 'report.html'}", soft_wrap=True)
