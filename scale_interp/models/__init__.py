"""Vision-language models: loading them, embedded ones, and testbeds with a known answer."""

from ..vlm.vlm import VLM as VLM
from . import testbeds as testbeds
from .load import load as load
