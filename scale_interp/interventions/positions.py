"""Edits at any tokens of the prompt, on the packed path or in whole forward passes, and which of the two a model takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.out_of_memory import out_of_memory
from ..data.question import Question
from ..errors import EditError, PathWarning
from ..execution.batches import BatchResult, SingleQuestions, map_batches
from ..execution.memory import working_bytes
from ..vlm.token_groups import positions_at
from ..vlm.vlm import VLM
from .check import TOLERANCE, no_memory, of_several_tokens
from .choices import Scoring
from .edit import PARTS, Edit, Positioned
from .knockout.cut import cut_whole
from .knockout.edit import AttentionEdit
from .parts import halving
from .paths import check_finite, join
from .places import Places, edited
from .prompt_end import whole_prompt
from .reference import scores_of
from .suffix import run_suffix, suffix_batch
from .whole_prompt import read_whole

MOST_QUESTIONS = 16


def run_at(
    vlm: VLM,
    questions: Sequence[Question],
    edit: Positioned,
    path: str,
    scoring: Scoring = "auto",
    grad: bool = False,
    what: str = "edits",
) -> tuple[Float[Tensor, "questions variants choices"], Float[Tensor, "questions variants choices"]]:
    """Edited and clean scores [Q, N, C] of an edit at tokens of the prompt."""
    require_width(vlm, edit)
    chosen = choose_path_at(vlm, questions[0], path)
    if grad:
        if chosen != "packed":
            raise EditError(f"grad=True needs the packed path, but {vlm.name} runs edits at tokens on the reference path")
        read = read_whole(vlm, questions, scoring, grad=True)
        clean, found = run_suffix(vlm, read, edit, [positions_at(vlm, q, edit.at) for q in questions])
        return found, clean[:, None].expand_as(found)
    if chosen == "packed":
        parts = [*map_batches(vlm, batches_of(vlm, questions), partial(suffix_work, edit=edit, scoring=scoring), what)]
    else:
        parts = [*map_batches(vlm, SingleQuestions(questions), partial(whole_work, edit=edit, scoring=scoring), what)]
    return join([part["edited"] for part in parts]).to(vlm.device), join([part["clean"] for part in parts]).to(vlm.device)


def require_width(vlm: VLM, edit: Positioned) -> None:
    """Raise EditError for a part of another width than the model's."""
    for name, part in getattr(edit, "parts", {}).items():
        if PARTS[name].axes == "d" and part.shape[-1] != vlm.d_model:
            raise EditError(f"{name} has shape {tuple(part.shape)}, but the model's residual stream has {vlm.d_model} numbers: give those")


@halving
@torch.no_grad()
def suffix_work(vlm: VLM, batch: tuple[slice, Sequence[Question]], edit: Positioned, scoring: Scoring) -> BatchResult:
    """Edited and clean scores [B, N, C] of one batch of prompts, on the packed path."""
    rows, questions = batch
    positions = [positions_at(vlm, q, edit.at) for q in questions]
    found, clean = suffix_batch(vlm, read_whole(vlm, questions, scoring), edit, positions, rows)
    check_finite(vlm, questions, found)
    return {"edited": found, "clean": clean}


@torch.no_grad()
def whole_work(vlm: VLM, batch: tuple[int, Question], edit: Positioned, scoring: Scoring) -> BatchResult:
    """Edited and clean scores [1, N, C] of one question, in whole forward passes."""
    row, question = batch
    found = reference_at(vlm, question, edit, positions_at(vlm, question, edit.at), row, scoring)
    clean = reference_at(vlm, question, None, [], row, scoring)
    check_finite(vlm, [question], found[None])
    return {"edited": found[None], "clean": clean.expand_as(found)[None]}


def reference_at(
    vlm: VLM,
    question: Question,
    edit: Positioned | None,
    positions: Sequence[int],
    row: int = 0,
    scoring: Scoring = "auto",
    variants: Int[Tensor, " variants"] | None = None,
) -> Float[Tensor, "runs choices"]:
    """Choice scores of one question, a whole forward pass for each variant: [n, C], or [1, C] for a clean run."""
    numbers = torch.arange(edit.n_variants if edit else 1) if variants is None else variants
    starts = edit.starts(vlm.n_layers) if edit else None
    out = []
    for number in numbers:
        with ExitStack() as stack:
            if edit is not None and starts is not None:
                if isinstance(edit, AttentionEdit):
                    stack.enter_context(cut_whole(vlm, question, edit, int(number)))
                places = Places.of([positions], vlm.device)
                for i, block in enumerate(vlm.head_layers):
                    # a sweep's variant changes the layer at which it starts, and no other
                    changes = edit.changes(i, number[None], starts[number][None], slice(row, row + 1))
                    stack.enter_context(edited(block, changes, places))
            out.append(scores_of(vlm, question, scoring, partial(_logits, vlm)))
    return torch.stack(out)


def _logits(vlm: VLM, inputs: dict[str, Tensor], T: int) -> Tensor:
    vlm.require_no_traced_edits()
    with vlm.alone(), whole_prompt(vlm.hf_model, inputs, T):
        return vlm.hf_model(**inputs, use_cache=False).logits


@dataclass(frozen=True)
class PromptBatches:
    """Questions in batches, each with its rows among all questions: (slice, questions)."""

    questions: Sequence[Question]
    size: int

    @property
    def plan(self) -> Callable[[VLM], PromptBatches]:
        """Makes the same batches for the model of another process."""
        return partial(prompt_batches, tuple(self.questions), self.size)

    def __len__(self) -> int:
        return -(-len(self.questions) // self.size)

    def __getitem__(self, index: int) -> tuple[slice, Sequence[Question]]:
        index = range(len(self))[index]
        rows = slice(index * self.size, min((index + 1) * self.size, len(self.questions)))
        return rows, self.questions[rows]


def prompt_batches(questions: Sequence[Question], size: int, vlm: VLM) -> PromptBatches:
    """The same batches for the model of another process."""
    return PromptBatches(questions, size)


def batches_of(vlm: VLM, questions: Sequence[Question]) -> PromptBatches:
    """Batches of as many prompts as may be in memory with what each layer computes."""
    T = vlm.encode(questions[0])["input_ids"].shape[1]
    one = vlm.n_layers * T * (2 * vlm.d_model + 2 * vlm.n_kv_heads * vlm.head_dim) * vlm.dtype.itemsize + 8 * T * T
    return PromptBatches(questions, min(MOST_QUESTIONS, max(1, working_bytes(vlm) // one)))


def choose_path_at(vlm: VLM, question: Question, path: str) -> Literal["packed", "reference"]:
    """The path of edits at tokens; for "auto", packed where the two agree on this model, measured once for its state."""
    if path in ("packed", "reference"):
        return path  # type: ignore[return-value]
    state = vlm.state
    if state not in vlm.measured.positions:
        vlm.measured.positions[state] = why = _why_reference(vlm, question)
        if why:
            warnings.warn(f"{vlm.name}: edits at tokens of the prompt run whole forward passes: {why}", PathWarning, stacklevel=4)
    return "reference" if vlm.measured.positions[state] else "packed"


@torch.no_grad()
def _why_reference(vlm: VLM, question: Question) -> str:
    """Why the packed path is not taken: what it raises, or how far it is from whole passes on two questions; "" where they agree."""
    if vlm.parts.others:
        number, kind = next(iter(vlm.parts.others.items()))
        return f"its layer {number} has no heads ({kind}), so what it keeps of the tokens before an edit is not read"
    if not vlm.staircase:
        return "its layers hand on more than the residual stream"
    asked = [question, of_several_tokens(question)]
    own = {q.choices for q in asked} - vlm.measured.choices
    vlm.measured.choices.update(own)  # how the check's own choices are scored is not said
    edit = _every_component(vlm)
    try:
        lengths = [len(vlm.encode(q)["input_ids"][0]) for q in asked]
        positions = [[T // 3, T - 4] for T in lengths]
        whole = [reference_at(vlm, q, edit, p, variants=torch.tensor([i])) for i, (q, p) in enumerate(zip(asked, positions, strict=True))]
        allowed = TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16]) * max(1.0, *(float(part.abs().max()) for part in whole))
        _, found = run_suffix(vlm, read_whole(vlm, asked), edit, positions)
        worst = max(float((found[i, i, : part.shape[-1]] - part[0]).nan_to_num(float("inf")).abs().max()) for i, part in enumerate(whole))
    except Exception as error:  # whatever a model's own code raises on rows that it was not written for
        if out_of_memory(error):
            raise no_memory(vlm, error) from error
        return f"the packed path fails on it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    finally:
        vlm.measured.choices.difference_update(own)
    return "" if worst <= allowed else f"packed and reference scores differ by {worst:.2g}, and {allowed:.2g} is what rounding explains"


def _every_component(vlm: VLM) -> Edit:
    """Two variants that change every component, from the first and from the middle layer on."""
    draw = torch.Generator().manual_seed(0)
    L, H = vlm.n_layers, vlm.n_heads
    made: dict[str, Any] = {}
    for name, shape in (("scale", (2, L, H)), ("mlp_scale", (2, L)), ("attn_scale", (2, L)), ("resid_scale", (2, L))):
        made[name] = 0.5 + torch.rand(*shape, generator=draw)
        made[name][1, : L // 2] = 1
    return Edit(**made)
