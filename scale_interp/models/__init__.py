"""VLMs: loading them and addressing their heads."""

from ..vlm.vlm import VLM
from .load import load

__all__ = ["VLM", "load"]
