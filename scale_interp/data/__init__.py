"""Questions, contrasts, and where they come from."""

from .load import load_questions
from .question import Contrast, Contrasts, Question, Questions, contrasts

__all__ = ["Contrast", "Contrasts", "Question", "Questions", "contrasts", "load_questions"]
