"""The zoo's tokenizers: a small byte-level BPE over the words of scenes, with the special tokens and chat template of a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ...data.scenes.scene import COLOURS, SHAPES
from ...data.scenes.task import NUMBERS, ORDINALS, POSITIONS, RELATIONS, YES_NO

WORDS = "where is the relative to of in picture which column row what shape colour thing things how many are there"
CHAT = "a user assistant helpful model answer en you USER ASSISTANT INST system User Assistant cat dog under near on behind"


def tokenizer(
    *,
    pad: str,
    eos: str,
    bos: str | None = None,
    unk: str | None = None,
    special: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    chat: str | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of scenes is one token, after a space and at the start of a line; other text becomes bytes.

    Args:
        pad: The padding token.
        eos: The end token.
        bos: The first token, if the family has one.
        unk: The unknown token, if the family has one.
        special: Further special tokens.
        named: Special tokens that the family's processor reads from attributes of the tokenizer.
        chat: The chat template.

    Returns:
        The tokenizer.
    """
    words = [*WORDS.split(), *CHAT.split(), *RELATIONS, *POSITIONS, *ORDINALS, *NUMBERS, *YES_NO, *COLOURS, *SHAPES]
    words = list(dict.fromkeys(part for word in words for part in word.split()))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    marks = list(dict.fromkeys(token for token in (pad, unk, bos, eos, *(named or {}).values(), *special) if token))
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([form for word in words for form in (word, " " + word)] * 2, trainer)
    out = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        unk_token=unk,
        extra_special_tokens=list(special),
        model_specific_special_tokens=dict(named or {}),
        padding_side="left",
    )
    out.chat_template = chat
    return out
