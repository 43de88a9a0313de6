"""Questions, contrasts, and where they come from."""

from .contrast import Contrast, Contrasts, contrasts
from .decomposed import cog_questions
from .items import Questions
from .load import load_questions
from .question import Question
from .readers.cogvsr import CogQuestion, CogQuestions, Sub, read_cog, subquestions

__all__ = [
    "CogQuestion",
    "CogQuestions",
    "Contrast",
    "Contrasts",
    "Question",
    "Questions",
    "Sub",
    "cog_questions",
    "contrasts",
    "load_questions",
    "read_cog",
    "subquestions",
]
