"""Which modules are their weight alone, so that it may be read in their place; every other one has to be called."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


def is_plain(module: Any) -> bool:
    """Whether a module is a linear layer and nothing else: no adapter around it, no quantisation, no hook, no `forward` of its own.

    >>> is_plain(nn.Linear(2, 3)), is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)))
    (True, False)
    """
    if type(module) is not nn.Linear or module.weight.is_meta or is_quantised(module):
        return False
    everywhere = nn.modules.module
    hooks = (module._forward_hooks, module._forward_pre_hooks, everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks)
    traced = vars(module).get("__nnsight__")  # nnsight keeps a `forward` that was there before it, and looks like the class's own
    return not any(hooks) and not replaced(module) and (traced is None or traced.original is nn.Linear.forward)


def is_quantised(linear: nn.Linear) -> bool:
    """Whether a linear layer holds something else than a matrix of floats: bitsandbytes' whole numbers, or a tensor of torchao."""
    weight = linear.weight
    return not weight.is_floating_point() or type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor


def replaced(module: nn.Module) -> bool:
    """Whether a module runs another `forward` than its class's; nnsight's and accelerate's wrappers run that one."""
    own = vars(module).get("forward")
    if own is None:
        return False
    inner = inspect.unwrap(own)
    return getattr(inner, "__func__", inner) is not inspect.unwrap(type(module).forward)


def walk(module: nn.Module) -> list[nn.Module]:
    """A module and every one within it, once. `modules` yields the same through a chain of generators, which every run would notice."""
    found: dict[int, nn.Module] = {}
    left = [module]
    while left:
        one = left.pop()
        if id(one) not in found:
            found[id(one)] = one
            left.extend(inner for inner in one._modules.values() if inner is not None)
    return list(found.values())


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module's input belongs; a module whose weights are moved in by hooks, or that has none, takes it where it is."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if not t.is_meta), None)
    return otherwise if tensor is None else tensor.device
