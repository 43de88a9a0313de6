"""The table of bad input: every kind of mistake that a test makes, and docs/bad_input.md lists."""

from tests.bad_input import arguments, models, objects, pictures, readers, results
from tests.bad_input.kind import Kind

KINDS: list[Kind] = [
    *arguments.BY_TYPE,
    *results.KINDS,
    *readers.KINDS,
    *pictures.KINDS,
    *objects.KINDS,
    *models.KINDS,
]
