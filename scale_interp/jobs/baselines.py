"""ScAle and its baselines on one data set, from the command line: the table as JSON and CSV, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.arguments import Count, Seed, checked_settings
from ..core.files import write_bytes
from ..evaluation.baselines import Baselines, compare_baselines
from .folder import ModelAndQuestions, RunFolder, Say
from .info import FINDINGS
from .inputs import Inputs, Several, usual_others
from .job import Job, command


@checked_settings
@dataclass(frozen=True)
class BaselineSettings(Inputs):
    """What is compared.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        others: data sets that no method should change; None for other scenes where these are scenes.
        ranks: ranks of LoRA.
        rates: how many learning rates each method tries.
        epochs: the largest number of epochs of any method.
        n_train, n_test, n_others: how many questions of each.
        seed: of the questions and the fits.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    others: tuple[str, ...] | None = None
    ranks: tuple[int, ...] = (1, 4, 16)
    rates: Count = 2
    epochs: Count = 16
    n_train: Several = 240
    n_test: Count = 400
    n_others: Count = 100
    seed: Seed = 0

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The data sets that no method should change."""
        return self.others if self.others is not None else usual_others(self.model, self.data)

    @property
    def job(self) -> Job:
        """The comparison as a job of its folder."""
        flags = {"others": self.others, "rank": self.ranks} | {
            k: v for k, v in asdict(self).items() if k not in ("model", "others", "ranks")
        }
        files = ("baselines.json", "baselines.csv", "baselines.html", FINDINGS)
        return Job("baselines", command("baselines", self.model, **flags), asdict(self), {"baselines": files})

    def asked(self) -> ModelAndQuestions:
        """The model, and the questions of each split."""
        names = self.elsewhere
        train, test = (
            self.questions(self.data, split, n, self.seed, names) for split, n in (("train", self.n_train), ("test", self.n_test))
        )
        others = [q for name in names for q in self.questions(name, "test", self.n_others, self.seed, (self.data, *names))]
        return self.open_model(self.model), {"train": train, "test": test} | ({"others": others} if others else {})


def run_baselines(settings: BaselineSettings, folder: Path, say: Say = lambda _: None) -> Baselines:
    """Compare in a run's folder, and write baselines.json, baselines.csv and baselines.html, which contain measured seconds.

    Args:
        settings: what is compared.
        folder: the run's folder.
        say: called with a line about each step.
    """
    s = settings

    def make() -> None:
        train, test, others = asked["train"], asked["test"], asked.get("others")
        found = compare_baselines(vlm, train, test, others=others, ranks=s.ranks, seed=s.seed, rates=s.rates, epochs=s.epochs)
        found.save(folder / "baselines.json")
        write_bytes(folder / "baselines.csv", found.to_frame().to_csv(index=False).encode())
        write_bytes(folder / "baselines.html", found.plot().to_html(include_plotlyjs=True, div_id="baselines").encode())
        run_folder.write_findings(found.verdict, [])

    run_folder = RunFolder(folder, s.job, s.asked, say)
    ranks = ", ".join(map(str, s.ranks))
    message = f"ScAle, a last-token bias, IA3 and LoRA of rank {ranks}: {s.rates} learning rates each"
    with run_folder.working() as (vlm, asked):
        return run_folder.run_step("baselines", make, lambda: Baselines.load(folder / "baselines.json"), message)


def terminal_columns(found: Baselines) -> Sequence[str]:
    """The columns that fit into a terminal."""
    columns = ["method", "parameters", "seconds", "accuracy", "gain", "low", "high", "p_corrected", "scale_minus", "recovered"]
    return [*columns, "others_change"] if "others_change" in found.rows[0] else columns
