"""Rendered scenes: one to four coloured shapes on a grey ground, every box known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image

from ...errors import DataError

SIZE = 56
GRID = 4
CELL = SIZE // GRID
RADIUS = 5
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "cyan": (40, 210, 220),
    "magenta": (220, 50, 210),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "cross")
SPLITS = {"train": range(0, 7), "validation": range(7, 8), "test": range(8, 10)}


def _masks() -> dict[str, np.ndarray]:
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    return {
        "circle": x**2 + y**2 <= 18,
        "square": (abs(x) <= 5) & (abs(y) <= 5),
        "triangle": (y >= -5) & (y <= 4) & (2 * abs(x) <= y + 6),
        "cross": (abs(x) <= 1) | (abs(y) <= 1),
    }


MASKS = _masks()


@dataclass(frozen=True)
class Thing:
    """A coloured shape centred on pixel (x, y); x grows to the right, y downwards."""

    colour: str
    shape: str
    x: int
    y: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive."""
        return self.x - RADIUS, self.y - RADIUS, self.x + RADIUS + 1, self.y + RADIUS + 1


@dataclass(frozen=True)
class Scene:
    """What is in an image, and the seed of its background noise."""

    renders_its_content: ClassVar[bool] = True
    """Equal scenes are equal images, so that they are told apart without being drawn."""

    things: tuple[Thing, ...]
    noise: int = 0

    @cached_property
    def key(self) -> str:
        """A short content hash: the same things in the same places."""
        return _digest(sorted(f"{t.name} {t.x} {t.y}" for t in self.things))

    @property
    def split(self) -> str:
        """The split that this scene can ever be in.

        It depends on the *set of things* alone, not on their places, so a mirrored or swapped scene stays in its
        split, and no two splits share a set of things.
        """
        bucket = int(_digest(sorted(t.name for t in self.things)), 16) % 10
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)

    def pixels(self) -> np.ndarray:
        """The image as uint8 [56, 56, 3]."""
        rng = np.random.default_rng(self.noise)
        canvas = 128 + 6 * rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
        for t in self.things:
            left, top, right, bottom = t.box
            canvas[top:bottom, left:right][MASKS[t.shape]] = COLOURS[t.colour]
        return canvas.clip(0, 255).astype(np.uint8)

    def render(self) -> Image.Image:
        return Image.fromarray(self.pixels())

    def mirrored(self, axis: str) -> Scene:
        """The scene with every thing moved to its mirror place: axis "x" exchanges left and right, "y" above and below."""
        end = SIZE - 1
        move = {"x": lambda t: replace(t, x=end - t.x), "y": lambda t: replace(t, y=end - t.y)}[axis]
        return replace(self, things=tuple(move(t) for t in self.things))

    def swapped(self, first: str, second: str) -> Scene:
        """The scene with the two named things in each other's place."""
        a, b = (next(t for t in self.things if t.name == name) for name in (first, second))
        places = {a: replace(a, x=b.x, y=b.y), b: replace(b, x=a.x, y=a.y)}
        return replace(self, things=tuple(places.get(t, t) for t in self.things))


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("|".join(parts).encode(), digest_size=8).hexdigest()


def random_scene(rng: np.random.Generator) -> Scene:
    """One to four things of different colours, in different cells of the grid, each up to 2 pixels off its cell's middle."""
    count = int(rng.integers(1, 5))
    colours = rng.permutation(len(COLOURS))[:count]
    cells = rng.permutation(GRID * GRID)[:count]
    shapes = rng.integers(0, len(SHAPES), count)
    jitter = rng.integers(-1, 3, (count, 2))
    names = tuple(COLOURS)
    things = tuple(
        Thing(
            names[colours[i]],
            SHAPES[shapes[i]],
            int(cells[i] % GRID) * CELL + 6 + int(jitter[i, 0]),
            int(cells[i] // GRID) * CELL + 6 + int(jitter[i, 1]),
        )
        for i in range(count)
    )
    return Scene(things, noise=int(rng.integers(2**31)))


def scenes(split: str, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless random scenes of one split."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: scenes have the splits {', '.join(SPLITS)}")
    while True:
        scene = random_scene(rng)
        if scene.split == split:
            yield scene
