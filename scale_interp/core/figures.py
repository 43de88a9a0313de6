"""The only place where a lower layer uses a higher one: a result calls its figure.

A result's `plot()` belongs to its class, and its figure to `scale_interp.viz`, which depends on all results. So the class asks for the
figure by name, and plotly is imported with the first figure. No other module below `viz` mentions it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def draw(name: str, *args: Any, **options: Any) -> Any:
    """Draw a figure of `scale_interp.viz`.

    Args:
        name: The name of the function in `scale_interp.viz`.
        args: Its arguments.
        options: Its keyword arguments.

    Returns:
        A plotly figure.

    >>> import scale_interp as si
    >>> m = si.attribute(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> type(draw("head_heatmap", m)).__name__
    'Figure'
    """
    return getattr(import_module("scale_interp.viz"), name)(*args, **options)
