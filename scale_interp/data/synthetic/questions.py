"""Questions about generated layouts: balanced answers, the same scenes in every form, splits that share no layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ...errors import DataError
from ..items import Questions
from ..prompts import Options, one_of, shuffled, with_letters
from ..question import Question
from ..scenes.scene import SPLITS
from ..scenes.task import Asked
from .grid import GRID
from .kind import Kind, Layout, QuestionType
from .map import MAP
from .maze import MAZE

FORMS = ("vqa", "vtqa", "tqa")
KINDS: dict[str, Kind] = {"map": MAP, "maze": MAZE, "grid": GRID}


def generated_questions(form: str, kind: str, split: str = "test", n: int = 200, seed: int = 0, options: Options = "words") -> Questions:
    """n four-option questions about generated maps, mazes or grids, in the form of SpatialEval.

    The same kind, split, n and seed give the same scenes and questions in every form; ids differ by the form only. A scene
    is asked each type of question at most once; types and right answers come in equal shares (up to one).

    Args:
        form: "vqa" shows an image, "tqa" describes the same scene in words, "vtqa" does both.
        kind: "map", "maze" or "grid".
        split: "train", "validation" or "test".
        n: How many questions.
        seed: Draws layouts and questions.
        options: Whether an option is answered by its "words" or by its letter ("letters").

    Raises:
        DataError: For an unknown form, kind or split, and for n below 1.

    >>> questions = generated_questions("tqa", "grid", n=8)
    >>> questions
    <8 questions of generated/tqa/grid test>
    >>> [q.choices for q in questions] == [q.choices for q in generated_questions("vqa", "grid", n=8)]
    True
    """
    if form not in FORMS:
        raise DataError(f"unknown form {form!r}: choose from {', '.join(FORMS)}")
    if kind not in KINDS:
        raise DataError(f"unknown kind {kind!r}: choose from {', '.join(KINDS)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if n < 1:
        raise DataError(f"n={n}: ask for at least one question")
    rng = np.random.default_rng([seed, list(SPLITS).index(split), list(KINDS).index(kind)])
    draw, types = KINDS[kind].draw, KINDS[kind].types
    wanted = _shares(types, n, rng)
    found: list[tuple[Layout, str, Asked]] = []
    seen: set[str] = set()
    while len(found) < n:
        layout = draw(rng)
        if layout.split != split or layout.key in seen:
            continue
        seen.add(layout.key)
        for name, type_ in types.items():
            # What is asked of a layout depends on the layout alone, so an id names one question, whatever n and seed.
            asked = type_.ask(layout, np.random.default_rng([int(layout.key, 16), *name.encode()]))
            if asked is not None and wanted[name, type_.balanced(asked)]:
                wanted[name, type_.balanced(asked)] -= 1
                found.append((layout, name, asked))
    made = [_question(form, kind, seed, options, *found[i]) for i in rng.permutation(n)]
    return Questions(made, f"generated/{form}/{kind}", split, seed)


def _shares(types: Mapping[str, QuestionType], n: int, rng: np.random.Generator) -> Counter[tuple[str, str | None]]:
    """How many questions are wanted of each type with each balanced word, n in all."""
    shares = _equal(tuple(types), n, rng)
    return Counter({(name, word): count for name, share in shares.items() for word, count in _equal(types[name].words, share, rng).items()})


def _equal(words: tuple[str, ...], n: int, rng: np.random.Generator) -> dict[str, int]:
    """n shared out over the words; who gets one more is drawn."""
    order = rng.permutation(len(words))
    return {words[i]: n // len(words) + (place < n % len(words)) for place, i in enumerate(order)}


def _question(form: str, kind: str, seed: int, options: Options, layout: Layout, name: str, asked: Asked) -> Question:
    choices = shuffled(asked.choices, f"generated/{kind}/{layout.key}/{name}", seed)
    parts = {"vqa": (layout.caption,), "tqa": (layout.words(),), "vtqa": (layout.caption, layout.words())}[form]
    instruction = f" Answer with {one_of(choices)}." if options == "words" else ""
    question = Question(
        "\n".join([*parts, asked.text + instruction]),
        choices,
        choices.index(asked.answer),
        image=None if form == "tqa" else layout.render,
        id=f"generated/{form}/{kind}/{layout.key}/{name}",
        group=f"generated/{kind}/{layout.key}",
        task=f"generated/{form}/{kind}",
        relation=asked.relation,
        about=asked.about,
        boxes={} if form == "tqa" else layout.boxes,
        meta={"form": form, "kind": kind, "question_type": name, "scene_key": layout.key},
    )
    return question if options == "words" else with_letters(question)
