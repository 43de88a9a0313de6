"""The kernels that read a shared prompt: torch's fused ones where they are right on this machine, and the attention written out.

A fused kernel is compared with the written-out attention when a device, dtype and size of heads first need it; where the two differ, or
the kernel fails, a PathWarning says so and the written-out attention is used. The kernels for CUDA were written without a GPU at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..errors import PathWarning

Attended = tuple[Tensor, Tensor]
"""Outputs [B, Hkv, M, D] and the log-sum-exp of the scores [B, Hkv, M] in float32."""
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Attended]
"""kernel(query, keys, values, seen, scaling)"""
ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""How far a fused kernel may be from the written-out attention, of the largest output: its own rounding in this dtype."""


def run(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    seen_by_all: bool = True,
) -> Attended:
    """Attention over the prompt by the best kernel there is; arguments and result as in `shared_prompt.attend`."""
    kernel = None
    if softcap is None and keys.shape[2] and seen_by_all and keys.shape[-1] == values.shape[-1]:
        kernel = _chosen(query.device.type, query.dtype, query.shape[-1], seen is not None)
    if kernel is None:
        return written_out(query, keys, values, seen, scaling, softcap)
    return kernel(query, keys, values, seen, scaling)


def scores(query: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Products of rows and keys [B, Hkv, M, K] in float32."""
    return ((query * scaling) @ keys.mT).float()


def written_out(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scaling: float, softcap: float | None = None) -> Attended:
    """The attention in plain torch, with every gradient."""
    if not keys.shape[2]:
        return query.new_zeros(*query.shape[:-1], values.shape[-1]), query.new_full(query.shape[:-1], float("-inf"), dtype=torch.float32)
    found = scores(query, keys, scaling)
    if softcap is not None:
        found = torch.tanh(found / softcap) * softcap
    if seen is not None:
        found = found.masked_fill_(~seen, float("-inf"))
    # In place: with hundreds of rows, passes over these scores take more time than the products.
    largest = found.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    found = found.sub_(largest).exp_()
    total = found.sum(-1, keepdim=True)
    divisor = total.clamp(min=torch.finfo(torch.float32).tiny)
    if values.dtype == torch.float16:
        # A sum over a long prompt exceeds the largest float16.
        out = (found / divisor).to(values.dtype) @ values
    else:
        out = ((found.to(values.dtype) @ values) / divisor).to(values.dtype)
    return out, (largest + total.log())[..., 0]


def on_cpu(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scaling: float) -> Attended:
    """torch's fused kernel for CPUs, with or without a mask."""
    mask = None if seen is None else _bias(seen, query, 1)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, attn_mask=mask, scale=scaling)


def flash(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scaling: float) -> Attended:
    """The flash kernel for CUDA, which takes no mask."""
    assert seen is None
    out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values, 0.0, False, False, scale=scaling)
    return out, total.float()


def efficient(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scaling: float) -> Attended:
    """The memory-efficient kernel for CUDA, with a mask or without, in any precision."""
    bias = None if seen is None else _aligned(_bias(seen, query, query.shape[1]))
    out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, keys, values, bias, True, 0.0, False, scale=scaling)
    return out, total[..., : query.shape[2]].float()  # it pads the rows


def _bias(seen: Tensor, query: Tensor, heads: int) -> Tensor:
    """The mask as what is added to the scores, [B, heads, M, K], without copies of rows that see the same."""
    bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
    return bias.expand(len(query), heads, query.shape[2], seen.shape[-1])


def _aligned(bias: Tensor) -> Tensor:
    """The same numbers in rows whose length in memory is a multiple of 16, as the kernel loads them."""
    K = bias.shape[-1]
    short = -K % 16
    if not short:
        return bias
    B, Hkv, M = bias.shape[:3]
    own = bias[:, :1, :1] if bias.stride(2) == 0 else bias[:, :1]
    padded = torch.nn.functional.pad(own, (0, short))[..., :K]
    return padded.expand(B, Hkv, M, K)


KERNELS: dict[tuple[str, bool], tuple[Kernel, ...]] = {
    ("cpu", False): (on_cpu,),
    ("cpu", True): (on_cpu,),
    ("cuda", False): (flash, efficient),
    ("cuda", True): (efficient,),
}
"""By device and whether there is a mask, the kernels to try in this order."""


@cache
def _chosen(device: str, dtype: torch.dtype, head_dim: int, masked: bool) -> Kernel | None:
    """The first kernel that agrees with the written-out attention here; None where none does."""
    tried = KERNELS.get((device, masked), ())
    differences = []
    for kernel in tried:
        difference = _difference(kernel, device, dtype, head_dim, masked)
        if difference is None:
            return kernel
        differences.append(f"{kernel.__name__}: {difference}")
    if differences:
        warnings.warn(
            f"torch's fused attention is not used for {dtype} heads of {head_dim} on this {device} ({'; '.join(differences)}): "
            "packed rows run in plain torch, which is slower and as exact",
            PathWarning,
            stacklevel=5,
        )
    return None


@torch.no_grad()
def _difference(kernel: Kernel, device: str, dtype: torch.dtype, head_dim: int, masked: bool) -> str | None:
    """What differs between a kernel and the written-out attention on random numbers, in words; None where nothing does."""
    draw = torch.Generator().manual_seed(0)
    B, Hkv, M, K = 2, 2, 37, 75  # no multiples of anything that a kernel works in

    def random(n: int) -> Tensor:
        # As many questions lie in memory: keys and values of a layer are parts of larger tensors.
        return torch.randn(B, n + 3, Hkv, head_dim, generator=draw).to(device, dtype)[:, :n].transpose(1, 2)

    query, keys, values = random(M), random(K), random(K)
    seen = torch.ones(B, 1, 1, K, dtype=torch.bool, device=device) if masked else None
    if seen is not None:
        seen[1, ..., :7] = False
    try:
        out, total = kernel(query, keys, values, seen, head_dim**-0.5)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return str(error).splitlines()[0]
    expected, expected_total = written_out(query.float(), keys.float(), values.float(), seen, head_dim**-0.5)
    if out.shape != expected.shape or total.shape != expected_total.shape:
        return f"its results have shapes {list(out.shape)} and {list(total.shape)}"
    allowed = ALLOWED.get(dtype, 0.0)
    for what, found, right in (("outputs", out, expected), ("log-sum-exp", total, expected_total)):
        away = float((found.float() - right).abs().max() / right.abs().max())
        if not away <= allowed:
            return f"{what} differ by {away:.1e} of the largest, {allowed:.0e} is allowed"
    return None
