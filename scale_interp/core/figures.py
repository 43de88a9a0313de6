"""The one door from a result to its figure: the only place where a lower layer reaches a higher one.

A result's `plot()` belongs to its class, and its figure to `scale_interp.viz`, which knows all results. So the class asks for the figure by
name, and plotly is imported with the first figure. No other module names `viz` below its own layer.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def draw(name: str, *args: Any, **options: Any) -> Any:
    """The figure that `scale_interp.viz` makes under this name.

    >>> import scale_interp as si
    >>> m = si.attribute(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> type(draw("head_heatmap", m)).__name__
    'Figure'
    """
    return getattr(import_module("scale_interp.viz"), name)(*args, **options)
