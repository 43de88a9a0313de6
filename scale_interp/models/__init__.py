"""VLMs: loading them and addressing their heads."""

from .load import load
from .vlm import VLM

__all__ = ["VLM", "load"]
