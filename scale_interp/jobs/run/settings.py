"""What a run computes: its settings, its steps and their files, and its default folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ...adapters.scale.scale import ScAle
from ..info import FINDINGS
from ..job import Job, command, folder_name

PLACES = {"all": "scale", "top": "scale/top", "retained": "scale/retained"}
"""The fits of a run -> where each is stored in its folder."""
MAPS = ("patch", "attribution_patching", "zero", "mean", "resample", "amplify", "gradient")
STEPS: dict[str, tuple[str, ...]] = {
    **{f"locate {name}": (f"head_maps/{name}.safetensors",) for name in MAPS},
    "fit": tuple(f"{PLACES[fit]}/{name}" for fit in ("all", "top") for name in (ScAle.weights_file, ScAle.config_file)),
    "fit retained": tuple(f"{PLACES['retained']}/{name}" for name in (ScAle.weights_file, ScAle.config_file)),
    "evaluate": ("scores.safetensors",),
    **{f"falsify {name}": (f"falsification_{name}.json",) for name in ("all", "top")},
    "report": ("summary.json", "report.html", FINDINGS),
}
"""The steps of a run -> the files of each."""


@dataclass(frozen=True)
class Settings:
    """What a run computes. Heads are located and scalars fitted on the train split; the test split is only answered.

    Attributes:
        model: a name that `si.load` takes.
        data: a name that `si.load_questions` takes.
        n_train, n_test: how many questions of each split.
        n_locate: how many training questions heads are located on.
        n_retain: how many questions of each non-spatial task.
        top: how many heads the second fit has.
        seeds: fits per control in the falsification.
        seed: of the questions and the fits.
    """

    model: str = "demo"
    data: str = "scenes/relation"
    n_train: int = 500
    n_locate: int = 120
    n_test: int = 400
    n_retain: int = 200
    top: int = 8
    seeds: int = 3
    seed: int = 0

    @staticmethod
    def quick(model: str, data: str) -> Settings:
        """A first look in a third of the time: fewer questions, one seed."""
        return Settings(model, data, n_train=200, n_locate=40, n_test=200, n_retain=100, seeds=1)

    @property
    def job(self) -> Job:
        """The command, settings and steps that its folder records."""
        flags = {k: v for k, v in asdict(self).items() if k != "model"}
        return Job("run", command("run", self.model, **flags), asdict(self), STEPS)


def default_folder(settings: Settings) -> Path:
    """runs/MODEL-DATA under the current folder."""
    return Path("runs") / folder_name(settings.model, settings.data)
