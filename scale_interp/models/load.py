"""Load a VLM: an embedded one, a folder, a hub id, or a live model."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from ..core.arguments import OwnCheck, checked
from ..errors import ModelError, PathWarning, ScaleInterpError
from ..interventions.check import check as compare
from ..vlm.families import KNOWN, cannot_run
from ..vlm.named_prompts import prompt_template
from ..vlm.vlm import VLM, ChoiceSpace, PrefixCache, check_cache, check_choice_space
from . import demo, testbeds, zoo
from .attached_check import check_attached, tested_transformers
from .checkpoint import open_checkpoint
from .missing_package import packages_named
from .placement import device_name
from .testbeds import circuits


@checked
def load(
    model: Annotated[str | Path | PreTrainedModel | nn.Module, OwnCheck()],
    processor: ProcessorMixin | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    prompt: str | None = None,
    check: bool | None = None,
    trust_remote_code: bool = False,
    quantization_config: Annotated[Any, OwnCheck()] = None,
    prefix_cache: PrefixCache = "auto",
    choice_space: ChoiceSpace = "auto",
) -> VLM:
    """Load a vision-language model and make its heads addressable.

    Weights are read from safetensors only, never from a pickle. Code that comes with a model runs only with trust_remote_code=True.

    Args:
        model: "demo", "demo-healthy", "demo-prior", "demo-format", "tiny-random/FAMILY", "testbed/NAME", a folder, a hub id, or a live
            model of transformers or peft, which is put in evaluation mode.
        processor: The processor, required for a live model.
        dtype: By default float32 on a CPU, and otherwise that of the checkpoint.
        device: Where the model goes, such as "cuda:1"; by default the accelerator (CUDA, else Apple's MPS) where there is one, which a line
            on the standard error stream says, and otherwise the CPU.
        device_map: How accelerate distributes the model, such as "auto", instead of `device`.
        revision: A branch, tag or commit of the hub.
        prompt: A template with {images} and {text} that replaces the chat template, or the name of one: "bare" for images and question
            alone, "scale-llava" and "scale-qwen" as in ScAle's release, "chat" for the chat template.
        check: Whether to compare all paths on two questions now and keep the result in `vlm.report`. By default only models of unknown
            families are checked, and every model beside a transformers that was not tested. Where the packed path differs or fails, edits
            run by the reference path, with a warning that says why; a model is refused if whole passes with an edit fail on it or differ
            from a plain nnsight trace. With False nothing is run now: the first edit checks.
        trust_remote_code: Whether code that comes with the model may run.
        quantization_config: "nf4" (four bits, by bitsandbytes), "int8" (eight bits, by torchao), or a configuration of transformers.
        prefix_cache: Where the keys and values of prompts are kept while they are needed again: "memory" (up to a quarter of what is
            free), "host" (the machine's memory beside a GPU), "disk" (TMPDIR, with checksums), "recompute" (nowhere), or "auto": memory,
            then where getting them back was measured to take the least time.
        choice_space: Whether choices are scored "with" a space before them or "without"; "auto" depends on how the prompt ends, and
            warns where it matters. "apart" scores the last token of " A", read apart from the prompt, as ScAle's release does.

    Returns:
        The model.

    Raises:
        ModelError: The model cannot be loaded, or is not a decoder-only vision-language model; or a package that
            it needs is not installed.

    >>> load("demo").n_heads
    8
    """
    check_choice_space(choice_space)
    with packages_named(str(model) if isinstance(model, str | Path) else type(model).__name__):
        return _load(
            model,
            processor,
            check,
            prefix_cache,
            choice_space,
            dtype=dtype,
            device=device,
            device_map=device_map,
            prompt=prompt_template(prompt),
            revision=revision,
            trust_remote_code=trust_remote_code,
            quantization_config=quantization_config,
        )


def _load(
    model: Any,
    processor: ProcessorMixin | None,
    check: bool | None,
    prefix_cache: PrefixCache,
    choice_space: ChoiceSpace,
    **given: Any,
) -> VLM:
    model, adapters = _within_peft(model)
    if isinstance(model, PreTrainedModel):
        if processor is None:
            raise ModelError("a live model needs its processor: pass it as load(model, processor)")
        if given["quantization_config"] is not None:
            raise ModelError("quantization_config with a live model, whose weights are there already: give its name or folder instead")
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        vlm = VLM(model, processor, name + adapters, given["prompt"])
        vlm.prefix_cache, vlm.choice_space = check_cache(prefix_cache), choice_space
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
    vlm = open_checkpoint(source, name, processor or zoo.processor(name), known=known, **given)
    if given["device"] is None and given["device_map"] is None and vlm.device.type != "cpu":
        print(f"{name} is on {device_name(vlm.device)}, as no device was given", file=sys.stderr)
    vlm.prefix_cache, vlm.choice_space = prefix_cache, choice_space
    vlm.reopen = partial(load, name, processor, check=False, **given)
    return _checked(vlm, check)


def _within_peft(model: Any) -> tuple[Any, str]:
    """A model of peft as the transformers model within it, which holds its adapters' layers, and their names; others as they are."""
    if isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel) and hasattr(model, "peft_config"):
        configs = model.peft_config if isinstance(model.peft_config, dict) else {}
        if any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
            raise ModelError(
                f"{_what(model)} puts learned tokens before the prompt, which are not among the model's layers: give an adapter of its "
                "layers, such as LoRA or IA3"
            )
        within = getattr(getattr(model, "base_model", None), "model", None)
        if isinstance(within, PreTrainedModel):
            active: Any = model.active_adapters if hasattr(model, "active_adapters") else model.active_adapter
            names = [active] if isinstance(active, str) else list(active)
            return within, f" [adapter: {', '.join(names)}]"
    return model, ""


def _checked(vlm: VLM, check: bool | None) -> VLM:
    known = vlm.family in KNOWN
    if why := cannot_run(vlm.family):
        raise ModelError(f"{vlm.name} ({vlm.family}): {why}")
    if check or (check is None and not (known and tested_transformers())):
        try:
            report = vlm.report = compare(vlm)
        except ScaleInterpError as error:
            if known:
                raise
            raise ModelError(
                f"{vlm.name}: the family {vlm.family!r} is not one of {', '.join(KNOWN)}, and the general way fails on it: {error}"
            ) from error
        if not known and not report.nnsight <= report.allowed:
            raise ModelError(
                f"{vlm.name}: the family {vlm.family!r} is not one of {', '.join(KNOWN)}, and whole passes with an edited head differ from "
                f"a plain nnsight trace by {report.nnsight:.2g} in logits, more than rounding explains ({report.allowed:.2g}): "
                "use load(..., check=False) to load it nevertheless"
            )
        if report.path != "packed" and not vlm.quirks.bidirectional:
            warnings.warn(f"{vlm.name}: {report.why}", PathWarning, stacklevel=6)
        if (wrong := check_attached(vlm)) is not None:
            warnings.warn(
                f"{vlm.name}: edits attached to the model are not right in `generate` with transformers {version('transformers')}: "
                f"{wrong}; score choices with edit=... instead",
                PathWarning,
                stacklevel=6,
            )
    return vlm


def _what(model: object) -> str:
    return f"the name {str(model)!r}" if isinstance(model, str | Path) else f"a {type(model).__name__}"
