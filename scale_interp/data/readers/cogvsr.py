"""Questions taken apart: a main question and its subquestions, each tagged with the cognitive function that it asks for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...core.arguments import checked
from ...core.notebook import NotebookView
from ...errors import DataError, DataWarning
from ..items import Items, Questions, require
from ..prompts import digest, shuffled, without_marks
from ..question import Question
from ..require import require_items
from ..scenes.task import YES_NO
from ..wording import alike, clean, clean_text, short
from .image_files import ImageFiles, require_place
from .json_keys import require_key
from .records import JsonLines, JsonList, entries, is_number, text, texts, walked

OPTIONS = 4
"""Options of a question whose record offers none."""


class Sub(NamedTuple):
    """One step of a chain: a question of its own, and the function that it asks for.

    >>> Sub(Question("Where is the cat?", ("left", "right"), 0), "relational reasoning").function
    'relational reasoning'
    """

    question: Question
    function: str


@dataclass(frozen=True)
class CogQuestion(NotebookView):
    """A main question and the steps that lead to its answer, all about one image.

    Raises DataError for no steps, for a step without a function, and for steps about another image.

    >>> main = Question("Is the cat left of the dog?", ("yes", "no"), 0, id="1")
    >>> where = Question("Where is the cat?", ("left", "right"), 0, id="2", group="1")
    >>> CogQuestion(main, ((where, "relational reasoning"),))
    <CogQuestion 1: 'Is the cat left of the dog?' 'yes'; steps: relational reasoning>
    """

    question: Question
    subquestions: tuple[Sub, ...]

    @classmethod
    def require_items(cls, items: Any) -> Sequence[Any]:
        """The items as a non-empty sequence of this class, or DataError."""
        return require_items(items, cls, "si.cog_questions('train')", "pass decomposed questions, as si.cog_questions gives")

    def __post_init__(self) -> None:
        if not isinstance(self.question, Question):
            raise DataError(f"a decomposed question about a {type(self.question).__name__}: give a Question")
        try:
            object.__setattr__(self, "subquestions", tuple(Sub(*sub) for sub in self.subquestions))
        except TypeError as error:
            raise DataError(f"question {self.id}: its steps are not pairs ({error}); give (question, function) pairs") from error
        if not self.subquestions:
            raise DataError(f"question {self.id}: it has no subquestions; give at least one")
        for step, (question, function) in enumerate(self.subquestions, 1):
            if not isinstance(question, Question):
                raise DataError(f"question {self.id}, step {step}: a {type(question).__name__}; give a Question")
            if not isinstance(function, str) or not function.strip():
                raise DataError(f"question {self.id}, step {step}: it has no function; tag it with one")
            if question.group != self.group:
                raise DataError(
                    f"question {self.id}, step {step}: group {question.group!r} is not {self.group!r}; steps share their image: give it"
                )

    def __repr__(self) -> str:
        steps = ", ".join(function for _, function in self.subquestions)
        return f"<CogQuestion {self.id}: {self.question.text!r} {self.question.answer_text!r}; steps: {steps}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"step": q.text, "right": q.answer_text, "function": function} for q, function in self.subquestions)

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def group(self) -> str:
        return self.question.group

    @property
    def pixel_keys(self) -> tuple[Hashable, ...]:
        return self.question.pixel_keys


class CogQuestions(Items[CogQuestion]):
    """Decomposed questions, as `cog_questions` and `read_cog` give them.

    >>> from scale_interp.data.decomposed import cog_questions
    >>> len(cog_questions("train", n=3)[:2])
    2
    """

    noun = "decomposed questions"

    def _card_row(self, item: CogQuestion) -> Mapping[str, Any]:
        return {"question": item.question.text, "right": item.question.answer_text, "steps": len(item.subquestions)}


@checked
def subquestions(cogs: Sequence[CogQuestion], context: bool = False, *, balanced: bool = True, seed: int = 0) -> Questions:
    """All steps as questions of their own; meta holds "function", "step" (from 1) and "chain", the main question's id.

    Args:
        cogs: Decomposed questions.
        context: Begin each text with the steps before it and their right answers (chain of thought; CogVSR, arXiv 2603.20662).
        balanced: Keep every function as often as the rarest one; steps are left out at random.
        seed: Draws the steps that are left out.

    >>> from scale_interp.data.decomposed import cog_questions
    >>> subquestions(cog_questions("train", n=2), context=True)[1].meta["function"]
    'counting'
    """
    cogs = require(cogs, CogQuestion)
    steps = [_step(cog, step, context) for cog in cogs for step in range(len(cog.subquestions))]
    if balanced:
        counts = Counter(q.meta["function"] for q in steps)
        fewest, kept = min(counts.values()), set()
        for function in counts:
            own = sorted((q.id for q in steps if q.meta["function"] == function), key=lambda name: digest(f"{seed}|{name}"))
            kept |= set(own[:fewest])
        steps = [q for q in steps if q.id in kept]
    return Questions(steps, getattr(cogs, "source", "given"), getattr(cogs, "split", ""), getattr(cogs, "seed", None))


def _step(cog: CogQuestion, step: int, context: bool) -> Question:
    question, function = cog.subquestions[step]
    before = [f"{q.text} {q.answer_text}." for q, _ in cog.subquestions[:step]] if context else []
    return replace(
        question,
        text=" ".join([*before, question.text]),
        id=f"{cog.id}#{step + 1}{'+context' if context else ''}",
        meta={**question.meta, "function": function, "step": step + 1, "chain": cog.id},
    )


@checked
def read_cog(path: str | Path, seed: int = 0, *, function: str | None = None) -> CogQuestions:
    """Decomposed questions from a file: JSON lines, or one JSON list.

    Our form is {"question", "answer", "image", "subquestions": [{"question", "answer", "function"}]}; CogQA's (Cognitive
    Mirrors, arXiv 2512.10978) has "generated": [{"subquestion", "answer", "cognitive_skill"}] and no image, and some of its
    records a "paragraph", which is put before their question and steps. "choices" may stand beside any answer. Where they do
    not, a yes or no is one of two; otherwise three other answers to the same function (or main question) of this file are
    drawn as wrong options. That is our choice, neither set has options.

    Args:
        path: The file; image paths go from its folder.
        seed: Draws wrong options and the order of options.
        function: What records {"paragraph", "question", "answer"} without steps ask for, such as "Retrieval" in CogQA's file of
            extractions: each is then its own only step. None leaves them out.

    Returns:
        The questions. Left out with a DataWarning are records with a paragraph and no steps, and those for which the rest of
        the file has no other answer to offer, such as one whose function occurs once.

    Raises:
        DataError: For what is not in this form, and where half of the records or more would be left out.

    >>> import json, tempfile
    >>> step = {"question": "Is there a cup?", "answer": "yes", "function": "visual reception"}
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     json.dump({"question": "Is the cup on the left?", "answer": "no", "subquestions": [step]}, file)
    ...     file.flush()
    ...     cog = read_cog(file.name)[0]
    >>> cog.question.answer_text, cog.subquestions[0].function
    ('no', 'visual reception')
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of decomposed questions as JSON lines")
    records: JsonLines | JsonList = JsonList(path) if _begins_a_list(path) else JsonLines(path)
    with walked(records) as read:
        chains = [_chain(records.where(i), record, function) for i, record in enumerate(read)]
    if not chains:
        raise DataError(f"{path} holds no questions; give at least one record")
    kept, pool, left_out = _answerable(chains)
    if 2 * len(left_out) >= len(chains):
        raise DataError(next(iter(left_out.values())))
    if left_out:
        text = f"{path}: {len(left_out)} of {len(chains)} records are left out; the first: {next(iter(left_out.values()))}"
        warnings.warn(text, DataWarning, stacklevel=2)
    images = ImageFiles((path.parent,), ("",), path.parent)
    return CogQuestions([_cog(f"{path.stem}/{i + 1}", chains[i], pool, images, seed) for i in kept], str(path), "", seed)


def _answerable(chains: Sequence[_Chain]) -> tuple[list[int], dict[str, list[str]], dict[int, str]]:
    """The chains of which every question has options, the answers that these are drawn from, and why the others are left out."""
    left_out = {
        i: f"{chain.where}: it has a paragraph and no 'generated' steps; give function= to ask it as a step of its own"
        for i, chain in enumerate(chains)
        if len(chain.all) < 2
    }
    while True:  # what is left out offers no answers, so that others may have none left
        kept = [i for i in range(len(chains)) if i not in left_out]
        pool: dict[str, list[str]] = {}
        for i in kept:
            for asked in chains[i].all:
                pool.setdefault(asked.function, []).append(asked.answer)
        lacking = {i: why for i in kept for why in [_lacks_options(chains[i], pool)] if why}
        if not lacking:
            return kept, pool, left_out
        left_out |= lacking


def _lacks_options(chain: _Chain, pool: Mapping[str, Sequence[str]]) -> str | None:
    for asked in chain.all:
        if asked.choices or asked.answer.casefold() in YES_NO:
            continue
        if len({other.casefold() for other in pool[asked.function]}) < 2:
            of = f"with function {asked.function!r}" if asked.function else "among the main questions"
            return f"{asked.where}: there is no other answer {of} to offer as a wrong option; give 'choices'"
    return None


def _begins_a_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


class _Step(NamedTuple):
    text: str
    answer: str
    function: str
    choices: tuple[str, ...]
    where: str


class _Chain(NamedTuple):
    all: tuple[_Step, ...]
    image: str | None
    where: str


def _chain(where: str, record: Any, function: str | None = None) -> _Chain:
    record = entries(record, where)
    name = "generated" if "generated" in record else "subquestions"
    steps = record.get(name)
    paragraph = clean_text(text(record, "paragraph", where)) if record.get("paragraph") is not None else ""
    if not (paragraph and name not in record) and (not isinstance(steps, list) or not steps):
        raise DataError(f"{where}: {name!r} is {short(steps)}; give a list of at least one subquestion")
    image = record.get("image")
    require_key("image", record, ("question", "answer", "generated", "subquestions", "choices", "paragraph"), where)
    if image is not None:
        require_place(text(record, "image", where), where)
    found = [_read_step(record, "question", "", paragraph, image, where)]
    if steps is None and function is not None:
        found.append(found[0]._replace(function=function))
    for number, step in enumerate(steps or [], 1):
        place = f"{where}, subquestion {number}"
        step = entries(step, place)
        asks = text(step, "cognitive_skill" if "cognitive_skill" in step else "function", place)
        found.append(_read_step(step, "subquestion" if "subquestion" in step else "question", asks, paragraph, image, place))
    return _Chain(tuple(found), image, where)


def _read_step(record: Any, field: str, function: str, paragraph: str, image: str | None, where: str) -> _Step:
    answer = record.get("answer")
    if is_number(answer):
        answer = str(answer)
    if not isinstance(answer, str) or not clean(answer):
        raise DataError(f"{where}: 'answer' is {short(record.get('answer'))}; give text or a number")
    given = texts(record, "choices", where) if "choices" in record else []
    if same := alike(given):
        raise DataError(f"{where}: choices {same[0]!r} and {same[1]!r} read the same; give at least two, all different")
    answer, choices = clean(answer), tuple(map(clean, given))
    if choices and answer not in choices:
        raise DataError(f"{where}: answer {short(answer)} is none of the choices {short(list(choices))}; give one of these")
    words = without_marks(text(record, field, where), image is not None, where)
    return _Step(f"{paragraph}\n{words}" if paragraph else words, answer, function, choices, where)


def _cog(id: str, chain: _Chain, pool: dict[str, list[str]], images: ImageFiles, seed: int) -> CogQuestion:
    image = None if chain.image is None else images.source(chain.image, chain.where)
    group = id if chain.image is None else f"cog/{chain.image}"
    questions = []
    for step, asked in enumerate(chain.all):
        own = id if step == 0 else f"{id}#{step}"
        choices = shuffled(asked.choices or _offered(asked, pool[asked.function], own, seed), own, seed)
        questions.append(Question(asked.text, choices, choices.index(asked.answer), image=image, id=own, group=group, task="cog"))
    subs = tuple(Sub(q, asked.function) for q, asked in zip(questions[1:], chain.all[1:], strict=True))
    return CogQuestion(questions[0], subs)


def _offered(asked: _Step, pool: Sequence[str], key: str, seed: int) -> tuple[str, ...]:
    """The right answer and wrong ones."""
    if asked.answer.casefold() in YES_NO:
        return tuple(asked.answer if asked.answer.casefold() == word else word for word in YES_NO)
    others = {other.casefold(): other for other in pool}
    others.pop(asked.answer.casefold())
    return (asked.answer, *sorted(others.values(), key=lambda other: digest(f"{seed}|{key}|wrong|{other}"))[: OPTIONS - 1])
