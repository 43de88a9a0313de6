"""Which option an answer in words names: a strict rule, and the released rules to reproduce published figures."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from ..core.arguments import checked
from ..data.question import Question
from ..errors import DataError

Scorer = Literal["strict", "legacy"]

WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:'[^\W_]+)*")
APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")
COMPASS = re.compile(r"\b(north|south)[\s-]+(east|west)\b")
"""With a space or a hyphen, they are one word: "north-west" does not name "north"."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: str(n) for n, word in enumerate(WORDS)}
"""The only synonyms: "2" names the option "two", and vice versa. No data set's authors state any other."""
LEADS = tuple((lead, *article) for lead in ("on", "in", "at", "to") for article in ((), ("the",), ("its",)))
"""Words that belong to the option after them: "on the left" names "left" and not "on", "in front" names "front"."""
IDIOMS = (("based", "on"), ("depending", "on"), ("right", "answer"), ("right", "option"), ("right", "choice"), ("no", "doubt"))
"""Phrases in which an option's word does not mean the option."""
DENIALS = frozenset(("not", "no", "never", "neither", "nor", "none", "without", "cannot", "false", "wrong", "incorrect"))
"""These, and words that end in "n't", deny an answer, unless they belong to the option that is named."""


@checked
def score_text(text: str, question: Question, scorer: Scorer = "strict") -> int | None:
    """The index of the option that an answer names.

    Args:
        text: the answer as generated.
        question: the question, whose options are looked for.
        scorer: "strict" looks for whole words, whatever their case and punctuation; an answer that denies something ("not left", "yes,
            it is not") names nothing. "legacy" applies the released rule of the data set's evaluation: POPE's to "pope/" questions,
            AdaptVis' to all others. It looks for the right option first, so use it only to reproduce published figures.

    Returns:
        The index, or None where the answer names no option, or more than one.

    Raises:
        DataError: for an unknown scorer, and for options that differ only in punctuation or case.

    >>> q = Question("Where is the mug?", ("left", "right", "on", "under"), 0)
    >>> score_text("It is on the left.", q), score_text("not left", q)
    (0, None)
    >>> score_text("on the left, or on the right", q, "legacy")
    0
    """
    if scorer not in get_args(Scorer):
        raise DataError(f"scorer {scorer!r}: choose 'strict' or 'legacy'")
    return _strict(text, question) if scorer == "strict" else _legacy(text, question)


def words(text: str) -> tuple[str, ...]:
    """The words of a text in one form: lower case, no punctuation, one kind of quote, digits for numbers."""
    plain = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).casefold()
    return tuple(NUMBERS.get(w, w) for w in WORD.findall(COMPASS.sub(r"\1\2", plain)))


def _strict(text: str, question: Question) -> int | None:
    names = _names(question)
    longest = max(map(len, names))
    said, found, others, at = words(text), set(), [], 0
    while at < len(said):
        size = next((n for n in range(longest, 0, -1) if said[at : at + n] in names), 0)
        if size:
            found.add(names[said[at : at + size]])
        else:
            others.append(said[at])
        at += max(size, 1)
    found.discard(None)
    if len(found) != 1:
        return None
    (option,) = found
    denied = any(w in DENIALS or w.endswith("n't") for w in others)
    return None if denied and not DENIALS & set(words(question.choices[option])) else option  # type: ignore[index]


def _names(question: Question) -> dict[tuple[str, ...], int | None]:
    """Every sequence of words that names an option (its index), or only looks like one (None): idioms and the things asked about."""
    names: dict[tuple[str, ...], int | None] = {}
    for i, choice in enumerate(question.choices):
        name = words(choice)
        if not name or name in names:
            raise DataError(
                f"question {question.id}: option {choice!r} of {question.choices} has no words of its own once case and punctuation "
                "are gone: rename it, or score by likelihood with evaluate"
            )
        names[name] = i
    for name, option in list(names.items()):
        for lead in LEADS:
            names.setdefault((*lead, *name), option)
    for name in (*IDIOMS, *map(words, question.about)):
        if name:
            names.setdefault(name, None)
    return names


def _legacy(text: str, question: Question) -> int | None:
    """As released: AdaptVis `model_zoo/llava15.py` and POPE `evaluate.py`. Neither checks what else the answer names."""
    family = question.task.partition("/")[0]
    if family == "pope":
        said = text.split(".")[0].replace(",", "").split(" ")
        return _option(question, "no" if {"No", "no", "not"} & set(said) else "yes")
    word, lower = question.answer_text.lower(), text.lower()
    counts = word.capitalize() in text if family == "vsr" else word in lower and not (word == "on" and "front" in lower)
    if counts:
        return question.answer
    others = [i for i in range(len(question.choices)) if i != question.answer]
    if len(others) == 1:
        return others[0]
    return next((i for i in others if question.choices[i].lower() in lower), None)


def _option(question: Question, word: str) -> int:
    for i, choice in enumerate(question.choices):
        if choice.lower() == word:
            return i
    raise DataError(
        f"question {question.id}: the released POPE rule needs yes and no, but the options are {question.choices}; use scorer='strict'"
    )
