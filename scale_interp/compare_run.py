"""The comparison of all methods in a folder: questions loaded, steps kept, the table, its numbers and a page written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from . import viz
from .data.load import load_questions
from .data.question import Question
from .data.task import NON_SPATIAL
from .evaluation.comparison import Comparison, Say, compare
from .evaluation.tuning import ORDER
from .models.load import load
from .models.vlm import VLM
from .record import versions, write_json
from .viz import Section


@dataclass(frozen=True)
class CompareSettings:
    """What a comparison is of. others: data sets that no method should change, of their test splits."""

    model: str = "demo"
    data: str = "scenes/relation"
    others: tuple[str, ...] = tuple(f"scenes/{task}" for task in NON_SPATIAL)
    n_train: int = 400
    n_validation: int = 200
    n_test: int = 400
    n_others: int = 200
    top: int = 8
    seed: int = 0

    @property
    def command(self) -> str:
        """The command that makes this comparison again."""
        usual = CompareSettings()
        others = "".join(f" --others {name}" for name in self.others) if self.others != usual.others else ""
        named = {k: v for k, v in asdict(self).items() if k not in ("model", "data", "others") and v != getattr(usual, k)}
        flags = "".join(f" --{k.replace('_', '-')} {v}" for k, v in named.items())
        return f"scale-interp compare --model {self.model} --data {self.data}{others}{flags}"


def run_comparison(settings: CompareSettings, folder: Path, say: Say = lambda _: None, vlm: VLM | None = None) -> Comparison:
    """Compare, and write comparison.safetensors, comparison.json and report.html; steps whose results are there are not redone."""
    s = settings
    wanted = {"train": s.n_train, "validation": s.n_validation, "test": s.n_test}
    splits = {split: load_questions(s.data, split, n, s.seed) for split, n in wanted.items()}
    others: list[Question] = [q for name in s.others for q in load_questions(name, "test", s.n_others, s.seed)]
    vlm = vlm or load(s.model)
    found = compare(vlm, *splits.values(), others=others, top=s.top, seed=s.seed, folder=folder, say=say)
    found.save(folder / "comparison.safetensors")
    write_json(folder / "comparison.json", summary(found, settings))
    _write_page(found, settings, folder / "report.html")
    return found


def summary(found: Comparison, settings: CompareSettings) -> dict[str, Any]:
    """All numbers of a comparison in JSON's words."""
    tuned = {name: dict(about) for name, about in found.tuned.items()}
    return {
        "command": settings.command,
        "settings": asdict(settings),
        "findings": found.findings(),
        "methods": _records(found.to_frame()),
        "tuned": tuned,
        "by_task": _records(found.by_task()),
        "heads": found.heads.content(),
        "overlap": _records(found.heads.overlap()),
        "left_out": dict(found.left_out),
        "provenance": dict(found.provenance),
        "versions": versions(),
    }


def figures(found: Comparison) -> dict[str, Any]:
    """The figures that there is something to show in, by name."""
    out = {"methods": viz.comparison(found)} if len(found.methods) > 1 else {}
    if len(found.heads.sets) > 1:
        out |= {"overlap": viz.head_overlap(found.heads), "heads": viz.head_marks(found.heads)}
    return out


def _write_page(found: Comparison, settings: CompareSettings, path: Path) -> None:
    drawn = figures(found)
    about = pd.DataFrame([{"set": n, "heads": len(h), "found by": found.heads.about.get(n, "")} for n, h in found.heads.sets.items()])
    not_made = [f"No {name} heads: {why}" for name, why in found.heads.left_out.items()]
    grids = [part for name, t in found.tuned.items() for part in (f"{name}, accuracy on the validation questions:", best_of(t["grid"]))]
    sections = [
        Section("What was found", [*found.findings(), found.shown(), *(drawn[k] for k in ("methods",) if k in drawn)]),
        Section("What it costs elsewhere", [found.by_task()] if len(found.others) else ["No other tasks were asked."]),
        Section("The heads that the methods name", [*not_made, about, *(drawn[k] for k in ("heads", "overlap") if k in drawn)]),
        Section("Overlap, pair by pair", [found.heads.overlap()]),
        Section("What was tuned", grids),
        Section("How to reproduce", [settings.command]),
    ]
    title = f"Methods on {settings.model}, {settings.data}"
    meta = {k: v for k, v in found.provenance.items() if isinstance(v, str | int)} | versions()
    viz.write_report(path, title=title, sections=sections, meta=meta)


def best_of(grid: Sequence[Any], n: int = 12) -> pd.DataFrame:
    """The n best rows of a grid, in the order tried where they are equal."""
    frame = pd.DataFrame(list(grid)).sort_values("accuracy", ascending=False, kind="stable").head(n)
    return frame[[name for name in ORDER if name in frame]]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]
