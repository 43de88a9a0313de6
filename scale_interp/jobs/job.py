"""What a command does: its settings and steps, and all that its numbers depend on."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.versions import versions
from ..data.items import describe
from ..data.question import Question
from ..errors import FileError
from ..execution.journal import SETTINGS, digest
from ..vlm.vlm import VLM

ELSEWHERE = "use another --out, or delete it"


@dataclass(frozen=True)
class Job:
    """A command: its kind, how to type it again, its settings, and its steps with the files of each.

    A step whose files are not known before has none here; what makes it says which it wrote. timed: its results are times, so
    nothing is taken from work that was stopped.
    """

    kind: str
    command: str
    settings: Mapping[str, Any]
    steps: Mapping[str, Sequence[str]]
    timed: bool = False

    def content(self, vlm: VLM | None, questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
        """What settings.json holds: the job, the model with a hash of its weights, the questions with a hash of each split, versions."""
        found = {
            "kind": self.kind,
            "command": self.command,
            "settings": self.settings,
            "steps": list(self.steps),
            "model": {} if vlm is None else vlm.describe() | {"fingerprint": vlm.fingerprint, "processor": vlm.processor_fingerprint},
            "data": {split: _describe(asked) for split, asked in questions.items()},
            "versions": {"python": platform.python_version()} | versions(),
            "machine": {"device": "cpu" if vlm is None else str(vlm.device), "threads": torch.get_num_threads()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def require_same_settings(self, folder: Path, theirs: Mapping[str, Any]) -> None:
        """Raise FileError where a folder's settings.json is of another kind, or of other settings."""
        if "kind" not in theirs or "settings" not in theirs:
            raise FileError(f"{folder} holds a {SETTINGS} of something else, not of `{self.kind}`: {ELSEWHERE}")
        if theirs["kind"] != self.kind:
            raise FileError(f"{folder} holds the results of `{theirs['kind']}`, not of `{self.kind}`: {ELSEWHERE}")
        mine = json.loads(json.dumps(self.settings))
        changed = _changes(dict.fromkeys(mine) | theirs["settings"], mine)
        if changed:
            raise FileError(f"{folder} holds a run with other settings ({changed}): {ELSEWHERE}")


def compare_contents(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What keeps the numbers of a folder begun as `theirs` from being of one kind when it goes on as `mine`: versions, machine.

    Raises FileError for another model, or other questions, of the same names.
    """
    changed = _changes(theirs.get("model", {}), mine["model"])
    if changed:
        raise FileError(f"{folder} was made with another model of the name {mine['model']['model']} ({changed}): {ELSEWHERE}")
    for split, data in mine["data"].items():
        changed = _changes(theirs.get("data", {}).get(split, {}), data)
        if changed:
            raise FileError(f"{folder} was made with other {split} questions of the name {data['data']} ({changed}): {ELSEWHERE}")
    return [
        f"{folder} was begun under other {what} ({changed}): results of both will lie side by side, and may differ in their last digits; "
        "for results of one kind use another --out"
        for what in ("versions", "machine")
        if (changed := _changes(theirs.get(what, {}), mine[what]))
    ]


def not_repeatable(vlm: VLM | None) -> list[str]:
    """Why the same job would not give the same bytes again."""
    if vlm is None or vlm.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return []
    return [
        "on CUDA sums run in no fixed order, so the last digits of results differ from run to run; for equal bytes set "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 and call torch.use_deterministic_algorithms(True)"
    ]


def command(verb: str, *given: str, **flags: Any) -> str:
    """The command line with these arguments and flags: None and False are left out, True has no value, several are repeated.

    >>> command("ask", "demo", "scenes/relation", n=16, root=None, text=True)
    'scale-interp ask demo scenes/relation --n 16 --text'
    """
    words = ["scale-interp", verb, *given]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [word for one in (value if isinstance(value, list | tuple) else [value]) for word in (flag, str(one))]
    return shlex.join(words)


def folder_name(model: str, data: str) -> str:
    """MODEL-DATA without anything that a folder's name cannot hold; of paths and hub ids the last part."""
    name = f"{Path(model).name}-{data.replace('/', '-')}"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _describe(questions: Sequence[Question]) -> dict[str, Any]:
    """What tells these questions from others: their source, and a hash of words, choices, right answers and pictures."""
    return describe(questions) | {"content_hash": digest([(q, q.answer) for q in questions])[:16]}


def _changes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} was {theirs[k]!r}, now {v!r}" for k, v in mine.items() if k in theirs and theirs[k] != v)
