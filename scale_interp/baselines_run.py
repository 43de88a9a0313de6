"""ScAle and its baselines on one data set, from the command line: the table as JSON and CSV, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data.load import load_questions
from .data.task import NON_SPATIAL
from .evaluation.baselines import Baselines, compare_baselines
from .models.load import load
from .record import write_bytes


@dataclass(frozen=True)
class BaselineSettings:
    """What is compared. others: data sets that no method should change; None for the scenes' non-spatial tasks on scenes."""

    model: str = "demo"
    data: str = "scenes/relation"
    others: tuple[str, ...] | None = None
    ranks: tuple[int, ...] = (1, 4, 16)
    rates: int = 2
    epochs: int = 16
    n_train: int = 240
    n_test: int = 400
    n_others: int = 100
    seed: int = 0

    @property
    def elsewhere(self) -> tuple[str, ...]:
        if self.others is not None:
            return self.others
        return tuple(f"scenes/{task}" for task in NON_SPATIAL) if self.data.startswith("scenes/") else ()


def run_baselines(settings: BaselineSettings, folder: Path, say: Callable[[str], None] = lambda _: None) -> Baselines:
    """Compare, and write baselines.json, baselines.csv and baselines.html into the folder."""
    vlm = load(settings.model)
    train = load_questions(settings.data, "train", settings.n_train, settings.seed)
    test = load_questions(settings.data, "test", settings.n_test, settings.seed)
    others = [q for name in settings.elsewhere for q in load_questions(name, "test", settings.n_others, settings.seed)]
    say(f"ScAle, a last-token bias, IA3 and LoRA of rank {', '.join(map(str, settings.ranks))}: {settings.rates} learning rates each")
    found = compare_baselines(
        vlm,
        train,
        test,
        others=others or None,
        ranks=settings.ranks,
        seed=settings.seed,
        rates=settings.rates,
        epochs=settings.epochs,
    )
    found.save(folder / "baselines.json")
    write_bytes(folder / "baselines.csv", found.to_frame().to_csv(index=False).encode())
    write_bytes(folder / "baselines.html", found.plot().to_html(include_plotlyjs=True).encode())
    return found


def shown(found: Baselines) -> Sequence[str]:
    """The columns that a terminal has room for."""
    columns = ["method", "parameters", "seconds", "accuracy", "gain", "low", "high", "p_corrected", "scale_minus", "recovered"]
    return [*columns, "others_change"] if "others_change" in found.rows[0] else columns
