"""The last token's head outputs and MLP outputs, read with plain nnsight traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import Count, checked
from ..core.notebook import NotebookView
from ..data.items import require
from ..data.question import Question
from ..execution.batches import BatchResult, Rows, map_batches
from ..vlm.decoder import mlp_rows
from ..vlm.vlm import VLM
from .choices import read_choices


@dataclass(frozen=True)
class Activations(NotebookView):
    """What heads and MLPs compute at the last token of each prompt.

    Attributes:
        z: Head outputs before W_O, [Q, L, H, D].
        mlp: MLP outputs, [Q, L, d_model].
        logits: Logits of the choices' first tokens, [Q, C]; -inf where a question has fewer choices.

    >>> import scale_interp as si
    >>> found = si.capture(si.load("demo"), si.load_questions("scenes/relation", n=4))
    >>> found.z.shape, len(found.logits)
    (torch.Size([4, 6, 8, 16]), 4)
    """

    z: Float[Tensor, "questions layers heads head_dim"]
    mlp: Float[Tensor, "questions layers width"]
    logits: Float[Tensor, "questions choices"]

    def __repr__(self) -> str:
        return f"<Activations z {list(self.z.shape)}, mlp {list(self.mlp.shape)}, logits {list(self.logits.shape)}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        axes = {"z": "questions, layers, heads, numbers per head", "mlp": "questions, layers, numbers", "logits": "questions, choices"}
        return ({"part": name, "shape": str(list(getattr(self, name).shape)), "axes": axes_of} for name, axes_of in axes.items())


@checked
def capture(vlm: VLM, questions: Question | Sequence[Question], batch_size: Count = 16) -> Activations:
    """Read the last token's head outputs and MLP outputs in full, unedited forward passes.

    Questions whose prompts have the same length share a batch, so padding does not affect the numbers.

    Args:
        vlm: The model.
        questions: One question or several.
        batch_size: The largest number of questions per forward pass.

    Returns:
        The activations, one row per question.

    Raises:
        DataError: A question does not fit the model, or there are none.

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
    """Activations of one batch of prompts with the same length: z [B, L, H, D], mlp [B, L, d_model], logits [B, C]."""
    inputs = vlm.encode(questions)
    heads, mlps = [], []
    with vlm.nn.trace(**inputs, use_cache=False):
        for block in vlm.head_layers:
            layer = vlm.layers[block.number]
            heads.append(block.split(block.output(layer).input[:, -1].clone().cpu(), vlm.head_dim))
            if block.mlp_name is not None:
                mlps.append(mlp_rows(block.mlp(layer).output, len(questions))[:, -1].clone().cpu())
        logits = vlm.nn.output.logits[:, -1].clone().save()
    z = torch.stack(heads, 1)
    scores = _choice_logits(vlm, questions, inputs["input_ids"][:, -1], logits)
    mlp = torch.stack(mlps, 1) if mlps else z.new_full((*z.shape[:2], vlm.d_model), float("nan"))
    return {"z": z, "mlp": mlp, "logits": scores}


def _choice_logits(vlm: VLM, questions: Sequence[Question], last: Tensor, logits: Tensor) -> Tensor:
    choices = read_choices(vlm, questions, last)
    first = choices.token[..., 0].to(logits.device)
    return logits.gather(1, first).float().masked_fill(~choices.used[..., 0].to(logits.device), float("-inf"))
