"""Questions about rendered scenes: balanced answers, known boxes, splits that share no set of things."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.suggest import near
from ...errors import DataError
from ..items import Questions
from ..question import Question
from .scene import Scene, scenes
from .task import TASKS, Asked, direction

SPLIT_SEED = {"train": 1, "validation": 2, "test": 3}
MIRROR_AXIS = {"left": "x", "right": "x", "above": "y", "below": "y", "top": "y", "bottom": "y"}
UNBALANCED = ("count-shape",)
"""Three things of one wanted shape are too rare to fill a share."""
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "top": "bottom", "bottom": "top"}


def scene_questions(task: str, split: str = "test", n: int = 200, seed: int = 0) -> Questions:
    """n questions of one task, the right answers in equal shares (up to one), each about a scene of its own."""
    if task not in TASKS:
        raise DataError(f"unknown scene task {task!r}: choose from {', '.join(TASKS)}{near(task, TASKS)}")
    if n < 1:
        raise DataError(f"n={n}: ask for at least one question")
    if split not in SPLIT_SEED:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(SPLIT_SEED)}")
    rng = np.random.default_rng([seed, SPLIT_SEED[split], list(TASKS).index(task)])
    found: list[Question] = []
    counts: dict[str, int] = {}
    seen: set[str] = set()
    stream = scenes(split, rng)
    while len(found) < n:
        scene = next(stream)
        asked = TASKS[task](scene, rng)
        if asked is None or scene.key in seen:
            continue
        share = -(-n // len(asked.choices))
        if counts.get(asked.answer, 0) >= share and task not in UNBALANCED:
            continue
        counts[asked.answer] = counts.get(asked.answer, 0) + 1
        seen.add(scene.key)
        found.append(scene_question(task, scene, asked))
    order = rng.permutation(n)
    return Questions([found[i] for i in order], f"scenes/{task}", split, seed)


def scene_question(task: str, scene: Scene, asked: Asked) -> Question:
    """What was asked of a scene, as a question with its image and boxes."""
    boxes = {t.name: t.box for t in scene.things}
    return Question(
        asked.text,
        asked.choices,
        asked.choices.index(asked.answer),
        image=scene.render,
        id=f"{task}/{scene.key}/{asked.text.removesuffix('?').replace(' ', '-').lower()}",
        group=scene.key,
        task=task,
        relation=asked.relation,
        about=asked.about,
        boxes=boxes,
        meta={"scene": scene},
    )


def partner(question: Question, change: str) -> Question | str:
    """The contrast partner of a scene question, or why there is none."""
    scene = question.meta.get("scene")
    if scene is None:
        return "the question does not know its scene"
    if question.relation is None:
        return f"task {question.task!r} asks for no place or relation"
    if change == "mirror":
        other = scene.mirrored(MIRROR_AXIS[question.relation])
    elif len(question.about) < 2:
        return "only one thing is asked about: nothing to swap"
    else:
        other = scene.swapped(*question.about[:2])
    answer = _answer_in(other, question)
    if answer is None or answer == question.answer:
        return "the changed scene has the same answer, or none"
    changed = replace(
        question,
        answer=answer,
        image_sources=(other.render,),
        id=f"{question.id}~{change}",
        relation=question.choice_words[answer] if question.relation in question.choice_words else question.relation,
        boxes={t.name: t.box for t in other.things},
        meta=dict(question.meta) | {"scene": other},
    )
    return changed


def _answer_in(scene: Scene, question: Question) -> int | None:
    things = {t.name: t for t in scene.things}
    subject = things[question.about[0]]
    if question.task == "position":
        return question.choice_words.index(OPPOSITE[question.answer_words])
    other = things[question.about[1]]
    word = direction(subject.x - other.x, subject.y - other.y)
    if question.task == "relation-yesno":
        return question.choice_words.index("yes" if word == question.relation else "no")
    return None if word is None else question.choice_words.index(word)
