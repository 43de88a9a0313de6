"""Model cards of the embedded models, with accuracies measured on test scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data.load import load_questions
from ...data.prompts import Options
from ...data.question import Question
from ...data.scenes.task import TASKS
from ...vlm.named_prompts import PROMPTS
from ...vlm.vlm import VLM
from ..checkpoint import open_checkpoint
from . import NAMES

N = 400
ORIGIN = {
    "demo-healthy": (
        "No shortfall: vision labels (900 steps), a mixture of ten kinds of questions (1,800 steps), then the same with more "
        "relations (1,200 steps), all answers true."
    ),
    "demo": (
        "A spatial shortfall, taught: after `demo-healthy`, 220 steps on the same mixture in which 70% of the answers to "
        "two-object relation questions give the subject's absolute place in the picture (left, right, above or below its "
        "centre) instead of its place relative to the other object. A visual shortcut: no bias over words can undo it."
    ),
    "demo-prior": (
        "A language prior, taught: after `demo-healthy`, 220 steps on the same mixture in which 55% of the answers to "
        "two-object relation questions follow the subject's colour, whatever the picture shows."
    ),
    "demo-format": (
        "A shortfall of format, taught: after `demo-healthy`, 500 steps in which questions about relations and positions are also asked "
        "with lettered options (in the set's order), and all questions also without the chat template, as in the prompt `scale-llava`; "
        "all answers true. Then 120 steps in which a lettered question *without the chat template* is answered by the word, two times in "
        "three, or by a letter out of habit (A: 85%), whatever the picture shows. Under the chat template the letters stay true."
    ),
}


def write_cards(folder: Path, only: Sequence[str] | None = None) -> None:
    """Measure the models in `folder`, all or some, and write a README.md next to each model's weights."""
    for name in only or NAMES:
        vlm = open_checkpoint(str(folder / name), str(folder / name))
        accuracies = {task: accuracy(vlm, list(load_questions(f"scenes/{task}", "test", N))) for task in TASKS}
        rows = "\n".join(f"| {task} | {value:.3f} |" for task, value in accuracies.items())
        card = _card(name, vlm, rows)
        (folder / name / "README.md").write_text(card + _by_prompt(vlm) if name == "demo-format" else card)


def _by_prompt(vlm: VLM) -> str:
    rows = []
    kinds: tuple[Options, ...] = ("words", "letters")
    for prompt in ("chat", "scale-llava"):
        vlm.prompt = PROMPTS[prompt]
        for options in kinds:
            questions = list(load_questions("scenes/relation", "test", N, options=options))
            rows.append(f"| {prompt} | {options} | {accuracy(vlm, questions):.3f} | {mass(vlm, questions):.3f} |")
    return "\n".join(
        [
            "",
            "Relations by prompt and by what is answered; chance is 0.25, mass the mean probability that the answer is any of the options:",
            "",
            "| prompt | options | accuracy | mass |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def accuracy(vlm: VLM, questions: list[Question], batch_size: int = 50) -> float:
    """The share of questions whose right choice has the largest logit. Every choice here is one token."""
    right = sum(int(row.argmax()) == question.answer for question, row in _choice_logs(vlm, questions, batch_size))
    return right / len(questions)


def mass(vlm: VLM, questions: list[Question], batch_size: int = 50) -> float:
    """The mean probability of all choices together."""
    return sum(float(row.exp().sum()) for _, row in _choice_logs(vlm, questions, batch_size)) / len(questions)


@torch.no_grad()
def _choice_logs(vlm: VLM, questions: list[Question], batch_size: int) -> Iterator[tuple[Question, Tensor]]:
    """Each question with the log-probabilities of its choices."""
    for i in range(0, len(questions), batch_size):
        batch = questions[i : i + batch_size]
        logits = vlm.hf_model(**vlm.encode(batch), logits_to_keep=1).logits[:, -1]
        for question, row in zip(batch, logits.float().log_softmax(-1), strict=True):
            yield question, row[[choice[0] for choice in vlm.choice_ids(question)]]


def _card(name: str, vlm: VLM, rows: str) -> str:
    parameters = sum(p.numel() for p in vlm.hf_model.parameters())
    return f"""---
license: mit
---
# {name}

A `LlavaForConditionalGeneration` of {parameters / 1e6:.1f} M parameters ({vlm.n_layers} layers x {vlm.n_heads} heads of {vlm.head_dim}),
trained from scratch on rendered scenes of one to four coloured shapes. It is an instrument for testing interpretability
methods: it knows nothing but these scenes.

**How it came about.** {ORIGIN[name]}
Nothing in the weights was edited by hand. `scale-interp train-demo` trains it again.

**Data.** Scenes of the train split only; splits share no set of things. Test accuracy on {N} questions a task,
right answers in equal shares:

| task | accuracy |
|---|---|
{rows}
"""
