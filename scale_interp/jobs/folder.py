"""The folder of a command: its settings, a log, results with checksums, and the checkpoints of unfinished steps."""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ..core.files import read_json, write_json
from ..data.question import Question
from ..errors import FileError, RunWarning, ScaleInterpError
from ..execution.execution import with_journal
from ..execution.journal import Journal, Say, lock
from ..vlm.vlm import VLM
from .info import FINDINGS, LOG, SETTINGS, STATE
from .job import Job, compare_contents, not_repeatable

FULL = (errno.ENOSPC, errno.EDQUOT)
GOES_ON = "the same command goes on from here"
T = TypeVar("T")
ModelAndQuestions = tuple[Any, Mapping[str, Sequence[Question]]]
"""The model of a job (a VLM, or None if it opens several), and its questions by split."""


class RunFolder:
    """The folder of a job. A step is skipped if its results are present and unchanged.

    Args:
        path: The folder.
        job: The job.
        asked: Opens the model and the questions; called when a step has to be computed.
        say: Called with messages on progress, which the log contains as well.

    Raises:
        FileError: The folder contains other work, or another process is using it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp())
    >>> job = Job("sum", "sum 1 2", {"numbers": [1, 2]}, {"add": ["sum.json"]})
    >>> folder = RunFolder(path, job, lambda: (None, {}))
    >>> add = lambda: write_json(path / "sum.json", {"sum": 3})
    >>> folder.run_step("add", add, lambda: read_json(path / "sum.json"))
    {'sum': 3}
    >>> RunFolder(path, Job("sum", "sum 1 3", {"numbers": [1, 3]}, {}), lambda: (None, {}))
    Traceback (most recent call last):
    scale_interp.errors.FileError: ... holds a run with other settings (numbers was [1, 2], now [1, 3]): use another --out, or delete it
    """

    def __init__(self, path: str | Path, job: Job, asked: Callable[[], ModelAndQuestions], say: Say = lambda _: None):
        self.path, self.job = Path(path), job
        self.journal = Journal(path, order=job.steps, say=self.say, working=self.working)
        self.working_journal: Journal | None = None
        """The journal while steps are computed; None before and after, and for jobs whose results are times."""
        self._open_inputs, self._print = asked, say
        self._opened: ModelAndQuestions | None = None
        self._check_settings()

    def say(self, text: str) -> None:
        """Report a message to the user and to the log."""
        self._print(text)
        if (self.path / SETTINGS).exists():
            self._log(text)

    def run_step(self, step: str, make: Callable[[], Iterable[str] | None], load: Callable[[], T], says: str = "") -> T:
        """The result of a step, loaded if its files are present and unchanged, otherwise computed and written first.

        Args:
            step: The step's name.
            make: Writes the files, and returns their names in the folder if the job does not list them.
            load: Reads the result from the files.
            says: A message for when the step is computed.

        Returns:
            What `load` returns.
        """

        def timed() -> Iterable[str]:
            if says:
                self.say(says)
            started = time.perf_counter()
            files = make() or self.job.steps[step]
            self._write_state(steps=self._state().get("steps", {}) | {step: round(time.perf_counter() - started, 2)})
            return files

        return self.journal.step(step, timed, load)

    @property
    def computed(self) -> list[str]:
        """The steps that this process has computed."""
        return self.journal.made

    def done(self, step: str) -> bool:
        """Whether all files of a step are present and unchanged."""
        return self.journal.done(step)

    def forget(self, step: str) -> None:
        """Mark a step to be computed again."""
        self.journal.forget(step)

    def write_findings(self, headline: str, findings: Sequence[str]) -> str:
        """Write the findings that `scale-interp runs` and `show` print. Returns the file's name."""
        write_json(self.path / FINDINGS, {"headline": headline, "findings": list(findings)})
        return FINDINGS

    @contextmanager
    def working(self) -> Iterator[ModelAndQuestions]:
        """Lock the folder, keep batches and warnings, and record in state.json how the work ended."""
        if self._opened is not None:
            yield self._opened
            return
        with self._disk_errors_explained():
            if (self.path / SETTINGS).exists():
                with lock(self.path):  # fails now, not after the model has loaded
                    pass
            # Model and questions first, so that a mistyped command leaves nothing behind.
            early: list[str] = []
            with _copy_warnings(early.append):
                vlm, questions = self._open_inputs()
            with self.journal.opened():
                differs = self._claim(vlm, questions)
                self.working_journal = None if self.job.timed else self.journal
                self._opened = (with_journal(vlm, self.working_journal) if isinstance(vlm, VLM) else vlm), questions
                try:
                    with self._recorded(), _copy_warnings(self._log):
                        for text in early:
                            self._log(text)
                        for text in differs:
                            warnings.warn(text, RunWarning, stacklevel=4)
                        yield self._opened
                finally:
                    self._opened = self.working_journal = None

    def _check_settings(self) -> None:
        # Now, and not when a model of many GB has been loaded.
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            why = "may not be written to" if there.is_dir() else "is a file"
            raise FileError(f"{self.path} cannot be written ({there} {why}): name another folder by --out")
        if (self.path / SETTINGS).exists():
            self.job.require_same_settings(self.path, read_json(self.path / SETTINGS))

    def _claim(self, vlm: VLM | None, questions: Mapping[str, Sequence[Question]]) -> list[str]:
        """Write the settings, or compare them with those in the folder. Returns reasons why numbers may differ."""
        made, path, differs = self.job.content(vlm, questions), self.path / SETTINGS, not_repeatable(vlm)
        if path.exists():
            self._check_settings()
            theirs = read_json(path)
            differs += compare_contents(self.path, theirs, made)
            write_json(path, theirs | {"versions": made["versions"]})
        else:
            self.journal.begin(made)
        return differs

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        started = time.perf_counter()
        process = f"process {os.getpid()} on {platform.node()}"
        first = self._state().get("started") or _now()
        self._write_state(
            status="running", started=first, ended=None, process=process, command_line=[Path(sys.argv[0]).name, *sys.argv[1:]]
        )
        self._log(f"{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])} ({process})")
        status = "failed"
        try:
            yield
            status = "finished" if all(self.done(step) for step in self.job.steps) else "unfinished"
        except KeyboardInterrupt as error:
            status = "stopped"
            error.add_note(GOES_ON)
            raise
        except ScaleInterpError as error:
            self._log(f"error: {error}")
            raise
        except Exception as error:
            if not _full(error):
                error.add_note(f"the traceback is in {self.path / LOG}")
            self._log("".join(traceback.format_exception(error)).rstrip())
            raise
        finally:
            self._log(status)
            # On a full disk the state cannot be written.
            with suppress(OSError):
                spent = (self._state().get("seconds") or 0) + time.perf_counter() - started
                self._write_state(status=status, ended=_now(), seconds=round(spent, 1))

    @contextmanager
    def _disk_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if _full(error):
                raise FileError(f"no space is left on the disk of {self.path}: free some; {GOES_ON}") from error
            if error.filename is not None and Path(str(error.filename)).is_relative_to(self.path):
                raise FileError(f"{self.path} cannot be written ({error}): name another folder by --out") from error
            raise

    def _state(self) -> dict[str, Any]:
        try:
            return read_json(self.path / STATE)
        except FileError:
            return {}

    def _write_state(self, **changed: Any) -> None:
        write_json(self.path / STATE, self._state() | changed)

    def _log(self, text: str) -> None:
        # A log that cannot be written must not end the work.
        with suppress(OSError), (self.path / LOG).open("a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")


@contextmanager
def _copy_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass every warning of this thread to `tell` as well, and restore warnings afterwards."""
    here = threading.get_ident()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if threading.get_ident() == here:
                tell(f"{category.__name__}: {message}")
            shown(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FULL


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
