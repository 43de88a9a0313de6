"""Accuracy, and whether a gain is what it is taken for."""

from .accuracy import Evaluation, evaluate, evaluate_many, relative_gain, require_disjoint
from .falsification import Falsification, falsify
from .text_only import TextCorrection, fit_text_correction

__all__ = [
    "Evaluation",
    "Falsification",
    "TextCorrection",
    "evaluate",
    "evaluate_many",
    "falsify",
    "fit_text_correction",
    "relative_gain",
    "require_disjoint",
]
