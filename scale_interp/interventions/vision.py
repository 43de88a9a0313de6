"""Vision features that several questions share: each image passes through the vision tower once."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import BatchFeature

from ..data.question import Question
from ..vlm.vlm import VLM


class FeatureSource(Protocol):
    """What gives features in place of pixels."""

    def replace_pixels(self, inputs: BatchFeature, questions: Sequence[Question]) -> dict[str, Any]: ...


class Vision:
    """The features of images that several questions share, kept until the last of these questions has been read."""

    def __init__(self, vlm: VLM, questions: Sequence[Question]):
        self.vlm = vlm
        self.left = Counter(_key(q) for q in questions if q.pictures) if takes_features(vlm) else Counter()
        self.shared = {key for key, n in self.left.items() if n > 1}
        self.kept: dict[Hashable, Any] = {}

    def replace_pixels(self, inputs: BatchFeature, questions: Sequence[Question]) -> dict[str, Any]:
        """The inputs with features in place of pixels if these questions share an image with others; otherwise unchanged.

        The decision does not depend on what was read before, so a batch has the same bits whenever it is read.
        """
        keys = [_key(q) for q in questions]
        if self.shared.isdisjoint(keys):
            return dict(inputs)
        outputs: dict[Hashable, Any] = {}
        for key, question in zip(keys, questions, strict=True):
            if question.pictures and key not in outputs:
                outputs[key] = self.kept.get(key) or image_features(self.vlm, self.vlm.encode(question))
        if any(getattr(found, "pooler_output", None) is None for found in outputs.values()):
            return dict(inputs)  # features that cannot be joined (Llama 4): its images are read again
        for key in keys:
            self.left[key] -= 1
            if self.left[key] > 0 and outputs.get(key):
                self.kept[key] = outputs[key]
            else:
                self.kept.pop(key, None)
        joined = join_features([outputs[key] for key, q in zip(keys, questions, strict=True) if q.pictures])
        return in_pixels_place(self.vlm, inputs, joined)


def takes_features(vlm: VLM) -> bool:
    """Whether the model encodes images separately from the prompt, and accepts their features in place of pixels."""
    return (
        hasattr(vlm.hf_model.base_model, "get_image_features")
        and "mm_encoder_outputs" in inspect.signature(vlm.hf_model.forward).parameters
    )


def image_features(vlm: VLM, inputs: Mapping[str, Any]) -> Any:
    """The vision tower's output for encoded questions."""
    takes = _pixel_inputs(vlm)
    return _reader(vlm)(**{k: v for k, v in inputs.items() if k in takes}, return_dict=True)


def in_pixels_place(vlm: VLM, inputs: Mapping[str, Any], features: Any) -> dict[str, Any]:
    """The inputs with features in place of pixels."""
    takes = _pixel_inputs(vlm)
    return {k: v for k, v in inputs.items() if k not in takes} | {"mm_encoder_outputs": {"image": features}}


def _reader(vlm: VLM) -> Any:
    core: Any = vlm.hf_model.base_model
    return core.get_image_features


def _pixel_inputs(vlm: VLM) -> Mapping[str, Any]:
    return inspect.signature(_reader(vlm)).parameters


def _key(question: Question) -> Hashable:
    """A key that is equal for questions about the same images: the same files, image objects or functions."""
    return tuple(id(p) if isinstance(p, Image.Image) else p if isinstance(p, Hashable) else id(p) for p in question.pictures)


def join_features(outputs: Sequence[Any]) -> Any:
    """One output for all images, with the parts that the models use."""
    parts = {"pooler_output": _cat([o.pooler_output for o in outputs])}
    if (deep := [o.get("deepstack_features") for o in outputs])[0] is not None:
        parts["deepstack_features"] = [_cat(list(layer)) for layer in zip(*deep, strict=True)]
    return type(outputs[0])(**parts)


def same_features(a: Any, b: Any) -> bool:
    """Whether two outputs of the vision tower are equal, bit for bit, in the parts that the models use."""
    return all(len(x) == len(y) and all(map(torch.equal, x, y)) for x, y in zip(_parts(a), _parts(b), strict=True))


def _parts(output: Any) -> list[Any]:
    deep = output.get("deepstack_features")
    return [output.pooler_output, *([] if deep is None else deep)]


def _cat(features: list[Any]) -> Any:
    """Features as one tensor [images, tokens, d], or as a list with one entry per image."""
    if isinstance(features[0], torch.Tensor):
        return torch.cat(features)
    return [picture for part in features for picture in part]
