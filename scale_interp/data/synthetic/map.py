"""Maps of named places: directions between them, and how many lie further on one side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..question import Box
from ..scenes.task import Asked
from .kind import SIDE, Kind, Layout, QuestionType, number_choices, numbers, pick

NAMES = (
    *("Arlow", "Benholt", "Corwick", "Dapplin", "Eastrey", "Fennick", "Gorsby", "Hartlen", "Inverly", "Jorvale", "Keldon", "Lindmere"),
    *("Morwen", "Nethery", "Oakrim", "Perrow", "Quenby", "Rosmer", "Selbury", "Tarnley", "Ulverey", "Vandry", "Wexley", "Yarrick"),
)
"""Invented, and no two with the same first letter."""
DIRECTIONS = {
    "north": (0, 1),
    "east": (1, 0),
    "south": (0, -1),
    "west": (-1, 0),
    "north-east": (1, 1),
    "south-east": (1, -1),
    "south-west": (-1, -1),
    "north-west": (-1, 1),
}
"""Steps (to the east, to the north)."""
MAIN, BETWEEN = tuple(DIRECTIONS)[:4], tuple(DIRECTIONS)[4:]
NEAR, FAR = 15, 60
"""A place lies in a direction when it is within NEAR degrees of it, and clearly does not when it is FAR degrees off or more."""
COUNTS = numbers(0, 3)
BLOCKS, BLOCK, EDGE = 8, 38, 35
"""Crossings in a row of the map, the distance between two of them, and the margin, in pixels."""
RADIUS, LETTER, LINE = 5, 8, 16
"""Of a dot; width and height that a letter takes at most, whatever font this computer has: the same seed is the same map everywhere."""
COMPASS: Box = (SIDE - 26, 0, SIDE, 28)
GROUND, STREET, DOT, INK = (250, 248, 240), (226, 222, 208), (200, 30, 40), (20, 20, 20)


@dataclass(frozen=True)
class Place:
    """A named place, in blocks from the south-west corner of the map."""

    name: str
    east: int
    north: int

    @property
    def x(self) -> int:
        return EDGE + BLOCK * self.east

    @property
    def y(self) -> int:
        return SIDE - 1 - EDGE - BLOCK * self.north

    @property
    def label(self) -> Box:
        """Where the name is written, below the dot."""
        half, top = LETTER * len(self.name) / 2, self.y + RADIUS + 2
        return self.x - half, top, self.x + half, top + LINE

    @property
    def box(self) -> Box:
        """The dot and its name."""
        left, _, right, bottom = self.label
        return left, self.y - RADIUS, right, bottom


@dataclass(frozen=True)
class Map(Layout):
    """Places on different crossings, sorted by name, none with another on the next crossing east: its name would not fit."""

    places: tuple[Place, ...]
    caption = "The picture is a map with north at the top; each place is a dot with its name below."

    @property
    def content(self) -> str:
        return "|".join(f"{p.name} {p.east} {p.north}" for p in self.places)

    @property
    def kin(self) -> str:
        """The names: a map that is moved or mirrored stays in its split."""
        return "|".join(p.name for p in self.places)

    def words(self) -> str:
        """Each place but the first by its exact way from an earlier one, so that all ways are fixed."""
        rng = np.random.default_rng(int(self.key, 16))
        order = [self.places[i] for i in rng.permutation(len(self.places))]
        ways = [f"{place.name} is {_way(order[int(rng.integers(i))], place)}." for i, place in enumerate(order) if i]
        return f"A map shows {len(order)} places and no others: {', '.join(p.name for p in order)}. {' '.join(ways)}"

    @property
    def boxes(self) -> dict[str, Box]:
        return {p.name: p.box for p in self.places}

    def render(self) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE), GROUND)
        draw = ImageDraw.Draw(image)
        for i in range(BLOCKS):
            street = Place("", i, i)
            draw.line((street.x, 0, street.x, SIDE), STREET)
            draw.line((0, street.y, SIDE, street.y), STREET)
        _draw_compass(draw)
        font = ImageFont.load_default(13)
        for place in self.places:
            draw.ellipse((place.x - RADIUS, place.y - RADIUS, place.x + RADIUS, place.y + RADIUS), DOT)
            draw.text((place.x, place.label[1] + LINE / 2), place.name, INK, font, anchor="mm")
        return image


def draw_map(rng: np.random.Generator) -> Map:
    """Four to eight places."""
    count = int(rng.integers(4, 9))
    names = sorted(NAMES[i] for i in rng.permutation(len(NAMES))[:count])
    while True:
        crossings = [(int(c) % BLOCKS, int(c) // BLOCKS) for c in rng.permutation(BLOCKS * BLOCKS)[:count]]
        if not any((east + 1, north) in crossings for east, north in crossings):
            return Map(tuple(Place(name, *crossing) for name, crossing in zip(names, crossings, strict=True)))


def ask_direction(layout: Map, rng: np.random.Generator) -> Asked | None:
    """The options are the four main directions or the four between them, so that no two of them are neighbours."""
    found = [(a, b, word) for a, b in permutations(layout.places, 2) for word in DIRECTIONS if _off(word, b, a) <= NEAR]
    if not found:
        return None
    a, b, word = pick(found, rng)
    return Asked(f"In which direction from {b.name} is {a.name}?", MAIN if word in MAIN else BETWEEN, word, (a.name, b.name), word)


def ask_which(layout: Map, rng: np.random.Generator) -> Asked | None:
    found = []
    for a, b in permutations(layout.places, 2):
        for word in (word for word in DIRECTIONS if _off(word, b, a) <= NEAR):
            far = [p.name for p in layout.places if p not in (a, b) and _off(word, b, p) >= FAR]
            if len(far) >= 3:
                found.append((a, b, word, far))
    if not found:
        return None
    a, b, word, far = pick(found, rng)
    wrong = [far[i] for i in rng.permutation(len(far))[:3]]
    return Asked(f"Which of these places is {word} of {b.name}?", (a.name, *wrong), a.name, (a.name, b.name), word)


def ask_count(layout: Map, rng: np.random.Generator) -> Asked | None:
    """Strictly further on the asked side or sides; no other place is level with the named one there."""
    b, word = pick(layout.places, rng), pick(tuple(DIRECTIONS), rng)
    step = DIRECTIONS[word]
    ways = [[s * d for s, d in zip(step, (p.east - b.east, p.north - b.north), strict=True) if s] for p in layout.places if p != b]
    count = sum(min(way) > 0 for way in ways)
    choices = number_choices(count, COUNTS)
    if choices is None or any(0 in way for way in ways):
        return None
    further = " and ".join(f"further {side}" for side in word.split("-"))
    return Asked(f"How many of the other places are {further} than {b.name}?", choices, str(count), (b.name,), word)


def _off(word: str, start: Place, end: Place) -> float:
    """Degrees between the way from start to end and a direction, 0 to 180."""
    east, north = DIRECTIONS[word]
    way = math.atan2(end.north - start.north, end.east - start.east)
    return math.degrees(abs(math.remainder(way - math.atan2(north, east), math.tau)))


def _way(start: Place, end: Place) -> str:
    steps = ((end.east - start.east, "east", "west"), (end.north - start.north, "north", "south"))
    parts = [f"{abs(n)} block{'s' * (abs(n) > 1)} {ahead if n > 0 else back}" for n, ahead, back in steps if n]
    return f"{' and '.join(parts)} of {start.name}"


def _draw_compass(draw: ImageDraw.ImageDraw) -> None:
    left, top, right, bottom = COMPASS
    middle = (left + right) / 2
    draw.text((middle, top + 9), "N", INK, ImageFont.load_default(14), anchor="mm")
    draw.line((middle, bottom - 1, middle, top + 18), INK)
    draw.polygon([(middle, top + 16), (middle - 3, top + 21), (middle + 3, top + 21)], INK)


MAP = Kind(
    draw_map,
    {
        "direction": QuestionType(ask_direction, (*MAIN, *BETWEEN)),
        "which": QuestionType(ask_which, (*MAIN, *BETWEEN), by="relation"),
        "count": QuestionType(ask_count, COUNTS),
    },
)
