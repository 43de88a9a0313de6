"""Questions about generated maps, mazes and grids: as an image, as a text, or as both."""

from .questions import FORMS, KINDS, generated_questions

__all__ = ["FORMS", "KINDS", "generated_questions"]
