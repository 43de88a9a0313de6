"""Commands about finished and unfinished runs: runs, show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Folder, app
from .printed import console, frame_table


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="the folder that contains the runs")] = Path("runs")) -> None:
    """List the runs in FOLDER, the latest first: what each computes, how far it got, and what it found."""
    from rich.markup import escape
    from rich.table import Table

    from ..jobs.info import runs_in

    found, broken = runs_in(folder)
    table = Table(title=f"runs in {escape(str(folder))}")
    # Two lines per run, so that everything fits into 80 columns.
    for name in ("folder\ncommand, model, data", "status\nsteps done", "found", "age\nsize"):
        table.add_column(name, overflow="fold", justify="right" if name.startswith("age") else "left")
    now = datetime.now().astimezone()
    for run in found:
        what = ", ".join(filter(None, (run.kind, run.model, run.data)))
        age = _age((now - run.began).total_seconds())
        cells = (f"{run.folder.name}\n{what}", f"{run.status}\n{run.progress}", run.headline, f"{age}\n{_size(run.size)}")
        table.add_row(*map(escape, cells), end_section=True)
    console().print(table if found else f"no runs in {escape(str(folder))}")
    for path, why in broken.items():
        console(stderr=True).print("[yellow]left out:[/]", escape(f"{path}: {why}"), highlight=False, soft_wrap=True)


@app.command()
def show(folder: Folder) -> None:
    """Show the run in FOLDER: its settings, its steps, what it found, and its files, each checked against its checksum."""
    from rich.markup import escape
    from rich.table import Table

    from ..jobs.info import read_run

    run, out = read_run(folder), console()
    facts = Table(title=escape(f"{run.kind} in {run.folder}"), show_header=False)
    took = "" if run.seconds is None else f", {run.seconds:,.0f} s of work"
    facts.add_row("status", escape(f"{run.status}, {run.progress} steps done"))
    facts.add_row("began", f"{run.began:%Y-%m-%d %H:%M}{took}")
    if run.command:
        facts.add_row("again by", escape(run.command))
    for name, content in run.about.items():
        facts.add_row(name, escape(_told(content)))
    out.print(facts)
    if left := ", ".join(step for step in run.steps if step not in run.done):
        out.print(f"to do: {escape(left)}", highlight=False)
    for line in filter(None, (run.headline, *run.findings)):
        out.print(f"• {escape(line)}", highlight=False)
    files = Table(title="files")
    for name in ("file", "step", "size", "state"):
        files.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for file in run.files:
        files.add_row(escape(file.name), file.step, _size(file.size), file.state())
    out.print(files)


@app.command("compare-runs")
def compare_two_runs(
    first: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    second: Annotated[Path, typer.Argument(help="the folder of another one")],
    out: Annotated[Path | None, typer.Option(help="write a page to this file, .html")] = None,
) -> None:
    """Compare two finished runs: settings, answers, verdicts, head maps, scalars. What cannot be compared is named."""
    from ..jobs.two_runs import agreement_table, answers_table, compare_runs, write_compared
    from ..viz.save import require_page

    if out is not None:
        require_page(out)
    found = compare_runs(first, second)
    for table, title in (
        (found.settings, "settings that differ"),
        (answers_table(found), "accuracy, and gain over the run's own base model"),
        (found.verdicts, "falsification"),
        (agreement_table(found), "how far heads and scalars agree"),
    ):
        if len(table):
            frame_table(table, title)
    for line in found.notes:
        console().print(line, highlight=False)
    if out is not None:
        write_compared(found, out)
        console().print(f"page: {out}", soft_wrap=True)


def _told(content: Mapping[str, Any]) -> str:
    """Settings in one line, without those that were left open; each split of the questions by the parts that name it."""
    parts = []
    for name, value in content.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            known = {"content_hash": value.get("data_hash"), **value}
            value = " ".join(f"{known[k]}" for k in ("data", "split", "n", "content_hash") if known.get(k) not in (None, ""))
        parts.append(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return ", ".join(parts)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
