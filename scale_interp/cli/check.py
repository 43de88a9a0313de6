"""Commands that test the toolkit itself: check, calibrate, testbed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import Model, Others, app
from .options import DATA, MODEL, Device, takes
from .printed import console, frame_table, print_whole, say

if TYPE_CHECKING:
    from ..jobs.plan import Plan
    from ..vlm.report import Report


@app.command()
@takes({name: option for name, option in MODEL.items() if name != "dtype"}, DATA)
def check(
    model: Model,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; several may be given [default: all three]")] = None,
    data: Annotated[str | None, typer.Option(help="also plan the main job on this data set: memory, batches, time")] = None,
    others: Others = None,
    **given: Any,
) -> None:
    """Does MODEL work here, how exactly, and what will it take?

    Two questions are asked by every path and by plain nnsight, in each dtype. With --data, a few of its questions are run, and
    what the main job takes is worked out from them: weights, keys and values, batches, where prompts are kept, time.
    """
    from ..errors import ModelError
    from ..interventions.check import TOLERANCE
    from ..interventions.check import check as compare
    from ..jobs.run.duration import plan_run
    from ..jobs.run.settings import Settings

    given |= {"others": tuple(others)} if others else {}
    known = {str(t).removeprefix("torch."): t for t in TOLERANCE}
    wanted = list(dtype or known)
    if wrong := next((name for name in wanted if name not in known), None):
        raise ModelError(f"dtype {wrong!r}: choose from {', '.join(known)}")
    reports, plans = [], []
    for name in wanted:
        settings = Settings(model, data or "scenes/relation", dtype=name, **given)
        vlm = settings.open_model(model, check=False)
        report = vlm.report = compare(vlm)
        reports.append(report)
        if data is not None:
            plans.append(plan_run(vlm, settings))
    _check_tables(reports)
    for plan in plans:
        _plan_table(plan)
    for r in reports:
        if not r.known and not r.agrees:
            raise ModelError(f"{r.model} in {r.dtype}: {r.why}")


@app.command()
def calibrate(
    suites: Annotated[int, typer.Option(help="suites on answers without signal")] = 200,
    power: Annotated[int, typer.Option(help="suites on planted shortfalls")] = 40,
    out: Annotated[Path, typer.Option(help="the run's folder; a stopped calibration continues there")] = Path("runs/calibration"),
    device: Device = None,
) -> None:
    """Measure how often the falsification suite is wrong: rejections without signal, and gains found on planted shortfalls."""
    from ..jobs.calibrate import run_calibration

    found = run_calibration(suites, power, out, say(), device)
    frame_table(found.table(), f"{suites} suites without signal, {power} on planted shortfalls")
    console().print(f"numbers: {out / 'calibration.json'}", soft_wrap=True)


@app.command("testbed")
def score_testbeds(
    name: Annotated[
        str | None, typer.Argument(help="a known-circuit model or a planted shortfall, as in docs/testbeds.md [default: all]")
    ] = None,
    draws: Annotated[int, typer.Option(help="how many draws of questions each method is scored on")] = 5,
    out: Annotated[Path | None, typer.Option(help="write testbeds.json, testbeds.md and pictures/ into this folder")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="instead, train the model NAME again")] = False,
    training: Annotated[Path, typer.Option(help="where --rebuild works; a stopped run resumes there")] = Path("testbed-training"),
    device: Device = None,
) -> None:
    """Do attribution methods find the heads that are known to matter? AUROC, precision and faithfulness on test-beds."""
    from ..core.progress import StageBars
    from ..jobs import testbed as bed

    if rebuild:
        with StageBars() as bars:
            bed.rebuild(name, training, bars)
        console().print(f"model and card in {training / (name or '')}")
        return
    show = lambda title, table: frame_table(table, title)  # noqa: E731
    if out is None:
        bed.show_tables(*bed.measure(name, draws, device=device), show)
        return
    for line in bed.run_testbeds(name, draws, out, say(), show, device):
        console().print(line, highlight=False)
    console().print(f"page: {out / 'testbeds.md'}", soft_wrap=True)


def _plan_table(plan: Plan) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"the main job in {plan.dtype}"), show_header=False)
    for name, said in plan.rows():
        table.add_row(name, escape(said))
    console().print(table)


def _check_tables(reports: list[Report]) -> None:
    from rich.table import Table

    first = reports[0]
    facts, differences = (
        Table(title=first.model, show_header=False),
        Table(title=f"two questions of up to {first.tokens} tokens, in logits"),
    )
    for name, fact in (
        ("family", first.family + ("" if first.known else ", which is unknown: accepted only if all paths agree")),
        ("model", first.model_class),
        ("processor", first.processor_class),
        ("attention", first.attention),
        ("layers x heads x head dimension", f"{first.layers} x {first.heads} x {first.head_dim}"),
        ("query heads per key-value head", str(first.groups)),
    ):
        facts.add_row(name, fact)
    for name in (
        "dtype",
        "path",
        "packed / reference",
        "clean runs",
        "reference / nnsight",
        "within a call",
        "allowed",
        "sweep of all heads",
    ):
        differences.add_column(name, justify="left" if name in ("dtype", "path") else "right")
    for r in reports:
        measured = (f"{x:.1e}" for x in (r.packed_reference, r.clean, r.nnsight, r.rounding, r.allowed))
        differences.add_row(r.dtype, r.path, *measured, f"{r.sweep_bytes / 2**20:.1f} MiB beside {r.weight_bytes / 2**20:.1f} of weights")
    out = console()
    out.print(facts)
    print_whole(differences)
    for why in dict.fromkeys(f"reference path: {r.why}" for r in reports if r.path == "reference"):
        out.print(why, highlight=False, soft_wrap=True)
