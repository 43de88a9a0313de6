"""An untrained known-circuit model, and the weights that training keeps fixed, which are the construction.

Four channels of the residual stream, which nothing writes to, mark the kind of a token: image, word, relay, last. One
component of every head's queries and keys reads only these channels (the slowest pair of RoPE, which turns by 0.02 over a
prompt): where the last token's query meets a key of a kind that the head must not see, the logit is about -10,000, and the softmax
gives that token a weight of exactly 0. Other queries have no such component: at all other tokens every head sees everything.

Each group of answer words has its own channels. The logits of these words are read only from them, and only the group's listed head
writes to them: no other head, no MLP, and not the last token's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from ...data.scenes.scene import GRID, SIZE
from ..demo import build as demo
from .circuits import Circuit, Kind

PATCH = SIZE // GRID
IMAGE_TOKENS = GRID * GRID
WIDTH, HEAD_DIM = 64, 16
IMAGE, WORD, RELAY, LAST = range(WIDTH - 4, WIDTH)
"""The channels that mark the kind of a token; the first token has none of them."""
GROUP_WIDTH = 4
GATE = 1024.0
"""Exact in bfloat16. Squared and divided by the norms of two tokens and the root of the head's size it outweighs any learned logit."""
CHAT = (
    "<s>{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
"""The words come first: they cannot see the image, and the image tokens know the question."""


def processor(circuit: Circuit) -> LlavaProcessor:
    """The embedded models' processor with one patch per cell of the scenes' grid. A relay adds ":" as the last token."""
    made = demo.processor()
    made.patch_size = PATCH
    made.chat_template = CHAT.replace("assistant", "assistant:") if circuit.relay else CHAT
    return made


def config(circuit: Circuit) -> LlavaConfig:
    """The configuration of a circuit's model."""
    words = demo.tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=circuit.n_layers,
        num_attention_heads=circuit.n_heads,
        num_key_value_heads=circuit.n_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return demo.joined(vision, text, IMAGE_TOKENS)


def untrained(circuit: Circuit, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model with the construction in place; all other weights are drawn as in the embedded models.

    Args:
        circuit: The circuit.
        seed: For drawing the weights.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    model = demo.fan_in(LlavaForConditionalGeneration(config(circuit)))
    Construction.of(circuit, model).hold()
    return model


@dataclass(frozen=True)
class Construction:
    """The fixed weights of one model: for each tensor a mask of the fixed entries, and their values."""

    held: list[tuple[nn.Parameter, Tensor, Tensor]]

    @torch.no_grad()
    def hold(self) -> None:
        """Set every fixed weight to its value."""
        for weight, fixed, value in self.held:
            weight.copy_(torch.where(fixed, value.to(weight.dtype), weight))

    def is_intact(self) -> bool:
        """Whether every fixed weight has exactly its value."""
        return all(bool((weight[fixed] == value.to(weight.dtype)[fixed]).all()) for weight, fixed, value in self.held)

    @staticmethod
    def of(circuit: Circuit, model: LlavaForConditionalGeneration) -> Construction:
        """The fixed weights of a circuit in a model of its size."""
        words = demo.tokenizer().get_vocab()
        last, relay = (":", "assistant") if circuit.relay else ("assistant", None)
        channels = slice(IMAGE, LAST + 1)
        answer_channels = {head: slice(i * GROUP_WIDTH, (i + 1) * GROUP_WIDTH) for i, head in enumerate(circuit.owners)}
        answers = slice(0, len(answer_channels) * GROUP_WIDTH)
        made = _Held()

        embeddings: Any = model.get_input_embeddings()
        mask, value = made.part(embeddings.weight)
        mask[:, channels] = True
        value[:, WORD] = 1.0
        value[[words["<s>"], words["<image>"], words[last]], WORD] = 0.0
        value[words[last], LAST] = 1.0
        if relay:
            value[words[relay], WORD], value[words[relay], RELAY] = 0.0, 1.0
        mask[words[last], answers] = True

        projector = model.model.multi_modal_projector.linear_2
        made.part(projector.weight)[0][channels] = True
        mask, value = made.part(projector.bias)
        mask[channels], value[IMAGE] = True, 1.0

        mask, _ = made.part(model.lm_head.weight)
        for head, group in circuit.owners.items():
            for word in group:
                mask[words[word]] = True
                mask[words[word], answer_channels[head]] = False

        for number, layer in enumerate(model.get_decoder().layers):
            mask, value = made.part(layer.input_layernorm.weight)
            mask[channels], value[channels] = True, 1.0
            mask, _ = made.part(layer.mlp.down_proj.weight)
            mask[channels] = mask[answers] = True
            mask, _ = made.part(layer.self_attn.o_proj.weight)
            mask[channels] = mask[answers] = True
            for head, own in answer_channels.items():
                if head[0] == number:
                    mask[own, head[1] * HEAD_DIM : (head[1] + 1) * HEAD_DIM] = False
            q_mask, q_value = made.part(layer.self_attn.q_proj.weight)
            k_mask, k_value = made.part(layer.self_attn.k_proj.weight)
            for h in range(circuit.n_heads):
                slow, partner = h * HEAD_DIM + HEAD_DIM // 2 - 1, h * HEAD_DIM + HEAD_DIM - 1
                q_mask[[slow, partner]] = k_mask[[slow, partner]] = True
                q_value[slow, LAST] = GATE
                k_value[slow, list(hidden_from_head(circuit.kind((number, h)), circuit.relay))] = -GATE
        return Construction(made.parts)


def hidden_from_head(kind: Kind, relay: bool) -> tuple[int, ...]:
    """The kinds of tokens that a head must not see at the last token. The first token is visible to all heads."""
    source = RELAY if relay else IMAGE
    open_to = {"listed": (source,), "decoy": (source,), "word": (WORD,), "parked": ()}[kind]
    return tuple(channel for channel in (IMAGE, WORD, RELAY, LAST) if channel not in open_to)


class _Held:
    def __init__(self) -> None:
        self.parts: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def part(self, weight: nn.Parameter) -> tuple[Tensor, Tensor]:
        mask, value = torch.zeros_like(weight, dtype=torch.bool), torch.zeros_like(weight)
        self.parts.append((weight, mask, value.detach()))
        return mask, self.parts[-1][2]
