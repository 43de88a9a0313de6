"""An Explorer that shows itself: its widgets, made when a notebook first asks for them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .explorer import Explorer

if TYPE_CHECKING:
    from .panel import Panel


class NotebookExplorer(Explorer):
    """What `si.viz.explore` returns: an Explorer that draws itself where it is the last line of a cell.

    >>> import scale_interp as si
    >>> NotebookExplorer(si.load("demo"), si.load_questions("scenes/relation", n=2)).index
    0
    """

    @cached_property
    def panel(self) -> Panel:
        """The explorer's widgets. Raises ModelError, which says what to install, where a package is missing."""
        try:
            from .panel import Panel
        except ImportError as error:
            raise ModelError(f"the explorer needs {error.name}: pip install 'scale-interp[notebook]'") from error
        return Panel(self)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.panel.root._repr_mimebundle_(**options)
