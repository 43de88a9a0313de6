"""What a falsification suite found: one row per control, and the conclusion in plain words."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...adapters.scale.scale import ScAle
from ...core.arguments import fits
from ...core.figures import draw
from ...core.notebook import notebook_html
from ...core.result import APART, Misfit, Result

ALPHA = 0.05
FULL = "ScAle"
TEXT_ONLY = ("output bias", "text-only correction")
IMAGES = ("no image", "noise for an image", "another image")
MUST_BEAT = ("frozen at 1", "random scalars", "permuted scalars", "shuffled labels", *TEXT_ONLY, *IMAGES)
"""The controls that any real gain must beat, where they were run."""
FORMERLY = dict(zip(IMAGES, ("no picture", "noise for a picture", "another picture"), strict=True))
"""Their names in older results, and in every registration: the same plan keeps its hash."""
CHAT, RAW, WORDS = "chat template", "raw prompt", "options in words"
PROMPTED = (CHAT, RAW, WORDS)
"""The same questions asked otherwise, with no scalar at all."""
BIAS, SHUFFLED = "bias over the vocabulary", "shuffled labels, whole vocabulary"
FORMAT = (*PROMPTED, BIAS, SHUFFLED)
"""Controls that can give an answer its form and nothing else; a gain that is no format beats them too."""
IN_PART = 0.25
"""A format control that gains less than this share of ScAle's gain does not make it format in part."""
UNTRAINED = "images not trained on"
"""ScAle on the test questions whose images it was not fitted on, where the others leak."""
SHOWN = ("control", "accuracy", "gain", "low", "high", "effect", "p_corrected", "full_minus", "full_minus_p_corrected")


WITHOUT = {
    CHAT: "the chat template alone, with no scalar, gains",
    RAW: "another prompt alone, with no scalar and no chat template, gains",
    WORDS: "options named in words alone, with no scalar, gain",
    BIAS: "a bias over the options, with no scalar, gains",
    SHUFFLED: "labels without signal, under the loss over the vocabulary, gain",
}
"""How the verdict names what a format control gains."""


@dataclass(frozen=True, eq=False)
class Falsification(Result):
    """The outcome of a falsification suite: one row per control, the fitted scalars, and the conclusion.

    Args:
        base_accuracy: the unedited model's accuracy on the test questions.
        rows: see `to_frame`.
        frozen_changed: how many answers change with scalars frozen at 1.
        frozen_bits_changed: how many last-token logits change with them, in any bit.
        registration: the SHA-256 of `registered`.
        registered: heads, settings and splits, as fixed before the test questions were answered.
        provenance: model, data, settings and versions.
        scales: one ScAle per seed; empty in a loaded suite.
        left_out: control -> why it could not be run.
        base_split: the unedited model's mass, nll, nll_mass and nll_choice (see `to_frame`); empty without format controls.

    >>> row = {"control": "ScAle", "accuracy": 0.8, "gain": 0.3, "low": -0.1, "high": 0.6, "p_corrected": 0.2}
    >>> Falsification(0.5, (row,), 0, 0, "5e1f" * 16, {}, {}).survives
    False
    """

    base_accuracy: float
    rows: tuple[Mapping[str, Any], ...]
    frozen_changed: int
    frozen_bits_changed: int
    registration: str
    registered: Mapping[str, Any]
    provenance: Mapping[str, Any]
    scales: tuple[ScAle, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    base_split: Mapping[str, float] = field(default_factory=dict)
    file = "json"
    kind_key = "method"
    not_saved = ("scales",)

    def __repr__(self) -> str:
        return f"<Falsification: {'survives' if self.survives else 'does not survive'}. {self.verdict}>"

    def _repr_html_(self) -> str:
        shown = [{name: row.get(name) for name in SHOWN if name in row} for row in self.rows]
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons)
        return f"<div>{notebook_html(self.verdict, shown, len(shown))}<ul style='margin:4px 0'>{reasons}</ul></div>"

    def __getitem__(self, control: str) -> Mapping[str, Any]:
        return next(row for row in self.rows if row["control"] == control)

    @property
    def gain(self) -> float:
        """ScAle's accuracy minus the base model's."""
        return self[FULL]["gain"]

    @property
    def gains(self) -> bool:
        """Whether ScAle's gain over the base model is above 0 after correction."""
        row = self[FULL]
        return row["gain"] > 0 and row["low"] > 0 and row["p_corrected"] < ALPHA

    @property
    def not_beaten(self) -> list[str]:
        """Controls that ScAle does not beat, among those that any real gain must beat."""
        return [row["control"] for row in self.rows if row["control"] in (*MUST_BEAT, *FORMAT) and not _beaten(row)]

    @property
    def format_share(self) -> float | None:
        """The largest gain of a format control as a share of ScAle's gain; None without a gain, or where none was run."""
        gains = [row["gain"] for row in self.rows if row["control"] in FORMAT]
        return max(0.0, *gains) / self.gain if gains and self.gain > 0 else None

    @property
    def format(self) -> str | None:
        """Whether the gain is format: "is", "in part" or "is not"; None without a gain, or where no format control was run."""
        rows = [row for row in self.rows if row["control"] in FORMAT]
        if not rows or not self.gains:
            return None
        if not all(map(_beaten, rows)):
            return "is"
        return "in part" if any(row["p_corrected"] < ALPHA and row["gain"] >= IN_PART * self.gain for row in rows) else "is not"

    @property
    def holds_untrained(self) -> bool | None:
        """Whether the gain is above 0 on images that were not trained on; None where no test image was."""
        row = self._row(UNTRAINED)
        return None if row is None else row["gain"] > 0 and row["low"] > 0 and row["p_corrected"] < ALPHA

    def _row(self, control: str) -> Mapping[str, Any] | None:
        return next((row for row in self.rows if row["control"] == control), None)

    @property
    def text_share(self) -> float:
        """The larger text-only gain as a share of ScAle's gain (0 where nothing is gained)."""
        return max(0.0, *(self[c]["gain"] for c in TEXT_ONLY)) / self.gain if self.gain > 0 else 0.0

    @property
    def heads_matter(self) -> bool | None:
        """Whether ScAle on the chosen heads beats ScAle on random heads; None where no heads were chosen."""
        rows = [r for r in self.rows if r["control"] == "random heads"]
        return None if not rows else _beaten(rows[0])

    @property
    def survives(self) -> bool:
        """Whether there is a gain, frozen scalars change no answer, and no control explains the gain."""
        return self.gains and self.frozen_changed == 0 and not self.not_beaten and self.holds_untrained is not False

    @property
    def verdict(self) -> str:
        """What was found, in plain words, and the hash of what was fixed before the test."""
        said = (self._finding(), self._on_format(), self._on_leak(), f"Registered before the test: {self.registration[:12]}.")
        return " ".join(filter(None, said))

    def _finding(self) -> str:
        row, size, left = self[FULL], _size(self[FULL]), self.not_beaten
        if self.frozen_changed:
            return f"The measurement itself is broken: with all scalars frozen at 1, {self.frozen_changed} answers changed."
        if not self.gains:
            return f"No gain: ScAle changes accuracy by {size}, which does not differ from 0 (corrected p = {row['p_corrected']:.2g})."
        if self.format == "is":
            best = max((c for c in FORMAT if c in left), key=lambda c: self[c]["gain"])
            return f"The gain is format: ScAle gains {size}, and {WITHOUT[best]} {self[best]['gain']:+.3f}."
        if self.holds_untrained is False:
            return f"The gain does not hold on images that were not trained on: {_size(self[UNTRAINED])} there, {size} on all."
        if text := [c for c in TEXT_ONLY if c in left]:
            best = max(text, key=lambda c: self[c]["gain"])
            return (
                f"A text-only correction explains the gain: ScAle gains {size}, and the {best}, which never sees the image, "
                f"gains {self[best]['gain']:+.3f}. This is un-biasing, not spatial reasoning."
            )
        if blind := [c for c in IMAGES if c in left]:
            best = max(blind, key=lambda c: self[c]["gain"])
            return f"The gain does not need the image: ScAle gains {size}, and with {best} it gains {self[best]['gain']:+.3f}."
        if left:
            return f"The gain does not survive: ScAle gains {size}, but does not beat {', '.join(left)}."
        words = f"The gain survives: ScAle gains {size}, beats every control, and text-only corrections reach {self.text_share:.0%} of it."
        if self.heads_matter is not None:
            other = self["random heads"]["gain"]
            words += (
                f" The chosen heads matter: as many random heads gain {other:+.3f}."
                if self.heads_matter
                else f" The choice of heads does not matter measurably: as many random heads gain {other:+.3f}."
            )
        return words

    def _on_format(self) -> str:
        """How much of the gain is format, in words; nothing where that is the finding itself, or is not known."""
        if self.format is None or self.frozen_changed or self.format_share is None:
            return ""
        best = max((row for row in self.rows if row["control"] in FORMAT), key=lambda row: row["gain"])
        share = f"{WITHOUT[best['control']]} {best['gain']:+.3f}, {self.format_share:.0%} of it"
        verdict = {"is": "", "in part": f"The gain is in part format: {share}.", "is not": f"The gain is not format: {share}."}[self.format]
        base, full = self.base_split, self[FULL]
        if not base or "mass" not in full:
            return verdict
        moved = f"An option is answered with probability {base['mass']:.3f}, with ScAle {full['mass']:.3f}"
        fall, by_mass = base["nll"] - full["nll"], base["nll_mass"] - full["nll_mass"]
        part = f"; that is {max(0.0, by_mass / fall):.0%} of what the right one's log-likelihood gains" if fall > 0 else ""
        return f"{verdict} {moved}{part}.".strip()

    def _on_leak(self) -> str:
        row, shared = self._row(UNTRAINED), self.provenance.get("leaked")
        if not shared:
            return ""
        there = "" if row is None or self.holds_untrained is False else f" On the other images ScAle gains {_size(row)}."
        return f"{shared['share']:.0%} of the test questions ({shared['questions']}) show an image that was trained on.{there}"

    @property
    def reasons(self) -> list[str]:
        """The findings behind the verdict, one sentence each."""
        row = self[FULL]
        out = [f"ScAle gains {_size(row)} over the base model, corrected p = {row['p_corrected']:.2g}{_effect(row, 'effect')}."]
        bits = "not one logit differs in any bit" if not self.frozen_bits_changed else f"{self.frozen_bits_changed} logits differ"
        out.append(f"With all scalars frozen at 1, {self.frozen_changed or 'no'} answers change and {bits}.")
        for row in self.rows:
            if row["control"] == FULL:
                continue
            if row["control"] == UNTRAINED:
                out.append(
                    f"On {UNTRAINED}, ScAle gains {_size(row)}, corrected p = {row['p_corrected']:.2g}: {-row['full_minus']:+.3f} against "
                    f"all test questions, p = {row['full_minus_p_corrected']:.2g}."
                )
                continue
            said = "" if row["control"] in (*MUST_BEAT, *FORMAT) else " (said beside the verdict)"
            out.append(
                f"{'Beats' if _beaten(row) else 'Does not beat'} {row['control']}, which gains {row['gain']:+.3f}: "
                f"ScAle gains {row['full_minus']:+.3f} more, corrected p = {row['full_minus_p_corrected']:.2g}"
                f"{_effect(row, 'full_minus_effect')}{said}."
            )
        out += [f"Not run: {control}, because {why}." for control, why in self.left_out.items()]
        out.append(f"Heads, settings and splits were fixed before the test questions were answered: SHA-256 {self.registration}.")
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row per control.

        Returns:
            A table with these columns:

            - accuracy, base_accuracy: on the same questions.
            - gain: the difference, with low, high, p and p_corrected (Holm over all p-values of the table), effect (Cohen's h) and changed,
                the share of questions whose outcome differs.
            - full_minus: how much more ScAle gains than the control, with the same columns.
            - picture_minus: of image controls, ScAle's accuracy with the image minus that without it, with the same columns.
            - mass: the mean probability that the answer is any option; nll: the mean of -log P(right option), and its two parts, nll_mass
                (-log P(any option)) and nll_choice (-log of the right one's share of that).
            - Of format controls and of the row "images not trained on" the p-values are corrected among themselves, so that all others
                are as without them.
            - others_change: the change of accuracy on other tasks.
        """
        return pd.DataFrame(list(self.rows))

    def plot(self, **options: Any) -> Any:
        """A plotly figure of every control's gain with intervals (see viz.controls)."""
        return draw("controls", self, **options)

    def _summary(self) -> dict[str, Any]:
        return {"survives": self.survives, "verdict": self.verdict, "reasons": self.reasons}

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        found, now = super()._arguments(path, meta), {old: new for new, old in FORMERLY.items()}
        found["rows"] = tuple({**row, "control": now.get(row.get("control"), row.get("control"))} for row in found["rows"])
        return found | {"left_out": {now.get(control, control): why for control, why in found["left_out"].items()}}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        full: Mapping[str, Any] = next((row for row in self.rows if row.get("control") == FULL), {})
        against = ("gain", "full_minus", "full_minus_p_corrected")
        wanted = [(row, name) for row in self.rows if row is not full for name in against]
        wanted += [(full, name) for name in ("gain", "low", "high", "p_corrected")]
        for row, name in wanted:
            if not fits(row.get("control"), str) or not fits(row.get(name), float):
                raise Misfit(f"{APART}: a row of {row.get('control', FULL)!r} has no {name}")


def _beaten(row: Mapping[str, Any]) -> bool:
    return row["full_minus"] > 0 and row["full_minus_p_corrected"] < ALPHA


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _effect(row: Mapping[str, Any], name: str) -> str:
    return f", Cohen's h {row[name]:+.2f}" if name in row else ""
