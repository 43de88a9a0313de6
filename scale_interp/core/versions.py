"""The versions that a number depends on."""

from __future__ import annotations

from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "nnsight")


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that a result depends on, by name."""
    return {name: version(name) for name in ("scale-interp", *LIBRARIES)}
