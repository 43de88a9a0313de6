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
N, EPOCHS, TIMED_STEPS, TIMED_ANSWERS = 300, 10, 2, 8
"""Questions; epochs; steps and answers of the loop that are timed."""


def main() -> None:
    """Time both, compare their scalars and answers, and write the numbers and the section."""
    vlm = open_model(SHAPES[0])
    vlm.prompt, vlm.choice_space = prompt_template("scale-llava"), "apart"
    train, test = (drawn(si.load_questions("generated/vqa/map", s, N, protocol="scale")) for s in ("train", "test"))
    si.fit_scale(vlm, train[:4], recipe="release", epochs=1)  # warms up
    loop = Loop(vlm)
    loop.answer(test[0])
    clock = Clock()
    before = [loop.answer(q) for q in test[:TIMED_ANSWERS]]
    answering = clock.lap()
    loop.train(train[: 4 * TIMED_STEPS])
    training = clock.lap()
    scale = si.fit_scale(vlm, train, recipe="release", epochs=EPOCHS, every_epoch=True)
    fitting = clock.lap()
    answers = si.evaluate_many(vlm, test, scale.trajectory)
    answered = clock.lap()
    same = si.fit_scale(vlm, train[: 4 * TIMED_STEPS], recipe="release", epochs=1)
    counts = {"answers": (EPOCHS + 1) * (len(train) + len(test)), "examples": EPOCHS * len(train)}
    found: dict[str, Any] = {
        "model": vlm.name,
        "train": len(train),
        "test": len(test),
        "epochs": EPOCHS,
        "tokens": int(vlm.encode(test[:16])["attention_mask"].sum(1).max()),
        "loop_counts": counts,
        "loop_timed": {"answers": TIMED_ANSWERS, "steps": TIMED_STEPS},
        "largest_difference": max(
            float((same.scalars - loop.scalars()[0]).abs().max()), float((same.mlp_scalars - loop.scalars()[1]).abs().max())
        ),
        "answers_differ": sum(a != b for a, b in zip(before, answers[0].scores.argmax(1).tolist()[:TIMED_ANSWERS], strict=True)),
        "threads": torch.get_num_threads(),
        "versions": versions() | {"python": platform.python_version()},
    }
    for kind in ("seconds", "cpu_seconds"):
        answer, example = answering[kind] / TIMED_ANSWERS, training[kind] / (4 * TIMED_STEPS)
        whole, ours = counts["answers"] * answer + counts["examples"] * example, fitting[kind] + answered[kind]
        found[kind] = {"answer": answer, "example": example, "loop": whole, "fit": fitting[kind], "test": answered[kind], "here": ours}
        found[kind]["ratio"] = whole / ours
    write_json(HERE / "release_speed.json", found)
    text = PAGE.read_text()
    write_bytes(PAGE, (text[: text.index(HEADING)] + section(found)).encode())


class Clock:
    """Seconds, and seconds of processor time of all threads, since the last lap."""

    def __init__(self) -> None:
        self.last = time.perf_counter(), time.process_time()

    def lap(self) -> dict[str, float]:
        now = time.perf_counter(), time.process_time()
        passed = {name: b - a for name, a, b in zip(("seconds", "cpu_seconds"), self.last, now, strict=True)}
        self.last = time.perf_counter(), time.process_time()
        return passed


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


def section(found: dict[str, Any]) -> str:
    """The last section of the page."""
    counts, timed, wall, cpu = found["loop_counts"], found["loop_timed"], found["seconds"], found["cpu_seconds"]
    return f"""{HEADING}
    python -m docs.studies.release_speed

Heads and MLPs, {found["train"]} training and {found["test"]} test questions, {found["epochs"]} epochs, accuracy on both after each, on
`{found["model"]}` (random weights, {found["tokens"]} tokens a prompt), {found["threads"]} threads of a CPU, float32:

| | seconds | of processor time |
|---|---|---|
| here, one whole run with reading the prompts | {wall["here"]:.1f} | {cpu["here"]:.1f} |
| of these, fitting | {wall["fit"]:.1f} | {cpu["fit"]:.1f} |
| of these, answering the test questions for all epochs | {wall["test"]:.1f} | {cpu["test"]:.1f} |
| the released loop: {counts["answers"]:,} answers and {counts["examples"]:,} training passes | {wall["loop"]:.0f} | {cpu["loop"]:.0f} |
| times faster | {wall["ratio"]:.1f} | {cpu["ratio"]:.1f} |

Of the loop {timed["answers"]} answers ({wall["answer"]:.3f} s each) and {timed["steps"]} steps of four questions ({wall["example"]:.3f} s a
question) were timed, and the whole was calculated from these. After these steps the largest difference of a scalar was
{found["largest_difference"]:.1g}, and {found["answers_differ"]} of the {timed["answers"]} answers differed. Each test prompt is read
once for all epochs, while the loop reads it once for each.
"""


if __name__ == "__main__":
    main()
