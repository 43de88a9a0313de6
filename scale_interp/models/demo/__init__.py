"""The embedded VLMs: small LLaVA models trained from scratch on rendered scenes, and the recipe that trained them."""

from pathlib import Path

NAMES = ("demo", "demo-healthy", "demo-prior")


def folder(name: str) -> Path:
    """Where the weights, tokenizer and processor of an embedded model lie."""
    return Path(__file__).parent / "weights" / name
