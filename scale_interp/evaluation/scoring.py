"""Which option an answer in words names: a strict rule, and the rules of others to reproduce published figures."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

from ..core.arguments import checked
from ..data.question import Question
from ..errors import DataError
from . import released_scoring as released

Scorer = Literal["strict", "legacy", "release", "vlmevalkit", "lmms-eval"]
OTHERS = {"legacy": released.legacy, "release": released.release, "vlmevalkit": released.vlmevalkit, "lmms-eval": released.lmms_eval}

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
        scorer: "strict" looks for whole words, whatever their case and punctuation, and for the letters of lettered options; an answer
            that denies something ("not left", "yes, it is not") names nothing. The others are for published figures, and some look
            for the right option first: "legacy" is POPE's released rule for "pope/" questions and AdaptVis' for all others, "release"
            that of SpatialEval, "vlmevalkit" and "lmms-eval" those of the two harnesses.

    Returns:
        The index, or None where the answer names no option, or more than one.

    Raises:
        DataError: for an unknown scorer, for options that differ only in punctuation or case, and for a question that the scorer has
            no rule for.

    >>> q = Question("Where is the mug?", ("left", "right", "on", "under"), 0)
    >>> score_text("It is on the left.", q), score_text("not left", q)
    (0, None)
    >>> score_text("on the left, or on the right", q, "legacy")
    0
    """
    if scorer not in get_args(Scorer):
        others = ", ".join(map(repr, get_args(Scorer)[2:]))
        raise DataError(f"scorer {scorer!r}: choose 'strict' or 'legacy', or the rule of others: {others}")
    return _strict(text, question) if scorer == "strict" else OTHERS[scorer](text, question)


def words(text: str) -> tuple[str, ...]:
    """The words of a text in one form: lower case, no punctuation, one kind of quote, digits for numbers."""
    plain = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).casefold()
    return tuple(NUMBERS.get(w, w) for w in WORD.findall(COMPASS.sub(r"\1\2", plain)))


def _strict(text: str, question: Question) -> int | None:
    if all(len(choice) == 1 and choice.isalpha() for choice in question.choices):
        return _strict_letters(text, question)
    found, others = _named(text, _names(question))
    return _undenied(found, others, question)


def _strict_letters(text: str, question: Question) -> int | None:
    """Letters and the words that they stand for name the same options; an answer may say either or both."""
    letters = _options(question, question.choices)
    spoken = _names(question) if question.choice_words != question.choices else {}
    bare = words(text)
    if bare in letters:
        return letters[bare]
    marked, rest = set(), text
    for option, letter in enumerate(question.choices):
        # A letter by itself, but "A" and "I" only where no article or pronoun can stand.
        end = r"(?=\s*[.):,\]]|\s*$|\s+(?:is|or|and|nor)\b)" if letter in "AIai" else r"(?![\w'\u2019])"
        mark = re.compile(rf"(?<![\w'\u2019])[(\[]?{letter}{end}[.):\]]?")
        if mark.search(rest):
            marked.add(option)
            rest = mark.sub(" ", rest)
    found, others = _named(rest, spoken) if spoken else (set(), list(words(rest)))
    return _undenied(found | marked, others, question)


def _undenied(found: set[int], others: list[str], question: Question) -> int | None:
    """The one option that was named, unless the words beside it deny it."""
    if len(found) != 1:
        return None
    (option,) = found
    denied = any(w in DENIALS or w.endswith("n't") for w in others)
    return None if denied and not DENIALS & set(words(question.choice_words[option])) else option


def _named(text: str, names: dict[tuple[str, ...], int | None]) -> tuple[set[int], list[str]]:
    """The options that a text names, and its other words."""
    longest = max(map(len, names))
    said, found, others, at = words(text), set[int | None](), list[str](), 0
    while at < len(said):
        size = next((n for n in range(longest, 0, -1) if said[at : at + n] in names), 0)
        if size:
            found.add(names[said[at : at + size]])
        else:
            others.append(said[at])
        at += max(size, 1)
    return {option for option in found if option is not None}, others


def _options(question: Question, choices: Sequence[str]) -> dict[tuple[str, ...], int]:
    """The words of each option; options that read the same are refused."""
    names: dict[tuple[str, ...], int] = {}
    for i, choice in enumerate(choices):
        name = words(choice)
        if not name or name in names:
            raise DataError(
                f"question {question.id}: option {choice!r} of {choices} has no words of its own once case and punctuation "
                "are gone: rename it, or score by likelihood with evaluate"
            )
        names[name] = i
    return names


def _names(question: Question) -> dict[tuple[str, ...], int | None]:
    """Every sequence of words that names an option (its index), or only looks like one (None): idioms and the things asked about."""
    names: dict[tuple[str, ...], int | None] = {**_options(question, question.choice_words)}
    for name, option in list(names.items()):
        for lead in LEADS:
            names.setdefault((*lead, *name), option)
    for name in (*IDIOMS, *map(words, question.about)):
        if name:
            names.setdefault(name, None)
    return names
