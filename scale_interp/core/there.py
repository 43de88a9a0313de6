"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def there(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. On the way to a GPU nobody waits for it, where a plain `to` does; the way back waits."""
    return tensor.to(device, non_blocking=device.type == "cuda")
