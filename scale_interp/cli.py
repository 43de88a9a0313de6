"""The command line. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from .bench import Benchmark
    from .bench.fits import FitsBenchmark
    from .interventions.check import Report
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
def calibrate(
    suites: Annotated[int, typer.Option(help="suites on answers without signal")] = 200,
    power: Annotated[int, typer.Option(help="suites on planted shortfalls")] = 40,
    out: Annotated[Path, typer.Option(help="the JSON to write; a log beside it lets a stopped run go on")] = Path("calibration.json"),
) -> None:
    """How often the falsification suite is wrong: rejections without signal, and gains found on planted shortfalls."""
    from .evaluation.calibration import calibrate as run_suites

    found = run_suites(suites, power, log=out.with_suffix(".jsonl"))
    found.save(out)
    _frame_table(found.table(), f"{suites} suites without signal, {power} on planted shortfalls")
    _console().print(f"numbers: {out}", soft_wrap=True)


@app.command()
def report(folder: Folder) -> None:
    """Finish whatever a run folder lacks, and write its summary.json and report.html anew."""
    job = _existing(folder)
    _closing_table(job.everything(), folder)


@app.command()
def compare(
    model: Annotated[str, typer.Option(help="demo, demo-healthy, demo-prior, a folder, or a hub id")] = "demo",
    data: Data = "scenes/relation",
    others: Annotated[
        list[str] | None, typer.Option(help="a data set that no method should change; several may be given [default: other scenes]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the folder; a stopped run goes on there [default: runs/compare-MODEL-DATA]")] = None,
    n_train: Annotated[int, typer.Option(help="training questions: heads, directions and scalars")] = 400,
    n_validation: Annotated[int, typer.Option(help="validation questions: settings")] = 200,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 200,
    top: Annotated[int, typer.Option(help="how many heads a set holds whose method only ranks them")] = 8,
    seed: int = 0,
) -> None:
    """Base, ScalingVis, AdaptVis, PASTA, ITI, CogVSR emphasis, latent heads and ScAle on the same splits, and their heads."""
    from .compare_run import CompareSettings, run_comparison
    from .run import folder_name

    given = {"others": tuple(others)} if others else {}
    settings = CompareSettings(
        model, data, n_train=n_train, n_validation=n_validation, n_test=n_test, n_others=n_others, top=top, seed=seed, **given
    )
    folder = out or Path("runs") / f"compare-{folder_name(model, data)}"
    found = run_comparison(settings, folder, _say())
    _frame_table(found.shown().drop(columns="tuned"), f"{model} on {data}, {len(found.right)} test questions")
    for line in found.findings():
        _console().print(line, highlight=False)
    _console().print(f"report: {folder / 'report.html'}", f"numbers: {folder / 'comparison.json'}", sep="\n", soft_wrap=True)


@app.command()
def baselines(
    model: Model = "demo",
    data: Data = "scenes/relation",
    others: Annotated[
        list[str] | None, typer.Option(help="a data set that no method should change; several may be given [default: other scenes]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: runs/baselines-MODEL-DATA]")] = None,
    rank: Annotated[list[int] | None, typer.Option(help="a rank of LoRA; several may be given [default: 1, 4, 16]")] = None,
    rates: Annotated[int, typer.Option(help="learning rates that each method tries; held-out pictures decide")] = 2,
    epochs: Annotated[int, typer.Option(help="the most epochs of any method")] = 16,
    n_train: Annotated[int, typer.Option(help="training questions")] = 240,
    n_test: Annotated[int, typer.Option(help="test questions")] = 400,
    n_others: Annotated[int, typer.Option(help="questions of each other data set")] = 100,
    seed: int = 0,
) -> None:
    """ScAle beside LoRA, IA3 and a last-token bias on one budget: gain, cost elsewhere, parameters, time (needs peft)."""
    from .baselines_run import BaselineSettings, run_baselines, shown
    from .run import folder_name

    ranks, elsewhere = tuple(rank or (1, 4, 16)), tuple(others) if others else None
    settings = BaselineSettings(model, data, elsewhere, ranks, rates, epochs, n_train, n_test, n_others, seed)
    folder = out or Path("runs") / f"baselines-{folder_name(model, data)}"
    found = run_baselines(settings, folder, _say())
    _frame_table(found.to_frame()[shown(found)], f"{model} on {data}, {n_test} test questions")
    _console().print(found.verdict, highlight=False)
    _console().print(f"numbers: {folder / 'baselines.json'}", f"figure: {folder / 'baselines.html'}", sep="\n", soft_wrap=True)


@app.command()
def ask(
    model: Model,
    data: Annotated[str, typer.Argument(help="a data set, as `scale-interp data` lists them")],
    root: Annotated[Path | None, typer.Option(help="where the set lies (default: $SCALE_INTERP_DATA, else ./data)")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all")] = None,
    n: Annotated[int | None, typer.Option(help="how many questions (default: all of a set on disk, 200 generated ones)")] = None,
    seed: int = 0,
    change: Annotated[str, typer.Option(help="how contrast pairs are made: mirror, swap or set")] = "mirror",
    sweep: Annotated[int, typer.Option(help="questions that heads are located on")] = 40,
    text: Annotated[bool, typer.Option("--text", help="have the model write its answers too, and score the words")] = False,
    out: Annotated[Path | None, typer.Option(help="the folder to write (default: asked/MODEL-DATA)")] = None,
) -> None:
    """Ask MODEL the questions of DATA: the set's own metrics, contrast pairs, head maps, and a page that shows them."""
    from .ask import ask as run_questions
    from .ask import notes, write_asked
    from .data.load import load_questions
    from .models.load import load
    from .run import folder_name

    questions = load_questions(data, split, n, seed, root=root)
    vlm = load(model)
    found = run_questions(vlm, questions, change=change, sweep=sweep, text=text)  # type: ignore[arg-type]
    folder = out or Path("asked") / folder_name(model, data)
    flags = {"root": root, "split": split, "n": n, "seed": seed, "change": change, "sweep": sweep}
    given = "".join(f" --{name} {value}" for name, value in flags.items() if value is not None) + " --text" * text
    write_asked(found, vlm, folder, f"scale-interp ask {model} {data}{given}")
    _frame_table(found.table, f"{model} on {data}")
    for note in notes(found):
        _console().print(note, highlight=False)
    _console().print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def attention(
    model: Model = "demo",
    data: Data = "scenes/relation",
    out: Annotated[Path | None, typer.Option(help="the folder to write [default: attended/MODEL-DATA]")] = None,
    root: Annotated[Path | None, typer.Option(help="where the set lies [default: $SCALE_INTERP_DATA, else ./data]")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all")] = None,
    n: Annotated[int | None, typer.Option(help="how many questions [default: all of a set on disk, 200 generated ones]")] = None,
    seed: int = 0,
    pictures: Annotated[int, typer.Option(help="questions whose map is drawn")] = 4,
) -> None:
    """Attention to the picture and to the asked boxes, by layer and head: tables, heatmaps and maps over pictures."""
    from .attention import SHOWN, attend, notes, write_attended
    from .data.load import load_questions
    from .models.load import load
    from .run import folder_name

    result = attend(load(model), load_questions(data, split, n, seed, root=root), pictures)
    folder = out or Path("attended") / folder_name(model, data)
    flags = {"root": root, "split": split, "n": n, "seed": seed, "pictures": pictures}
    given = "".join(f" --{name} {value}" for name, value in flags.items() if value is not None)
    write_attended(result, folder, f"scale-interp attention {model} --data {data}{given}")
    _frame_table(result.heads.head(SHOWN), f"heads of {model} that look most at the asked objects of {data}")
    for note in notes(result):
        _console().print(note, highlight=False)
    _console().print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def check(
    model: Model,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; several may be given [default: all three]")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto spreads the model over the devices there are")] = None,
) -> None:
    """Does MODEL work here, and how exactly? One question by every path and by plain nnsight, in each dtype."""
    from .errors import ModelError
    from .interventions.check import TOLERANCE
    from .interventions.check import check as compare
    from .models.load import load

    known = {str(t).removeprefix("torch."): t for t in TOLERANCE}
    reports = []
    for name in dtype or known:
        if name not in known:
            raise ModelError(f"dtype {name!r}: choose from {', '.join(known)}")
        reports.append(compare(load(model, dtype=known[name], device_map=device_map, check=False)))
    _check_tables(reports)
    for r in reports:
        if not r.known and not r.agrees:
            raise ModelError(f"{r.model} in {r.dtype}: {r.why}")


@app.command("data")
def data_sets(
    root: Annotated[Path | None, typer.Option(help="the folder of the sets [default: $SCALE_INTERP_DATA, else ./data]")] = None,
) -> None:
    """Every data set that can be named: what it asks, how many questions, what of it lies on disk, its licence."""
    from rich.markup import escape
    from rich.table import Table

    from .data.catalog import RENDERED
    from .data.source import Source, inventory

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
    _console().print(table)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="as elsewhere, or realistic/LAYERSxHEADSxWIDTH (default: a LLaVA of realistic shape with 64 heads, and one with 1,024)"
        ),
    ] = None,
    questions: Annotated[int | None, typer.Option(help="questions in the batch (default: 8, or 1 where no model is named)")] = None,
    repeats: Annotated[int, typer.Option(help="timings of each way; the median is shown")] = 5,
    sample: Annotated[int, typer.Option(help="heads that stand for all where one run a head takes too long; 0: time all")] = 32,
    memory: Annotated[bool, typer.Option("--memory", help="measure peak memory too (always done where no model is named)")] = False,
    fits: Annotated[bool, typer.Option("--fits", help="time 32 fits of ScAle side by side against one instead (16 questions)")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")] = None,
    out: Annotated[Path | None, typer.Option(help="write the numbers as JSON here")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the times here, .html or .png")] = None,
) -> None:
    """What a packed sweep of all heads saves against the ways in use, and how near it is to the limit, in one run."""
    from .bench import bench as measure
    from .bench import write_benchmarks
    from .bench.memory import DATA, measure_memory
    from .bench.realistic import SHAPES, open_model
    from .data.load import load_questions
    from .errors import FileError

    if figure is not None and figure.suffix not in (".html", ".png"):
        raise FileError(f"figure {figure}: name a file that ends in .html or .png")
    if fits:
        from .bench.fits import bench_fits, write_fits

        train = load_questions(DATA, "train", n=questions or 16)
        compared = bench_fits(open_model(model or SHAPES[0], device, dtype), train, repeats=repeats)
        _fits_table(compared)
        if out is not None:
            write_fits(out, compared)
        return
    n = questions or (8 if model else 1)
    asked = load_questions(DATA, n=n)
    found = []
    for name in (model,) if model else SHAPES:
        taken = measure_memory(name, n, device, dtype) if memory or model is None else None
        found.append(measure(open_model(name, device, dtype), asked, repeats, sample, taken))
        _bench_table(found[-1])
    if out is not None:
        write_benchmarks(out, found)
    if figure is not None:
        from .viz import speed

        drawn = speed(found)
        if figure.suffix == ".html":
            drawn.write_html(figure)
        else:
            drawn.write_image(figure, scale=2)


@app.command("testbed")
def score_testbeds(
    name: Annotated[
        str | None, typer.Argument(help="a known-circuit model or a planted shortfall, as in docs/testbeds.md (default: all)")
    ] = None,
    draws: Annotated[int, typer.Option(help="draws of questions that each method is scored on")] = 5,
    out: Annotated[Path | None, typer.Option(help="write testbeds.json, testbeds.md and pictures/ into this folder")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="train the model NAME anew instead")] = False,
    training: Annotated[Path, typer.Option(help="where --rebuild works; a stopped run resumes there")] = Path("testbed-training"),
) -> None:
    """Do attribution methods find the heads that are known to matter? AUROC, precision and faithfulness on test-beds."""
    from . import testbed as bed

    if rebuild:
        _training_bars(lambda show: bed.rebuild(name, training, show))
        _console().print(f"model and card in {training / (name or '')}")
        return
    known, plantings = bed.measure(name, draws)
    for k in known:
        _frame_table(k.summary(), k.name)
    if plantings:
        _frame_table(bed.recovery_summary(plantings), "scalars on planted shortfalls")
    if out is not None:
        bed.write_docs(known, plantings, out, "scale-interp testbed" + f" {name}" * bool(name) + f" --draws {draws}" + f" --out {out}")


@app.command("train-demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="where checkpoints and the three models go; a stopped run resumes there")] = Path(
        "demo-training"
    ),
    seed: int = 0,
) -> None:
    """Train the embedded models anew, about 40 minutes on two cores, and measure them."""
    from .models.demo.card import write_cards
    from .models.demo.recipe import train

    _training_bars(lambda show: train(out, seed, show))
    write_cards(out)
    _console().print(f"models and their cards in {out}")


def _training_bars(train: Callable[[Callable[[str, int, int, float], None]], None]) -> None:
    """Run a training that is given what to call after each step: stage, step, steps, loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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

        train(show)


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


def _frame_table(frame: pd.DataFrame, title: str) -> None:
    from pandas.api.types import is_numeric_dtype
    from rich.table import Table

    table = Table(title=title)
    for name in frame.columns:
        table.add_column(str(name), justify="right" if is_numeric_dtype(frame[name]) else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    _console().print(table)


def _check_tables(reports: list[Report]) -> None:
    from rich.table import Table

    first = reports[0]
    facts, differences = Table(title=first.model, show_header=False), Table(title=f"one question of {first.tokens} tokens, in logits")
    for name, fact in (
        ("family", first.family + ("" if first.known else ", not a known one: taken only if all paths agree")),
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
    console = _console()
    console.print(facts)
    console.print(differences)
    for why in dict.fromkeys(f"reference path: {r.why}" for r in reports if r.path == "reference"):
        console.print(why, highlight=False, soft_wrap=True)


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
    console = _console()
    console.print(table)
    for way, why in found.left_out.items():
        console.print(f"left out: {way}: {escape(why)}", highlight=False, soft_wrap=True)
    console.print(f"ours / one plain forward over as many tokens: {found.over_limit:.2f}", highlight=False)
    console.print(f"nnsight's own share of the packed sweep: {found.nnsight_share:.1%}", highlight=False)
    if found.memory is not None:
        loaded, forward, sweep = (f"{n / 1e9:.2f} GB" for n in (found.memory.loaded, found.memory.forward, found.memory.sweep))
        text = f"peak memory: {loaded} once loaded, {forward} with one forward, {sweep} with the sweep ({found.memory.ratio:.2f} times)"
        console.print(text, highlight=False, soft_wrap=True)


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
    _console().print(table)
    _console().print(f"largest difference of a scalar to the same fit alone: {found.largest_difference:.1e}", highlight=False)


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
