"""Grids of symbols: what is in a cell, what is beside it, and how many there are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..question import Box
from ..scenes.task import Asked
from .kind import SIDE, Kind, Layout, QuestionType, number_choices, numbers, pick
from .symbol import PAPER, SYMBOLS, draw_symbol

WORDS = tuple(SYMBOLS)
SIZES = (3, 4, 5)
"""Rows, and columns."""
NEIGHBOURS = {
    "left": (0, -1, "directly to the left of"),
    "right": (0, 1, "directly to the right of"),
    "above": (-1, 0, "directly above"),
    "below": (1, 0, "directly below"),
    "above left": (-1, -1, "diagonally above and to the left of"),
    "above right": (-1, 1, "diagonally above and to the right of"),
    "below left": (1, -1, "diagonally below and to the left of"),
    "below right": (1, 1, "diagonally below and to the right of"),
}
"""Relation -> (rows down, columns to the right, how it is said)."""
COUNTS = numbers(0, 7)
LINE = (150, 150, 150)


@dataclass(frozen=True)
class Grid(Layout):
    """Rows of symbols' words."""

    rows: tuple[tuple[str, ...], ...]
    caption = "The picture is a grid of symbols. Row 1 is the top row, column 1 the leftmost column."

    @property
    def content(self) -> str:
        return "|".join(" ".join(row) for row in self.rows)

    def words(self) -> str:
        listed = "\n".join(f"Row {r}: {', '.join(row)}." for r, row in enumerate(self.rows, 1))
        return (
            f"A grid of symbols has {len(self.rows)} rows and {len(self.rows[0])} columns. Row 1 is the top row, column 1 the leftmost "
            f"column; each row is given from left to right.\n{listed}"
        )

    @property
    def cells(self) -> dict[tuple[int, int], str]:
        """(row, column), from 0 -> word."""
        return {(r, c): word for r, row in enumerate(self.rows) for c, word in enumerate(row)}

    @property
    def boxes(self) -> dict[str, Box]:
        return {cell_name(cell): self._box(cell) for cell in self.cells}

    def _box(self, cell: tuple[int, int]) -> Box:
        tall, wide = SIDE // len(self.rows), SIDE // len(self.rows[0])
        return wide * cell[1], tall * cell[0], wide * (cell[1] + 1), tall * (cell[0] + 1)

    def render(self) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE), PAPER)
        draw = ImageDraw.Draw(image)
        for cell, word in self.cells.items():
            left, top, right, bottom = box = self._box(cell)
            draw.rectangle((left, top, right - 1, bottom - 1), None, LINE)
            draw_symbol(draw, word, box)
        return image


def draw_grid(rng: np.random.Generator) -> Grid:
    """Three to five rows and columns of two to eight different symbols, each cell drawn on its own."""
    height, width = (int(pick(SIZES, rng)) for _ in range(2))
    used = [WORDS[i] for i in rng.permutation(len(WORDS))[: int(rng.integers(2, len(WORDS) + 1))]]
    return Grid(tuple(tuple(pick(used, rng) for _ in range(width)) for _ in range(height)))


def cell_name(cell: tuple[int, int]) -> str:
    return f"row {cell[0] + 1}, column {cell[1] + 1}"


def ask_cell(layout: Grid, rng: np.random.Generator) -> Asked | None:
    cell = pick(tuple(layout.cells), rng)
    word = layout.cells[cell]
    return Asked(f"Which symbol is in {cell_name(cell)}?", _options(layout, word, (), rng), word, (cell_name(cell),))


def ask_count(layout: Grid, rng: np.random.Generator) -> Asked | None:
    word = pick(WORDS, rng)
    found = [cell for cell, symbol in layout.cells.items() if symbol == word]
    choices = number_choices(len(found), COUNTS)
    if choices is None:
        return None
    return Asked(f"How many cells hold a {word}?", choices, str(len(found)), tuple(map(cell_name, found)))


def ask_beside_cell(layout: Grid, rng: np.random.Generator) -> Asked | None:
    cell = pick(tuple(layout.cells), rng)
    return _beside(layout, cell, f"the symbol in {cell_name(cell)}", (), rng)


def ask_beside_symbol(layout: Grid, rng: np.random.Generator) -> Asked | None:
    counts = Counter(layout.cells.values())
    single = [cell for cell, word in layout.cells.items() if counts[word] == 1]
    if not single:
        return None
    cell = pick(single, rng)
    # It cannot be its own neighbour: as an option it would be wrong at sight.
    return _beside(layout, cell, f"the only {layout.cells[cell]}", (layout.cells[cell],), rng)


def _beside(layout: Grid, cell: tuple[int, int], name: str, never: tuple[str, ...], rng: np.random.Generator) -> Asked:
    """A neighbour inside the grid: from a cell at the border, nothing outside is asked for."""
    ways = {word: (cell[0] + down, cell[1] + right) for word, (down, right, _) in NEIGHBOURS.items()}
    relation = pick([word for word, target in ways.items() if target in layout.cells], rng)
    target = ways[relation]
    answer = layout.cells[target]
    text = f"Which symbol is {NEIGHBOURS[relation][2]} {name}?"
    return Asked(text, _options(layout, answer, never, rng), answer, (cell_name(target), cell_name(cell)), relation)


def _options(layout: Grid, answer: str, never: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """The answer and three other symbols, those first that the grid holds: an absent one is too easily ruled out."""
    others = [WORDS[i] for i in rng.permutation(len(WORDS)) if WORDS[i] not in (answer, *never)]
    present = set(layout.cells.values())
    return answer, *sorted(others, key=lambda word: word not in present)[:3]


GRID = Kind(
    draw_grid,
    {
        "cell": QuestionType(ask_cell, WORDS),
        "count": QuestionType(ask_count, COUNTS),
        "beside-cell": QuestionType(ask_beside_cell, WORDS),
        "beside-symbol": QuestionType(ask_beside_symbol, WORDS),
    },
)
