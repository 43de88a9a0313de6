"""How to recognise that memory ran out."""

from __future__ import annotations

import torch

SAID = ("OutOfMemoryError", "can't allocate memory", "Unable to allocate")
"""What torch and numpy say when memory runs out, within errors of other types."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in SAID)
