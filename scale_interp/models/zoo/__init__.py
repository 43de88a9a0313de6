"""A tiny model with random weights for every family, with its real classes, to test code on all of them in seconds.

>>> from scale_interp import load
>>> load("tiny-random/qwen2_5_vl").family
'qwen2_5_vl'
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import tokenizers
import torch
import transformers
from torch import nn
from transformers import ProcessorMixin

from ...core.suggest import near
from ...errors import ModelError
from ...vlm.families import cannot_run

PREFIX = "tiny-random/"
NAMES = tuple(name for name in (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "idefics3", "smolvlm",
    "paligemma", "paligemma2", "mistral3", "glm4v", "qwen3_vl_moe", "qwen3_5", "gemma4", "aya_vision", "lfm2_vl", "llama4",
    "internvl_gpt_oss",
) if not cannot_run(name))  # fmt: skip


def folder(name: str) -> Path:
    """The folder of a tiny model in the user's cache, built on first use.

    Args:
        name: "tiny-random/FAMILY", such as "tiny-random/llava".

    Returns:
        The folder.

    Raises:
        ModelError: There is no such model.
    """
    family = name.removeprefix(PREFIX)
    if why := cannot_run(family):
        raise ModelError(f"{name}: {why}")
    if family not in NAMES:
        raise ModelError(f"no tiny model {name!r}: choose from {', '.join(PREFIX + n for n in NAMES)}{near(family, NAMES)}")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scale_interp" / "tiny-random"
    recipe = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    made_with = f"{torch.__version__} {transformers.__version__} {tokenizers.__version__}".encode()
    place = root / f"{family}-{hashlib.blake2b(recipe + made_with, digest_size=6).hexdigest()}"
    if not place.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=root))
        try:
            save(family, unfinished)
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place


def save(family: str, place: Path, seed: int = 0) -> None:
    """Build the tiny model of a family, and write it like any checkpoint: config, weights, processor, tokenizer.

    Args:
        family: One of NAMES.
        place: The folder.
        seed: Of the weights.
    """
    from .families import BUILDERS
    from .recent import RECENT

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, processor = (BUILDERS | RECENT)[family]()
        draw(model)
    model.save_pretrained(place)
    processor.save_pretrained(place)


def processor(name: str) -> ProcessorMixin | None:
    """The processor of a tiny model that cannot be read back from its folder: without a part that needs torchvision or sounds.

    Args:
        name: "tiny-random/FAMILY".

    Returns:
        The processor; None for models whose folder has one like any checkpoint's.
    """
    from .recent import OWN_PROCESSORS, RECENT

    family = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or family not in OWN_PROCESSORS:
        return None
    with torch.random.fork_rng(devices=[]):
        return RECENT[family]()[1]


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Draw weights ~ N(0, 1/fan-in), so that attention and images matter, and move norms and biases slightly off their initial values."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2:
                weight.add_(0.1 * torch.randn_like(weight))
            elif isinstance(module, nn.Embedding) or not name.endswith("weight"):
                weight.normal_(0, 0.5)
            else:
                weight.normal_(0, weight[0].numel() ** -0.5)
