"""What an answer in a file means: a choice's words, its letter, or its number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ...errors import DataError
from ..wording import clean, short

Answers = Literal["index", "index1", "text", "letter"]
SPOKEN = {
    "index": "counted from 0",
    "index1": "counted from 1",
    "text": "the choice with these words",
    "letter": "the choice's letter",
}


def check_answers(answers: object) -> None:
    if answers is not None and answers not in get_args(Answers):
        raise DataError(f"answers={answers!r}: choose from {', '.join(map(repr, get_args(Answers)))}, or leave it out")


def read_answer(answer: Any, choices: Sequence[str], labels: Sequence[str], answers: Answers | None, where: str) -> int:
    """The index of the right choice.

    Args:
        answer: As it stands in the file.
        choices: Clean words, all different.
        labels: The letter of each choice.
        answers: How to read it. None takes words and letters, and numbers as counted from 0, where no other reading differs.
        where: File and line, for messages.

    Raises:
        DataError: Where no reading fits, or where two fit and differ.

    >>> read_answer("B", ("left", "right"), "AB", None, "line 1")
    1
    >>> read_answer(2, ("1", "2", "3", "4"), "ABCD", "text", "line 1")
    1
    """
    found = readings(answer, choices, labels)
    if answers is not None:
        if answers not in found:
            raise DataError(f"{where}: answer {short(answer)} is none of the choices {short(list(choices))} by answers={answers!r}")
        return found[answers]
    # An object of choices may have numbers for letters: {"1": "left", "2": "right"}.
    ways = ("text", "letter") if isinstance(answer, str) or "letter" in found else ("text", "index")
    fits = {way: found[way] for way in ways if way in found}
    if isinstance(answer, str) and clean(answer) != clean(answer).upper() and "text" not in fits:
        fits.pop("letter", None)  # a small letter may be a word
    if not isinstance(answer, str) and "text" in fits and "index" not in fits and "index1" in found:
        fits["index1"] = found["index1"]
    if len(set(fits.values())) > 1:
        (one, i), (other, j) = list(fits.items())[:2]
        raise DataError(
            f"{where}: answer {short(answer)} may be {choices[i]!r} ({SPOKEN[one]}) or {choices[j]!r} ({SPOKEN[other]}) "
            f"among the choices {short(list(choices))}; say answers={one!r} or answers={other!r}"
        )
    if not fits:
        others = [way for way in ("index", "index1", "letter") if way in found]
        mend = f"; if it is {SPOKEN[others[0]]}, say answers={others[0]!r}" if others else ""
        raise DataError(
            f"{where}: answer {short(answer)} is none of the choices {short(list(choices))}, and no index of them; give one of these{mend}"
        )
    return next(iter(fits.values()))


def readings(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Every way to read an answer that names a choice, and the choice's index."""
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        return {}
    words = clean(str(answer))
    found = {}
    if words in choices:
        found["text"] = list(choices).index(words)
    letter = re.sub(r"^[(\[]|[)\].:]+$", "", words).casefold()
    folded = [label.casefold() for label in labels]
    if letter in folded:
        found["letter"] = folded.index(letter)
    if isinstance(answer, int) or re.fullmatch(r"\d{1,6}", words):
        number = int(words)
        if 0 <= number < len(choices):
            found["index"] = number
        if 1 <= number <= len(choices):
            found["index1"] = number - 1
    return found
