"""Images of three families whose own processors want torchvision: the same views, cut with Pillow.

Where torchvision is, the zoo has the families' own classes, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, sqrt
from typing import Any

import numpy as np
import torch
import transformers
from einops import rearrange
from PIL import Image
from transformers import BatchFeature, ProcessorMixin, Siglip2ImageProcessorPil, SiglipImageProcessorPil
from transformers.image_utils import make_flat_list_of_images
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorKwargs
from transformers.utils import is_torchvision_available


def own_or(stand_in: type, name: str) -> Any:
    """A class of transformers that wants torchvision, or what stands in for it."""
    return getattr(transformers, name) if is_torchvision_available() else stand_in


class ImagesByRows(ProcessorMixin):
    """What PixtralProcessor does: a break after each row of an image's tokens."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, patch_size: int = 16, spatial_merge_size: int = 1, chat_template: str | None = None
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size, self.image_token = patch_size, spatial_merge_size, "[IMG]"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "image_sizes"]

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        return super()._process_images(images, **kwargs | {"patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        rows, cols = (n // (self.patch_size * self.spatial_merge_size) for n in image_inputs["image_sizes"][image_idx])
        return "[IMG_BREAK]".join(["[IMG]" * cols] * rows) + "[IMG_END]"


def _tiles(image: Image.Image, rows: int, cols: int) -> list[Image.Image]:
    wide, high = image.width // cols, image.height // rows
    return [image.crop((c * wide, r * high, (c + 1) * wide, (r + 1) * high)) for r in range(rows) for c in range(cols)]


def _flat(images: Any) -> list[Image.Image]:
    found: Any = make_flat_list_of_images(images)
    return [image.convert("RGB") for image in found]


class Lfm2VlImageOptions(Siglip2ImageProcessorKwargs, total=False):
    """What the family's processor asks of its images."""

    return_row_col_info: bool | None
    downsample_factor: int
    min_tiles: int
    max_tiles: int
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float


class Lfm2VlImages(Siglip2ImageProcessorPil):
    """LFM2-VL's images: squeezed to whole patches, or into a grid of tiles with the whole image after them."""

    valid_kwargs = Lfm2VlImageOptions
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    use_thumbnail, downsample_factor, min_tiles, max_tiles, min_image_tokens, max_image_tokens = True, 2, 2, 10, 64, 256
    encoder_patch_size, tile_size, max_pixels_tolerance = 16, 512, 2.0

    def preprocess(self, images: Any, return_tensors: Any = None, **_: Any) -> BatchFeature:
        patch, views = self.encoder_patch_size, []
        found: dict[str, list[Any]] = {"image_rows": [], "image_cols": [], "image_sizes": []}
        for image in _flat(images):
            wide, high = self._size(image.width, image.height)
            rows, cols = self._grid(image.width, image.height)
            whole = image.resize((wide, high), Image.Resampling.BILINEAR)
            if rows * cols > 1:
                views += _tiles(image.resize((cols * self.tile_size, rows * self.tile_size), Image.Resampling.BILINEAR), rows, cols)
            views.append(whole)
            for key, value in zip(found, (rows, cols, [high, wide]), strict=True):
                found[key].append(value)
        most = max(self.max_image_tokens * self.downsample_factor**2, (self.tile_size // patch) ** 2)
        pixels, mask = np.zeros((len(views), most, 3 * patch**2), dtype=np.float32), np.zeros((len(views), most), dtype=np.int32)
        for i, view in enumerate(views):
            part = rearrange(np.asarray(view, dtype=np.float32) / 127.5 - 1, "(r p) (c q) h -> (r c) (p q h)", p=patch, q=patch)
            pixels[i, : len(part)], mask[i, : len(part)] = part, 1
        shapes = [[view.height // patch, view.width // patch] for view in views]
        return BatchFeature(
            {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes} | found, tensor_type=return_tensors
        )

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """The size of the whole image: a whole number of merged patches, as many as are allowed."""
        unit = self.encoder_patch_size * self.downsample_factor
        least, most = (n * unit**2 for n in (self.min_image_tokens, self.max_image_tokens))
        high, wide = (max(unit, round(n / unit) * unit) for n in (height, width))
        if high * wide > most:
            shrink = sqrt(height * width / most)
            high, wide = (max(unit, floor(n / shrink / unit) * unit) for n in (height, width))
        elif high * wide < least:
            grow = sqrt(least / (height * width))
            high, wide = (ceil(n * grow / unit) * unit for n in (height, width))
        return wide, high

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles: one of each unless the image is large."""
        unit = self.encoder_patch_size * self.downsample_factor
        high, wide = (max(self.encoder_patch_size, round(n / unit) * unit) for n in (height, width))
        if high * wide <= self.max_image_tokens * unit**2 * self.max_pixels_tolerance:
            return 1, 1
        counts = range(1, self.max_tiles + 1)
        grids = sorted(((c, r) for c in counts for r in counts if self.min_tiles <= c * r <= self.max_tiles), key=lambda x: x[0] * x[1])
        best, least = (1, 1), float("inf")
        for c, r in grids:
            away = abs(width / height - c / r)
            if away < least or (away == least and width * height > 0.5 * self.tile_size**2 * c * r):
                best, least = (r, c), away
        return best


class Llama4ImageOptions(transformers.processing_utils.ImagesKwargs, total=False):
    """What the family's image processor is made with."""

    max_patches: int
    resize_to_max_canvas: bool


class Llama4Images(SiglipImageProcessorPil):
    """Llama 4's images: on a canvas of tiles with black to the right or below, and the whole image squeezed after them."""

    valid_kwargs = Llama4ImageOptions
    max_patches, resize_to_max_canvas = 16, False

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        side, views, shapes = self.size["height"], [], []
        for image in _flat(images):
            rows, cols = self._canvas(image.width, image.height)
            most_high, most_wide = (min(max(n, side), k * side) for n, k in ((image.height, rows), (image.width, cols)))
            by_width, by_height = most_wide / image.width, most_high / image.height
            if by_width < by_height:
                wide, high = most_wide, min(floor(image.height * by_width), most_high)
            else:
                wide, high = min(floor(image.width * by_height), most_wide), most_high
            canvas = Image.new("RGB", (cols * side, rows * side))
            canvas.paste(image.resize((max(wide, 1), max(high, 1)), Image.Resampling.BILINEAR))
            views += _tiles(canvas, rows, cols)
            if rows * cols > 1:
                views.append(image.resize((side, side), Image.Resampling.BILINEAR))
            shapes.append([rows, cols])
        out = super().preprocess(views, **kwargs)
        return BatchFeature(dict(out) | {"aspect_ratios": torch.tensor(shapes)})

    def _canvas(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the smallest canvas that holds the image without shrinking it, or of the one that shrinks it least."""
        side, counts = self.size["height"], range(1, self.max_patches + 1)
        grids: Sequence[tuple[int, int]] = [(r, c) for r in counts for c in counts if r * c <= self.max_patches]
        scale = {grid: min(grid[1] * side / width, grid[0] * side / height) for grid in grids}
        holds = [grid for grid in grids if scale[grid] >= 1]
        best = min(scale[grid] for grid in holds) if holds else max(scale.values())
        return min((grid for grid in grids if scale[grid] == best), key=lambda grid: grid[0] * grid[1])
