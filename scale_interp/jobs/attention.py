"""One model's attention to the images of one data set: which heads look at the asked objects, and a page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import torch

from .. import viz
from ..attribution.attention.grid import patch_grid
from ..attribution.attention.last_token import read_attention
from ..attribution.attention.localization import LocalizationHeads, choose_localization
from ..attribution.attention.objects import ObjectAttention, object_attention
from ..core.arguments import AtLeast, Count, Seed, checked_settings
from ..core.files import write_bytes, write_json
from ..data import Question
from ..errors import DataError
from ..viz import Section
from ..vlm.vlm import VLM
from .folder import ModelAndQuestions, Say
from .info import FINDINGS
from .inputs import Inputs
from .job import Job, command
from .page import run_page, without_meaning

SHOWN = 10
"""How many heads the printed table shows, most attention on the boxes first."""
FILES = ("attention.safetensors", "heads.csv", "summary.json", "report.html")


@checked_settings
@dataclass(frozen=True)
class AttentionSettings(Inputs):
    """Whose attention is read, and on what.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        split, n, seed: as in `load_questions`.
        pictures: how many attention maps are drawn.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    split: str | None = None
    n: Count | None = None
    seed: Seed = 0
    pictures: Annotated[int, AtLeast(0)] = 4

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        flags = {k: v for k, v in asdict(self).items() if k != "model"}
        return Job("attention", command("attention", self.model, **flags), asdict(self), {"attention": (*FILES, FINDINGS)})

    def asked(self) -> ModelAndQuestions:
        """The model and the questions."""
        return self.of_one_set(self.model, self.data, self.split, self.n, self.seed)


@dataclass(frozen=True)
class AttentionResults:
    """What was found.

    Attributes:
        found: the shares of attention on image and boxes.
        heads: one row per head.
        auroc: how well box attention predicts right answers, one row per head, or None.
        no_auroc: why there is none.
        localization: the localization heads.
        pictures: attention maps over some images.
    """

    found: ObjectAttention
    heads: pd.DataFrame
    auroc: pd.DataFrame | None
    no_auroc: str
    localization: LocalizationHeads
    pictures: list[go.Figure]


def study_attention(vlm: VLM, questions: Sequence[Question], pictures: int = 4) -> AttentionResults:
    """Read the attention to images and boxes, and draw maps of the head that looks at the boxes most.

    Nothing is fitted, so no question needs to be held out; but heads that are to be used on test questions must come from others.

    Args:
        vlm: the model.
        questions: questions with boxes.
        pictures: how many maps are drawn, wrong answers among them.
    """
    found = object_attention(vlm, questions)
    table, why = None, ""
    try:
        table = found.auroc()
    except DataError as error:
        why = str(error)
    drawn = []
    for question in _examples(found, questions, pictures):
        (weights,) = read_attention(vlm, question)
        drawn.append(viz.attention_over_picture(question, weights, patch_grid(vlm, question), *found.box.top(1)[0]))
    return AttentionResults(found, _heads(found, table), table, why, choose_localization(found.image, found.entropy), drawn)


def _examples(found: ObjectAttention, questions: Sequence[Question], count: int) -> list[Question]:
    """Half of them answered right and half wrong, as far as there are enough of each."""
    known = {q.id: q for q in questions}
    order = [torch.nonzero(found.correct == kind).flatten().tolist() for kind in (1, 0)]
    right, wrong = order[0][: max(count // 2, count - len(order[1]))], order[1]
    return [known[found.ids[i]] for i in [*right, *wrong[: count - len(right)]]]


def _heads(found: ObjectAttention, auroc: pd.DataFrame | None) -> pd.DataFrame:
    frames = {of: found.map(of).to_frame() for of in ("image", "box", "lift", "entropy")}
    columns = {"layer": frames["box"]["layer"], "head": frames["box"]["head"]}
    columns |= {of: frame["score"] for of, frame in frames.items()}
    columns |= {"box_low": frames["box"]["low"], "box_high": frames["box"]["high"], "lift_p": frames["lift"]["p"]}
    if auroc is not None:
        columns |= {"auroc": auroc["auroc"], "auroc_low": auroc["low"], "auroc_high": auroc["high"], "auroc_p": auroc["p"]}
    return pd.DataFrame(columns).sort_values("box", ascending=False, ignore_index=True)


def run_attention(settings: AttentionSettings, folder: Path, say: Say = lambda _: None) -> tuple[pd.DataFrame, list[str]]:
    """Read the attention in a run's folder; what is there already is read.

    Args:
        settings: whose attention, on what.
        folder: the run's folder.
        say: called with a line about each step.

    Returns:
        The table of heads, and the findings in words.
    """

    def write(vlm: VLM, questions: Sequence[Question]) -> tuple[list[str], list[str]]:
        result = study_attention(vlm, questions, settings.pictures)
        write_results(result, folder, settings.job.command)
        return notes(result), [*FILES]

    message = f"reading the attention of {settings.model} to the images of {settings.data}"
    return run_page(settings, folder, say, message, "heads.csv", write)


def write_results(result: AttentionResults, folder: Path, command: str) -> None:
    """Write attention.safetensors, heads.csv, summary.json and report.html.

    Args:
        result: the results.
        folder: where the files go.
        command: the command that repeats this.
    """
    found = result.found
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / "attention.safetensors")
    write_bytes(folder / "heads.csv", result.heads.to_csv(index=False).encode())
    summary = dict(found.provenance) | {
        "notes": notes(result),
        "heads": result.heads.to_dict("records"),
        "layers": found.by_layer().to_dict("records"),
        "relations": found.by_relation().to_dict("records") if any(found.relations) else [],
        "localization_heads": [list(head) for head in result.localization.heads],
        "skipped": dict(found.skipped),
    }
    write_json(folder / "summary.json", summary)
    tables = [found.by_layer(), *([found.by_relation()] if any(found.relations) else [])]
    sections = [
        Section("What was found", [*notes(result), result.heads.head(SHOWN), *tables]),
        Section("Which heads look where", [found.plot(marks=result.localization.heads)]),
        Section("Some images", result.pictures),
        Section("How to reproduce", [command]),
    ]
    if result.auroc is not None:
        sections.insert(2, Section("Attention on the box against right answers", [viz.auroc_heatmap(result.auroc)]))
    about = dict(found.provenance)
    viz.write_report(folder / "report.html", title=f"Attention of {about['model']} on {about['data']}", sections=sections, meta=about)


def notes(result: AttentionResults) -> list[str]:
    """The findings in plain words."""
    found, top = result.found, result.heads.iloc[0]
    name, span = f"({top['layer']:.0f}, {top['head']:.0f})", f"{top['box']:.1%} [{top['box_low']:.1%}, {top['box_high']:.1%}]"
    out = [
        *without_meaning(found.provenance["model"]),
        f"{len(found.ids)} questions. {float(found.image_share.mean()):.1%} of a prompt's tokens show the image; they draw "
        f"{float(found.image_mass.mean()):.1%} of the last token's attention (mean over heads).",
        f"The asked boxes are {float(found.area.mean()):.1%} of the image's tokens. Head {name} puts most of its attention on them: "
        f"{span}.",
    ]
    if result.auroc is None:
        out.append(f"No AUROC: {result.no_auroc}")
    else:
        clear = result.auroc.loc[result.auroc["p"] < 0.05, "auroc"]
        out.append(
            f"Box attention tells right answers from wrong ones in {len(clear)} of {len(result.auroc)} heads (Holm, 0.05): "
            f"{int((clear > 0.5).sum())} look more at the boxes when the answer is right, {int((clear < 0.5).sum())} less."
        )
    if found.skipped:
        name, why = next(iter(found.skipped.items()))
        out.append(f"{len(found.skipped)} questions were skipped; {name}: {why}.")
    return out
