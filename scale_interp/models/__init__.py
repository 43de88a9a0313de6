"""VLMs: loading them and addressing their heads."""

from ..vlm.vlm import VLM as VLM
from . import testbeds as testbeds
from .load import load as load
