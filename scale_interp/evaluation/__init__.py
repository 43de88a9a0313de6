"""Accuracy, the public sets' own metrics, and whether a gain is what it is taken for."""

from .accuracy import Evaluation, evaluate, evaluate_many, relative_gain, require_disjoint
from .answers import TextEvaluation, answer_texts, evaluate_text, score_answers
from .benchmarks import benchmark, pope_metrics, spatialeval_accuracy, vsr_accuracy, whatsup_accuracy
from .falsification import Falsification, falsify
from .scoring import score_text
from .text_only import TextCorrection, fit_text_correction

__all__ = [
    "Evaluation",
    "Falsification",
    "TextCorrection",
    "TextEvaluation",
    "answer_texts",
    "benchmark",
    "evaluate",
    "evaluate_many",
    "evaluate_text",
    "falsify",
    "fit_text_correction",
    "pope_metrics",
    "relative_gain",
    "require_disjoint",
    "score_answers",
    "score_text",
    "spatialeval_accuracy",
    "vsr_accuracy",
    "whatsup_accuracy",
]
