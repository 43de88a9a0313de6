"""What a run's folder says about its run. It is read without torch, so that runs are listed quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core import strict_json
from ..core.manifest import MANIFEST, ResultFile
from ..errors import FileError

SETTINGS, STATE, FINDINGS = "settings.json", "state.json", "findings.json"
LOG, PARTS, LOCK = "log.txt", "parts", ".lock"


@dataclass(frozen=True)
class RunInfo:
    """One run, as its folder describes it.

    Attributes:
        steps: All steps of this kind of run.
        done: The steps whose results are there.
    """

    folder: Path
    kind: str
    model: str
    data: str
    command: str
    status: str
    steps: tuple[str, ...]
    done: tuple[str, ...]
    headline: str
    findings: tuple[str, ...]
    about: Mapping[str, Mapping[str, Any]]
    files: tuple[ResultFile, ...]
    began: datetime
    seconds: float | None

    @property
    def size(self) -> int:
        """The size of everything in the folder, in bytes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def progress(self) -> str:
        """How many of the steps are done."""
        return f"{sum(step in self.done for step in self.steps)} of {len(self.steps)}"


def read_run(folder: str | Path) -> RunInfo:
    """Read a run's folder.

    Args:
        folder: The folder.

    Returns:
        The run.

    Raises:
        FileError: The folder is not a run, or its settings cannot be read.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise FileError(f"{folder} is not a run: it has no {SETTINGS}; `scale-interp runs` lists all runs")
    settings = _read(folder / SETTINGS)
    try:
        state, manifest = (_read(folder / name) if (folder / name).exists() else {} for name in (STATE, MANIFEST))
        done = tuple(manifest.get("steps", {}))
        found = _read(folder / FINDINGS) if (folder / FINDINGS).exists() else {}
        return RunInfo(
            folder,
            settings["kind"],
            settings["settings"].get("model") or "",
            settings["settings"].get("data") or "",
            settings["command"],
            _status(folder, state),
            tuple(settings["steps"]),
            done,
            found.get("headline", ""),
            tuple(found.get("findings", ())),
            {name: settings[name] for name in ("settings", "model", "data", "versions", "machine") if settings.get(name)},
            tuple(
                ResultFile(folder, name, about["bytes"], about["sha256"], step)
                for step in done
                for name, about in manifest["steps"][step].items()
            ),
            _when(folder, state.get("started")),
            state.get("seconds"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{folder}: what it says of its run cannot be read ({error!r}); run its command into another folder") from error


def runs_in(folder: str | Path) -> tuple[list[RunInfo], dict[Path, str]]:
    """The runs below a folder, or in the folder itself.

    Args:
        folder: The folder.

    Returns:
        The runs, the latest first, and the folders that cannot be read, each with the reason.

    Raises:
        FileError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(f"no folder {folder}: name one that holds runs")
    found: list[RunInfo] = []
    broken: dict[Path, str] = {}
    for path in [folder] if (folder / SETTINGS).is_file() else sorted(path.parent for path in folder.glob(f"*/{SETTINGS}")):
        try:
            found.append(read_run(path))
        except FileError as error:
            broken[path] = str(error)
    return sorted(found, key=lambda run: run.began, reverse=True), broken


def holder(folder: Path) -> str | None:
    """The process that is using the folder now, or None."""
    import fcntl

    try:
        with (folder / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except OSError:
        pass
    return None


def run_headline(summary: Mapping[str, Any]) -> str:
    """One line of a run's summary: accuracy before and after, and whether the gain survives."""
    fit = summary["fits"]["all"]
    verdict = "survives" if summary["falsification"]["all"]["survives"] else "does not survive"
    gain = f"{fit['gain']:+.3f} [{fit['low']:+.3f}, {fit['high']:+.3f}]"
    return f"{summary['base']['accuracy']:.3f} to {fit['accuracy']:.3f}, {gain}, {verdict}"


def comparison_headline(content: Mapping[str, Any]) -> str:
    """One line of a comparison's numbers: the base model, and the method that is right most often."""
    base, *others = content["methods"]
    if not others:
        return f"base {base['accuracy']:.3f}"
    best = max(others, key=lambda row: row["accuracy"])
    return f"base {base['accuracy']:.3f}; best {best['method']} {best['accuracy']:.3f}"


def _status(folder: Path, state: Mapping[str, Any]) -> str:
    by = holder(folder)
    if by is not None:
        return f"running: {by}"
    status: str = state.get("status", "unfinished")
    # No process is working here, but none has written how the run ended.
    return "killed" if status == "running" else status


def _when(folder: Path, started: str | None) -> datetime:
    return datetime.fromisoformat(started) if started else datetime.fromtimestamp((folder / SETTINGS).stat().st_mtime).astimezone()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = strict_json.read(path)
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is damaged or not JSON ({error})") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object")
    return content
