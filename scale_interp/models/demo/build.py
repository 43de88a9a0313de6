"""An untrained embedded VLM: tokenizer, processor and a LlavaForConditionalGeneration with fan-in initialisation."""

from __future__ import annotations

from string import ascii_uppercase

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ...data.scenes.scene import COLOURS, SHAPES, SIZE
from ...data.scenes.task import NUMBERS, ORDINALS, POSITIONS, RELATIONS, YES_NO

PATCH = 8
IMAGE_TOKENS = (SIZE // PATCH) ** 2
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
WORDS = "where is the relative to of in picture which column row what shape colour thing things how many are there a user assistant"
LETTERS = "ABCD"
BY_LETTER = "question answer with option ' s letter from given choices directly"
"""The further words of questions with lettered options, and of the prompt without chat template."""
CHAT = (
    "<s>{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(letters: bool = False) -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer with the words of questions about scenes.

    Args:
        letters: Whether it knows lettered options too, behind all other words. A capital by itself is then a letter, not the word "a".
    """
    words = [*WORDS.split(), *RELATIONS, *POSITIONS, *ORDINALS, *NUMBERS, *YES_NO, *COLOURS, *SHAPES, "?", ":", ".", ","]
    further = [*LETTERS, *BY_LETTER.split()] if letters else []
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words, *further]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = (
        normalizers.Lowercase()
        if not letters
        else normalizers.Sequence([normalizers.Replace(Regex(rf"\b{capital}(?=[a-z])"), capital.lower()) for capital in ascii_uppercase])
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def processor(letters: bool = False) -> LlavaProcessor:
    """The embedded models' processor; with letters, that of `demo-format`."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(letters),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT,
    )


def config(letters: bool = False) -> LlavaConfig:
    """The embedded models' configuration; with letters, that of `demo-format`."""
    words = tokenizer(letters)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return joined(vision, text, IMAGE_TOKENS)


def joined(vision: CLIPVisionConfig, text: LlamaConfig, image_tokens: int) -> LlavaConfig:
    """The configuration of a LLaVA with this vision tower and decoder, and the embedded models' vocabulary."""
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer().get_vocab()["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=image_tokens,
        tie_word_embeddings=False,
    )


def untrained(seed: int, letters: bool = False) -> LlavaForConditionalGeneration:
    """An untrained model: weights ~ N(0, 1/fan-in), embeddings and positions ~ N(0, 0.5).

    transformers' own 0.02 is right for wide models; with 96 to 128 units it starts too close to zero to learn.

    Args:
        seed: Of the weights.
        letters: Whether its vocabulary has letters (`tokenizer`).

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    return fan_in(LlavaForConditionalGeneration(config(letters)))


@torch.no_grad()
def fan_in(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Draw the model's weights again, from torch's generator in its current state, and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.5)
    model.model.vision_tower.embeddings.class_embedding.normal_(0, 0.5)
    return model
