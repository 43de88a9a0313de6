"""Where a text decoder's heads are: its layers, the module before which heads lie side by side, the MLP, and what stands after each.

The one place that names the parts of transformers' decoders. A family whose parts bear other names has them in `families.KNOWN`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError


@dataclass(frozen=True)
class Parts:
    """The names that a decoder's parts bear; of several names for one part, a layer's first one counts.

    Attributes:
        layers: The decoder's list of layers.
        norm: The decoder's norm after the last layer.
        attention: A layer's attention.
        output: Within the attention, the module whose input holds the heads side by side.
        query: Within the attention, a module that makes queries: what has none holds no heads.
        mlp: A layer's MLP, or the module that ends it.
        norms_after: Pairs of norms between attention and residual stream, and between MLP and residual stream; a pair counts if a layer
            has both.
        multiplier: A layer's factor on what attention and MLP add to the residual stream.
        beside: What in a layer adds to the residual stream beside attention and MLP, or scales all of it.
    """

    layers: tuple[str, ...] = ("layers", "h", "blocks", "block")
    norm: tuple[str, ...] = (
        "norm",
        "final_layernorm",
        "final_layer_norm",
        "embedding_norm",
        "layer_norm",
        "ln_f",
        "norm_f",
        "hyper_connection_mixer",
    )
    attention: tuple[str, ...] = ("self_attn", "attn", "attention", "mixer")
    output: tuple[str, ...] = ("o_proj", "out_proj", "dense", "wo", "c_proj")
    query: tuple[str, ...] = ("q_proj", "q_b_proj", "wq", "qkv_proj", "qkv", "query_key_value", "att_proj", "Wqkv", "c_attn")
    mlp: tuple[str, ...] = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2")
    norms_after: tuple[tuple[str, str], ...] = (
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        ("post_self_attn_layernorm", "post_mlp_layernorm"),
        ("post_operator_norm", "post_ffn_norm"),
        ("post_norm1", "post_norm2"),
    )
    multiplier: str = "residual_multiplier"
    beside: tuple[str, ...] = ("per_layer_input_gate", "layer_scalar")


PARTS = Parts()
STATES = ("linear_attention", "conv", "mamba", "mamba2", "recurrent", "linear")
"""Layer types of a configuration whose layers keep a state of the whole past instead of keys and values."""
CROSS = "cross-attention"
"""What a layer is called that attends to images alone."""


USUAL_INPUTS = {
    "self", "hidden_states", "x", "attention_mask", "position_ids", "position_embeddings", "past_key_values", "past_key_value",
    "cache", "use_cache",
    "cache_position", "output_attentions", "output_router_logits", "cross_attention_states", "cross_attention_mask",
    "full_text_row_masked_out_mask", "args", "kwargs",
}  # fmt: skip
"""What a layer may be given beside the residual stream without handing more than that to the next one."""


@dataclass(frozen=True)
class HeadLayer:
    """A layer that has heads.

    Attributes:
        number: Its number among all layers of the decoder.
        module: The layer.
        attention_name: The name of its attention.
        output_name: The name, within the attention, of the module whose input holds the heads.
        mlp_name: The name of its MLP; None if it has none.
        n_heads: Its query heads.
        head_dim: The width of each.
        norms: The norms after the attention and after the MLP, or None.
        multiplier: The factor on what both add to the residual stream.
        beside: The names of what else in it changes the residual stream.

    Where an output gate multiplies the heads (Qwen3.5), z holds them gated, as `output` reads them.
    """

    number: int
    module: nn.Module
    attention_name: str
    output_name: str
    mlp_name: str | None
    n_heads: int
    head_dim: int
    norms: tuple[nn.Module | None, nn.Module | None]
    multiplier: float = 1.0
    beside: tuple[str, ...] = ()

    def attention(self, layer: Any = None) -> Any:
        """The attention: of the layer, or of nnsight's view of it."""
        return getattr(self.module if layer is None else layer, self.attention_name)

    def output(self, layer: Any = None) -> Any:
        """The module whose input holds the heads: of the layer, or of nnsight's view of it."""
        return getattr(self.attention(layer), self.output_name)

    def mlp(self, layer: Any = None) -> Any:
        """The MLP: of the layer, or of nnsight's view of it. Raises ModelError for a layer without one."""
        if self.mlp_name is None:
            raise ModelError(f"layer {self.number} has no MLP beside its attention: edit its heads")
        return getattr(self.module if layer is None else layer, self.mlp_name)

    def edits_mlp(self, factor: Tensor | None) -> bool:
        """Whether these factors change its MLP; a layer without one has factors of 1."""
        return factor is not None and (self.mlp_name is not None or bool((factor != 1).any()))

    def split(self, z: Tensor, width: int | None = None) -> Tensor:
        """z [..., H * D] as heads [..., H, D]; with `width`, each is filled with zeros to that width."""
        heads = z.unflatten(-1, (self.n_heads, self.head_dim))
        return heads if width is None or width == self.head_dim else F.pad(heads, (0, width - self.head_dim))

    def join(self, heads: Tensor) -> Tensor:
        """Heads [..., H, >= D] side by side, [..., H * D]."""
        return heads[..., : self.head_dim].flatten(-2)


@dataclass(frozen=True)
class Decoder:
    """A text decoder and what its layers are.

    Attributes:
        module: The decoder: the module that holds the layers and the norm after them.
        layers_name: The name of its list of layers.
        norm_name: The name of the norm after the last layer.
        heads: The layers that have heads, in order. Row r of every map [L, H] is heads[r].
        others: What the layers without heads are, by their number.
    """

    module: Any
    layers_name: str
    norm_name: str
    heads: tuple[HeadLayer, ...]
    others: dict[int, str]

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The name of each layer's mask, where the decoder takes masks by name and there are several kinds; empty elsewhere."""
        names = tuple(getattr(getattr(self.module, "config", None), "layer_types", None) or ())
        by_name = "dict)" in inspect.getsource(inspect.unwrap(type(self.module).forward))
        return names if by_name and set(names) != {"full_attention"} else ()

    @property
    def keys_as_cached(self) -> bool:
        """Whether layers attend to what they cache; with latent attention (MLA) keys and values are made of it first."""
        return not any(hasattr(layer.attention(), "kv_b_proj") for layer in self.heads)

    @property
    def plain_layers(self) -> bool:
        """Whether layers hand on the residual stream alone, and not keys and values, inputs per layer or earlier streams as well."""
        layers = getattr(self.module, self.layers_name)
        return all(set(inspect.signature(type(layer).forward).parameters) <= USUAL_INPUTS for layer in layers)


def find_decoder(model: PreTrainedModel, name: str, parts: Parts = PARTS) -> Decoder:
    """Describe the text decoder of a model.

    Args:
        model: The transformers model.
        name: Its name, for messages.
        parts: The names of its parts.

    Returns:
        The description.

    Raises:
        ModelError: No layer has heads that can be addressed, or layers differ in their number of heads.
    """
    return describe_layers(model.get_decoder(), f"{name} ({model.config.model_type})", parts, model.config.get_text_config())


def describe_layers(decoder: Any, name: str = "the model", parts: Parts = PARTS, config: Any = None) -> Decoder:
    """The same for a text decoder; config: its configuration, where the decoder has none of its own."""
    module, layers_name = _within(decoder, parts)
    if module is None:
        raise ModelError(f"{name}: its text decoder has no list of layers ({', '.join(parts.layers)}) whose heads can be edited")
    norm_name = _first(module, parts.norm)
    if norm_name is None:
        raise ModelError(f"{name}: no norm follows the layers of its text decoder ({', '.join(parts.norm)})")
    heads, others = [], {}
    config = getattr(module, "config", None) or config
    kinds = list(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    for number, layer in enumerate(getattr(module, layers_name)):
        kind = kinds[number] if number < len(kinds) else ""
        found = None if kind in STATES else _heads_of(number, layer, config, parts)
        if found is None:
            others[number] = kind if kind in STATES else _what(layer)
        else:
            heads.append(found)
    if not heads:
        raise ModelError(
            f"{name}: no layer of its text decoder has attention heads that can be addressed: they are "
            f"{', '.join(dict.fromkeys(others.values()))}"
        )
    counts = {layer.n_heads for layer in heads}
    if len(counts) > 1:
        raise ModelError(
            f"{name}: its layers have different numbers of heads ({', '.join(map(str, sorted(counts)))}), and a map of heads has "
            "one number for all layers"
        )
    return Decoder(module, layers_name, norm_name, tuple(heads), others)


def _within(module: Any, parts: Parts) -> tuple[Any, str]:
    """The module that holds the list of layers, which may be within the one that get_decoder returns, and the list's name."""
    for inner in _line(module):
        name = next((n for n in parts.layers if isinstance(getattr(inner, n, None), nn.ModuleList)), None)
        if name is not None and len(getattr(inner, name)):
            return inner, name
    return None, ""


def _line(module: Any) -> Iterator[Any]:
    """A module and those within it that bear a decoder's usual names."""
    while module is not None:
        yield module
        within = (getattr(module, name, None) for name in ("model", "decoder", "transformer", "language_model"))
        module = next((inner for inner in within if isinstance(inner, nn.Module)), None)


def _first(module: Any, names: Sequence[str]) -> str | None:
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def _heads_of(number: int, layer: nn.Module, config: Any, parts: Parts) -> HeadLayer | None:
    """What a layer is if it has heads; None if it has none."""
    attention_name = _first(layer, parts.attention)
    if attention_name is None:
        return None
    attention: Any = getattr(layer, attention_name)
    output_name = _first(attention, parts.output)
    if output_name is None or _first(attention, parts.query) is None or isinstance(getattr(attention, "conv1d", None), nn.Module):
        return None
    width = _width(getattr(attention, output_name))
    if width is None:
        return None
    n_heads, head_dim = _shape(attention, width, config)
    multiplier = float(getattr(layer, parts.multiplier, 1.0))
    mlp_name, norms = _first(layer, parts.mlp), _norms(layer, parts)
    beside = tuple(name for name in parts.beside if getattr(layer, name, None) is not None)
    return HeadLayer(number, layer, attention_name, output_name, mlp_name, n_heads, head_dim, norms, multiplier, beside)


def _width(output: Any) -> int | None:
    """How many numbers a projection reads."""
    for part in (output, getattr(output, "base_layer", None)):
        for name in ("in_features", "nx"):
            if isinstance(found := getattr(part, name, None), int):
                return found
    weight = getattr(output, "weight", None)
    return weight.shape[-1] if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _shape(attention: Any, width: int, config: Any) -> tuple[int, int]:
    """The number of heads and the width of each, by the configuration if they fill the projection's input, else by the module."""
    named = [getattr(attention, n, None) for n in ("num_heads", "num_attention_heads", "n_heads", "n_head")]
    named += [width // d for n in ("v_head_dim", "head_dim") if isinstance(d := getattr(attention, n, None), int) and d and not width % d]
    named += [setting(config, "num_attention_heads")]
    n_heads = next(n for n in (*named, 1) if isinstance(n, int) and n > 0 and not width % n)
    return n_heads, width // n_heads


def setting(config: Any, name: str) -> Any:
    """A setting of a configuration; None where it has none, or where it differs by layer, at which transformers raises."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _norms(layer: nn.Module, parts: Parts) -> tuple[nn.Module | None, nn.Module | None]:
    for after_attention, after_mlp in parts.norms_after:
        found = getattr(layer, after_attention, None), getattr(layer, after_mlp, None)
        if all(isinstance(norm, nn.Module) for norm in found):
            return found
    return None, None


def _what(layer: nn.Module) -> str:
    """What a layer without heads is, in a word."""
    names = [name for name, _ in layer.named_children() if "norm" not in name]
    if any("cross" in name for name in names):
        return CROSS
    return " and ".join(names) or type(layer).__name__


def stream_of(out: Any) -> Any:
    """The residual stream in what a layer returns: some return a tuple."""
    return out[0] if isinstance(out, tuple) else out


def mlp_rows(out: Any, batch: int) -> Tensor:
    """What an MLP returns, as [B, S, d]: some return a tuple (experts), some all tokens in one row (OPT)."""
    rows = out[0] if isinstance(out, tuple) else out
    return rows if rows.ndim == 3 else rows.view(batch, -1, rows.shape[-1])


def with_mlp_rows(out: Any, rows: Tensor) -> Any:
    """What an MLP returned, with other rows [B, S, d] in the same form."""
    if isinstance(out, tuple):
        return (with_mlp_rows(out[0], rows), *out[1:])
    return rows if out.ndim == 3 else rows.reshape(-1, rows.shape[-1])
