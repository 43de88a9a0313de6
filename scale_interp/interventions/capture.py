"""What the last token's heads and MLPs hold, read through plain nnsight traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import Count, checked
from ..core.notebook import NotebookView
from ..data.items import require
from ..data.question import Question
from ..execution.batches import BatchResult, Rows, map_batches
from ..vlm.vlm import VLM
from .choices import read_choices


@dataclass(frozen=True)
class Activations(NotebookView):
    """z [Q, L, H, D] before W_O; mlp [Q, L, d_model]; logits [Q, C] over the choices' first tokens.

    >>> import scale_interp as si
    >>> found = si.capture(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> found.z.shape, len(found.logits)
    (torch.Size([4, 6, 8, 16]), 4)
    """

    z: Tensor
    mlp: Tensor
    logits: Tensor

    def __repr__(self) -> str:
        return f"<Activations z {list(self.z.shape)}, mlp {list(self.mlp.shape)}, logits {list(self.logits.shape)}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        axes = {"z": "questions, layers, heads, numbers a head", "mlp": "questions, layers, numbers", "logits": "questions, choices"}
        return ({"part": name, "shape": str(list(getattr(self, name).shape)), "axes": axes_of} for name, axes_of in axes.items())


@checked
def capture(vlm: VLM, questions: Question | Sequence[Question], batch_size: Count = 16) -> Activations:
    """Read z and MLP outputs of the prompt's last token in whole, unedited forward passes.

    Questions of one prompt length share a batch, so no padding enters the numbers.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> si.capture(vlm, qs).z.shape
    torch.Size([4, 6, 8, 16])
    """
    questions = require(questions)
    batches = Rows.of_equal_length(vlm, questions, batch_size)
    found = [*map_batches(vlm, batches, capture_work, "reading activations")]
    z, mlp, logits = (batches.restore([part[name] for part in found]) for name in ("z", "mlp", "logits"))
    C = max(map(len, logits))
    padded = [torch.nn.functional.pad(row, (0, C - len(row)), value=float("-inf")) for row in logits]
    return Activations(torch.stack(z), torch.stack(mlp), torch.stack(padded))


@torch.no_grad()
def capture_work(vlm: VLM, questions: Sequence[Question]) -> BatchResult:
    inputs = vlm.encode(questions)
    heads, mlps = [], []
    with vlm.nn.trace(**inputs, use_cache=False):
        for layer in vlm.layers:
            heads.append(layer.self_attn.o_proj.input[:, -1].clone().cpu())
            mlps.append(layer.mlp.output[:, -1].clone().cpu())
        logits = vlm.nn.output.logits[:, -1].clone().save()
    z = torch.stack(heads, 1).unflatten(-1, (vlm.n_heads, vlm.head_dim))
    scores = _choice_logits(vlm, questions, inputs["input_ids"][:, -1], logits)
    return {"z": z, "mlp": torch.stack(mlps, 1), "logits": scores}


def _choice_logits(vlm: VLM, questions: Sequence[Question], last: Tensor, logits: Tensor) -> Tensor:
    choices = read_choices(vlm, questions, last)
    first = choices.token[..., 0].to(logits.device)
    return logits.gather(1, first).float().masked_fill(~choices.used[..., 0].to(logits.device), float("-inf"))
