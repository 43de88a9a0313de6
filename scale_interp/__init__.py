"""Which attention heads of a vision-language model carry spatial reasoning, can scalars repair it, and is that gain real?"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .core.names import public_names

LAYERS = ("data", "execution", "interventions", "models", "attribution", "adapters", "evaluation")
"""Layers whose names are public here; each name is written in its layer's `__init__.py`, and type checkers read `__init__.pyi`."""
_LAYER = {name: layer for layer in LAYERS for name in public_names(Path(__file__).parent / layer / "__init__.py")}

__all__ = sorted([*_LAYER, "errors", "viz"])


class _Name:
    """A public name, opened when first used: `scale-interp --help` and a bare import do not wait for torch and transformers.

    A module's `__getattr__` would do for that, but jedi calls it for every name that it lists, and a first Tab would open them all.
    """

    def __init__(self, name: str):
        self.name = name

    def __get__(self, package: ModuleType | None, kind: type) -> Any:
        if package is None:
            return self
        found = vars(package)[self.name] = _opened(self.name)
        return found


def _opened(name: str) -> Any:
    return getattr(import_module(f".{_LAYER[name]}", __name__), name) if name in _LAYER else import_module(f".{name}", __name__)


sys.modules[__name__].__class__ = type("_Package", (ModuleType,), {name: _Name(name) for name in __all__})


def __dir__() -> list[str]:
    return sorted(__all__)
