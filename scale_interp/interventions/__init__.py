"""Edits of the last token, prompts that are read once, and the engine that runs edits."""

from .capture import Activations as Activations
from .capture import capture as capture
from .edit import Edit as Edit
from .engine import run_edits as run_edits
from .knockout.edit import AttentionEdit as AttentionEdit
from .sweep import HeadSweep as HeadSweep
