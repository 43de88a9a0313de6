"""The command that trains the embedded models anew: train-demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .printed import console


@app.command("train-demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="where checkpoints and the three models go; a stopped run resumes there")] = Path(
        "demo-training"
    ),
    seed: int = 0,
) -> None:
    """Train the embedded models anew, about 40 minutes on two cores, and measure them."""
    from ..models.demo.card import write_cards
    from ..models.demo.recipe import train

    training_bars(lambda show: train(out, seed, show))
    write_cards(out)
    console().print(f"models and their cards in {out}")


def training_bars(train: Callable[[Callable[[str, int, int, float], None]], None]) -> None:
    """Run a training that is given what to call after each step: stage, step, steps, loss."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=steps, loss=loss)
            bar.update(tasks[stage], completed=step, loss=loss)

        train(show)
