"""Edits at some tokens of a pass: the hooks that change a layer's components there, on whole passes and on packed rows alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..core.there import there
from ..vlm.decoder import HeadLayer, mlp_rows, with_mlp_rows
from .edit import Change


@dataclass(frozen=True)
class Places:
    """Which rows of a pass are edited, for B questions with groups of different length.

    Attributes:
        index: The rows [B, P]; a shorter group repeats its first row, so that it is written twice with the same values.
        used: Whether a question has any, [B].
    """

    index: Int[Tensor, "questions places"]
    used: Bool[Tensor, " questions"]

    @staticmethod
    def of(rows: Sequence[Sequence[int]], device: torch.device) -> Places:
        """The places of each question's rows; a question may have none."""
        P = max(1, *map(len, rows))
        filled = [[*row, *[row[0] if row else 0] * (P - len(row))] for row in rows]
        return Places(torch.tensor(filled, device=device), torch.tensor([bool(row) for row in rows], device=device))

    def take(self, values: Tensor) -> Tensor:
        """The values at the places: [B, S, ...] gives [B, P, ...]."""
        index = self.index.view(*self.index.shape, *[1] * (values.ndim - 2)).expand(*self.index.shape, *values.shape[2:])
        return values.gather(1, there(index, values.device))


@contextmanager
def edited(block: HeadLayer, changes: Sequence[Change], places: Places, lead: int = 0) -> Iterator[None]:
    """Change a layer's components at these places in the passes inside the block.

    Args:
        block: The layer.
        changes: What is changed.
        places: Where, in passes over [B * (lead + n), S, ...], each question's rows of `lead` unedited and n edited variants together.
        lead: How many variants of each question stay unedited.
    """
    with ExitStack() as stack:
        for change in changes:
            act = partial(_changed, block=block, change=change, places=places, lead=lead)
            stack.callback(_hook(block, change.component, act).remove)
        yield


def _hook(block: HeadLayer, component: str, act: Any) -> Any:
    if component == "resid":
        return block.module.register_forward_pre_hook(partial(_on_first_argument, act=act), with_kwargs=True)
    if component == "head":
        return block.output().register_forward_pre_hook(partial(_on_first_argument, act=act), with_kwargs=True)
    if component == "attn":
        return block.output().register_forward_hook(lambda _, __, out: act(out))
    return block.mlp().register_forward_hook(partial(_on_mlp, act=act))


def _on_first_argument(module: nn.Module, args: tuple, kwargs: dict[str, Any], act: Any) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (act(args[0]), *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, kwargs | {name: act(kwargs[name])}


def _on_mlp(module: nn.Module, args: tuple, out: Any, act: Any) -> Any:
    batch = args[0].shape[0] if args and args[0].ndim == 3 else 1
    return with_mlp_rows(out, act(mlp_rows(out, batch)))


def _changed(x: Tensor, block: HeadLayer, change: Change, places: Places, lead: int) -> Tensor:
    """x [B * (lead + n), S, F] with the places of its variants changed; all other rows stay as they are, bit for bit."""
    B, P = places.index.shape
    variants = x.unflatten(0, (B, -1))
    kept, own = variants[:, : lead + change.first], variants[:, lead + change.first :]
    index = places.index.to(x.device)[:, None, :, None].expand(B, own.shape[1], P, x.shape[-1])
    rows = own.gather(2, index)
    values, shift = rows, change.shift
    if change.component == "head":
        values = block.split(values)
        shift = None if shift is None else shift[..., : block.head_dim]
    if change.scale is not None:
        values = values * change.scale.to(x.device)
    if shift is not None:
        values = values + shift.to(x.device)
    values = values.to(x.dtype).flatten(3)
    if not places.used.all():
        values = torch.where(places.used.to(x.device)[:, None, None, None], values, rows)
    return torch.cat([kept, own.scatter(2, index, values)], 1).flatten(0, 1)
