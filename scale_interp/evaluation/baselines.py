"""ScAle compared with LoRA, IA3 and a free last-token bias: what each gains on the same questions with one budget, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..adapters.baselines.last_token_bias import LastTokenBias, fit_bias
from ..adapters.baselines.peft_adapter import LORA_RATES, PeftAdapter, fit_ia3, fit_lora
from ..adapters.baselines.training import BUDGET, FREE_RATES
from ..adapters.scale.fit import FitSettings, fit_scale, prompts_to_fit
from ..adapters.scale.scale import ScAle
from ..attribution.ablation import provenance
from ..core import statistics
from ..core.arguments import Count, Seed, checked
from ..core.figures import draw
from ..data.items import groups, require, require_disjoint
from ..data.question import Question
from ..interventions.edit import Head
from ..interventions.engine import Path
from ..vlm.vlm import VLM
from .accuracy import evaluate, relative_gain
from .table import Table, difference_columns, known, span

SCALE = "ScAle"
SCALE_RATES = (0.05, 0.02, 0.1)
Method = ScAle | PeftAdapter | LastTokenBias


@dataclass(frozen=True, eq=False)
class Baselines(Table):
    """One row per method.

    The columns, where p_corrected is Holm's over all tests of the table:

    - parameters: how many numbers are learned.
    - lr, lrs: the learning rate with the lowest held-out loss, and all that were tried.
    - epochs, validation_loss: the epoch that was kept, and its held-out loss.
    - seconds, seconds_all: of the chosen fit, and of the whole search including the reading of prompts.
    - accuracy, gain: on the test questions, and over the base model with low, high, p and p_corrected.
    - scale_minus: ScAle's gain minus the method's, with the same columns.
    - recovered: ScAle's gain as a share of the method's; None where the method gains nothing.
    - others_change: the change of accuracy on other tasks, with the same columns as gain.

    >>> rows = ({"method": "ScAle", "parameters": 54, "gain": 0.25}, {"method": "LoRA r=1", "parameters": 13056, "gain": 0.31})
    >>> Baselines(rows)["LoRA r=1"]["parameters"]
    13056
    """

    columns = ("method", "parameters", "seconds", "accuracy", "gain", "low", "high", "p_corrected", "scale_minus", "recovered")

    def __repr__(self) -> str:
        return f"<Baselines: {self.verdict}>"

    def __getitem__(self, method: str) -> Any:
        return next(row for row in self.rows if row["method"] == method)

    @property
    def lora(self) -> str:
        """The LoRA rank with the lowest held-out loss, chosen without the test questions."""
        ranks = [row for row in self.rows if row["method"].startswith("LoRA")]
        return min(ranks, key=lambda row: row["validation_loss"])["method"]

    @property
    def verdict(self) -> str:
        """ScAle compared with the best LoRA, in plain words."""
        mine, best = self[SCALE], self[self.lora]
        text = (
            f"{SCALE} with {mine['parameters']:,} parameters gains {span(mine, 'gain')}, {best['method']} with "
            f"{best['parameters']:,} {span(best, 'gain')}"
        )
        if best["recovered"] is None:
            return f"{text}; LoRA's gain cannot be told from 0, so there is no share of it to recover."
        share = f"{best['recovered']:.0%} [{best['recovered_low']:.0%}, {best['recovered_high']:.0%}]"
        differs = "differs from" if best["scale_minus_p_corrected"] < 0.05 else "cannot be told from"
        return f"{text}: {SCALE} recovers {share} of LoRA's gain, which {differs} all of it."

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the gain and cost of every method with intervals (see viz.baselines)."""
        return draw("baselines", self, **options)


@checked
def compare_baselines(
    vlm: VLM,
    train: Sequence[Question],
    test: Sequence[Question],
    *,
    others: Sequence[Question] | None = None,
    ranks: Sequence[int] = (1, 4, 16),
    heads: Iterable[Head] | None = None,
    mlp: bool = True,
    seed: Seed = 0,
    rates: Count = 3,
    path: Path = "auto",
    **settings: Any,
) -> Baselines:
    """Train ScAle, a free last-token bias, IA3 and LoRA of each rank on `train`, and answer `test` once with each.

    All methods have the same budget: epochs, batch_size, validation and patience of FitSettings, the same held-out images, and the same
    number of learning rates, of which the one with the lowest held-out loss is chosen.

    Args:
        vlm: the model, from `si.load`.
        train: questions to learn from.
        test: questions that every method answers once.
        others: test questions of other tasks, to measure what each method costs there.
        ranks: the ranks of LoRA.
        heads: the heads on which ScAle learns; None for all.
        mlp: whether ScAle also learns a scalar per MLP.
        seed: for initial weights, and for the images that are held out for early stopping.
        rates: how many learning rates each method tries, the first of its own list.
        path: "auto" or "packed"; scalars are not fitted on the reference path.
        settings: fields of FitSettings.

    Returns:
        A Baselines table, one row per method.

    Raises:
        LeakError: where questions to learn from and questions to answer share an image.
        ModelError: where peft is not installed.

    >>> import scale_interp as si
    >>> vlm = si.load("demo")
    >>> train, test = (si.load_questions("scenes/relation", split, n=8) for split in ("train", "test"))
    >>> found = compare_baselines(vlm, train, test, ranks=(1,), rates=1, epochs=1)
    >>> [row["method"] for row in found.rows]
    ['ScAle', 'last-token bias', 'IA3', 'LoRA r=1']
    """
    train, test = require(train), require(test)
    require_disjoint(train, [*test, *(others or [])])
    heads = None if heads is None else list(heads)
    options = FitSettings(**settings)
    budget = {name: getattr(options, name) for name in BUDGET}
    common: dict[str, Any] = budget | {"seed": seed, "path": path}
    makers: list[Callable[[], Method]] = [
        lambda: _scale(vlm, train, heads, mlp, SCALE_RATES[:rates], common),
        lambda: fit_bias(vlm, train, learning_rates=FREE_RATES[:rates], **common),
        lambda: fit_ia3(vlm, train, learning_rates=FREE_RATES[:rates], **common),
        *((lambda rank=rank: fit_lora(vlm, train, rank, learning_rates=LORA_RATES[:rates], **common)) for rank in ranks),
    ]
    elsewhere = None if others is None else require(others)
    base, base_others = _right(vlm, test, None, path), None if elsewhere is None else _right(vlm, elsewhere, None, path)
    found = []
    for make in makers:
        started = time.perf_counter()
        method = make()
        seconds = time.perf_counter() - started
        right = _right(vlm, test, method, path)
        found.append((method, seconds, right, None if elsewhere is None else _right(vlm, elsewhere, method, path)))
    rows = _rows(found, base, base_others, groups(test), None if elsewhere is None else groups(elsewhere))
    low, high = statistics.accuracy_interval(base, groups(test))
    about = {"base": {"accuracy": float(base.mean()), "low": low, "high": high}, "budget": budget}
    made = provenance(vlm, test, train=len(train), others=None if elsewhere is None else len(elsewhere), seed=seed, ranks=list(ranks))
    return Baselines(tuple(rows), about, made)


def _scale(vlm: VLM, train: Sequence[Question], heads: list[Head] | None, mlp: bool, rates: Sequence[float], common: Any) -> ScAle:
    """ScAle, its learning rate chosen as the baselines' are."""
    prompts = prompts_to_fit(vlm, train, 1, FitSettings(batch_size=common["batch_size"]))
    for _ in prompts:  # read before the clock starts, as for the baselines
        pass
    tried = []
    for rate in rates:
        started = time.perf_counter()
        scale = fit_scale(vlm, train, heads, mlp, prompts=prompts, lr=rate, **common)
        loss = min(row["validation_loss"] for row in scale.history)
        info = {"lr": rate, "validation_loss": loss, "seconds": time.perf_counter() - started}
        tried.append((scale, info))
    best, info = min(tried, key=lambda item: item[1]["validation_loss"])
    return replace(best, settings={**best.settings, **info, "tried": [i for _, i in tried]})


def _right(vlm: VLM, questions: Sequence[Question], method: Method | None, path: Path) -> np.ndarray:
    """Which questions are answered right [Q]."""
    edit = None if isinstance(method, PeftAdapter) else method
    with method.attached(vlm) if isinstance(method, PeftAdapter) else nullcontext():
        return evaluate(vlm, questions, edit, path=path).per_question.numpy()


def _rows(
    found: Sequence[tuple[Method, float, np.ndarray, np.ndarray | None]],
    base: np.ndarray,
    base_others: np.ndarray | None,
    group: np.ndarray,
    other_group: np.ndarray | None,
) -> list[dict[str, Any]]:
    mine = found[0][2]
    gains = [statistics.paired_difference(right, base, group) for _, _, right, _ in found]
    against = [statistics.paired_difference(mine, right, group) for _, _, right, _ in found[1:]]
    costs = []
    if base_others is not None and other_group is not None:
        costs = [statistics.paired_difference(o, base_others, other_group) for _, _, _, o in found if o is not None]
    corrected = statistics.holm(np.array([d.p for d in (*gains, *against, *costs)]))
    rows = []
    for i, (method, seconds, right, _) in enumerate(found):
        settings, gain = method.settings, gains[i]
        row: dict[str, Any] = {
            "method": SCALE if isinstance(method, ScAle) else method.name,
            "parameters": method.n_parameters,
            "lr": settings["lr"],
            "lrs": [t["lr"] for t in settings["tried"]],
            "epochs": settings["best_epoch"],
            "validation_loss": settings["validation_loss"],
            "seconds": settings["seconds"],
            "seconds_all": seconds,
            "accuracy": float(right.mean()),
            "relative_gain": relative_gain(float(right.mean()), float(base.mean())),
            **difference_columns("gain", gain, corrected[i]),
        }
        if i:
            row |= difference_columns("scale_minus", against[i - 1], corrected[len(gains) + i - 1], "scale_minus_")
            share, low, high = statistics.share_interval(mine - base, right - base, group)
            row |= {"recovered": known(share), "recovered_low": known(low), "recovered_high": known(high)}
        else:
            row |= dict.fromkeys(("scale_minus", "scale_minus_low", "scale_minus_high", "scale_minus_p", "scale_minus_p_corrected"))
            row |= dict.fromkeys(("recovered", "recovered_low", "recovered_high"))
        if costs:
            row |= difference_columns("others_change", costs[i], corrected[len(gains) + len(against) + i], "others_change_")
        rows.append(row)
    return rows
