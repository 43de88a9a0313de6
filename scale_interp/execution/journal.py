"""Long work that loses nothing: each batch is on disk as soon as it is computed, so a killed run goes on with the same numbers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.record import read_json, read_tensors, write_json, write_tensors
from ..data.question import Question
from ..errors import DataWarning, EditError, FileError

SHARD, LOCK, FACTS = "Shard", ".lock", "facts.json"
_current: ContextVar[Journal | None] = ContextVar("journal", default=None)


@dataclass(frozen=True)
class Journal:
    """The folder in which parts of unfinished work lie, one folder a piece of work."""

    folder: Path

    def part(self, what: str, *asked: Any) -> Part:
        """The piece of work that is named by everything that its numbers hang on."""
        name = "".join(c if c.isalnum() else "-" for c in what)[:40]
        return Part(self.folder / f"{name}-{digest(*asked)[:16]}")

    @cached_property
    def _facts(self) -> dict[str, Any]:
        path = self.folder / FACTS
        return read_json(path) if path.exists() else {}

    def fact(self, name: str, compute: Callable[[], int]) -> int:
        """A number that depends on the machine's state, such as a batch size: computed once, then the same after every resume."""
        if name not in self._facts:
            self._facts[name] = compute()
            write_json(self.folder / FACTS, self._facts)
        return int(self._facts[name])


@dataclass(frozen=True)
class Part:
    """One piece of work: the tensors of each step, a safetensors file a step, whole or not there."""

    folder: Path

    def __contains__(self, step: str) -> bool:
        return (self.folder / f"{step}.safetensors").exists()

    def get(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A step's tensors and metadata, or None where it is still to be done; a damaged file is done again, with a warning."""
        if step not in self:
            return None
        try:
            return read_tensors(self.folder / f"{step}.safetensors", SHARD)
        except FileError as error:
            warnings.warn(f"{error}: computing it anew", DataWarning, stacklevel=2)
            return None

    def put(self, step: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        write_tensors(self.folder / f"{step}.safetensors", SHARD, tensors, meta or {})


def current() -> Journal | None:
    """The journal of the `resumable` block that runs now."""
    return _current.get()


def fact(name: str, compute: Callable[[], int]) -> int:
    """`Journal.fact` of the block that runs now; computed anew where there is none."""
    journal = current()
    return compute() if journal is None else journal.fact(name, compute)


@contextmanager
def resumable(folder: str | Path) -> Iterator[Journal]:
    """Everything inside the block that asks a model about questions keeps each batch in `folder`, and takes from there what it holds.

    Killed and run again, the block gives the same numbers, and a fit goes on after its last epoch. What is kept is named by the
    weights, the questions with their pictures, the edit and the scoring, so that other work never mixes in; work on a model with
    hooks of its own is not kept. The folder may be deleted when the work is done. One process may use it at a time: FileError for
    the second.

    >>> import tempfile
    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> with tempfile.TemporaryDirectory() as folder, si.resumable(folder):
    ...     first, second = si.ablate(vlm, qs), si.ablate(vlm, qs)  # the second is read from the folder
    >>> bool((first.scores == second.scores).all())
    True
    """
    folder = Path(folder)
    with lock(folder):
        for torn in folder.glob("*/.*.safetensors.*"):  # what was being written when the last process died
            torn.unlink()
        journal = Journal(folder)
        token = _current.set(journal)
        try:
            yield journal
        finally:
            _current.reset(token)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """The folder for this process alone. Raises FileError where another one holds it; a dead one's hold ends with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FileError(f"{folder} is in use by {holder}: wait for it, or use another folder") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def digest(*asked: Any) -> str:
    """SHA-256 of nested plain values, tensors, dataclasses, questions and named functions, the same in every process.

    Raises EditError for what has no such name, a lambda for one.
    """
    state = hashlib.sha256()
    for value in asked:
        _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        state.update(f"array {value.dtype} {value.shape};".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Question):
        _feed(state, (value.id, value.text, value.choices, value.answer, value.picture_digest))
    elif isinstance(value, partial):
        _feed(state, (value.func, value.args, value.keywords))
    elif isinstance(value, MethodType):
        _feed(state, (value.__func__, value.__self__))
    elif isinstance(value, FunctionType):
        if "<" in value.__qualname__:
            raise EditError(f"{value.__module__}.{value.__qualname__} has no name of its own: give a function of a module")
        state.update(f"function {value.__module__}.{value.__qualname__};".encode())
        _feed(state, (_code(value.__code__), value.__defaults__, value.__kwdefaults__))
    elif is_dataclass(value) and not isinstance(value, type):
        state.update(f"{type(value).__name__} ".encode())
        for field in fields(value):
            _feed(state, (field.name, getattr(value, field.name)))
    elif isinstance(value, Mapping):
        _feed(state, sorted((str(k), v) for k, v in value.items()))
    elif isinstance(value, slice):
        _feed(state, ("slice", value.start, value.stop, value.step))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        state.update(f"{len(value)} of;".encode())
        for item in value:
            _feed(state, item)
    else:
        try:
            state.update(f"{type(value).__name__} {value.hex() if isinstance(value, bytes) else json.dumps(value)};".encode())
        except TypeError as error:
            raise EditError(f"a {type(value).__name__} has no digest: work that hangs on it cannot be kept") from error


def _code(code: CodeType) -> list[Any]:
    """What a function does, whatever its name: its instructions, constants and the names that it uses."""
    return [sys.version_info[:2], code.co_code, [_constant(one) for one in code.co_consts], code.co_names]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set has another order in another process
