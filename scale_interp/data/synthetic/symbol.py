"""The symbols of the grid: a word, and how it is drawn."""

from __future__ import annotations

import math

from PIL import ImageDraw

from ..question import Box

Colour = tuple[int, int, int]
Stroke = tuple[str, Colour, tuple[float, ...]]
"""A filled "polygon" or "ellipse", its colour, and its points or its corners in percent of the symbol's square."""
PAPER: Colour = (252, 252, 252)
BLACK, BROWN = (25, 25, 25), (120, 75, 35)


def _star() -> tuple[float, ...]:
    points: list[float] = []
    for i in range(10):
        radius, angle = (50, 20)[i % 2], math.pi * i / 5
        points += [50 + radius * math.sin(angle), 52 - radius * math.cos(angle)]
    return tuple(points)


SYMBOLS: dict[str, tuple[Stroke, ...]] = {
    "star": (("polygon", (245, 180, 0), _star()),),
    "heart": (
        ("ellipse", (220, 30, 50), (4, 10, 53, 60)),
        ("ellipse", (220, 30, 50), (47, 10, 96, 60)),
        ("polygon", (220, 30, 50), (8, 48, 92, 48, 50, 96)),
    ),
    "moon": (("ellipse", (110, 70, 170), (10, 6, 90, 94)), ("ellipse", PAPER, (38, 2, 102, 78))),
    "tree": (("polygon", BROWN, (42, 70, 58, 70, 58, 98, 42, 98)), ("polygon", (30, 140, 60), (50, 2, 90, 74, 10, 74))),
    "house": (
        ("polygon", (235, 120, 40), (16, 44, 84, 44, 84, 96, 16, 96)),
        ("polygon", BROWN, (4, 46, 50, 6, 96, 46)),
        ("polygon", BLACK, (42, 64, 60, 64, 60, 96, 42, 96)),
    ),
    "fish": (
        ("ellipse", (40, 110, 220), (2, 26, 74, 78)),
        ("polygon", (40, 110, 220), (62, 52, 98, 24, 98, 80)),
        ("ellipse", PAPER, (14, 40, 26, 52)),
    ),
    "cat": (
        ("polygon", (120, 120, 128), (12, 46, 14, 4, 48, 28)),
        ("polygon", (120, 120, 128), (88, 46, 86, 4, 52, 28)),
        ("ellipse", (120, 120, 128), (8, 20, 92, 96)),
        ("ellipse", PAPER, (26, 44, 42, 60)),
        ("ellipse", PAPER, (58, 44, 74, 60)),
        ("ellipse", BLACK, (31, 48, 39, 58)),
        ("ellipse", BLACK, (61, 48, 69, 58)),
        ("polygon", BLACK, (43, 68, 57, 68, 50, 76)),
    ),
    "boat": (
        ("polygon", (20, 150, 160), (4, 66, 96, 66, 78, 94, 22, 94)),
        ("polygon", BLACK, (46, 6, 50, 6, 50, 66, 46, 66)),
        ("polygon", (20, 150, 160), (54, 10, 88, 58, 54, 58)),
    ),
}


def draw_symbol(draw: ImageDraw.ImageDraw, word: str, box: Box) -> None:
    """Draw a symbol as large as fits, in the middle of the box, with an eighth of it free all around."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top) * 3 / 4
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    for shape, colour, percents in SYMBOLS[word]:
        points = [(x if i % 2 == 0 else y) + side * percent / 100 for i, percent in enumerate(percents)]
        draw.polygon(points, colour) if shape == "polygon" else draw.ellipse(points, colour)
