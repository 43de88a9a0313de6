"""The command that times the toolkit: bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .options import Device, Dtype
from .printed import console, say

if TYPE_CHECKING:
    from ..bench import Benchmark
    from ..bench.fits import FitsBenchmark


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="a model, or realistic/LAYERSxHEADSxWIDTH [default: a LLaVA of realistic shape with 64 heads, and one with 1,024]"
        ),
    ] = None,
    questions: Annotated[int | None, typer.Option(help="questions in the batch [default: 8, or 1 where no model is named]")] = None,
    repeats: Annotated[int, typer.Option(help="timings of each way; the median is shown")] = 5,
    sample: Annotated[int, typer.Option(help="how many heads to time where one run per head takes too long; 0: all")] = 32,
    memory: Annotated[bool, typer.Option("--memory", help="also measure peak memory (always done where no model is named)")] = False,
    fits: Annotated[bool, typer.Option("--fits", help="instead, time 32 fits of ScAle side by side against one (16 questions)")] = False,
    device: Device = None,
    dtype: Dtype = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder, into which the numbers are written")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the times into this file, .html or .png")] = None,
) -> None:
    """Time a packed sweep of all heads against the usual ways, and against the limit of what is possible."""
    from ..errors import FileError
    from ..jobs.bench import BenchSettings, run_fits, run_sweeps, time_fits, time_sweeps

    if figure is not None and figure.suffix not in (".html", ".png"):
        raise FileError(f"figure {figure}: name a file that ends in .html or .png")
    settings = BenchSettings(model, questions, repeats, sample, memory, fits, device, dtype)
    if fits:
        _fits_table(time_fits(settings) if out is None else run_fits(settings, out, say()))
        return
    found = time_sweeps(settings, _bench_table) if out is None else run_sweeps(settings, out, say(), _bench_table)
    if figure is not None:
        from ..viz import speed

        drawn = speed(found)
        if figure.suffix == ".html":
            drawn.write_html(figure)
        else:
            drawn.write_image(figure, scale=2)


def _bench_table(found: Benchmark) -> None:
    from rich.markup import escape
    from rich.table import Table

    about = found.about
    title = f"{about['model']}: {about['variants']:,} heads, {about['questions']} question(s) of {about['tokens']} tokens"
    table = Table(title=title)
    for name in ("way", "seconds", "x ours", "largest |difference|"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in found.rows:
        difference = "" if row.largest_difference is None else f"{row.largest_difference:.1e}"
        way = f"{row.way} ({found.sampled(row)})" if found.sampled(row) else row.way
        table.add_row(way, f"{row.seconds:,.3f}", f"{row.ratio:,.2f}", difference)
    out = console()
    out.print(table)
    for way, why in found.left_out.items():
        out.print(f"left out: {way}: {escape(why)}", highlight=False, soft_wrap=True)
    out.print(f"ours / one plain forward over as many tokens: {found.over_limit:.2f}", highlight=False)
    out.print(f"nnsight's share of the same sweep in a trace: {found.nnsight_share:.1%}", highlight=False)
    if found.memory is not None:
        loaded, forward, sweep = (f"{n / 1e9:.2f} GB" for n in (found.memory.loaded, found.memory.forward, found.memory.sweep))
        text = f"peak memory: {loaded} once loaded, {forward} with one forward, {sweep} with the sweep ({found.memory.ratio:.2f} times)"
        out.print(text, highlight=False, soft_wrap=True)


def _fits_table(found: FitsBenchmark) -> None:
    from rich.table import Table

    about = found.about
    table = Table(title=f"{about['model']}: {about['epochs']} epochs on {about['questions']} questions of {about['tokens']} tokens")
    for name in ("", "seconds", "x one fit"):
        table.add_column(name, justify="right" if name else "left")
    for name, seconds, ratio in (
        ("reading the prompts", found.reading, found.reading / found.one),
        ("one fit", found.one, 1.0),
        (f"{found.fits} fits side by side", found.together, found.ratio),
    ):
        table.add_row(name, f"{seconds:,.2f}", f"{ratio:.2f}")
    console().print(table)
    console().print(f"largest difference of a scalar to the same fit alone: {found.largest_difference:.1e}", highlight=False)
    if found.step:
        whole, beside = found.step["whole"], found.step["beside_the_model"]
        console().print(f"one step of one fit: {1000 * whole:,.1f} ms, of which {beside:.1%} are not the model", highlight=False)
