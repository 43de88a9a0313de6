"""How each family maps an image to tokens: resized, cropped, padded, squeezed, split into tiles, merged.

The geometry comes from the configuration and the image processor, which is run once on a blank image of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import ceil, floor, isqrt, sqrt
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image


class ImageModel(Protocol):
    """What a layout needs of a VLM."""

    name: str
    family: str
    hf_model: Any
    processor: Any
    image_token_id: int


Size = tuple[int, int]
"""Width and height in pixels."""
Raster = tuple[Tensor, Tensor, Tensor]
"""Token numbers [R, C], counted from the image's first token, and the edges of its columns [C, 2] and rows [R, 2] in pixels."""
Layout = tuple[list[Raster], int]
"""The rasters of one image, the whole image first, and its number of image tokens."""


def _processed(vlm: ImageModel, size: Size, **options: Any) -> Mapping[str, Any]:
    """The image processor's output for an image of this size, called as the whole processor calls it."""
    processor: Any = vlm.processor
    asked = {k: v for k, v in (getattr(processor, "images_kwargs", None) or {}).items() if k != "return_tensors"} | options
    return _blank(processor.image_processor, size, tuple(sorted(asked.items())))


@lru_cache(maxsize=512)
def _blank(images: Any, size: Size, options: tuple[tuple[str, Any], ...]) -> Mapping[str, Any]:
    """The image processor's output for a blank image; only the shapes of pixels and their masks."""
    out = images(Image.new("RGB", size), return_tensors="pt", **dict(options))
    return {key: np.shape(value) if key.startswith("pixel") else np.ravel(value).tolist() for key, value in out.items()}


def _cells(start: float, length: float, n: int, tiles: int = 1, seen: float = 1.0) -> Tensor:
    """The edges of n patches in each of several adjacent tiles, [tiles * n, 2]; `seen` is the share of a tile that its patches cover."""
    tile, cell = torch.arange(tiles, dtype=torch.float64)[:, None], torch.arange(n + 1, dtype=torch.float64)
    edges = start + length * (tile + cell * seen / n)
    return torch.stack([edges[:, :-1], edges[:, 1:]], -1).flatten(0, 1)


def _whole(size: Size, rows: int, cols: int, first: int = 0, seen: float = 1.0) -> Raster:
    """The whole image, squeezed into one view."""
    tokens = first + torch.arange(rows * cols).view(rows, cols)
    return tokens, _cells(0, size[0], cols, seen=seen), _cells(0, size[1], rows, seen=seen)


def _tiles(down: int, across: int, side: int) -> Tensor:
    """The token numbers of tiles in row order, as one raster."""
    return rearrange(torch.arange(down * across * side**2), "(i j r c) -> (i r) (j c)", i=down, j=across, r=side)


def _llava(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Resized by the shorter edge and cropped at the centre, or padded to a square first, or squeezed."""
    images, config = vlm.processor.image_processor, vlm.hf_model.config
    height, width = _processed(vlm, size)["pixel_values"][-2:]
    high, wide = _processed(vlm, size, do_center_crop=False)["pixel_values"][-2:]
    square = max(size) if getattr(images, "do_pad", None) else None
    (x, w), (y, h) = ((-((square - n) // 2), square) if square else (0, n) for n in size)
    left, top = (wide - width) // 2, (high - height) // 2
    patch = config.vision_config.patch_size
    rows, cols = height // patch, width // patch
    # with "full", the class token comes first and shows no part of the image
    first = max(0, vlm.processor.num_additional_image_tokens - (config.vision_feature_select_strategy == "default"))
    tokens = first + torch.arange(rows * cols).view(rows, cols)
    across = _cells(x + left * w / wide, cols * patch * w / wide, cols)
    return [(tokens, across, _cells(y + top * h / high, rows * patch * h / high, rows))], first + rows * cols


def _anyres(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """The whole image squeezed, then tiles without their padding, with a newline token after each row of patches.

    LLaVA-OneVision shows each of several images once, padded to a square, with one newline token after it.
    """
    config: Any = vlm.hf_model.config
    vision, (w, h) = config.vision_config, size
    side = vision.image_size // vision.patch_size
    seen = side * vision.patch_size / vision.image_size
    if vlm.family == "llava_onevision" and not alone:
        square = max(size)
        x, y = (_cells(-((square - n) // 2), square, side, seen=seen) for n in size)
        return [(torch.arange(side**2).view(side, side), x, y)], side**2 + 1
    high, wide = select_best_resolution((h, w), config.image_grid_pinpoints)
    down, across = high // vision.image_size, wide // vision.image_size
    resized_h, resized_w = get_patch_output_size(np.broadcast_to(0, (3, h, w)), (high, wide), "channels_first")
    canvas = torch.arange(down * side * across * side).view(1, down * side, across * side)
    kept = unpad_image(canvas, (h, w))[0]
    rows, cols = kept.shape
    top, left = divmod(int(kept[0, 0]), across * side)
    unit_x, unit_y = vision.image_size * w / resized_w, vision.image_size * h / resized_h
    x = _cells(-((wide - resized_w) // 2) * w / resized_w, unit_x, side, across, seen)[left : left + cols]
    y = _cells(-((high - resized_h) // 2) * h / resized_h, unit_y, side, down, seen)[top : top + rows]
    if vlm.family == "llava_onevision":
        ratio = sqrt(rows * cols / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:  # too many patches: their features are interpolated to a coarser grid
            rows, cols = int(rows // ratio), int(cols // ratio)
            x, y = (_cells(float(v[0, 0]), float(v[-1, 1] - v[0, 0]), n) for v, n in ((x, cols), (y, rows)))
    tokens = side**2 + torch.arange(rows * (cols + 1)).view(rows, cols + 1)[:, :cols]
    return [_whole(size, side, side, seen=seen), (tokens, x, y)], side**2 + rows * (cols + 1)


def _qwen(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Resized to a whole number of patches in its own aspect ratio; merged patches, row by row."""
    images: Any = vlm.processor.image_processor
    _, rows, cols = (n // images.merge_size for n in _processed(vlm, size)["image_grid_thw"])
    return [_whole(size, rows, cols)], rows * cols


def _pixtral(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Resized to a whole number of patches in its own aspect ratio; a marker that is no image token ends each row."""
    patch = vlm.processor.patch_size * vlm.processor.spatial_merge_size
    rows, cols = (n // patch for n in _processed(vlm, size, patch_size=patch)["image_sizes"])
    return [_whole(size, rows, cols)], rows * cols


def _gemma4(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Resized to a whole number of pooled patches in about its own aspect ratio."""
    places = torch.tensor(_processed(vlm, size)["image_position_ids"]).view(-1, 2)
    cols, rows = (int(n) for n in (places.amax(0) + 1) // vlm.processor.image_processor.pooling_kernel_size)
    return [_whole(size, rows, cols)], rows * cols


def _aya(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """As InternVL's, with markers between tiles."""
    return _internvl(vlm, size, alone, vlm.processor.img_size // vlm.processor.patch_size)


def _internvl(vlm: ImageModel, size: Size, alone: bool, side: int | None = None) -> Layout:
    """Squeezed into a grid of tiles, tile by tile, then the whole image; a single tile is the whole image."""
    images: Any = vlm.processor.image_processor
    side = side or isqrt(vlm.processor.image_seq_length)
    (n,) = _processed(vlm, size)["num_patches"]
    if n == 1:
        return [_whole(size, side, side)], side**2
    tile = (images.size["height"], images.size["width"])
    across, down = get_optimal_tiled_canvas(size[::-1], tile, images.min_patches, images.max_patches)
    return _tiled(size, down, across, side), n * side**2


def _idefics(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Squeezed into rows and columns of tiles, each after its marker, then the whole image."""
    side = isqrt(vlm.processor.image_seq_len)
    tiling = _processed(vlm, size, return_row_col_info=True)
    (down,), (across,) = tiling["rows"], tiling["cols"]
    if not down * across:
        return [_whole(size, side, side)], side**2
    return _tiled(size, down, across, side), (down * across + 1) * side**2


def _tiled(size: Size, down: int, across: int, side: int) -> list[Raster]:
    w, h = size
    tiles = _tiles(down, across, side), _cells(0, w / across, side, across), _cells(0, h / down, side, down)
    return [_whole(size, side, side, first=down * across * side**2), tiles]


def _lfm2(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Squeezed into rows and columns of tiles, then the whole image in its own aspect ratio; a small one is one view."""
    images, found = vlm.processor.image_processor, _processed(vlm, size, return_row_col_info=True)
    (down,), (across,) = found["image_rows"], found["image_cols"]
    rows, cols = (ceil(n // images.encoder_patch_size / images.downsample_factor) for n in found["image_sizes"])
    if down * across == 1:
        return [_whole(size, rows, cols)], rows * cols
    side = ceil(images.tile_size // images.encoder_patch_size / images.downsample_factor)
    parts, n = _tiled(size, down, across, side)[1:], down * across * side**2
    if images.use_thumbnail:
        parts, n = [_whole(size, rows, cols, first=n), *parts], n + rows * cols
    return parts, n


def _llama4(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """In its own aspect ratio on a canvas of tiles, black to the right or below; then squeezed whole, if there are several tiles."""
    images, found = vlm.processor.image_processor, _processed(vlm, size)
    (down, across), (height, width) = found["aspect_ratios"], found["pixel_values"][-2:]
    side = isqrt((height // vlm.processor.patch_size) * (width // vlm.processor.patch_size) // vlm.processor.downsample_ratio)
    w, h = size
    wide, high = across * width, down * height
    if not images.resize_to_max_canvas:
        wide, high = min(max(w, height), wide), min(max(h, height), high)
    if wide / w < high / h:
        high = min(floor(h * (wide / w)), high)
    else:
        wide = min(floor(w * (high / h)), wide)
    tiles = _tiles(down, across, side), _cells(0, width * w / wide, side, across), _cells(0, height * h / high, side, down)
    n = down * across * side**2
    return ([tiles], n) if down * across == 1 else ([_whole(size, side, side, first=n), tiles], n + side**2)


def _gemma(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Squeezed into one square; with pan and scan, followed by crops along the longer side."""
    side = isqrt(vlm.processor.image_seq_length)
    (n,) = _processed(vlm, size)["num_crops"]
    parts = [_whole(size, side, side)]
    if n:
        longer = max(size)
        step = ceil(longer / n)
        along = torch.cat([_cells(i * step, min(step, longer - i * step), side) for i in range(n)])
        if size[0] >= size[1]:
            parts.append((side**2 + _tiles(1, n, side), along, _cells(0, size[1], side)))
        else:
            parts.append((side**2 + _tiles(n, 1, side), _cells(0, size[0], side), along))
    return parts, (n + 1) * side**2


def _paligemma(vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """Squeezed into one square."""
    side = isqrt(vlm.processor.image_seq_length)
    return [_whole(size, side, side)], side**2


def layout_of(vlm: ImageModel) -> Callable[[ImageModel, Size, bool], Layout] | None:
    """How this model lays out an image, by its processor where that is another family's (Pixtral is a LLaVA); None if not known."""
    processor = vlm.processor
    if vlm.family == "llava" and not hasattr(processor, "num_additional_image_tokens"):
        return _pixtral if hasattr(processor, "spatial_merge_size") else None
    return LAYOUTS.get(vlm.family)


LAYOUTS: Mapping[str, Callable[[ImageModel, Size, bool], Layout]] = {
    "llava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "qwen2_5_omni_thinker": _qwen,
    "qwen3_omni_moe_thinker": _qwen,
    "glm4v": _qwen,
    "glm4v_moe": _qwen,
    "glm46v": _qwen,
    "mistral3": _pixtral,
    "gemma4": _gemma4,
    "aya_vision": _aya,
    "lfm2_vl": _lfm2,
    "llama4": _llama4,
    "internvl": _internvl,
    "gemma3": _gemma,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "paligemma": _paligemma,
}
"""The layout of an image's tokens by model_type."""
