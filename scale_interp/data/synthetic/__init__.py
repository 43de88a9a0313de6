"""Questions about generated maps, mazes and grids: as an image, as a text, or as both."""

from .questions import FORMS as FORMS
from .questions import KINDS as KINDS
from .questions import generated_questions as generated_questions
