"""What a command does: its settings, its steps, and everything that its numbers depend on."""

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

PLACED = ("device", "device_map")
"""Where the model goes: no setting that a run must keep, as it may go on elsewhere (which a warning then says)."""
ELSEWHERE = "use another --out, or delete it"


@dataclass(frozen=True)
class Job:
    """A command with its settings and steps.

    Attributes:
        kind: The kind of command.
        command: The command line.
        settings: The settings, in JSON's types.
        steps: The names of the files of each step; none if they are only known when the step has run.
        timed: Whether results are times, so that nothing is reused from interrupted work.
    """

    kind: str
    command: str
    settings: Mapping[str, Any]
    steps: Mapping[str, Sequence[str]]
    timed: bool = False

    def content(self, vlm: VLM | None, questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
        """The content of settings.json: the job, the model with its hash, the questions with a hash per split, and versions."""
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
        """Raise FileError if a folder's settings.json has another kind or other settings."""
        if "kind" not in theirs or "settings" not in theirs:
            raise FileError(f"{folder} holds a {SETTINGS} of something else, not of `{self.kind}`: {ELSEWHERE}")
        if theirs["kind"] != self.kind:
            raise FileError(f"{folder} holds the results of `{theirs['kind']}`, not of `{self.kind}`: {ELSEWHERE}")
        mine = {name: value for name, value in json.loads(json.dumps(self.settings)).items() if name not in PLACED}
        changed = _changes(dict.fromkeys(mine) | theirs["settings"], mine)
        if changed:
            raise FileError(f"{folder} holds a run with other settings ({changed}): {ELSEWHERE}")


def compare_contents(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Compare the settings of a folder with those of a job that continues in it.

    Args:
        folder: The folder, for messages.
        theirs: Its settings.
        mine: The job's settings.

    Returns:
        Reasons why numbers may differ: other versions, or another machine.

    Raises:
        FileError: The model or the questions have the same name but differ.
    """
    changed = _changes(theirs.get("model", {}), mine["model"])
    if changed:
        raise FileError(f"{folder} was made with another model of the name {mine['model']['model']} ({changed}): {ELSEWHERE}")
    for split, data in mine["data"].items():
        changed = _changes(theirs.get("data", {}).get(split, {}), data)
        if changed:
            raise FileError(f"{folder} was made with other {split} questions of the name {data['data']} ({changed}): {ELSEWHERE}")
    found = []
    if changed := _changes(theirs.get("versions", {}), mine["versions"]):
        found.append(f"{folder} was begun under other versions ({changed}): steps that were made with other libraries are computed again")
    if changed := _changes(theirs.get("machine", {}), mine["machine"]):
        found.append(
            f"{folder} was begun on another machine ({changed}): results of both will be in one folder, and may differ in their last "
            "digits; for results of one kind use another --out"
        )
    return found


def not_repeatable(vlm: VLM | None) -> list[str]:
    """Reasons why the same job would not give the same bytes again."""
    if vlm is None or vlm.device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return []
    return [
        "on CUDA sums run in no fixed order, so the last digits of results differ from run to run; for equal bytes set "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 and call torch.use_deterministic_algorithms(True)"
    ]


def command(verb: str, *given: str, **flags: Any) -> str:
    """The command line with these arguments and flags.

    Args:
        verb: The command.
        given: Positional arguments.
        flags: Flags by name: None and False are left out, True has no value, and a list repeats the flag.

    Returns:
        The command line, quoted for a shell.

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
    """MODEL-DATA, with only characters that are safe in the name of a folder; paths and hub ids are reduced to their last part."""
    name = f"{Path(model).name}-{data.replace('/', '-')}"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _describe(questions: Sequence[Question]) -> dict[str, Any]:
    """What identifies these questions: their source, and a hash of words, choices, right answers and images."""
    return describe(questions) | {"content_hash": digest([(q, q.answer) for q in questions])[:16]}


def _changes(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} was {theirs[k]!r}, now {v!r}" for k, v in mine.items() if k in theirs and theirs[k] != v)
