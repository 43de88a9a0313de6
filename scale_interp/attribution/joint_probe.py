"""One probe over all heads at once, and what each head adds to its verdict.

The architecture and its training are those of the CogQA pipeline (Cognitive Mirrors, arXiv 2512.10978), in our own code.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.arguments import Raises
from ..errors import DataError

PROJECTION, HIDDEN, DROPOUT, RATE = 64, 512, 0.3, 1e-4
BATCH, EPOCHS, RELEASED_EPOCHS = 64, 20, 100
ProbeRecipe = Annotated[Literal["default", "release"], Raises(DataError)]
"""How the probe is trained: by default as is ours, or as the published code does it (single questions in a fixed order, unscaled)."""


class JointProbe(nn.Module):
    """A probe from features [B, U, 2D] of U heads to logits [B, F] of F functions: a shared map to 64 numbers, then two layers.

    Args:
        n_heads: U, the heads of all layers.
        width: 2D, the features of one head.
        n_functions: F.
        scale: what activations are divided by. It is ours: the published learning rate suits activations near 1.
    """

    def __init__(self, n_heads: int, width: int, n_functions: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.project = nn.Linear(width, PROJECTION)
        self.read = nn.Sequential(
            nn.Flatten(), nn.Linear(PROJECTION * n_heads, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, n_functions)
        )

    def forward(self, x: Float[Tensor, "batch units features"]) -> Float[Tensor, "batch functions"]:
        """Logits [B, F] of features [B, U, 2D]."""
        return self.read(self.project(x / self.scale))


def features(z: Float[Tensor, "questions layers heads dim"]) -> Float[Tensor, "questions units features"]:
    """Features [Q, L * H, 2D] of z [Q, L, H, D]: each head's own z beside the mean over its layer's heads."""
    return torch.cat([z, z.mean(2, keepdim=True).expand_as(z)], -1).flatten(1, 2).float()


@torch.inference_mode(False)
@torch.enable_grad()
def fit_joint_probe(
    z: Float[Tensor, "questions layers heads dim"],
    codes: Int[Tensor, " questions"],
    n_functions: int,
    epochs: int,
    seed: int = 0,
    recipe: ProbeRecipe = "default",
) -> JointProbe:
    """Fit a probe that tells the functions `codes` [Q] from activations z [Q, L, H, D], by cross-entropy and AdamW at 1e-4.

    By default the inputs are scaled, and batches of 64 are drawn anew in every epoch; recipe="release" takes single questions in their
    order, and the inputs as they are.
    """
    x, codes = features(z).clone(), codes.clone()
    released = recipe == "release"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JointProbe(x.shape[1], x.shape[2], n_functions, 1.0 if released else float(z.float().std()))
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        for _ in range(epochs):
            for rows in torch.arange(len(x)).split(1) if released else torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(model(x[rows]), codes[rows]).backward()
                optimiser.step()
    return model.eval()


@torch.inference_mode(False)
@torch.enable_grad()
def importance(
    model: JointProbe, z: Float[Tensor, "questions layers heads dim"], codes: Int[Tensor, " questions"], recipe: ProbeRecipe = "default"
) -> tuple[Float[Tensor, "questions layers heads"], Int[Tensor, " questions"]]:
    """Gradient x activation of each head, for each question's own function.

    The gradient is of the function's logit with respect to the 64 numbers of the shared map; the products are summed over these, or
    averaged as the published code does it (recipe="release"), which ranks heads alike.

    Args:
        model: the probe.
        z: activations [Q, L, H, D] of questions that the probe did not learn from.
        codes: the number of each question's function [Q].
        recipe: as in fit_joint_probe.

    Returns:
        Importance [Q, L, H], and the number of the function that the probe chooses [Q].
    """
    effects, verdicts, codes = [], [], codes.clone()
    for rows in torch.arange(len(z)).split(256):
        with torch.no_grad():
            projected = model.project(features(z[rows]) / model.scale)
        projected.requires_grad_()
        logits = model.read(projected)
        (slope,) = torch.autograd.grad(logits.gather(1, codes[rows, None]).sum(), projected)
        products = slope * projected.detach()
        effects.append((products.mean(-1) if recipe == "release" else products.sum(-1)).unflatten(1, z.shape[1:3]))
        verdicts.append(logits.argmax(1))
    return torch.cat(effects), torch.cat(verdicts)
