"""Which tokens of a prompt are what: the image, patches inside boxes, words of the question, options, template, the last token.

Words are found by character: the tokenizer is asked where each token of the text begins and ends that the processor gave it, image
placeholders already written out. Patches are found on the family's patch grid.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Protocol

from torch import Tensor

from ..data.question import Question
from ..data.wording import short
from ..errors import DataError, ModelError
from .patch_grid import PatchGrid, place_images
from .patch_layout import ImageModel

Groups = dict[str, list[int]]
Span = str | Sequence[int]
"""Words of the prompt, or token numbers (negative ones count from the end)."""
At = str | Sequence[str] | Sequence[int]
"""Positions of a prompt: the name of a token group, several of them, or token numbers (negative ones count from the end)."""
SPANS = "spans"
"""The entry of `Question.meta` that names further groups of a question."""
LEAST_SHARE = 1e-9
"""A smaller share of a token inside a box is rounding."""
MARK = "\ue000"
"""A character that no prompt contains: where a template puts it, it puts the question's text."""
WHY_NONE = {
    "image": "it has no image",
    "subject": "its text does not contain the words of about[0]; give Question(about=...) in the question's own words",
    "object": "its text does not contain the words of about[1]; give Question(about=...) in the question's own words",
    "options": "its text does not name all of its choices",
}
"""Why a question may lack a group that others have."""


class Model(ImageModel, Protocol):
    """What token groups need of a VLM."""

    tokenizer: Any

    def encode(self, questions: Question) -> Any: ...
    def prompt_text(self, question: Question) -> str: ...
    @property
    def placeholder(self) -> str: ...


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the tokenizer sees it.

    Attributes:
        ids: The prompt's tokens [T].
        ends: Where each token begins and ends in the text that the processor gave to the tokenizer; an empty range for tokens that
            the tokenizer adds.
        place: For each character of the prompt as `prompt_text` writes it, its place in that text; -1 for image placeholders.
        asked: Where the question's text is in the prompt as `prompt_text` writes it.
    """

    ids: Tensor
    ends: Sequence[tuple[int, int]]
    place: Sequence[int]
    asked: slice

    def covering(self, characters: Iterable[int]) -> list[int]:
        """The tokens of these characters of the prompt."""
        places = {self.place[i] for i in characters} - {-1}
        return [t for t, (start, end) in enumerate(self.ends) if not places.isdisjoint(range(start, end))]


def token_groups(vlm: Model, question: Question, spans: Mapping[str, Span] | None = None) -> Groups:
    """The token groups of a question's prompt; see `VLM.token_groups`."""
    prompt = read_tokens(vlm, question)
    grid = _grid(vlm, prompt.ids, question)
    groups = _images(vlm, prompt, question, grid)
    groups |= _boxes(question, grid)
    beside = {*groups.get("image", ()), *groups.get("separators", ())}
    asked = [t for t in prompt.covering(range(prompt.asked.start, prompt.asked.stop)) if t not in beside]
    T = len(prompt.ids)
    groups["text"] = [t for t in range(T) if t not in beside]
    groups["question"] = asked
    for name, characters in (*_things(question).items(), ("options", _options(question))):
        groups[name] = prompt.covering(prompt.asked.start + i for i in characters)
    groups["template"] = [t for t in groups["text"] if t not in set(asked)]
    groups["last"] = [T - 1]
    for name, span in {**question.meta.get(SPANS, {}), **(spans or {})}.items():
        if groups.get(name):
            raise DataError(f"question {question.id}: span {name!r} has the name of a token group; give it another name")
        groups[name] = _own(vlm, question, prompt, name, span)
    return {name: found for name, found in groups.items() if found}


def positions_at(vlm: Model, question: Question, at: At) -> list[int]:
    """The tokens of a question's prompt that `at` names, in order.

    Args:
        vlm: The model.
        question: The question.
        at: The name of a token group, several of them, or token numbers (negative ones count from the end).

    Returns:
        Token numbers from 0, each once.

    Raises:
        DataError: The question has no such group or token.
    """
    if not isinstance(at, Iterable):
        raise DataError(f"at: {type(at).__name__} names no tokens; give the name of a token group, several of them, or token numbers")
    names: list[Any] = [at] if isinstance(at, str) else at.tolist() if isinstance(at, Tensor) else list(at)
    if names == ["last"] or not any(isinstance(name, str) for name in names):
        T = len(vlm.encode(question)["input_ids"][0])
        return [T - 1] if names == ["last"] else _numbered(question, "at", names, T)
    if wrong := next((name for name in names if not isinstance(name, str)), None):
        raise DataError(f"at={short(at)}: {wrong!r} is no group's name; give names of token groups, or token numbers alone")
    groups = token_groups(vlm, question)
    return sorted({t for name in names for t in group_of(question, groups, name)})


def group_of(question: Question, groups: Groups, name: str) -> list[int]:
    """One group of a question's prompt. Raises DataError where there is none, with the reason."""
    if name in groups:
        return groups[name]
    thing = name.removeprefix("box:")
    why = WHY_NONE.get(name, f"it has {', '.join(map(repr, groups))}")
    if name.startswith("box:"):
        boxes = ", ".join(map(repr, question.boxes)) or "none"
        why = f"it has no box of {thing!r} that the model sees (boxes: {boxes}), or the family's patch grid is not known"
    raise DataError(f"question {question.id}: no token group {name!r}: {why}; leave the question out, or choose another group")


def read_tokens(vlm: Model, question: Question) -> PromptTokens:
    """The tokens of a question's prompt, and where each is in its text.

    Raises:
        ModelError: The tokenizer does not say where its tokens are, or the text is not in the prompt as it was asked.
    """
    recording = copy.copy(vlm)
    recording.processor = copy.copy(vlm.processor)
    recording.processor.tokenizer = recorder = _Recorder(vlm.tokenizer)
    ids = recording.encode(question)["input_ids"][0].cpu()
    (text,), options = recorder.last
    try:
        out = vlm.tokenizer(text, add_special_tokens=options.get("add_special_tokens", True), return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ModelError(
            f"{vlm.name}: its tokenizer ({type(vlm.tokenizer).__name__}) does not say which characters a token is: give token numbers"
        ) from error
    if out["input_ids"] != ids.tolist():
        raise ModelError(f"{vlm.name}: its processor changes the tokens of a prompt, so words cannot be found in it: give token numbers")
    prompt = vlm.prompt_text(question)
    start = vlm.prompt_text(replace(question, text=MARK)).find(MARK)
    if prompt[start : start + len(question.text)] != question.text:
        raise ModelError(f"{vlm.name}: its chat template changes the text {short(question.text)}: give token numbers")
    place = _placed(vlm, prompt, text)
    return PromptTokens(ids, [tuple(pair) for pair in out["offset_mapping"]], place, slice(start, start + len(question.text)))


class _Recorder:
    """A tokenizer that keeps what it was last called with."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.last: tuple[Sequence[str], Mapping[str, Any]] = ((), {})

    def __call__(self, text: Any, **options: Any) -> Any:
        self.last = [text] if isinstance(text, str) else text, options
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _placed(vlm: Model, prompt: str, text: str) -> list[int]:
    """For each character of the prompt, its place in the text in which the processor has written out the placeholders; -1 for those."""
    image = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    *before, last = prompt.split(vlm.placeholder)
    place, done = list[int](), 0
    for part in before:
        at = text.find(part, done)
        place += [*range(at, at + len(part)), *[-1] * len(vlm.placeholder)]
        done = max(text.find(image, max(at, 0) + len(part)), 0) + len(image)
        if at < 0:
            break
    else:
        at = text.rfind(last) if before else text.find(last)
        place += range(at, at + len(last))
    if at < 0:
        raise ModelError(f"{vlm.name}: its processor changes the text of a prompt, so words cannot be found in it: give token numbers")
    return place


def _grid(vlm: Model, ids: Tensor, question: Question) -> PatchGrid | None:
    """The patch grid; None for a family whose grid is not known: its images are groups, boxes are not."""
    try:
        return place_images(vlm, ids, question)
    except ModelError:
        return None


def _images(vlm: Model, prompt: PromptTokens, question: Question, grid: PatchGrid | None) -> Groups:
    """Tokens that show a part of an image, of all and of each, and those that stand between them or around them and show nothing."""
    ids = prompt.ids.tolist()
    of_image = {t for t, i in enumerate(ids) if i == vlm.image_token_id}
    shown = of_image if grid is None else set(grid.shown.nonzero()[:, 0].tolist())
    written = set(prompt.place)
    edge = {vlm.tokenizer.bos_token_id, vlm.tokenizer.eos_token_id, vlm.tokenizer.pad_token_id}
    special = {*vlm.tokenizer.all_special_ids, *vlm.tokenizer.added_tokens_decoder} - edge
    marks = {
        t
        for t, (start, end) in enumerate(prompt.ends)
        if ids[t] in special or (end > start and written.isdisjoint(range(start, end)) and ids[t] not in edge)
    } - of_image
    block = set(of_image)
    for order in (range(len(ids)), reversed(range(len(ids)))):
        for t in order:
            if t in marks and (t - 1 in block or t + 1 in block):
                block.add(t)
    groups = {"image": sorted(shown)}
    parts = _runs(sorted(block)) if grid is None else _by_picture(grid, len(question.pictures))
    if len(parts) == len(question.pictures):
        groups |= {f"image_{i + 1}": sorted(shown.intersection(part)) for i, part in enumerate(parts)}
    return groups | {"separators": sorted(block - shown)}


def _by_picture(grid: PatchGrid, n: int) -> list[set[int]]:
    return [{t for raster in grid.rasters if raster.picture == i for t in raster.tokens.flatten().tolist()} for i in range(n)]


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Neighbouring numbers, together."""
    out: list[list[int]] = []
    for number in numbers:
        if out and out[-1][-1] == number - 1:
            out[-1].append(number)
        else:
            out.append([number])
    return out


def _boxes(question: Question, grid: PatchGrid | None) -> Groups:
    """Tokens of every view of the first image that show any part of a box."""
    if grid is None or not grid.sizes:
        return {}
    found = {name: (grid.cover([box]) > LEAST_SHARE).nonzero()[:, 0].tolist() for name, box in question.boxes.items()}
    roles = dict(zip(("subject", "object"), question.about, strict=False))
    return {f"box:{role}": found[name] for role, name in roles.items() if name in found and role not in found} | {
        f"box:{name}": tokens for name, tokens in found.items()
    }


def _things(question: Question) -> dict[str, list[int]]:
    """Characters of the question's text that name the subject and the object. A longer name goes first: "cat" is not in "black cat"."""
    free = question.text
    found: dict[str, list[int]] = {}
    roles = dict(zip(("subject", "object"), question.about, strict=False))
    for role, name in sorted(roles.items(), key=lambda item: -len(item[1])):
        for form in (name, re.sub(r"^(a|an|the)\s+", "", name, flags=re.IGNORECASE)):
            if found.setdefault(role, _characters(form, free)):
                break
        for i in found[role]:
            free = f"{free[:i]}{MARK}{free[i + 1 :]}"
    return {role: found[role] for role in roles}


def _characters(words: str, text: str) -> list[int]:
    """The characters of every place where these words stand in the text by themselves."""
    pattern = r"\s+".join(map(re.escape, words.split()))
    return [i for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) for i in range(*m.span())] if pattern else []


def _options(question: Question) -> list[int]:
    """The characters of the last place of each choice in the text; none unless all choices are there."""
    found: list[int] = []
    for choice in question.choices:
        flags = 0 if len(choice) == 1 else re.IGNORECASE  # "A" is an option, "a" an article
        places = [*re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", question.text, flags)]
        if not places:
            return []
        found += range(*places[-1].span())
    return found


def _own(vlm: Model, question: Question, prompt: PromptTokens, name: str, span: Span) -> list[int]:
    """The tokens of a span that a user names: by its words, wherever they stand in the prompt, or by number."""
    if not isinstance(span, str):
        return _numbered(question, f"span {name!r}", span, len(prompt.ids))
    text = vlm.prompt_text(question)
    found = [i for m in re.finditer(re.escape(span.strip()), text) for i in range(*m.span())] if span.strip() else []
    if not found:
        raise DataError(f"question {question.id}: span {name!r}: {short(span)} is not in the prompt {short(text)}; give words that are")
    return prompt.covering(found)


def _numbered(question: Question, what: str, numbers: Any, T: int) -> list[int]:
    found = set()
    for number in numbers.tolist() if hasattr(numbers, "tolist") else numbers:
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise DataError(f"{what}: {short(number)} is no token number; give whole numbers, or the name of a token group")
        if not -T <= int(number) < T:
            raise DataError(f"question {question.id}: {what}: token {number}, but its prompt has {T} tokens; give {-T} to {T - 1}")
        found.add(int(number) % T)
    return sorted(found)
