"""One exception type per kind of mistake; each message says which value, why it cannot be, and what to do instead."""


class ScaleInterpError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelError(ScaleInterpError, ValueError):
    """The model cannot be loaded, or its heads cannot be addressed."""


class DataError(ScaleInterpError, ValueError):
    """A question, a contrast or a data set is not usable."""


class EditError(ScaleInterpError, ValueError):
    """An edit does not fit the model or the questions."""


class FileError(ScaleInterpError, ValueError):
    """A saved result is damaged, foreign, or of another version."""


class LeakError(ScaleInterpError, ValueError):
    """Training and test questions share a picture."""


class PathWarning(UserWarning):
    """The packed path was left for the reference path, or means something else on this model."""


class MemoryWarning(UserWarning):
    """Memory ran out and the work goes on in smaller parts."""


class DataWarning(UserWarning):
    """Part of a data set is missing or was left out."""
