"""Which prompt token shows which part of which picture, on the real patch grid of each family.

A vision tower mixes its patches: a token's box is where its patch lies, not all that it may know of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import checked
from ...core.notebook import NotebookView
from ...data.decoding import ImageSource, open_size
from ...data.question import Box, Question, open_image
from ...errors import ModelError
from ...vlm.patch_layout import LAYOUTS, Size
from ...vlm.vlm import VLM


@dataclass(frozen=True)
class Raster:
    """One picture at one resolution: tokens [R, C] of the prompt, row by row, and the columns' x [C, 2] and rows' y [R, 2].

    x and y are from-to in pixels of the picture, cut at its edges; a column or row of padding has no width.
    """

    picture: int
    tokens: Tensor
    x: Tensor
    y: Tensor

    @property
    def areas(self) -> Tensor:
        """Pixels of the picture that each token shows, [R, C]."""
        return (self.y[:, 1] - self.y[:, 0])[:, None] * (self.x[:, 1] - self.x[:, 0])

    def boxes(self) -> Tensor:
        """(left, top, right, bottom) of each token, [R, C, 4]."""
        R, C = self.tokens.shape
        left, right = self.x.T[:, None].expand(2, R, C)
        top, bottom = self.y.T[:, :, None].expand(2, R, C)
        return torch.stack([left, top, right, bottom], -1)


@dataclass(frozen=True)
class PatchGrid(NotebookView):
    """Where the pictures of one prompt of T tokens are: sizes (width, height) of the pictures, and their rasters.

    A picture that is shown whole and in tiles has two rasters, the finer one last. Tokens of no raster show nothing: words,
    markers of rows and columns, new lines between rows of patches.

    >>> import scale_interp as si
    >>> grid = patch_grid(si.load("demo"), si.load_questions("scenes/relation", n=1)[0])
    >>> int(grid.shown.sum()), bool(grid.cover([(0.0, 0.0, 8.0, 8.0)]).max() <= 1)
    (49, True)
    """

    n_tokens: int
    sizes: tuple[Size, ...]
    rasters: tuple[Raster, ...]

    def __repr__(self) -> str:
        return f"<PatchGrid of {len(self.sizes)} picture(s), {int(self.shown.sum())} of {self.n_tokens} tokens show a part of one>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return (
            {"picture": r.picture, "size": "{} x {}".format(*self.sizes[r.picture]), "tokens": "{} x {}".format(*r.tokens.shape)}
            for r in self.rasters
        )

    @cached_property
    def shown(self) -> Tensor:
        """Which tokens show a part of a picture, bool [T]."""
        out = torch.zeros(self.n_tokens, dtype=torch.bool)
        for raster in self.rasters:
            out[raster.tokens] = raster.areas > 0
        return out

    @property
    def finest(self) -> list[Raster]:
        """The raster with the most tokens of each picture."""
        found: dict[int, Raster] = {}
        for raster in self.rasters:
            if raster.picture not in found or raster.tokens.numel() > found[raster.picture].tokens.numel():
                found[raster.picture] = raster
        return list(found.values())

    def cover(self, boxes: Sequence[Box], picture: int = 0) -> Tensor:
        """How much of each token's part of a picture lies in the union of the boxes: shares from 0 to 1, [T]."""
        out = torch.zeros(self.n_tokens, dtype=torch.float64)
        edges = torch.tensor(boxes, dtype=torch.float64).view(-1, 2, 2)
        # Between neighbouring edges of boxes a point is in the union or not, whatever its place.
        xs, ys = (_intervals(edges[:, :, axis].flatten().unique()) for axis in (0, 1))
        inside = (xs[:, 0] >= edges[:, :1, 0]) & (xs[:, 1] <= edges[:, 1:, 0])
        beside = (ys[:, 0] >= edges[:, :1, 1]) & (ys[:, 1] <= edges[:, 1:, 1])
        union = torch.einsum("kx,ky->yx", inside.double(), beside.double()).clamp(max=1)
        for raster in self.rasters:
            if raster.picture == picture:
                area = _overlap(raster.y, ys) @ union @ _overlap(raster.x, xs).T
                out[raster.tokens] = area / raster.areas.clamp(min=1e-12)
        return out

    def upsample(self, weights: Tensor, picture: int = 0, longest: int = 224) -> Tensor:
        """Weights [T] of tokens spread evenly over the parts that they show: [h, w] of the picture's shape, `longest` at its longer side.

        Where a picture has two rasters their weights are added; the map's sum is the weights' sum over the picture's tokens.
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


@checked
def patch_grid(vlm: VLM, question: Question) -> PatchGrid:
    """The patch grid of a question's prompt, several pictures and none included.

    Raises ModelError for a family whose grid is not known, and where the grid and the prompt's image tokens do not match.

    >>> import scale_interp as si
    >>> grid = patch_grid(si.load("demo"), si.load_questions("scenes/relation", n=1)[0])
    >>> [raster.tokens.shape for raster in grid.rasters]
    [torch.Size([7, 7])]
    """
    ids = vlm.encode(question)["input_ids"][0].cpu()
    if not question.pictures:
        return PatchGrid(len(ids), (), ())
    if vlm.family not in LAYOUTS:
        raise ModelError(
            f"{vlm.name}: the patch grid of family {vlm.family!r} is not known (known: {', '.join(LAYOUTS)}): "
            "its attention can be read, but not placed on the picture"
        )
    at = (ids == vlm.image_token_id).nonzero()[:, 0]
    sizes = tuple(_size(picture, question.id) for picture in question.pictures)
    rasters, used = [], 0
    layouts = [LAYOUTS[vlm.family](vlm, size, len(sizes) == 1) for size in sizes]
    if sum(n for _, n in layouts) != len(at):
        raise ModelError(
            f"{vlm.name}: the patch grid of question {question.id} has {sum(n for _, n in layouts)} tokens, but its prompt has {len(at)} "
            "image tokens: this checkpoint lays its pictures out in a way that is not known"
        )
    for number, (size, (parts, n)) in enumerate(zip(sizes, layouts, strict=True)):
        for tokens, x, y in parts:
            rasters.append(Raster(number, at[used + tokens], x.clamp(0, size[0]), y.clamp(0, size[1])))
        used += n
    return PatchGrid(len(ids), sizes, tuple(rasters))


def _size(source: ImageSource, name: str) -> Size:
    where = f"question {name}"
    return open_size(source, where) if isinstance(source, str | Path) else open_image(source, where).size


def _intervals(edges: Tensor) -> Tensor:
    return torch.stack([edges[:-1], edges[1:]], 1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Length that intervals a [n, 2] and b [m, 2] share, [n, m]."""
    return (torch.minimum(a[:, None, 1], b[:, 1]) - torch.maximum(a[:, None, 0], b[:, 0])).clamp(min=0)
