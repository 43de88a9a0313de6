import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores, and a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: no test waits for a hub

import beartype  # noqa: F401 (before nnsight, which adds methods to `object` that beartype cannot handle)
import pytest
import torch
from jaxtyping import install_import_hook

import scale_interp as si

collect_ignore = ["support/pretended_gpu.py"]  # a plugin, which has to come before torch

SHAPES_CHECKED = [f"scale_interp.interventions.{name}" for name in ("rows", "packed", "reference", "choices")]
"""Modules whose annotated shapes are checked on every call under pytest."""
install_import_hook(SHAPES_CHECKED, "beartype.beartype")


@pytest.fixture(scope="session")
def vlm():
    return si.load("demo")


@pytest.fixture(scope="session")
def mixed():
    """Questions whose prompts have different lengths and numbers of choices."""
    return [q for task in ("relation", "count", "colour", "exists") for q in si.load_questions(f"scenes/{task}", n=2)]


@pytest.fixture(scope="session")
def long_choices():
    """Choices of several tokens that share first tokens, beside one-token choices."""
    a, b, c = si.load_questions("scenes/relation", n=3)
    return [
        si.Question(a.text, ("left", "left of", "right above"), 0, picture=a.picture, id="prefix"),
        si.Question("Where is the red circle?", ("above left", "above right", "below"), 1, picture=b.picture, id="shared"),
        c,
    ]


@pytest.fixture(scope="session")
def random_edits(vlm):
    """name -> Edit of two variants, every kind."""
    draw = torch.Generator().manual_seed(0)
    L, H, D = vlm.n_layers, vlm.n_heads, vlm.head_dim
    one_head = torch.ones(2, L, H)
    one_head[0, 2, 3] = one_head[1, L - 1, 0] = 0.0
    patched = torch.zeros(2, L, H, D)
    patched[0, 2, 3], patched[1, L - 1, 0] = torch.randn(2, D, generator=draw)
    return {
        "zero": si.Edit(scale=one_head),
        "amplify": si.Edit(scale=1 + 3 * (1 - one_head)),
        "patch": si.Edit(scale=one_head, shift=patched),
        "steer": si.Edit(shift=patched),
        "all heads": si.Edit(scale=2 * torch.rand(2, L, H, generator=draw)),
        "mlp": si.Edit(mlp_scale=2 * torch.rand(2, L, generator=draw)),
        "everything": si.Edit(
            2 * torch.rand(2, L, H, generator=draw), torch.randn(2, L, H, D, generator=draw), 2 * torch.rand(2, L, generator=draw)
        ),
    }
