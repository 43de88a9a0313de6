"""The affine edit of the last token's heads and MLPs, N variants at once.

z'[l,h,:] = scale[l,h] * z[l,h,:] + shift[l,h,:]            mlp'[l] = mlp_scale[l] * mlp[l]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import Raises
from ..errors import EditError

Head = tuple[int, int]
Scope = Annotated[Literal["last", "each_new_token"], Raises(EditError)]


@dataclass(frozen=True)
class LayerEdit:
    """The edit of one layer, for the rows from `first` on: scale [b, n, H], shift [b, n, H, D], mlp_scale [n]."""

    first: int
    scale: Tensor | None
    shift: Tensor | None = None
    mlp_scale: Tensor | None = None


@runtime_checkable
class Variants(Protocol):
    """What the engine needs of an edit. `Edit` is the general form, `HeadSweep` the sparse one."""

    @property
    def scope(self) -> Scope: ...
    @property
    def n_variants(self) -> int: ...
    def starts(self, n_layers: int) -> Int[Tensor, " variants"]: ...
    def at(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None: ...
    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None: ...


@dataclass(frozen=True)
class Edit:
    """N affine edits of the last token. Every part is optional, and a missing part changes nothing.

    Args:
        scale: Factors on the head outputs, [N, L, H], or [Q, N, L, H] for values per question.
        shift: What is added to the head outputs, [N, L, H, D] or [Q, N, L, H, D].
        mlp_scale: Factors on the MLP outputs, [N, L].
        scope: "last" edits only the prompt's last token, "each_new_token" every token after it as well.

    Raises:
        EditError: A part has the wrong number of axes, no part is given, or the parts differ in N.

    >>> Edit(scale=torch.zeros(1, 6, 8)).n_variants
    1
    """

    scale: Float[Tensor, "*questions variants layers heads"] | None = None
    shift: Float[Tensor, "*questions variants layers heads head_dim"] | None = None
    mlp_scale: Float[Tensor, "variants layers"] | None = None
    scope: Scope = "last"

    def __post_init__(self) -> None:
        for name, ndim in (("scale", 3), ("shift", 4), ("mlp_scale", 2)):
            part = getattr(self, name)
            if part is not None and not isinstance(part, Tensor):
                raise EditError(f"{name} is a {type(part).__name__}: give a tensor, as torch.tensor(...) makes it")
            if part is not None and part.ndim not in ((ndim,) if name == "mlp_scale" else (ndim, ndim + 1)):
                raise EditError(f"{name} has shape {tuple(part.shape)}: give [N, L{', H' * (ndim > 2)}{', D' * (ndim > 3)}]")
        if self.scope not in ("last", "each_new_token"):
            raise EditError(f"scope {self.scope!r}: choose 'last' or 'each_new_token'")
        counts = self._counts()
        if not counts:
            raise EditError("an edit without scale, shift and mlp_scale: give at least one (Edit.identity for none)")
        if 0 in counts.values() or len({n for n in counts.values() if n != 1}) > 1:
            raise EditError(f"the parts hold {counts} variants: give each the same N of at least 1, or 1")

    def __repr__(self) -> str:
        given = {name: part for name in ("scale", "shift", "mlp_scale") if (part := getattr(self, name)) is not None}
        parts = ", ".join(f"{name} {list(part.shape)}" for name, part in given.items())
        return f"<Edit of {self.n_variants} variant{'s' * (self.n_variants > 1)}: {parts}; scope {self.scope}>"

    def _counts(self) -> dict[str, int]:
        axes = {"scale": -3, "shift": -4, "mlp_scale": -2}
        return {name: part.shape[axis] for name, axis in axes.items() if (part := getattr(self, name)) is not None}

    @property
    def n_variants(self) -> int:
        """The number N of variants."""
        return max(self._counts().values())

    @staticmethod
    def identity(n_layers: int, n_heads: int) -> Edit:
        """One variant that changes nothing: it multiplies every head by 1."""
        return Edit(scale=torch.ones(1, n_layers, n_heads))

    @staticmethod
    def scaling(heads: Iterable[Head], factor: float, n_layers: int, n_heads: int) -> Edit:
        """One variant that multiplies the given heads by `factor`.

        Args:
            heads: (layer, head) pairs, counted from 0.
            factor: The factor on each of them.
            n_layers: Of the model.
            n_heads: Heads per layer.

        Returns:
            The edit.

        Raises:
            EditError: A head is out of range, repeated, or not a pair.

        >>> Edit.scaling([(0, 1)], 0.5, n_layers=1, n_heads=2).scale
        tensor([[[1.0000, 0.5000]]])
        """
        scale = torch.ones(1, n_layers, n_heads)
        for layer, head in check_heads(heads, n_layers, n_heads):
            scale[0, layer, head] = factor
        return Edit(scale=scale)

    def compose(self, other: Edit) -> Edit:
        """The edit that applies this edit first and `other` second.

        Args:
            other: An edit with the same number of variants, or with one; so may this edit have one.

        Returns:
            The edit.

        Raises:
            EditError: The edits differ in scope.

        >>> half = Edit.scaling([(0, 1)], 0.5, n_layers=1, n_heads=2)
        >>> half.compose(half).scale
        tensor([[[1.0000, 0.2500]]])
        """
        if self.scope != other.scope:
            raise EditError(f"cannot compose edits of scope {self.scope!r} and {other.scope!r}: give both the same scope")
        scale = _product(self.scale, other.scale)
        shift = self.shift
        if shift is not None and other.scale is not None:
            shift = shift * other.scale[..., None]
        if other.shift is not None:
            shift = other.shift if shift is None else shift + other.shift
        return Edit(scale, shift, _product(self.mlp_scale, other.mlp_scale), self.scope)

    @staticmethod
    def stack(edits: Sequence[Edit]) -> Edit:
        """All variants of several edits, in order, as one edit.

        Args:
            edits: The edits.

        Returns:
            The edit.

        Raises:
            EditError: There are no edits, or they differ in scope or in whether they have a question axis.

        >>> Edit.stack([Edit.scaling([(0, head)], 0.0, n_layers=1, n_heads=2) for head in range(2)])
        <Edit of 2 variants: scale [2, 1, 2]; scope last>
        """
        if not edits:
            raise EditError("no edits to stack: give at least one")
        if len({e.scope for e in edits}) > 1:
            raise EditError("cannot stack edits of different scope: run them in separate calls")
        parts = {}
        for name, axis, fill in (("scale", -3, 1.0), ("shift", -4, 0.0), ("mlp_scale", -2, 1.0)):
            given = [getattr(e, name) for e in edits]
            like = next((p for p in given if p is not None), None)
            if like is None:
                continue
            filled = []
            for edit, part in zip(edits, given, strict=True):
                shape = list(like.shape if part is None else part.shape)
                shape[axis] = edit.n_variants
                filled.append(like.new_full(shape, fill) if part is None else part.expand(shape))
            if len({p.ndim for p in filled}) > 1:
                raise EditError(f"cannot stack {name} with and without a question axis: expand the one without to [Q, N, ...]")
            parts[name] = torch.cat(filled, axis)
        return Edit(**parts, scope=edits[0].scope)

    def restrict(self, heads: Iterable[Head], mlp_layers: Iterable[int] = ()) -> Edit:
        """The same edit on the given heads and MLPs only; everything else stays unedited.

        Args:
            heads: (layer, head) pairs, counted from 0.
            mlp_layers: The layers of the MLPs.

        Returns:
            The edit.

        Raises:
            EditError: A head or a layer is out of range, or a head is repeated.

        >>> Edit(scale=torch.zeros(1, 1, 2)).restrict([(0, 1)]).scale
        tensor([[[1., 0.]]])
        """
        part = self.scale if self.scale is not None else self.shift
        layers, mlps = list(mlp_layers), self.mlp_scale
        scale, shift = self.scale, self.shift
        if part is not None:
            L, H = part.shape[-2:] if self.scale is not None else part.shape[-3:-1]
            keep = torch.zeros(L, H, dtype=torch.bool, device=part.device)
            for layer, head in check_heads(heads, L, H):
                keep[layer, head] = True
            scale = None if scale is None else torch.where(keep, scale, 1.0)
            shift = None if shift is None else torch.where(keep[..., None], shift, 0.0)
        if mlps is not None:
            wrong = [layer for layer in layers if not 0 <= layer < mlps.shape[-1]]
            if wrong:
                raise EditError(f"MLP of layer {wrong[0]}: the edit has {mlps.shape[-1]} layers, counted from 0; choose among those")
            on = torch.zeros(mlps.shape[-1], dtype=torch.bool, device=mlps.device)
            on[layers] = True
            mlps = torch.where(on, mlps, 1.0)
        return replace(self, scale=scale, shift=shift, mlp_scale=mlps)

    def __getitem__(self, variant: int) -> Edit:
        """One variant as an edit. Raises IndexError if there is no such variant."""
        if not -self.n_variants <= variant < self.n_variants:
            raise IndexError(f"variant {variant} of {self.n_variants}")
        variant %= self.n_variants

        def pick(part: Tensor | None, axis: int) -> Tensor | None:
            if part is None:
                return None
            return part.narrow(axis, variant if part.shape[axis] > 1 else 0, 1)

        return replace(self, scale=pick(self.scale, -3), shift=pick(self.shift, -4), mlp_scale=pick(self.mlp_scale, -2))

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError if the edit does not fit this model and this number of questions."""
        expected = {"scale": (n_layers, n_heads), "shift": (n_layers, n_heads, head_dim), "mlp_scale": (n_layers,)}
        for name, shape in expected.items():
            part = getattr(self, name)
            if part is None:
                continue
            if tuple(part.shape[-len(shape) :]) != shape:
                raise EditError(
                    f"{name} has shape {tuple(part.shape)}, but the model needs [N, {', '.join(map(str, shape))}]: give that shape"
                )
            if part.ndim == len(shape) + 2 and part.shape[0] != n_questions:
                raise EditError(f"{name} is for {part.shape[0]} questions, but there are {n_questions}: give one row per question")
            if not torch.isfinite(part).all():
                raise EditError(f"{name} holds values that are not finite: give finite numbers")

    def starts(self, n_layers: int) -> Int[Tensor, " variants"]:
        """The first layer at which each variant differs from the clean run, [N]; n_layers if it never does."""
        parts = [p for p in (self.scale, self.shift, self.mlp_scale) if p is not None]
        if any(p.requires_grad for p in parts):
            return torch.zeros(self.n_variants, dtype=torch.long)
        changed = torch.zeros(self.n_variants, n_layers, dtype=torch.bool)
        for part, neutral, tail in ((self.scale, 1.0, 1), (self.shift, 0.0, 2), (self.mlp_scale, 1.0, 0)):
            if part is not None:
                differs = (part != neutral).cpu()
                differs = differs.flatten(-tail).any(-1) if tail else differs
                changed |= differs.any(0) if differs.ndim == 3 else differs
        first = changed.int().argmax(1)
        return torch.where(changed.any(1), first, n_layers)

    def at(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """The edit of one layer for the variants `alive`, and for these rows of the questions."""

        def pick(part: Tensor | None, tail: int) -> Tensor | None:
            if part is None:
                return None
            part = part.select(-1 - tail, layer)
            part = part[rows] if part.ndim == tail + 2 else part[None]
            return part if part.shape[1] == 1 else part[:, alive.to(part.device)]

        mlp = None if self.mlp_scale is None else self.mlp_scale[:, layer]
        if mlp is not None and len(mlp) > 1:
            mlp = mlp[alive.to(mlp.device)]
        return LayerEdit(0, pick(self.scale, 1), pick(self.shift, 2), mlp)


def check_heads(heads: Iterable[Head], n_layers: int, n_heads: int) -> list[Head]:
    """The heads as (layer, head) pairs of whole numbers.

    Args:
        heads: The pairs, counted from 0.
        n_layers: Of the model.
        n_heads: Heads per layer.

    Returns:
        The pairs.

    Raises:
        EditError: A head is out of range, repeated, or not a pair.
    """
    out: list[Head] = []
    for item in heads:
        try:
            layer, head = (int(i) for i in item)
        except (TypeError, ValueError) as error:
            raise EditError(f"head {item!r} is not a (layer, head) pair: give two whole numbers, such as (3, 0)") from error
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise EditError(
                f"head {(layer, head)} is out of range: the model has {n_layers} layers x {n_heads} heads; "
                f"give a layer from 0 to {n_layers - 1} and a head from 0 to {n_heads - 1}"
            )
        if (layer, head) in out:
            raise EditError(f"head {(layer, head)} is given twice: give each head once")
        out.append((layer, head))
    return out


def affine(
    z: Float[Tensor, "*rows heads head_dim"],
    scale: Float[Tensor, "*#rows heads"] | None,
    shift: Float[Tensor, "*#rows heads head_dim"] | None,
) -> Float[Tensor, "*rows heads head_dim"]:
    """scale * z + shift in the dtype of z.

    Args:
        z: Head outputs, [..., H, D].
        scale: [..., H].
        shift: [..., H, D].

    Returns:
        Edited head outputs, [..., H, D].
    """
    out = z if scale is None else z * scale[..., None].to(z.device)
    out = out if shift is None else out + shift.to(z.device)
    return out.to(z.dtype)


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a * b
