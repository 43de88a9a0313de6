"""What `VLM.generate` takes, and the checkpoint's own settings of decoding, which change greedy text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMixin

from ..core.arguments import near
from ..errors import ArgumentError
from .cache import CACHE, OLD

Settings = Literal["neutral", "checkpoint"]
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Settings that say what tokens mean; every other one is a choice of how to decode."""
NEUTRAL = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}
"""Values that leave the model's own distribution, and its largest token, as they are."""
NOT_DECODING = ("max_length", "max_new_tokens", "use_cache", "cache_implementation", "cache_config", "transformers_version")
AS_TEXT = "answers come as text; for everything else call vlm.hf_model.generate(**vlm.encode(question), ...)"
FROM_THE_HUB = "transformers runs that decoding by code from the hub only; leave it out"
NOT_TAKEN = {
    "return_dict_in_generate": AS_TEXT,
    "output_scores": AS_TEXT,
    "output_logits": AS_TEXT,
    "output_attentions": AS_TEXT,
    "output_hidden_states": AS_TEXT,
    "max_length": "it counts the prompt; give max_new_tokens",
    "min_length": "it counts the prompt; give min_new_tokens",
    "token_healing": "it takes tokens from the prompt's end; leave it out",
    "inputs": "the question is the input; leave it out",
    **dict.fromkeys(("penalty_alpha", "dola_layers", "num_beam_groups", "constraints", "force_words_ids"), FROM_THE_HUB),
}
"""Arguments of transformers' generate that are refused, and what to do instead."""
MORE = (OLD, CACHE, "mm_encoder_outputs", "tokenizer", "assistant_tokenizer", "logits_to_keep")
"""Arguments that transformers' generate takes without naming them."""


def check_arguments(given: Mapping[str, Any], settings: Settings, max_new_tokens: Any) -> None:
    """Raise ArgumentError for an argument that transformers' generate does not know, or that does not end in text."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ArgumentError(f"max_new_tokens={max_new_tokens!r}: give a whole number of 1 or more")
    if settings not in get_args(Settings):
        raise ArgumentError(f"settings={settings!r}: choose 'neutral' or 'checkpoint'")
    for name, value in given.items():
        if name in NOT_TAKEN and value is not None and value is not False:
            raise ArgumentError(f"generate({name}=...): {NOT_TAKEN[name]}")
    known = {*GenerationConfig().to_dict(), *inspect.signature(GenerationMixin.generate).parameters, *MORE} - {"self", "kwargs"}
    if unknown := next((name for name in given if name not in known), None):
        raise ArgumentError(
            f"generate({unknown}=...): transformers' generate has no such setting, and the question's own inputs are not given again"
            f"{near(unknown, known) or '; leave it out'}"
        )
    several, beams = given.get("num_return_sequences") or 1, given.get("num_beams") or 1
    free = settings == "checkpoint" or given.get("generation_config") is not None or given.get("do_sample")
    if several > beams and not free:
        raise ArgumentError(
            f"num_return_sequences={several}: greedy decoding has one answer; give do_sample=True, or num_beams={several} or more as well"
        )


def own_settings(model: PreTrainedModel) -> dict[str, Any]:
    """The checkpoint's settings of decoding that are not neutral: a repetition penalty, banned n-grams, sampling."""
    found = model.generation_config.to_dict()
    kept = (name for name in found if name not in (*TOKENS, *NOT_DECODING) and not name.startswith("_"))
    return {name: found[name] for name in kept if found[name] not in (None, NEUTRAL.get(name, False))}


@contextmanager
def neutral(model: PreTrainedModel, sampled: bool = False) -> Iterator[None]:
    """The model with its checkpoint's settings of decoding set aside; what its special tokens are stays.

    sampled: draw from the whole vocabulary, where transformers' own default is the 50 likeliest tokens.
    """
    own = model.generation_config
    whole = {"top_k": 0} if sampled else {}  # transformers warns of it in greedy decoding
    model.generation_config = GenerationConfig(**whole, **{name: getattr(own, name, None) for name in TOKENS})
    try:
        yield
    finally:
        model.generation_config = own
