"""The mode that a model is in, checked wherever it is about to run: numbers are read in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from ..errors import ModelError, RunWarning
from .plain import device_of, is_quantised, walk


class Addressed(Protocol):
    """What a VLM is here: a transformers model, and views of its modules that can be made again."""

    hf_model: Any

    def renew(self, modules: Sequence[nn.Module]) -> None: ...


def require_ready(vlm: Addressed | nn.Module, gradients_for: str | None = None) -> None:
    """Raise ModelError for a model in training mode, warn under autocast; a VLM also sees modules that have changed.

    gradients_for: what needs gradients, such as "fitting"; then they have to be on, too.
    """
    model = vlm if isinstance(vlm, nn.Module) else vlm.hf_model
    modules = walk(model)
    if any(module.training and _matters(module) for module in modules):
        name = next(name for name, module in model.named_modules() if module.training and _matters(module)) or "all of it"
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        checkpointing = " and gradient checkpointing, which takes the cache away" if checkpointed else ""
        raise ModelError(
            f"this {type(model).__name__} is in training mode ({name}), with dropout{checkpointing}, so that every pass may give other "
            "numbers: call vlm.hf_model.eval() first"
        )
    weight = next(model.parameters())
    if torch.is_autocast_enabled(weight.device.type):
        warnings.warn(
            f"torch.autocast is on and computes in {torch.get_autocast_dtype(weight.device.type)} what the model holds in {weight.dtype}: "
            "leave the block, or load the model with the dtype that you want",
            RunWarning,
            stacklevel=3,
        )
    if gradients_for is not None:
        _require_gradients(model, gradients_for)
    if not isinstance(vlm, nn.Module):
        vlm.renew(modules)


def _matters(module: nn.Module) -> bool:
    """Whether a module may compute something else in training mode: an adapter without dropout, for one, does not."""
    if isinstance(module, PreTrainedModel | _BatchNorm) or getattr(module, "gradient_checkpointing", False):
        return True
    rates = (value for name, value in vars(module).items() if "drop" in name or (name == "p" and isinstance(module, _DropoutNd)))
    return any(isinstance(rate, float | int) and rate > 0 for rate in rates)


def _require_gradients(model: nn.Module, what: str) -> None:
    if torch.is_inference_mode_enabled():
        raise ModelError(f"{what} needs gradients, and torch.inference_mode is on: leave the block")
    if not torch.is_grad_enabled():
        raise ModelError(f"{what} needs gradients, and torch.no_grad (or set_grad_enabled(False)) is on: leave the block")
    name = next((name for name, weight in model.named_parameters() if weight.is_inference()), None)
    if name is not None:
        raise ModelError(f"{what} needs gradients, and {name} was made in torch.inference_mode: load the model outside it")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantised(module) and not _passes_gradients(model, module):
            raise ModelError(
                f"{what} needs gradients, and none passes through {name}, a {type(module).__name__}, whose kernel has none: load the model "
                "without quantisation, or set support_avx512bf16_for_cpu=False on bitsandbytes' layers of 4 bits before the first pass"
            )


def _passes_gradients(model: nn.Module, linear: nn.Linear) -> bool:
    """Whether gradients reach a layer's input, after a pass without them, which may change how it computes."""
    forward, place = type(linear).forward, device_of(linear, model.device)  # type: ignore[arg-type]
    row = torch.ones(1, linear.in_features, dtype=model.dtype, device=place)  # type: ignore[call-overload]
    with torch.no_grad():
        forward(linear, row)
    out = forward(linear, row.requires_grad_())
    if not out.requires_grad:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, of a kernel that has no gradient
        (slope,) = torch.autograd.grad(out.float().sum(), row, allow_unused=True)
    return slope is not None and bool(slope.any())
