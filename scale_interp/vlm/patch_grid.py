"""Which prompt token shows which part of which image, on each family's own patch grid.

A vision tower mixes its patches: a token's box is where its patch is, not the limit of what it may carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.notebook import NotebookView
from ..data.decoding import ImageSource, open_size
from ..data.question import Box, Question, open_image
from ..errors import ModelError
from .patch_layout import LAYOUTS, ImageModel, Layout, Size, layout_of


@dataclass(frozen=True)
class Raster:
    """One image at one resolution, as R rows and C columns of tokens.

    Args:
        picture: the number of the image in the prompt.
        tokens: places in the prompt, row by row [R, C].
        x: left and right end of every column, in pixels of the image, cut at its edges; a column of padding has no width [C, 2].
        y: the same for the top and bottom of every row [R, 2].
    """

    picture: int
    tokens: Int[Tensor, "rows columns"]
    x: Float[Tensor, "columns 2"]
    y: Float[Tensor, "rows 2"]

    @property
    def areas(self) -> Float[Tensor, "rows columns"]:
        """Pixels of the image that each token shows [R, C]."""
        return (self.y[:, 1] - self.y[:, 0])[:, None] * (self.x[:, 1] - self.x[:, 0])

    def boxes(self) -> Float[Tensor, "rows columns 4"]:
        """(left, top, right, bottom) of each token, in pixels [R, C, 4]."""
        R, C = self.tokens.shape
        left, right = self.x.T[:, None].expand(2, R, C)
        top, bottom = self.y.T[:, :, None].expand(2, R, C)
        return torch.stack([left, top, right, bottom], -1)


@dataclass(frozen=True)
class PatchGrid(NotebookView):
    """Where the images of one prompt are.

    An image that is shown both whole and in tiles has two rasters, the finer one last. Tokens of no raster show nothing: words, markers of
    rows and columns, new lines between rows of patches.

    Args:
        n_tokens: T, the length of the prompt.
        sizes: (width, height) of each image, in pixels.
        rasters: the images' rasters.

    >>> import scale_interp as si
    >>> grid = si.patch_grid(si.load("demo"), si.load_questions("scenes/relation", n=1)[0])
    >>> int(grid.shown.sum()), bool(grid.cover([(0.0, 0.0, 8.0, 8.0)]).max() <= 1)
    (49, True)
    """

    n_tokens: int
    sizes: tuple[Size, ...]
    rasters: tuple[Raster, ...]

    def __repr__(self) -> str:
        return f"<PatchGrid of {len(self.sizes)} image(s), {int(self.shown.sum())} of {self.n_tokens} tokens show a part of one>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return (
            {"picture": r.picture, "size": "{} x {}".format(*self.sizes[r.picture]), "tokens": "{} x {}".format(*r.tokens.shape)}
            for r in self.rasters
        )

    @cached_property
    def shown(self) -> Bool[Tensor, " tokens"]:
        """Which tokens show a part of an image, bool [T]."""
        out = torch.zeros(self.n_tokens, dtype=torch.bool)
        for raster in self.rasters:
            out[raster.tokens] = raster.areas > 0
        return out

    @property
    def finest(self) -> list[Raster]:
        """The raster with the most tokens, for each image."""
        found: dict[int, Raster] = {}
        for raster in self.rasters:
            if raster.picture not in found or raster.tokens.numel() > found[raster.picture].tokens.numel():
                found[raster.picture] = raster
        return list(found.values())

    def cover(self, boxes: Sequence[Box], picture: int = 0) -> Float[Tensor, " tokens"]:
        """The share of each token's part of an image that is inside the union of the boxes.

        Args:
            boxes: (left, top, right, bottom), in pixels of the image.
            picture: the number of the image in the prompt.

        Returns:
            Shares from 0 to 1 [T].
        """
        out = torch.zeros(self.n_tokens, dtype=torch.float64)
        edges = torch.tensor(boxes, dtype=torch.float64).view(-1, 2, 2)
        # Between neighbouring edges of boxes all points are in the union, or none is.
        xs, ys = (_intervals(edges[:, :, axis].flatten().unique()) for axis in (0, 1))
        inside = (xs[:, 0] >= edges[:, :1, 0]) & (xs[:, 1] <= edges[:, 1:, 0])
        beside = (ys[:, 0] >= edges[:, :1, 1]) & (ys[:, 1] <= edges[:, 1:, 1])
        union = torch.einsum("kx,ky->yx", inside.double(), beside.double()).clamp(max=1)
        for raster in self.rasters:
            if raster.picture == picture:
                area = _overlap(raster.y, ys) @ union @ _overlap(raster.x, xs).T
                out[raster.tokens] = area / raster.areas.clamp(min=1e-12)
        return out

    def upsample(self, weights: Float[Tensor, " tokens"], picture: int = 0, longest: int = 224) -> Float[Tensor, "height width"]:
        """Spread weights of tokens evenly over the parts of an image that they show.

        Where an image has two rasters their weights are added. The map's sum is the weights' sum over the image's tokens.

        Args:
            weights: [T].
            picture: the number of the image in the prompt.
            longest: pixels of the map's longer side.

        Returns:
            A map [h, w] of the image's shape.
        """
        width, height = self.sizes[picture]
        scale = min(1.0, longest / max(width, height))
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        xs, ys = (_intervals(torch.linspace(0, size, n + 1, dtype=torch.float64)) for size, n in ((width, w), (height, h)))
        out = torch.zeros(h, w, dtype=torch.float64)
        for raster in self.rasters:
            if raster.picture == picture:
                density = torch.where(raster.areas > 0, weights.double()[raster.tokens] / raster.areas, 0.0)
                out += _overlap(ys, raster.y) @ density @ _overlap(xs, raster.x).T
        return out


def place_images(vlm: ImageModel, ids: Int[Tensor, " tokens"], question: Question) -> PatchGrid:
    """Where the images of a question are among the tokens of its prompt.

    Args:
        vlm: The model.
        ids: The prompt's tokens [T].
        question: The question.

    Returns:
        The patch grid.

    Raises:
        ModelError: The family's grid is not known, or does not match the prompt's image tokens.
    """
    ids = ids.cpu()
    if not question.pictures:
        return PatchGrid(len(ids), (), ())
    layout = layout_of(vlm)
    if layout is None:
        raise ModelError(
            f"{vlm.name}: the patch grid of family {vlm.family!r} with a {type(vlm.processor).__name__} is not known (known: "
            f"{', '.join(LAYOUTS)}); use read_attention, whose weights are not placed on the image"
        )
    at = (ids == vlm.image_token_id).nonzero()[:, 0]
    sizes = tuple(_size(picture, question.id) for picture in question.pictures)
    rasters, used = [], 0
    layouts = [_laid_out(layout, vlm, size, len(sizes) == 1) for size in sizes]
    if sum(n for _, n in layouts) != len(at):
        raise ModelError(
            f"{vlm.name}: the patch grid of question {question.id} has {sum(n for _, n in layouts)} tokens, but its prompt has {len(at)} "
            "image tokens, so this checkpoint lays out its images in a way that is not known: use read_attention"
        )
    for number, (size, (parts, n)) in enumerate(zip(sizes, layouts, strict=True)):
        for tokens, x, y in parts:
            rasters.append(Raster(number, at[used + tokens], x.clamp(0, size[0]), y.clamp(0, size[1])))
        used += n
    return PatchGrid(len(ids), sizes, tuple(rasters))


def _laid_out(layout: Callable[[ImageModel, Size, bool], Layout], vlm: ImageModel, size: Size, alone: bool) -> Layout:
    """The layout of one image. ModelError where the processor lacks what its family's has, as one of another family does."""
    try:
        return layout(vlm, size, alone)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{vlm.name}: its {type(vlm.processor).__name__} does not say how an image of {size[0]} x {size[1]} is laid out "
            f"({type(error).__name__}: {error}): use read_attention, whose weights are not placed on the image"
        ) from error


def _size(source: ImageSource, name: str) -> Size:
    where = f"question {name}"
    return open_size(source, where) if isinstance(source, str | Path) else open_image(source, where).size


def _intervals(edges: Tensor) -> Tensor:
    return torch.stack([edges[:-1], edges[1:]], 1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """The length that intervals a [n, 2] and b [m, 2] share [n, m]."""
    return (torch.minimum(a[:, None, 1], b[:, 1]) - torch.maximum(a[:, None, 0], b[:, 0])).clamp(min=0)
