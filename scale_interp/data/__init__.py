"""Questions, contrasts, and where they come from."""

from .contrast import Contrast, Contrasts, contrasts
from .items import Questions
from .load import load_questions
from .question import Question

__all__ = ["Contrast", "Contrasts", "Question", "Questions", "contrasts", "load_questions"]
