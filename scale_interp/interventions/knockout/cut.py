"""Attention computed again for the rows of an `AttentionEdit`: in packed rows after a prompt, in suffixes, and in whole passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...core.there import there
from ...data.question import Question
from ...vlm.vlm import VLM
from ..prefix import Prefix
from ..rows import NAME as PACKED
from ..rows import attention, packed_attention, sink_logits, with_own_temperature
from ..suffix_attention import Seen
from ..whole_prompt import WholePrompts
from ..written_out import BASES, base_of, masked, require_same, softmax
from .edit import AttentionEdit, Mode

NAME = "scale_interp_cut_"
UNDERFLOW = 104.0
"""A score that is smaller than the largest by this has a weight of exactly 0 in float32: who takes it away changes nothing."""


@dataclass(frozen=True)
class Cut:
    """What changes in one pass over B prompts: n variants of R rows, over C columns of which a layer may have only the last ones.

    Attributes:
        mode: As in `AttentionEdit`.
        heads: Which heads each variant edits, [n, L, H].
        source: Which rows are edited, [B, R].
        target: The columns that the source attends to, [B, n, C], or [B, 1, C] for all variants.
        image: The columns of the image, [B, C].
    """

    mode: Mode
    heads: Bool[Tensor, "variants layers heads"]
    source: Bool[Tensor, "questions rows"]
    target: Bool[Tensor, "questions _ columns"]
    image: Bool[Tensor, "questions columns"]

    def of(self, variants: Int[Tensor, " some"]) -> Cut:
        """The same for some of the variants."""
        target = self.target if self.target.shape[1] == 1 else self.target[:, there(variants, self.target.device)]
        return replace(self, heads=self.heads[there(variants, self.heads.device)], target=target)

    def on(self, device: torch.device) -> Cut:
        """The same for layers on this device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("heads", "source", "target", "image")})

    @property
    def away(self) -> Bool[Tensor, "questions _ columns"]:
        """The columns that the source no longer sees, its own apart."""
        return {"block": self.target, "only": ~self.target, "move": self.image[:, None] & ~self.target}[self.mode]

    def rewrite(
        self, scores: Float[Tensor, "questions heads variants rows keys"], own: Bool[Tensor, "rows keys"]
    ) -> tuple[Float[Tensor, "questions heads variants rows keys"], Bool[Tensor, "questions heads variants rows 1"]]:
        """The scores of all heads after the edit, and which rows it changes.

        Args:
            scores: Scores after the mask, -inf where a row does not see a key.
            own: Each row's own key.

        Returns:
            The scores, and True for rows of the source that saw something of what is taken away.
        """
        image = self.image[:, None, None, None, -scores.shape[-1] :]
        target, away = (columns[:, None, :, None, -scores.shape[-1] :] for columns in (self.target, self.away))
        away = away & ~own
        changed = scores.masked_fill(away, float("-inf"))
        if self.mode == "move":
            on_image, on_target = (
                scores.masked_fill(~columns | own, float("-inf")).logsumexp(-1, keepdim=True) for columns in (image, target)
            )
            away = away & on_target.isfinite()  # a row that sees nothing of the target has nowhere to move its attention to
            changed = torch.where(target & ~own & on_target.isfinite(), scores + (on_image - on_target), scores)
            changed = changed.masked_fill(away, float("-inf"))
        weighs = scores > scores.amax(-1, keepdim=True) - UNDERFLOW
        return changed, (away & weighs).any(-1, keepdim=True) & self.source[:, None, None, :, None]


_RUNNING: dict[nn.Module, tuple[Cut, int]] = {}
"""The decoder's attention modules during a pass, with their layer's number."""


@contextmanager
def _running(vlm: VLM, cut: Cut, name: str) -> Iterator[None]:
    modules = [block.attention() for block in vlm.head_layers]
    with attention(vlm.decoder, NAME + name):
        _RUNNING.update({module: (cut, number) for number, module in enumerate(modules)})
        try:
            yield
        finally:
            for module in modules:
                del _RUNNING[module]


@contextmanager
def cut_rows(vlm: VLM, prefix: Prefix, edit: AttentionEdit, variants: Tensor) -> Iterator[None]:
    """A block in which the decoder runs the clean rows and these variants, in this order, after the prompts that were read.

    Args:
        vlm: The model.
        prefix: B prompts that were read.
        edit: The edit, whose source is the prompt's last token.
        variants: The numbers of the variants, in the order in which their rows join.
    """
    P, R = prefix.seen.shape[1], prefix.choices.tokens.shape[1]
    parts = []
    for question, ids, seen, last in zip(prefix.questions, prefix.tokens, prefix.seen, prefix.choices.tokens[:, :1], strict=True):
        tokens = edit.tokens(vlm, question, torch.cat([ids[seen], last]), variants)
        parts.append([F.pad(part, (P + 1 - part.shape[-1], R - 1)) for part in tokens])
    source, target, image = (torch.stack(part).to(vlm.device) for part in zip(*parts, strict=True))
    with _running(vlm, Cut(edit.mode, edit.heads[variants], source[:, P:], target, image), PACKED):
        yield


@contextmanager
def cut_whole(vlm: VLM, question: Question, edit: AttentionEdit, variant: int) -> Iterator[None]:
    """A block in which whole passes over a question's prompt, and over answers after it, run one variant."""
    tokens = edit.tokens(vlm, question, vlm.encode(question)["input_ids"][0], torch.tensor([variant]))
    source, target, image = (part[None].to(vlm.device) for part in tokens)
    with _running(vlm, Cut(edit.mode, edit.heads[variant][None], source, target, image), base_of(vlm.decoder)):
        yield


def cut_of_suffix(vlm: VLM, prompts: WholePrompts, edit: AttentionEdit, variants: Tensor, first: int) -> Cut:
    """What changes in a run of suffixes.

    Args:
        vlm: The model.
        prompts: B prompts that were read in full.
        edit: The edit.
        variants: The numbers of the variants, in the order in which they join.
        first: The first column that is run again.
    """
    parts = []
    for question, pad in zip(prompts.questions, prompts.pads, strict=True):
        tokens = edit.tokens(vlm, question, vlm.encode(question)["input_ids"][0], variants)
        parts.append([F.pad(part, (pad, prompts.rows - 1)) for part in tokens])
    source, target, image = (torch.stack(part).to(vlm.device) for part in zip(*parts, strict=True))
    return Cut(edit.mode, edit.heads[variants], source[:, first:], target, image)


def reached(cut: Cut, prompts: WholePrompts, first: int) -> Bool[Tensor, " questions"]:
    """The questions in which a row of the source sees something of what is taken away; the others are the clean run, bit for bit."""
    away = cut.away.any(1)
    others = ~torch.eye(away.shape[1], dtype=torch.bool, device=away.device)[first:]
    masks = {id(layer.seen): layer.seen for layer in prompts.layers}.values()
    parts = [layer[:, 0, first:].to(away.device) & cut.source[:, :, None] & away[:, None] & others for layer in masks]
    return torch.stack([part.flatten(1).any(1) for part in parts]).any(0)


def cut_suffix(
    cut: Cut,
    layer: int,
    lead: int,
    seen: Seen,
    query: Float[Tensor, "runs heads rows head_dim"],
    out: Float[Tensor, "runs heads rows value_dim"],
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Float[Tensor, "runs heads rows value_dim"]:
    """The output of one layer's suffixes with the edited heads of the source's rows computed again.

    Args:
        cut: What changes.
        layer: The layer.
        lead: How many runs of each question stay unedited; the variants come after them.
        seen: The rows' keys and values, those of the prefix, and which of them a row sees.
        query: [B * (lead + n), H, S, D].
        out: The unedited output [B * (lead + n), H, S, Dv].
        scaling: The factor on the products.
        softcap: The soft cap of the scores, if there is one.
        sinks: Attention sinks [H], if there are any.
    """
    B, (N, H, S, _) = len(cut.source), query.shape
    cut = cut.on(query.device)
    heads = cut.heads[: N // B - lead, layer]
    active, rows = heads.any(-1).nonzero()[:, 0], cut.source.any(0).nonzero()[:, 0]
    if not len(active) or not len(rows):
        return out

    def edited(part: Tensor) -> Tensor:
        """The edited variants' part [B, a, H, S, D]."""
        return part.repeat_interleave(H // part.shape[1], 1).view(B, -1, H, S, part.shape[-1])[:, active + lead]

    queries, (keys, values) = edited(query)[..., rows, :], map(edited, seen.given)
    scores, sees = queries @ keys.mT, seen.own[:, :, rows]
    K = 0 if seen.keys is None else seen.keys.shape[2]
    if seen.keys is not None and seen.values is not None:
        first_keys, first_values = (x.to(query.device).repeat_interleave(H // x.shape[1], 1)[:, None] for x in (seen.keys, seen.values))
        before = sees.new_ones(1, 1, len(rows), K) if seen.before is None else seen.before[:, :, rows]
        many = max(len(before), len(sees))
        scores = torch.cat([queries @ first_keys.mT, scores], -1)
        sees = torch.cat([before.expand(many, -1, -1, -1), sees.expand(many, -1, -1, -1)], -1)
    scores = scores.float() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~sees[:, None].to(query.device), float("-inf")).transpose(1, 2)
    scores, changed = replace(cut.of(active), source=cut.source[:, rows]).rewrite(scores, F.one_hot(rows + K, K + S).bool())
    weights = softmax(scores, sinks).transpose(1, 2).to(values.dtype)
    again = weights[..., K:] @ values
    if K:
        again = again + weights[..., :K] @ first_values
    whole = out.reshape(B, -1, H, S, out.shape[-1]).clone()
    part = whole[:, active + lead]
    use = changed.transpose(1, 2) & heads[active][None, :, :, None, None]
    part[..., rows, :] = torch.where(use, again, part[..., rows, :])
    whole[:, active + lead] = part
    return whole.view(out.shape)


def _attend_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **given: Any
) -> tuple[Tensor, None]:
    """Packed attention [B, (1 + n) * R, H, D], with the edited heads of the variants computed again."""
    out = packed_attention(module, query, key, value, attention_mask, scaling, **given)[0]
    if module not in _RUNNING:  # a layer of cross-attention
        return out, None
    cut, layer = _RUNNING[module]
    (B, H, S, D), R, Hkv = query.shape, attention_mask.shape[2], key.shape[1]
    n, K, G = S // R, key.shape[2] - S, H // key.shape[1]
    cut = cut.on(query.device)
    heads = cut.heads[: n - 1, layer]
    active = heads.any(-1).nonzero()[:, 0]
    if not len(active):
        return out, None
    a, rows, Dv = len(active), active + 1, value.shape[-1]
    query = with_own_temperature(module, query, attention_mask)
    queries = query.view(B, Hkv, G, n, R, D)[:, :, :, rows]
    keys, values = (part[:, :, K:].view(B, Hkv, 1, n, R, -1)[:, :, :, rows] for part in (key, value))
    to_prompt = (queries.reshape(B, Hkv, -1, D) @ key[:, :, :K].mT).view(B, Hkv, G, a, R, K)
    scores = torch.cat([to_prompt, queries @ keys.mT], -1).float().view(B, H, a, R, K + R) * scaling
    if (softcap := given.get("softcap")) is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~attention_mask[:, :, None, :, -R - K :], float("-inf"))
    own = torch.eye(R, K + R, dtype=torch.bool, device=query.device).roll(K, 1)
    scores, changed = cut.of(active).rewrite(scores, own)
    weights = softmax(scores, sink_logits(module, given)).to(value.dtype).view(B, Hkv, G, a, R, K + R)
    from_prompt = (weights[..., :K].reshape(B, Hkv, -1, K) @ value[:, :, :K]).view(B, Hkv, G, a, R, Dv)
    again = (from_prompt + weights[..., K:] @ values).view(B, H, a, R, Dv)
    whole = out.transpose(1, 2).view(B, H, n, R, Dv)
    edited = torch.where(changed & heads[active].T[None, :, :, None, None], again, whole[:, :, rows])
    return whole.index_copy(2, rows, edited).view(B, H, S, Dv).transpose(1, 2), None


def _attend_whole(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """The base function's output [1, S, H, D], with the edited heads of the source computed again."""
    capped = {} if softcap is None else {"softcap": softcap}
    out = BASES[base](module, query, key, value, attention_mask, scaling=scaling, **capped, **given)[0]
    if module not in _RUNNING:  # a layer of cross-attention
        return out, None
    cut, layer = _RUNNING[module]
    cut = cut.on(query.device)
    heads, rows = cut.heads[0, layer], cut.source[0].nonzero()[:, 0]
    if not heads.any() or not len(rows):
        return out, None
    H, S, D = query.shape[1:]
    keys, values = (part.repeat_interleave(H // key.shape[1], 1) for part in (key, value))
    scores = (query[:, :, rows] @ keys.mT).float() * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores, sinks, kept = masked(scores, attention_mask, rows, S), sink_logits(module, given), out[:, rows].transpose(1, 2)
    require_same(module, layer, softmax(scores, sinks).to(value.dtype) @ values, kept, attention_mask, rows)
    scores = scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 2, float("-inf"))
    after = S - cut.target.shape[-1]  # tokens of an answer
    here = Cut(cut.mode, cut.heads, cut.source[:, rows], F.pad(cut.target, (0, after)), F.pad(cut.image, (0, after)))
    own = F.one_hot(rows, S).bool()
    scores, changed = (part[:, :, 0] for part in here.rewrite(scores[:, :, None], own))
    again = softmax(scores, sinks).to(value.dtype) @ values
    edited = torch.where(changed & heads[None, :, None, None], again, kept).transpose(1, 2)
    return out.index_copy(1, rows, edited.to(out.dtype)), None


AttentionInterface.register(NAME + PACKED, _attend_rows)
for _name in ("sdpa", "eager"):
    AttentionInterface.register(NAME + _name, partial(_attend_whole, _name))
    AttentionMaskInterface.register(NAME + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])
