"""SpatialEval: maps, mazes, grids and photographs, each as an image, as a text, or both (Wang et al. 2024, NeurIPS)."""

from __future__ import annotations

import re
from typing import Any

from ...errors import DataError
from ..prompts import Ask
from ..question import LETTERED, Question
from .catalog import KINDS, Entry
from .records import Key, Table, entries, text
from .source import Source

HEADING = re.compile(r"[^\S\n]*(?:the )?(?:available |following )?options?(?: are)?\s*:\s*", re.I)
LETTER = re.compile(r"(?:^|(?<=[\s,;|]))\(?([A-H])[.):]\s+", re.M)
INSTRUCTION = re.compile(r"[.?!]\s+(?=First|Please|Answer|Then|Provide)")
COMPASS = re.compile(r"in which direction is (.+?) relative to (.+?)\?", re.I)
RELEASED = ("A", "B", "C", "D")
QUESTION_TYPES = {
    "map": ("direction", "object", "count"),
    "maze": ("right turns", "turns", "relation"),
    "grid": ("count", "corner", "cell"),
}
"""What the last number of an id asks, in the order of the authors' scorer."""


def read_options(asked: str) -> tuple[str, dict[str, str]] | None:
    """The text before the list of options, and the options by letter; None where there is no list of at least two.

    >>> read_options("Where is A relative to B? Available options: A. North, B. South.")
    ('Where is A relative to B?', {'A': 'North', 'B': 'South'})
    """
    headings = list(HEADING.finditer(asked))
    if not headings:
        return None
    before, listed = asked[: headings[-1].start()].strip(), asked[headings[-1].end() :]
    marks: list[re.Match[str]] = []
    for mark in LETTER.finditer(listed):
        if mark[1] == "ABCDEFGH"[len(marks) : len(marks) + 1]:
            marks.append(mark)
    ends = [mark.start() for mark in marks[1:]] + [len(listed)]
    options = {}
    for mark, end in zip(marks, ends, strict=True):
        line = listed[mark.end() : end].strip().split("\n")[0]
        options[mark[1]] = INSTRUCTION.split(line)[0].strip(" \t,;|.")
    whole = all(options.values()) and len(set(map(str.casefold, options.values()))) == len(options) > 1
    return (before, options) if before and whole else None


class SpatialEval:
    """Rows {"id", "text", "oracle_answer", "oracle_option", ...}; an id is task.form.scene.question."""

    def __init__(self, entry: Entry, source: Source, split: str):
        _, self.form, self.kind = entry.name.split("/")
        self.entry = entry
        table = source.records(entry, split)
        assert isinstance(table, Table)
        self.ids = [text(entries(row, table.where(i)), "id", table.where(i)) for i, row in enumerate(table)]
        """Of all rows of the file, other tasks' too."""
        self.records = table.only([i for i, name in enumerate(self.ids) if name.startswith(f"{KINDS[self.kind]}.")])

    def _right(self, record: Any, options: dict[str, str]) -> str | None:
        """The right option: by its letter, else by its words."""
        said = [str(record.get(name) or "").strip().rstrip(".") for name in ("oracle_option", "oracle_answer")]
        by_letter = next((options[s.upper()] for s in said if s.upper() in options), None)
        return by_letter or next((o for o in options.values() for s in said if o.casefold() == s.casefold()), None)

    def key(self, i: int, record: Any) -> Key | str:
        where = self.records.where(i)
        key = self._key(record, where)
        read = read_options(text(record, "text", where))
        if read is None:
            return "its text lists no options"
        if self._right(record, read[1]) is None:
            return "its right answer is none of its options"
        return key

    def _key(self, record: Any, where: str) -> Key:
        parts = text(record, "id", where).split(".")
        if len(parts) < 3:
            raise DataError(f"{where}: id {record['id']!r}; give one in the form task.form.scene.question")
        group = f"spatialeval/{self.kind}/{parts[2]}"
        return Key(f"{self.entry.name}/{'.'.join(parts[2:])}", group, group)

    def question(self, i: int, record: Any, ask: Ask) -> Question:
        key = self.key(i, record)
        read = read_options(record["text"])
        assert isinstance(key, Key) and read is not None
        before, options = read
        answer = self._right(record, options) or ""
        found = COMPASS.search(before)
        return ask(
            {"text": before},
            tuple(options.values()),
            answer,
            id=key.id,
            key=key.id.replace(f"/{self.form}/", "/", 1),  # the three forms of a question list its options alike
            labels=tuple(options),
            relation=answer.lower() if found else None,
            about=(found[1], found[2]) if found else (),
            meta=self._meta(record) | {"options": options},
            **self._place(i, key),
        )

    def released(self, i: int, row: int) -> Question | None:
        """Record i as ScAle's code asks it (arXiv 2606.29579): its own text, the letters A to D, whatever the text lists.

        None for one whose right letter is none of these, which the code passes over. `row` is kept in meta.
        """
        record, where = self.records[i], self.records.where(i)
        letter = str(record.get("oracle_option")).strip().upper()
        if letter not in RELEASED:
            return None
        asked = text(record, "text", where)
        read = read_options(asked)
        options = read[1] if read else {}
        found = COMPASS.search(read[0]) if read else None
        named = {LETTERED: options} if tuple(options) == RELEASED else {}
        return Question(
            asked,
            RELEASED,
            RELEASED.index(letter),
            id=self._key(record, where).id,
            relation=options.get(letter, "").lower() or None if found else None,
            about=(found[1], found[2]) if found else (),
            meta=self._meta(record) | {"options": options, "row": row} | named,
            **self._place(i, self._key(record, where)),
        )

    def _place(self, i: int, key: Key) -> dict[str, Any]:
        return {"group": key.group, "task": self.entry.name, "image": None if self.form == "tqa" else self.records.embedded(i)}

    def _meta(self, record: Any) -> dict[str, Any]:
        last = record["id"].rsplit(".", 1)[-1]
        types = QUESTION_TYPES.get(self.kind, ())
        oracle = {name: record.get(name) for name in ("oracle_option", "oracle_answer", "oracle_full_answer")}
        kind = types[int(last)] if last.isdecimal() and int(last) < len(types) else last
        return {"form": self.form, "kind": self.kind, "question_type": kind} | oracle
