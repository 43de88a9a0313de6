"""The main job in a folder: locate heads, fit ScAle on them, evaluate, falsify, report. Steps that are done are not redone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import statistics
from .adapters.fit import Fit, FitSettings, fit_scales
from .adapters.scale import CONFIG, ScAle
from .attribution import HeadMap, ablate, amplify, attribute, patch, rescale
from .data.contrast import Contrasts, contrasts
from .data.items import Questions, require_disjoint
from .data.load import load_questions
from .data.question import Question
from .data.task import NON_SPATIAL
from .errors import FileError
from .evaluation.accuracy import Evaluation, answering, evaluate, evaluate_many, relative_gain
from .evaluation.falsification import Falsification, falsify
from .interventions.edit import Head
from .interventions.prefix import Prompts
from .models.load import load
from .models.vlm import VLM
from .record import expect, read_json, read_tensors, versions, write_json, write_tensors

SCORES = "Scores"
PLACES = {"all": "scale", "top": "scale/top", "retained": "scale/retained"}
"""The fits of a run, and where each lies in its folder."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a run is of. Heads are located and scalars fitted on the train split; the test split is only answered."""

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
        """A look in a third of the time: fewer questions, one seed."""
        return Settings(model, data, n_train=200, n_locate=40, n_test=200, n_retain=100, seeds=1)


class Run:
    """One run folder. Every step writes its results whole and is skipped where they are there already."""

    def __init__(self, folder: Path, settings: Settings, say: Say = lambda _: None, vlm: VLM | None = None):
        self.folder, self.settings, self.say = folder, settings, say
        if vlm is not None:
            self.vlm = vlm
        self._check_settings()

    @staticmethod
    def existing(folder: Path, say: Say = lambda _: None) -> Run:
        """The run that a folder holds."""
        found = read_json(folder / "settings.json")
        try:
            return Run(folder, Settings(**found["settings"]), say)
        except (KeyError, TypeError) as error:
            raise FileError(f"{folder / 'settings.json'} is no run of this version ({error})") from error

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            return
        mine, theirs = asdict(self.settings), read_json(path).get("settings", {})
        changed = {k: (theirs.get(k), mine[k]) for k in mine if theirs.get(k) != mine[k]}
        if changed:
            what = ", ".join(f"{k} was {old!r}, now {new!r}" for k, (old, new) in changed.items())
            raise FileError(f"{self.folder} holds a run with other settings ({what}): use another --out, or delete it")

    def _claim(self) -> None:
        """Write the settings once model and data are known to be good, so that a mistyped command leaves nothing behind."""
        _ = self.vlm, self.pairs, self.test
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, {"settings": asdict(self.settings), "versions": versions()})

    @cached_property
    def vlm(self) -> VLM:
        return load(self.settings.model)

    @cached_property
    def train(self) -> Questions:
        return load_questions(self.settings.data, "train", self.settings.n_train, self.settings.seed)

    @cached_property
    def test(self) -> Questions:
        questions = load_questions(self.settings.data, "test", self.settings.n_test, self.settings.seed)
        require_disjoint(self.train, questions)
        return questions

    @cached_property
    def pairs(self) -> Contrasts:
        """Contrasts for patching, of training questions only."""
        return contrasts(self.train[: self.settings.n_locate])

    def non_spatial(self, split: str) -> dict[str, Questions]:
        """Questions of the tasks that should not change, by task."""
        return {task: load_questions(f"scenes/{task}", split, self.settings.n_retain, self.settings.seed) for task in NON_SPATIAL}

    def non_spatial_together(self, split: str) -> list[Question]:
        return [q for questions in self.non_spatial(split).values() for q in questions]

    def locate(self) -> dict[str, HeadMap]:
        """Head maps by every method, on training questions."""
        self._claim()
        asked = self.train[: self.settings.n_locate]
        methods: dict[str, Callable[[], HeadMap]] = {
            "patch": lambda: patch(self.vlm, self.pairs),
            "attribution_patching": lambda: attribute(self.vlm, self.pairs),
            "zero": lambda: ablate(self.vlm, asked, "zero"),
            "mean": lambda: ablate(self.vlm, asked, "mean"),
            "resample": lambda: ablate(self.vlm, asked, "resample"),
            "amplify": lambda: amplify(self.vlm, asked),
            "gradient": lambda: attribute(self.vlm, asked),
        }
        maps = {}
        for name, make in methods.items():
            path = self.folder / "head_maps" / f"{name}.safetensors"
            if not path.exists():
                self.say(f"locating heads: {name.replace('_', ' ')}")
                make().save(path)
            maps[name] = HeadMap.load(path)
        return maps

    @property
    def top_heads(self) -> list[Head]:
        """The heads with the largest patching effect."""
        path = self.folder / "head_maps" / "patch.safetensors"
        if not path.exists():
            raise FileError(f"{self.folder} has no head maps yet: run `scale-interp locate` on it first")
        return HeadMap.load(path).top(self.settings.top)

    def fit(self) -> dict[str, ScAle]:
        """ScAle on all heads and MLPs (scale/), on the top heads (scale/top/), and with non-spatial answers retained."""
        if not self._fitted:
            seed, prompts = self.settings.seed, Prompts(self.vlm, self.train, FitSettings().batch_size)
            self.say("fitting ScAle on all heads and MLPs, and on the top heads")
            fits = [Fit("all", seed=seed), Fit("top", tuple(self.top_heads), mlp=False, seed=seed)]
            plain = fit_scales(self.vlm, self.train, fits, prompts=prompts)
            self.say("fitting ScAle with non-spatial answers retained")
            retain = self.non_spatial_together("train")
            kept = fit_scales(self.vlm, self.train, [Fit("retained", seed=seed)], retain=retain, prompts=prompts)
            for place, scale in zip(PLACES.values(), [*plain, *kept], strict=True):
                scale.save_pretrained(self.folder / place)
        return {name: ScAle.from_pretrained(self.folder / place) for name, place in PLACES.items()}

    @property
    def _fitted(self) -> bool:
        return all((self.folder / place / CONFIG).exists() for place in PLACES.values())

    def _scales(self) -> dict[str, ScAle]:
        if not self._fitted:
            raise FileError(f"{self.folder} has no fitted scalars yet: run `scale-interp fit` on it first")
        return self.fit()

    def evaluate(self) -> dict[str, dict[str, Evaluation]]:
        """Task -> fit -> answers on the test split; fits: base, all, top, retained."""
        path = self.folder / "scores.safetensors"
        asked: dict[str, Questions] = {"asked": self.test} | self.non_spatial("test")
        if not path.exists():
            scales = self._scales()
            self.say("answering the test questions with and without the scalars")
            tensors = {}
            for task, questions in asked.items():
                prompts = Prompts(self.vlm, questions)
                tensors[f"{task}/base"] = evaluate(self.vlm, questions, prompts=prompts).scores
                scaled = evaluate_many(self.vlm, questions, list(scales.values()), prompts=prompts)
                tensors |= {f"{task}/{name}": found.scores for name, found in zip(scales, scaled, strict=True)}
            write_tensors(path, SCORES, tensors, {})
        tensors, _ = read_tensors(path, SCORES)
        made = {task: answering(self.vlm, questions) for task, questions in asked.items()}
        return {t: {f: Evaluation(q, expect(path, tensors, f"{t}/{f}", 2), made[t]) for f in ("base", *PLACES)} for t, q in asked.items()}

    def falsify(self) -> dict[str, Falsification]:
        """The suite on all heads and MLPs, and on the top heads."""
        found = {}
        for name, heads in (("all", None), ("top", self.top_heads)):
            path = self.folder / f"falsification_{name}.json"
            if not path.exists():
                self.say(
                    f"falsifying: every control beside ScAle on {'all heads and MLPs' if heads is None else f'the top {len(heads)} heads'}"
                )
                others = self.non_spatial_together("test")
                falsify(self.vlm, self.train, self.test, heads, seeds=self.settings.seeds, others=others).save(path)
            found[name] = Falsification.load(path)
        return found

    def rescaling(self) -> dict[str, Any]:
        """The no-training study: layers and MLPs rescaled by a grid of factors, on training questions."""
        asked = self.train[: self.settings.n_locate]
        return {unit: rescale(self.vlm, asked, unit=unit, metric="accuracy") for unit in ("layer", "mlp")}  # type: ignore[arg-type]

    def retention(self) -> list[dict[str, Any]]:
        """Change of non-spatial accuracy, a row a task and fit, and one for all tasks together."""
        evaluations = self.evaluate()
        rows = []
        for fit in PLACES:
            pooled: list[np.ndarray] = []
            for task in NON_SPATIAL:
                new, base = evaluations[task][fit], evaluations[task]["base"]
                d = new.compare(base)
                rows.append({"task": task, "fit": fit, "base": base.accuracy, "change": d.mean, "low": d.low, "high": d.high})
                pooled.append((new.per_question - base.per_question).numpy())
            values = np.concatenate(pooled)
            low, high = statistics.bootstrap_interval(values, np.arange(len(values)))
            base_mean = float(np.mean([evaluations[t]["base"].accuracy for t in NON_SPATIAL]))
            rows.append(
                {"task": "all", "fit": fit, "base": base_mean, "change": float(values.mean()), "low": float(low), "high": float(high)}
            )
        return rows

    def summary(self, seconds: float | None = None) -> dict[str, Any]:
        """Every headline number, from the saved results."""
        maps, scales, answers, suites = self.locate(), self._scales(), self.evaluate()["asked"], self.falsify()
        base, retention = answers["base"], self.retention()
        fits = {}
        for name, scale in scales.items():
            d = answers[name].compare(base)
            fits[name] = {
                "accuracy": answers[name].accuracy,
                "gain": d.mean,
                "low": d.low,
                "high": d.high,
                "p": d.p,
                "relative_gain": relative_gain(answers[name].accuracy, base.accuracy),
                "parameters": scale.n_parameters,
                "non_spatial_change": next(r["change"] for r in retention if r["task"] == "all" and r["fit"] == name),
            }
        low, high = base.interval()
        content = {
            "settings": asdict(self.settings),
            "model": self.vlm.describe(),
            "versions": versions(),
            "base": {"accuracy": base.accuracy, "low": low, "high": high, "chance": base.chance, "majority": base.majority},
            "fits": fits,
            "top_heads": [list(h) for h in self.top_heads],
            "sparsity": {name: m.sparsity() for name, m in maps.items()},
            "scalars_against_attribution": {
                name: {"scalar": m.compare(scales["all"].scalars.double()), "size": m.compare((scales["all"].scalars - 1).abs().double())}
                for name, m in maps.items()
            },
            "retention": retention,
            "falsification": {
                n: {"survives": f.survives, "verdict": f.verdict, "registration": f.registration} | _numbers(f) for n, f in suites.items()
            },
        }
        return content | ({"seconds": round(seconds, 1)} if seconds is not None else {})

    def everything(self) -> dict[str, Any]:
        """The whole job, the summary and the report."""
        from .run_report import write_run_report

        started = time.perf_counter()
        self.say(f"loading {self.settings.model} and {self.settings.data}")
        self.locate()
        self.fit()
        self.evaluate()
        self.falsify()
        self.say("writing the report")
        summary = self.summary(time.perf_counter() - started)
        write_json(self.folder / "summary.json", summary)
        write_run_report(self, summary)
        return summary


def _numbers(found: Falsification) -> dict[str, Any]:
    return {
        "gain": found.gain,
        "text_share": found.text_share,
        "frozen_changed": found.frozen_changed,
        "frozen_bits_changed": found.frozen_bits_changed,
        "heads_matter": found.heads_matter,
        "not_beaten": found.not_beaten,
        "reasons": found.reasons,
        "controls": {
            row["control"]: {k: row[k] for k in ("accuracy", "gain", "low", "high", "effect", "p_corrected", "others_change")}
            for row in found.rows
        },
    }


def default_folder(settings: Settings) -> Path:
    """runs/MODEL-DATA under the current folder."""
    return Path("runs") / folder_name(settings.model, settings.data)


def folder_name(model: str, data: str) -> str:
    """MODEL-DATA without anything that a folder's name cannot hold; of paths and hub ids the last part."""
    name = f"{Path(model).name}-{data.replace('/', '-')}"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
