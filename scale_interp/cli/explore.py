"""The command that serves the explorer: explore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import Data, Model, app
from .options import DATA, MODEL, takes


@app.command()
@takes(MODEL, DATA)
def explore(
    model: Model,
    data: Data = "scenes/relation",
    n: Annotated[int, typer.Option(help="how many questions")] = 20,
    scale: Annotated[Path | None, typer.Option(help="the folder of a fitted ScAle, to fade in")] = None,
    port: Annotated[int | None, typer.Option(help="the port on 127.0.0.1 [default: a free one]")] = None,
    **given: Any,
) -> None:
    """Scale heads by hand in the browser, on a page for this machine only, behind a token (needs voila)."""
    from ..errors import ModelError

    try:
        from ..explorer.server import serve
    except ModuleNotFoundError as error:
        raise ModelError(f"the page is served with {error.name}: pip install 'scale-interp[explore]'") from error
    from ..adapters.scale.scale import ScAle
    from ..jobs.inputs import Inputs

    # What is wrong with these is reported here, not in the page.
    inputs = Inputs(**given)
    inputs.questions(data, n=n)
    if scale is not None:
        ScAle.from_pretrained(scale)
    asked = {"model": model, "loading": inputs.loading, "data": data, "n": n, "reading": inputs.reading(data)}
    serve(asked, scale, port, lambda address: typer.echo(f"explorer: {address}\nstop it with Ctrl-C"))
