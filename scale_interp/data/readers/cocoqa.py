"""COCO-QA: one-word answers about COCO images, made multiple-choice (Ren et al. 2015, NeurIPS)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..prompts import Ask, digest
from ..question import Question
from ..wording import clean
from .catalog import Entry
from .image_files import COCO, ImageFiles, coco_names, is_image_number
from .records import Key, Lines, walked
from .source import Source

FILES = ("questions.txt", "answers.txt", "img_ids.txt", "types.txt")
TYPES = ("object", "number", "colour", "location")
DISTRACTORS = 3


class Aligned:
    """Line i of the four files together: question, answer, image number, type."""

    def __init__(self, questions: Lines):
        self.folder: Path | None = questions.folder
        missing = [name for name in FILES if not (questions.folder / name).is_file()]
        if missing:
            raise DataError(f"{questions.folder}: {missing[0]} is missing beside questions.txt; the set is four files, line by line")
        self.files = [questions, *(Lines(questions.folder / name) for name in FILES[1:])]
        counts = {file.path.name: len(file) for file in self.files}
        if len(set(counts.values())) > 1:
            raise DataError(f"{questions.folder}: the files do not match line by line: {counts}; fetch them again")

    def __len__(self) -> int:
        return len(self.files[0])

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        with ExitStack() as stack:
            yield from zip(*(stack.enter_context(walked(file)) for file in self.files), strict=True)

    def __getitem__(self, i: int) -> tuple[str, ...]:
        return tuple(file[i] for file in self.files)

    def where(self, i: int) -> str:
        return self.files[0].where(i)


class CocoQA:
    """Open questions, made multiple-choice with three wrong answers: right answers of other questions of the same type.

    They are drawn as often as they occur in the split, so that the options alone do not give the right one away.
    """

    def __init__(self, entry: Entry, source: Source, split: str):
        self.entry, self.split = entry, split
        questions = source.records(entry, split)
        assert isinstance(questions, Lines)
        self.records = Aligned(questions)
        bases = (source.root / "coco", source.root, questions.folder, *source.places(entry))
        folder = "train2014" if split == "train" else "val2014"
        self.images = ImageFiles(bases, ("", *COCO), source.root / "coco" / folder)

    def key(self, i: int, record: Any) -> Key | str:
        _, _, image, kind = (part.strip() for part in record)
        if not is_image_number(image) or kind not in ("0", "1", "2", "3"):
            found = f"image {image[:40]!r}, type {kind[:40]!r}"
            raise DataError(f"{self.records.where(i)}: {found}; a number and 0 to 3 are expected: fetch the files again")
        group = f"coco/{int(image):012d}"
        return Key(f"{self.entry.name}/{self.split}/{i}", group, group)

    @cached_property
    def _answers(self) -> tuple[list[str], list[array[int]], list[int]]:
        """All answers once; for each type the numbers of its questions' answers, and how many differ."""
        numbers: dict[str, int] = {}
        pools = [array("L") for _ in TYPES]
        for _, answer, _, kind in self.records:
            pools[int(kind)].append(numbers.setdefault(clean(answer), len(numbers)))
        return list(numbers), pools, [len(set(pool)) for pool in pools]

    def _distractors(self, answer: str, kind: int, key: str, where: str) -> list[str]:
        words, pools, different = self._answers
        others = different[kind] - 1
        if others < 1:
            raise DataError(
                f"{where}: {answer!r} is the only answer of type {kind} in the split: nothing to choose from; take the whole set"
            )
        rng, found = random.Random(digest(key)), {answer: None}
        while len(found) <= min(DISTRACTORS, others):
            found[words[rng.choice(pools[kind])]] = None
        return list(found)[1:]

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        asked, answer, image, kind = (part.strip() for part in record)
        answer = clean(answer)
        key = self.key(i, record)
        assert isinstance(key, Key)
        wrong = self._distractors(answer, int(kind), f"distractors|{ask.seed}|{key.id}", self.records.where(i))
        return ask(
            {"question": asked},
            (answer, *wrong),
            answer,
            id=key.id,
            group=key.group,
            task=self.entry.name,
            image=self.images.find(coco_names(f"{int(image):012d}.jpg"), self.records.where(i)),
            meta={"question_type": TYPES[int(kind)], "image": int(image)},
        )
