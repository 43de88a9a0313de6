"""Keys and values of prompts on disk, for when memory is used up; verified when they are read back."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import MemoryWarning

LEAST_FREE = 2**30
"""Bytes of disk that are left free."""
KeysAndValues = Sequence[tuple[Tensor, Tensor]]


class Spill:
    """A folder in the system's temporary folder (TMPDIR), deleted together with this object."""

    def __init__(self) -> None:
        self._sums: dict[int, bytes] = {}

    @cached_property
    def folder(self) -> Path:
        """The folder, created on first use."""
        folder = Path(tempfile.mkdtemp(prefix="scale-interp-prompts-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def put(self, index: int, layers: KeysAndValues) -> bool:
        """Write the keys and values of one batch. Returns False, with a warning, if the disk is too full."""
        size = sum(k.nbytes + v.nbytes for k, v in layers)
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:  # somebody has deleted the folder
            self._full(str(error))
            return False
        if free - size < LEAST_FREE:
            self._full(f"{free:,} bytes are free, {size:,} are needed and {LEAST_FREE:,} stay free")
            return False
        content = save({f"{i}.{part}": t.cpu().contiguous() for i, pair in enumerate(layers) for part, t in zip("kv", pair, strict=True)})
        try:
            (self.folder / f"{index}.safetensors").write_bytes(content)
        except OSError as error:
            self._full(str(error))
            return False
        self._sums[index] = hashlib.blake2b(content).digest()
        return True

    def _full(self, why: str) -> None:
        message = f"no space on disk for prompts in {self.folder} ({why}): the rest is read again when needed; set TMPDIR to a larger disk"
        warnings.warn(message, MemoryWarning, stacklevel=5)

    def get(self, index: int, devices: Sequence[torch.device]) -> KeysAndValues | None:
        """Read what was put, each layer onto its device. Returns None, with a warning, if the file is missing or its checksum differs."""
        path, sum_then = self.folder / f"{index}.safetensors", self._sums.pop(index)
        try:
            content = path.read_bytes()
            if hashlib.blake2b(content).digest() != sum_then:
                raise ValueError("its checksum differs")
            named = load(content)
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"{path}: {error}; its prompts are read again", MemoryWarning, stacklevel=5)
            return None
        self._sums[index] = sum_then
        return [(named[f"{i}.k"].to(device), named[f"{i}.v"].to(device)) for i, device in enumerate(devices)]


def room_on_disk() -> int:
    """Bytes that prompts may take in the system's temporary folder."""
    return max(0, shutil.disk_usage(tempfile.gettempdir()).free - LEAST_FREE)
