"""How long the steps of a run take where no fit stops early, from the measured seconds of one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...adapters.scale.fit import FitSettings
from ...vlm.vlm import VLM
from ..plan import FITS, Plan, make_plan
from .settings import OF_PAIRS, RETAINED, Settings

GRADIENTS = ("attribution_patching", "gradient")
"""Maps that take one pass with gradients in place of an edit of every head."""
SUITES = 2
TWICE = 2
"""A pass without gradients, as on held-out questions, is counted as one with them: the least of what a fit may save."""


def plan_run(vlm: VLM, settings: Settings) -> Plan:
    """The plan of a run that does not exist yet."""
    train = settings.questions(settings.data, "train", settings.n_train, settings.seed, settings.elsewhere)
    found = make_plan(vlm, train)
    return replace(found, steps=longest(settings, found.seconds, settings.steps()))


def longest(settings: Settings, seconds: Mapping[str, float], steps: list[str]) -> dict[str, float]:
    """Step -> seconds: a fit that stops early, or prompts that are still there, take less.

    Args:
        settings: of the run.
        seconds: of one question, as a plan has them.
        steps: the steps of the run.

    >>> longest(Settings(n_train=100, n_locate=10), {"reading": 1.0, "heads": 2.0}, ["locate zero"])
    {'locate': 30.0, 'evaluate': 1200.0}
    """
    s, reading, others = settings, seconds["reading"], settings.n_retain * len(settings.elsewhere)
    retained = s.n_retain * len(s.retained) * (RETAINED in steps)
    maps = [step.removeprefix("locate ") for step in steps if step.startswith("locate ")]
    of_pairs = any(name in OF_PAIRS for name in maps)
    found = {"locate": s.n_locate * (reading * (1 + of_pairs) + seconds["heads"] * sum(name not in GRADIENTS for name in maps))}
    if "fit" in seconds:
        passes, row = 1 + TWICE * FitSettings().epochs, seconds["fit"] / FITS
        found["locate"] += s.n_locate * row * sum(name in GRADIENTS for name in maps)
        found["fit"] = s.n_train * (reading + passes * row * 2) + (retained + s.n_train) * (reading + passes * row) * (retained > 0)
        fits = 4 + 4 * s.seeds
        suite = s.n_train * (reading + passes * row * fits) + (3 * s.n_test + others) * (reading + row * (1 + 3 * fits))
        found["falsify"] = SUITES * suite
    found["evaluate"] = (s.n_test + others) * (reading + seconds.get("fit", 0.0))
    return found
