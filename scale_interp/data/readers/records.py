"""Records as they are stored on disk or on the hub, read when they are asked for; and their checked fields."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, TypeVar, runtime_checkable

from PIL import Image

from ...core import strict_json
from ...errors import DataError
from ..decoding import ImageSource, open_embedded
from ..prompts import Ask
from ..question import Question
from ..wording import short


@runtime_checkable
class LooksAtImages(Protocol):
    """A reader of which our splits go by pixels, where its records do not say what belongs together."""

    def own_group(self, record: Any) -> bool:
        """Whether the record says what it belongs to, so that its image need not be opened."""

    def image_sources(self, i: int, record: Any) -> list[ImageSource]: ...


T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """What is known of a record before it is asked: its id, its image's key, and the key that our splits go by."""

    id: str
    group: str
    part: str


class Records(Protocol):
    """Records that can be counted, walked through and fetched one by one."""

    @property
    def folder(self) -> Path | None:
        """The folder that holds the records' file; None for records from the hub."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, i: int) -> Any: ...
    def where(self, i: int) -> str:
        """File and place of record i, for messages."""


class Reader(Protocol):
    """What `load_questions` needs of a set."""

    @property
    def records(self) -> Records: ...

    def key(self, i: int, record: Any) -> Key | str:
        """The key of record i, or why it cannot be asked. Raises DataError where the record is not in the set's form."""

    def question(self, i: int, record: Any, ask: Ask) -> Question: ...


@contextmanager
def walked(records: Iterable[T]) -> Iterator[Iterator[T]]:
    """An iterator over records whose file is closed at the end, also where an error ends it early and is kept."""
    iterator = iter(records)
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


class Lines:
    """The lines of a UTF-8 file that hold something; only their places are in memory."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.parent
        self._starts, self._numbers = array("Q"), array("Q")
        start = 0
        with _opened(path) as file:
            for number, line in enumerate(self._bounded(file), 1):
                if line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)

    def _bounded(self, file: BinaryIO) -> Iterator[bytes]:
        """The file's lines, none of more than LARGEST_LINE bytes."""
        most = strict_json.LARGEST_LINE
        for number in count(1):
            line = file.readline(most + 1)
            if len(line) > most:
                raise DataError(
                    f"{self.path}, line {number}: more than {most:,} bytes, the most that is read; give one record a line, "
                    f"or set {strict_json.HERE}.LARGEST_LINE to read more"
                )
            if not line:
                return
            yield line

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: int) -> str:
        with _opened(self.path) as file:
            file.seek(self._starts[i])
            return self._decoded(i, file.readline(strict_json.LARGEST_LINE))

    def __iter__(self) -> Iterator[str]:
        i = 0
        with _opened(self.path) as file:
            for number, line in enumerate(self._bounded(file), 1):
                if i < len(self) and number == self._numbers[i]:
                    yield self._decoded(i, line)
                    i += 1

    def where(self, i: int) -> str:
        return f"{self.path}, line {self._numbers[i]}"

    def only(self, lines: Sequence[int]) -> Self:
        """The file with these lines alone."""
        part = copy.copy(self)
        part._starts, part._numbers = (array("Q", (places[i] for i in lines)) for places in (self._starts, self._numbers))
        return part

    def _decoded(self, i: int, line: bytes) -> str:
        try:
            return line.decode().strip("\ufeff\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(i)}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


class JsonLines(Lines):
    """JSON objects, one per line."""

    def __getitem__(self, i: int) -> Any:
        return self._parsed(i, super().__getitem__(i))

    def __iter__(self) -> Iterator[Any]:
        for i, line in enumerate(super().__iter__()):
            yield self._parsed(i, line)

    def _parsed(self, i: int, line: str) -> Any:
        try:
            return strict_json.parsed(line)
        except ValueError as error:
            raise DataError(f"{self.where(i)}: no JSON ({error}); give one JSON object a line") from error


class JsonList:
    """The records of a file that is one JSON list."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.parent
        self.items = read_json_file(path)
        if not isinstance(self.items, list):
            raise DataError(f"{path}: a {type(self.items).__name__}, not the list of records that its authors publish; fetch it again")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]

    def where(self, i: int) -> str:
        return f"{self.path}, record {i + 1}"


class Table:
    """Rows of a `datasets` table, some of them or all; images stay in it until they are opened."""

    def __init__(self, table: Any, name: str, image: str | None, rows: Sequence[int] | None = None, folder: Path | None = None):
        self.table, self.name, self.image, self.folder = table, name, image, folder
        self.plain = table.remove_columns(image) if image in table.column_names else table
        self.rows = range(len(table)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.plain.select(self.rows))

    def __getitem__(self, i: int) -> Any:
        return self.plain[int(self.rows[i])]

    def where(self, i: int) -> str:
        return f"{self.name}, row {self.rows[i] + 1}"

    def only(self, rows: Sequence[int]) -> Table:
        """The table with these rows alone."""
        return Table(self.table, self.name, self.image, rows, self.folder)

    def embedded(self, i: int) -> Embedded:
        return Embedded(self, i)


@dataclass(frozen=True)
class Embedded:
    """The image inside a row of a table; calling it opens it."""

    table: Table
    i: int

    def __str__(self) -> str:
        return f"the image in {self.table.where(self.i)}"

    def __call__(self) -> Image.Image:
        from datasets import Image as Undecoded

        table, column = self.table.table, self.table.image
        if column not in table.column_names:
            raise DataError(f"{self.table.where(self.i)}: there is no column {column!r} with images; fetch the table again")
        cell = table.select_columns(column).cast_column(column, Undecoded(decode=False))[int(self.table.rows[self.i])][column]
        if cell is None or cell["bytes"] is None:
            raise DataError(f"{self.table.where(self.i)}: the row holds no image; fetch the table again")
        return open_embedded(cell["bytes"])


def read_json_file(path: Path) -> Any:
    """The value of a whole JSON file. Raises DataError for one that is missing, damaged, too large or not UTF-8."""
    try:
        return strict_json.read(path)
    except JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg}); fetch the file again") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: no JSON in UTF-8 ({error}); fetch the file again") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a file of records that you may read") from error


def entries(record: Any, where: str) -> Mapping[str, Any]:
    """The record as a JSON object."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a {type(record).__name__}, not a JSON object; write each record as an object with named fields")
    return record


def text(record: Mapping[str, Any], field: str, where: str) -> str:
    """A field that must hold words."""
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field!r} is {short(value)}; give text")
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; JSON has 1e999, and whole numbers that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def texts(record: Mapping[str, Any], field: str, where: str) -> list[str]:
    """A field that must hold a list of words."""
    value = record.get(field)
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{where}: {field!r} is {short(value)}; give a list of texts")
    return value
