"""What can be asked of a scene: each task turns a scene into a question with one right answer, or into nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scene import COLOURS, GRID, SHAPES, SIZE, Scene, Thing

RELATIONS = ("left", "right", "above", "below")
POSITIONS = ("left", "right", "top", "bottom")
ORDINALS = ("first", "second", "third", "fourth")
NUMBERS = ("zero", "one", "two", "three", "four")
YES_NO = ("yes", "no")
DOMINANCE = 2
"""One axis "clearly dominates" when its distance is at least this many times the other's."""


@dataclass(frozen=True)
class Asked:
    """A question as asked of one scene; about: names of the things it is about, the subject first."""

    text: str
    choices: tuple[str, ...]
    answer: str
    about: tuple[str, ...] = ()
    relation: str | None = None


def direction(dx: int, dy: int) -> str | None:
    """The relation word of a displacement in pixels, or None where no axis clearly dominates."""
    if max(abs(dx), abs(dy)) < DOMINANCE * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def place(thing: Thing) -> str:
    """The absolute place of a thing in the image, as a relation word (the larger distance from the middle decides)."""
    dx, dy = 2 * thing.x - (SIZE - 1), 2 * thing.y - (SIZE - 1)
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _pick(things: list[Thing] | tuple[Thing, ...], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing, str] | None:
    if len(scene.things) < 2:
        return None
    i, j = rng.permutation(len(scene.things))[:2]
    a, b = scene.things[i], scene.things[j]
    word = direction(a.x - b.x, a.y - b.y)
    return None if word is None else (a, b, word)


def relation(scene: Scene, rng: np.random.Generator) -> Asked | None:
    found = _two(scene, rng)
    if found is None:
        return None
    a, b, word = found
    return Asked(f"Where is the {a.name} relative to the {b.name}?", RELATIONS, word, (a.name, b.name), word)


def relation_yesno(scene: Scene, rng: np.random.Generator) -> Asked | None:
    found = _two(scene, rng)
    if found is None:
        return None
    a, b, word = found
    yes = bool(rng.integers(2))
    said = word if yes else str(rng.choice([r for r in RELATIONS if r != word]))
    phrase = f"{said} of" if said in ("left", "right") else said
    return Asked(f"Is the {a.name} {phrase} the {b.name}?", YES_NO, YES_NO[not yes], (a.name, b.name), said)


def position(scene: Scene, rng: np.random.Generator) -> Asked | None:
    thing = _pick(scene.things, rng)
    middle = (SIZE - 1) // 2
    word = direction(thing.x - middle, thing.y - middle)
    if word is None:
        return None
    word = POSITIONS[RELATIONS.index(word)]
    return Asked(f"Where is the {thing.name} in the picture?", POSITIONS, word, (thing.name,), word)


def column(scene: Scene, rng: np.random.Generator) -> Asked | None:
    thing = _pick(scene.things, rng)
    return Asked(f"In which column is the {thing.name}?", ORDINALS, ORDINALS[thing.x * GRID // SIZE], (thing.name,))


def row(scene: Scene, rng: np.random.Generator) -> Asked | None:
    thing = _pick(scene.things, rng)
    return Asked(f"In which row is the {thing.name}?", ORDINALS, ORDINALS[thing.y * GRID // SIZE], (thing.name,))


def shape(scene: Scene, rng: np.random.Generator) -> Asked | None:
    thing = _pick(scene.things, rng)
    return Asked(f"What shape is the {thing.colour} thing?", SHAPES, thing.shape, (thing.name,))


def colour(scene: Scene, rng: np.random.Generator) -> Asked | None:
    shapes = [t.shape for t in scene.things]
    alone = [t for t in scene.things if shapes.count(t.shape) == 1]
    if not alone:
        return None
    thing = _pick(alone, rng)
    return Asked(f"What colour is the {thing.shape}?", tuple(COLOURS), thing.colour, (thing.name,))


def count(scene: Scene, rng: np.random.Generator) -> Asked | None:
    return Asked("How many things are there?", NUMBERS[1:], NUMBERS[len(scene.things)])


def count_shape(scene: Scene, rng: np.random.Generator) -> Asked | None:
    wanted = SHAPES[int(rng.integers(len(SHAPES)))]
    found = [t.name for t in scene.things if t.shape == wanted]
    return Asked(f"How many {wanted} things are there?", NUMBERS, NUMBERS[len(found)], tuple(found))


def exists(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """POPE's form; an absent thing shares its colour or its shape with a present one half of the time."""
    present = [t.name for t in scene.things]
    if rng.integers(2):
        name = present[int(rng.integers(len(present)))]
        return Asked(f"Is there a {name}?", YES_NO, "yes", (name,))
    seen = _pick(scene.things, rng)
    names = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in present]
    near = [n for n in names if (n.split()[0] == seen.colour) != (n.split()[1] == seen.shape)]
    pool = near if near and rng.integers(2) else names
    return Asked(f"Is there a {pool[int(rng.integers(len(pool)))]}?", YES_NO, "no")


TASKS: dict[str, Callable[[Scene, np.random.Generator], Asked | None]] = {
    "relation": relation,
    "relation-yesno": relation_yesno,
    "position": position,
    "column": column,
    "row": row,
    "shape": shape,
    "colour": colour,
    "count": count,
    "count-shape": count_shape,
    "exists": exists,
}
NON_SPATIAL = ("shape", "colour", "count", "exists")
