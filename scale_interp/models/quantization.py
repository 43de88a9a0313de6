"""Weights of fewer bits, by name: what transformers and a package of its own make of a checkpoint while it is read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

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


def settle(model: nn.Module) -> None:
    """Let layers of four bits on a CPU take the form in which they run, which bitsandbytes otherwise changes in their first pass.

    Its fast kernel asks for inputs in whole blocks of the quantisation and outputs in groups of 32; other layers are left to the plain one.
    """
    for module in model.modules():
        state, linear = getattr(getattr(module, "weight", None), "quant_state", None), cast(Any, module)
        if state is None or linear.weight.device.type != "cpu":
            continue
        if linear.in_features % state.blocksize or linear.out_features % 32:
            linear.support_avx512bf16_for_cpu = False
        with torch.no_grad():
            linear(torch.zeros(1, linear.in_features))
