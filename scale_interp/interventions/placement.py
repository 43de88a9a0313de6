"""Where the keys and values of prompts are kept: in the device's memory, pinned host memory, on disk, or nowhere, by measured costs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import psutil
import torch
from torch import Tensor

from ..data.question import Question
from ..execution.memory import free_memory, prompt_bytes
from ..vlm.vlm import VLM, PrefixCache
from .prefix_disk import Spill, room_on_disk

KEPT_SHARE = 0.25
"""The share of the memory free at the start that kept prompts may use, on the device and on the host."""
SAMPLE = 16 * 2**20
"""Bytes that are copied, or written and read, to measure a place."""
PlaceName = Literal["memory", "host", "disk", "recompute"]


@dataclass(frozen=True)
class Place:
    """A place for prompts.

    Attributes:
        name: "memory" (of the model's device), "host" (pinned memory of the machine, beside a GPU), "disk" (the folder TMPDIR), or
            "recompute" (the prompt is read again).
        room: Bytes that fit.
        seconds: What it takes to get one gigabyte back, measured; 0 for memory.
    """

    name: PlaceName
    room: int
    seconds: float


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


@torch.no_grad()
def measure_places(vlm: VLM, question: Question) -> tuple[Place, ...]:
    """Every place for prompts like this question's on this machine, in the order in which they are used.

    Args:
        vlm: The model.
        question: A question like those to come; its prompt is read twice, and the second time counts.

    Returns:
        The places that `vlm.prefix_cache` allows, and reading again.
    """
    from .prefix import read_prefix

    for _ in range(2):
        started = _now(vlm.device)
        prefix = read_prefix(vlm, [question])
        seconds = _now(vlm.device) - started
    room = rooms(vlm, vlm.prefix_cache)
    found = [Place(name, n, 0.0 if name == "memory" else 1e9 * seconds_per_byte(name, str(vlm.device))) for name, n in room.items()]
    found.append(Place("recompute", 2**63 - 1, 1e9 * seconds / prefix.nbytes))
    return tuple(sorted(found, key=lambda place: place.seconds))


def placement(vlm: VLM, places: Sequence[Place], tokens: int, n_questions: int) -> dict[PlaceName, int]:
    """How many prompts of so many tokens would be kept in which place.

    Args:
        vlm: The model.
        places: From `measure_places`.
        tokens: Of a prompt.
        n_questions: How many prompts there are.

    Returns:
        Place -> prompts, in the order of the places; those under "recompute" are read again whenever they are needed.
    """
    left, found = n_questions, {}
    for place in places:
        n = min(left, place.room // prompt_bytes(vlm, tokens))
        if n:
            found[place.name] = n
        left -= n
        if place.name == "recompute":
            break
    return found


@cache
def seconds_per_byte(name: PlaceName, device: str) -> float:
    """What it takes to get a byte back from the host's memory or from disk, measured once per process."""
    return _host(device) if name == "host" else _disk(device)


def _host(device: str) -> float:
    kept = on_host(torch.empty(SAMPLE, dtype=torch.uint8))
    kept.to(device)
    started = _now(torch.device(device))
    kept.to(device)
    return (_now(torch.device(device)) - started) / SAMPLE


def _disk(device: str) -> float:
    """Through a Spill, checksum included, with what was written put out of the system's own cache."""
    spill = Spill()
    half = torch.empty(SAMPLE // 2, dtype=torch.uint8)
    if not spill.put(0, [(half, half.clone())]):
        return float("inf")
    _forget(spill.folder / "0.safetensors")
    started = _now(torch.device(device))
    spill.get(0, [torch.device(device)])
    return (_now(torch.device(device)) - started) / SAMPLE


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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
