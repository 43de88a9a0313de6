"""Edits of the last token, the prompt read once, and the engine that runs edits."""

from ..execution.ray_cluster import cluster
from .capture import Activations, capture
from .edit import Edit
from .engine import run_edits
from .sweep import HeadSweep

__all__ = ["Activations", "Edit", "HeadSweep", "capture", "cluster", "run_edits"]
