"""How others score an answer in words, quirks included: the rules of papers' code and of two harnesses, written again.

Use them to reproduce or compare published figures. Each function gives the index of the option that its rule takes the answer for, or
None. Most rules only ask whether the right option is in the text, so they look for that one first.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..data.question import LETTERED, Question
from ..errors import DataError

COUNTS = {"zero": 0, "no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
"""The number words of SpatialEval's scorer, in the order in which it looks for them."""
COMPASS = "southeast|northeast|northwest|southwest"
ANIMALS = "giraffe|cat|dog|elephant|rabbit"
NAME = r"[\w\s'\u2019]+"


def legacy(text: str, question: Question) -> int | None:
    """As released with AdaptVis (`model_zoo/llava15.py`), and with POPE (`evaluate.py`) for its questions.

    Neither checks what else the answer names.
    """
    family = question.task.partition("/")[0]
    if family == "pope":
        said = text.split(".")[0].replace(",", "").split(" ")
        return _yes_or_no(question, "legacy")["no" if {"No", "no", "not"} & set(said) else "yes"]
    word, lower = question.answer_words.lower(), text.lower()
    counts = word.capitalize() in text if family == "vsr" else word in lower and not (word == "on" and "front" in lower)
    if counts:
        return question.answer
    others = [i for i in range(len(question.choices)) if i != question.answer]
    if len(others) == 1:
        return others[0]
    return next((i for i in others if question.choice_words[i].lower() in lower), None)


def release(text: str, question: Question) -> int | None:
    """As released with SpatialEval (`evals/evaluation.py`), for its maps, mazes and grids.

    What the text says is found by the kind of question, as a word or a number; the answer counts where the right one is *contained* in
    that, so 1 is in 12. Where nothing is found, the text says "none", which contains the "no" of a question of yes and no. What the
    authors' scorer looks for in the answers of Claude, Gemini and GPT-4o alone is left out.
    """
    kind, type_ = question.meta.get("kind"), question.meta.get("question_type")
    read = READ.get((str(kind), str(type_)))
    if read is None:
        raise DataError(
            f"question {question.id}: scorer 'release' is that of SpatialEval's maps, mazes and grids, and has no rule for "
            f"kind {kind!r} with question_type {type_!r}; use scorer='strict'"
        )
    said = str(read(text)).lower()
    right = str(question.meta.get("oracle_answer") or question.answer_words).lower()
    if right in said:
        return question.answer
    others = (i for i in range(len(question.choices)) if i != question.answer)
    return next((i for i in others if question.choice_words[i].lower() in said), None)


def vlmevalkit(text: str, question: Question) -> int | None:
    """As VLMEvalKit does without a judge model: yes or no (POPE, VSR-zeroshot), and lettered options (SpatialEval)."""
    letters = question.meta.get(LETTERED)
    if letters:
        return _by_option(text, question)
    options = _yes_or_no(question, "vlmevalkit", "; load it with options='letters' where it has other options")
    said = _without_punctuation(text.lower()).split()
    found = [word for word in ("yes", "no") if word in said]
    return options[found[0]] if len(found) == 1 else None


def lmms_eval(text: str, question: Question) -> int | None:
    """As lmms-eval scores POPE: the whole text, in lower case, is yes or no. "Yes." with its full stop is neither."""
    return _yes_or_no(question, "lmms-eval").get(text.lower().strip())


def _yes_or_no(question: Question, scorer: str, more: str = "") -> dict[str, int]:
    options = {choice.lower(): i for i, choice in enumerate(question.choices)}
    if set(options) != {"yes", "no"}:
        raise DataError(
            f"question {question.id}: scorer={scorer!r} needs yes and no, but the options are {question.choices}{more}; use scorer='strict'"
        )
    return options


def _without_punctuation(text: str) -> str:
    """As VQA's evaluation cleans answers, which VLMEvalKit took over.

    A mark is dropped everywhere if it stands beside a space anywhere, or if any comma is within a number; otherwise it becomes a space.
    Quotes, colons and asterisks stay, so "**yes**" is not the word yes. A full stop is dropped unless a digit follows.
    """
    number = re.search(r"\d,\d", text)
    cleaned = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside or number else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=32)  # 32, as the authors pass the flag re.UNICODE where a count is expected


def _by_option(text: str, question: Question) -> int | None:
    """The one letter that stands alone among the last four words, else the one option whose words are in the text."""
    if any(refusal in text for refusal in REFUSALS):
        return None
    said = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [i for i, letter in enumerate(question.choices) if letter in said]
    if len(named) == 1 and said.index(question.choices[named[0]]) > len(said) - 5:
        return named[0]
    words = [w.lower() for w in question.choice_words]
    if len(text) > 2 * sum(map(len, words)):
        return None
    contained = [i for i, w in enumerate(words) if w in text.lower()]
    return contained[0] if len(contained) == 1 else None


REFUSALS = ("Sorry, I can't help with images of people", "I can't process this file", "but without the image provided", "Cannot determine")
"""Beginnings of the texts that VLMEvalKit takes for no answer."""


def _found(pattern: str, text: str, group: int = 1, ignore_case: bool = True) -> str | None:
    match = re.search(pattern, text, re.I if ignore_case else 0)
    return match[group] if match else None


def _direction(text: str) -> str | None:
    return _found(rf"\b[A-D]\.\s*({COMPASS})\b", text) or _found(rf"\b({COMPASS})\b", text)


def _object(text: str) -> str | None:
    if (subject := _found(rf"^({NAME}?)\s+is\s+(?:located\s+(?:to\s+the\s+)?|in\s+the\s+)(?:{COMPASS})\b", text)) is not None:
        return subject
    if (line := _found(r"\b[A-D]\.\s*(.*)", text, ignore_case=False)) is not None:
        return line.replace("**", "").replace(".", "").split(" is", 1)[0].strip()
    # The letter, not what follows it; brackets count only where a word ends right before them.
    if (letter := _found(r"\b([ABCD],|\([abcdABCD]\))", text, ignore_case=False)) is not None:
        return letter.rstrip(",")
    if (concluded := _found(rf"Therefore, the object in the (?:{COMPASS}) of {NAME} is ({NAME})", text)) is not None:
        return concluded
    after_is = _found(r"\bis\b\s+(.*?)(?=\.|,|<|$)", text, ignore_case=False)
    return None if after_is is None else after_is.strip().rstrip("?!")


def _first_count(text: str) -> int | None:
    """The number that stands first, as a word or in digits."""
    found = [(match.start(), number) for word, number in COUNTS.items() for match in re.finditer(rf"\b{word}\b", text, re.I)]
    found += [(match.start(), int(match[0])) for match in re.finditer(r"\d+", re.sub(r"^\n\n\d+\.\s", "", text))]
    return min(found)[1] if found else None


def _map_count(text: str) -> int | None:
    lettered = _found(r"\b[A-D]\.\s*(\d+)", text, ignore_case=False)
    return _first_count(text) if lettered is None else int(lettered)


def _turns(right: bool) -> Callable[[str], int | None]:
    """A number word wherever it stands, zero and no before one, one before two; then digits in a phrase; then the first digits."""
    many = r"\s*right\s*turns?\b" if right else r"\s*(?:total\s*)?turns?\b"
    phrases = [rf"\bThere (?:are|is)\s*(\d+){many}"]
    phrases += [r"\b(\d+)\s+right turns?"] if right else []
    phrases += [r"answer is(?::\s*|\s+)(\d+)", r"from S to E is\s+(\d+)"]
    phrases += [] if right else [r"\btotal of\s+(\d+)\s+turn"]
    phrases += [r"Answer:\*\*\s*(\d+)\b"]
    phrases += [] if right else [r"(\d+)\s+total turn", r"\b(\d+)\s+turn"]

    def read(text: str) -> int | None:
        for word, number in COUNTS.items():
            if re.search(rf"\b{word}\b", text, re.I):
                return number
        said = next((d for phrase in [*phrases, r"(\d+)"] if (d := _found(phrase, text)) is not None), None)
        return None if said is None else int(said)

    return read


def _shortest(text: str) -> str | None:
    """Yes before no, wherever they stand."""
    if re.search(r"\byes\b|is the shortest path", text, re.I):
        return "Yes"
    return "No" if re.search(r"\b(?:no|not)\b", text, re.I) else None


def _animal(text: str) -> str | None:
    return _found(rf"\b({ANIMALS})\b", text)


READ: dict[tuple[str, str], Callable[[str], str | int | None]] = {
    ("map", "direction"): _direction,
    ("map", "object"): _object,
    ("map", "count"): _map_count,
    ("maze", "right turns"): _turns(right=True),
    ("maze", "turns"): _turns(right=False),
    ("maze", "relation"): _shortest,
    ("grid", "count"): _first_count,
    ("grid", "corner"): _animal,
    ("grid", "cell"): _animal,
}
"""Kind and type of a SpatialEval question -> what its answer says."""
