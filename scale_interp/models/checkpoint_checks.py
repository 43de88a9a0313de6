"""Check that a model's folder is complete and safe: no pickles, no paths out of it, and files that belong to the same model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from ..core import strict_json
from ..data.question import Question
from ..errors import ModelError
from ..vlm.vlm import VLM

INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
PICKLES = ("bin", "pt", "pth", "ckpt")
SAMPLE = Question("Is there a cat?", ("yes", "no"), 0, picture=Image.new("RGB", (64, 48)), id="sample")
SMALLEST = 0.2
"""The fewest bytes per parameter: less than those of 4-bit weights stored two to a byte."""
LAYER = re.compile(r"^(?!.*vision).*\blayers\.(\d+)\.self_attn\.")


def require_safe_folder(folder: Path, name: str) -> None:
    """Check that reading a folder cannot run code, and that its settings for generation are intact.

    Raises:
        ModelError: The weights are only available as pickles, or are outside the folder, or the settings are damaged.
    """
    if not folder.is_dir():
        return
    pickles = [path for end in PICKLES for path in folder.glob(f"*.{end}")]
    if pickles and not any(folder.glob("*.safetensors*")):
        raise ModelError(
            f"the weights of {name} are a pickle ({pickles[0].name}), which can run code when it is read: where you trust it, convert it "
            "(transformers' from_pretrained, then save_pretrained), and load the new folder"
        )
    if (folder / GENERATION).is_file():  # which transformers replaces by its defaults where it cannot be read
        try:
            strict_json.read(folder / GENERATION)
        except (ValueError, OSError) as error:
            raise ModelError(f"{folder / GENERATION} is damaged or no JSON ({error}): load an intact folder, or delete it") from error
    if (folder / INDEX).is_file():
        try:
            shards = strict_json.read(folder / INDEX)["weight_map"].values()
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise ModelError(f"{folder / INDEX} is not a list of weight files ({error!r}): load an intact checkpoint") from error
        if wrong := [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]:
            raise ModelError(f"{folder / INDEX}: the weight file {wrong[0]!r} is none of the folder; load an intact checkpoint")


def require_size(folder: Path, config: Any, name: str) -> None:
    """Check that the configuration does not describe a far larger model than the weights, as loading it would fill the memory.

    Raises:
        ModelError: The weights have too few bytes for the configuration.
    """
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        with torch.device("meta"):
            wanted = sum(weight.numel() for weight in AutoModelForImageTextToText.from_config(config).parameters())
    except Exception:  # what cannot be built says so when it is loaded
        return
    if held < SMALLEST * wanted:
        raise ModelError(
            f"the weights of {name} cannot be loaded: they have {held:,} bytes for {wanted:,} parameters of its config.json; "
            "load config and weights of one model"
        )


def require_fit(vlm: VLM, unused: Iterable[str]) -> None:
    """Check that weights, image token and chat template belong to the same model.

    Args:
        vlm: The model.
        unused: The names of weights in the checkpoint that the model does not have.

    Raises:
        ModelError: They do not.
    """
    if over := sorted(key for key in unused if (found := LAYER.match(key)) and int(found[1]) >= vlm.n_layers):
        raise ModelError(
            f"the weights of {vlm.name} hold {over[0]}, but its config.json has {vlm.n_layers} layers: load weights and config of one model"
        )
    rows = vlm.hf_model.get_input_embeddings().num_embeddings
    if not 0 <= vlm.image_token_id < rows:
        raise ModelError(
            f"{vlm.name}: the image token {vlm.image_token_id} of its config.json is none of {rows} tokens; correct the config"
        )
    if vlm.prompt is not None or (vlm.processor.chat_template is None and vlm.quirks.prompt is None):
        return
    try:
        shown = (vlm.encode(SAMPLE)["input_ids"] == vlm.image_token_id).any()
    except Exception as error:  # whatever a template's or a processor's own code fails by
        raise ModelError(
            f"{vlm.name}: its processor or chat template fails ({error}); give a prompt, as in prompt='{{images}} {{text}}'"
        ) from error
    if not shown:
        raise ModelError(
            f"{vlm.name}: its processor writes no image token {vlm.image_token_id}, which its config.json has: load both of one model"
        )
