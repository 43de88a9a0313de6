"""The versions that a number depends on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "nnsight")


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that a result depends on, by name."""
    return {name: _installed(name) for name in ("scale-interp", *LIBRARIES)}


_installed = cache(version)
"""Every result asks for them, and each answer is read from disk."""
