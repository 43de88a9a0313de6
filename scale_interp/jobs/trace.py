"""Where in the prompt one model computes the answers to one data set: patching by layer and token group, and a page that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd

from .. import viz
from ..attribution.headmap import HeadMap
from ..attribution.patching import patch
from ..attribution.position_map import PositionMap
from ..attribution.position_patching import patch_positions
from ..core.arguments import Count, Raises, Seed, checked_settings
from ..core.files import write_bytes, write_json
from ..data import Question
from ..data.contrast import Change, contrasts
from ..data.partners import side
from ..errors import DataError
from ..viz import Section
from ..vlm.vlm import VLM
from .folder import ModelAndQuestions, Say
from .info import FINDINGS
from .inputs import Inputs
from .job import Job, command
from .page import run_page, without_meaning

COMPONENTS = ("resid", "attn", "mlp")
FILES = (*(f"{name}.safetensors" for name in (*COMPONENTS, "heads")), "positions.csv", "summary.json", "report.html")
LEAST = 5
"""Fewer questions of an axis, or of one answer, than these are not drawn apart."""
ENDS = {"top": "above", "bottom": "below"}
"""Places on an axis of relations."""
HALF = 0.5


@checked_settings
@dataclass(frozen=True)
class TraceSettings(Inputs):
    """Whose answers are traced, and on what.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        split, n, seed: as in `load_questions`.
        change: how contrast pairs are made: "mirror", "swap" or "set".
        groups: the token groups; by default those of `patch_positions`.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    split: str | None = None
    n: Count | None = 40
    seed: Seed = 0
    change: Annotated[Change, Raises(DataError)] = "mirror"
    groups: tuple[str, ...] | None = None

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        flags = {k: v for k, v in asdict(self).items() if k not in ("model", "groups")} | {"group": self.groups}
        return Job("trace", command("trace", self.model, **flags), asdict(self), {"trace": (*FILES, FINDINGS)})

    def asked(self) -> ModelAndQuestions:
        """The model and the questions."""
        return self.of_one_set(self.model, self.data, self.split, self.n, self.seed)


@dataclass(frozen=True)
class TraceResults:
    """What was found: a map of each component, the heads at the last token, and the first question for its figure."""

    maps: dict[str, PositionMap]
    heads: HeadMap
    example: Question
    skipped: dict[str, str]


def study_trace(vlm: VLM, questions: Sequence[Question], change: Change = "mirror", groups: Sequence[str] | None = None) -> TraceResults:
    """Patch every component at every layer and token group, and every head at the last token.

    Args:
        vlm: the model.
        questions: questions that have contrast pairs.
        change: how the pairs are made.
        groups: the token groups.
    """
    pairs = contrasts(questions, change)
    if not pairs:
        raise DataError(f"none of {len(questions)} questions has a contrast pair: choose another change, or name pairs in the data")
    maps = {name: patch_positions(vlm, pairs, name, groups) for name in COMPONENTS}  # type: ignore[arg-type]
    return TraceResults(maps, patch(vlm, pairs), pairs[0].clean, dict(pairs.skipped))


def by_axis(pm: PositionMap) -> dict[str, PositionMap]:
    """The map of each axis, such as left or right, and of each other relation, if there are enough questions and they are not all."""
    together: dict[Hashable, list[str]] = {}
    for relation in dict.fromkeys(pm.relations):
        axis = side(ENDS.get(relation, relation))
        together.setdefault(relation if axis is None else axis[0], []).append(relation)
    counts = Counter(pm.relations)
    enough = [sorted(names) for names in together.values() if LEAST <= sum(counts[name] for name in names) < len(pm.relations)]
    return {" or ".join(names): pm.only(*names) for names in enough}


def notes(result: TraceResults) -> list[str]:
    """The findings in plain words."""
    pm = result.maps["resid"]
    out = without_meaning(pm.provenance["model"])
    for name, part in {"all questions": pm, **by_axis(pm)}.items():
        low, high = part.interval()
        said = []
        for group in part.positions:
            g = part.positions.index(group)
            column = part.scores[:, g]
            layer = int(column.argmax())
            span = f"{float(column[layer]):.2f} [{float(low[layer, g]):.2f}, {float(high[layer, g]):.2f}]"
            if group == "last":
                enough = (column >= HALF).nonzero()[:, 0].tolist()
                where = f"from layer {enough[0]} on more than half" if enough else "at no layer half"
                said.append(f"the last token {where}, most before layer {layer}, {span}")
            elif group == "image":
                enough = (column >= HALF).nonzero()[:, 0].tolist()
                where = f"up to layer {enough[-1]} more than half" if enough else "at no layer half"
                said.append(f"the image {where}")
            else:
                said.append(f"{group!r} at most {span}, before layer {layer}")
        out.append(f"The residual stream's share of the answer, {name} ({len(part.per_question)}): {'; '.join(said)}.")
    layer, head = result.heads.top(1)[0]
    out.append(f"At the last token head ({layer}, {head}) recovers most: {float(result.heads.scores[layer, head]):.2f}.")
    if result.skipped:
        first, why = next(iter(result.skipped.items()))
        out.append(f"{len(result.skipped)} questions have no pair; {first}: {why}.")
    return out


def run_trace(settings: TraceSettings, folder: Path, say: Say = lambda _: None) -> tuple[pd.DataFrame, list[str]]:
    """Trace in a run's folder; what is there already is read.

    Args:
        settings: whose answers, on what.
        folder: the run's folder.
        say: called with a line about each step.

    Returns:
        The table of the residual stream's map, and the findings in words.
    """

    def write(vlm: VLM, questions: Sequence[Question]) -> tuple[list[str], list[str]]:
        result = study_trace(vlm, questions, settings.change, settings.groups)
        write_results(vlm, result, folder, settings.job.command)
        return notes(result), [*FILES]

    return run_page(settings, folder, say, f"tracing the answers of {settings.model} to {settings.data}", "positions.csv", write)


def write_results(vlm: VLM, result: TraceResults, folder: Path, command: str) -> None:
    """Write the maps, positions.csv, summary.json and report.html.

    Args:
        vlm: the model.
        result: the results.
        folder: where the files go.
        command: the command that repeats this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, pm in result.maps.items():
        pm.save(folder / f"{name}.safetensors")
    result.heads.save(folder / "heads.safetensors")
    parts = [(name, axis, part) for name, pm in result.maps.items() for axis, part in {"all": pm, **by_axis(pm)}.items()]
    frames = [part.to_frame().assign(component=name, questions=axis) for name, axis, part in parts]
    write_bytes(folder / "positions.csv", pd.concat(frames).to_csv(index=False).encode())
    resid = result.maps["resid"]
    about = dict(resid.provenance)
    write_json(folder / "summary.json", about | {"notes": notes(result), "skipped": result.skipped})
    sections = [
        Section("What was found", [*notes(result)]),
        Section("Which tokens", [viz.token_groups(vlm, result.example)]),
        Section("The residual stream by layer and token group", [resid.plot()]),
        Section("Attention and MLP outputs", [viz.position_heatmaps([result.maps[n] for n in ("attn", "mlp")], ["attention", "MLP"])]),
        Section("Heads at the last token", [result.heads.plot(marks=result.heads.top(4))]),
        Section("How to reproduce", [command]),
    ]
    if axes := by_axis(resid):
        sections.insert(3, Section("By axis or answer", [viz.position_heatmaps(list(axes.values()), list(axes))]))
    title = f"Where {about['model']} computes its answers to {about['data']}"
    viz.write_report(folder / "report.html", title=title, sections=sections, meta=about)
