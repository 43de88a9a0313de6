"""Check a model against what the package assumes: one question, run on every path and with plain nnsight."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..data.question import Question
from ..vlm.families import KNOWN
from ..vlm.report import Report
from ..vlm.vlm import VLM
from .edit import Edit, LayerEdit
from .paths import packed_batch, reference_work, row_bytes, variants_at_once
from .prefix import read_prefix
from .reference import forward

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference that rounding explains, relative to the largest logit or 1."""
SAMPLE = Question("Is there a cat?", ("yes", "no"), 0, picture=Image.radial_gradient("L").resize((64, 48)), id="sample")


@torch.no_grad()
def check(vlm: VLM, question: Question = SAMPLE) -> Report:
    """Run one question clean and with a random edit of every head and MLP: packed, reference, and plain nnsight.

    Args:
        vlm: The model.
        question: The question.

    Returns:
        The differences between the paths, and which path to take.

    Raises:
        ModelError: The logits are not finite.
    """
    with vlm.alone():
        return _check(vlm, question)


def _check(vlm: VLM, question: Question) -> Report:
    draw = torch.Generator().manual_seed(0)
    L, H = vlm.n_layers, vlm.n_heads
    edit = Edit(0.5 + torch.rand(1, L, H, generator=draw), mlp_scale=0.5 + torch.rand(1, L, generator=draw))
    whole, whole_clean = reference_work(vlm, (0, question), edit, "auto").values()
    prefix = read_prefix(vlm, [question])
    cheap, cheap_clean = packed_batch(vlm, prefix, edit)
    # A scale that requires a gradient starts at the first layer, although it is 1 everywhere.
    with torch.enable_grad():
        ones = Edit(torch.ones(16, L, H, requires_grad=True))
    computed, row = packed_batch(vlm, prefix, ones)
    allowed = TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16]) * max(1.0, float(whole.abs().max()))
    at_once = min(L * H, variants_at_once(vlm, prefix))
    tokens = prefix.seen.shape[1] + 1
    found = {
        "packed_reference": _largest((cheap - cheap_clean) - (whole - whole_clean)),
        "clean": _largest(cheap_clean - whole_clean),
        "nnsight": _largest(_reference_without_a_head(vlm, question) - _plain_nnsight(vlm, question)),
        "rounding": _largest(computed - row),
    }
    path, why = _choose(vlm, found, allowed)
    return Report(
        model=vlm.name,
        family=vlm.family,
        known=vlm.family in KNOWN,
        model_class=type(vlm.hf_model).__name__,
        processor_class=type(vlm.processor).__name__,
        attention=vlm.decoder.config._attn_implementation,
        dtype=str(vlm.dtype).removeprefix("torch."),
        device=str(vlm.device),
        layers=L,
        heads=H,
        head_dim=vlm.head_dim,
        groups=vlm.n_heads // vlm.n_kv_heads,
        weight_bytes=vlm.n_bytes,
        tokens=tokens,
        path=path,
        why=why,
        allowed=allowed,
        sweep_bytes=prefix.nbytes + at_once * row_bytes(vlm, tokens),
        at_once=at_once,
        **found,
    )


def _choose(vlm: VLM, found: dict[str, float], allowed: float) -> tuple[Literal["packed", "reference"], str]:
    if vlm.quirks.bidirectional:
        return "reference", (
            "its prompt attends in both directions, so an edit of the last token reaches the whole prompt and every edit runs a whole "
            "forward pass; path='packed' is fast and means another intervention: the prompt stays frozen at the unedited run"
        )
    worst = max(found["packed_reference"], found["clean"])
    if worst > allowed:
        return "reference", (
            f"packed and reference logits differ by {worst:.2g}, and {allowed:.2g} is what {vlm.dtype} rounding explains; "
            "every edit now runs a whole forward pass (same meaning, slower)"
        )
    return "packed", f"packed and reference logits differ by {worst:.2g}, within {allowed:.2g} of rounding"


def _reference_without_a_head(vlm: VLM, question: Question) -> Tensor:
    """Logits [V] of the reference path with head (L // 2, 0) zeroed."""
    inputs = dict(vlm.encode(question))
    scale = torch.ones(1, 1, vlm.n_heads)
    scale[..., 0] = 0
    return forward(vlm, inputs, {vlm.n_layers // 2: LayerEdit(0, scale)}, inputs["input_ids"].shape[1], "last")[0, -1].float()


def _plain_nnsight(vlm: VLM, question: Question) -> Tensor:
    """The same logits, as a user would compute them with nnsight."""
    layer, D = vlm.n_layers // 2, vlm.head_dim
    with vlm.trace(question, use_cache=False):
        vlm.layers[layer].self_attn.o_proj.input[:, -1, :D] = 0
        logits = vlm.nn.output.logits[0, -1].save()
    return logits.float()


def _largest(difference: Tensor) -> float:
    return float(difference.nan_to_num(0.0, 0.0, 0.0).abs().max())
