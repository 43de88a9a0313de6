"""Weights of fewer bits, by name: what transformers and a package of its own make of a checkpoint while it is read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from ..core.suggest import near
from ..errors import ModelError

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}
"""Name -> the package that does it. nf4: four bits, as in QLoRA (Dettmers et al. 2023); int8: eight bits, activations as they are."""


def quantization_config(wanted: Any) -> Any:
    """The configuration that transformers takes.

    Args:
        wanted: "nf4", "int8", a configuration of transformers, its settings as a dict, or None.

    Raises:
        ModelError: For an unknown name, another kind of value, or a package that is not installed.

    >>> quantization_config("int4")
    Traceback (most recent call last):
    scale_interp.errors.ModelError: quantization_config='int4': choose 'nf4' or 'int8', ...; did you mean 'int8'?
    """
    if not isinstance(wanted, str):
        if wanted is not None and not isinstance(wanted, dict) and not hasattr(wanted, "quant_method"):
            raise ModelError(
                f"quantization_config of a {type(wanted).__name__}: give 'nf4', 'int8', or a configuration of transformers, such as "
                "BitsAndBytesConfig(...)"
            )
        return wanted
    if wanted not in PACKAGES:
        names = " or ".join(map(repr, PACKAGES))
        raise ModelError(f"quantization_config={wanted!r}: choose {names}, or give a configuration of transformers{near(wanted, PACKAGES)}")
    for package in (PACKAGES[wanted], "accelerate"):
        if find_spec(package) is None:
            raise ModelError(
                f"{wanted} weights are made by the package {package}, which is not installed: pip install 'scale-interp[quantize]'"
            )
    if wanted == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def leave_fast_kernel(model: nn.Module) -> None:
    """Run layers of four bits by bitsandbytes' plain kernel on a CPU.

    Its fast one has no gradients, fails on widths that are no whole blocks, and changes the weights in the first pass.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
