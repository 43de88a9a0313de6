"""The falsification suite: every way that a gain could be something else than what it is taken for."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import statistics
from ..adapters.fit import Fit, FitSettings, fit_scales
from ..adapters.scale import ScAle
from ..attribution.gradient import attribute
from ..attribution.metric import measure
from ..attribution.sweep import provenance
from ..data.items import groups, require, shuffled_answers
from ..data.question import Question
from ..errors import DataError, FileError
from ..interventions.edit import Head, check_heads
from ..interventions.engine import Path as EnginePath
from ..interventions.engine import run_with_clean
from ..interventions.prefix import Prompts
from ..models.vlm import VLM
from ..record import read_json, write_json
from .accuracy import relative_gain, require_disjoint
from .text_only import TextCorrection, fit_text_correction

ALPHA = 0.05
MUST_BEAT = ("frozen at 1", "random scalars", "permuted scalars", "shuffled labels", "output bias", "text-only correction")
TEXT_ONLY = ("output bias", "text-only correction")
OTHER_HEADS = ("random heads", "least important heads")
FULL = "ScAle"


@dataclass(frozen=True, eq=False)
class Falsification:
    """The suite's outcome: a row a control, the fitted scalars, and what follows.

    rows: control, accuracy, gain over base with interval, p, p_corrected (Holm over the suite), and `full_minus` (how
    much better ScAle is than the control) with the same. registration: SHA-256 of heads, settings and test questions,
    fixed before the test questions were answered. scales: ScAle of each seed (empty in a loaded suite).
    """

    base_accuracy: float
    rows: tuple[Mapping[str, Any], ...]
    frozen_changed: int
    frozen_bits_changed: int
    registration: str
    registered: Mapping[str, Any]
    provenance: Mapping[str, Any]
    scales: tuple[ScAle, ...] = ()

    def __repr__(self) -> str:
        return f"<Falsification: {'survives' if self.survives else 'does not survive'}. {self.verdict}>"

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.verdict)}</b></p>{self.to_frame().to_html(index=False, float_format='{:.3f}'.format)}"

    def __getitem__(self, control: str) -> Mapping[str, Any]:
        return next(row for row in self.rows if row["control"] == control)

    @property
    def gain(self) -> float:
        return self[FULL]["gain"]

    @property
    def gains(self) -> bool:
        """ScAle's gain over the base model is above 0 after correction."""
        row = self[FULL]
        return row["gain"] > 0 and row["low"] > 0 and row["p_corrected"] < ALPHA

    @property
    def not_beaten(self) -> list[str]:
        """Controls that ScAle does not beat, among those that any real gain must beat."""
        rows = [r for r in self.rows if r["control"] in MUST_BEAT]
        return [r["control"] for r in rows if not (r["full_minus"] > 0 and r["full_minus_p_corrected"] < ALPHA)]

    @property
    def text_share(self) -> float:
        """The larger text-only gain as a share of ScAle's gain (0 where nothing is gained)."""
        return max(0.0, *(self[c]["gain"] for c in TEXT_ONLY)) / self.gain if self.gain > 0 else 0.0

    @property
    def heads_matter(self) -> bool | None:
        """ScAle on the chosen heads beats ScAle on random heads; None where no heads were chosen."""
        rows = [r for r in self.rows if r["control"] == "random heads"]
        return None if not rows else rows[0]["full_minus"] > 0 and rows[0]["full_minus_p_corrected"] < ALPHA

    @property
    def survives(self) -> bool:
        """The gain is there, frozen scalars change no answer, and no control explains it."""
        return self.gains and self.frozen_changed == 0 and not self.not_beaten

    @property
    def verdict(self) -> str:
        """What was found, in plain words."""
        row = self[FULL]
        size = f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        if self.frozen_changed:
            return f"The measurement itself is broken: with all scalars frozen at 1, {self.frozen_changed} answers changed."
        if not self.gains:
            return f"No gain: ScAle changes accuracy by {size}, which does not differ from 0 (corrected p = {row['p_corrected']:.2g})."
        text = [c for c in TEXT_ONLY if c in self.not_beaten]
        if text:
            best = max(text, key=lambda c: self[c]["gain"])
            return (
                f"A text-only correction explains the gain: ScAle gains {size}, and the {best}, which never sees the picture, "
                f"gains {self[best]['gain']:+.3f}. This is un-biasing, not spatial reasoning."
            )
        if self.not_beaten:
            return f"The gain does not survive: ScAle gains {size}, but does not beat {', '.join(self.not_beaten)}."
        words = f"The gain survives: ScAle gains {size}, beats every control, and text-only corrections reach {self.text_share:.0%} of it."
        if self.heads_matter is not None:
            other = self["random heads"]["gain"]
            words += (
                f" The chosen heads matter: as many random heads gain {other:+.3f}."
                if self.heads_matter
                else f" The choice of heads does not matter measurably: as many random heads gain {other:+.3f}."
            )
        return words

    def to_frame(self) -> pd.DataFrame:
        """A row a control: accuracy, gain over base, interval, p, corrected p, and ScAle's advantage over it."""
        return pd.DataFrame(list(self.rows))

    def plot(self, **options: Any) -> Any:
        """Bars of every control's gain with intervals (see viz.controls)."""
        from ..viz import controls

        return controls(self, **options)

    def save(self, path: str | Path) -> None:
        """Write the whole outcome as JSON (the scalars are saved by ScAle.save_pretrained)."""
        content = asdict(replace(self, scales=()))
        content.pop("scales")
        write_json(Path(path), {"method": "Falsification", "survives": self.survives, "verdict": self.verdict} | content)

    @staticmethod
    def load(path: str | Path) -> Falsification:
        content = read_json(Path(path))
        if content.get("method") != "Falsification":
            raise FileError(f"{path} is no Falsification")
        names = ("base_accuracy", "rows", "frozen_changed", "frozen_bits_changed", "registration", "registered", "provenance")
        if missing := [n for n in names if n not in content]:
            raise FileError(f"{path} lacks {', '.join(missing)}; save it again")
        values: list[Any] = [tuple(content[n]) if n == "rows" else content[n] for n in names]
        return Falsification(*values)


def falsify(
    vlm: VLM,
    train: Sequence[Question],
    test: Sequence[Question],
    heads: Iterable[Head] | None = None,
    mlp: bool | None = None,
    *,
    seeds: int = 3,
    retain: Sequence[Question] | None = None,
    others: Sequence[Question] | None = None,
    path: EnginePath = "auto",
    **settings: Any,
) -> Falsification:
    """Fit ScAle and every control on `train`, answer `test` once with all of them, and say what the gain is.

    heads: where to learn, None for all heads. mlp: learn MLP scalars too (default: only with heads=None).
    Controls: frozen at 1; random scalars of the same spread; the learned scalars permuted; fits on shuffled labels;
    fits on random other heads and on the least important ones (by gradient on `train`); an output bias; a text-only
    correction. All fits run side by side. retain: training questions whose answers should stay (see fit_scale).
    others: test questions of other tasks; every row then says by how much their accuracy changes (`others_change`).
    path: as in fit_scale. settings: fields of FitSettings.

    Raises LeakError where questions to learn from and questions to answer share a picture.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> train, test = (si.load_questions("scenes/relation", split=s, n=64) for s in ("train", "test"))
    >>> si.falsify(vlm, train, test, heads=[(2, 1), (3, 0)], seeds=1, epochs=2).frozen_changed
    0
    """
    train, test = require(train), require(test)
    require_disjoint([*train, *(retain or [])], [*test, *(others or [])])
    if seeds < 1:
        raise DataError(f"seeds={seeds}: at least one fit is needed")
    chosen = None if heads is None else check_heads(heads, vlm.n_layers, vlm.n_heads)
    mlp = chosen is None if mlp is None else mlp
    fits = _plan(vlm, train, chosen, mlp, seeds, path)
    registered = _register(vlm, fits, test, settings)
    prompts = Prompts(vlm, train, FitSettings(**settings).batch_size)
    scales = fit_scales(vlm, train, fits, retain=retain, prompts=prompts, path=path, **settings)
    made: dict[str, list[ScAle]] = {}
    for fit, scale in zip(fits, scales, strict=True):
        made.setdefault(fit.name, []).append(scale)
    full = made[FULL]
    made["random scalars"] = [s.randomised(i) for i, s in enumerate(full)]
    made["permuted scalars"] = [s.permuted(i) for i, s in enumerate(full)]
    corrections = _text_only(vlm, train, prompts)
    right = _answer(vlm, test, made, corrections)
    elsewhere = None if others is None else _answer(vlm, require(others), made, corrections)
    rows = _rows(right, groups(test), made, elsewhere)
    digest = hashlib.sha256(json.dumps(registered, sort_keys=True).encode()).hexdigest()
    about = provenance(vlm, test, train=len(train), retain=None if retain is None else len(retain), seeds=seeds)
    changed, bits = _frozen(vlm, test, made["frozen at 1"][0])
    return Falsification(float(right["base"].mean()), tuple(rows), changed, bits, digest, registered, about, tuple(full))


def _plan(vlm: VLM, train: Sequence[Question], chosen: list[Head] | None, mlp: bool, seeds: int, path: EnginePath) -> list[Fit]:
    """Every fit of the suite, decided before the test questions are looked at."""
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
        least = attribute(vlm, train, path=path).scores.abs().flatten().argsort(stable=True).tolist()
        least = [every[i] for i in least if every[i] not in heads][: len(heads)]
        fits += [Fit("least important heads", tuple(least), mlp, seed=s) for s in range(seeds)]
    return fits


def _register(vlm: VLM, fits: Sequence[Fit], test: Sequence[Question], settings: Mapping[str, Any]) -> dict[str, Any]:
    plan = [{"name": f.name, "heads": [list(h) for h in f.heads or ()], "mlp": f.mlp, "seed": f.seed} for f in fits]
    return {
        "model": vlm.describe(),
        "fits": plan,
        "settings": asdict(FitSettings(**settings)),
        "alpha": ALPHA,
        "must_beat": list(MUST_BEAT),
        "test": hashlib.sha256("|".join(q.id for q in test).encode()).hexdigest(),
    }


def _answer(
    vlm: VLM, questions: Sequence[Question], made: Mapping[str, list[ScAle]], corrections: Mapping[str, TextCorrection]
) -> dict[str, np.ndarray]:
    """Right answers [Q] of the base model and of each control, averaged over its seeds."""
    names = [name for name, scales in made.items() for _ in scales]
    edits = [scale for scales in made.values() for scale in scales]
    scores, clean = run_with_clean(vlm, questions, edits, "packed", what="controls")
    base = clean[:, 0].cpu()
    right: dict[str, list[Tensor]] = {"base": [measure("accuracy", base, questions)]}
    for column, name in zip(scores.cpu().unbind(1), names, strict=True):
        right.setdefault(name, []).append(measure("accuracy", column, questions))
    for name, correction in corrections.items():
        right[name] = [measure("accuracy", correction.correct(base, questions), questions)]
    return {name: torch.stack(columns).mean(0).numpy() for name, columns in right.items()}


@torch.no_grad()
def _frozen(vlm: VLM, test: Sequence[Question], frozen: ScAle, batch_size: int = 16) -> tuple[int, int]:
    """Answers and last-token logits that frozen scalars change, in whole plain forward passes.

    There the scalars are really multiplied in; a packed run would only copy the clean row.
    """
    answers = bits = 0
    for i in range(0, len(test), batch_size):
        batch = test[i : i + batch_size]
        inputs = vlm.encode(batch)
        plain = vlm.hf_model(**inputs, logits_to_keep=1).logits[:, -1]
        with frozen.attached(vlm):
            scaled = vlm.hf_model(**inputs, logits_to_keep=1).logits[:, -1]
        bits += int((plain != scaled).sum())
        for question, before, after in zip(batch, plain, scaled, strict=True):
            first = [ids[0] for ids in vlm.choice_ids(question)]
            answers += int(before[first].argmax() != after[first].argmax())
    return answers, bits


def _text_only(vlm: VLM, train: Sequence[Question], prompts: Prompts) -> dict[str, TextCorrection]:
    scores, _ = run_with_clean(vlm, train, None, "packed", prompts=prompts, what="base answers")
    return {name: fit_text_correction(scores[:, 0].cpu(), train, name != "output bias") for name in TEXT_ONLY}


def _rows(
    right: Mapping[str, np.ndarray], group: np.ndarray, made: Mapping[str, list[ScAle]], elsewhere: Mapping[str, np.ndarray] | None
) -> list[dict[str, Any]]:
    names = [FULL, *(n for n in right if n not in ("base", FULL))]
    gains = {n: statistics.paired_difference(right[n], right["base"], group) for n in names}
    against = {n: statistics.paired_difference(right[FULL], right[n], group) for n in names[1:]}
    corrected = statistics.holm(np.array([gains[n].p for n in names] + [against[n].p for n in names[1:]]))
    rows = []
    for i, name in enumerate(names):
        gain, other = gains[name], against.get(name)
        row = {
            "control": name,
            "accuracy": float(right[name].mean()),
            "gain": gain.mean,
            "low": gain.low,
            "high": gain.high,
            "relative_gain": relative_gain(float(right[name].mean()), float(right["base"].mean())),
            "p": gain.p,
            "p_corrected": float(corrected[i]),
            "parameters": made[name][0].n_parameters if name in made else None,
            "fits": len(made.get(name, [None])),
        }
        if elsewhere is not None:
            row["others_change"] = float((elsewhere[name] - elsewhere["base"]).mean())
        if other is not None:
            row |= {
                "full_minus": other.mean,
                "full_minus_low": other.low,
                "full_minus_high": other.high,
                "full_minus_p": other.p,
                "full_minus_p_corrected": float(corrected[len(names) + i - 1]),
            }
        rows.append(row)
    return rows
