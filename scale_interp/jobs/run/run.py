"""The main job in a folder: locate heads, fit ScAle on them, evaluate, falsify, report. Steps that are done are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...adapters.scale.fit import Fit, FitSettings, fit_scales, prompts_to_fit
from ...adapters.scale.scale import ScAle
from ...attribution import HeadMap, rescale
from ...attribution.head_maps import Locator
from ...core import statistics
from ...core.files import read_json, write_json
from ...core.tensors import expect, read_tensors, write_tensors
from ...core.versions import versions
from ...data.contrast import Change, Contrasts, contrasts, own_partners
from ...data.items import Questions, groups, require_disjoint
from ...data.question import Question
from ...errors import DataError, EditError, FileError
from ...evaluation.accuracy import Evaluation, answering, evaluate, evaluate_many, relative_gain
from ...evaluation.falsification.suite import Falsification, falsify
from ...execution.execution import with_journal
from ...interventions.choices import choice_sequences
from ...interventions.edit import Head
from ...interventions.engine import require_packed
from ...interventions.prefix import PrefixStore
from ...vlm.vlm import VLM
from ..folder import ModelAndQuestions, RunFolder, Say
from ..info import SETTINGS, run_headline
from ..job import PLACED
from ..page import without_meaning
from ..plan import Plan, make_plan
from .duration import as_found, expected
from .page import Results, sentences, write_run_report
from .settings import MAPS, OF_PAIRS, PLACES, RANKED_BY, RETAINED, Settings

LEARNED, TESTED = ("train", "contrasts", "retained"), ("test", "others")
SCORES, PLAN = "Scores", "plan.json"


class Run:
    """One run folder. Every step writes its results completely, and is skipped where they are there already."""

    def __init__(self, folder: Path, settings: Settings, say: Say = lambda _: None, vlm: VLM | None = None):
        self.folder, self.settings, self.say = folder, settings, say
        self._given = vlm
        self._read: dict[tuple[str, str, int], Questions] = {}
        self.run_folder = RunFolder(folder, settings.job_of(_steps_in(folder, settings)), self._asked, say)

    @staticmethod
    def existing(folder: Path, say: Say = lambda _: None, place: Mapping[str, str] | None = None) -> Run:
        """Open the run in a folder.

        Args:
            folder: the folder.
            say: called with a line about each step.
            place: device or device_map, where the model goes now.

        Raises:
            FileError: the folder holds the results of another command, or of another version.
        """
        found = read_json(folder / "settings.json")
        if found.get("kind") != "run":
            raise FileError(f"{folder} holds the results of `{found.get('kind')}`, not a run: `scale-interp show {folder}` shows them")
        try:
            moved = dict.fromkeys(PLACED) | dict(place) if place else {}
            return Run(folder, Settings(**found["settings"] | moved), say)
        except (KeyError, TypeError, EditError) as error:
            raise FileError(f"{folder / 'settings.json'} is not a run of this version ({error})") from error

    def _asked(self) -> ModelAndQuestions:
        found = self.asked
        learned, tested = ([q for name in names if name in found for q in found[name]] for names in (LEARNED, TESTED))
        # Now, and not when the suite finds it hours later.
        require_disjoint(learned, tested, rendered=False)
        self._require_enough()
        for question in {frozenset(q.choices): q for q in (*learned, *tested)}.values():
            choice_sequences(self._loaded, question)
        _ = self.pairs
        return self.vlm, found

    def _require_enough(self) -> None:
        """Raise an error for fewer questions than the job needs, or more heads than the model has."""
        if len(set(groups(self.train).tolist())) < 2:
            raise DataError(f"{self.settings.data} has one image to train on: fits hold images out, so give at least two")
        heads = self._loaded.n_layers * self._loaded.n_heads
        if self.settings.top > heads:
            raise EditError(f"top={self.settings.top}: {self.settings.model} has {heads} heads; ask for 1 to {heads}")

    @cached_property
    def asked(self) -> dict[str, Questions]:
        """All questions of the run: "train" and its "contrasts" of its own, "test", and of other sets the "retained" and the "others"."""
        s, own = self.settings, own_partners(self.train)
        found = {"train": self.train, "test": self.test}
        found["contrasts"] = Questions(own, f"{s.data} own pairs", "train", s.seed)
        for name, split, sets in (("retained", "train", s.retained), ("others", "test", s.elsewhere)):
            found[name] = Questions(self.others_together(split), ", ".join(sets), split, s.seed)
        return {name: questions for name, questions in found.items() if len(questions)}

    @property
    def vlm(self) -> VLM:
        """The model; while the folder is worked in, with its journal."""
        return with_journal(self._loaded, self.run_folder.working_journal)

    @cached_property
    def _loaded(self) -> VLM:
        return self._given or self.settings.open_model(self.settings.model)

    @cached_property
    def train(self) -> Questions:
        """The training questions."""
        return self._questions(self.settings.data, "train", self.settings.n_train)

    @cached_property
    def test(self) -> Questions:
        """The test questions, which share no image with the training questions."""
        questions = self._questions(self.settings.data, "test", self.settings.n_test)
        require_disjoint(self.train, questions)
        return questions

    def _questions(self, name: str, split: str, n: int) -> Questions:
        """The questions of a set, read once: several steps ask for those of the others."""
        if (name, split, n) not in self._read:
            beside = (self.settings.data, *self.settings.elsewhere)
            self._read[name, split, n] = self.settings.questions(name, split, n, self.settings.seed, beside)
        return self._read[name, split, n]

    @cached_property
    def pairs(self) -> Contrasts | None:
        """Contrasts for patching, of training questions only: by the change that gives most; None where there are none."""
        asked, found, reasons = self.train[: self.settings.n_locate], None, []
        for change in get_args(Change):
            try:
                made = contrasts(asked, change)
            except DataError as error:
                reasons.append(str(error))
                continue
            if found is None or len(made) > len(found):
                found = made
            if len(made) == len(asked):
                break
        if found is None:
            self.run_folder.job = self.settings.job_of(self.settings.steps(pairs=False))
            self.say(f"no contrast pairs, so no patching; heads are ranked by {RANKED_BY[-1]} ablation ({reasons[0]})")
        return found

    @property
    def maps(self) -> list[str]:
        """The methods by which heads are located."""
        if not (self.folder / SETTINGS).exists():
            _ = self.pairs  # of a new run they decide it
        return [name for name in MAPS if f"locate {name}" in self.run_folder.job.steps]

    @property
    def ranked_by(self) -> str:
        """The method whose top heads are fitted on."""
        return next(name for name in RANKED_BY if name in self.maps)

    @property
    def places(self) -> dict[str, str]:
        """The fits of this run, and where each is stored."""
        return {name: place for name, place in PLACES.items() if name != "retained" or RETAINED in self.run_folder.job.steps}

    def others(self, split: str) -> dict[str, Questions]:
        """Name -> questions of the sets whose answers should stay as they are."""
        names = self.settings.elsewhere if split == "test" else self.settings.retained
        return {label: self._questions(name, split, self.settings.n_retain) for label, name in labels(names).items()}

    def others_together(self, split: str) -> list[Question]:
        """Questions of all sets whose answers should stay as they are."""
        return [q for questions in self.others(split).values() for q in questions]

    def locate(self) -> dict[str, HeadMap]:
        """Head maps by every method, on training questions."""
        locator = cache(self._locator)  # one for all methods, and none where all maps are there
        return {name: self._map(name, locator) for name in self.maps}

    def _locator(self) -> Locator:
        return Locator(self.vlm, self.train[: self.settings.n_locate], self.pairs)

    def _map(self, name: str, locator: Callable[[], Locator] | None = None) -> HeadMap:
        locator = locator or self._locator
        path = self.folder / "head_maps" / f"{name}.safetensors"
        says = f"locating heads: {name.replace('_', ' ')}"
        return self.run_folder.run_step(f"locate {name}", lambda: locator().map(name).save(path), lambda: HeadMap.load(path), says)

    @property
    def top_heads(self) -> list[Head]:
        """The heads with the largest effect: of patching, or without pairs the largest of either sign of zero ablation."""
        if not self.run_folder.done(f"locate {self.ranked_by}"):
            raise FileError(f"{self.folder} has no head maps yet: run `scale-interp locate` on it first")
        return self._map(self.ranked_by).top(self.settings.top, "score" if self.ranked_by == "patch" else "abs")

    def fit(self) -> dict[str, ScAle]:
        """ScAle on all heads and MLPs (scale/), on the top heads (scale/top/), and with other answers retained."""
        found: dict[str, ScAle] = {}
        prompts = None
        if not self._fitted:
            _ = self.top_heads  # fails here where there are none, before anything is loaded
            prompts = prompts_to_fit(self.vlm, self.train, 2, FitSettings.of(self.settings.recipe))
        says = "fitting ScAle on all heads and MLPs, and on the top heads"
        for step, names, message in (
            ("fit", ("all", "top"), says),
            (RETAINED, ("retained",), "fitting ScAle with other answers retained"),
        ):
            if step not in self.run_folder.job.steps:
                continue
            make, load = partial(self._fit, names, prompts), partial(self._scales_in, names)
            found |= self.run_folder.run_step(step, make, load, message)
        return found

    def _fit(self, names: Sequence[str], prompts: PrefixStore | None) -> None:
        seed = self.settings.seed
        fits = [Fit("top", tuple(self.top_heads), mlp=False, seed=seed) if name == "top" else Fit(name, seed=seed) for name in names]
        retain = self.others_together("train") if "retained" in names else None
        scales = fit_scales(self.vlm, self.train, fits, retain=retain, prompts=prompts, recipe=self.settings.recipe)
        for fit, scale in zip(fits, scales, strict=True):
            scale.save_pretrained(self.folder / PLACES[fit.name])

    def _scales_in(self, names: Sequence[str]) -> dict[str, ScAle]:
        return {name: ScAle.from_pretrained(self.folder / PLACES[name]) for name in names}

    @property
    def _fitted(self) -> bool:
        return all(self.run_folder.done(step) for step in ("fit", RETAINED) if step in self.run_folder.job.steps)

    def _scales(self) -> dict[str, ScAle]:
        if not self._fitted:
            raise FileError(f"{self.folder} has no fitted scalars yet: run `scale-interp fit` on it first")
        return self.fit()

    def evaluate(self) -> dict[str, dict[str, Evaluation]]:
        """Task -> fit -> answers on the test split; fits: base, all, top, retained."""
        asked: dict[str, Questions] = {"asked": self.test} | self.others("test")
        if not self.run_folder.done("evaluate"):
            self._scales()
        path, says = self.folder / "scores.safetensors", "answering the test questions with and without the scalars"
        tensors, _ = self.run_folder.run_step("evaluate", lambda: self._answer(path, asked), lambda: read_tensors(path, SCORES), says)
        made = {task: answering(self.vlm, questions) for task, questions in asked.items()}
        return {
            t: {f: Evaluation(q, expect(path, tensors, f"{t}/{f}", 2), made[t]) for f in ("base", *self.places)} for t, q in asked.items()
        }

    def _answer(self, path: Path, asked: Mapping[str, Questions]) -> None:
        scales, tensors = self._scales(), {}
        for task, questions in asked.items():
            prompts = PrefixStore(self.vlm, questions)
            tensors[f"{task}/base"] = evaluate(self.vlm, questions, prompts=prompts).scores
            scaled = evaluate_many(self.vlm, questions, list(scales.values()), prompts=prompts)
            tensors |= {f"{task}/{name}": found.scores for name, found in zip(scales, scaled, strict=True)}
        write_tensors(path, SCORES, tensors, {})

    def falsify(self) -> dict[str, Falsification]:
        """The suite on all heads and MLPs, and on the top heads."""
        return {name: self._suite(name, heads) for name, heads in (("all", None), ("top", self.top_heads))}

    def _suite(self, name: str, heads: list[Head] | None) -> Falsification:
        path = self.folder / f"falsification_{name}.json"
        on = "all heads and MLPs" if heads is None else f"the top {len(heads)} heads"

        def make() -> None:
            others = self.others_together("test") or None
            falsify(self.vlm, self.train, self.test, heads, seeds=self.settings.seeds, others=others, recipe=self.settings.recipe).save(
                path
            )

        says = f"falsifying: every control beside ScAle on {on}"
        return self.run_folder.run_step(f"falsify {name}", make, lambda: Falsification.load(path), says)

    def rescaling(self) -> dict[str, Any]:
        """The study without training: layers and MLPs rescaled by a grid of factors, on training questions."""
        asked = self.train[: self.settings.n_locate]
        return {unit: rescale(self.vlm, asked, unit=unit, metric="accuracy") for unit in ("layer", "mlp")}

    def retention(self) -> list[dict[str, Any]]:
        """Change of accuracy on the other sets: one row per set and fit, and one per fit for all sets together."""
        evaluations, rows = self.evaluate(), []
        tasks = [task for task in evaluations if task != "asked"]
        for fit in self.places if tasks else ():
            pooled: list[np.ndarray] = []
            for task in tasks:
                new, base = evaluations[task][fit], evaluations[task]["base"]
                d = new.compare(base)
                rows.append({"task": task, "fit": fit, "base": base.accuracy, "change": d.mean, "low": d.low, "high": d.high})
                pooled.append((new.per_question - base.per_question).numpy())
            values = np.concatenate(pooled)
            low, high = statistics.bootstrap_interval(values, np.arange(len(values)))
            base_mean = float(np.mean([evaluations[t]["base"].accuracy for t in tasks]))
            rows.append(
                {"task": "all", "fit": fit, "base": base_mean, "change": float(values.mean()), "low": float(low), "high": float(high)}
            )
        return rows

    def summary(self) -> dict[str, Any]:
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
                "non_spatial_change": next((r["change"] for r in retention if r["task"] == "all" and r["fit"] == name), None),
            }
        low, high = base.interval()
        return {
            "settings": asdict(self.settings),
            "questions": {split: len(asked) for split, asked in self.asked.items()},
            "model": self.vlm.describe(),
            "versions": versions(),
            "base": {"accuracy": base.accuracy, "low": low, "high": high, "chance": base.chance, "majority": base.majority},
            "fits": fits,
            "notes": self.notes(),
            "ranked_by": self.ranked_by,
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

    def notes(self) -> list[str]:
        """What this run could not do or does not mean, in plain words."""
        out, asked, pairs = without_meaning(self.vlm.name), min(self.settings.n_locate, len(self.train)), self.pairs
        if pairs is None:
            out.append(
                "No contrast pair could be made of the training questions, so nothing was patched; the top heads are those whose zero "
                "ablation changes most."
            )
        elif len(pairs) < asked:
            out.append(f"Patching is on {len(pairs)} pairs ({pairs.source}); {asked - len(pairs)} of {asked} questions have no partner.")
        if not self.settings.elsewhere:
            out.append("No other set was asked (--others), so what the gain costs elsewhere is not known.")
        elif left := [name for name in self.settings.elsewhere if name not in self.settings.retained]:
            out.append(f"{', '.join(left)} has no training split: its answers were measured, but no fit was told to keep them.")
        return out

    def plan(self) -> Plan | None:
        """What the work will take, said and kept in plan.json; None where no step is left to do."""
        left = [step for step in self.run_folder.job.steps if not self.run_folder.done(step)]
        if not left:
            return None
        found = make_plan(self.vlm, self.train)
        found = replace(found, steps=expected(as_found(self.settings, self.train, self.test), found.seconds, left))
        for name, said in found.rows():
            self.run_folder.say(f"{name}: {said}")
        write_json(self.folder / PLAN, found.content())
        return found

    def everything(self, again: bool = False) -> dict[str, Any]:
        """Do the whole job, and write the summary and the report.

        Args:
            again: whether to write these two even if they are there.

        Returns:
            The summary.
        """
        self.say(f"loading {self.settings.model} and {self.settings.data}")
        with self.run_folder.working():
            require_packed(self.vlm, self.train, "auto", "the main job")
            self.plan()
            self.locate()
            self.fit()
            self.evaluate()
            self.falsify()
            summary = self.summary()
            if again or self.run_folder.computed:
                self.run_folder.forget("report")
            self.run_folder.run_step("report", lambda: self._report(summary), lambda: None, "writing the report")
        return summary

    def _report(self, summary: dict[str, Any]) -> None:
        write_json(self.folder / "summary.json", summary)
        self.run_folder.write_findings(run_headline(summary), sentences(summary))
        content = self.run_folder.job.content(self.vlm, self.asked)
        results = Results(
            settings=self.settings,
            content=content,
            asked=self.asked,
            ranked_by=self.ranked_by,
            notes=summary["notes"],
            maps=self.locate(),
            top_heads=self.top_heads,
            scales=self.fit(),
            evaluations=self.evaluate(),
            suites=self.falsify(),
            rescaling=self.rescaling(),
        )
        write_run_report(self.folder / "report.html", results, summary)


def labels(names: Sequence[str]) -> dict[str, str]:
    """A short name for each set: the task of scenes, the name of a file, otherwise the set's own name.

    >>> labels(["scenes/count", "jsonl:photos/a.jsonl", "pope/random"])
    {'count': 'scenes/count', 'a': 'jsonl:photos/a.jsonl', 'pope/random': 'pope/random'}
    """
    short = [Path(name.partition(":")[2]).stem if ":" in name else name.removeprefix("scenes/") for name in names]
    return {name if one in ("asked", "all", "") or short.count(one) > 1 else one: name for one, name in zip(short, names, strict=True)}


def _steps_in(folder: Path, settings: Settings) -> list[str]:
    """The steps of the run in a folder, which may have no pairs; of a new run all."""
    found = read_json(folder / SETTINGS).get("steps", ()) if (folder / SETTINGS).exists() else ()
    return settings.steps(pairs=not found or all(f"locate {name}" in found for name in OF_PAIRS))


def _numbers(found: Falsification) -> dict[str, Any]:
    kept = ("accuracy", "gain", "low", "high", "effect", "p_corrected", "mass", "others_change")
    return {
        "gain": found.gain,
        "text_share": found.text_share,
        "frozen_changed": found.frozen_changed,
        "frozen_bits_changed": found.frozen_bits_changed,
        "heads_matter": found.heads_matter,
        "format": found.format,
        "format_share": found.format_share,
        "base_split": dict(found.base_split),
        "not_beaten": found.not_beaten,
        "reasons": found.reasons,
        "controls": {row["control"]: {k: row[k] for k in kept if k in row} for row in found.rows},
    }
