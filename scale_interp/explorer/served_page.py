"""The one cell behind the page that `scale-interp explore` serves; it is always the same, and the choices arrive as JSON."""

from __future__ import annotations

import json
import os
from html import escape

import anywidget
import ipywidgets as widgets
import traitlets
from IPython.display import HTML, display

from ..data.load import load_questions
from ..errors import ScaleInterpError
from ..models.load import load
from . import explore

SETTINGS = "SCALE_INTERP_EXPLORE"
"""The environment variable with model, data, their keywords, scale and the folder that paths are relative to."""
CELL = "from scale_interp.explorer.served_page import page\n\npage()"


class Arrival(anywidget.AnyWidget):
    """Reports when the page has opened."""

    _esm = "export default { render({ model }) { model.set('there', true); model.save_changes(); } };"
    there = traitlets.Bool(False).tag(sync=True)


def page() -> None:
    """Show the explorer that the environment variable asks for, or the reason why it cannot be shown."""
    asked = json.loads(os.environ[SETTINGS])
    os.chdir(asked["folder"])
    try:
        vlm, questions = load(asked["model"], **asked["loading"]), load_questions(asked["data"], n=asked["n"], **asked["reading"])
        explorer = explore(vlm, questions, scale=asked["scale"])
    except ScaleInterpError as error:
        display(HTML(f"<p role='alert'><b>error:</b> {escape(str(error))}</p>"))
    else:
        # A page adopts the widgets that exist when it opens, and some large ones, such as figures, then miss every change; so the
        # explorer's widgets are created once the page is open.
        arrival, place = Arrival(), widgets.VBox()
        arrival.observe(lambda _: setattr(place, "children", [explorer.panel.root]), "there")
        display(widgets.VBox([arrival, place]))
