"""Load a VLM: an embedded one, a folder, a hub id, or a live model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available, logging

from ..core.arguments import near
from ..errors import ModelError
from ..vlm.families import KNOWN
from ..vlm.vlm import VLM, PrefixCache, check_cache
from . import demo, testbeds, zoo
from .checkpoint_checks import require_fit, require_safe_folder, require_size
from .image_only import image_only


def load(
    model: str | Path | PreTrainedModel,
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
    given. prompt: a template with {images} and {text}, in place of the chat template. check: compare all paths on one
    question now and keep the result in `vlm.report`; by default only where the model's family is not a known one: such
    a model is refused unless the check agrees. prefix_cache: where prompts that were read stay while they are asked for again:
    "memory" (a quarter of what is free), "disk" (TMPDIR, checksummed), "auto" (memory, then disk), or "recompute".

    Weights are read from safetensors alone, never from a pickle, and code that comes with a model runs only with
    trust_remote_code=True. Raises ModelError for anything that is no decoder-only VLM.

    >>> load("demo").n_heads
    8
    """
    if isinstance(model, PreTrainedModel):
        if processor is None:
            raise ModelError("a live model needs its processor: load(model, processor)")
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        vlm = VLM(model, processor, name, prompt)
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
    elif name.startswith(testbeds.PREFIX):
        source = str(testbeds.folder(name))
        if not Path(source).is_dir():
            raise ModelError(f"the weights of {name} are not at {source}; rebuild them with `scale-interp testbed --rebuild {name}`")
    if name in demo.NAMES and not Path(source).is_dir():
        raise ModelError(f"the weights of {name} are not installed at {source}; rebuild them with `scale-interp train-demo`")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    place, kind = _device(device), _floating(dtype)
    config = _config(source, name, options)
    require_safe_folder(Path(source), name)
    if source == name and Path(source).is_dir():
        require_size(Path(source), config, name)
    on_cpu = device_map is None and place.type == "cpu"
    try:
        with _quiet_without_terminal():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                config=config,
                dtype=kind or (torch.float32 if on_cpu else "auto"),
                device_map=device_map,
                output_loading_info=True,
                use_safetensors=True,
                **options,
            )
    except Exception as error:  # transformers and what it is built on have no one type for what they cannot load
        raise ModelError(f"the weights of {name} cannot be loaded: {error}; load an intact checkpoint") from error
    hf_model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {name} lack {missing[0]} and {len(missing) - 1} more: load a complete checkpoint")
    if device is not None and device_map is None:
        try:
            hf_model.to(place)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"{name} does not go to {device!r}: {error}; give a device that this machine has") from error
    hf_model.requires_grad_(False)
    vlm = VLM(hf_model, processor or _processor(source, name, type(config), options), name, prompt)
    require_fit(vlm, info["unexpected_keys"])
    vlm.prefix_cache = prefix_cache
    vlm.source = {"model": name, "processor": processor, "dtype": dtype, "device": device, "device_map": device_map, "prompt": prompt}
    vlm.source |= options | {"check": False}
    return _checked(vlm, check)


def _checked(vlm: VLM, check: bool | None) -> VLM:
    from ..interventions.check import check as compare

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
    return vlm


@contextmanager
def _quiet_without_terminal() -> Iterator[None]:
    """No progress bar of transformers' in log files."""
    shown = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config(source: str, name: str, options: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # a damaged configuration fails in as many ways as it has entries
        known = ", ".join(demo.NAMES)
        raise ModelError(
            f"no model {name[:200]!r}: it is none of {known}, no folder with a config.json of a model, and no hub id that can be "
            f"reached ({error}){near(name, (*demo.NAMES, *(zoo.PREFIX + n for n in zoo.NAMES))) or '; give one of these'}"
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not options["trust_remote_code"]:
        raise ModelError(f"{name} is a {config.model_type!r} model, which takes no images: load a vision-language model")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} ({config.model_type}) is an encoder-decoder model; this toolkit edits decoder-only models: load one")
    return config


def _what(model: object) -> str:
    return f"the name {str(model)!r}" if isinstance(model, str | Path) else f"a {type(model).__name__}"


def _device(device: str | torch.device | None) -> torch.device:
    try:
        return torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"device={device!r}: {error}; give 'cpu', 'cuda' or 'cuda:0'") from error


def _floating(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if dtype not in (None, "auto") and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ModelError(f"dtype={dtype!r}: give a floating-point type, such as torch.float32 or 'bfloat16', or 'auto'")
    return found


def _processor(source: str, name: str, config: type, options: dict[str, Any]) -> ProcessorMixin:
    kind: Any = PROCESSOR_MAPPING.get(config, None)
    without_video = kind is not None and not is_torchvision_available() and "video_processor" in kind.get_attributes()
    try:
        found = (image_only(kind) if without_video else AutoProcessor).from_pretrained(source, **options)
    except Exception as error:  # as above
        raise ModelError(f"{name} has no usable processor ({error}): pass one as load(model, processor)") from error
    if not isinstance(found, ProcessorMixin):
        raise ModelError(f"{name} has a {type(found).__name__} but no processor for images: pass one as load(model, processor)")
    return found
