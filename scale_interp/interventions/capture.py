"""What the last token's heads and MLPs hold, read through plain nnsight traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.items import require
from ..data.question import Question
from ..models.vlm import VLM
from ..progress import track
from .choices import read_choices


@dataclass(frozen=True)
class Activations:
    """z [Q, L, H, D] before W_O; mlp [Q, L, d_model]; logits [Q, C] over the choices' first tokens."""

    z: Tensor
    mlp: Tensor
    logits: Tensor

    def __repr__(self) -> str:
        return f"<Activations z {list(self.z.shape)}, mlp {list(self.mlp.shape)}, logits {list(self.logits.shape)}>"


@torch.no_grad()
def capture(vlm: VLM, questions: Question | Sequence[Question], batch_size: int = 16) -> Activations:
    """Read z and MLP outputs of the prompt's last token in whole, unedited forward passes.

    Questions of one prompt length share a batch, so no padding enters the numbers.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> si.capture(vlm, qs).z.shape
    torch.Size([4, 6, 8, 16])
    """
    questions = require(questions)
    lengths = [vlm.encode(q)["input_ids"].shape[1] for q in questions]
    batches = [
        members[i : i + batch_size]
        for length in sorted(set(lengths))
        for members in [[q for q, n in enumerate(lengths) if n == length]]
        for i in range(0, len(members), batch_size)
    ]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for members in track(batches, "reading activations", len(batches)):
        batch = [questions[q] for q in members]
        inputs = vlm.encode(batch)
        heads, mlps = [], []
        with vlm.nn.trace(**inputs, use_cache=False):
            for layer in vlm.layers:
                heads.append(layer.self_attn.o_proj.input[:, -1].clone().cpu())
                mlps.append(layer.mlp.output[:, -1].clone().cpu())
            logits = vlm.nn.output.logits[:, -1].clone().save()
        z = torch.stack(heads, 1).unflatten(-1, (vlm.n_heads, vlm.head_dim))
        scores = _choice_logits(vlm, batch, inputs["input_ids"][:, -1], logits)
        found |= {q: (z[i], torch.stack(mlps, 1)[i], scores[i].cpu()) for i, q in enumerate(members)}
    ordered = [found[q] for q in range(len(questions))]
    C = max(len(logits) for _, _, logits in ordered)
    padded = [torch.nn.functional.pad(logits, (0, C - len(logits)), value=float("-inf")) for _, _, logits in ordered]
    return Activations(torch.stack([z for z, _, _ in ordered]), torch.stack([m for _, m, _ in ordered]), torch.stack(padded))


def _choice_logits(vlm: VLM, questions: Sequence[Question], last: Tensor, logits: Tensor) -> Tensor:
    choices = read_choices(vlm, questions, last)
    first = choices.token[..., 0].to(logits.device)
    return logits.gather(1, first).float().masked_fill(~choices.used[..., 0].to(logits.device), float("-inf"))
