"""A journal keeps finished steps and the checkpoints of the unfinished one, so that a killed command continues where it stopped.

Own code: joblib.Memory identifies a call by the pickle of its arguments, in which an image on disk is only its path, and it keeps nothing
of an interrupted call.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.files import read_json, write_json
from ..core.manifest import MANIFEST, MISSING, WHOLE, ResultFile, file_hash
from ..core.tensors import read_tensors, write_tensors
from ..core.versions import versions
from ..data.question import Question
from ..errors import DataWarning, EditError, FileError

SHARD, LOCK, FACTS, PARTS, SETTINGS = "Shard", ".lock", "facts.json", "parts", "settings.json"
T = TypeVar("T")
Say = Callable[[str], None]


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=4)


@dataclass(frozen=True)
class Checkpoints:
    """What one piece of work has computed so far: one safetensors file per batch or epoch, written atomically."""

    folder: Path

    def __contains__(self, step: str) -> bool:
        return (self.folder / f"{step}.safetensors").exists()

    def get(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and metadata of a step, or None if it is still to be done. A damaged file counts as missing, with a warning."""
        if step not in self:
            return None
        try:
            return read_tensors(self.folder / f"{step}.safetensors", SHARD)
        except FileError as error:
            warnings.warn(f"{error}: computing it again", DataWarning, stacklevel=2)
            return None

    def put(self, step: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Write the tensors and metadata of a step."""
        write_tensors(self.folder / f"{step}.safetensors", SHARD, tensors, meta or {})


class UnfinishedWork:
    """What unfinished work has computed so far: one folder per piece of work, and facts that a resumed run must not change."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def checkpoints(self, name: str, *key: Any) -> Checkpoints:
        """The checkpoints of the work that is identified by everything its numbers depend on."""
        name = "".join(c if c.isalnum() else "-" for c in name)[:40]
        return Checkpoints(self.folder / f"{name}-{digest(*key)[:16]}")

    @cached_property
    def _facts(self) -> dict[str, Any]:
        path = self.folder / FACTS
        return read_json(path) if path.exists() else {}

    def fact(self, name: str, compute: Callable[[], int]) -> int:
        """A number that depends on the machine's state, such as a batch size: computed once and reused after every resume."""
        if name not in self._facts:
            self._facts[name] = compute()
            write_json(self.folder / FACTS, self._facts)
        return int(self._facts[name])

    def drop(self) -> None:
        """Delete the checkpoints; the facts stay."""
        for folder in self.folder.glob("*/"):
            shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """A folder in which work is kept, so that the same command continues after a kill and gives the same numbers.

    Finished steps have names; manifest.json contains the checksums of their files and the versions of the libraries that they depend on,
    and is written when the step's function returns. A step that was made with other versions is computed again.
    What an unfinished step has computed so far, such as batches and epochs, is kept in checkpoints until the step is finished.

    Args:
        folder: The folder.
        unfinished: Where checkpoints are kept; by default in a folder parts/.
        order: The order of the steps in the manifest.
        say: Called with messages about damaged or missing results; by default they are DataWarnings.
        working: The context in which steps are computed.

    >>> import tempfile
    >>> journal = Journal(tempfile.mkdtemp())
    >>> path = journal.folder / "sum.json"
    >>> add = lambda: write_json(path, {"sum": 3}) or [path.name]
    >>> journal.step("add", add, lambda: read_json(path)), journal.made
    ({'sum': 3}, ['add'])
    >>> Journal(journal.folder).done("add")
    True
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        unfinished: UnfinishedWork | None = None,
        order: Iterable[str] = (),
        say: Say = _warn,
        working: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.folder, self.order, self.say, self.working = Path(folder), tuple(order), say, working
        self.unfinished = unfinished or UnfinishedWork(self.folder / PARTS)
        self.made: list[str] = []
        """The steps that this process has computed."""
        self._whole: set[str] = set()
        self._distrusted: set[str] = set()
        self._unreadable = False

    def inside(self, name: str) -> Journal:
        """The journal of a step that has substeps, in its own subfolder; its checkpoints are kept with those of this journal."""
        return Journal(self.folder / name, unfinished=self.unfinished, say=self.say)

    def step(self, name: str, make: Callable[[], Iterable[str]], load: Callable[[], T]) -> T:
        """The result of a step, loaded if its files are present and unchanged, otherwise computed first.

        Args:
            name: The step's name.
            make: Writes the files and returns their names.
            load: Reads the result from the files.

        Returns:
            What `load` returns.
        """
        if self.done(name):
            try:
                return load()
            except FileError as error:
                self.forget(name)
                self.say(f"{error}: computing it again")
        with self.working():
            if not self.done(name):
                self.record(name, make())
            return load()

    def done(self, name: str) -> bool:
        """Whether all files of a step are present and unchanged; reports those that are not."""
        if name in self._whole:
            return True
        manifest = self._manifest()
        if name in self._distrusted or name not in manifest["steps"]:
            return False
        if changed := _other_versions(manifest, name):
            self._distrusted.add(name)
            self.say(f"{self.folder}: {name} was made with other libraries ({changed}): computing it again")
            return False
        for file in self._files(manifest, name):
            if (state := file.state()) != WHOLE:
                why = "is missing" if state == MISSING else "is damaged (its checksum differs)"
                self._distrusted.add(name)
                self.say(f"{self.folder / file.name} {why}: computing it again")
                return False
        self._whole.add(name)
        return True

    def files(self, name: str) -> list[ResultFile]:
        """The recorded files of a finished step."""
        return self._files(self._manifest(), name)

    def _files(self, manifest: Mapping[str, Any], name: str) -> list[ResultFile]:
        return [ResultFile(self.folder, file, about["bytes"], about["sha256"], name) for file, about in manifest["steps"][name].items()]

    def record(self, name: str, files: Iterable[str]) -> None:
        """Record the files of a finished step, and delete its checkpoints."""
        manifest = self._manifest()
        steps = manifest["steps"] | {name: {file: _sums(self.folder / file) for file in files}}
        # In the order of the steps, not of their computation, so that equal results give equal manifests.
        ordered = [*(one for one in self.order if one in steps), *(one for one in steps if one not in self.order)]
        made_with = manifest.get("versions", {}) | {name: versions()}
        write_json(
            self.folder / MANIFEST,
            {"steps": {one: steps[one] for one in ordered}, "versions": {one: made_with[one] for one in ordered if one in made_with}},
        )
        self._whole.add(name)
        self._distrusted.discard(name)
        self.made.append(name)
        self.unfinished.drop()

    def forget(self, name: str) -> None:
        """Mark a step to be computed again."""
        self._whole.discard(name)
        self._distrusted.add(name)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings to settings.json, and a manifest without steps."""
        write_json(self.folder / MANIFEST, {"steps": {}})
        write_json(self.folder / SETTINGS, settings)

    def claim(self, kind: str, settings: Mapping[str, Any]) -> None:
        """Call `begin` if the folder is new. Raises FileError if it contains work with other settings."""
        settings, path = json.loads(json.dumps(settings)), self.folder / SETTINGS
        if not path.exists():
            return self.begin(settings)
        theirs = read_json(path)
        if changed := [f"{k} was {theirs.get(k)!r}, now {v!r}" for k, v in settings.items() if theirs.get(k) != v]:
            raise FileError(f"{self.folder} holds another {kind} ({'; '.join(changed)}): use another folder, or delete it")

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The files of each finished step, with bytes and checksums, as the manifest has them."""
        steps: dict[str, dict[str, Any]] = self._manifest()["steps"]
        return steps

    def _manifest(self) -> dict[str, Any]:
        """The manifest; one without steps where it cannot be read, which is said once."""
        try:
            manifest = read_json(self.folder / MANIFEST)
            if "steps" not in manifest:
                raise FileError(f"{self.folder / MANIFEST} lists no steps")
            return manifest
        except FileError as error:
            if (self.folder / SETTINGS).exists() and not self._unreadable:
                self._unreadable = True
                self.say(f"{error}: no result can be checked, so all are computed again")
            return {"steps": {}}

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        """Lock the journal for this process. Raises FileError if another process is using the folder."""
        with lock(self.folder):
            for torn in self.unfinished.folder.glob("*/.*.safetensors.*"):  # what was being written when the last process died
                torn.unlink()
            yield self


def _other_versions(manifest: Mapping[str, Any], name: str) -> str:
    """Which libraries had other versions when a step was computed, in words."""
    theirs = manifest.get("versions", {}).get(name, {})
    changed = (library for library, mine in versions().items() if theirs.get(library) != mine)
    return ", ".join(f"{library} was {theirs.get(library)}, now {versions()[library]}" for library in changed)


def _sums(path: Path) -> dict[str, Any]:
    return {"sha256": file_hash(path), "bytes": path.stat().st_size}


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the lock ends with the process. Raises FileError if another process holds it."""
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
    """A SHA-256 of nested plain values, tensors, dataclasses, questions and named functions, the same in every process.

    Args:
        asked: The values.

    Returns:
        64 hexadecimal digits.

    Raises:
        EditError: A value cannot be identified, for example a lambda.
    """
    state = hashlib.sha256()
    for value in asked:
        _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    value = value.item() if isinstance(value, np.generic) else value
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
        value = inspect.unwrap(value)  # of a decorator, such as torch.no_grad, only the name is its own
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
            raise EditError(
                f"a {type(value).__name__} has no digest: to keep work that depends on it, give plain values, tensors, dataclasses or "
                "functions with a name"
            ) from error


def _code(code: CodeType) -> list[Any]:
    """What a function does, independent of its name: its instructions, constants and the names it uses."""
    return [sys.version_info[:2], code.co_code, [_constant(one) for one in code.co_consts], code.co_names]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set has another order in another process
