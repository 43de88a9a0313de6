"""How long the steps of a run take, from the measured seconds of one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...attribution.rescaling import FACTORS
from ...data.question import Question
from ...vlm.vlm import VLM
from ..plan import FITS, Plan, make_plan
from .settings import OF_PAIRS, RETAINED, Settings

GRADIENTS = ("attribution_patching", "gradient")
"""Maps that take one pass with gradients in place of an edit of every head."""
SUITES = 2
EPOCHS = 20
"""Epochs that fits take before they stop: 9 to 29 on the embedded models, up to 41 on random weights."""
FORWARD = 0.4
"""Of a pass with gradients, the share that one without takes."""
BESIDE = {"locate": 0.3, "fit": 0.4, "evaluate": 0.1, "falsify": 3.0, "report": 1.5}
"""Seconds that statistics, files and figures of a step take whatever the model, on one core."""
CONTROLS = 5
"""Readings of the test questions in a suite: as they are, without their image, with another one, and under two other prompts."""


def plan_run(vlm: VLM, settings: Settings) -> Plan:
    """The plan of a run that does not exist yet."""
    train, test = (
        settings.questions(settings.data, split, n, settings.seed, settings.elsewhere)
        for split, n in (("train", settings.n_train), ("test", settings.n_test))
    )
    found = make_plan(vlm, train)
    return replace(found, steps=expected(as_found(settings, train, test), found.seconds, settings.steps()))


def as_found(settings: Settings, train: Sequence[Question], test: Sequence[Question]) -> Settings:
    """The settings with as many questions as there are, where a set has fewer than were asked for."""
    return replace(settings, n_train=len(train), n_locate=min(settings.n_locate, len(train)), n_test=len(test))


def expected(settings: Settings, seconds: Mapping[str, float], steps: list[str]) -> dict[str, float]:
    """Step -> seconds, where fits stop after the usual number of epochs.

    Args:
        settings: of the run.
        seconds: of one question, as a plan has them.
        steps: the steps that are to be done.

    >>> expected(Settings(n_train=100, n_locate=10), {"reading": 1.0, "heads": 2.0}, ["locate zero", "evaluate"])
    {'locate': 30.3, 'evaluate': 1200.1}
    """
    s, reading, others = settings, seconds["reading"], settings.n_retain * len(settings.elsewhere)
    retained = s.n_retain * len(s.retained) * (RETAINED in steps)
    maps = [step.removeprefix("locate ") for step in steps if step.startswith("locate ")]
    of_pairs = any(name in OF_PAIRS for name in maps)

    def rows(n: int) -> float:
        """A pass of n fits with gradients."""
        return max(0.0, seconds["fit"] + (n - FITS) * seconds["row"]) if "fit" in seconds else 0.0

    found = {"locate": s.n_locate * (reading * (1 + of_pairs) + seconds["heads"] * sum(name not in GRADIENTS for name in maps))}
    if "fit" in seconds:
        epochs = EPOCHS * (1 + FORWARD)
        found["locate"] += s.n_locate * rows(1) * sum(name in GRADIENTS for name in maps)
        found["fit"] = s.n_train * (reading + epochs * rows(2))
        if retained:
            # Every step takes a batch of what is retained beside its own, so that each epoch goes through as many of them.
            found["fit"] += s.n_train * (reading + 2 * epochs * rows(1)) + retained * (reading + EPOCHS * FORWARD * rows(1))
        fits = 4 * s.seeds
        suite = s.n_train * (reading + epochs * rows(fits) + rows(1))
        suite += s.n_test * (CONTROLS * reading + FORWARD * rows(fits + 2 * s.seeds + 1)) + others * (reading + FORWARD * rows(fits))
        found["falsify"] = SUITES * suite
        found["report"] = s.n_locate * 2 * (reading + len(FACTORS) * FORWARD * rows(FITS))
    found["evaluate"] = (s.n_test + others) * (reading + FORWARD * rows(FITS))
    wanted = {step.partition(" ")[0] for step in steps}
    return {step: BESIDE[step] + model for step, model in found.items() if step in wanted}
