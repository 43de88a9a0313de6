"""Commands about one model and one data set: ask, attention, data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, Model, app
from .machines import on_machines
from .options import DATA, MODEL, Root, takes
from .printed import console, frame_table, say


@app.command()
@on_machines
@takes(MODEL, DATA)
def ask(
    model: Model,
    data: Annotated[str | None, typer.Argument(help="a data set, as `scale-interp data` lists them")] = None,
    named: Annotated[str | None, typer.Option("--data", help="the same, as the other commands take it")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all")] = None,
    n: Annotated[int | None, typer.Option(help="how many questions [default: all of a set on disk, 200 generated ones]")] = None,
    seed: int = 0,
    change: Annotated[str, typer.Option(help="how contrast pairs are made: mirror, swap or set")] = "mirror",
    sweep: Annotated[int, typer.Option(help="questions that heads are located on")] = 40,
    text: Annotated[bool, typer.Option("--text", help="also let the model write its answers, and score the words")] = False,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/ask-MODEL-DATA]")] = None,
    **given: Any,
) -> None:
    """Ask MODEL the questions of DATA: the set's own metrics, contrast pairs, head maps, and a page that shows them."""
    from ..errors import DataError
    from ..jobs.ask import AskSettings, run_ask
    from ..jobs.job import folder_name

    if (data is None) == (named is None):
        raise DataError("name one data set, as in `scale-interp ask demo --data scenes/relation`")
    data = data or named or ""
    settings = AskSettings(model, data, split, n, seed, change, sweep, text, **given)  # type: ignore[arg-type]
    folder = out or Path("runs") / f"ask-{folder_name(model, data)}"
    table, notes = run_ask(settings, folder, say())
    frame_table(table, f"{model} on {data}")
    for note in notes:
        console().print(note, highlight=False)
    console().print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
@on_machines
@takes(MODEL, DATA)
def attention(
    model: Model = "demo",
    data: Data = "scenes/relation",
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/attention-MODEL-DATA]")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all")] = None,
    n: Annotated[int | None, typer.Option(help="how many questions [default: all of a set on disk, 200 generated ones]")] = None,
    seed: int = 0,
    pictures: Annotated[int, typer.Option(help="questions whose attention map is drawn")] = 4,
    **given: Any,
) -> None:
    """Attention to the image and to the asked boxes, by layer and head: tables, heatmaps and maps over images."""
    from ..jobs.attention import SHOWN, AttentionSettings, run_attention
    from ..jobs.job import folder_name

    settings = AttentionSettings(model, data, split, n, seed, pictures, **given)
    folder = out or Path("runs") / f"attention-{folder_name(model, data)}"
    heads, notes = run_attention(settings, folder, say())
    frame_table(heads.head(SHOWN), f"heads of {model} that look most at the asked objects of {data}")
    for note in notes:
        console().print(note, highlight=False)
    console().print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command("data")
def data_sets(root: Root = None) -> None:
    """List every data set that can be named: what it asks, how many questions it has, what of it is on disk, its licence."""
    from rich.markup import escape
    from rich.table import Table

    from ..data.readers.catalog import RENDERED
    from ..data.readers.source import Source, inventory

    table = Table(title=f"data sets in {escape(str(Source(root).root))}")
    for name in ("name", "asks", "questions", "on disk", "licence"):
        table.add_column(name, justify="right" if name == "questions" else "left", overflow="fold")
    for found in inventory(root):
        entry = found.entry
        name = entry.name if found.split == "all" else f"{entry.name} {found.split}"
        table.add_row(name, entry.asks, f"{entry.counts[found.split]:,}", escape(found.state), escape(entry.licence))
    for name, asks in RENDERED.items():
        table.add_row(name, asks, "any", "rendered", "MIT")
    table.add_row("jsonl:PATH", "any multiple-choice questions", "", "", "yours")
    table.add_row("boxes:PATH", "is there such a thing? (boxes/place:PATH, boxes/relation:PATH)", "", "", "yours")
    console().print(table)
