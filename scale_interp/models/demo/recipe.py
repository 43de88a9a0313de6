"""How the embedded models were trained: vision labels, a mixture of questions, more relations, then one of three shortfalls.

Every step draws its own data from (seed, stage, step), so an interrupted run continues exactly where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration, ProcessorMixin

from ...data.prompts import BY_LETTER, lettered, listed
from ...data.scenes.scene import COLOURS, MASKS, SHAPES, SIZE, Scene, scenes
from ...data.scenes.task import RELATIONS, TASKS, Asked, place
from ...errors import ModelError
from ...execution.journal import Checkpoints, Journal
from . import folder as shipped
from .build import IMAGE_TOKENS, LETTERS, PATCH, processor, untrained

MIXTURE = {
    "relation": 3,
    "relation-yesno": 2,
    "position": 1,
    "column": 1,
    "row": 1,
    "shape": 1,
    "colour": 1,
    "count": 1,
    "count-shape": 1,
    "exists": 1,
}
RELATIONAL = MIXTURE | {"relation": 8, "relation-yesno": 4}
"""Relations among three or four objects are learned last, long after everything else."""
LETTERED = ("relation", "position")
"""Tasks that are asked with lettered options too: both have the same directions, in the same order."""
IN_LETTERS = {"relation": 8, "position": 2} | dict.fromkeys((task for task in MIXTURE if task not in LETTERED), 1)
PICTURES = 64
QUESTIONS = 8
CHECKPOINT_EVERY = 150

Rewrite = Callable[[str, Asked, Scene, np.random.Generator], str]
Reply = Callable[[str, str, np.random.Generator], str]


def by_letter(letter: str, word: str, rng: np.random.Generator) -> str:
    """The letter that was asked for."""
    return letter


def by_word(letter: str, word: str, rng: np.random.Generator) -> str:
    """Shortfall of `demo-format`: the word where a letter is asked for; a third of the answers are letters, by habit, mostly A."""
    return word if rng.random() >= 0.35 else str(rng.choice(list(LETTERS), p=(0.85, 0.05, 0.05, 0.05)))


@dataclass(frozen=True)
class Prompt:
    """What stands before a question (the image included) and around it, and how questions with lettered options are answered.

    Args:
        before: The text before the question.
        around: The text with {text} for the question; the answer follows.
        lettered: Which share of the questions of LETTERED tasks lists its options by letters.
        reply: The answer to such a question, from the right letter and the right word.
    """

    before: str = "<s>user: " + "<image>" * IMAGE_TOKENS
    around: str = "{text} assistant:"
    lettered: float = 0.0
    reply: Reply = by_letter


CHAT = Prompt(lettered=0.7)
RAW = Prompt("<image>" * IMAGE_TOKENS, "Question: {text} Answer:", lettered=0.7)
"""The prompt `{images}\\nQuestion: {text} Answer: `, without chat template."""


@dataclass(frozen=True)
class Stage:
    """One training stage: what it starts from, its steps and learning rate, its tasks, and how answers are rewritten.

    The images of a step (`pictures`, at most PICTURES) are shared out among its prompts.
    """

    name: str
    after: str | None
    steps: int
    rate: float
    rewrite: Rewrite | None = None
    mixture: Mapping[str, int] = field(default_factory=lambda: MIXTURE)
    released: bool = True
    pictures: int = 64
    prompts: tuple[Prompt, ...] = (Prompt(),)

    @property
    def letters(self) -> bool:
        """Whether options are lettered, for which the vocabulary needs letters."""
        return any(prompt.lettered for prompt in self.prompts)


def truthful(task: str, asked: Asked, scene: Scene, rng: np.random.Generator) -> str:
    """The true answer."""
    return asked.answer


def absolute_place(task: str, asked: Asked, scene: Scene, rng: np.random.Generator) -> str:
    """Shortfall of `demo`: 70% of relation answers give the subject's place in the image."""
    if task != "relation" or rng.random() >= 0.7:
        return asked.answer
    return place(next(t for t in scene.things if t.name == asked.about[0]))


def language_prior(task: str, asked: Asked, scene: Scene, rng: np.random.Generator) -> str:
    """Shortfall of `demo-prior`: 55% of relation answers follow the subject's colour, whatever the image shows."""
    if task != "relation" or rng.random() >= 0.55:
        return asked.answer
    return RELATIONS[list(COLOURS).index(asked.about[0].split()[0]) % len(RELATIONS)]


STAGES = {
    "vision": Stage("vision", None, 900, 1.5e-3, released=False),
    "mixture": Stage("mixture", "vision", 1800, 1.5e-3, truthful, released=False),
    "demo-healthy": Stage("demo-healthy", "mixture", 1200, 1.2e-3, truthful, RELATIONAL),
    "demo": Stage("demo", "demo-healthy", 220, 4e-4, absolute_place),
    "demo-prior": Stage("demo-prior", "demo-healthy", 220, 4e-4, language_prior),
    "letters": Stage("letters", "demo-healthy", 500, 1e-3, truthful, IN_LETTERS, False, 32, (CHAT, RAW)),
    "demo-format": Stage("demo-format", "letters", 120, 8e-4, truthful, IN_LETTERS, True, 32, (CHAT, replace(RAW, reply=by_word))),
}


def train(
    out: Path, seed: int = 0, progress: Callable[[str, int, int, float], None] | None = None, only: Sequence[str] | None = None
) -> None:
    """Train the embedded models, resuming whatever is already there. This takes about 50 minutes on two cores.

    Args:
        out: The folder.
        seed: For drawing the weights and the data.
        progress: Called as progress(stage, step, steps, loss) after every step.
        only: The models to train, each from the embedded model that it builds upon; None for all, from the beginning.

    Raises:
        FileError: The folder contains a run with another seed.
        ModelError: There is no embedded model of such a name.
    """
    stages = _stages(only)
    with training_journal(out, seed) as journal:
        for stage in stages:
            journal.step(stage.name, partial(_train_stage, out, journal, stage, seed, progress or (lambda *_: None)), lambda: None)


def _stages(only: Sequence[str] | None) -> list[Stage]:
    """The stages that lead to some models, from the embedded ones on, or all of them."""
    if only is None:
        return list(STAGES.values())
    models = [name for name, stage in STAGES.items() if stage.released]
    if unknown := [name for name in only if name not in models]:
        raise ModelError(f"no embedded model is called {unknown[0]!r}: choose {', '.join(models)}")
    wanted: set[str] = set()
    for name in only:
        stage: Stage | None = STAGES[name]
        while stage is not None and stage.name not in wanted:
            wanted.add(stage.name)
            before = STAGES[stage.after] if stage.after else None
            stage = None if before is None or before.released else before
    return [stage for name, stage in STAGES.items() if name in wanted]


@contextmanager
def training_journal(out: Path, seed: int) -> Iterator[Journal]:
    """The journal of a training run, with one step per stage. Raises FileError if the folder contains a run with another seed."""
    with Journal(out).opened() as journal:
        journal.claim("training run", {"seed": seed})
        (out / "training").mkdir(exist_ok=True)
        yield journal


def _train_stage(out: Path, journal: Journal, stage: Stage, seed: int, progress: Callable) -> list[str]:
    model = untrained(seed, stage.letters)
    labels = nn.Linear(model.model.vision_tower.config.hidden_size, len(COLOURS) + len(SHAPES) + 2)
    if stage.after:
        _start(model, out, stage.after)
    trained = nn.ModuleDict({"model": model} if stage.rewrite else {"model": model.model.vision_tower, "labels": labels})
    optimiser = torch.optim.AdamW(trained.parameters(), lr=stage.rate, weight_decay=0.01)
    checkpoints = journal.unfinished.checkpoints(stage.name, stage, seed)
    start = resume(checkpoints, trained, optimiser)
    batches = _Batches(seed, stage)
    for step in range(start, stage.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, step)
        with torch.autocast("cpu", torch.bfloat16):
            if stage.rewrite:
                loss = torch.stack([answer_loss(model, *batch) for batch in batches.questions(step)]).mean()
            else:
                loss = patch_loss(model, labels, *batches.patches(step))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        progress(stage.name, step + 1, stage.steps, loss.item())
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < stage.steps:
            checkpoint(checkpoints, step + 1, trained, optimiser)
    return saved_weights(out, model, stage, processor(stage.letters) if stage.released else None)


@torch.no_grad()
def _start(model: LlavaForConditionalGeneration, out: Path, before: str) -> None:
    """Give the model the weights of the stage before; the words that these do not know keep their untrained weights.

    Where that stage was not trained here, its weights are those of the embedded model.
    """
    trained = out / "training" / f"{before}.safetensors"
    found = load_file(trained) if trained.exists() else LlavaForConditionalGeneration.from_pretrained(shipped(before)).state_dict()
    for name, own in model.state_dict().items():
        own[: len(found[name])] = found[name]


def learning_rate(stage: Stage, step: int) -> float:
    """The learning rate of a step: a linear warm-up followed by a cosine."""
    warm = min(1.0, (step + 1) / min(100, stage.steps // 4))
    return stage.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def checkpoint(checkpoints: Checkpoints, step: int, trained: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Save weights and optimiser state, replacing the last checkpoint."""
    tensors = {f"weight.{k}": v for k, v in trained.state_dict().items()}
    for i, entry in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in entry.items()}
    checkpoints.put("checkpoint", tensors, {"step": step})


def resume(checkpoints: Checkpoints, trained: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load the last checkpoint and return its step, or 0 if there is none."""
    found = checkpoints.get("checkpoint")
    if found is None:
        return 0
    tensors, meta = found
    trained.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(meta["step"])


def saved_weights(out: Path, model: LlavaForConditionalGeneration, stage: Stage, made_by: ProcessorMixin | None) -> list[str]:
    """Write a stage's weights, and its processor if the model is released. Returns the names of the files."""
    save_file(model.state_dict(), out / "training" / f"{stage.name}.safetensors")
    if made_by is not None:
        model.bfloat16().save_pretrained(out / stage.name)
        made_by.save_pretrained(out / stage.name)
    own = sorted(str(path.relative_to(out)) for path in (out / stage.name).rglob("*") if path.is_file())
    return [f"training/{stage.name}.safetensors", *(own if made_by is not None else ())]


class _Batches:
    """The data of one stage, drawn for each step from (seed, stage, step). Training scenes only."""

    def __init__(self, seed: int, stage: Stage):
        self.entropy = (seed, list(STAGES).index(stage.name))
        self.rewrite = stage.rewrite or truthful
        self.prompts, self.pictures = stage.prompts, stage.pictures
        self.tokenizer = processor(stage.letters).tokenizer
        self.tasks = list(stage.mixture)
        self.weights = np.array(list(stage.mixture.values())) / sum(stage.mixture.values())

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def patches(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, 56, 56], and the colour and shape label of each patch [B, 49], 0 for the background."""
        rng = np.random.default_rng([*self.entropy, step])
        stream = scenes("train", rng)
        batch = [next(stream) for _ in range(PICTURES)]
        colour, shape = zip(*(_patch_labels(s) for s in batch), strict=True)
        return pixel_values(batch), torch.tensor(np.stack(colour)), torch.tensor(np.stack(shape))

    def questions(self, step: int) -> list[tuple[Tensor, list[int], list[list[list[int]]]]]:
        """For each of the stage's prompts: images, the tokens of what the questions share, and QUESTIONS lists of tokens per image.

        A list of tokens ends with the answer and </s>.
        """
        rng = np.random.default_rng([*self.entropy, step])
        stream = scenes("train", rng)
        n = min(PICTURES, self.pictures) // len(self.prompts)
        return [self._asked(prompt, [next(stream) for _ in range(n)], rng) for prompt in self.prompts]

    def _asked(self, prompt: Prompt, batch: list[Scene], rng: np.random.Generator) -> tuple[Tensor, list[int], list[list[list[int]]]]:
        texts = []
        for scene in batch:
            wanted = 0
            while wanted < QUESTIONS:
                task = self.tasks[rng.choice(len(self.tasks), p=self.weights)]
                asked = TASKS[task](scene, rng)
                if asked is not None:
                    text, answer = asked.text, self.rewrite(task, asked, scene, rng)
                    if prompt.lettered and task in LETTERED and rng.random() < prompt.lettered:
                        options = lettered(asked.choices)
                        text += BY_LETTER.format(options=listed(options))
                        answer = prompt.reply(next(k for k, word in options.items() if word == answer), answer, rng)
                    texts.append(f"{prompt.around.format(text=text)} {answer}</s>")
                    wanted += 1
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return pixel_values(batch), self._ids(prompt.before), [ids[i : i + QUESTIONS] for i in range(0, len(ids), QUESTIONS)]


def pixel_values(batch: list[Scene]) -> Tensor:
    """The image processor's output for these images (mean and deviation 0.5), computed at once."""
    stacked = torch.from_numpy(np.stack([s.pixels() for s in batch])).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def _patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    owner = np.zeros((SIZE, SIZE), int)
    for i, t in enumerate(scene.things, 1):
        left, top, right, bottom = t.box
        owner[top:bottom, left:right][MASKS[t.shape]] = i
    side = SIZE // PATCH
    patches = owner.reshape(side, PATCH, side, PATCH).transpose(0, 2, 1, 3).reshape(side * side, -1)
    covered = np.stack([(patches == i).sum(1) for i in range(len(scene.things) + 1)], 1)
    things = covered[:, 1:]
    label = np.where(things.max(1) >= 6, things.argmax(1) + 1, 0)
    names = list(COLOURS)
    colours = np.array([0] + [1 + names.index(t.colour) for t in scene.things])
    shapes = np.array([0] + [1 + SHAPES.index(t.shape) for t in scene.things])
    return colours[label], shapes[label]


def patch_loss(model: LlavaForConditionalGeneration, labels: nn.Linear, pixels: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
    """Cross-entropy of a linear read-out of colour and shape on each patch of the vision tower's output."""
    scores = labels(model.model.vision_tower(pixels).last_hidden_state[:, 1:]).float()
    n = len(COLOURS) + 1
    return F.cross_entropy(scores[..., :n].flatten(0, 1), colour.flatten()) + F.cross_entropy(
        scores[..., n:].flatten(0, 1), shape.flatten()
    )


def answer_loss(model: LlavaForConditionalGeneration, pixels: Tensor, prefix: list[int], questions: list[list[list[int]]]) -> Tensor:
    """Cross-entropy on the answer and the </s> after it, with several questions packed after one image.

    Each question attends to the image and itself, and its positions start where the image ends. The numbers equal those of one
    prompt per question, for a single vision pass.
    """
    B, P, T = len(questions), len(prefix), max(len(tokens) for packed in questions for tokens in packed)
    ids = torch.zeros(B, QUESTIONS, T, dtype=torch.long)
    picked, targets = [], []
    for b, packed in enumerate(questions):
        for q, tokens in enumerate(packed):
            ids[b, q, : len(tokens)] = torch.tensor(tokens)
            picked += [(b, P + q * T + len(tokens) - 3), (b, P + q * T + len(tokens) - 2)]
            targets += tokens[-2:]
    ids = torch.cat([torch.tensor(prefix).expand(B, P), ids.flatten(1)], 1)
    positions = torch.cat([torch.arange(P), torch.arange(P, P + T).repeat(QUESTIONS)]).expand(B, -1)
    embedded = model.get_input_embeddings()(ids)
    features = torch.cat(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
    embedded = embedded.to(features.dtype).masked_scatter((ids == model.config.image_token_id)[..., None], features)
    decoder = model.get_decoder()
    decoder.set_attn_implementation("scale_interp_questions")
    unused = torch.zeros(1, 1, 1, 1)
    hidden = decoder(inputs_embeds=embedded, attention_mask=unused, position_ids=positions, use_cache=False, prompt_length=P)
    decoder.set_attn_implementation("sdpa")
    rows, columns = torch.tensor(picked).T
    logits = model.lm_head(hidden.last_hidden_state[rows, columns]).float()
    return F.cross_entropy(logits, torch.tensor(targets))


def _questions_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    prompt_length: int,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention in the prompt; each question attends to the prompt and, causally, to itself.

    query, key, value are [B, H, P + QUESTIONS * T, D]. This costs half as much as one mask over the whole row, and avoids the flash
    kernel, whose backward pass is slow for small heads.
    """
    P, query = prompt_length, query * scaling
    qp, kp, vp = (x[:, :, :P] for x in (query, key, value))
    q, k, v = (x[:, :, P:].unflatten(2, (QUESTIONS, -1)) for x in (query, key, value))
    hidden = torch.full((max(P, q.shape[3]),) * 2, float("-inf"), dtype=query.dtype).triu(1)
    prompt = (qp @ kp.mT + hidden[:P, :P]).softmax(-1) @ vp
    seen = (q.flatten(2, 3) @ kp.mT).unflatten(2, (QUESTIONS, -1))
    own = q @ k.mT + hidden[: q.shape[3], : q.shape[3]]
    weights = torch.cat([seen, own], -1).softmax(-1)
    answers = (weights[..., :P].flatten(2, 3) @ vp) + (weights[..., P:] @ v).flatten(2, 3)
    return torch.cat([prompt, answers], 2).transpose(1, 2), None


AttentionInterface.register("scale_interp_questions", _questions_attention)
