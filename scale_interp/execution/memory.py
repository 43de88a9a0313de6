"""How much memory is free, how much of it one call may use, and how to recognise that it ran out."""

from __future__ import annotations

import gc

import psutil
import torch

from ..vlm.vlm import VLM
from .execution import execution_of

WEIGHTS_SHARE = 1 / 16
LEAST_BYTES = 64 * 2**20


def free_memory(device: torch.device) -> int:
    """The free memory of a GPU, with what torch holds there unused, or of the machine, in bytes."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + max(0, unused)
    return psutil.virtual_memory().available


def working_bytes(vlm: VLM) -> int:
    """How much memory one packed call, or one batch of prefixes, may use.

    This is `vlm.memory` if set. Otherwise it is at most a quarter of the free memory and a sixteenth of the weights' size (or 64
    MiB), so that a sweep needs hardly more memory than a forward pass. A resumed run uses the value of the first run, as the last
    bits of a matrix product depend on its size.

    Args:
        vlm: The model.

    Returns:
        The size in bytes.
    """
    if vlm.memory is not None:
        return vlm.memory
    share = max(LEAST_BYTES, int(vlm.n_bytes * WEIGHTS_SHARE))
    journal = execution_of(vlm).journal
    measured = lambda: min(free_memory(vlm.device) // 4, share)  # noqa: E731
    return measured() if journal is None else journal.unfinished.fact(f"working bytes of {vlm.name}", measured)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, has run out of memory."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "OutOfMemoryError" in said or "can't allocate memory" in said


def release(device: torch.device) -> None:
    """Free memory that is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
