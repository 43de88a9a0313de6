"""A vision-language model whose attention heads can be addressed."""

from __future__ import annotations

import copy
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from nnsight import NNsight
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..core.notebook import NotebookView
from ..core.out_of_memory import out_of_memory
from ..core.there import there
from ..core.versions import versions
from ..data.items import require
from ..data.question import Question
from ..data.wording import short
from ..errors import DataError, DataWarning, EditError, ModelError, RunWarning
from . import families
from .decoder import Decoder, setting
from .fingerprint import fingerprint, numerics, plain_settings, processor_fingerprint
from .generation import Settings, check_arguments, neutral
from .lock import alone, forget_guard, own_passes
from .mode import require_ready
from .plain import replaced, walk
from .report import Report
from .token_groups import Groups, Span, token_groups

OWN_HOOKS = ("transformers", "accelerate")
"""Libraries whose hooks are part of the model itself."""
PrefixCache = Literal["auto", "memory", "disk", "recompute", "host"]
"""Where the keys and values of prompts are kept.

"memory" of the device; "host", the machine's memory beside a GPU; "disk"; nowhere ("recompute"); or, with "auto", in memory and then where
getting them back was measured to take the least time.
"""
ChoiceSpace = Literal["auto", "with", "without", "apart"]
"""Whether a space stands between prompt and choice: as the prompt's end suggests ("auto"), always, or never.

"apart" is the rule of ScAle's release: the last token of " A" as the tokenizer reads it alone, whatever the prompt ends with.
"""
CHOICES_NAMED = 3
"""Sets of choices of which a model says whether they are scored with a space."""
PROMPT_END = 16
"""Characters at a prompt's end that decide, together with the word they begin in, how a choice behind it is cut into tokens."""
CHOICE_SETS = 4096
"""Sets of choices, each behind one prompt's end, whose tokens are kept, and prompts whose text is."""
ChoiceTokens = tuple[str, list[list[int]], list[list[int]]]
"""What stands before each choice (a space or nothing), the choices' tokens, and those that they have the other way."""


def check_cache(name: str) -> PrefixCache:
    """The name, if it is one of PrefixCache; otherwise ModelError."""
    if name not in get_args(PrefixCache):
        raise ModelError(f"prefix_cache={name!r}: choose {', '.join(map(repr, get_args(PrefixCache)))}")
    return name  # type: ignore[return-value]


def check_choice_space(name: str) -> ChoiceSpace:
    """The name, or ModelError."""
    if name not in get_args(ChoiceSpace):
        raise ModelError(f"choice_space={name!r}: choose {', '.join(map(repr, get_args(ChoiceSpace)))}")
    return name  # type: ignore[return-value]


@dataclass(frozen=True)
class Measured:
    """What was measured while a model was used. It contains no settings.

    Attributes:
        reports: How the paths agree, by the model's state (`VLM.state`).
        chunk_bytes: What a packed call may take after memory ran out, in bytes, by the setting (`VLM.memory`) at that time.
        graph_bytes: The same for what a pass with gradients keeps.
        choices: The sets of choices of which it was said how they are scored.
        positions: Why edits at tokens of the prompt take whole passes, by the model's state; "" where they do not.
        choice_tokens: The tokens of choices, by the prompt's end, the choices, `VLM.choice_space` and the tokenizer's size.
        prompts: Prompts by the chat template, the question's text and how many images it has.
    """

    reports: dict[str, Report] = field(default_factory=dict)
    chunk_bytes: dict[int | None, int] = field(default_factory=dict)
    graph_bytes: dict[int | None, int] = field(default_factory=dict)
    choices: set[tuple[str, ...]] = field(default_factory=set)
    positions: dict[str, str] = field(default_factory=dict)
    choice_tokens: dict[tuple[Any, ...], ChoiceTokens] = field(default_factory=dict)
    prompts: dict[tuple[str, str, int], str] = field(default_factory=dict)


class VLM(NotebookView):
    """A transformers model and its processor, with addressable heads and an nnsight view.

    Use `load` to create one. Heads are query heads, given as zero-based (layer, head) pairs. `z` of a layer is the input of its
    `self_attn.o_proj`: the concatenated outputs of the heads, before W_O mixes them. In a hybrid, layers without heads are not counted:
    layer 0 is the first one that has heads (`head_layers[0]`).

    >>> import scale_interp as si
    >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
    >>> len(vlm.encode(q)["input_ids"]), len(vlm.choice_ids(q)) == len(q.choices)
    (1, True)
    """

    asked_for = "a model, as in si.load('demo')"

    def __init__(self, hf_model: PreTrainedModel, processor: ProcessorMixin, name: str, prompt: str | None = None):
        self.hf_model, self.processor, self.name, self.prompt = hf_model.eval(), processor, name, prompt
        self.parts = _decoder(hf_model, name)
        self.decoder: Any = self.parts.module
        self.head_layers = self.parts.heads
        """The layers that have heads: row r of every map [L, H] is head_layers[r], layer head_layers[r].number of the decoder."""
        config = hf_model.config.get_text_config()
        self.family: str = hf_model.config.model_type
        self.quirks = families.KNOWN.get(self.family, families.PLAIN)
        self.n_layers = len(self.head_layers)
        self.staircase = self.quirks.staircase and self.parts.plain_layers
        """Whether a packed variant joins at its first edited layer; else all run from the first layer on."""
        self.n_heads: int = self.head_layers[0].n_heads
        self.n_kv_heads: int = _kv_heads(config, self.n_heads)
        self.head_dim: int = max(layer.head_dim for layer in self.head_layers)
        self.d_model: int = config.hidden_size
        self.image_token_id: int = image_token_id(hf_model, processor, name)
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._modules: list[int] = []
        self.renew()
        self.measured = Measured()
        self.memory: int | None = None
        """Bytes that one packed call may take; None to choose by free memory and the model's size."""
        self.prefix_cache: PrefixCache = "auto"
        """Where the keys and values of prompts are kept while they are needed again."""
        self.choice_space: ChoiceSpace = "auto"
        """Whether a choice is scored with a space before it: " A" and "A" are different tokens."""
        self.execution: Any = None
        """The journal and the workers for this model (`execution.Execution`); None to use those of the user's block."""
        self.reopen: Callable[..., VLM] | None = None
        """Loads the same model in another process, to which this function is pickled; None for a live model."""

    def __repr__(self) -> str:
        return f"<VLM {self.name}: {self.family}, {self.n_layers} layers x {self.n_heads} heads of {self.head_dim}, {self.dtype}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> VLM:
        """Another model of the same weights, with views of its own: nnsight's are made anew, as a copied view sees no module run."""
        made = copy.copy(self)
        memo[id(self)] = made
        with self.alone():
            for name, value in vars(self).items():
                if name not in ("nn", "text", "layers", "parts", "head_layers", "execution", "reopen"):
                    setattr(made, name, copy.deepcopy(value, memo))
        forget_guard(made.decoder)
        vars(made).pop("layers", None)
        made.parts = families.describe(made.hf_model, made.name)
        made.head_layers = made.parts.heads
        made._modules = []
        made.renew()
        return made

    def alone(self) -> AbstractContextManager[None]:
        """A block in which no other thread runs this model; every run of the toolkit is in one, and passes of your own belong in one."""
        return alone(self.decoder)

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        grouped = "" if self.n_kv_heads == self.n_heads else f" ({self.n_kv_heads} of keys and values)"
        report = self.report
        summary = {
            "class": type(self.hf_model).__name__,
            "heads": f"{self.n_layers} layers x {self.n_heads}{grouped}",
            "width": f"{self.d_model}, {self.head_dim} per head",
            "weights": f"{self.n_bytes / 1e6:,.1f} MB, {self.dtype}, {self.device}",
            "path": "measured on first use" if report is None else f"{report.path}: {report.why}",
        }
        return ({"": name, self.name: value} for name, value in summary.items())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.hf_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.hf_model.dtype

    @cached_property
    def n_bytes(self) -> int:
        """The size of the weights in bytes."""
        return sum(_stored_bytes(weight) for weight in self.hf_model.parameters())

    @property
    def fingerprint(self) -> str:
        """A hash of the current weights, buffers, modules, adapters and configuration, the same on every device."""
        return fingerprint(self.hf_model)

    @property
    def processor_fingerprint(self) -> str:
        """A hash of how questions become tokens and pixels: tokenizer, image processing, and chat template or custom prompt."""
        return processor_fingerprint(self.processor, self.prompt)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that this model's numbers depend on: weights, processor, device and libraries."""
        return {
            "weights": self.fingerprint,
            "processor": self.processor_fingerprint,
            "numerics": numerics(self.device),
            "versions": versions(),
            "choice_space": self.choice_space,
        }

    @property
    def hooked(self) -> bool:
        """Whether foreign code runs in the model, such as an attached ScAle: then the weights alone do not determine its output.

        Hooks of modules and of torch itself count, and so do persistent nnsight edits and a replaced `forward`.
        """
        with self.alone():
            return any(True for _ in self._foreign_code())

    def _foreign_code(self) -> Iterator[tuple[str, Any]]:
        everywhere = nn.modules.module
        hooks = [("", hook) for hook in everywhere._global_forward_hooks.values()]
        hooks += [("", hook) for hook in everywhere._global_forward_pre_hooks.values()]
        for name, module in self.hf_model.named_modules():
            hooks += [(name, hook) for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
            if replaced(module):
                yield name, module.forward
        own = (*OWN_HOOKS, own_passes)
        yield from ((n, hook) for n, hook in hooks if hook not in own and getattr(hook, "__module__", "").partition(".")[0] not in own)
        yield from (("nnsight", edit) for edit in self._traced_edits())

    def _traced_edits(self) -> list[Any]:
        """nnsight's persistent edits, which act in traces alone."""
        return [edit for view in (self.nn, self.text) for edit in getattr(view, "_edits", ())]

    def require_no_traced_edits(self) -> None:
        """Raise EditError where nnsight has persistent edits of this model, before a pass that is no trace and would ignore them."""
        if self._traced_edits():
            raise EditError(
                f"{self.name} has persistent edits of nnsight, which act in traces alone, and this run is none: use path='reference' "
                "where it can be chosen, or register_forward_hook in place of the edits (vlm.nn.clear_edits() removes them)"
            )

    @property
    def state(self) -> str:
        """A hash of what decides, besides the weights' values, whether the paths agree: modules, adapters, attention, dtypes, hooks."""
        with self.alone():
            return self._state()

    def _state(self) -> str:
        model = self.hf_model
        about = [self.decoder.config._attn_implementation, str(model.training)]
        about += [f"{name} {type(module).__module__}.{type(module).__qualname__}" for name, module in model.named_modules()]
        about += [f"{name} {plain_settings(module)}" for name, module in model.named_modules() if hasattr(module, "_disable_adapters")]
        about += sorted({f"{weight.dtype} {weight.device}" for weight in model.parameters()})
        about += [f"{name} {type(hook).__qualname__} {getattr(hook, '__qualname__', '')}" for name, hook in self._foreign_code()]
        return hashlib.blake2b("\n".join(about).encode(), digest_size=16).hexdigest()

    @property
    def report(self) -> Report | None:
        """How the paths agree on one question, measured by `load` with check=True or on first use; None before that.

        The report is for the current model: it is measured again after a change of attention, dtype, device, modules or hooks.
        """
        return self.measured.reports.get(self.state)

    @report.setter
    def report(self, report: Report) -> None:
        self.measured.reports[self.state] = report

    @property
    def revision(self) -> str | None:
        """The hub commit of the weights, or None if they do not come from a hub."""
        return getattr(self.hf_model.config, "_commit_hash", None)

    def renew(self, modules: Sequence[nn.Module] | None = None) -> None:
        """Make nnsight's views of the model again where its modules, from `walk`, have changed since: an adapter was added, say."""
        found = [id(module) for module in (walk(self.hf_model) if modules is None else modules)]
        if found != self._modules:
            if hasattr(self, "nn") and self._traced_edits():
                warnings.warn(
                    f"{self.name}: its modules have changed, so nnsight's views of it are made anew, and persistent edits of the old ones "
                    "are gone: make them again",
                    RunWarning,
                    stacklevel=4,
                )
            self._modules = found
            self.nn, self.text = NNsight(self.hf_model), NNsight(self.decoder)
            vars(self).pop("layers", None)

    @cached_property
    def layers(self) -> Any:
        """nnsight's view of all layers of the decoder, for use inside `trace`."""
        return self.view(self.all_layers)

    @property
    def text_layers(self) -> Any:
        """The same within a trace of the text decoder alone (`text`)."""
        return getattr(self.text, self.parts.layers_name)

    @property
    def text_norm(self) -> Any:
        """The norm after the last layer, within a trace of the text decoder alone."""
        return getattr(self.text, self.parts.norm_name)

    @property
    def all_layers(self) -> nn.ModuleList:
        """All layers of the decoder, with heads or without."""
        return getattr(self.decoder, self.parts.layers_name)

    @property
    def norm(self) -> Any:
        """The norm after the decoder's last layer."""
        return getattr(self.decoder, self.parts.norm_name)

    @property
    def head(self) -> Any:
        """The head that makes logits of the stream after the last norm."""
        return families.head_of(self.hf_model, self.name)

    def view(self, module: nn.Module) -> Any:
        """nnsight's view of a module of the model, for use inside `trace`."""
        path = next(name for name, m in self.hf_model.named_modules() if m is module)
        envoy = self.nn
        for part in path.split("."):
            envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
        return envoy

    def position_ids(self, inputs: BatchFeature) -> Tensor:
        """The position of every token of unpadded prompts, as the model numbers them: [B, T], or [3, B, T] for mrope."""
        return families.position_ids(self.hf_model, self.quirks, inputs)

    def cap(self, logits: Tensor) -> Tensor:
        """What the model does to its head's logits: a factor (Granite), a soft cap (Gemma), or nothing."""
        factor, cap = self._after_head
        logits = logits if factor == 1 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @cached_property
    def _after_head(self) -> tuple[float, float | None]:
        return families.after_head(self.hf_model)

    @cached_property
    def placeholder(self) -> str:
        """The placeholder of one image in a prompt's text."""
        return str(getattr(self.processor, "image_token", None) or self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @cached_property
    def image_mark(self) -> str:
        """What stands for one image in a custom prompt: the placeholder between the marks that the chat template puts around it."""
        if self.processor.chat_template is None:
            return self.placeholder
        before, after = "\x02before\x03", "\x02after\x03"
        content: Any = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
        try:
            said = self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except Exception:  # a template's own code; what it refuses here is asked in another way
            return self.placeholder
        between = said.partition(before)[2].partition(after)[0].strip()
        # A template that puts all images first, or none, shows nothing here.
        return between if between.count(self.placeholder) == 1 else self.placeholder

    def _mark_in(self, prompt: str) -> str:
        """What stands for one image in this custom prompt: the placeholder alone where the prompt writes the marks around it itself."""
        before, _, after = self.image_mark.partition(self.placeholder)
        written = (before and f"{before}{{images}}" in prompt) or (after and f"{{images}}{after}" in prompt)
        return self.placeholder if written else self.image_mark

    def prompt_text(self, question: Question) -> str:
        """The prompt of a question as text, from the chat template or a custom prompt.

        In a custom prompt, {text} stands for the question and {images} for one placeholder per image, between the marks that the chat
        template puts around it unless the prompt writes them around {images}; the placeholders themselves may also be written out.

        Args:
            question: The question.

        Returns:
            The text, with image placeholders.

        Raises:
            ModelError: The processor has no chat template and the model no custom prompt.
        """
        prompt = self.prompt
        if prompt is None and self.processor.chat_template is None:
            prompt = self.quirks.prompt
            if prompt is None:
                raise ModelError(
                    f"the processor of {self.name} has no chat template: load it with prompt='{{images}}\\n{{text}}' or the like"
                )
        n = len(question.pictures)
        if prompt is not None:
            return prompt.replace("{images}", self._mark_in(prompt) * n).replace("{text}", question.text)
        # It is asked for twice, for the prompt's tokens and for those of its choices.
        key, known = (str(self.processor.chat_template), question.text, n), self.measured.prompts
        if key not in known:
            if len(known) >= CHOICE_SETS:
                known.clear()
            content: Any = [*[{"type": "image"}] * n, {"type": "text", "text": question.text}]
            known[key] = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        return known[key]

    def with_prompt(self, prompt: str | None) -> VLM:
        """This model asked with another prompt: a second view of the same weights, which takes no memory.

        Args:
            prompt: A template with {images} and {text}, or None for the chat template.

        Returns:
            The other view; what is attached to one of the two acts in both.

        >>> import scale_interp as si
        >>> q = si.load_questions("scenes/relation", n=1)[0]
        >>> si.load("demo").with_prompt("{images}\\n{text} ").prompt_text(q).endswith("? ")
        True
        """
        other = copy.copy(self)
        other.prompt = prompt
        other.measured = Measured()
        if self.reopen is not None:
            other.reopen = partial(self.reopen, prompt=prompt)
        return other

    def encode(self, questions: Question | Sequence[Question]) -> BatchFeature:
        """The processor's complete output for one or more questions.

        Args:
            questions: One question or several.

        Returns:
            The model's inputs on its device, left-padded to the same length T: input_ids [B, T], attention_mask [B, T], pixels, ...

        Raises:
            DataError: The number of image placeholders differs from the number of images, or the processor rejects a question.
            ModelError: The model is in training mode.

        Warns:
            DataWarning: The prompt has more tokens than the model has positions.
        """
        require_ready(self)
        return self.on_device(self.process(questions))

    def process(self, questions: Question | Sequence[Question]) -> BatchFeature:
        """The processor's output on the CPU, checked. It does not touch the model, so that another thread may run this meanwhile.

        Args:
            questions: One question or several.

        Returns:
            What `encode` returns, before it is moved to the model's device.

        Raises:
            DataError: As `encode`.
        """
        questions = require(questions)
        texts = [self.prompt_text(q) for q in questions]
        for q, text in zip(questions, texts, strict=True):
            marks, pictures = text.count(self.placeholder), 0 if self.quirks.images_first else len(q.pictures)
            if marks != pictures:
                written = q.text.count(self.placeholder)
                mend = "write the placeholder once for each picture"
                if written and marks - written == pictures:
                    mend = "take it out of the question's text, as the prompt has one for each picture already"
                raise DataError(
                    f"question {q.id}: the prompt has {marks} image placeholder(s) {self.placeholder!r} for {pictures} picture(s); {mend}"
                )
        inputs = self._processed(questions, texts)
        inputs.pop("labels", None)
        if not bool(inputs["attention_mask"][:, -1].all()):
            raise DataError(
                f"the processor of {self.name} pads on the right, where the last token of a shorter prompt is padding: give questions one "
                "by one, or a processor that follows padding_side='left'"
            )
        for q, ids in zip(questions, inputs["input_ids"], strict=True):
            if not q.pictures and (ids == self.image_token_id).any():
                raise DataError(f"question {q.id}: its tokens hold an image placeholder, but it has no picture; give one")
        self._require_positions(questions, inputs)
        return inputs

    def on_device(self, inputs: BatchFeature) -> BatchFeature:
        """Processed inputs on the model's device, pixels in its dtype."""
        for key, value in inputs.items():
            if isinstance(value, Tensor):
                value = there(value, self.device)
                inputs[key] = value.to(self.dtype) if value.is_floating_point() else value
        return inputs

    def _processed(self, questions: Sequence[Question], texts: Sequence[str]) -> BatchFeature:
        """The processor's output; DataError names the question that it refuses."""
        images: list[Any] = [q.images for q in questions]
        if self.quirks.flat_images:
            images = [image for some in images for image in some]
        bos = self.tokenizer.bos_token
        try:
            with alone(self.tokenizer):
                return self.processor(
                    text=list(texts),
                    images=images if any(images) else None,
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=not (bos and texts[0].startswith(bos)),
                )
        except (ValueError, TypeError, LookupError, AttributeError, StopIteration, ArithmeticError, RuntimeError) as error:
            if isinstance(error, DataError) or out_of_memory(error):
                raise
            if len(questions) > 1:  # one of them by itself says which
                for q, text in zip(questions, texts, strict=True):
                    self._processed([q], [text])
            which = f"question {questions[0].id}"
            if len(questions) > 1:
                which = f"questions {', '.join(q.id for q in questions)} together, and each of them alone it takes"
            raise DataError(f"the processor of {self.name} refuses {which}: {error}") from error

    def _require_positions(self, questions: Sequence[Question], inputs: BatchFeature) -> None:
        """DataWarning for prompts that are longer than the model has positions."""
        most = getattr(self.hf_model.config.get_text_config(), "max_position_embeddings", None)
        lengths = inputs["attention_mask"].sum(1)
        if most is None or int(lengths.max()) <= most:
            return
        for q, length, last in zip(questions, lengths.tolist(), self.position_ids(inputs).movedim(-2, 0), strict=True):
            if length > most and int(last.max()) >= most:
                warnings.warn(
                    f"question {q.id}: its prompt has {length} tokens, and {self.name} {most} positions, beyond which it was not trained: "
                    "give a smaller picture or a shorter prompt",
                    DataWarning,
                    stacklevel=4,
                )

    def token_groups(self, question: Question, spans: Mapping[str, Span] | None = None) -> Groups:
        """Which tokens of a question's prompt are what, as numbers from 0.

        `image`, `image_1`, ...: tokens that show a part of an image, of all images and of each. `separators`: tokens between or around
        them that show nothing (new lines of patches, markers of tiles, start and end of an image). `box:NAME`, `box:subject`,
        `box:object`: tokens that show any part of a box. `text`: all others, in two parts, `question` and `template`. `subject`, `object`:
        the words of `Question.about`. `options`: the choices, where the text names them all. `last`: the last token. A group without
        tokens is left out. `image`, `separators` and `text` contain every token once.

        Args:
            question: One question.
            spans: Further groups by name: words of the prompt, or token numbers (negative ones count from the end). Those in
                `question.meta["spans"]` count too, so that analyses know them.

        Returns:
            Name -> token numbers of the prompt without padding.

        Raises:
            DataError: A span is not in the prompt, or has the name of a group.
            ModelError: The tokenizer does not say which characters a token is.

        >>> import scale_interp as si
        >>> vlm, q = si.load("demo"), si.load_questions("scenes/relation", n=1)[0]
        >>> groups = vlm.token_groups(q, spans={"how": "relative to"})
        >>> len(groups["image"]), vlm.tokenizer.decode(vlm.encode(q)["input_ids"][0, groups["how"]])
        (49, 'relative to')
        """
        return token_groups(self, require(question)[0], spans)

    def choice_ids(self, question: Question) -> list[list[int]]:
        """The token ids of each choice as a continuation of the prompt, with a space before it or without (`choice_space`).

        Args:
            question: The question.

        Returns:
            One list of token ids per choice.

        Raises:
            DataError: A choice merges with the end of the prompt into one token.

        Warns:
            DataWarning: A space makes different tokens and nobody has chosen; once per set of choices.
        """
        if self.choice_space == "apart":
            return [self._ids(f" {choice}")[-1:] for choice in question.choices]
        prompt = self.prompt_text(question) + self.quirks.prompt_end
        # Tokens depend on the words just before them only, so questions that end alike share the tokens of their choices.
        key = (_last_words(prompt), question.choices, check_choice_space(self.choice_space), len(self.tokenizer))
        known = self.measured.choice_tokens
        if key not in known:
            if len(known) >= CHOICE_SETS:
                known.clear()
            known[key] = self._choice_ids(question, prompt)
        gap, found, instead = known[key]
        self._say_which(question, gap, found, instead)
        return [list(ids) for ids in found]

    def _choice_ids(self, question: Question, prompt: str) -> ChoiceTokens:
        gap = "" if prompt[-1:].isspace() or prompt.endswith(tuple(self.tokenizer.all_special_tokens)) else " "
        gap = {"auto": gap, "with": " ", "without": ""}[self.choice_space]
        start = self._ids(prompt)
        found = [self._following(prompt, gap + choice, start) for choice in question.choices]
        for choice, ids in zip(question.choices, found, strict=True):
            if not ids:
                raise DataError(
                    f"question {question.id}: choice {choice!r} does not follow the prompt as tokens of its own; "
                    "end the prompt with a space, a colon or a new line"
                )
        other = "" if gap else " "
        instead = [self._following(prompt, other + choice, start) for choice in question.choices] if self.choice_space == "auto" else found
        return gap, found, instead

    def _following(self, prompt: str, text: str, start: list[int] | None = None) -> list[int]:
        """The tokens that the text adds to the prompt's, which are start; none where it does not leave these as they are."""
        start, whole = self._ids(prompt) if start is None else start, self._ids(prompt + text)
        return whole[len(start) :] if whole[: len(start)] == start else []

    def _say_which(self, question: Question, gap: str, found: Sequence[list[int]], others: Sequence[list[int]]) -> None:
        """DataWarning where choices with and without a space are different tokens; further sets of choices are like the first ones."""
        told = self.measured.choices
        if question.choices in told or len(told) >= CHOICES_NAMED:
            return
        for choice, ids, instead in zip(question.choices, found, others, strict=True):
            if instead and instead != ids:
                told.add(question.choices)
                bare, spaced = (instead, ids) if gap else (ids, instead)
                last = "; it is the same for other choices, of which no more is said" if len(told) == CHOICES_NAMED else ""
                warnings.warn(
                    f"{self.name}: after this prompt {short(choice)} and {short(' ' + choice)} are different tokens ({short(bare)} and "
                    f"{short(spaced)}), and {short(gap + choice)} is scored; to choose, load with choice_space='with' or 'without'{last}",
                    DataWarning,
                    stacklevel=3,
                )
                return

    def _ids(self, text: str) -> list[int]:
        with alone(self.tokenizer):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def trace(self, questions: Question | Sequence[Question], **kwargs: Any) -> Any:
        """A plain nnsight trace of one forward pass over the questions: `with vlm.trace(q): vlm.layers[0]...`.

        Args:
            questions: One question or several.
            kwargs: Further arguments of the model.

        Returns:
            nnsight's tracing context.
        """
        tracer = self.nn.trace(**self.encode(questions), **kwargs)
        run = tracer.backend

        def run_alone(traced: Any) -> Any:
            with self.alone():
                return run(traced)

        tracer.backend = run_alone
        return tracer

    @torch.no_grad()
    def generate(
        self, question: Question | Sequence[Question], max_new_tokens: int = 8, *, settings: Settings = "neutral", **kwargs: Any
    ) -> str | list[str]:
        """Generate answers with transformers' own `generate`, greedily unless requested otherwise.

        Args:
            question: One question or several.
            max_new_tokens: The longest answer, in tokens.
            settings: "neutral" ignores the checkpoint's own decoding settings (repetition penalties, banned n-grams, sampling, which
                change greedy text); "checkpoint" uses them.
            kwargs: Any setting of transformers' `generate`, such as do_sample, num_beams or num_return_sequences. With several
                sequences per question, those of one question are adjacent in the list.

        Returns:
            The answer as text for one question, or a list of answers for several.

        Raises:
            ArgumentError: A setting is unknown, or requests more than text.

        >>> import scale_interp as si
        >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=2)
        >>> len(vlm.generate(qs)), type(vlm.generate(qs[0])), len(vlm.generate(qs, num_beams=3, num_return_sequences=3))
        (2, <class 'str'>, 6)
        """
        check_arguments(kwargs, settings, max_new_tokens)
        self.require_no_traced_edits()
        if kwargs.get("stop_strings") is not None:
            kwargs.setdefault("tokenizer", self.tokenizer)
        if settings == "checkpoint":
            kwargs |= {"return_dict_in_generate": False}
        elif kwargs.get("generation_config") is None:
            kwargs.setdefault("do_sample", False)
        inputs = self.encode(question)
        with self.alone(), neutral(self.hf_model, bool(kwargs.get("do_sample"))) if settings == "neutral" else nullcontext():
            found = self.hf_model.generate(**inputs, max_new_tokens=max_new_tokens, **kwargs)
        ids = found if isinstance(found, Tensor) else found.sequences
        texts = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        texts = [t.strip() for t in texts]
        return texts[0] if isinstance(question, Question) and len(texts) == 1 else texts

    def describe(self) -> dict[str, Any]:
        """What a result records about the model."""
        chosen: dict[str, Any] = {} if self.choice_space == "auto" else {"choice_space": self.choice_space}
        if self.parts.others:
            chosen["layer_numbers"] = [layer.number for layer in self.head_layers]
        return chosen | {
            "model": self.name,
            "revision": self.revision,
            "family": self.family,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
        }

    def blame(self) -> str:
        """The reason for logits that are not finite: the first such weight, or the dtype."""
        for name, weight in self.hf_model.named_parameters():
            if not torch.isfinite(weight).all():
                return f"weight {name} of {self.name} holds values that are not finite: load intact weights"
        return f"all weights of {self.name} are finite, so {self.dtype} overflows: load it with dtype=torch.float32 or bfloat16"


def _last_words(prompt: str) -> str:
    """The last characters of a prompt, from the beginning of a word."""
    before, end = prompt[:-PROMPT_END], prompt[-PROMPT_END:]
    return end if not before or before[-1].isspace() else before.rsplit(None, 1)[-1] + end


def _stored_bytes(weight: Tensor) -> int:
    """The bytes that hold a weight; a quantised one of torchao calls itself as large as what it stands for."""
    if type(weight) in (Tensor, nn.Parameter) or not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(_stored_bytes(getattr(weight, name)) for name in names)


def _decoder(model: PreTrainedModel, name: str) -> Decoder:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model; load a decoder-only model")
    found = families.describe(model, name)
    output = found.heads[0].output()
    if not isinstance(output, nn.Linear):
        kind = type(output).__name__
        warnings.warn(f"{name}: {found.heads[0].output_name} is a {kind}, not a plain linear layer (quantised?)", stacklevel=3)
    return found


IMAGE_TOKEN = ("image_token_id", "image_token_index", "image_patch_id", "img_context_token_id")
"""Names of the token that stands for an image, or for a part of one, in configurations and processors."""


def image_token_id(model: PreTrainedModel, processor: Any, name: str) -> int:
    """The token that stands for images in a prompt, by the configuration or else by the processor.

    Raises:
        ModelError: The model takes no images, or none of the two names such a token.
    """
    family = model.config.model_type
    if not takes_images(model):
        raise ModelError(
            f"{name} ({family}) has no image token and no input for images: it is a text-only model; load a vision-language model"
        )
    for source in (model.config, model.config.get_text_config(), processor, getattr(model.config, "vision_config", None)):
        for key in IMAGE_TOKEN:
            if isinstance(found := getattr(source, key, None), int):
                return found
    token, tokenizer = str(getattr(processor, "image_token", "")), getattr(processor, "tokenizer", None)
    if token and tokenizer is not None and (found := tokenizer.get_vocab().get(token)) is not None:
        return found
    raise ModelError(
        f"{name} ({family}) takes images, but neither its configuration nor its processor says which token stands for one in a prompt "
        f"({', '.join(IMAGE_TOKEN)}): set config.image_token_id"
    )


def takes_images(model: PreTrainedModel) -> bool:
    """Whether a model has an input for pixels or a configuration of vision."""
    names = inspect.signature(model.forward).parameters
    return any("pixel" in key or "image" in key for key in names) or getattr(model.config, "vision_config", None) is not None


def _kv_heads(config: Any, n_heads: int) -> int:
    found = setting(config, "num_key_value_heads")
    return found if isinstance(found, int) and found > 0 and not n_heads % found else n_heads
