"""AdaptVis' experiment as its code does it (arXiv 2503.01773): greedy text under each weight, substring scoring, settings tuned on a fifth.

Every weight is generated with once per question. The gate only chooses between two of these texts, so the whole grid costs nothing more.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...adapters.attention_scaling.adaptvis import AdaptVis
from ...adapters.attention_scaling.scalingvis import AttentionScale
from ...core import statistics
from ...core.result import Result
from ...data.items import Questions, groups
from ...data.load import load_questions
from ...data.prompts import TEMPLATES, one_of
from ...data.question import Question
from ...data.readers.catalog import find_entry
from ...data.readers.records import JsonLines
from ...errors import DataError
from ...execution.batches import BatchResult, Rows, map_batches
from ...interventions.attention.run import Answers, answer_all
from ...vlm.vlm import VLM
from ..accuracy import answering
from ..scoring import score_text

PROMPT = "{images}\n{text}"
"""How the release begins a prompt; "USER:" and "ASSISTANT:" are part of the text."""
LAYERS = 32
"""Only layers below this one are scaled."""
NEW_TOKENS = 100
WEIGHTS = (0.5, 0.8, 1.2, 1.5, 2.0)
LOW, HIGH, THRESHOLDS = (0.5, 0.8), (1.2, 1.5, 2.0), (0.3, 0.35, 0.4)
TUNED_ON = 0.2
SETS = {
    "whatsup/controlled_a": "Controlled_Images_A_with_answer_four_options.jsonl",
    "whatsup/controlled_b": "Controlled_Images_B_with_answer_four_options.jsonl",
    "coco_qa/one": "COCO_QA_one_obj_with_answer_four_options.jsonl",
    "coco_qa/two": "COCO_QA_two_obj_with_answer_four_options.jsonl",
    "vg_qa/one": "VG_QA_one_obj_with_answer_six_options.jsonl",
    "vg_qa/two": "VG_QA_two_obj_with_answer_six_options.jsonl",
}
"""The sets, and the file of the authors' prompts for each; they carry no licence, so none is part of this package."""
PAPER: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "llava-1.5-7b": {
        "whatsup/controlled_a": (60.3, 64.5, 84.9),
        "whatsup/controlled_b": (73.1, 75.2, 83.8),
        "coco_qa/one": (53.0, 53.6, 53.6),
        "coco_qa/two": (58.2, 59.4, 59.9),
        "vg_qa/one": (35.9, 42.7, 42.7),
        "vg_qa/two": (40.8, 48.1, 48.1),
    },
    "llava-v1.6": {"whatsup/controlled_a": (48.2, 97.0, 98.2)},
}
"""Model -> set -> published accuracy in percent: base, ScalingVis, AdaptVis. As published, the COCO and VG branch of the code fails."""


def paper_row(model: str, data: str) -> dict[str, float] | None:
    """What the paper reports, as shares; None for a model or set that it does not have."""
    found = next((rows for name, rows in PAPER.items() if name in model.lower()), {}).get(data)
    return (
        None
        if found is None
        else {name: round(value / 100, 4) for name, value in zip(("base", "ScalingVis", "AdaptVis"), found, strict=True)}
    )


def adaptvis_questions(data: str, root: str | Path | None = None, prompts: str | Path | None = None, n: int | None = None) -> Questions:
    """The questions in the release's form: "USER: ... ASSISTANT:", options in one fixed order.

    Args:
        data: one of SETS.
        root: the folder of the data sets.
        prompts: the authors' file of prompts for this set, or the folder that contains it (`prompts` in their repository); None for our own
            words in the same form.
        n: the first n questions; None for all.

    Raises:
        DataError: for another set, and for a file whose lines are not the set's questions.
    """
    if data not in SETS:
        raise DataError(f"{data}: AdaptVis' code asks {', '.join(SETS)}; give one of these")
    asked, entry = load_questions(data, root=root), find_entry(data)
    words = TEMPLATES[entry.template]
    lines = None if prompts is None else _lines(Path(prompts), SETS[data], len(asked), data)
    made = []
    for i, q in enumerate(asked):
        fields = dict(zip(("subject", "object"), q.about, strict=False))
        text = f"USER: {words.text.format(**fields, options=one_of(entry.choices))}\nASSISTANT:" if lines is None else lines[i][0]
        answer = q.answer_text if lines is None else lines[i][1]
        choices = entry.choices if answer in entry.choices else (*entry.choices, answer)
        made.append(replace(q, text=text, choices=choices, answer=choices.index(answer)))
    return Questions(made[:n], data, "all", None)


def _lines(path: Path, name: str, count: int, data: str) -> list[tuple[str, str]]:
    """The text behind the image and the answer of each line of the authors' file."""
    records = JsonLines(path / name if path.is_dir() else path)
    if len(records) != count:
        raise DataError(f"{records.path} has {len(records)} prompts for {count} questions of {data}; give the authors' file for this set")
    found = []
    for i, record in enumerate(records):
        try:
            text, answer = record["question"], record["answer"][0].lower()
            mark, _, rest = text.partition("\n")
            assert mark == "<image>" and rest
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise DataError(
                f"{records.where(i)}: no prompt in the form of AdaptVis' files; give lines with 'question' that begin with <image>, and "
                "'answer' as a list"
            ) from error
        found.append((rest, answer))
    return found


def tuned_on(count: int, seed: int = 1) -> list[int]:
    """The places of the fifth that settings are tuned on, as the release draws them; its seed is 1.

    >>> tuned_on(10), len(tuned_on(412))
    ([1, 2], 82)
    """
    return sorted(random.Random(seed).sample(range(count), int(TUNED_ON * count)))


@dataclass(frozen=True, eq=False)
class AdaptVisRun(Result):
    """What was found.

    Attributes:
        weights: the weights that were generated with; the first is 1, the unedited model.
        right: 1 where an answer counts as right by the release's scoring [weights, Q].
        strict: the same by our strict scoring [weights, Q].
        confidence: the largest probability of the first token, unedited, rounded as released [Q].
        tuning: 1 for the questions that settings are tuned on [Q].
        groups: the number of each question's image [Q].
        texts: the answers by weight.
        provenance: model, data, settings and versions.
    """

    weights: Annotated[tuple[float, ...], "weights"]
    right: Float[Tensor, "weights questions"]
    strict: Float[Tensor, "weights questions"]
    confidence: Float[Tensor, " questions"]
    tuning: Int[Tensor, " questions"]
    groups: Int[Tensor, " questions"]
    texts: Annotated[tuple[tuple[str, ...], ...], "weights"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = ", ".join(f"{row['method']} {row['accuracy']:.3f}" for _, row in self.to_frame().iterrows())
        return f"<AdaptVisRun on {int(self.tested.sum())} test questions: {rows}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return self.to_frame().to_dict("records")

    @property
    def tested(self) -> Bool[Tensor, " questions"]:
        """The questions that settings are tested on [Q]."""
        return self.tuning == 0

    def gated(self, low: float, high: float, threshold: float, scores: Tensor) -> Float[Tensor, " questions"]:
        """The scores [Q] of texts that the gate chooses."""
        return torch.where(self.confidence < threshold, scores[self.weights.index(low)], scores[self.weights.index(high)])

    def grid(self) -> pd.DataFrame:
        """One row per setting of both methods, with its accuracy on the questions that settings are tuned on and on the others."""
        rows: list[dict[str, Any]] = []
        for weight in self.weights[1:]:
            rows.append({"method": "ScalingVis", "weight": weight} | self._both(self.right[self.weights.index(weight)]))
        for low, high, threshold in product(LOW, HIGH, THRESHOLDS):
            found = self._both(self.gated(low, high, threshold, self.right))
            rows.append({"method": "AdaptVis", "weight_low": low, "weight_high": high, "threshold": threshold} | found)
        return pd.DataFrame(rows)

    def _both(self, right: Tensor) -> dict[str, float]:
        return {"tuning": float(right[~self.tested].double().mean()), "test": float(right[self.tested].double().mean())}

    def best(self, method: str) -> dict[str, float]:
        """The setting of a method with the highest accuracy on the fifth; the first of equals."""
        rows = self.grid()
        own = rows[rows["method"] == method]
        found: dict[str, Any] = own.loc[own["tuning"].idxmax()].dropna().to_dict()
        return {name: float(found[name]) for name in ("weight", "weight_low", "weight_high", "threshold") if name in found}

    def to_frame(self) -> pd.DataFrame:
        """One row per method: its tuned setting, its accuracy on the other questions as released, its interval, and strictly scored."""
        rows = []
        for method in ("base", "ScalingVis", "AdaptVis"):
            setting = {} if method == "base" else self.best(method)
            right, strict = (self._scores(setting, scores)[self.tested] for scores in (self.right, self.strict))
            low, high = statistics.accuracy_interval(right.numpy(), self.groups[self.tested].numpy())
            said = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items())
            rows.append(
                {"method": method, "setting": said, "accuracy": float(right.double().mean()), "low": low, "high": high}
                | {"strict": float(strict.double().mean())}
            )
        return pd.DataFrame(rows)

    def _scores(self, setting: Mapping[str, float], scores: Tensor) -> Tensor:
        if not setting:
            return scores[0]
        if "weight" in setting:
            return scores[self.weights.index(setting["weight"])]
        return self.gated(setting["weight_low"], setting["weight_high"], setting["threshold"], scores)

    def findings(self, model: str, data: str) -> list[str]:
        """The findings in plain words, the paper's row beside them."""
        rows, paper = self.to_frame().set_index("method"), paper_row(model, data)
        tested = int(self.tested.sum())
        shown = ", ".join(
            f"{name} {row['accuracy']:.1%}{' (' + row['setting'] + ')' if row['setting'] else ''}" for name, row in rows.iterrows()
        )
        out = [f"As released, on {tested:,} questions: {shown}."]
        if paper is None:
            out.append(f"The paper has no {model} on {data}.")
        else:
            out.append(f"The paper: {', '.join(f'{name} {value:.1%}' for name, value in paper.items())}.")
        differs = int((self.right != self.strict).any(0).sum())
        strict = ", ".join(f"{name} {row['strict']:.1%}" for name, row in rows.iterrows())
        out.append(
            f"Strictly scored: {strict}. The release looks for the right option anywhere in the text; that decides {differs:,} of "
            f"{len(self.tuning):,} questions otherwise under at least one weight."
        )
        best = self.grid().groupby("method")["test"].max()
        out.append(f"Tuned on the test questions themselves: ScalingVis {best['ScalingVis']:.1%}, AdaptVis {best['AdaptVis']:.1%}.")
        return out


def run_adaptvis(
    vlm: VLM, questions: Sequence[Question], seed: int = 1, max_new_tokens: int = NEW_TOKENS, batch_size: int = 16
) -> AdaptVisRun:
    """Generate the answers under every weight, and score them as the release does.

    Args:
        vlm: the model, with the prompt of the release (PROMPT).
        questions: the questions of `adaptvis_questions`.
        seed: draws the fifth that settings are tuned on.
        max_new_tokens: the longest answer, in tokens.
        batch_size: questions that are answered at once.

    Raises:
        DataError: for questions of which a fifth is none.
    """
    chosen = tuned_on(len(questions), seed)
    if not chosen:
        raise DataError(f"{len(questions)} questions: a fifth of these is none to tune on; give at least 5")
    layers = tuple(range(min(LAYERS, vlm.n_layers)))
    weights = (1.0, *WEIGHTS)
    batches = Rows.in_order(questions, batch_size)
    texts = []
    for weight in weights:
        work = partial(scaled_text_work, weight=weight, layers=layers, max_new_tokens=max_new_tokens)
        found = map_batches(vlm, batches, work, f"answering under weight {weight:g}")
        texts.append(tuple(bytes(text.tolist()).decode() for part in found for text in part.values()))
    (confidence,), _ = answer_all(vlm, questions, first_confidence)
    right, strict = (
        torch.tensor([[float(score_text(t, q, scorer) == q.answer) for t, q in zip(own, questions, strict=True)] for own in texts])
        for scorer in ("legacy", "strict")
    )
    tuning = torch.zeros(len(questions), dtype=torch.long)
    tuning[chosen] = 1
    made = answering(vlm, questions, layers=len(layers), max_new_tokens=max_new_tokens, split_seed=seed)
    numbers = torch.from_numpy(np.asarray(groups(questions)))
    return AdaptVisRun(weights, right, strict, confidence[:, 0].cpu().float(), tuning, numbers, tuple(texts), made)


def first_confidence(vlm: VLM, batch: Answers) -> list[Float[Tensor, "questions one"]]:
    """How sure the unedited model is of its first token [B, 1], as the release's gate computes it."""
    return [AdaptVis(1.0, 1.0, 0.5, legacy=True).confidences(batch)[:, None]]


def scaled_text_work(vlm: VLM, questions: Sequence[Question], weight: float, layers: tuple[int, ...], max_new_tokens: int) -> BatchResult:
    """One batch's answers under one weight as UTF-8, one tensor of bytes per question."""
    with AttentionScale(weight, layers=layers).attached(vlm):
        texts = vlm.generate(list(questions), max_new_tokens=max_new_tokens)
    return {f"{i:06}": torch.tensor(list(text.encode()), dtype=torch.uint8) for i, text in enumerate(texts)}
