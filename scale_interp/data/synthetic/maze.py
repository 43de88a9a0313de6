"""Mazes with one path from start to exit: its turns, its steps, and where the exit lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..question import Box
from ..scenes.task import Asked
from .kind import SIDE, Kind, Layout, QuestionType, number_choices, numbers, pick

Square = tuple[int, int]
"""(row, column), rows downwards."""
SIZES = range(7, 11)
"""Squares along a side, the outer wall counted."""
STRAIGHT = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
SLANTED = {"above left": (-1, -1), "above right": (-1, 1), "below left": (1, -1), "below right": (1, 1)}
APART = 2
"""Start and exit differ by at least so many rows and columns where the relation names both."""
TO_ONE_SIDE, TURNS, STEPS = numbers(0, 3), numbers(1, 8), numbers(5, 20)
WALL, FLOOR, SEAM = (60, 64, 78), (250, 250, 250), (222, 222, 222)
START, EXIT, PATH = (60, 170, 80), (214, 60, 50), (50, 100, 220)


@dataclass(frozen=True)
class Maze(Layout):
    """Floor squares that form a tree, and the only path between two dead ends, both ends counted."""

    height: int
    width: int
    floor: frozenset[Square]
    path: tuple[Square, ...]
    caption = (
        "The picture is a maze seen from above: dark squares are walls, the green square S is the start, the red square E is the exit, "
        "and the blue line is the path between them."
    )

    @property
    def content(self) -> str:
        return "\n".join("".join(self._sign((r, c)) for c in range(self.width)) for r in range(self.height))

    def words(self) -> str:
        return (
            "A maze seen from above, its rows from top to bottom: # is a wall, . is floor, S is the start, E is the exit, "
            f"and * marks the path between them.\n{self.content}"
        )

    def _sign(self, square: Square) -> str:
        if square in (self.path[0], self.path[-1]):
            return "S" if square == self.path[0] else "E"
        return "*" if square in self.path else "." if square in self.floor else "#"

    @property
    def headings(self) -> list[Square]:
        """The way of each step along the path."""
        return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.path)]

    @property
    def turns(self) -> list[str]:
        """The turns along the path, "left" or "right" as the walker sees them."""
        # Rows grow downwards, so a right turn has the negative cross product.
        sides = [a[0] * b[1] - a[1] * b[0] for a, b in pairwise(self.headings)]
        return ["left" if side > 0 else "right" for side in sides if side]

    @property
    def boxes(self) -> dict[str, Box]:
        return {"start": self._box(self.path[0]), "exit": self._box(self.path[-1])}

    def _box(self, square: Square) -> Box:
        cell = SIDE // max(self.height, self.width)
        left = (SIDE - cell * self.width) // 2 + cell * square[1]
        top = (SIDE - cell * self.height) // 2 + cell * square[0]
        return left, top, left + cell, top + cell

    def render(self) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE), WALL)
        draw = ImageDraw.Draw(image)
        squares = {square: self._box(square) for square in self.floor}
        for left, top, right, bottom in squares.values():
            draw.rectangle((left, top, right - 1, bottom - 1), FLOOR, SEAM)
        middles = [((box[0] + box[2]) // 2, (box[1] + box[3]) // 2) for box in (squares[s] for s in self.path)]
        draw.line(middles, PATH, width=5, joint="curve")
        for square, colour, letter in ((self.path[0], START, "S"), (self.path[-1], EXIT, "E")):
            left, top, right, bottom = squares[square]
            draw.rectangle((left, top, right - 1, bottom - 1), colour)
            middle = ((left + right) / 2, (top + bottom) / 2)
            draw.text(middle, letter, FLOOR, ImageFont.load_default(20), anchor="mm")
        return image


def draw_maze(rng: np.random.Generator) -> Maze:
    """A random maze, its start and exit two random dead ends."""
    while True:
        height, width = (int(pick(tuple(SIZES), rng)) for _ in range(2))
        floor = _grown(height, width, rng)
        ends = [square for square in sorted(floor) if len(_beside(square) & floor) == 1]
        if len(ends) > 1:
            start, end = (ends[i] for i in rng.permutation(len(ends))[:2])
            return Maze(height, width, floor, _path(floor, start, end))


def _grown(height: int, width: int, rng: np.random.Generator) -> frozenset[Square]:
    """Squares taken one by one, each beside exactly one that is taken already: a tree that fills the inside."""
    walk = [(int(rng.integers(1, height - 1)), int(rng.integers(1, width - 1)))]
    floor = set(walk)
    while walk:
        around = sorted((r, c) for r, c in _beside(walk[-1]) - floor if 0 < r < height - 1 and 0 < c < width - 1)
        free = [square for square in around if len(_beside(square) & floor) == 1]
        if free:
            walk.append(pick(free, rng))
            floor.add(walk[-1])
        else:
            walk.pop()
    return frozenset(floor)


def _beside(square: Square) -> set[Square]:
    r, c = square
    return {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)}


def _path(floor: frozenset[Square], start: Square, end: Square) -> tuple[Square, ...]:
    """The path in a tree: dead ends other than the two are taken away until none is left."""
    left = set(floor)
    while dead := {s for s in left if len(_beside(s) & left) < 2} - {start, end}:
        left -= dead
    path = [start]
    while path[-1] != end:
        path.append((_beside(path[-1]) & left - set(path)).pop())
    return tuple(path)


def ask_side(side: str, layout: Maze, rng: np.random.Generator) -> Asked | None:
    text = f"Walking along the path from the start to the exit, how many times does one turn {side}?"
    return _number(text, layout.turns.count(side), TO_ONE_SIDE)


def ask_turns(layout: Maze, rng: np.random.Generator) -> Asked | None:
    text = "Walking along the path from the start to the exit, how many turns does one make, left and right together?"
    return _number(text, len(layout.turns), TURNS)


def ask_steps(layout: Maze, rng: np.random.Generator) -> Asked | None:
    text = "Walking along the path from the start to the exit, how many steps does one take, each to the next square?"
    return _number(text, len(layout.headings), STEPS)


def ask_relation(layout: Maze, rng: np.random.Generator) -> Asked | None:
    """The options are the four straight relations or the four slanted ones, of which only one can hold."""
    (r0, c0), (r1, c1) = layout.path[0], layout.path[-1]
    down, right = r1 - r0, c1 - c0
    options = SLANTED if down and right else STRAIGHT
    if options is SLANTED and min(abs(down), abs(right)) < APART:
        return None
    signs = (int(np.sign(down)), int(np.sign(right)))
    word = next(word for word, step in options.items() if step == signs)
    return Asked("Where is the exit relative to the start, seen from above?", tuple(options), word, ("exit", "start"), word)


def _number(text: str, answer: int, words: tuple[str, ...]) -> Asked | None:
    choices = number_choices(answer, words)
    return None if choices is None else Asked(text, choices, str(answer), ("start", "exit"))


MAZE = Kind(
    draw_maze,
    {
        "right-turns": QuestionType(partial(ask_side, "right"), TO_ONE_SIDE),
        "left-turns": QuestionType(partial(ask_side, "left"), TO_ONE_SIDE),
        "turns": QuestionType(ask_turns, TURNS),
        "steps": QuestionType(ask_steps, STEPS),
        "relation": QuestionType(ask_relation, (*STRAIGHT, *SLANTED)),
    },
)
