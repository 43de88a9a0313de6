"""Questions, contrasts, and where they come from."""

from .cog_scenes import cog_questions
from .cogvsr import CogQuestion, CogQuestions, Sub, read_cog, subquestions
from .contrast import Contrast, Contrasts, contrasts
from .items import Questions
from .load import load_questions
from .question import Question

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
