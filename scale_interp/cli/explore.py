"""The command that serves the explorer: explore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Data, Model, app


@app.command()
def explore(
    model: Model,
    data: Data = "scenes/relation",
    n: Annotated[int, typer.Option(help="how many questions")] = 20,
    scale: Annotated[Path | None, typer.Option(help="the folder of a fitted ScAle, to fade in")] = None,
    port: Annotated[int | None, typer.Option(help="the port on 127.0.0.1 [default: a free one]")] = None,
) -> None:
    """Scale heads by hand in the browser, on a page for this machine only, behind a token (needs voila)."""
    from ..errors import ModelError

    try:
        from ..explorer.server import serve
    except ModuleNotFoundError as error:
        raise ModelError(f"the page is served with {error.name}: pip install 'scale-interp[explore]'") from error
    from ..adapters.scale.scale import ScAle
    from ..data.load import load_questions

    # What is wrong with these is reported here, not in the page.
    load_questions(data, n=n)
    if scale is not None:
        ScAle.from_pretrained(scale)
    serve(model, data, n, scale, port, lambda address: typer.echo(f"explorer: {address}\nstop it with Ctrl-C"))
