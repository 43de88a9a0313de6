"""Check a model against what the package assumes: two questions, run on every path and with plain nnsight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..data.question import Question
from ..errors import ModelError, ScaleInterpError
from ..vlm.families import KNOWN
from ..vlm.report import Report
from ..vlm.vlm import VLM
from .choices import Choices
from .edit import Edit, LayerEdit
from .paths import packed_batch, reference_work, row_bytes, variants_at_once
from .prefix import Prefix, PrefixLayer, read_prefix
from .prompt_end import require_none_attached
from .reference import forward

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference that rounding explains, relative to the largest logit or 1."""
LARGE = 60.0
"""Size of logits at which a final cap (30 in Gemma 2) shows."""
BY_QUESTION = ((0, 2), (1,))
"""Which variants of the edit each of the two questions is asked with in whole passes; the packed call runs all."""
SAMPLE = Question("Is there a cat?", ("yes", "no"), 0, picture=Image.radial_gradient("L").resize((64, 48)), id="sample")


@torch.no_grad()
def check(vlm: VLM, question: Question = SAMPLE) -> Report:
    """Run two questions of different length in one batch, clean and edited: packed, reference, and plain nnsight.

    The second question has choices of several tokens. Variants edit all heads and MLPs from the first, a middle and the last layer on.
    Where the text model caps its logits, they are compared once more at a size at which caps show. Whatever the packed path raises
    is a reason for the reference path.

    Args:
        vlm: The model.
        question: The first question.

    Returns:
        The differences between the paths, and which path to take.

    Raises:
        ModelError: The logits are not finite.
        EditError: An edit is attached.
    """
    asked = [question, of_several_tokens(question)]
    # The check's own choices are nobody's: how they are scored is not said, nor counted among what was said.
    own = {q.choices for q in asked} - vlm.measured.choices
    with vlm.alone():
        vlm.measured.choices.update(own)
        try:
            return _check(vlm, asked)
        finally:
            vlm.measured.choices.difference_update(own)


def _check(vlm: VLM, asked: Sequence[Question]) -> Report:
    require_none_attached(vlm.hf_model)
    edit = _edit(vlm)
    question = asked[0]
    try:
        whole = _whole_passes(vlm, asked, edit)
        clean_nnsight = _plain_nnsight(vlm, question)
        found = {"nnsight": _largest(_reference_without_a_head(vlm, question) - clean_nnsight)}
    except ScaleInterpError:
        raise
    except Exception as error:  # as below, on heads that are not where they are looked for, or inputs that the model does not take
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{vlm.name} ({vlm.family}): a whole forward pass with edited heads fails on it ({_named(error)}), so no path runs it: "
            "`scale-interp check` says the same; docs/adding_family.md says what a family may need"
        ) from error
    allowed = TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16]) * max(1.0, *(float(edited.abs().max()) for edited, _ in whole))
    tokens = 0
    try:
        prefix = read_prefix(vlm, asked)
        tokens = prefix.seen.shape[1] + 1
        found |= _packed_against(vlm, prefix, edit, whole)
        found["clean"] = max(
            found["clean"], _larger_logits(vlm, question, float(clean_nnsight.abs().max())), _larger_scores(vlm, question, prefix)
        )
        rows = prefix.choices.tokens.numel()
        at_once = min(vlm.n_layers * vlm.n_heads, rows * variants_at_once(vlm, prefix))
        sweep_bytes = prefix.nbytes // len(asked) + at_once * row_bytes(vlm, tokens)
        path, why = _choose(vlm, found, allowed)
    except Exception as error:  # whatever a model's own code raises on rows that it was not written for
        if out_of_memory(error):
            raise no_memory(vlm, error) from error
        found |= dict.fromkeys(("packed_reference", "clean", "rounding"), float("inf"))
        at_once = sweep_bytes = 0
        tokens = tokens or max(vlm.encode(q)["input_ids"].shape[1] for q in asked)
        path, why = "reference", f"the packed path fails on it ({_named(error)}); every edit now runs a whole forward pass"
    return Report(
        model=vlm.name,
        family=vlm.family,
        known=vlm.family in KNOWN,
        model_class=type(vlm.hf_model).__name__,
        processor_class=type(vlm.processor).__name__,
        attention=vlm.decoder.config._attn_implementation,
        dtype=str(vlm.dtype).removeprefix("torch."),
        device=str(vlm.device),
        layers=vlm.n_layers,
        heads=vlm.n_heads,
        head_dim=vlm.head_dim,
        groups=vlm.n_heads // vlm.n_kv_heads,
        weight_bytes=vlm.n_bytes,
        tokens=tokens,
        path=path,
        why=why,
        allowed=allowed,
        sweep_bytes=sweep_bytes,
        at_once=at_once,
        **found,
    )


def no_memory(vlm: VLM, error: Exception) -> ModelError:
    """What is said where memory ran out while paths were compared, which says nothing about them."""
    return ModelError(
        f"{vlm.name}: no memory to compare packed edits with whole passes ({str(error).splitlines()[0]}): free some, give smaller images, "
        "or name the path, path='packed'"
    )


def _named(error: Exception) -> str:
    """An error's type and the first line of what it says that is not a traceback's (nnsight's begin with one)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith(f"{type(error).__name__}: ")), lines[0] if lines else "")
    return f"{type(error).__name__}: {said.removeprefix(f'{type(error).__name__}: ')}"


def _whole_passes(vlm: VLM, asked: Sequence[Question], edit: Edit) -> list[tuple[Tensor, Tensor]]:
    """Edited and clean scores of each question, from whole forward passes."""
    whole = []
    for row, (q, variants) in enumerate(zip(asked, BY_QUESTION, strict=True)):
        part = reference_work(vlm, (row, q), Edit.stack([edit[n] for n in variants]), "auto")
        whole.append((part["edited"][0], part["clean"][0]))
    return whole


def _edit(vlm: VLM) -> Edit:
    """Random scales of every head and MLP, from the first layer on, from the middle on, and at the last layer alone."""
    draw = torch.Generator().manual_seed(0)
    L, H = vlm.n_layers, vlm.n_heads
    scale, mlp_scale = 0.5 + torch.rand(3, L, H, generator=draw), 0.5 + torch.rand(3, L, generator=draw)
    mlp_scale[:, [row for row, block in enumerate(vlm.head_layers) if block.mlp_name is None]] = 1
    for variant, start in enumerate((0, L // 2, L - 1)):
        scale[variant, :start] = mlp_scale[variant, :start] = 1
    return Edit(scale, mlp_scale=mlp_scale, scope="each_new_token")


def of_several_tokens(question: Question) -> Question:
    """Another question on the same image, of another length, whose choices are the first words of this one's, two and three times."""
    words = list(dict.fromkeys(choice.split()[0] for choice in question.choices))
    first, second = words[:2] if len(words) > 1 else question.choices[:2]
    text = f"Look at this. {question.text}"
    return Question(text, (f"{first} {second}", f"{second} {first} {first}"), 0, question.image_sources or None, f"{question.id}, longer")


def _packed_against(vlm: VLM, prefix: Prefix, edit: Edit, whole: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How far the packed path is from whole passes (edited, clean) of each question, and from itself."""
    cheap, cheap_clean = packed_batch(vlm, prefix, edit)
    # A scale that might need a gradient starts at the first layer, though it is 1 everywhere.
    with torch.enable_grad():
        ones = Edit(torch.ones(16, vlm.n_layers, vlm.n_heads, dtype=torch.float32, requires_grad=True))
    computed, row = packed_batch(vlm, prefix, ones)
    found = {"packed_reference": 0.0, "clean": 0.0, "rounding": 0.0}
    for q, (edited, clean) in enumerate(whole):
        C, variants = edited.shape[-1], list(BY_QUESTION[q])
        for name, difference in (
            ("packed_reference", (cheap - cheap_clean)[q, variants, :C] - (edited - clean)),
            ("clean", cheap_clean[q, variants, :C] - clean),
            ("rounding", computed[q, :, :C] - row[q, :, :C]),
        ):
            found[name] = max(found[name], _largest(difference))
    return found


def _larger_logits(vlm: VLM, question: Question, largest: float) -> float:
    """How far logits, at a size at which a final cap shows, are from the model's own: the differences of usual size, scaled back."""
    head, factor, seen = vlm.head, LARGE / max(largest, 1e-6), []

    def enlarge(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(given[0][0, -1:] * factor)
        return (given[0] * factor, *given[1:])

    hook = head.register_forward_pre_hook(enlarge)
    try:
        own = vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1].float()
    finally:
        hook.remove()
    if not seen:
        return float("inf")
    token = own.topk(min(8, len(own))).indices[None, :, None]
    nothing, one = torch.zeros_like(token), torch.ones(1, 1, dtype=torch.long, device=token.device)
    read = Choices(one, nothing[:, 0], one.bool()[None], nothing, token, nothing == 0, torch.ones(1, dtype=torch.bool, device=token.device))
    mine = read.read(vlm, seen[0][None, None])[0, 0]
    return _largest(mine - own.log_softmax(-1)[token[0, :, 0]]) / max(1.0, float(own.abs().max()))


def _larger_scores(vlm: VLM, question: Question, prefix: Prefix) -> float:
    """How far the clean runs are apart where attention logits are made as large as the cap on them; 0 without such a cap."""
    capped = [
        (attention, cap, kept.keys)
        for block in vlm.head_layers
        if (cap := getattr(attention := block.attention(), "attn_logit_softcapping", None)) is not None
        and isinstance(kept := prefix.layers[block.number], PrefixLayer)
    ]
    if not capped:
        return 0.0
    usual = [attention.scaling for attention, _, _ in capped]
    try:
        for attention, cap, keys in capped:
            size = float(keys.float().square().sum(-1).mean()) * attention.scaling
            attention.scaling *= max(1.0, cap / max(size, 1e-6))
        own = reference_work(vlm, (0, question), None, "auto")["clean"][0]
        return _largest(packed_batch(vlm, read_prefix(vlm, [question]), None)[0][0] - own)
    finally:
        for (attention, _, _), scaling in zip(capped, usual, strict=True):
            attention.scaling = scaling


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
    scale = torch.ones(1, 1, vlm.n_heads, dtype=torch.float32)
    scale[..., 0] = 0
    return forward(vlm, inputs, {vlm.n_layers // 2: LayerEdit(0, scale)}, inputs["input_ids"].shape[1], "last")[0, -1].float()


def _plain_nnsight(vlm: VLM, question: Question) -> Tensor:
    """The same logits, as a user would compute them with nnsight."""
    block = vlm.head_layers[vlm.n_layers // 2]
    with vlm.trace(question, use_cache=False):
        block.output(vlm.layers[block.number]).input[:, -1, : block.head_dim] = 0
        logits = vlm.nn.output.logits[0, -1].save()
    return logits.float()


def _largest(difference: Tensor) -> float:
    return float(difference.nan_to_num(float("inf")).abs().max())
