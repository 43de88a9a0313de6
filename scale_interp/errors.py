"""One exception type per kind of mistake. Each message says which value is wrong, why, and what to do instead.

>>> import scale_interp as si
>>> try:
...     si.Question("Where is it?", ("left",), 0)
... except si.errors.DataError as error:
...     print("choices" in str(error), isinstance(error, si.errors.ScaleInterpError))
True True
"""

import linecache
import sys
import traceback
from pathlib import Path

PACKAGE = str(Path(__file__).parent)


class ScaleInterpError(Exception):
    """The base class of every error that this package raises deliberately.

    IPython and notebooks show the message and the line of the user's code that failed; `%tb` shows the whole traceback.
    """

    _shown = False

    def _render_traceback_(self) -> list[str]:
        # IPython calls this when an exception is raised, and a second time for %tb.
        again, self._shown = self._shown, True
        name = type(self).__name__
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if again:
            if shell is None:
                return "".join(traceback.format_exception(self)).splitlines()
            return shell.InteractiveTB.structured_traceback(type(self), self, self.__traceback__, tb_offset=1)
        own = None
        for frame, line in traceback.walk_tb(self.__traceback__):
            if frame.f_code.co_filename.startswith(PACKAGE):
                break
            own = frame.f_code.co_filename, line, linecache.getline(frame.f_code.co_filename, line, frame.f_globals)
        where = []
        if own:
            path, line, text = own
            cell = getattr(getattr(shell, "compile", None), "format_code_name", lambda _: None)(path)
            where = [f"{' '.join(cell) if cell else path}, line {line}", f"----> {line} {text.strip()}", ""]
        return [*where, f"{name}: {self}"]


class ModelError(ScaleInterpError, ValueError):
    """The model cannot be loaded, or its heads cannot be addressed."""


class DataError(ScaleInterpError, ValueError):
    """A question, a contrast or a data set is not usable."""


class ArgumentError(ScaleInterpError, TypeError, ValueError):
    """An argument of a public function is of the wrong type, out of range, unknown or missing."""


class EditError(ScaleInterpError, ValueError):
    """An edit does not fit the model or the questions."""


class FileError(ScaleInterpError, ValueError):
    """A saved result is damaged, foreign, or of another version."""


class LeakError(ScaleInterpError, ValueError):
    """Training and test questions share an image."""


class PathWarning(UserWarning):
    """The reference path replaces the packed path, or the packed path means something else on this model."""


class MemoryWarning(UserWarning):
    """Memory ran out and the work continues in smaller parts."""


class DataWarning(UserWarning):
    """Part of a data set is missing or was left out."""


class RunWarning(UserWarning):
    """A run's numbers may differ from those of the same command elsewhere."""


class ClusterWarning(UserWarning):
    """A worker or a machine was lost, and the work continues without it."""
