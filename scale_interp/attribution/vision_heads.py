"""Heads of the vision encoder: what they compute, and what the answer loses or regains when they are edited at every patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.arguments import Raises, checked
from ..data.contrast import Contrast
from ..data.items import groups, require
from ..data.question import Question
from ..errors import DataError, EditError
from ..execution.batches import BatchResult, SingleQuestions, map_batches
from ..execution.memory import MOST_QUESTIONS
from ..interventions.edit import Head
from ..interventions.engine import Path, choose_path, run_edits
from ..interventions.packed import run_packed
from ..interventions.paths import check_finite, join
from ..interventions.prefix import read_prefix
from ..interventions.reference import run_reference
from ..interventions.vision import image_features, in_pixels_place, join_features, same_features, takes_features
from ..vlm.vision_tower import VisionTower, vision_tower
from ..vlm.vlm import VLM
from .ablation import provenance
from .headmap import HeadMap
from .metric import Metric, contrast_diff, measure
from .position_patching import checked_gap

VisionMode = Annotated[Literal["zero", "mean"], Raises(EditError)]


@checked
def capture_vision(vlm: VLM, questions: Question | Sequence[Question]) -> Float[Tensor, "questions layers heads head_dim"]:
    """What each head of the vision encoder computes on a question's images, mean over patches, before the output projection.

    Args:
        vlm: the model, from `si.load`.
        questions: one question with an image, or several.

    Returns:
        z [Q, L, H, D] of the encoder's layers and heads.

    Raises:
        DataError: a question has no image.
        ModelError: the encoder's layers have no separable heads.

    >>> import scale_interp as si
    >>> si.capture_vision(si.load("demo"), si.load_questions("scenes/relation", n=4)).shape[:1]
    torch.Size([4])
    """
    questions = _with_images(require(questions))
    return torch.stack([part["z"] for part in map_batches(vlm, SingleQuestions(questions), capture_work, "reading vision heads")])


@torch.no_grad()
def capture_work(vlm: VLM, batch: tuple[int, Question]) -> BatchResult:
    """One question's z [L, H, D], mean over patches."""
    tower = vision_tower(vlm)
    return {"z": torch.stack([z.flatten(0, -3).mean(0) for z in read_heads(vlm, tower, batch[1])])}


@checked
def ablate_vision(
    vlm: VLM, questions: Sequence[Question], mode: VisionMode = "zero", *, metric: Metric = "logit_diff", path: Path = "auto"
) -> HeadMap:
    """How much the metric falls when one head of the vision encoder is removed at every patch.

    score = metric(clean) - metric(ablated), as in `ablate`. Layers whose output the model does not use score exactly 0.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions with images.
        mode: what takes the place of the head's output z: "zero", or "mean", its mean over patches and questions.
        metric: "logit_diff" (logits), "correct_prob" or "accuracy" (both from 0 to 1).
        path: "packed" runs several edited images in one pass, "reference" one whole forward pass per edit, "auto" chooses.

    Returns:
        A HeadMap of the encoder's layers and heads, per_question [Q, L, H] in units of the metric.

    Raises:
        DataError: a question has no image.
        EditError: for an unknown mode.
        ModelError: the encoder's layers have no separable heads.

    >>> import scale_interp as si
    >>> ablate_vision(si.load("demo"), si.load_questions("scenes/relation", n=4)).method
    'zero ablation of vision heads'
    """
    questions, tower = _with_images(require(questions)), vision_tower(vlm)
    mean = capture_vision(vlm, questions).mean(0) if mode == "mean" else None
    clean, edited = _run(vlm, questions, partial(edited_work, mean=mean), path, f"{mode} ablation of vision heads")
    effect = measure(metric, clean, questions) - measure(metric, edited, questions)
    made = _provenance(vlm, questions, metric=metric, mode=mode, path=choose_path(vlm, questions, path))
    per_question = effect.cpu().unflatten(1, (tower.n_layers, tower.n_heads))
    return HeadMap(f"{mode} ablation of vision heads", metric.replace("_", " "), per_question, torch.from_numpy(groups(questions)), made)


@checked
def patch_vision(vlm: VLM, pairs: Sequence[Contrast], *, path: Path = "auto") -> HeadMap:
    """How much of the logit difference returns when one head of the vision encoder takes its clean output, patch by patch.

    The corrupt question is run with the head's z of the clean question's image. score = the recovered fraction, as in `patch`.

    Args:
        vlm: the model, from `si.load`.
        pairs: Q pairs from `si.contrasts`, whose images have the same size.
        path: as in `ablate_vision`.

    Returns:
        A HeadMap of the encoder's layers and heads, per_question [Q, L, H]: recovered fractions.

    Raises:
        DataError: a question has no image, the two images of a pair give different numbers of patches, or clean and corrupt questions give
            the same logit difference.
        ModelError: the encoder's layers have no separable heads.

    >>> import scale_interp as si
    >>> vlm, pairs = si.load("demo"), si.contrasts(si.load_questions("scenes/relation", n=4))
    >>> patch_vision(vlm, pairs).unit
    'recovered fraction'
    """
    pairs, tower = require(pairs, Contrast), vision_tower(vlm)
    corrupt, clean = _with_images([p.corrupt for p in pairs]), _with_images([p.clean for p in pairs])
    before, edited = _run(vlm, corrupt, partial(patched_work, sources=tuple(clean)), path, "patching of vision heads")
    after = run_edits(vlm, clean, path=path, what="clean runs").cpu()
    m_corrupt, m_patched, m_clean = (contrast_diff(scores, pairs) for scores in (before, edited, after))
    fraction = (m_patched - m_corrupt) / checked_gap(m_clean - m_corrupt)
    made = _provenance(vlm, pairs, path=choose_path(vlm, corrupt, path))
    per_question = fraction.cpu().unflatten(1, (tower.n_layers, tower.n_heads))
    return HeadMap("patching of vision heads", "recovered fraction", per_question, torch.from_numpy(groups(pairs)), made)


def _provenance(vlm: VLM, items: Sequence[Question] | Sequence[Contrast], **settings: Any) -> dict[str, Any]:
    made = provenance(vlm, items, component="vision", **settings)
    made.pop("layer_numbers", None)  # those of the text decoder
    return made


Batch = tuple[int, Question]
Source = Sequence[Tensor] | None
"""What takes the place of each layer's heads, [..., H, D] with or without an axis of patches; None for zeros."""


def edited_work(vlm: VLM, batch: Batch, mean: Tensor | None, whole: bool) -> BatchResult:
    """One question's scores with each head zeroed or at its mean [L, H, D], and the clean ones."""
    return _sweep(vlm, batch, None if mean is None else [*mean.to(vlm.device)], whole)


def patched_work(vlm: VLM, batch: Batch, sources: Sequence[Question], whole: bool) -> BatchResult:
    """One question's scores with each head as it is on the source's image, and the clean ones."""
    row, question = batch
    tower = vision_tower(vlm)
    here, there = (read_heads(vlm, tower, q) for q in (question, sources[row]))
    if wrong := next(((a.shape, b.shape) for a, b in zip(here, there, strict=True) if a.shape != b.shape), None):
        raise DataError(
            f"question {question.id}: its image gives heads {tuple(wrong[0])} and that of {sources[row].id} {tuple(wrong[1])}, so there is "
            "no patch for each patch: give pairs whose images have the same size"
        )
    return _sweep(vlm, batch, there, whole)


@torch.no_grad()
def _sweep(vlm: VLM, batch: Batch, source: Source, whole: bool) -> BatchResult:
    """Edited and clean scores [N, C] of one question, heads layer by layer."""
    row, question = batch
    tower = vision_tower(vlm)
    heads = [(layer, head) for layer in range(tower.n_layers) for head in range(tower.n_heads)]
    run = _whole if whole or not takes_features(vlm) else _batched
    edited, clean = run(vlm, tower, question, heads, source)
    check_finite(vlm, [question], edited[None], row=row)
    return {"edited": edited, "clean": clean}


def _whole(vlm: VLM, tower: VisionTower, question: Question, heads: Sequence[Head], source: Source) -> tuple[Tensor, Tensor]:
    """One whole forward pass per head."""
    one = torch.zeros(1, dtype=torch.long)
    clean = run_reference(vlm, question, 0, None, one)
    edited = []
    for head in heads:
        with edited_head(tower, head, source):
            edited.append(run_reference(vlm, question, 0, None, one))
    return torch.cat(edited), clean.expand(len(heads), -1)


def _batched(vlm: VLM, tower: VisionTower, question: Question, heads: Sequence[Head], source: Source) -> tuple[Tensor, Tensor]:
    """The vision encoder once per head, and the decoder once for many: one prompt for each edited image, and one for the clean one."""
    inputs = vlm.encode(question)
    intact, changed = image_features(vlm, inputs), list[tuple[int, Any]]()
    if intact.pooler_output is None:  # features of another form
        return _whole(vlm, tower, question, heads, source)
    for n, head in enumerate(heads):
        with edited_head(tower, head, source):
            features = image_features(vlm, inputs)
        if not same_features(features, intact):  # of a layer that the model does not use, nothing arrives
            changed.append((n, features))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for first in range(0, max(1, len(changed)), MOST_QUESTIONS - 1):
        chunk = changed[first : first + MOST_QUESTIONS - 1]
        given = [intact, *(features for _, features in chunk)]
        plain, *scores = run_packed(vlm, read_prefix(vlm, [question] * len(given), vision=_Features(vlm, given)), None)[0]
        found |= {n: (row, plain) for (n, _), row in zip(chunk, scores, strict=True)}
    edited, clean = zip(*(found.get(n, (plain, plain)) for n in range(len(heads))), strict=True)
    return torch.stack(edited), torch.stack(clean)


@dataclass(frozen=True)
class _Features:
    """Features of images that take the place of pixels, one set per prompt."""

    vlm: VLM
    features: Sequence[Any]

    def replace_pixels(self, inputs: Any, questions: Sequence[Question]) -> dict[str, Any]:
        return in_pixels_place(self.vlm, inputs, join_features(self.features))


def _run(vlm: VLM, questions: Sequence[Question], work: Any, path: Path, what: str) -> tuple[Tensor, Tensor]:
    """Clean and edited scores [Q, N, C]."""
    whole = choose_path(vlm, questions, path) == "reference"
    found = [*map_batches(vlm, SingleQuestions(questions), partial(work, whole=whole), what)]
    clean, edited = (join([part[name][None] for part in found]) for name in ("clean", "edited"))
    return clean, edited


@contextmanager
def edited_head(tower: VisionTower, head: Head, source: Source) -> Iterator[None]:
    """A block in which one head of the encoder gives another output at every patch.

    Args:
        tower: The encoder's heads.
        head: (layer, head).
        source: What takes the place of each layer's heads; None for zeros.
    """
    layer, number = head

    def edit(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].unflatten(-1, (tower.n_heads, -1)).clone()
        z[..., number, :] = 0 if source is None else source[layer][..., number, :].to(z)
        return (z.flatten(-2), *args[1:])

    hook = tower.projections[layer].register_forward_pre_hook(edit)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def read_heads(vlm: VLM, tower: VisionTower, question: Question) -> list[Tensor]:
    """The heads' outputs on a question's images, [..., H, D] per layer, with the encoder's own axes of images and patches."""
    vlm.require_no_traced_edits()
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].unflatten(-1, (tower.n_heads, -1)).clone())

    hooks = [projection.register_forward_pre_hook(keep) for projection in tower.projections]
    try:
        inputs = vlm.encode(question)
        image_features(vlm, inputs) if takes_features(vlm) else vlm.hf_model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _with_images(questions: Sequence[Question]) -> Sequence[Question]:
    if blind := next((q for q in questions if not q.pictures), None):
        raise DataError(f"question {blind.id} has no image, so the vision encoder does nothing for it: leave it out")
    return questions
