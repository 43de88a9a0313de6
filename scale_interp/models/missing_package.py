"""The optional package that a model or its processor needs and that is not installed, read off the error that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..errors import ModelError

SAYS = (
    r"pip install (?:-\S+ )*([A-Za-z][\w.-]*)",
    r"requires the (\w+) library",
    r"requires [`']?([A-Za-z][\w-]*)",
    r"[`']([A-Za-z][\w.-]*)[`']",
)
"""How errors name a package, the surest way first."""
INSTALLED_AS = {"PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "yaml": "pyyaml"}


@contextmanager
def packages_named(name: str) -> Iterator[None]:
    """Inside, an error that comes from an import that failed becomes a ModelError that names the package to install."""
    try:
        yield
    except Exception as error:
        require_packages(error, name)
        raise


def require_packages(error: BaseException, name: str) -> None:
    """Raise ModelError where a model's error comes from an import that failed, naming the package to install."""
    found = next((one for one in _causes(error) if isinstance(one, ImportError)), None)
    if found is None:
        return
    package = package_of(found)
    if package is None:
        mend = "install what it names"
    elif found.name and _installed(found.name.partition(".")[0]):
        mend = f"the installed {package} lacks it: install a version that has it (pip install -U {package})"
    else:
        mend = f"install it: pip install {package}"
    reason = " ".join(str(found).split())
    raise ModelError(f"{name} cannot be loaded: it needs the package {package or 'that is named here'} ({reason}); {mend}") from error


def package_of(error: ImportError) -> str | None:
    """The name to install a package by, or None where the error does not name it."""
    if error.name:
        top = error.name.partition(".")[0]
        return INSTALLED_AS.get(top, top)
    for says in SAYS:
        if match := re.search(says, str(error)):
            return INSTALLED_AS.get(match[1], match[1].rstrip(".").lower())
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
