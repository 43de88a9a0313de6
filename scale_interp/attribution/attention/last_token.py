"""What the prompt's last token attends to: its attention weights over the whole prompt, per layer and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn
from transformers import AttentionInterface

from ...core.arguments import checked
from ...core.out_of_memory import out_of_memory
from ...data.items import require
from ...data.question import Question
from ...errors import ModelError
from ...execution.batches import Batches, BatchResult, SingleQuestions, map_batches
from ...interventions.engine import Path, choose_path
from ...interventions.prefix import Prefix, PrefixStore
from ...interventions.reference import run_reference
from ...interventions.rows import attention, of_images, sink_logits, with_own_temperature
from ...vlm.vlm import VLM
from .grid import PatchGrid

INTERFACE = "scale_interp_weights"
NEIGHBOURS = np.ones((3, 3), dtype=int)
"""A patch's neighbours: left, right, above, below, and at the corners."""


def attention_with_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attention of R rows over a cached prompt of K tokens and over each other, and its weights.

    Args:
        module: not used; part of transformers' interface.
        query: [B, H, R, D].
        key: [B, Hkv, K + R, D].
        value: [B, Hkv, K + R, D].
        attention_mask: [B, 1, R, P + R], True where a row sees a token; P >= K, as a sliding layer keeps the last K of P tokens.
        scaling: what the logits are multiplied by.
        dropout: not used.
        softcap: the bound of a soft cap on the logits, if there is one.

    Returns:
        The output [B, R, H, D], and the weights [B, H, R, K + R] in float32.
    """
    if attention_mask.is_floating_point():  # a layer of cross-attention, whose weights nobody asks for
        return of_images(query, key, value, attention_mask, scaling), attention_mask
    query = with_own_temperature(module, query, attention_mask)
    B, H, R, D = query.shape
    Hkv, S = key.shape[1:3]
    scores = (query.reshape(B, Hkv, H // Hkv * R, D) @ key.mT).float().view(B, H, R, S) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~attention_mask[..., -S:], float("-inf")).softmax(-1)
    out = weights.to(value.dtype).view(B, Hkv, H // Hkv * R, S) @ value
    return out.view(B, H, R, -1).transpose(1, 2), weights


AttentionInterface.register(INTERFACE, attention_with_weights)


@checked
def read_attention(vlm: VLM, questions: Question | Sequence[Question], *, path: Path = "auto") -> list[Float[Tensor, "layers heads _"]]:
    """The last token's attention weights over its prompt; each head's sum to 1.

    Args:
        vlm: the model, from `si.load`.
        questions: one question, or several.
        path: "packed" reads attention from prompts that are read once, "reference" from whole forward passes, "auto" chooses.

    Returns:
        One tensor [L, H, T] per question.

    Raises:
        ModelError: where a layer's weights do not sum to 1.

    >>> import scale_interp as si
    >>> (weights,) = read_attention(si.load("demo"), si.load_questions("scenes/relation", n=1))
    >>> weights.shape[:2], bool((weights.sum(-1) - 1).abs().max() < 1e-5)
    (torch.Size([6, 8]), True)
    """
    questions = require(questions)
    return [weights for weights, _ in stream_attention(vlm, questions, choose_path(vlm, questions, path))]


def stream_attention(vlm: VLM, questions: Sequence[Question], path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights [L, H, T] and choice scores [C] of the questions in order, one batch in memory at a time."""
    if any(sink_logits(block.attention(), {}) is not None for block in vlm.head_layers):
        raise ModelError(
            f"{vlm.name} ({vlm.family}) has attention sinks, which take a share of every head's attention that no token has: its weights "
            "do not sum to 1; use a model without sinks, or edits of heads"
        )
    packed = path == "packed"
    batches: Batches = PrefixStore(vlm, questions, keep=False) if packed else SingleQuestions(questions)
    for found in map_batches(vlm, batches, prefix_work if packed else single_work, "reading attention"):
        for i in range(len(found) // 2):
            yield found[f"weights {i}"], found[f"scores {i}"]


@torch.no_grad()
def single_work(vlm: VLM, batch: tuple[int, Question]) -> BatchResult:
    """One question's weights and scores, from whole forward passes."""
    _, question = batch
    rows: list[Tensor] = []
    try:
        with attention(vlm.decoder, "eager"), vlm.nn.trace(**vlm.encode(question), use_cache=False):
            for block in vlm.head_layers:
                rows.append(block.attention(vlm.layers[block.number]).output[1][:, :, -1].clone())
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        said = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"{vlm.name} ({vlm.family}): its eager attention, the one that returns weights, fails on question {question.id} ({said}): "
            "use edits of heads"
        ) from error
    weights = torch.cat([row.cpu().float() for row in rows])
    scores = run_reference(vlm, question, 0, None, torch.zeros(1, dtype=torch.long))[0]
    return {"weights 0": _require_weights(vlm, weights, question), "scores 0": scores}


@torch.no_grad()
def prefix_work(vlm: VLM, prefix: Prefix) -> BatchResult:
    """One batch's weights and scores, one tensor per question, as prompts differ in length."""
    rows: list[Tensor] = []
    with prefix.state_layers(vlm), attention(vlm.decoder, INTERFACE), vlm.text.trace(**prefix.inputs()):
        for block in vlm.head_layers:
            rows.append(block.attention(vlm.text_layers[block.number]).output[1][:, :, 0].clone())
        hidden = vlm.text_norm.output.save()
    R, P = prefix.choices.tokens.shape[1], prefix.seen.shape[1]
    scores = prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))[:, 0]
    # A sliding layer has no columns for tokens outside its window; the last token's own column is the first after the prompt's.
    kept = [row.shape[-1] - R for row in rows]
    whole = [nn.functional.pad(row[..., : K + 1].cpu(), (P - K, 0)) for row, K in zip(rows, kept, strict=True)]
    found = {}
    for i, (question, row, seen, score) in enumerate(zip(prefix.questions, torch.stack(whole, 1), prefix.seen, scores, strict=True)):
        found[f"weights {i}"] = _require_weights(vlm, row[..., int((~seen).sum()) :], question)
        found[f"scores {i}"] = score[: len(question.choices)]
    return found


def _require_weights(vlm: VLM, weights: Tensor, question: Question) -> Tensor:
    """The weights, where each head's sum to 1. Raises ModelError elsewhere."""
    away = float((weights.sum(-1) - 1).abs().max())
    # bfloat16 weights of a whole forward pass are rounded
    if not away <= 0.05:
        raise ModelError(
            f"{vlm.name} ({vlm.family}), question {question.id}: attention weights sum to 1 only within {away:.2g}: "
            "its layers return something other than weights; use another model, or edits of heads"
        )
    return weights


def image_mass(weights: Float[Tensor, "layers heads tokens"], grid: PatchGrid) -> Float[Tensor, "layers heads"]:
    """The share of attention on tokens that show a part of an image: weights [L, H, T] give [L, H]."""
    return weights[..., grid.shown].sum(-1)


def spatial_entropy(weights: Float[Tensor, "layers heads tokens"], grid: PatchGrid) -> Float[Tensor, "layers heads"]:
    """How scattered each head's map over the image is (arXiv 2503.06287).

    The outcomes are the connected regions of what exceeds twice the map's mean (corners connect), and their shares of the excess are the
    probabilities; the factor 2 is the release's. The finest raster of each image is used, all images together.

    Args:
        weights: [L, H, T].
        grid: the patch grid of the prompt.

    Returns:
        Entropy [L, H] in nats: 0 where a single region exceeds the threshold, and log of the number of patches where nothing does.
    """
    L, H, _ = weights.shape
    n = sum(raster.tokens.numel() for raster in grid.finest)
    mean = sum((weights[..., raster.tokens].sum((-2, -1)) for raster in grid.finest), torch.zeros(L, H)).double() / n
    parts = [_connected_parts((weights[..., raster.tokens].double() - 2 * mean[..., None, None]).clamp(min=0)) for raster in grid.finest]
    excess = torch.cat([sums for sums, _ in parts])
    owner = torch.cat([owners for _, owners in parts])
    total = torch.zeros(L * H, dtype=torch.float64).index_add_(0, owner, excess)
    share = excess / total[owner]
    entropy = torch.zeros(L * H, dtype=torch.float64).index_add_(0, owner, torch.special.entr(share))
    return torch.where(total > 0, entropy, float(np.log(n))).view(L, H).float()


def _connected_parts(excess: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the connected regions of maps [L, H, R, C], and the number of the map that each is in."""
    maps = excess.flatten(0, 1).numpy()
    # All maps are labelled in one call, as nothing connects one map to the next.
    structure = np.stack([np.zeros((3, 3), int), NEIGHBOURS, np.zeros((3, 3), int)])
    labels, count = ndimage.label(maps > 0, structure)
    index = np.arange(1, count + 1)
    sums = ndimage.sum_labels(maps, labels, index)
    owner = ndimage.minimum(np.broadcast_to(np.arange(len(maps))[:, None, None], maps.shape), labels, index)
    return torch.as_tensor(np.asarray(sums, dtype=np.float64)), torch.as_tensor(np.asarray(owner, dtype=np.int64))
