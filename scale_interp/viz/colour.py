"""Which colours are readable on which: contrast as WCAG 2 measures it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from plotly.colors import hex_to_rgb

BLACK, WHITE = "#000000", "#ffffff"
WEIGHTS = (0.2126, 0.7152, 0.0722)


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, from 1 to 21 (WCAG 2.2, relative luminance).

    Args:
        a: a colour, "#rrggbb".
        b: another one.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    bright, dim = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def readable(ground: str) -> str:
    """Black or white, whichever has more contrast; on any background that is at least 4.58 to 1.

    Args:
        ground: the background, "#rrggbb".

    >>> readable("#f8f8f8"), readable("#08478c")
    ('#000000', '#ffffff')
    """
    return max(BLACK, WHITE, key=lambda colour: contrast(colour, ground))


def between(scale: Sequence[tuple[float, str]], place: float) -> str:
    """The colour at a place of a colour scale, as plotly interpolates it.

    Args:
        scale: stops of (place, "#rrggbb").
        place: from 0 to 1.

    >>> between([(0.0, "#000000"), (1.0, "#ffffff")], 0.2)
    '#333333'
    """
    left, right = next((a, b) for a, b in pairwise(scale) if place <= b[0])
    share = (place - left[0]) / (right[0] - left[0])
    return "#" + "".join(f"{round(x + share * (y - x)):02x}" for x, y in zip(hex_to_rgb(left[1]), hex_to_rgb(right[1]), strict=True))


def fill(colour: str, opacity: float) -> str:
    """The colour made translucent: for bands, and for bars that whiskers are drawn on."""
    red, green, blue = hex_to_rgb(colour)
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _luminance(colour: str) -> float:
    parts = (part / 255 for part in hex_to_rgb(colour))
    return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip(WEIGHTS, parts, strict=True))
