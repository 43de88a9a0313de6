"""Decomposed questions about rendered scenes: every step's answer is exact, in words that the embedded models know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ..core.arguments import checked
from ..errors import DataError
from .readers.cogvsr import CogQuestion, CogQuestions, Sub
from .scenes.questions import OPPOSITE, SPLIT_SEED, scene_question
from .scenes.scene import Scene, Thing, scenes
from .scenes.task import RELATIONS, TASKS, YES_NO, Asked, relation, relation_yesno

TAXONOMY = {
    "exists": "visual reception",
    "count": "counting",
    "count-shape": "counting",
    "shape": "attribute recognition",
    "colour": "attribute recognition",
    "position": "spatial perception",
    "column": "spatial perception",
    "row": "spatial perception",
    "relation": "relational reasoning",
    "inverse": "inference",
    "relation-yesno": "decision",
}
"""Which function each kind of step asks for, in the order of the steps; the tags are ours (the paper names two functions).

"inverse" asks for the relation the other way round. It follows from the step before, but only where that step is in the
context: alone it is a question of the same form as "relation", and no probe can tell the two apart.
"""


@checked
def cog_questions(split: str = "test", n: int = 100, seed: int = 0, taxonomy: Mapping[str, str] = TAXONOMY) -> CogQuestions:
    """n questions "Is the red circle left of the blue cross?", each with one step a function, about a scene of its own.

    The main answers, and the relation asked for, come in equal shares (up to one); other steps as scenes have them.

    Args:
        split: "train", "validation" or "test"; no two share a set of things.
        n: How many questions.
        seed: Draws scenes and questions.
        taxonomy: Kind of step -> function, in the order of the steps. Where several kinds have one function, each chain asks one.

    Raises:
        DataError: For an unknown split or kind of step.

    >>> chain = cog_questions("train", n=1)[0]
    >>> [function for _, function in chain.subquestions][:3]
    ['visual reception', 'counting', 'attribute recognition']
    """
    if not 1 <= n <= 1_000_000 or seed < 0:
        raise DataError(f"n={n}, seed={seed}: ask for 1 to 1,000,000 questions, with a seed of 0 or more")
    if split not in SPLIT_SEED:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(SPLIT_SEED)}")
    unknown = [kind for kind in taxonomy if kind not in TAXONOMY]
    if unknown or not taxonomy:
        raise DataError(f"taxonomy: {unknown[0] if unknown else taxonomy!r} is not a kind of step; choose from {', '.join(TAXONOMY)}")
    rng = np.random.default_rng([seed, SPLIT_SEED[split], len(TASKS)])
    found: list[CogQuestion] = []
    seen: set[str] = set()
    counts: Counter[tuple[str, str]] = Counter()
    share = -(-n // (len(RELATIONS) * len(YES_NO)))
    stream = scenes(split, rng)
    while len(found) < n:
        scene = next(stream)
        about = relation(scene, rng)
        if about is None or scene.key in seen:
            continue
        first, second = (next(t for t in scene.things if t.name == name) for name in about.about)
        main = _statement(first, second, rng)
        key = about.answer, main.answer
        if counts[key] >= share:
            continue
        steps = _steps(scene, first, second, {"relation": about, "relation-yesno": main}, taxonomy, rng)
        if steps is None:
            continue
        counts[key] += 1
        seen.add(scene.key)
        subs = tuple(Sub(scene_question(kind, scene, asked), taxonomy[kind]) for kind, asked in steps)
        found.append(CogQuestion(scene_question("cog", scene, main), subs))
    return CogQuestions([found[i] for i in rng.permutation(n)], "scenes/cog", split, seed)


def _statement(first: Thing, second: Thing, rng: np.random.Generator) -> Asked:
    """Whether the first thing is in some relation to the second, in this order."""
    while True:
        asked = relation_yesno(Scene((first, second)), rng)
        if asked is not None and asked.about == (first.name, second.name):
            return asked


def _steps(
    scene: Scene, first: Thing, second: Thing, known: Mapping[str, Asked], taxonomy: Mapping[str, str], rng: np.random.Generator
) -> list[tuple[str, Asked]] | None:
    """One step a function in the taxonomy's order; None where the scene leaves a function without a question."""
    steps = []
    for function in dict.fromkeys(taxonomy.values()):
        kinds = [kind for kind in taxonomy if taxonomy[kind] == function]
        asked = [(kind, _ask(kind, scene, first, second, known, rng)) for kind in rng.permutation(kinds).tolist()]
        step = next(((kind, one) for kind, one in asked if one is not None), None)
        if step is None:
            return None
        steps.append(step)
    return steps


def _ask(kind: str, scene: Scene, first: Thing, second: Thing, known: Mapping[str, Asked], rng: np.random.Generator) -> Asked | None:
    """A step about one of the two things, or about the whole scene where it names none."""
    if kind in known:
        return known[kind]
    if kind == "inverse":
        word = OPPOSITE[known["relation"].answer]
        return Asked(f"Where is the {second.name} relative to the {first.name}?", RELATIONS, word, (second.name, first.name), word)
    if kind in ("exists", "count", "count-shape"):
        return TASKS[kind](scene, rng)
    thing = (first, second)[int(rng.integers(2))]
    if kind == "colour" and sum(t.shape == thing.shape for t in scene.things) > 1:
        return None
    return TASKS[kind](Scene((thing,)), rng)
