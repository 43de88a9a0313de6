"""The places for keys and values of prompts: the device's memory, pinned host memory, disk, or none; their room and measured costs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from typing import Literal

import psutil
import torch
from torch import Tensor

from ..execution.memory import free_memory
from ..vlm.vlm import VLM, PrefixCache
from .prefix_disk import Spill, room_on_disk

KEPT_SHARE = 0.25
"""The share of the memory free at the start that kept prompts may use, on the device and on the host."""
SAMPLE = 16 * 2**20
"""Bytes that are copied, or written and read, to measure a place."""
PlaceName = Literal["memory", "host", "disk", "recompute"]
"""The memory of the model's device; pinned memory of the machine beside a GPU; the folder TMPDIR; none, so that prompts are read again."""


def rooms(vlm: VLM, cache: PrefixCache) -> dict[PlaceName, int]:
    """The places that a setting of `VLM.prefix_cache` allows, and the bytes that fit in each."""
    allowed: dict[PrefixCache, tuple[PlaceName, ...]] = {
        "auto": ("memory", "host", "disk") if vlm.device.type == "cuda" else ("memory", "disk"),
        "memory": ("memory",),
        "host": ("host",),
        "disk": ("disk",),
        "recompute": (),
    }
    room = {
        "memory": lambda: int(KEPT_SHARE * free_memory(vlm.device)),
        "host": lambda: int(KEPT_SHARE * psutil.virtual_memory().available),
        "disk": room_on_disk,
    }
    return {name: room[name]() for name in allowed[cache]}


def cheapest(size: int, reading: float, room: Mapping[PlaceName, int], device: torch.device, measured: bool) -> PlaceName:
    """Where to keep prompts of this size: in memory where they fit, else where getting them back takes the least time.

    Args:
        size: Bytes of the keys and values.
        reading: Seconds that reading these prompts took.
        room: Bytes left in each allowed place.
        device: Of the model.
        measured: Whether costs decide; otherwise any allowed place with room is better than reading again.
    """
    if size <= room.get("memory", -1):
        return "memory"
    others = [name for name in room if name != "memory" and size <= room[name]]
    if not others:
        return "recompute"
    costs: dict[PlaceName, float] = {name: size * seconds_per_byte(name, str(device)) if measured else 0.0 for name in others}
    best = min(costs, key=lambda name: costs[name])
    return best if not measured or costs[best] < reading else "recompute"


@cache
def seconds_per_byte(name: PlaceName, device: str) -> float:
    """What it takes to get a byte back from the host's memory or from disk, measured once per process."""
    return _host(device) if name == "host" else _disk(device)


def _host(device: str) -> float:
    kept = on_host(torch.empty(SAMPLE, dtype=torch.uint8))
    kept.to(device)
    started = now(torch.device(device))
    kept.to(device)
    return (now(torch.device(device)) - started) / SAMPLE


def _disk(device: str) -> float:
    """Through a Spill, checksum included, with what was written put out of the system's own cache."""
    spill = Spill()
    half = torch.empty(SAMPLE // 2, dtype=torch.uint8)
    if not spill.put(0, [(half, half.clone())]):
        return float("inf")
    _forget(spill.folder / "0.safetensors")
    started = now(torch.device(device))
    spill.get(0, [torch.device(device)])
    return (now(torch.device(device)) - started) / SAMPLE


def _forget(path: os.PathLike[str]) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def on_host(tensor: Tensor) -> Tensor:
    """A copy in the machine's memory, pinned where there is a GPU and the system allows it, so that it is copied back at full speed."""
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available()).copy_(tensor)
    except RuntimeError:  # there is a limit on pinned memory
        return torch.empty_like(tensor, device="cpu").copy_(tensor)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
