"""The embedded VLMs: small LLaVA models trained from scratch on rendered scenes, and the recipe that trained them."""

from pathlib import Path

NAMES = ("demo", "demo-healthy", "demo-prior", "demo-format")


def folder(name: str) -> Path:
    """The folder of an embedded model's weights, tokenizer and processor."""
    return Path(__file__).parent / "weights" / name
