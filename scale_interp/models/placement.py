"""Where a model goes: one device, by default the accelerator where there is one, or several by accelerate."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from ..core.suggest import near
from ..errors import ModelError

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""The ways in which accelerate distributes a model by itself."""


def default_device() -> torch.device:
    """CUDA where it works, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """A device with what it is, as in "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def require_device(device: str | torch.device | None) -> torch.device:
    """The device, where this machine has it; by default `default_device()`.

    Raises:
        ModelError: It is no device, or none of this machine.
    """
    try:
        found = default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"device={device!r}: {error}; give 'cpu', 'cuda' or 'cuda:0'") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.type in counts and (found.index or 0) >= counts[found.type]:
        have = [name if count == 1 else f"{name}:0 to {name}:{count - 1}" for name, count in counts.items() if count]
        raise ModelError(f"device={str(device)!r}: torch finds {', '.join(have)} here; give a device that this machine has")
    return found


def require_map(device_map: str | dict[str, Any] | None, device: Any) -> None:
    """Raise ModelError for a map that accelerate does not take, or where accelerate is missing."""
    if device_map is None:
        return
    if device is not None:
        raise ModelError(f"device={str(device)!r} and device_map={device_map!r}: both say where the model goes; give one of them")
    if find_spec("accelerate") is None:
        raise ModelError(
            f"device_map={device_map!r}: models are distributed by the package accelerate, which is not installed: "
            "pip install 'scale-interp[models]'"
        )
    if isinstance(device_map, str) and device_map not in MAPS:
        try:
            torch.device(device_map)
        except RuntimeError as error:
            raise ModelError(
                f"device_map={device_map!r}: choose from {', '.join(MAPS)}{near(device_map, MAPS)}, or give one device"
            ) from error
