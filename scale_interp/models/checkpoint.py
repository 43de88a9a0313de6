"""Open a checkpoint in a folder or on the hub as a VLM: only from safetensors, complete, and of the size in its config."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, is_torchvision_available, logging

from ..core import strict_json
from ..core.suggest import near
from ..errors import ModelError
from ..vlm.vlm import VLM
from .checkpoint_checks import require_fit, require_safe_folder, require_size
from .image_only import image_only
from .placement import require_device, require_map
from .quantization import quantization_config as as_config
from .quantization import settle


def open_checkpoint(
    source: str,
    name: str,
    processor: ProcessorMixin | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
    known: Sequence[str] = (),
) -> VLM:
    """Open a folder or hub id as a VLM.

    Args:
        source: The folder or hub id.
        name: The model's name, for messages and results.
        processor: The processor; by default that of the checkpoint.
        dtype: As in `load`, like the following options.
        device: As in `load`.
        device_map: As in `load`.
        revision: As in `load`.
        prompt: As in `load`.
        trust_remote_code: As in `load`.
        quantization_config: As in `load`.
        known: Names to suggest if there is no such model.

    Returns:
        The model.

    Raises:
        ModelError: The model cannot be loaded, or is not a decoder-only vision-language model.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    require_map(device_map, device)
    if source == name and len(Path(name).parts) > 1 and Path(name).parent.is_dir() and not Path(name).exists():
        print(f"there is no {name} in the folder {Path(name).parent}: asking the hub", file=sys.stderr)
    place, kind, bits = require_device(device), _floating(dtype), as_config(quantization_config)
    config = _config(source, name, options, known)
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
                device_map=device_map or (None if bits is None else {"": place}),
                quantization_config=bits,
                output_loading_info=True,
                use_safetensors=True,
                **options,
            )
    except Exception as error:  # transformers and what it is built on have no one type for what they cannot load
        raise ModelError(f"the weights of {name} cannot be loaded: {error}; load an intact checkpoint") from error
    hf_model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {name} lack {missing[0]} and {len(missing) - 1} more: load a complete checkpoint")
    if device_map is None and bits is None and not on_cpu:
        try:
            hf_model.to(place)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"{name} does not go to {str(place)!r}: {error}; {_elsewhere(place)}") from error
    hf_model.requires_grad_(False)
    settle(hf_model)
    vlm = VLM(hf_model, processor or _processor(source, name, type(config), options), name, prompt)
    require_fit(vlm, info["unexpected_keys"])
    return vlm


@contextmanager
def _quiet_without_terminal() -> Iterator[None]:
    """Keep transformers' progress bars out of log files."""
    shown = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config(source: str, name: str, options: dict[str, Any], known: Sequence[str]) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # a damaged configuration fails in as many ways as it has entries
        own = ", ".join(n for n in known if "/" not in n)
        raise ModelError(
            f"no model {name[:200]!r}: it is none of {own}, no folder with a config.json of a model, and no hub id that can be "
            f"reached ({error}){near(name, known) or '; give one of these'}"
        ) from error
    if type(getattr(config, "thinker_config", None)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        config = config.thinker_config  # Qwen-Omni: the part that reads and answers, without the one that speaks
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not options["trust_remote_code"]:
        if any("image" in key or "vision" in key for key in vars(config)):
            raise ModelError(
                f"{name} is a {config.model_type!r} model, which transformers does not open as one of images and text: open it with its "
                "own class, and give load(model, processor)"
            )
        raise ModelError(f"{name} is a {config.model_type!r} model, which takes no images: load a vision-language model")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} ({config.model_type}) is an encoder-decoder model; this toolkit edits decoder-only models: load one")
    return config


def _elsewhere(place: torch.device) -> str:
    return f"give a device with more room than {place} has, device_map='auto', dtype='bfloat16', or quantization_config='nf4'"


def _floating(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if dtype not in (None, "auto") and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ModelError(f"dtype={dtype!r}: give a floating-point type, such as torch.float32 or 'bfloat16', or 'auto'")
    return found


def _processor(source: str, name: str, config: type, options: dict[str, Any]) -> ProcessorMixin:
    kind: Any = PROCESSOR_MAPPING.get(config, None)
    takes_videos = kind is not None and "video_processor" in kind.get_attributes()
    images_alone = takes_videos and (not is_torchvision_available() or _without_video(Path(source)))
    try:
        found = (image_only(kind) if images_alone else AutoProcessor).from_pretrained(source, **options)
    except Exception as error:  # as above
        found = _image_only_or_none(kind, source, options) if takes_videos and not images_alone else None
        if found is None:
            raise ModelError(f"{name} has no usable processor ({error}): pass one as load(model, processor)") from error
    if not isinstance(found, ProcessorMixin):
        raise ModelError(f"{name} has a {type(found).__name__} but no processor for images: pass one as load(model, processor)")
    return found


def _without_video(folder: Path) -> bool:
    """Whether a folder has no configuration of a video processor: not in its own file, nor in the processor's or the older images' one."""
    if not folder.is_dir() or any((folder / name).is_file() for name in (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
        return False
    whole = folder / PROCESSOR_NAME
    return not whole.is_file() or "video_processor" not in strict_json.read(whole)


def _image_only_or_none(kind: Any, source: str, options: dict[str, Any]) -> Any:
    """The processor without its video half, where that is what could not be opened."""
    try:
        return image_only(kind).from_pretrained(source, **options)
    except Exception:  # the first error is the one to report
        return None
