"""What a run computes: its settings, its steps and their files, and its default folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...adapters.scale.fit import FitSettings, Recipe
from ...adapters.scale.scale import ScAle
from ...core.arguments import Count, Seed, checked_settings
from ..info import FINDINGS
from ..inputs import Inputs, Several, has_split, usual_others
from ..job import Job, command, folder_name

PLACES = {"all": "scale", "top": "scale/top", "retained": "scale/retained"}
"""The fits of a run -> where each is stored in its folder."""
MAPS = ("patch", "attribution_patching", "zero", "mean", "resample", "amplify", "gradient")
OF_PAIRS = ("patch", "attribution_patching")
"""The maps that compare the questions of a pair; a set without pairs has the others."""
RANKED_BY = ("patch", "zero")
"""The map whose top heads are fitted on: patching, or zero ablation (by the size of the effect) where there are no pairs."""
STEPS: dict[str, tuple[str, ...]] = {
    **{f"locate {name}": (f"head_maps/{name}.safetensors",) for name in MAPS},
    "fit": tuple(f"{PLACES[fit]}/{name}" for fit in ("all", "top") for name in (ScAle.weights_file, ScAle.config_file)),
    "fit retained": tuple(f"{PLACES['retained']}/{name}" for name in (ScAle.weights_file, ScAle.config_file)),
    "evaluate": ("scores.safetensors",),
    **{f"falsify {name}": (f"falsification_{name}.json",) for name in ("all", "top")},
    "report": ("summary.json", "report.html", FINDINGS),
}
"""The steps of a run -> the files of each."""
RETAINED = "fit retained"
"""The step that there is only with questions to train on whose answers should stay as they are."""


@checked_settings
@dataclass(frozen=True)
class Settings(Inputs):
    """What a run computes. Heads are located and scalars fitted on the train split; the test split is only answered.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        n_train, n_test: how many questions of each split.
        n_locate: how many training questions heads are located on.
        n_retain: how many questions of each other set.
        top: how many heads the second fit has.
        seeds: fits per control in the falsification.
        seed: of the questions and the fits.
        others: sets whose answers should stay as they are; None for other scenes where these are scenes.
        recipe: how scalars are fitted, "default" or "release", as in `fit_scale`.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    n_train: Several = 500
    n_locate: Several = 120
    n_test: Count = 400
    n_retain: Count = 200
    top: Count = 8
    seeds: Count = 3
    seed: Seed = 0
    others: tuple[str, ...] | None = None
    recipe: Recipe = "default"

    def __post_init__(self) -> None:
        FitSettings.of(self.recipe)
        if self.others is not None:  # as JSON has it, and the command line
            object.__setattr__(self, "others", tuple(self.others))

    @staticmethod
    def quick(model: str, data: str, **given: Any) -> Settings:
        """A first look in a third of the time: fewer questions, one seed, where none are given."""
        return Settings(model, data, **{"n_train": 200, "n_locate": 40, "n_test": 200, "n_retain": 100, "seeds": 1} | given)

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The sets whose answers should stay as they are."""
        return self.others if self.others is not None else usual_others(self.model, self.data)

    @property
    def retained(self) -> tuple[str, ...]:
        """Those of these sets that have questions to train on."""
        return tuple(name for name in self.elsewhere if has_split(name, "train"))

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        return self.job_of(self.steps())

    def job_of(self, steps: Sequence[str]) -> Job:
        """The job with these of its steps."""
        flags = {k: v for k, v in asdict(self).items() if k != "model"}
        return Job("run", command("run", self.model, **flags), asdict(self), {step: STEPS[step] for step in steps})

    def steps(self, pairs: bool = True) -> list[str]:
        """The steps of a run of a set with contrast pairs, or without."""
        left_out = [] if pairs else [f"locate {name}" for name in OF_PAIRS]
        left_out += [] if self.retained else [RETAINED]
        return [step for step in STEPS if step not in left_out]


def default_folder(settings: Settings) -> Path:
    """runs/MODEL-DATA under the current folder."""
    return Path("runs") / folder_name(settings.model, settings.data)
