"""The command that trains the embedded models again: train-demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .printed import console


@app.command("train-demo")
def train_demo(
    out: Annotated[Path, typer.Option(help="the folder for checkpoints and models; a stopped run continues there")] = Path("demo-training"),
    seed: int = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="a model to train from the embedded ones, such as demo-format; default: all")
    ] = None,
) -> None:
    """Train the embedded models again (about 50 minutes on two cores), and measure them."""
    from ..core.progress import StageBars
    from ..models.demo.card import write_cards
    from ..models.demo.recipe import train

    with StageBars() as bars:
        train(out, seed, bars, only)
    write_cards(out, only)
    console().print(f"models and their cards in {out}")
