"""How much memory is free, how much of it one call may take, and how a machine says that it is full."""

from __future__ import annotations

import gc

import psutil
import torch

from ..vlm.vlm import VLM
from .execution import execution_of

WEIGHTS_SHARE = 1 / 16
LEAST_BYTES = 64 * 2**20


def free_memory(device: torch.device) -> int:
    """Bytes free on a GPU, what torch holds there unused included, or of the machine's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + max(0, unused)
    return psutil.virtual_memory().available


def working_bytes(vlm: VLM) -> int:
    """Bytes that one packed call, or one batch of prefixes, may take: `vlm.memory`, else what is free on the device.

    Of that a quarter at most, and no more than a sixteenth of the weights' size (or 64 MiB), so that a sweep needs
    hardly more memory than a forward pass. A resumed run takes what the first one took: the last bits of a product of
    matrices depend on their sizes.
    """
    if vlm.memory is not None:
        return vlm.memory
    share = max(LEAST_BYTES, int(vlm.n_bytes * WEIGHTS_SHARE))
    journal = execution_of(vlm).journal
    measured = lambda: min(free_memory(vlm.device) // 4, share)  # noqa: E731
    return measured() if journal is None else journal.unfinished.fact(f"working bytes of {vlm.name}", measured)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's, or the machine's, way to say that its memory is full."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "OutOfMemoryError" in said or "can't allocate memory" in said


def release(device: torch.device) -> None:
    """Give back what is held for nothing."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
