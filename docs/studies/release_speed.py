"""How long ScAle's released experiment takes, as a plain loop and here: python -m docs.studies.release_speed

60 training and 240 test questions, 10 epochs, heads and MLPs, test accuracy after every epoch, on a LLaVA of realistic shape with random
weights. The loop runs every question in whole forward and backward passes, as the release does; part of it is timed and the rest
calculated, which the page says. Ours is one whole run, with reading the prompts.
"""

import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scale_interp as si
from scale_interp.bench.realistic import SHAPES, open_model
from scale_interp.core.files import write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.vlm.named_prompts import prompt_template

HERE = Path(__file__).parent
PAGE, HEADING = HERE.parent / "how_to" / "reproduce.md", "## How long it takes\n"
N, EPOCHS, TIMED_STEPS, TIMED_ANSWERS = 300, 10, 3, 30
"""Questions; epochs; steps and answers of the loop that are timed."""


def main() -> None:
    """Time both, compare their scalars and answers, and write the numbers and the section."""
    vlm = open_model(SHAPES[0])
    vlm.prompt, vlm.choice_space = prompt_template("scale-llava"), "apart"
    train, test = (drawn(si.load_questions("generated/vqa/map", s, N, protocol="scale")) for s in ("train", "test"))
    si.fit_scale(vlm, train[:4], recipe="release", epochs=1)  # warms up
    started = time.perf_counter()
    scale = si.fit_scale(vlm, train, recipe="release", epochs=EPOCHS, every_epoch=True)
    fitted = time.perf_counter()
    answers = si.evaluate_many(vlm, test, scale.trajectory)
    ours = time.perf_counter()
    loop = Loop(vlm)
    loop.answer(test[0])
    began = time.perf_counter()
    before = [loop.answer(q) for q in test[:TIMED_ANSWERS]]
    answered = time.perf_counter()
    loop.train(train[: 4 * TIMED_STEPS])
    stepped = time.perf_counter()
    same = si.fit_scale(vlm, train[: 4 * TIMED_STEPS], recipe="release", epochs=1)
    answer, example = (answered - began) / TIMED_ANSWERS, (stepped - answered) / (4 * TIMED_STEPS)
    counts = {"answers": (EPOCHS + 1) * (len(train) + len(test)), "examples": EPOCHS * len(train)}
    whole = counts["answers"] * answer + counts["examples"] * example
    found = {
        "model": vlm.name,
        "train": len(train),
        "test": len(test),
        "epochs": EPOCHS,
        "tokens": int(vlm.encode(test[:16])["attention_mask"].sum(1).max()),
        "fit_seconds": fitted - started,
        "answer_seconds": ours - fitted,
        "seconds": ours - started,
        "loop_seconds_per_answer": answer,
        "loop_seconds_per_example": example,
        "loop_counts": counts,
        "loop_timed": {"answers": TIMED_ANSWERS, "steps": TIMED_STEPS},
        "loop_seconds": whole,
        "ratio": whole / (ours - started),
        "largest_difference": max(
            float((same.scalars - loop.scalars()[0]).abs().max()), float((same.mlp_scalars - loop.scalars()[1]).abs().max())
        ),
        "answers_differ": sum(a != b for a, b in zip(before, answers[0].scores.argmax(1).tolist()[:TIMED_ANSWERS], strict=True)),
        "threads": torch.get_num_threads(),
        "versions": versions() | {"python": platform.python_version()},
    }
    write_json(HERE / "release_speed.json", found)
    text = PAGE.read_text()
    write_bytes(PAGE, (text[: text.index(HEADING)] + section(found)).encode())


def drawn(questions: list[si.Question]) -> list[si.Question]:
    """The questions with their images drawn once, so that drawing is not timed."""
    return [replace(q, image=q.image) for q in questions]


class Loop:
    """The release's way: hooks on a plain model, one question at a time."""

    def __init__(self, vlm: Any) -> None:
        self.vlm = vlm
        L, H = vlm.n_layers, vlm.n_heads
        self.u, self.v = torch.zeros(L, H, requires_grad=True), torch.zeros(L, requires_grad=True)
        self.optimiser = torch.optim.AdamW([self.u, self.v], lr=1e-3, eps=1e-6, weight_decay=0.0)
        self.letters = [vlm.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in "ABCD"]

    def scalars(self) -> tuple[Tensor, Tensor]:
        return (1 + 10 * torch.tanh(self.u)).detach(), (1 + 10 * torch.tanh(self.v)).detach()

    def logits(self, question: si.Question) -> Tensor:
        """Logits [V] of one whole pass."""
        scale, mlp = 1 + 10 * torch.tanh(self.u), 1 + 10 * torch.tanh(self.v)
        hooks = []
        for i, layer in enumerate(self.vlm.decoder.layers):
            hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(partial(scale_heads, scale[i])))
            hooks.append(layer.mlp.register_forward_hook(partial(scale_output, mlp[i])))
        try:
            return self.vlm.hf_model(**self.vlm.encode(question)).logits.float()[0, -1]
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def answer(self, question: si.Question) -> int:
        return int(self.logits(question)[self.letters].argmax())

    def train(self, questions: list[si.Question]) -> None:
        """One pass, a step after every four questions."""
        for number, question in enumerate(questions, 1):
            right = torch.tensor([self.letters[question.answer]])
            loss = torch.nn.functional.cross_entropy(self.logits(question)[None], right)
            (loss + 1e-4 * self.u.square().sum() + 1e-4 * self.v.square().sum()).backward()
            if number % 4 == 0 or number == len(questions):
                for group in (self.u, self.v):
                    torch.nn.utils.clip_grad_norm_([group], 5.0)
                self.optimiser.step()
                self.optimiser.zero_grad()


def scale_heads(scale: Tensor, module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
    """The input of o_proj with the last token's heads multiplied by their scalars [H]."""
    (z,) = args
    last = z[:, -1].view(1, len(scale), -1) * scale[:, None]
    return (torch.cat([z[:, :-1], last.view(1, 1, -1)], 1),)


def scale_output(scale: Tensor, module: Any, args: Any, out: Tensor) -> Tensor:
    """The MLP's output with the last token multiplied by its scalar."""
    return torch.cat([out[:, :-1], out[:, -1:] * scale], 1)


def section(found: dict) -> str:
    counts, timed = found["loop_counts"], found["loop_timed"]
    return f"""{HEADING}
    python -m docs.studies.release_speed

Heads and MLPs, {found["train"]} training and {found["test"]} test questions, {found["epochs"]} epochs, test accuracy after each, on
`{found["model"]}` (random weights, {found["tokens"]} tokens a prompt), {found["threads"]} CPU threads, float32:

| | seconds |
|---|---|
| here, one whole run with reading the prompts | {found["seconds"]:.1f} |
| of these, fitting and answering | {found["fit_seconds"]:.1f} and {found["answer_seconds"]:.1f} |
| the released loop: {counts["answers"]:,} answers and {counts["examples"]:,} training passes | {found["loop_seconds"]:.0f} |

{found["ratio"]:.1f} times faster. Of the loop {timed["answers"]} answers ({found["loop_seconds_per_answer"]:.3f} s each) and
{timed["steps"]} steps of four questions ({found["loop_seconds_per_example"]:.3f} s a question) were timed, and the whole was calculated
from these. After these steps the largest difference of a scalar was {found["largest_difference"]:.1g}, and {found["answers_differ"]} of
the {timed["answers"]} answers differed. Each test prompt is read once for all epochs, while the loop reads it once for each.
"""


if __name__ == "__main__":
    main()
