"""What runs behind the page that `scale-interp explore` serves: one cell, the same for everybody; the choices come as JSON."""

from __future__ import annotations

import json
import os
from html import escape

from IPython.display import HTML, display

from ...data.load import load_questions
from ...errors import ScaleInterpError
from ...models.load import load
from . import explore

SETTINGS = "SCALE_INTERP_EXPLORE"
"""The environment variable with model, data, n, scale and the folder that paths are counted from."""
CELL = "from scale_interp.viz.explorer.served import page\n\npage()"


def page() -> None:
    """Show the explorer that the environment asks for, or in words why it cannot be shown."""
    asked = json.loads(os.environ[SETTINGS])
    os.chdir(asked["folder"])
    try:
        explorer = explore(load(asked["model"]), load_questions(asked["data"], n=asked["n"]), scale=asked["scale"])
    except ScaleInterpError as error:
        display(HTML(f"<p role='alert'><b>error:</b> {escape(str(error))}</p>"))
    else:
        display(explorer)
