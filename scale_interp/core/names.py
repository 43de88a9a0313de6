"""The public names of a package, written once, in its `__init__.py`, as `from .module import name as name`."""

from __future__ import annotations

import ast
from pathlib import Path


def public_names(init: str | Path) -> list[str]:
    """The names that an `__init__.py` imports under their own name, which type checkers treat as public.

    Args:
        init: The file. It is parsed, not imported.

    Returns:
        The names in alphabetical order.

    >>> import scale_interp.models.testbeds as testbeds
    >>> public_names(testbeds.__file__)[-3:]
    ['folder', 'plant', 'planted']
    """
    imports = (node for node in ast.parse(Path(init).read_text()).body if isinstance(node, ast.ImportFrom))
    return sorted(alias.name for node in imports for alias in node.names if alias.name == alias.asname)
