"""What every command is given beside its own settings: how its model is opened, and how its questions are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..core.arguments import AtLeast
from ..data.items import Questions
from ..data.load import load_questions
from ..data.prompts import Options
from ..data.readers.answers import Answers
from ..data.readers.catalog import CATALOG
from ..data.scenes.task import NON_SPATIAL
from ..models.demo import NAMES
from ..models.load import load
from ..models.testbeds.circuits import PREFIX
from ..vlm.vlm import VLM

Several = Annotated[int, AtLeast(2)]
"""How many questions, where each needs another beside it: to be resampled from, or held out."""
OPENED = ("device", "dtype", "device_map", "prompt", "quantize")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The base of every job's settings.

    Attributes:
        device, dtype, device_map, prompt: as in `si.load`.
        quantize: `quantization_config` of `si.load`, by name.
        root, answers, options: as in `si.load_questions`; None for its defaults.
    """

    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    prompt: str | None = None
    quantize: str | None = None
    root: str | None = None
    answers: Answers | None = None
    options: Options | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """The keywords of `si.load`."""
        given = {name: getattr(self, name) for name in OPENED}
        return {"quantization_config" if name == "quantize" else name: value for name, value in given.items() if value is not None}

    def reading(self, name: str, beside: Sequence[str] = ()) -> dict[str, Any]:
        """The keywords of `si.load_questions` for a set.

        A root is for sets on disk and `answers` for JSON lines. Each is left out for another set if one of those beside it takes it; if
        none does, `load_questions` refuses it.
        """
        takes = {"root": lambda one: not is_rendered(one), "answers": lambda one: one.startswith("jsonl:")}
        given = {key: getattr(self, key) for key in ("root", "answers", "options")}
        return {
            key: value
            for key, value in given.items()
            if value is not None and not (key in takes and not takes[key](name) and any(map(takes[key], beside)))
        }

    def open_model(self, name: str, check: bool | None = None) -> VLM:
        """The model, opened as asked."""
        return load(name, check=check, **self.loading)

    def questions(self, name: str, split: str | None = None, n: int | None = None, seed: int = 0, beside: Sequence[str] = ()) -> Questions:
        """The questions of a set, read as asked; `beside` names the other sets of the command."""
        return load_questions(name, split, n, seed, **self.reading(name, beside))

    def of_one_set(self, model: str, data: str, split: str | None, n: int | None, seed: int) -> tuple[VLM, dict[str, Questions]]:
        """The model and all questions of one set, which are read first, as a model may take minutes."""
        questions = self.questions(data, split, n, seed)
        return self.open_model(model), {"all": questions}


def is_rendered(name: str) -> bool:
    """Whether a set is rendered and not read."""
    return name.partition("/")[0] in ("scenes", "generated")


def has_split(name: str, split: str) -> bool:
    """Whether a set has this split: its authors' where they publish any, otherwise ours."""
    entry = CATALOG.get(name)
    return entry is None or not entry.splits or split in entry.splits


def is_embedded(model: str) -> bool:
    """Whether a model is one of the package's own, which know rendered scenes and little else."""
    return model in NAMES or model.startswith(PREFIX)


def usual_others(model: str, data: str) -> tuple[str, ...]:
    """The sets that a gain should not cost anything on, if none are named: other tasks on scenes, for a set or a model of scenes."""
    return tuple(f"scenes/{task}" for task in NON_SPATIAL) if is_rendered(data) or is_embedded(model) else ()
