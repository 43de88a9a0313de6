"""Questions about generated maps, mazes and grids: as a picture, as a text, or as both."""

from .questions import FORMS, KINDS, generated_questions

__all__ = ["FORMS", "KINDS", "generated_questions"]
