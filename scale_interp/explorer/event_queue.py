"""Widget messages are handled one at a time on the kernel's main thread, and drawing is done once for the newest of them.

JupyterLab hands widget messages to a second thread while a cell is running. If both edited a model's heads at once, they would mix them
up, and two threads in one widget lose updates; so messages wait here until the cell is done. A slider also sends values faster than a
large model answers: however many arrive meanwhile, the page is drawn once, for the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ipywidgets as widgets


def main_loop() -> Any:
    """The running kernel's own event loop; None outside a kernel."""
    try:
        from ipykernel.kernelbase import Kernel
    except ImportError:
        return None
    return getattr(Kernel.instance(), "io_loop", None) if Kernel.initialized() else None


class DeferredCall:
    """A call that is made once, however often it was requested before the loop was free; outside a kernel it is made at once."""

    def __init__(self, call: Callable[[], None], loop: Any = None):
        self.call, self._waiting = call, False
        self.loop = main_loop() if loop is None else loop

    def ask(self) -> None:
        """Request the call."""
        if self.loop is None:
            self.call()
        elif not self._waiting:
            self._waiting = True
            self.loop.add_callback(self._run)

    def _run(self) -> None:
        self._waiting = False
        self.call()


def handle_in_order(root: widgets.Widget) -> None:
    """Handle all messages to a widget and its children on the main loop, in the order in which they came."""
    if (loop := main_loop()) is None:
        return
    for widget in _all(root):
        widget.comm.on_msg(partial(loop.add_callback, widget._handle_msg))


def _all(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)
