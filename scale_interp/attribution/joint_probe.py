"""One probe over all heads at once, and what each head adds to its verdict.

The architecture and its training are those of the CogQA pipeline (Cognitive Mirrors, arXiv 2512.10978), in our own code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTION, HIDDEN, DROPOUT, RATE = 64, 512, 0.3, 1e-4
BATCH = 64


class JointProbe(nn.Module):
    """Features [B, U, 2D] of U heads -> logits [B, functions]: a shared map to 64, then two layers over all heads.

    scale: activations are divided by this one number; ours, as the published rate fits activations near 1.
    """

    def __init__(self, n_heads: int, width: int, n_functions: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.project = nn.Linear(width, PROJECTION)
        self.read = nn.Sequential(
            nn.Flatten(), nn.Linear(PROJECTION * n_heads, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, n_functions)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.project(x / self.scale))


def features(z: Tensor) -> Tensor:
    """z [Q, L, H, D] -> [Q, L * H, 2D]: each head's own z beside the mean over its layer's heads."""
    return torch.cat([z, z.mean(2, keepdim=True).expand_as(z)], -1).flatten(1, 2).float()


@torch.inference_mode(False)
@torch.enable_grad()
def fit_joint_probe(z: Tensor, codes: Tensor, n_functions: int, epochs: int, seed: int = 0) -> JointProbe:
    """Learn the functions `codes` [Q] of activations z [Q, L, H, D] by cross-entropy and AdamW at 1e-4."""
    x, codes = features(z).clone(), codes.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JointProbe(x.shape[1], x.shape[2], n_functions, float(z.float().std()))
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                F.cross_entropy(model(x[rows]), codes[rows]).backward()
                optimiser.step()
    return model.eval()


@torch.inference_mode(False)
@torch.enable_grad()
def importance(model: JointProbe, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient x activation of each head for each question's own function [Q, L, H], and the probe's verdicts [Q].

    The gradient is of the function's logit at the 64 numbers of the shared map, summed over them. z must be held out:
    questions that the probe did not learn from.
    """
    effects, verdicts, codes = [], [], codes.clone()
    for rows in torch.arange(len(z)).split(256):
        with torch.no_grad():
            projected = model.project(features(z[rows]) / model.scale)
        projected.requires_grad_()
        logits = model.read(projected)
        (slope,) = torch.autograd.grad(logits.gather(1, codes[rows, None]).sum(), projected)
        effects.append((slope * projected.detach()).sum(-1).unflatten(1, z.shape[1:3]))
        verdicts.append(logits.argmax(1))
    return torch.cat(effects), torch.cat(verdicts)
