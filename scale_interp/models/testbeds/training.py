"""How the known-circuit models were trained: first patch labels, then questions; the construction is restored after every step.

Every step draws its own data from (seed, stage, step), so an interrupted run continues exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from ...data.scenes.scene import COLOURS, GRID, SHAPES, SIZE, Scene, scenes
from ...data.scenes.task import TASKS
from ...execution.journal import Journal
from ..demo import recipe
from ..demo.recipe import Stage, pixel_values
from .build import HEAD_DIM, IMAGE_TOKENS, WIDTH, Construction, processor, untrained
from .circuits import CIRCUITS, TASK, Circuit

VISION_STEPS, VISION_PICTURES = 300, 64
DECOY_WEIGHT = 0.3
"""The weight of the decoys' loss. Below the decoys it trains the same weights as the answers' loss."""


def stages(circuit: Circuit) -> tuple[Stage, Stage]:
    """The two stages of a circuit's training: vision labels, then questions."""
    vision = Stage(f"{circuit.name}-vision", None, VISION_STEPS, 3e-3, released=False)
    return vision, Stage(circuit.name, vision.name, circuit.steps, 3e-3)


def train(name: str, out: Path, seed: int = 0, progress: Callable[[str, int, int, float], None] | None = None) -> None:
    """Train one known-circuit model, resuming what is already there.

    Args:
        name: The model's name, without "testbed/".
        out: The folder; the model is written to `out`/NAME.
        seed: Of weights and data.
        progress: Called as progress(stage, step, steps, loss) after every step.

    Raises:
        FileError: The folder contains a run with another seed.
    """
    circuit = CIRCUITS[name]
    with recipe.training_journal(out, seed) as journal:
        for number, stage in enumerate(stages(circuit)):
            make = partial(_train_stage, circuit, number, stage, out, journal, seed, progress or (lambda *_: None))
            journal.step(stage.name, make, lambda: None)


def _train_stage(
    circuit: Circuit, number: int, stage: Stage, out: Path, journal: Journal, seed: int, progress: Callable[..., None]
) -> list[str]:
    model = untrained(circuit, seed)
    labels = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + 2)
    if stage.after:
        model.load_state_dict(load_file(out / "training" / f"{stage.after}.safetensors"))
    construction = Construction.of(circuit, model)
    last = _LastToken(circuit, model)
    trained = nn.ModuleDict({"model": model, "readers": last.readers} if number else {"model": model.model.vision_tower, "labels": labels})
    optimiser = torch.optim.AdamW(trained.parameters(), lr=stage.rate, weight_decay=0.01)
    batches = _Batches(circuit, seed, number)
    checkpoints = journal.unfinished.checkpoints(stage.name, stage, seed)
    for step in range(recipe.resume(checkpoints, trained, optimiser), stage.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(stage, step)
        loss = batches.answer_loss(model, last, step) if number else batches.patch_loss(model, labels, step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        construction.hold()
        progress(stage.name, step + 1, stage.steps, loss.item())
        if (step + 1) % recipe.CHECKPOINT_EVERY == 0 and step + 1 < stage.steps:
            recipe.checkpoint(checkpoints, step + 1, trained, optimiser)
    return recipe.saved_weights(out, model, stage, processor(circuit) if number else None)


class _LastToken:
    """What training does at the last token: it silences random heads that are not listed, and reads the decoys linearly.

    Silenced heads (a share of circuit.silenced) are drawn for every question, so that no listed head learns to rely on them.
    """

    def __init__(self, circuit: Circuit, model: LlavaForConditionalGeneration):
        self.circuit = circuit
        self.seen: dict[int, Tensor] = {}
        self.draw: torch.Generator | None = None
        words = sorted({word for group in circuit.owners.values() for word in group})
        self.words = {word: i for i, word in enumerate(words)}
        self.readers = nn.ModuleList(nn.Linear(HEAD_DIM, len(words)) for _ in circuit.decoys)
        for number, layer in enumerate(model.get_decoder().layers):
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, number=number: (self._pass(number, inputs[0]),))

    def _pass(self, layer: int, z: Tensor) -> Tensor:
        """z [B, T, H * D] of one layer. Its last prompt token, which the answer follows, is recorded and partly silenced."""
        self.seen[layer] = z[:, -2]
        if self.draw is None:
            return z
        H = self.circuit.n_heads
        free = torch.tensor([self.circuit.kind((layer, h)) == "listed" for h in range(H)])
        on = (torch.rand(len(z), H, generator=self.draw) >= self.circuit.silenced) | free
        return torch.cat([z[:, :-2], (z[:, -2] * on.repeat_interleave(HEAD_DIM, 1))[:, None], z[:, -1:]], 1)

    def loss(self, answers: list[str]) -> Tensor:
        """The mean cross-entropy of the decoys' readers."""
        wanted = torch.tensor([self.words[a] for a in answers])
        losses = [
            F.cross_entropy(reader(self.seen[layer][:, head * HEAD_DIM : (head + 1) * HEAD_DIM]), wanted)
            for (layer, head), reader in zip(self.circuit.decoys, self.readers, strict=True)
        ]
        return torch.stack(losses).mean()


class _Batches:
    """The data of one stage, drawn for each step from (seed, stage, step). Training scenes only."""

    def __init__(self, circuit: Circuit, seed: int, stage: int):
        self.circuit, self.entropy = circuit, (seed, sorted(CIRCUITS).index(circuit.name), stage)
        self.tokenizer = processor(circuit).tokenizer
        self.ending = "assistant:" if circuit.relay else "assistant"

    def patch_loss(self, model: LlavaForConditionalGeneration, labels: nn.Linear, step: int) -> Tensor:
        """Cross-entropy of a linear read-out of colour and shape on each patch; 0 is the background."""
        stream = scenes("train", np.random.default_rng([*self.entropy, step]))
        batch = [next(stream) for _ in range(VISION_PICTURES)]
        scores = labels(model.model.vision_tower(pixel_values(batch)).last_hidden_state[:, 1:]).flatten(0, 1)
        colour, shape = torch.tensor(np.stack([_patch_labels(s) for s in batch])).flatten(0, 1).T
        n = len(COLOURS) + 1
        return F.cross_entropy(scores[:, :n], colour) + F.cross_entropy(scores[:, n:], shape)

    def answer_loss(self, model: LlavaForConditionalGeneration, last: _LastToken, step: int) -> Tensor:
        """Cross-entropy on the answer and the </s> after it; all questions of the task have the same length."""
        rng = np.random.default_rng([*self.entropy, step])
        last.draw = torch.Generator().manual_seed(int(rng.integers(2**31))) if self.circuit.silenced else None
        stream = scenes("train", rng)
        batch: list[Scene] = []
        texts, answers = [], []
        while len(batch) < self.circuit.questions:
            scene = next(stream)
            asked = TASKS[TASK](scene, rng)
            if asked is not None:
                batch.append(scene)
                answers.append(asked.answer)
                texts.append(f"<s>{asked.text} {'<image>' * IMAGE_TOKENS}{self.ending} {asked.answer}</s>")
        ids = torch.tensor(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        logits = model(input_ids=ids[:, :-1], pixel_values=pixel_values(batch), logits_to_keep=2, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, -2:].flatten()) + DECOY_WEIGHT * last.loss(answers)


def _patch_labels(scene: Scene) -> np.ndarray:
    """Colour and shape of each patch [16, 2]: every object is within one cell of the grid, and a patch is a cell."""
    labels = np.zeros((GRID * GRID, 2), dtype=np.int64)
    for thing in scene.things:
        cell = thing.y * GRID // SIZE * GRID + thing.x * GRID // SIZE
        labels[cell] = 1 + list(COLOURS).index(thing.colour), 1 + SHAPES.index(thing.shape)
    return labels
