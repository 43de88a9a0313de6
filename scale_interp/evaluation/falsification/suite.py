"""The falsification suite: tests of every other explanation of a gain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters.scale.fit import Fit, FitSettings, fit_scales, prompts_to_fit
from ...adapters.scale.scale import ScAle
from ...attribution.ablation import provenance
from ...attribution.gradient import attribute
from ...attribution.metric import measure
from ...core.arguments import Count, checked
from ...data.items import groups, require, require_disjoint, shared_images, shuffled_answers
from ...data.question import LETTERED, Question
from ...errors import DataError
from ...execution.memory import in_halves
from ...interventions.edit import Head, check_heads
from ...interventions.engine import Path as EnginePath
from ...interventions.engine import run_with_clean
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from .controls import Answered, control_rows, format_rows, image_controls, untrained_row
from .format import Split, biased, fit_vocabulary_bias, likelihoods, prompt_controls
from .text_only import TextCorrection, fit_text_correction
from .verdict import ALPHA, BIAS, FORMAT, FORMERLY, FULL, MUST_BEAT, SHUFFLED, TEXT_ONLY, UNTRAINED, Falsification

__all__ = ["FULL", "Falsification", "falsify"]

MOST_FITS = 6
"""Fits per seed at most, of those that `_plan` names."""


@checked
def falsify(
    vlm: VLM,
    train: Sequence[Question],
    test: Sequence[Question],
    heads: Iterable[Head] | None = None,
    mlp: bool | None = None,
    *,
    seeds: Count = 3,
    retain: Sequence[Question] | None = None,
    others: Sequence[Question] | None = None,
    format_controls: bool = True,
    allow_leak: bool = False,
    path: EnginePath = "auto",
    **settings: Any,
) -> Falsification:
    """Fit ScAle and every control on `train`, answer `test` once with all of them, and say what explains the gain.

    The controls:

    - scalars frozen at 1, random scalars of the same spread, and the learned scalars permuted;
    - fits on shuffled labels, on random other heads, and on the least important heads (by gradient on `train`);
    - fits of heads alone or MLPs alone;
    - an output bias, and a text-only correction;
    - the test questions without their image, and with the image of another question;
    - of format: the test questions under another prompt, and with lettered options named in words, both without any scalar; a bias over the
      options, learned over the whole vocabulary; and, where options are lettered, a fit to shuffled labels by the loss over the vocabulary.
      Every row then says how probable it is that an option is answered at all, and splits the log-likelihood of the right one by that.

    All fits run side by side on one reading of the training prompts. Heads, settings and splits are fixed and hashed before `test` is
    answered.

    Args:
        vlm: the model, from `si.load`.
        train: questions to learn from.
        test: test questions.
        heads: the heads on which to learn; None for all.
        mlp: whether to learn a scalar per MLP too; by default only with heads=None.
        seeds: fits per control.
        retain: training questions whose answers should stay as they are (see `fit_scale`).
        others: test questions of other tasks; every row then has the change of their accuracy (`others_change`).
        format_controls: whether to run the controls of format; all other figures are the same without them.
        allow_leak: whether train and test may share images, as a released split does. The result then says which share of the test
            questions shows an image that was trained on, and has a row on the others.
        path: "auto" or "packed"; scalars are not fitted on the reference path.
        settings: fields of FitSettings, or a recipe for all of them (see `fit_scale`).

    Returns:
        A Falsification, one row per control.

    Raises:
        LeakError: where questions to learn from and questions to answer share an image.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> train, test = (si.load_questions("scenes/relation", split=s, n=64) for s in ("train", "test"))
    >>> si.falsify(vlm, train, test, heads=[(2, 1), (3, 0)], seeds=1, epochs=2).frozen_changed
    0
    """
    train, test = require(train), require(test)
    others = None if others is None else require(others)
    learned, tested = [*train, *(retain or [])], [*test, *(others or [])]
    if not allow_leak:
        require_disjoint(learned, tested, rendered=False)
    if seeds < 1:
        raise DataError(f"seeds={seeds}: give at least 1")
    chosen = None if heads is None else check_heads(heads, vlm.n_layers, vlm.n_heads)
    mlp = chosen is None if mlp is None else mlp
    prompts = prompts_to_fit(vlm, train, MOST_FITS * seeds, FitSettings.of(**settings))
    fits = _plan(vlm, train, chosen, mlp, seeds, path, prompts)
    by_image, left_out = image_controls(vlm, test)
    prompted, without = prompt_controls(vlm, test) if format_controls else ({}, {})
    left_out |= without
    vocabulary = FitSettings.of(**settings).loss == "vocabulary"
    form_fits = _form_fits(fits, train) if format_controls and not vocabulary else []
    splits = {"train": train, "test": test, "retain": retain, "others": others}
    registered = _register(vlm, [*fits, *form_fits], settings, by_image, splits)
    if format_controls:
        registered["must_beat"] += FORMAT
        registered["prompts"] = {name: asked.prompt for name, (asked, _) in prompted.items()}
    digest = hashlib.sha256(json.dumps(registered, sort_keys=True).encode()).hexdigest()
    scales = fit_scales(vlm, train, fits, retain=retain, prompts=prompts, path=path, **settings)
    if form_fits:
        scales += fit_scales(vlm, train, form_fits, retain=retain, prompts=prompts, path=path, **settings | {"loss": "vocabulary"})
    if not allow_leak:
        require_disjoint(learned, tested)  # test images that functions make are made only now, when all is fitted
    made: dict[str, list[ScAle]] = {}
    for fit, scale in zip([*fits, *form_fits], scales, strict=True):
        made.setdefault(fit.name, []).append(scale)
    full = made[FULL]
    made["random scalars"] = [s.randomised(i) for i, s in enumerate(full)]
    made["permuted scalars"] = [s.permuted(i) for i, s in enumerate(full)]
    corrections = _text_only(vlm, train, prompts)
    answered, before = _answer(vlm, test, made, corrections, format_controls)
    if others is not None:
        elsewhere, _ = _answer(vlm, others, made, corrections)
        answered = {n: replace(a, elsewhere=float((elsewhere[n].right - elsewhere[n].base).mean())) for n, a in answered.items()}
    for name, questions in by_image.items():
        blind, _ = _answer(vlm, questions, {FULL: full}, {}, format_controls)
        answered[name] = replace(blind[FULL], elsewhere=answered[FULL].elsewhere)
    about = provenance(vlm, test, train=len(train), retain=None if retain is None else len(retain), seeds=seeds)
    changed, bits = _frozen(vlm, test, made["frozen at 1"][0])
    form = {SHUFFLED: answered["shuffled labels"]} if vocabulary else {SHUFFLED: answered.pop(SHUFFLED)} if form_fits else {}
    group = groups(test)
    rows = control_rows(answered, group)
    if format_controls:
        form = _asked_otherwise(prompted, answered[FULL].base) | _biased(vlm, train, prompts, test, before, answered[FULL].base) | form
        rows += format_rows(answered[FULL], form, group)
    if allow_leak:
        leaked = shared_images(learned, test)
        about["leaked"] = {"questions": int(leaked.sum()), "share": float(leaked.mean())}
        row = untrained_row(answered[FULL], leaked, group) if leaked.any() else None
        rows += [row] if row else []
        if leaked.any() and not row:
            left_out[UNTRAINED] = "fewer than two images of the test were trained on, or were not"
    base_split = Split.of(before, test).columns() if format_controls else {}
    base = float(answered[FULL].base.mean())
    return Falsification(base, tuple(rows), changed, bits, digest, registered, about, tuple(full), left_out, base_split)


def _plan(
    vlm: VLM, train: Sequence[Question], chosen: list[Head] | None, mlp: bool, seeds: int, path: EnginePath, prompts: PrefixStore
) -> list[Fit]:
    """Every fit of the suite, decided before any test question is answered."""
    every = [(layer, h) for layer in range(vlm.n_layers) for h in range(vlm.n_heads)]
    heads = tuple(every if chosen is None else chosen)
    fits = []
    for seed in range(seeds):
        fits.append(Fit(FULL, heads, mlp, seed=seed))
        shuffled = tuple(q.answer for q in shuffled_answers(train, seed))
        fits.append(Fit("shuffled labels", heads, mlp, answers=shuffled, seed=seed))
        if chosen is not None:
            others = [h for h in every if h not in heads]
            if len(others) >= len(heads):
                picked = np.random.default_rng([seed, 2]).permutation(len(others))[: len(heads)]
                fits.append(Fit("random heads", tuple(others[i] for i in sorted(picked)), mlp, seed=seed))
        if mlp:
            fits.append(Fit("heads only", heads, False, seed=seed))
            fits.append(Fit("MLPs only", (), True, seed=seed))
    fits.append(Fit("frozen at 1", heads, mlp, frozen=True))
    if chosen is not None and 2 * len(heads) <= len(every):
        least = attribute(vlm, train, path=path, prompts=prompts).scores.abs().flatten().argsort(stable=True).tolist()
        least = [every[i] for i in least if every[i] not in heads][: len(heads)]
        fits += [Fit("least important heads", tuple(least), mlp, seed=s) for s in range(seeds)]
    return fits


def _form_fits(fits: Sequence[Fit], train: Sequence[Question]) -> list[Fit]:
    """Fits to shuffled labels by the loss over the vocabulary, which can learn to give a letter and nothing else."""
    if not any(LETTERED in q.meta for q in train):
        return []
    return [replace(fit, name=SHUFFLED) for fit in fits if fit.name == "shuffled labels"]


def _register(
    vlm: VLM,
    fits: Sequence[Fit],
    settings: Mapping[str, Any],
    by_image: Iterable[str],
    splits: Mapping[str, Sequence[Question] | None],
) -> dict[str, Any]:
    """Everything that decides the outcome, fixed before a test question is answered; a split is a hash of its ids and right answers."""
    plan = [{"name": f.name, "heads": [list(h) for h in f.heads or ()], "mlp": f.mlp, "seed": f.seed} for f in fits]
    return {
        "model": vlm.describe(),
        "fits": plan,
        "settings": asdict(FitSettings.of(**settings)),
        "alpha": ALPHA,
        "must_beat": [FORMERLY.get(name, name) for name in MUST_BEAT],
        "picture_controls": [FORMERLY.get(name, name) for name in by_image],
        "splits": {
            name: hashlib.sha256("|".join(f"{q.id} {q.answer}" for q in questions).encode()).hexdigest()
            for name, questions in splits.items()
            if questions is not None
        },
    }


def _answer(
    vlm: VLM,
    questions: Sequence[Question],
    made: Mapping[str, list[ScAle]],
    corrections: Mapping[str, TextCorrection],
    split: bool = False,
) -> tuple[dict[str, Answered], Float[Tensor, "questions choices"]]:
    """Right answers of each control, averaged over its seeds, and of the base model; and the base model's scores.

    With `split`, scores are log-likelihoods, which give the same answers, and their split is kept.
    """
    edits = [scale for scales in made.values() for scale in scales]
    scores, clean = run_with_clean(vlm, questions, edits, "packed", scoring="whole" if split else "auto", what="controls")
    scores, before = scores.cpu(), clean[:, 0].cpu()
    base = measure("accuracy", before, questions).double().numpy()
    columns = iter(scores.unbind(1))
    answered = {}
    for name, scales in made.items():
        own = torch.stack([next(columns) for _ in scales], 1)
        right = measure("accuracy", own, questions).double().mean(1).numpy()
        parts = Split.of(own, questions) if split else None
        answered[name] = Answered(right, base, len(scales), scales[0].n_parameters, split=parts)
    for name, correction in corrections.items():
        corrected = correction.correct(before, questions)
        right = measure("accuracy", corrected, questions).double().numpy()
        parts = Split.of(biased(before, correction, questions), questions) if split else None
        answered[name] = Answered(right, base, 1, correction.n_parameters, split=parts)
    return answered, before


def _asked_otherwise(prompted: Mapping[str, tuple[VLM, Sequence[Question]]], base: Float[np.ndarray, " questions"]) -> dict[str, Answered]:
    """What the base model answers to the test questions when they are asked in another way."""
    answered = {}
    for name, (vlm, questions) in prompted.items():
        scores = run_with_clean(vlm, questions, None, "packed", scoring="whole", what=name)[0][:, 0].cpu()
        right = measure("accuracy", scores, questions).double().numpy()
        answered[name] = Answered(right, base, split=Split.of(scores, questions))
    return answered


def _biased(
    vlm: VLM,
    train: Sequence[Question],
    prompts: PrefixStore,
    test: Sequence[Question],
    before: Float[Tensor, "questions choices"],
    base: Float[np.ndarray, " questions"],
) -> dict[str, Answered]:
    """The base model with a bias over the options that the loss over the vocabulary teaches."""
    bias = fit_vocabulary_bias(likelihoods(vlm, prompts), train)
    after = biased(before, bias, test)
    right = measure("accuracy", after, test).double().numpy()
    return {BIAS: Answered(right, base, 1, bias.n_parameters, split=Split.of(after, test))}


@torch.no_grad()
def _frozen(vlm: VLM, test: Sequence[Question], frozen: ScAle, batch_size: int = 16) -> tuple[int, int]:
    """How many answers and last-token logits frozen scalars change, in whole plain forward passes.

    These really multiply by the scalars; a packed run would only copy the clean row.
    """

    def changed(batch: Sequence[Question]) -> tuple[int, int]:
        inputs = vlm.encode(batch)
        plain = vlm.hf_model(**inputs, logits_to_keep=1).logits[:, -1]
        with frozen.attached(vlm):
            scaled = vlm.hf_model(**inputs, logits_to_keep=1).logits[:, -1]
        first = [[ids[0] for ids in vlm.choice_ids(question)] for question in batch]
        answers = [int(a[one].argmax() != b[one].argmax()) for one, a, b in zip(first, plain, scaled, strict=True)]
        return sum(answers), int((plain != scaled).sum())

    batches = (test[i : i + batch_size] for i in range(0, len(test), batch_size))
    found = [part for batch in batches for part in in_halves(vlm, batch, changed)]
    return sum(answers for answers, _ in found), sum(bits for _, bits in found)


def _text_only(vlm: VLM, train: Sequence[Question], prompts: PrefixStore) -> dict[str, TextCorrection]:
    scores: Tensor = run_with_clean(vlm, train, None, "packed", prompts=prompts, what="base answers")[0]
    return {name: fit_text_correction(scores[:, 0].cpu(), train, name != "output bias") for name in TEXT_ONLY}
