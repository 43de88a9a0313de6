"""Questions, contrasts, and where they come from."""

from .contrast import Contrast as Contrast
from .contrast import Contrasts as Contrasts
from .contrast import contrasts as contrasts
from .decomposed import cog_questions as cog_questions
from .items import Questions as Questions
from .load import load_questions as load_questions
from .question import Question as Question
from .readers.cogvsr import CogQuestion as CogQuestion
from .readers.cogvsr import CogQuestions as CogQuestions
from .readers.cogvsr import Sub as Sub
from .readers.cogvsr import read_cog as read_cog
from .readers.cogvsr import subquestions as subquestions
