"""The ways of zero-ablating heads one by one: what users write today, the packed sweep, and the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.question import Question
from ..execution.memory import free_memory
from ..interventions.choices import Choices, read_choices
from ..interventions.edit import Head
from ..interventions.packed import edit_heads, with_copies
from ..interventions.paths import packed_batch, variants_at_once
from ..interventions.prefix import PER_TOKEN, Prefix, read_prefix
from ..interventions.rows import attention
from ..interventions.sweep import HeadSweep
from ..vlm.cache import CACHE
from ..vlm.vlm import VLM
from .result import BRIDGE, COPIED, LIMIT, OURS, PER_HEAD, TRACED

COPIES = 64
"""How many variants the cache is copied for at once, where memory allows."""


@dataclass(frozen=True)
class Way:
    """A sweep over heads that returns the scores [questions, heads, choices], or None. by_head: whether it runs once per head."""

    run: Callable[[HeadSweep], Float[Tensor, "questions heads choices"] | None]
    by_head: bool = False


def ways(vlm: VLM, questions: Sequence[Question]) -> tuple[dict[str, Way], dict[str, str]]:
    """Collect the ways in which this model can be swept.

    Returns:
        Name -> way, and name -> why a way is left out.
    """
    found, left_out = {PER_HEAD: Way(lambda sweep: _trace_per_head(vlm, questions, sweep), by_head=True)}, {}
    bridge = _boot_bridge(vlm, questions)
    if isinstance(bridge, str):
        left_out[BRIDGE] = bridge
    else:
        found[BRIDGE] = Way(lambda sweep: _bridge_per_head(bridge, vlm, questions, sweep), by_head=True)
    B, T = vlm.encode(questions)["input_ids"].shape
    found[COPIED] = Way(lambda sweep: _copied(vlm, questions, sweep))
    found[TRACED] = Way(lambda sweep: _traced(vlm, read_prefix(vlm, questions), sweep))
    found[OURS] = Way(lambda sweep: packed_batch(vlm, read_prefix(vlm, questions), sweep)[0])
    found[LIMIT] = Way(lambda sweep: _limit(vlm, B, T + sweep.n_variants))
    return found, left_out


def _trace_per_head(vlm: VLM, questions: Sequence[Question], sweep: HeadSweep) -> Tensor:
    inputs = vlm.encode(questions)
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1])
    D, out = vlm.head_dim, []
    for number, head in sweep.heads:
        with vlm.nn.trace(**inputs, logits_to_keep=1):
            block = vlm.head_layers[number]
            o_proj = block.output(vlm.layers[block.number])
            z = o_proj.input.clone()
            z[:, -1, head * D : (head + 1) * D] = 0
            o_proj.input = z
            logits = vlm.nn.output.logits[:, -1].save()
        out.append(_read(choices, logits[:, None]))
    return torch.cat(out, 1)


def _boot_bridge(vlm: VLM, questions: Sequence[Question]) -> Any:
    """TransformerLens' bridge over a copy of the model, as it rewrites the module tree; or a str that says why there is none."""
    try:
        from transformer_lens.model_bridge import TransformerBridge, architecture_adapter
        from transformer_lens.model_bridge.sources.transformers import source
    except ImportError as error:
        return f"transformer-lens cannot be imported: {error}"
    # Booting looks for the processor on a hub and, failing that, installs torchvision; this cannot be switched off. We bring the
    # inputs and need neither.
    processor = patch.object(source, "load_modality_processor")
    libraries = patch.object(architecture_adapter.ArchitectureAdapter, "_check_required_libraries")
    model, tokenizer = deepcopy(vlm.hf_model), deepcopy(vlm.tokenizer)
    # It recognises families by an architecture that only checkpoints name, and would reload a tokenizer without BOS.
    model.config.architectures = [type(model).__name__]
    tokenizer.init_kwargs |= {"name_or_path": vlm.name, "add_bos_token": True}
    try:
        with processor, libraries:
            bridge = TransformerBridge.boot_transformers(
                vlm.name, hf_model=model, tokenizer=tokenizer, device=str(vlm.device), dtype=vlm.dtype
            )
        _bridge_per_head(bridge, vlm, questions, HeadSweep(((0, 0),), vlm.n_heads, 0.0))
    except Exception as error:  # it may raise anything
        return f"the bridge does not run {vlm.family}: {str(error).partition('. ')[0][:120]} ({type(error).__name__})"
    return bridge


def _bridge_per_head(bridge: Any, vlm: VLM, questions: Sequence[Question], sweep: HeadSweep) -> Tensor:
    inputs = dict(vlm.encode(questions))
    tokens = inputs.pop("input_ids")
    choices = read_choices(vlm, questions, tokens[:, -1])
    out = []
    for layer, head in sweep.heads:

        def zero(z: Tensor, hook: Any, head: int = head) -> Tensor:
            z = z.clone()
            z[:, -1, head] = 0
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
        logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", logits_to_keep=1, **inputs)
        out.append(_read(choices, logits[:, -1:]))
    return torch.cat(out, 1)


def _copied(vlm: VLM, questions: Sequence[Question], sweep: HeadSweep) -> Tensor:
    """Read the prompt once into a plain cache, which is copied and repeated for a batch of variants."""
    inputs = vlm.encode(questions)
    choices = read_choices(vlm, questions, inputs["input_ids"][:, -1])
    positions = vlm.position_ids(inputs)
    before = {k: v[:, :-1] if k in PER_TOKEN else v for k, v in inputs.items()}
    cache = vlm.hf_model(**before, position_ids=positions[..., :-1], use_cache=True, logits_to_keep=1)[CACHE]
    nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    at_once = max(1, min(COPIES, free_memory(vlm.device) * 2 // 3 // nbytes))
    out = []
    for i in range(0, sweep.n_variants, at_once):
        heads = sweep.heads[i : i + at_once]
        n = len(heads)
        copies = deepcopy(cache)
        copies.batch_repeat_interleave(n)
        with _zeroed(vlm, heads):
            logits = vlm.hf_model(
                input_ids=inputs["input_ids"][:, -1:].repeat_interleave(n, 0),
                attention_mask=inputs["attention_mask"].repeat_interleave(n, 0),
                position_ids=positions[..., -1:].repeat_interleave(n, -2),
                **{CACHE: copies},
                use_cache=True,
                logits_to_keep=1,
            ).logits
        out.append(_read(choices, logits.unflatten(0, (-1, n))[:, :, -1]))
    return torch.cat(out, 1)


@contextmanager
def _zeroed(vlm: VLM, heads: Sequence[Head]) -> Iterator[None]:
    """Hooks that zero one head in each row of a batch: rows run through the heads, question by question."""
    D, hooks = vlm.head_dim, []

    def zero(number: int) -> Callable:
        mine = [(row, head) for row, (layer, head) in enumerate(heads) if layer == number]

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            for row, head in mine:
                z[row :: len(heads), -1, head * D : (head + 1) * D] = 0
            return (z, *args[1:])

        return hook

    for number in {layer for layer, _ in heads}:
        hooks.append(vlm.head_layers[number].output().register_forward_pre_hook(zero(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _limit(vlm: VLM, n_prompts: int, n_tokens: int) -> None:
    """One causal forward pass of the text decoder over prompts of random tokens."""
    tokens = torch.randint(vlm.decoder.get_input_embeddings().num_embeddings, (n_prompts, n_tokens), device=vlm.device)
    hidden = vlm.decoder(input_ids=tokens, use_cache=False).last_hidden_state
    vlm.head(hidden[:, -1:])


def _traced(vlm: VLM, prefix: Prefix, sweep: HeadSweep) -> Tensor:
    """The packed sweep in nnsight traces instead of torch's hooks, in the same chunks."""
    out = [_traced_chunk(vlm, prefix, sweep, chunk) for chunk in torch.arange(sweep.n_variants).split(variants_at_once(vlm, prefix))]
    return torch.cat(out, 1)


def _traced_chunk(vlm: VLM, prefix: Prefix, sweep: HeadSweep, alive: Tensor) -> Tensor:
    starts, R = sweep.starts(vlm.n_layers)[alive], prefix.choices.tokens.shape[1]
    with attention(vlm.decoder), vlm.text.trace(**prefix.inputs(apart=vlm.parts.keys_as_cached)):
        for row, block in enumerate(vlm.head_layers):
            layer, n, new = vlm.text_layers[block.number], int((starts <= row).sum()), int((starts == row).sum())
            if new or (n and R > 1):
                layer.inputs = with_copies(layer.inputs, R, n, new)
            part = sweep.part(row, alive[:n], starts[:n], prefix.rows) if n else None
            if part is not None:
                output = block.output(layer)
                output.input = edit_heads(output.input, part, block, R, sweep.scope)
        hidden = vlm.text_norm.output.save()
    return prefix.choices.read(vlm, hidden.unflatten(1, (-1, R)))[:, 1:]


def _read(choices: Choices, logits: Float[Tensor, "questions heads vocabulary"]) -> Float[Tensor, "questions heads choices"]:
    """Scores [questions, heads, choices] of choices of one token from logits [questions, heads, vocabulary]."""
    tokens = choices.token[:, None, :, 0].expand(-1, logits.shape[1], -1)
    return logits.gather(2, tokens).float().masked_fill(~choices.used[:, None, :, 0], float("-inf"))
