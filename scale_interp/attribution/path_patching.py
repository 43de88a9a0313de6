"""Path patching: which earlier heads feed a head, and through its query, its key or its value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import checked
from ..data.contrast import Contrast
from ..data.items import groups, require
from ..data.question import Question
from ..errors import EditError, ModelError
from ..execution.batches import BatchResult, map_batches
from ..interventions.edit import Head, LayerEdit, Scope, check_heads
from ..interventions.engine import Path, choose_path
from ..interventions.parts import halving
from ..interventions.paths import check_finite, packed_batch, variants_at_once
from ..interventions.prefix import Prefix, PrefixStore, StorePair
from ..interventions.rows import attention
from ..interventions.sweep import one_head_each
from ..vlm.decoder import HeadLayer
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap
from .logits import heads_out, read_stream
from .metric import contrast_diff
from .position_patching import checked_gap

Into = Literal["q", "k", "v"]


@checked
def path_patch(
    vlm: VLM, pairs: Sequence[Contrast], receivers: Iterable[Head], into: Into = "q", *, path: Path = "auto"
) -> dict[Head, HeadMap]:
    """What each earlier head writes directly into a receiver: one map of senders per receiver (Goldowsky-Dill et al. 2023).

    In the corrupt run, the sender's last-token output takes its value from the clean run, and that change reaches only the receiver's
    `into`. Heads and MLPs in between keep their corrupt values; from the receiver on everything is computed again. score = the
    recovered fraction of the logit difference, as in `patch`. Heads in the receiver's layer and later cannot reach it and score 0.

    Args:
        vlm: the model, from `si.load`.
        pairs: Q pairs from `si.contrasts`.
        receivers: (layer, head) pairs, not of layer 0.
        into: what the senders' change reaches: the receiver's query "q", or the last token's own key "k" or value "v".
        path: "auto" or "packed"; there is no reference path. Where a prompt attends in both directions, give "packed", which keeps
            the prompt frozen.

    Returns:
        A HeadMap for each receiver, per_question [Q, L, H]: recovered fractions.

    Raises:
        EditError: for receivers, `into` or a path that are not possible.
        ModelError: for a receiver's layer without q_proj, k_proj and v_proj.
        DataError: where clean and corrupt questions give the same logit difference.

    >>> import scale_interp as si
    >>> vlm, pairs = si.load("demo"), si.contrasts(si.load_questions("scenes/relation", n=4))
    >>> path_patch(vlm, pairs, [(4, 2)], into="q")[4, 2].scores.shape
    torch.Size([6, 8])
    """
    pairs, receivers = require(pairs, Contrast), _receivers(vlm, receivers, into)
    _require_packed(vlm, [p.corrupt for p in pairs], path)
    at_corrupt = PrefixStore(vlm, [p.corrupt for p in pairs], keep=False)
    at_clean = PrefixStore(vlm, [p.clean for p in pairs], at_corrupt.batch_size, keep=False)
    work = partial(path_work, receivers=tuple(receivers), into=into)
    found_parts = [*map_batches(vlm, StorePair(at_clean, at_corrupt), work, "path patching")]
    effects, gap = torch.cat([part["effects"] for part in found_parts]), checked_gap(torch.cat([part["gaps"] for part in found_parts]))
    made = provenance(vlm, pairs, metric="recovered logit_diff", path="packed", gap=gap, into=into)
    parts = (effects / gap).split([vlm.n_heads * layer for layer, _ in receivers], 1)
    found = {}
    for (layer, head), part in zip(receivers, parts, strict=True):
        scores = F.pad(part, (0, vlm.n_heads * (vlm.n_layers - layer))).unflatten(1, (vlm.n_layers, vlm.n_heads))
        about = made | {"receiver": [layer, head]}
        method = f"path patch into {into} of ({layer}, {head})"
        found[layer, head] = HeadMap(method, "recovered fraction", scores, torch.from_numpy(groups(pairs)), about)
    return found


def _receivers(vlm: VLM, receivers: Iterable[Head], into: str) -> list[Head]:
    if into not in ("q", "k", "v"):
        raise EditError(f"into {into!r}: choose 'q', 'k' or 'v'")
    checked = check_heads(receivers, vlm.n_layers, vlm.n_heads)
    if not checked:
        raise EditError("no receivers: give at least one (layer, head)")
    for layer, head in checked:
        if layer == 0:
            raise EditError(f"receiver {(0, head)}: no head comes before layer 0; choose one of a later layer")
        if not all(hasattr(vlm.head_layers[layer].attention(), f"{name}_proj") for name in "qkv"):
            raise ModelError(f"{vlm.name} ({vlm.family}): layer {layer} has no q_proj, k_proj and v_proj of its own: use patch")
    return checked


def _require_packed(vlm: VLM, questions: Sequence[Question], path: Path) -> None:
    if vlm.quirks.bidirectional and path != "packed":
        raise EditError(
            f"{vlm.name} attends in both directions inside a prompt, so a last-token change reaches every token: "
            "use path='packed', which keeps the prompt frozen"
        )
    if not vlm.staircase:
        raise EditError(
            f"{vlm.name} ({vlm.family}): its layers hand on more than the residual stream, so paths cannot be told apart: use patch"
        )
    if choose_path(vlm, questions, path) != "packed":
        raise EditError(f"path patching of {vlm.name} has no reference path: use path='packed', or patch")


@halving
@torch.no_grad()
def path_work(vlm: VLM, batch: tuple[Prefix, Prefix], receivers: Sequence[Head], into: Into) -> BatchResult:
    """Change of the logit difference [B, N], senders of all receivers side by side, and m_clean - m_corrupt [B]."""
    at_clean, at_corrupt = batch
    pairs = [Contrast(*both) for both in zip(at_clean.questions, at_corrupt.questions, strict=True)]
    received = _receiver_values(vlm, at_corrupt, read_stream(vlm, at_clean).z, read_stream(vlm, at_corrupt).z, receivers, into)
    heads = tuple(r for r in receivers for _ in range(received[r].shape[1]))
    edit = HeadValues(heads, torch.cat([received[r] for r in receivers], 1), vlm.n_heads)
    clean, _ = packed_batch(vlm, at_clean, None)
    edited, unpatched = packed_batch(vlm, replace(at_corrupt, rows=slice(None)), edit)
    for prefix, scores in ((at_clean, clean), (at_corrupt, edited)):
        check_finite(vlm, prefix.questions, scores)
    m_corrupt = contrast_diff(unpatched, pairs)
    return {"effects": contrast_diff(edited, pairs) - m_corrupt, "gaps": (contrast_diff(clean, pairs) - m_corrupt)[:, 0]}


def _receiver_values(
    vlm: VLM, prefix: Prefix, z_clean: Tensor, z_corrupt: Tensor, receivers: Sequence[Head], into: Into
) -> dict[Head, Tensor]:
    """Each receiver's z [B, N, D] after each of its N senders changed what it reads."""
    stem = _last_token_only(prefix)
    layers = sorted({layer for layer, _ in receivers})
    senders = [(layer, head) for layer in range(layers[-1]) for head in range(vlm.n_heads)]
    at_once = variants_at_once(vlm, stem)
    found: dict[Head, list[Tensor]] = {r: [] for r in receivers}
    for start in range(0, len(senders), at_once):
        chunk = senders[start : start + at_once]
        by_layer = groupby(chunk, lambda sender: sender[0])
        change = torch.cat([_sender_change(vlm, layer, [head for _, head in some], z_clean, z_corrupt) for layer, some in by_layer], 1)
        z: dict[int, Tensor] = {}
        with stem.state_layers(vlm), attention(vlm.decoder), vlm.text.trace(**stem.inputs(apart=vlm.parts.keys_as_cached)):
            for number in layers:
                n = sum(layer < number for layer, _ in chunk)
                if n:
                    block = vlm.head_layers[number]
                    z[number] = _read_receiver_heads(block, vlm.text_layers[block.number], change[:, :n], into)
        for layer, head in receivers:
            if layer in z:
                found[layer, head].append(z[layer].unflatten(-1, (vlm.n_heads, -1))[:, :, head].to(change.device))
    return {receiver: torch.cat(parts, 1) for receiver, parts in found.items()}


def _last_token_only(prefix: Prefix) -> Prefix:
    """The prefix without the tree of longer choices: senders and receivers act at the prompt's last token."""
    choices = prefix.choices
    choices = replace(choices, tokens=choices.tokens[:, :1], depth=choices.depth[:, :1], own=choices.own[:, :1, :1])
    return replace(prefix, positions=prefix.positions[..., :1], choices=choices)


def _sender_change(vlm: VLM, layer: int, heads: list[int], z_clean: Tensor, z_corrupt: Tensor) -> Tensor:
    """How the corrupt residual stream changes if one of a layer's heads takes its clean value: [B, len(heads), d]."""
    corrupt = z_corrupt[:, layer, None]
    edited = corrupt.repeat(1, len(heads), 1, 1)
    edited[:, range(len(heads)), heads] = z_clean[:, layer, heads]
    block = vlm.head_layers[layer]
    return (heads_out(block, edited) - heads_out(block, corrupt)).to(z_corrupt.device)


def _read_receiver_heads(block: HeadLayer, layer: Any, change: Tensor, into: Into) -> Tensor:
    """Read z [B, n, H * D] of the layer's heads, inside a trace, if `into` alone reads the stream plus change [B, n, d]."""
    (hidden, *rest), kwargs = layer.inputs
    layer.inputs = (torch.cat([hidden, hidden + change.to(hidden.device)], 1), *rest), kwargs
    for name in "qkv":
        if name != into:
            projection = getattr(block.attention(layer), f"{name}_proj")
            projection.output = projection.output[:, :1].expand(-1, 1 + change.shape[1], -1)
    z = block.output(layer).input[:, 1:].clone()
    # Layers after a receiver see only the corrupt run.
    layer.output = layer.output[:, :1]
    return z


@dataclass(frozen=True)
class HeadValues:
    """An edit whose variant n sets heads[n] to values[:, n]; values [Q, N, D]."""

    heads: tuple[Head, ...]
    values: Float[Tensor, "questions variants dim"]
    n_heads: int
    scope: Scope = "last"

    @property
    def n_variants(self) -> int:
        """The number of variants, N."""
        return len(self.heads)

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError for values of another shape than the model and the questions have."""
        if self.values.shape != (n_questions, self.n_variants, head_dim):
            shape = [n_questions, self.n_variants, head_dim]
            raise EditError(f"values have shape {list(self.values.shape)}: give {shape}, one value per question and head")

    def starts(self, n_layers: int) -> Tensor:
        """The layer of each variant's head, [N]."""
        return torch.tensor([layer for layer, _ in self.heads])

    def part(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """The edit of the variants that start at this layer; alive is sorted by start, so they come last."""
        here = alive[starts == layer]
        if not len(here):
            return None
        index = [self.heads[i][1] for i in here.tolist()]
        values = self.values[rows][:, here.to(self.values.device)]
        return one_head_each(len(alive) - len(here), index, self.n_heads, 0.0, values)
