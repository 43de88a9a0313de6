"""The words that records are asked in, and the order of the options."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple

from ..core.arguments import Raises
from ..errors import DataError
from .question import LETTERED, Question
from .scenes.task import YES_NO
from .wording import clean, short

Options = Annotated[Literal["words", "letters"], Raises(DataError)]
"""What is answered: an option's words, or its letter."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BY_LETTER = "\n{options}\nAnswer with the option's letter from the given choices directly."
"""What follows a question with lettered options, one a line: the words that LLaVA-1.5 and most models since were trained with."""


class Template(NamedTuple):
    """A question, what follows it where its options are words, and the places in braces that the records of a set can fill."""

    question: str
    by_words: str
    fields: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.question + self.by_words

    def asked_by(self, options: str) -> str:
        """The whole text, for options that are "words" or "letters"."""
        return self.text if options == "words" else self.question + BY_LETTER


TEMPLATES = {
    "one object": Template("Which part of the picture shows the {subject}?", " Answer with one word: {options}.", ("subject", "options")),
    "two objects": Template(
        "What is the position of the {subject} relative to the {object}?",
        " Answer with one word: {options}.",
        ("subject", "object", "options"),
    ),
    "statement": Template(
        'Does this sentence describe the picture correctly? "{caption}"',
        " Answer with one word: {options}.",
        ("caption", "subject", "object", "relation", "options"),
    ),
    "presence": Template("{question}", " Answer with one word: {options}.", ("question", "object", "options")),
    "scene": Template("{text}", "\nAnswer with the right one of these options: {options}.", ("text", "options")),
    "question": Template("{question}", " Answer with one of these: {options}.", ("question", "options")),
}
"""Our wording, number-neutral where a thing may be plural ("the scissors"); the model's chat template comes around it later."""
PRESETS: dict[str, dict[str, tuple[str, Options]]] = {
    "vlmevalkit": {
        "presence": ("{question}", "words"),
        "statement": ('Is this sentence about the picture true? "{caption}" Please answer yes or no.', "words"),
        "scene": ("Question: {text}\nOptions:\n{options}\nPlease select the correct answer from the options above.", "letters"),
    },
    "lmms-eval": {"presence": ("{question}\nAnswer the question using a single word or phrase.", "words")},
}
"""How harnesses ask: harness -> kind of template -> words, and what is answered. `evaluation.scoring` has their scorers by the same names.

VLMEvalKit (Apache-2.0) asks POPE's own words and SpatialEval's within this frame; its words for VSR-zeroshot are in a file without a
licence, so these are ours. lmms-eval (MIT and Apache-2.0) has no VSR and no SpatialEval.
"""


def ask_preset(preset: str, kind: str, name: str) -> tuple[str, Options]:
    """The words of a harness for a kind of template, and what is answered. DataError where it does not have the set.

    >>> ask_preset("lmms-eval", "presence", "pope/random")
    ('{question}\\nAnswer the question using a single word or phrase.', 'words')
    """
    if kind not in PRESETS[preset]:
        sets = {"presence": "POPE", "statement": "VSR", "scene": "SpatialEval"}
        raise DataError(f"template {preset!r} is for {', '.join(sets[k] for k in PRESETS[preset])}, not for {name}; leave it out")
    return PRESETS[preset][kind]


def check_template(template: str, fields: Sequence[str]) -> str:
    """The template, or DataError where it has a place that the set's records do not fill."""
    try:
        places = [place for place in Formatter().parse(template) if place[1] is not None]
    except ValueError as error:
        raise DataError(f"template {template!r} cannot be read ({error}); write a brace that is meant as one twice") from error
    asked = [str(name) for _, name, _, _ in places]
    unknown = [name for name in asked if name not in fields]
    if formatted := next((str(name) for _, name, spec, conversion in places if spec or conversion), None):
        raise DataError(f"template {template!r} formats {{{formatted}}}; write its name alone")
    if unknown:
        raise DataError(
            f"template {template!r} asks for {{{unknown[0]}}}, which this set lacks; use {', '.join(f'{{{f}}}' for f in fields)}"
        )
    return template


MARK = re.compile(
    r"<(?:image|img|video|image_placeholder|image_soft_token|start_of_image|image[-_ ]?\d+)>"
    r"|<\|(?:image|image_\d+|image_pad|video_pad)\|>|\[IMG\]",
    re.I,
)
"""Placeholders that files in other tools' forms have where an image goes."""


def without_marks(text: str, images: int, where: str) -> str:
    """The words of a question without placeholders for its images: the prompt's template puts images in, before the words.

    They are taken away where they stand before or behind all words, one for each image. Raises DataError for others, which
    say a place inside the words, or another number of images.

    >>> without_marks("<image>\\nWhere is the cat?", 1, "line 1")
    'Where is the cat?'
    """
    marks = MARK.findall(text)
    if not marks:
        return text
    words = re.sub(rf"^(?:\s*(?:{MARK.pattern}))+|(?:(?:{MARK.pattern})\s*)+$", "", text, flags=re.I).strip()
    if MARK.search(words) or len(marks) != images or not words:
        raise DataError(
            f"{where}: the question holds {len(marks)} image placeholder(s) {marks[0]!r} among its words, for {images} image(s); "
            "remove them from the question: the prompt's template puts the images in"
        )
    return words


def shuffled(choices: Sequence[str], key: str, seed: int) -> tuple[str, ...]:
    """The choices in an order that depends on key and seed alone; yes and no stay as they are.

    >>> shuffled(("left", "right", "on", "under"), "whatsup/controlled_a/mug_on_table", seed=0)
    ('on', 'under', 'left', 'right')
    """
    if {c.casefold() for c in choices} == set(YES_NO):
        return tuple(choices)
    return tuple(sorted(choices, key=lambda c: digest(f"{seed}|{key}|{c}")))


def digest(text: str) -> int:
    """64 bits of the text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def one_of(options: Sequence[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"


def lettered(choices: Sequence[str], labels: Sequence[str] | None = None) -> dict[str, str]:
    """Letter -> option, in the given order; labels replace A, B, C and so on.

    >>> lettered(("left", "right"))
    {'A': 'left', 'B': 'right'}
    """
    if labels is None and len(choices) > len(LETTERS):
        raise DataError(f"{len(choices)} choices {short(list(choices))} have no letter each; ask for them in words")
    return dict(zip(labels or LETTERS, choices, strict=labels is not None))


def with_letters(question: Question) -> Question:
    """A question that lists no options, asked with them lettered, in the order of its choices.

    >>> with_letters(Question("Where is the cat?", ("left", "right"), 1)).text.split("\\n")[:3]
    ['Where is the cat?', 'A. left', 'B. right']
    """
    options = lettered(question.choices)
    return replace(
        question,
        text=question.text + BY_LETTER.format(options=listed(options)),
        choices=tuple(options),
        meta={**question.meta, LETTERED: options},
    )


def in_words(question: Question) -> Question:
    """A question with lettered options, asked for the words that the letters stand for.

    Our own list of letters gives way to one of words, or to nothing in rendered scenes, whose questions list no options. Where the list
    is the set's own it stays, and a line asks for words.

    >>> in_words(with_letters(Question("Where is the cat?", ("left", "right"), 1))).text
    'Where is the cat? Answer with one of these: left or right.'
    """
    options = question.meta.get(LETTERED)
    if not options:
        return question
    words = TEMPLATES["question"].by_words.format(options=one_of(question.choice_words))
    before = question.text.removesuffix(BY_LETTER.format(options=listed(options)))
    plain = "scene" in question.meta and before != question.text
    meta = {key: value for key, value in question.meta.items() if key != LETTERED}
    return replace(question, text=before if plain else before + words, choices=question.choice_words, meta=meta)


def listed(options: Mapping[str, str]) -> str:
    return "\n".join(f"{letter}. {words}" for letter, words in options.items())


@dataclass(frozen=True)
class Ask:
    """How a set's records become questions: the words, the seed of everything that is drawn, and whether options are lettered."""

    template: str
    seed: int
    options: Options = "words"

    def __call__(
        self,
        fields: Mapping[str, Any],
        choices: Sequence[str],
        answer: str,
        *,
        id: str,
        key: str = "",
        labels: Sequence[str] | None = None,
        **rest: Any,
    ) -> Question:
        """Make a question.

        Args:
            fields: What fills the template.
            choices: The options, in the set's order.
            answer: The right one.
            id: The question's id.
            key: What fixes the order of options in words; default: the id. Lettered ones keep the set's order.
            labels: The options' letters, where the set has its own.
            rest: The other fields of the question.
        """
        options = [clean(choice) for choice in choices]
        if self.options == "words":
            options = list(shuffled(options, key or id, self.seed))
        named = lettered(options, labels) if self.options == "letters" else {}
        try:
            text = self.template.format(**fields, options=listed(named) if named else one_of(options))
        except KeyError as error:
            filled = ", ".join(f"{{{name}}}" for name in (*fields, "options"))
            raise DataError(
                f"{id}: template {self.template!r} asks for {{{error.args[0]}}}, which this record does not have; it fills {filled}"
            ) from error
        if named:
            rest["meta"] = {**rest.get("meta", {}), LETTERED: named}
        return Question(text, tuple(named or options), options.index(clean(answer)), id=id, **rest)
