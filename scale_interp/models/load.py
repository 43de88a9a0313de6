"""Load a VLM: an embedded one, a folder, a hub id, or a live model."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..core.arguments import LookedAt, checked
from ..errors import ModelError, PathWarning
from ..interventions.check import check as compare
from ..vlm.families import KNOWN
from ..vlm.vlm import VLM, PrefixCache, check_cache
from . import demo, testbeds, zoo
from .checkpoint import open_checkpoint
from .missing_package import packages_named
from .testbeds import circuits


@checked
def load(
    model: Annotated[str | Path | PreTrainedModel, LookedAt()],
    processor: ProcessorMixin | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    check: bool | None = None,
    trust_remote_code: bool = False,
    prefix_cache: PrefixCache = "auto",
) -> VLM:
    """Load a vision-language model and address its heads.

    model: "demo", "demo-healthy", "demo-prior", "tiny-random/FAMILY", "testbed/NAME", a folder, a hub id, or a live transformers model
    with its processor (it is put in evaluation mode). dtype: float32 on a CPU and the checkpoint's own elsewhere, unless
    given. prompt: a template with {images} and {text}, in place of the chat template. check: compare all paths on two
    questions now and keep the result in `vlm.report`; by default only where the model's family is not a known one: such
    a model is refused unless the check agrees. prefix_cache: where prompts that were read stay while they are asked for again:
    "memory" (a quarter of what is free), "disk" (TMPDIR, checksummed), "auto" (memory, then disk), or "recompute".

    Weights are read from safetensors alone, never from a pickle, and code that comes with a model runs only with
    trust_remote_code=True. Raises ModelError for anything that is no decoder-only VLM, and where a package is missing.

    >>> load("demo").n_heads
    8
    """
    with packages_named(str(model) if isinstance(model, str | Path) else type(model).__name__):
        return _load(
            model,
            processor,
            check,
            prefix_cache,
            dtype=dtype,
            device=device,
            device_map=device_map,
            prompt=prompt,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )


def _load(model: Any, processor: ProcessorMixin | None, check: bool | None, prefix_cache: PrefixCache, **given: Any) -> VLM:
    if isinstance(model, PreTrainedModel):
        if processor is None:
            raise ModelError("a live model needs its processor: load(model, processor)")
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        vlm = VLM(model, processor, name, given["prompt"])
        vlm.prefix_cache = check_cache(prefix_cache)
        return _checked(vlm, check)
    if not isinstance(model, str | Path) or not str(model).strip():
        raise ModelError(f"cannot load {_what(model)}: give a name, a folder, a hub id or a transformers model")
    name = str(model)
    check_cache(prefix_cache)
    source = name
    if name in demo.NAMES:
        source = str(demo.folder(name))
    elif name.startswith(zoo.PREFIX):
        source = str(zoo.folder(name))
    elif name.startswith(circuits.PREFIX):
        source = str(testbeds.folder(name))
        if not Path(source).is_dir():
            raise ModelError(f"the weights of {name} are not at {source}; rebuild them with `scale-interp testbed --rebuild {name}`")
    if name in demo.NAMES and not Path(source).is_dir():
        raise ModelError(f"the weights of {name} are not installed at {source}; rebuild them with `scale-interp train-demo`")
    known = (*demo.NAMES, *(zoo.PREFIX + n for n in zoo.NAMES))
    vlm = open_checkpoint(source, name, processor, known=known, **given)
    vlm.prefix_cache = prefix_cache
    vlm.reopen = partial(load, name, processor, check=False, **given)
    return _checked(vlm, check)


def _checked(vlm: VLM, check: bool | None) -> VLM:
    known = vlm.family in KNOWN
    if check or (check is None and not known):
        try:
            report = vlm.report = compare(vlm)
        except Exception as error:
            if known:
                raise
            raise ModelError(
                f"{vlm.name}: the family {vlm.family!r} is not one of {', '.join(KNOWN)}, and the general way fails on it: {error}"
            ) from error
        if not known and (not report.agrees or report.path != "packed"):
            raise ModelError(
                f"{vlm.name}: the family {vlm.family!r} is not one of {', '.join(KNOWN)}, and the general way does not hold for it: "
                f"{report.why}; against a plain nnsight trace logits differ by {report.nnsight:.2g}. "
                "load(..., check=False) takes it all the same, for the reference path"
            )
        if report.path != "packed" and not vlm.quirks.bidirectional:
            warnings.warn(f"{vlm.name}: {report.why}", PathWarning, stacklevel=6)
    return vlm


def _what(model: object) -> str:
    return f"the name {str(model)!r}" if isinstance(model, str | Path) else f"a {type(model).__name__}"
