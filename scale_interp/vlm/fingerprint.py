"""What a model's numbers depend on, as one hash: every weight, how the modules are combined, and how questions become tokens.

Weights are summed on the model's own device in one pass over their memory, which takes about as long as one token. Nothing is cached
between calls, so a change that leaves no trace in torch's version counters (`weight.data[...] = 0`) is detected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROW = 2**15
"""Words of 8 bytes that share a row of factors: as many as stay in a core's cache."""
ROWS = {"cpu": 1}
"""Rows that are summed at once: one by one on a CPU; elsewhere 512, 128 MiB, as every call is a kernel."""
ODD = 0x9E3779B97F4A7C15
PATHS = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash")
"""Entries of a configuration that no number depends on; the dtype is that of the weights."""


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, buffers, modules, adapters and configuration as they are now.

    The same content gives the same hash on every device.

    Args:
        model: A transformers model, with or without adapters of peft.

    Returns:
        64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for name, tensor in _tensors(model):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_settings(tensor)} {checksum(tensor)};".encode())
    for name, module in model.named_modules():
        state.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {plain_settings(module)};".encode())
    state.update(_plain(getattr(model, "config", None)).encode())
    return state.hexdigest()


def checksum(tensor: Tensor) -> str:
    """A sum modulo 2^64 over all bytes of a tensor: each 8 bytes times an odd number of their own place.

    Multilinear hashing (Carter and Wegman 1979): a change of one word always changes the sum, and two tensors that differ in any other
    way agree with a chance of about 2^-63.
    """
    raw = _bytes(tensor)
    whole = len(raw) // 8 * 8
    words = raw[:whole].view(torch.int64)
    factors = _odd(torch.arange(ROW, device=raw.device))
    total = torch.zeros((), dtype=torch.int64, device=raw.device)
    step = ROWS.get(raw.device.type, 512) * ROW
    for start in range(0, len(words), step):
        part = words[start : start + step]
        rows = torch.nn.functional.pad(part, (0, -len(part) % ROW)).view(-1, ROW)
        numbers = _odd(start // ROW + ROW + torch.arange(len(rows), device=raw.device))
        total += ((rows * factors).sum(1) * numbers).sum()
    return f"{int(total) & (2**64 - 1):016x} {bytes(raw[whole:].cpu().tolist()).hex()}"


def _odd(places: Tensor) -> Tensor:
    """An odd number for each place, with the bits of the place well mixed (splitmix64's finaliser, on wrapping integers)."""
    mixed = (places + 1) * (ODD - 2**64)
    mixed = (mixed ^ (mixed >> 31)) * -4658895280553007687
    return (mixed ^ (mixed >> 29)) | 1


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor [n_bytes], also of a quantised or sub-byte one."""
    values = tensor.detach()
    if _made_of_others(values):
        names, _ = values.__tensor_flatten__()  # type: ignore[attr-defined]
        return torch.cat([_bytes(getattr(values, name)).cpu() for name in names])
    values = values.contiguous().reshape(-1)
    return values.view(torch.uint8) if values.numel() else torch.zeros(0, dtype=torch.uint8, device=values.device)


def _made_of_others(tensor: Tensor) -> bool:
    """Whether a tensor is torchao's, which is made of plain ones."""
    return type(tensor) is not Tensor and type(tensor) is not nn.Parameter and hasattr(tensor, "__tensor_flatten__")


def _settings(tensor: Tensor) -> str:
    """What decides, besides its numbers, what a tensor of torchao does: whether activations are quantised too, block sizes, dtypes."""
    values = tensor.detach()
    if not _made_of_others(values):
        return ""
    names, about = values.__tensor_flatten__()  # type: ignore[attr-defined]
    return " ".join([re.sub(r" at 0x\w+|device\([^)]*\)", "", repr(about)), *(_settings(getattr(values, name)) for name in names)])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            yield from ((f"{name}.{key}", value) for key, value in _scales(module, weight))


def _scales(module: nn.Module, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The scales that a layer of bitsandbytes holds beside its weights: of 4 bits, whose scales may have scales, and of 8."""
    state = getattr(weight, "quant_state", None)
    while hasattr(state, "__dict__"):
        yield from ((f"quant_state.{key}", value) for key, value in vars(state).items() if isinstance(value, Tensor))
        state = getattr(state, "state2", None)
    of_8_bits = getattr(weight, "SCB", None)
    of_8_bits = getattr(getattr(module, "state", None), "SCB", None) if of_8_bits is None else of_8_bits  # where the first pass moves it
    if isinstance(of_8_bits, Tensor):
        yield "SCB", of_8_bits


def plain_settings(module: nn.Module) -> str:
    """The plain settings of a module, such as the scaling of a LoRA layer, the window of an attention layer, or a dropout's share."""
    found: dict[str, Any] = {}
    if (threshold := getattr(vars(module).get("state"), "threshold", None)) is not None:
        found["threshold"] = float(threshold)  # of bitsandbytes' 8 bits: larger activations are not quantised
    for name, value in vars(module).items():
        if name.startswith("_") and name not in ("_active_adapter", "_disable_adapters"):
            continue
        if isinstance(value, bool | int | float | str | list | tuple | Mapping) and name != "training":
            found[name] = value
    return _plain(found)


def _plain(value: Any) -> str:
    if hasattr(value, "to_dict"):
        value = value.to_dict() | {"attention": getattr(value, "_attn_implementation", None)}
    return json.dumps(_without_paths(value), sort_keys=True, default=lambda one: type(one).__name__)


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_paths(v) for k, v in value.items() if k not in PATHS}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value]
    return value


def processor_fingerprint(processor: Any, prompt: str | None) -> str:
    """A hash of how a question becomes tokens and pixels: tokenizer, chat template, image processing, and the custom prompt."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Before the added tokens stands how the last call padded, which every call here sets again.
    words = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str().partition('"added_tokens"')[2]
    parts: list[Any] = [prompt, processor.chat_template, words, *processor_settings(processor)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def processor_settings(processor: Any) -> list[str]:
    """The settings of a processor's parts, without its tokenizer."""
    return [f"{name} {_plain(value)}" for name, value in sorted(vars(processor).items()) if name != "tokenizer"]


def numerics(device: torch.device) -> dict[str, Any]:
    """What affects results besides the weights: the device, autocast, and how products of float32 are computed."""
    kind = device.type
    return {
        "device": kind,
        "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None,
        "float32_products": torch.get_float32_matmul_precision(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if kind == "cuda" else None,
    }
