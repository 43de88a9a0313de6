"""Direct logit attribution: what each head writes into the answer's logits by itself, past all later layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.arguments import checked
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, ModelError, RunWarning
from ..execution.batches import Batches, BatchResult, SingleQuestions, map_batches
from ..interventions.check import TOLERANCE
from ..interventions.engine import Path, choose_path
from ..interventions.parts import halving
from ..interventions.prefix import Prefix, PrefixStore
from ..interventions.rows import attention
from ..vlm.decoder import HeadLayer, mlp_rows, stream_of
from ..vlm.families import after_head
from ..vlm.plain import device_of, is_plain
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap

QUANTISED = 1e-2
"""Largest relative error up to which a layer that rounds its activations, to 8 bits or bfloat16, counts as linear."""
NORM_TOLERANCE = 1e-4
"""Largest relative error, in float32, up to which a norm counts as a gain times one number."""


@checked
def logit_attribution(vlm: VLM, questions: Sequence[Question], *, path: Path = "auto") -> HeadMap:
    """How much of the logit difference each head of the last token writes directly (Elhage et al. 2021; nostalgebraist 2020).

    score = W_O z of the head, through the norms with their scales frozen at this run's values, projected onto the unembedding of the
    right choice minus that of the largest other choice. Scores are logits before a final soft cap (Gemma 2). Together with the o_proj
    biases, the MLPs and the embedding they sum to the logit difference. Choices of several tokens are read at their first token.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        A HeadMap, per_question [Q, L, H] in logits.

    Raises:
        DataError: for choices that begin with the same token.
        ModelError: for a norm that is not a gain times one number, and for a family whose heads and MLPs do not add up to its residual
            stream.

    >>> import scale_interp as si
    >>> logit_attribution(si.load("demo"), si.load_questions("scenes/relation", n=4)).unit
    'logit diff'
    """
    questions = require(questions)
    for question in questions:
        _first_tokens(vlm, question)
    path = choose_path(vlm, questions, path)
    packed = path == "packed"
    batches: Batches = PrefixStore(vlm, questions, keep=False) if packed else SingleQuestions(questions)
    parts = [part["shares"] for part in map_batches(vlm, batches, prefix_work if packed else single_work, "reading activations")]
    made = provenance(vlm, questions, metric="logit_diff", path=path)
    return HeadMap("logit attribution", "logit diff", torch.cat(parts), torch.from_numpy(groups(questions)), made)


@dataclass(frozen=True)
class Stream:
    """The last token's residual stream in parts: z [B, L, H, D], mlp [B, L, d], and the stream's start and end [B, d]."""

    z: Float[Tensor, "questions layers heads dim"]
    mlp: Float[Tensor, "questions layers width"]
    start: Float[Tensor, "questions width"]
    end: Float[Tensor, "questions width"]

    def check(self, vlm: VLM) -> None:
        """Raise ModelError where start, heads and MLPs do not add up to the end: this family has a step that is not known here."""
        total = self.start.float()
        for number, block in enumerate(vlm.head_layers):
            _, norm = block.norms
            mlp = self.mlp[:, number] if norm is None else norm(self.mlp[:, number])
            total = total + heads_out(block, self.z[:, number]).to(total.device) + block.multiplier * mlp.to(total.device)
        away = float((total - self.end).norm() / self.end.float().norm())
        if away > TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16]):
            beside = " and ".join(dict.fromkeys(name for block in vlm.head_layers for name in block.beside))
            raise ModelError(
                f"{vlm.name} ({vlm.family}): heads and MLPs miss the residual stream by {away:.1g} of its length"
                f"{f', which its layers change by {beside} as well' if beside else ''}, so a head's own share of it is not known: "
                "use patch or ablate"
            )


@torch.no_grad()
def read_stream(vlm: VLM, prefix: Prefix) -> Stream:
    """Read the clean last tokens of a batch of prompts, by the packed path."""
    ends: list[Tensor] = []
    heads: list[Tensor] = []
    mlps: list[Tensor] = []
    with prefix.state_layers(vlm), attention(vlm.decoder), vlm.text.trace(**prefix.inputs(apart=vlm.parts.keys_as_cached)):
        _record(vlm, vlm.text_layers, vlm.text_norm, 0, ends, heads, mlps)
    return _stream(vlm, ends, heads, mlps)


@halving
def prefix_work(vlm: VLM, prefix: Prefix) -> BatchResult:
    """One batch's shares of the logit difference [B, L, H]."""
    return {"shares": _contributions(vlm, read_stream(vlm, prefix), prefix.questions)}


@torch.no_grad()
def single_work(vlm: VLM, batch: tuple[int, Question]) -> BatchResult:
    """One question's shares [1, L, H], from a whole forward pass."""
    _, question = batch
    ends: list[Tensor] = []
    heads: list[Tensor] = []
    mlps: list[Tensor] = []
    with vlm.alone(), vlm.nn.trace(**vlm.encode(question), use_cache=False):
        _record(vlm, vlm.layers, vlm.view(vlm.norm), -1, ends, heads, mlps)
    return {"shares": _contributions(vlm, _stream(vlm, ends, heads, mlps), [question])}


def _record(vlm: VLM, layers: Any, norm: Any, row: int, ends: list[Tensor], heads: list[Tensor], mlps: list[Tensor]) -> None:
    """Record the stream's parts at one row, inside a trace; what layers without heads add counts to its start."""
    if vlm.parts.others:
        _record_hybrid(vlm, layers, norm, row, ends, heads, mlps)
        return
    start = layers[0].input
    B = len(start)
    ends.append(start[:, row].clone())
    for block in vlm.head_layers:
        layer = layers[block.number]
        heads.append(block.split(block.output(layer).input[:, row].clone(), vlm.head_dim))
        mlps.append(mlp_rows(block.mlp(layer).output, B)[:, row].clone())
    ends.append(stream_of(layers[-1].output)[:, row].clone())


def _record_hybrid(vlm: VLM, layers: Any, norm: Any, row: int, ends: list[Tensor], heads: list[Tensor], mlps: list[Tensor]) -> None:
    start = last = None
    for block in vlm.head_layers:
        layer = layers[block.number]
        stream = layer.input[:, row].clone()
        start = stream if start is None or last is None else start + (stream - last)
        heads.append(block.split(block.output(layer).input[:, row].clone(), vlm.head_dim))
        mlps.append(mlp_rows(block.mlp(layer).output, len(stream))[:, row].clone())
        last = stream_of(layer.output)[:, row].clone()
    end = norm.input[:, row].clone()
    ends.extend([start + (end - last), end])


def _stream(vlm: VLM, ends: list[Tensor], heads: list[Tensor], mlps: list[Tensor]) -> Stream:
    start, end = ends
    if start.shape[-1] != vlm.d_model:
        raise ModelError(
            f"{vlm.name} ({vlm.family}): its layers hand on {start.shape[-1] / vlm.d_model:g} streams side by side, so a head's own share "
            "of what is read is not known: use patch or ablate"
        )
    z, mlp = (torch.stack([part.to(end.device) for part in parts], 1) for parts in (heads, mlps))
    stream = Stream(z, mlp, start.to(end.device), end)
    stream.check(vlm)
    return stream


def heads_out(block: HeadLayer, z: Float[Tensor, "*rows heads dim"]) -> Float[Tensor, "*rows width"]:
    """What a layer's heads z [..., H, D] add to the residual stream [..., d], including a norm and a multiplier between them."""
    norm, output = block.norms[0], block.output()
    total = output(block.join(z).to(device_of(output, z.device)))
    return block.multiplier * (total if norm is None else norm(total))


@torch.no_grad()
def _contributions(vlm: VLM, stream: Stream, questions: Sequence[Question]) -> Tensor:
    """Each head's share of the logit difference, [B, L, H]."""
    firsts = [_first_tokens(vlm, q) for q in questions]
    unembed = vlm.head
    logits = unembed(vlm.norm(stream.end)).float()
    right = torch.tensor([tokens[q.answer] for q, tokens in zip(questions, firsts, strict=True)])
    other = torch.tensor([_largest_other(row, q, tokens) for row, q, tokens in zip(logits, questions, firsts, strict=True)])
    factor, _ = after_head(vlm.hf_model)
    frozen = factor * _norm_factors(vlm, vlm.norm, stream.end)
    shares = []
    for number, block in enumerate(vlm.head_layers):
        z, o_proj, norm = stream.z[:, number, :, : block.head_dim], block.output(), block.norms[0]
        here = frozen * block.multiplier
        if norm is not None:
            here = here * _norm_factors(vlm, norm, o_proj(z.flatten(1).to(device_of(o_proj, z.device)))).to(here.device)
        if is_plain(unembed) and is_plain(o_proj):
            onto = unembed.weight[right.to(unembed.weight.device)].float() - unembed.weight[other.to(unembed.weight.device)].float()
            read = (onto.to(here.device) * here) @ o_proj.weight.float().to(here.device)
            shares.append((read.view(z.shape) * z.float()).sum(-1))
        else:
            written = _written(vlm, number, o_proj, z).to(here.device).float() * here[:, None]
            shares.append(_difference(vlm, unembed, written, right, other).to(here.device))
    return torch.stack(shares, 1)


def _written(vlm: VLM, number: int, o_proj: Any, z: Tensor) -> Tensor:
    """What each head of z [B, H, D] adds by itself, [B, H, d], by calling a projection that is more than its weight."""
    place = device_of(o_proj, z.device)
    each = torch.diag_embed(z.movedim(1, -1)).movedim(1, -1).flatten(2).to(place)  # [B, H, H * D], zero outside of its own head
    nothing = o_proj(torch.zeros_like(each[:, :1]))
    written = o_proj(each) - nothing
    _require_linear(vlm, f"o_proj of layer {number}", o_proj, written.sum(1), o_proj(z.flatten(1).to(place)) - nothing[:, 0])
    return written


def _difference(vlm: VLM, unembed: Any, written: Tensor, right: Tensor, other: Tensor) -> Tensor:
    """Logit of right minus that of other for each of written [B, n, d], without a bias: [B, n]; the head is called."""
    weight = next(iter(unembed.parameters()), written)
    rows = written.to(device_of(unembed, written.device), weight.dtype if weight.is_floating_point() else vlm.dtype)
    both = torch.stack([right, other], 1).to(rows.device)
    nothing = unembed(torch.zeros_like(rows[:1, 0])).float()[0, both]
    read = torch.stack([unembed(row).float()[:, pair] for row, pair in zip(rows, both, strict=True)]) - nothing[:, None]
    whole = torch.stack([unembed(row.sum(0)[None]).float()[0, pair] for row, pair in zip(rows, both, strict=True)]) - nothing
    _require_linear(vlm, "the output embedding", unembed, read.sum(1), whole)
    return read[..., 0] - read[..., 1]


def _require_linear(vlm: VLM, what: str, module: nn.Module, parts: Tensor, whole: Tensor) -> None:
    """ModelError where a module's outputs for the heads do not add up to its output for them all, RunWarning where they nearly do."""
    away = float((parts.float() - whole.float()).norm() / whole.float().norm().clamp(min=1e-6))
    allowed = TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16])
    if allowed < away <= QUANTISED:
        warnings.warn(
            f"{vlm.name}: a quantised {type(module).__name__} computes in few bits, so what heads write by themselves adds up to what they "
            f"write together only within {QUANTISED:.0%}",
            RunWarning,
            stacklevel=4,
        )
    elif away > allowed:
        raise ModelError(
            f"{vlm.name}: {what} is a {type(module).__name__} that is not linear (off by {away:.1g}), so a head's own share is not known: "
            "load the model without quantisation, or use patch or ablate"
        )


def _largest_other(logits: Tensor, question: Question, tokens: list[int]) -> int:
    wrong = [t for i, t in enumerate(tokens) if i != question.answer]
    return wrong[int(logits[torch.tensor(wrong, device=logits.device)].argmax())]


def _first_tokens(vlm: VLM, question: Question) -> list[int]:
    """The first token of each choice, all different."""
    tokens = [ids[0] for ids in vlm.choice_ids(question)]
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            same = question.choices[tokens.index(token)]
            raise DataError(
                f"question {question.id}: choices {same!r} and {question.choices[i]!r} begin with the same token, "
                "so no single logit tells them apart: use other words, or ablate"
            )
    return tokens


def _norm_factors(vlm: VLM, norm: nn.Module, x: Tensor) -> Tensor:
    """The factors m [B, d] with which norm(x) = m * x: the norm's gain times one number per row.

    An RMS norm of ones is its gain, so nothing needs to be known about its class.
    """
    x = x.float()
    y, gain = norm(x).float(), norm(torch.ones_like(x)).float()
    fitted = (y * gain * x).sum(-1, keepdim=True) / (gain * x).square().sum(-1, keepdim=True)
    if not (y - fitted * gain * x).norm() <= NORM_TOLERANCE * y.norm():
        name = next(name for name, module in vlm.decoder.named_modules() if module is norm)
        raise ModelError(
            f"{vlm.name} ({vlm.family}): {name} ({type(norm).__name__}) is not a gain times one number, the only norm through which a "
            "head's share is read: use patch or ablate"
        )
    return fitted * gain
