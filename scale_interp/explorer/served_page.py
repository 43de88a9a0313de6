"""What runs behind the page that `scale-interp explore` serves: one cell, the same for everybody; the choices come as JSON."""

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
"""The environment variable with model, data, n, scale and the folder that paths are counted from."""
CELL = "from scale_interp.explorer.served_page import page\n\npage()"


class Arrival(anywidget.AnyWidget):
    """Says when the page has come up."""

    _esm = "export default { render({ model }) { model.set('there', true); model.save_changes(); } };"
    there = traitlets.Bool(False).tag(sync=True)


def page() -> None:
    """Show the explorer that the environment asks for, or in words why it cannot be shown."""
    asked = json.loads(os.environ[SETTINGS])
    os.chdir(asked["folder"])
    try:
        explorer = explore(load(asked["model"]), load_questions(asked["data"], n=asked["n"]), scale=asked["scale"])
    except ScaleInterpError as error:
        display(HTML(f"<p role='alert'><b>error:</b> {escape(str(error))}</p>"))
    else:
        # A page takes over the widgets that are there when it comes up, and of large ones, as figures are, some never hear of a change:
        # the explorer's are made when the page is there.
        arrival, place = Arrival(), widgets.VBox()
        arrival.observe(lambda _: setattr(place, "children", [explorer.panel.root]), "there")
        display(widgets.VBox([arrival, place]))
