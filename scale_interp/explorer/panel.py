"""The explorer's widgets: they show an Explorer's state and pass on clicks, drags and typing."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from ..errors import ModelError, ScaleInterpError
from ..viz.heatmap import layer_names
from .event_queue import DeferredCall, handle_in_order
from .explorer import LARGEST, Component, Explorer, component_name
from .figures import WIDTH, AnswersFigure, HeadsFigure, ImageFigure

STEP = 0.05
MLP = -1
"""The value in the list of heads that stands for the layer's MLP."""
ROW = 90
"""Letters of a question in the list of questions."""
WIDE = {"width": "auto", "flex": "1 1 170px", "min_width": "150px"}


class Page(anywidget.AnyWidget):
    """Knows whether the page is dark and how often it was shown, and labels controls: names maps CSS selectors to attributes."""

    _esm = Path(__file__).parent / "page.js"
    _css = Path(__file__).parent / "page.css"
    dark = traitlets.Bool(False).tag(sync=True)
    shown = traitlets.Int(0).tag(sync=True)
    names = traitlets.Dict().tag(sync=True)


class Panel:
    """The widgets around an explorer. `root` is the one to show; it follows the explorer, whoever changes it."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.page = Page()
        self.message = widgets.HTML()
        self.text = widgets.HTML()
        self.picture, self.answers = ImageFigure(), AnswersFigure()
        self._drawn: dict[str, Any] = {}
        self._error, self._notes = "", list[str]()
        self._showing = False
        self._picture = 0
        vlm = explorer.vlm
        self._unmapped, head_map = "", None
        try:
            head_map = explorer.head_map
        except ScaleInterpError as error:
            self._unmapped = f"No head map: {error}"
        self.heads = HeadsFigure(head_map, vlm)
        self._redraw = DeferredCall(self.show)
        self.root = self._build()
        explorer.watchers.append(self._redraw.ask)
        self.show()
        handle_in_order(self.root)

    @property
    def dark(self) -> bool:
        """Whether figures are drawn dark."""
        return self.page.dark if self.explorer.dark is None else self.explorer.dark

    def _build(self) -> widgets.Widget:
        e, vlm = self.explorer, self.explorer.vlm
        self.question = widgets.Dropdown(description="Question", layout=WIDE)
        before, after = (widgets.Button(description=name, layout={"width": "90px"}) for name in ("Previous", "Next"))
        before.on_click(lambda _: self._step(-1))
        after.on_click(lambda _: self._step(1))
        self.which = widgets.Dropdown(description="Image", layout={"width": "150px"})
        self.said = widgets.HTML()
        layers = list(zip(layer_names(range(vlm.n_layers), vlm.describe()), range(vlm.n_layers), strict=True))
        heads = [(str(i), i) for i in range(vlm.n_heads)]
        narrow = {"width": "136px"}
        self.layer = widgets.Dropdown(options=[("–", None), *layers], description="Layer", layout=narrow)
        self.head = widgets.Dropdown(options=[*heads, ("MLP", MLP)], description="Head", layout=narrow)
        self.at = widgets.Dropdown(description="Tokens", layout={"width": "220px"})
        self.name = widgets.HTML()
        self.factor = widgets.FloatSlider(value=1, min=0, max=LARGEST, step=STEP, readout_format=".2f", layout={"width": "98%"})
        self.hides = widgets.Checkbox(description="It does not see the image", indent=False, layout={"width": "98%"})
        self.edits = widgets.Select(rows=4, layout={"width": "auto", "flex": "1 1 170px"})
        self.remove, self.reset = (widgets.Button(description=name, layout={"width": "96px"}) for name in ("Remove", "Reset all"))
        self.folder = widgets.Text(placeholder="runs/demo-scenes-relation/scale", description="Folder", layout=WIDE)
        load = widgets.Button(description="Load", layout={"width": "80px"})
        self.unload = widgets.Button(description="Take off", layout={"width": "80px"})
        self.strength = widgets.FloatSlider(value=1, min=0, max=1, step=0.02, readout_format=".2f", layout={"width": "98%"})
        self.fitted = widgets.HTML()
        self.own_text = widgets.Text(placeholder="Where is the cup?", description="Question", layout=WIDE)
        self.own_choices = widgets.Text(placeholder="left, right (the right one first)", description="Choices", layout=WIDE)
        self.own_image = widgets.FileUpload(accept="image/*", description="Image", layout={"width": "130px"})
        ask = widgets.Button(description="Ask", layout={"width": "80px"})
        self.wants_code = widgets.ToggleButton(description="Copy as code", layout={"width": "130px"})
        self.code = widgets.Textarea(layout={"width": "auto", "height": "230px", "display": "none"}, disabled=False)

        self.page.observe(lambda _: self.show(), "dark")
        self.page.observe(self._appeared, "shown")
        self._on(self.question, lambda value: setattr(e, "index", value))
        self._on(self.which, self._see)
        self._on(self.layer, lambda _: self._choose())
        self._on(self.head, lambda _: self._choose())
        self._on(self.at, self._place)
        self._on(self.factor, lambda value: setattr(e, "factor", round(value, 4)))
        self._on(self.hides, self._hide)
        self._on(self.edits, self._pick)
        self._on(self.strength, lambda value: setattr(e, "strength", round(value, 4)))
        self._on(self.wants_code, lambda _: self.show())
        self._click(self.remove, self._remove)
        self._click(self.reset, e.reset)
        self._click(ask, self._ask)
        self._click(load, lambda: e.load(self.folder.value.strip()))
        self._click(self.unload, lambda: setattr(e, "scale", None))
        for trace in (0, 1):
            self.heads.widget.data[trace].on_click(partial(self._clicked, trace))

        for widget, name in (
            (self.picture.widget, "si-picture"),
            (self.heads.widget, "si-heads"),
            (self.answers.widget, "si-answers"),
            (self.said, "si-said"),
            (self.factor, "si-factor"),
            (self.hides, "si-hides"),
            (self.edits, "si-edits"),
            (self.strength, "si-strength"),
            (self.message, "si-message"),
            (self.code, "si-code"),
        ):
            widget.add_class(name)
        self.figures = _row(
            _column(WIDTH, self.picture.widget, self.said),
            _column(self.heads.wide, self.heads.widget, _row(self.layer, self.head, self.at)),
            _column(WIDTH, self.answers.widget, self.name, self.factor, self.hides),
        )
        cards = _row(
            _card("Edited heads and MLPs", _row(self.edits, widgets.VBox([self.remove, self.reset]))),
            _card("Your own question", _row(self.own_text, self.own_choices), widgets.HBox([self.own_image, ask])),
            _card("ScAle", _row(self.folder, widgets.HBox([load, self.unload])), self.fitted, self.strength),
        )
        parts = [self.page, _row(self.question, widgets.HBox([before, after]), self.which), self.text, self.message]
        parts += [_classed(self.figures, "si-figures"), _classed(cards, "si-cards"), self.wants_code, self.code]
        return _classed(widgets.VBox(parts), "si-explorer")

    def _on(self, widget: Any, act: Callable[[Any], Any]) -> None:
        def changed(change: Any) -> None:
            if not self._showing:
                with self._explaining():
                    act(change["new"])

        widget.observe(changed, "value")

    def _click(self, button: widgets.Button, act: Callable[[], Any]) -> None:
        def clicked(_: Any) -> None:
            with self._explaining():
                act()

        button.on_click(clicked)

    def _remove(self) -> None:
        if self.explorer.selected is not None:
            self.explorer.remove(self.explorer.selected)

    def _place(self, group: str) -> None:
        try:
            self.explorer.at = group
        finally:
            self.show()  # where it was refused, the list shows the group as it is

    def _hide(self, hidden: bool) -> None:
        if self.explorer.selected is not None:
            self.explorer.hide_image(self.explorer.selected, hidden)

    def _ask(self) -> None:
        files = [f"data:{file['type']};base64,{b64encode(file['content']).decode()}" for file in self.own_image.value]
        choices = [choice.strip() for choice in self.own_choices.value.split(",") if choice.strip()]
        self.explorer.ask(self.own_text.value.strip(), choices, files[0] if files else None)

    def _step(self, by: int) -> None:
        self.explorer.index = (self.explorer.index + by) % len(self.explorer.questions)

    def _see(self, picture: int) -> None:
        self._picture = picture or 0
        self.show()

    def _pick(self, part: Component | None) -> None:
        if part is not None:
            self.explorer.select(part)

    def _choose(self) -> None:
        if self.layer.value is not None:
            self.explorer.select((self.layer.value, None if self.head.value == MLP else self.head.value))

    def _clicked(self, trace: int, _: Any, points: Any, state: Any) -> None:
        if points.xs:
            with self._explaining():
                self.explorer.select(self.heads.part(trace, points.xs[0], points.ys[0]))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Show what went wrong in the page instead of a traceback."""
        self._error = ""
        try:
            yield
        except ScaleInterpError as error:
            self._error = str(error)
        except Exception as error:
            self._error = f"This did not work: {type(error).__name__}: {error}"
        self._tell()

    def _tell(self) -> None:
        said = [("si-error", self._error)] if self._error else [("si-note", note) for note in self._notes]
        self.message.value = "".join(f"<div class='{kind}'>{escape(text)}</div>" for kind, text in said)

    def show(self) -> None:
        """Draw what has changed. Figures that cannot be drawn are hidden, so that none shows another question."""
        self._showing, failed = True, ""
        for draw in (self._bars, self._controls, self._pictures):
            try:
                draw()
            except ScaleInterpError as error:
                failed = failed or str(error)
            except Exception as error:
                failed = failed or f"This did not work: {type(error).__name__}: {error}"
        self._showing = False
        self.figures.layout.visibility = "hidden" if failed else "visible"
        if failed:
            self._error = failed
            self._drawn.clear()
        self._tell()

    def _appeared(self, _: Any) -> None:
        """Draw the figures again: what changed while plotly was creating them is not in them."""
        for name in ("answers", "edited", "heads", "marks", "picture", "overlay"):
            self._drawn.pop(name, None)
        self._redraw.ask()

    def _new(self, name: str, *key: Any) -> bool:
        """Whether a part of the page has to be drawn again."""
        before, self._drawn[name] = self._drawn.get(name), key
        return before != key

    def _bars(self) -> None:
        """The answers, drawn first, as somebody moving the slider waits for them."""
        e = self.explorer
        if self._new("answers", e.index, self.dark):
            self.answers.draw(e.question, e.base, self.dark)
        if self._new("edited", e.index, probabilities := e.probabilities.tolist()):
            self.answers.edited(probabilities)

    def _controls(self) -> None:
        e, q, part = self.explorer, self.explorer.question, self.explorer.selected
        if self._new("questions", len(e.questions)):
            self.question.options = [(_shortened(f"{i + 1}. {asked.text}"), i) for i, asked in enumerate(e.questions)]
        if self._new("question", e.index):
            self.question.value = e.index
            self.text.value = f"<h4 class='si-text'>{escape(q.text)}</h4>"
            self.which.options = [(f"{i + 1} of {len(q.pictures)}", i) for i in range(len(q.pictures))]
            self.which.layout.display = None if len(q.pictures) > 1 else "none"
            self._picture = 0
        if self._new("part", part):
            named = "Scale: choose a head first, by a click or by layer and head" if part is None else f"Scale of {component_name(part)}"
            self.name.value = f"<h4>{named}</h4>" + ("" if part is None else "<small>1 changes nothing</small>")
            self.layer.value, self.head.value = (None, 0) if part is None else (part[0], MLP if part[1] is None else part[1])
            self.factor.disabled = part is None
            self.hides.disabled = part is None or part[1] is None
        if self._new("groups", e.groups):
            self.at.options = list(e.groups)
        self.at.value = e.at
        self.factor.value, self.hides.value = e.factor, part in e.blind
        edited = tuple((_edited_name(p, e.factors.get(p, 1.0), p in e.blind), p) for p in dict.fromkeys([*e.factors, *e.blind]))
        if self._new("edits", edited, part):
            with self.edits.hold_sync():
                self.edits.options = edited
                self.edits.value = part if part in [p for _, p in edited] else None
            self.remove.disabled, self.reset.disabled = self.edits.value is None, not edited
        if self._new("scale", e.scale, e.folder):
            self.fitted.value = escape(f"{repr(e.scale).strip('<>')}. Faded in (0 is the base model):" if e.scale else "None is loaded.")
            self.folder.value = e.folder or self.folder.value
            self.strength.disabled = self.unload.disabled = e.scale is None
        self.strength.value = e.strength
        self.code.layout.display = None if self.wants_code.value else "none"
        if self.wants_code.value:
            self.code.value = e.code()
        if self._new("names", part):
            self.page.names = _names(part)
        self._notes = [self._unmapped] if self._unmapped else []
        if e.foreign:
            self._notes.append(f"These scalars were fitted on {e.foreign}, this is {e.vlm.name}.")

    def _pictures(self) -> None:
        e, q, dark = self.explorer, self.explorer.question, self.dark
        if self._new("heads", dark):
            self.heads.style(dark)
        changed = tuple(dict.fromkeys([*e.factors, *e.blind]))
        if self._new("marks", e.selected, changed, dark):
            self.heads.mark(e.selected, changed, dark)
        if self._new("picture", e.index, self._picture, dark):
            self.picture.draw(q, self._picture, dark)
            self._drawn.pop("overlay", None)
        if self._new("overlay", e.selected):
            try:
                said = self.picture.overlay(q, self._picture, e.looking if e.selected else None, e.selected)
            except ModelError as error:
                said = f"{self.picture.overlay(q, self._picture, None, None)}{error}"
            self.said.value = escape(said)


def _names(part: Component | None) -> dict[str, dict[str, str]]:
    """What screen readers call the controls that have no label of their own."""
    chosen = "of the chosen head" if part is None else f"of {component_name(part)}"
    return {
        ".si-factor [role=slider]": {"aria-label": f"Scale {chosen}, 1 changes nothing"},
        ".si-strength [role=slider]": {"aria-label": "How far the ScAle is faded in"},
        ".si-hides input": {
            "aria-label": f"Hide the image from the last token in {'the chosen head' if part is None else component_name(part)}"
        },
        ".si-edits select": {"aria-label": "Edited heads and MLPs"},
        ".si-code textarea": {"aria-label": "Python code of the current edit", "readonly": "true"},
        ".si-message": {"role": "status", "aria-live": "polite"},
        ".si-said": {"aria-live": "polite"},
        ".si-picture": {"role": "img", "aria-label": "Image of the question with the chosen head's attention"},
        ".si-heads": {
            "role": "img",
            "aria-label": "Heatmap of all heads by layer; the Layer and Head controls choose the same by keyboard",
        },
        ".si-answers": {"role": "img", "aria-label": "Bars of the answers' probabilities, base and edited"},
    }


def _edited_name(part: Component, factor: float, blind: bool) -> str:
    scaled = f" × {factor:.2f}" if factor != 1 or not blind else ""
    return f"{component_name(part)}{scaled}{', sees no image' if blind else ''}"


def _shortened(text: str) -> str:
    return text if len(text) <= ROW else f"{text[:ROW]}…"


def _row(*parts: widgets.Widget) -> widgets.Widget:
    return _classed(widgets.HBox(list(parts)), "si-row")


def _column(wide: int, *parts: widgets.Widget) -> widgets.Widget:
    return widgets.VBox(list(parts), layout={"width": f"{wide}px"})


def _card(title: str, *parts: widgets.Widget) -> widgets.Widget:
    return _classed(widgets.VBox([widgets.HTML(f"<h4>{title}</h4>"), *parts]), "si-card")


def _classed(widget: Any, name: str) -> Any:
    widget.add_class(name)
    return widget
