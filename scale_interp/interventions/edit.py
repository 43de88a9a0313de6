"""The affine edit of heads, attention outputs, MLPs and the residual stream at some tokens, N variants at once.

z'[l,h,p,:] = scale[l,h] * z[l,h,p,:] + shift[l,h,:]        mlp'[l,p] = mlp_scale[l] * mlp[l,p]        p: the last token, or a token group
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import Raises
from ..core.there import there
from ..data.wording import short
from ..errors import EditError
from ..vlm.token_groups import At

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
    def part(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None: ...
    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None: ...


Component = Literal["head", "attn", "mlp", "resid"]
"""What is edited: heads' outputs z, the attention output behind W_O, the MLP output, or the residual stream before a layer."""


@dataclass(frozen=True)
class Change:
    """The edit of one component of one layer, x' = scale * x + shift, for the variants from `first` on.

    Both are broadcast to what is edited: [b, n, P, H, D] of heads, [b, n, P, d] of the others.
    """

    component: Component
    first: int
    scale: Tensor | None = None
    shift: Tensor | None = None


@runtime_checkable
class Positioned(Protocol):
    """What the engine needs of an edit at some tokens of the prompt."""

    @property
    def at(self) -> At: ...
    @property
    def n_variants(self) -> int: ...
    def starts(self, n_layers: int) -> Int[Tensor, " variants"]: ...
    def changes(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> list[Change]: ...


@dataclass(frozen=True)
class _Part:
    """One part of an Edit: what it edits, its axes behind [N, L], and the value that changes nothing."""

    component: Component
    axes: str
    neutral: float

    @property
    def tail(self) -> int:
        return len(self.axes.split())


PARTS = {
    "scale": _Part("head", "H", 1.0),
    "shift": _Part("head", "H D", 0.0),
    "mlp_scale": _Part("mlp", "", 1.0),
    "mlp_shift": _Part("mlp", "d", 0.0),
    "attn_scale": _Part("attn", "", 1.0),
    "attn_shift": _Part("attn", "d", 0.0),
    "resid_scale": _Part("resid", "", 1.0),
    "resid_shift": _Part("resid", "d", 0.0),
}
LAST_ONLY = ("scale", "shift", "mlp_scale")
"""Parts that also run on the last token alone, which is the faster path."""


@dataclass(frozen=True)
class Edit:
    """N affine edits of the last token, or of other tokens. Every part is optional, and a missing part changes nothing.

    Args:
        scale: Factors on the head outputs, [N, L, H], or [Q, N, L, H] for values per question.
        shift: What is added to the head outputs, [N, L, H, D] or [Q, N, L, H, D].
        mlp_scale: Factors on the MLP outputs, [N, L].
        scope: "last" edits only the prompt's tokens named by `at`, "each_new_token" every token after the last one as well.
        at: Which tokens of the prompt: "last", another token group of `vlm.token_groups`, a list of groups, or token numbers
            (negative ones count from the end).
        mlp_shift: What is added to the MLP outputs, [N, L, d_model] or [Q, N, L, d_model].
        attn_scale: Factors on the attention outputs, behind W_O, [N, L] or [Q, N, L].
        attn_shift: What is added to them, [N, L, d_model] or [Q, N, L, d_model].
        resid_scale: Factors on the residual stream before a layer, [N, L] or [Q, N, L].
        resid_shift: What is added to it, [N, L, d_model] or [Q, N, L, d_model].

    Raises:
        EditError: A part has the wrong number of axes, no part is given, or the parts differ in N.

    >>> Edit(scale=torch.zeros(1, 6, 8)).n_variants
    1
    >>> Edit(scale=torch.zeros(1, 6, 8), at="object")
    <Edit of 1 variant: scale [1, 6, 8]; at 'object'>
    """

    scale: Float[Tensor, "*questions variants layers heads"] | None = None
    shift: Float[Tensor, "*questions variants layers heads head_dim"] | None = None
    mlp_scale: Float[Tensor, "variants layers"] | None = None
    scope: Scope = "last"
    at: At = "last"
    mlp_shift: Float[Tensor, "*questions variants layers width"] | None = None
    attn_scale: Float[Tensor, "*questions variants layers"] | None = None
    attn_shift: Float[Tensor, "*questions variants layers width"] | None = None
    resid_scale: Float[Tensor, "*questions variants layers"] | None = None
    resid_shift: Float[Tensor, "*questions variants layers width"] | None = None

    def __post_init__(self) -> None:
        for name, about in PARTS.items():
            part, ndim = getattr(self, name), 2 + about.tail
            if part is not None and not isinstance(part, Tensor):
                raise EditError(f"{name} is a {type(part).__name__}: give a tensor, as torch.tensor(...) makes it")
            if part is not None and part.is_complex():
                raise EditError(f"{name} holds complex numbers: give real ones")
            if part is not None and part.ndim not in ((ndim,) if name == "mlp_scale" else (ndim, ndim + 1)):
                raise EditError(f"{name} has shape {tuple(part.shape)}: give [{', '.join(['N', 'L', *about.axes.split()])}]")
        if self.scope not in ("last", "each_new_token"):
            raise EditError(f"scope {self.scope!r}: choose 'last' or 'each_new_token'")
        if not isinstance(self.at, str):
            object.__setattr__(self, "at", plain_tokens("at", self.at))
        if self.scope != "last" and positioned(self):
            raise EditError("scope 'each_new_token' edits heads and MLPs from the last token on: leave at='last', or the scope 'last'")
        counts = self._counts()
        if not counts:
            raise EditError("an edit without scale, shift and mlp_scale: give at least one (Edit.identity for none)")
        if 0 in counts.values() or len({n for n in counts.values() if n != 1}) > 1:
            raise EditError(f"the parts hold {counts} variants: give each the same N of at least 1, or 1")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {list(part.shape)}" for name, part in self.parts.items())
        where = f"scope {self.scope}" if self.at == "last" else f"at {short(self.at)}"
        return f"<Edit of {self.n_variants} variant{'s' * (self.n_variants > 1)}: {parts}; {where}>"

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that are given, by name."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    def _counts(self) -> dict[str, int]:
        return {name: part.shape[-2 - PARTS[name].tail] for name, part in self.parts.items()}

    @property
    def n_variants(self) -> int:
        """The number N of variants."""
        return max(self._counts().values())

    @staticmethod
    def identity(n_layers: int, n_heads: int) -> Edit:
        """One variant that changes nothing: it multiplies every head by 1."""
        return Edit(scale=torch.ones(1, n_layers, n_heads, dtype=torch.float32))

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
        scale = torch.ones(1, n_layers, n_heads, dtype=torch.float32)
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
        if self.at != other.at:
            raise EditError(f"cannot compose edits at {short(self.at)} and at {short(other.at)}: give both the same tokens")
        made: dict[str, Any] = {}
        for prefix in ("", "mlp_", "attn_", "resid_"):
            scale, shift = (getattr(self, prefix + name) for name in ("scale", "shift"))
            then_scale, then_shift = (getattr(other, prefix + name) for name in ("scale", "shift"))
            if shift is not None and then_scale is not None:
                shift = shift * then_scale[..., None]
            if then_shift is not None:
                shift = then_shift if shift is None else shift + then_shift
            made |= {f"{prefix}scale": _product(scale, then_scale), f"{prefix}shift": shift}
        return Edit(**made, scope=self.scope, at=self.at)

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
        if any(e.at != edits[0].at for e in edits):
            raise EditError("cannot stack edits at different tokens: run them in separate calls")
        parts: dict[str, Any] = {}
        for name, about in PARTS.items():
            axis, fill = -2 - about.tail, about.neutral
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
        return Edit(**parts, scope=edits[0].scope, at=edits[0].at)

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
        layers = list(mlp_layers)
        kept: dict[str, Any] = {name: None for name in self.parts if PARTS[name].component in ("attn", "resid")}
        if part is not None:
            L, H = part.shape[-2:] if self.scale is not None else part.shape[-3:-1]
            keep = torch.zeros(L, H, dtype=torch.bool, device=part.device)
            for layer, head in check_heads(heads, L, H):
                keep[layer, head] = True
            kept["scale"] = None if self.scale is None else torch.where(keep, self.scale, 1.0)
            kept["shift"] = None if self.shift is None else torch.where(keep[..., None], self.shift, 0.0)
        for name in ("mlp_scale", "mlp_shift"):
            mlps = getattr(self, name)
            if mlps is None:
                continue
            L = mlps.shape[-1 - PARTS[name].tail]
            wrong = [layer for layer in layers if not 0 <= layer < L]
            if wrong:
                raise EditError(f"MLP of layer {wrong[0]}: the edit has {L} layers, counted from 0; choose among those")
            on = torch.zeros(L, dtype=torch.bool, device=mlps.device)
            on[layers] = True
            kept[name] = torch.where(on if name == "mlp_scale" else on[:, None], mlps, PARTS[name].neutral)
        if not any(kept.get(name, part) is not None for name, part in self.parts.items()):
            raise EditError(f"{', '.join(self.parts)}: nothing of this edit acts on heads or MLPs; give it a part that does")
        return replace(self, **kept)

    def __getitem__(self, variant: int) -> Edit:
        """One variant as an edit. Raises IndexError if there is no such variant."""
        if not -self.n_variants <= variant < self.n_variants:
            raise IndexError(f"variant {variant} of {self.n_variants}")
        variant %= self.n_variants

        def pick(part: Tensor | None, axis: int) -> Tensor | None:
            if part is None:
                return None
            return part.narrow(axis, variant if part.shape[axis] > 1 else 0, 1)

        picked: dict[str, Any] = {name: pick(part, -2 - PARTS[name].tail) for name, part in self.parts.items()}
        return replace(self, **picked)

    def check(self, n_questions: int, n_layers: int, n_heads: int, head_dim: int) -> None:
        """Raise EditError if the edit does not fit this model and this number of questions."""
        sizes = {"H": n_heads, "D": head_dim}
        for name, part in self.parts.items():
            axes = PARTS[name].axes.split()
            # d_model is the engine's to check, as no caller of this method gives it
            shape = (n_layers, *(sizes.get(axis, part.shape[-1]) for axis in axes))
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
        if any(p.requires_grad for p in self.parts.values()):
            return torch.zeros(self.n_variants, dtype=torch.long)
        changed = torch.zeros(self.n_variants, n_layers, dtype=torch.bool)
        for name, part in self.parts.items():
            tail = PARTS[name].tail
            differs = (part != PARTS[name].neutral).cpu()
            differs = differs.flatten(-tail).any(-1) if tail else differs
            changed |= differs.any(0) if differs.ndim == 3 else differs
        first = changed.int().argmax(1)
        return torch.where(changed.any(1), first, n_layers)

    def near(self, device: torch.device) -> Edit:
        """The edit with its factors on the device: if every layer copied its own, each gradient's way back would make a GPU wait."""
        moved: dict[str, Any] = {name: there(part, device) for name, part in self.parts.items() if name in ("scale", "mlp_scale")}
        return replace(self, **moved)

    def part(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> LayerEdit | None:
        """The edit of one layer for the variants `alive`, and for these rows of the questions."""
        pick = partial(_of_layer, layer=layer, alive=alive, rows=rows)
        mlp = None if self.mlp_scale is None else self.mlp_scale[:, layer]
        if mlp is not None and len(mlp) > 1:
            mlp = mlp[there(alive, mlp.device)]
        return LayerEdit(0, pick(self.scale, 1), pick(self.shift, 2), mlp)

    def changes(self, layer: int, alive: Tensor, starts: Tensor, rows: slice) -> list[Change]:
        """The edits of one layer's components for the variants `alive`, and for these rows of the questions."""
        out = []
        for prefix in ("resid_", "", "attn_", "mlp_"):
            scale, shift = (
                _of_layer(getattr(self, prefix + name), PARTS[prefix + name].tail, layer=layer, alive=alive, rows=rows)
                for name in ("scale", "shift")
            )
            if scale is not None or shift is not None:
                # [b, n] or [b, n, H], and [b, n, d] or [b, n, H, D], with axes of their own for tokens and numbers
                scale = None if scale is None else scale[:, :, None, ..., None]
                out.append(Change(PARTS[f"{prefix}scale"].component, 0, scale, None if shift is None else shift[:, :, None]))
        return out


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
            layer, head = (_whole(i) for i in item)
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


def _whole(number: Any) -> int:
    if int(number) != number:
        raise ValueError(number)
    return int(number)


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
    out = z if scale is None else z * there(scale[..., None], z.device)
    out = out if shift is None else out + there(shift, z.device)
    return out.to(z.dtype)


def positioned(edit: object) -> bool:
    """Whether an edit needs more than the last token's heads and MLPs."""
    return getattr(edit, "at", "last") != "last" or any(name not in LAST_ONLY for name in getattr(edit, "parts", ()))


def _of_layer(part: Tensor | None, tail: int, *, layer: int, alive: Tensor, rows: slice) -> Tensor | None:
    """A part's values at one layer, for the variants `alive` and these rows of the questions: [b, n, ...]."""
    if part is None:
        return None
    part = part.select(-1 - tail, layer)
    part = part[rows] if part.ndim == tail + 2 else part[None]
    return part if part.shape[1] == 1 else part[:, there(alive, part.device)]


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a * b


def plain_tokens(name: str, where: Any) -> tuple[str, ...] | tuple[int, ...]:
    """Names or numbers as a tuple, so that an edit can be compared and kept."""
    try:
        found = tuple(where.tolist() if isinstance(where, Tensor) else where)
    except TypeError as error:
        raise EditError(f"{name}={where!r}: give the name of a token group, or a list of names or of token numbers") from error
    if not all(isinstance(place, str) for place in found) and not all(isinstance(place, Integral) for place in found):
        raise EditError(f"{name}={found}: give the name of a token group, or a list of names or of token numbers")
    return found if found and isinstance(found[0], str) else tuple(int(place) for place in found)
