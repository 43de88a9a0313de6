"""Accuracy, the public sets' own metrics, and whether a gain is what it is taken for."""

from ..data.items import require_disjoint
from .accuracy import Evaluation, evaluate, evaluate_many, relative_gain
from .answers import TextEvaluation, answer_texts, evaluate_text, score_answers
from .attention_scaling.answers import Tuned, evaluate_scaled, transfer_table, tune_adaptvis, tune_scaling
from .attention_scaling.weight_curve import ScalingCurve, scaling_curve
from .baselines import Baselines, compare_baselines
from .benchmarks import benchmark, pope_metrics, spatialeval_accuracy, vsr_accuracy, whatsup_accuracy
from .comparison.comparison import Comparison, compare
from .comparison.head_sets import HeadSets
from .falsification.calibration import Calibration, Suites, calibrate
from .falsification.suite import Falsification, falsify
from .falsification.text_only import TextCorrection, fit_text_correction
from .ground_truth.faithfulness import Faithfulness, faithfulness
from .ground_truth.localisation import Localisation, localise
from .ground_truth.recovery import Recovery, recover
from .retention import RetentionCurve, SparsityPath, retention_curve, sparsity_path
from .scoring import score_text
from .transfer_matrix import Transfer, transfer

__all__ = [
    "Baselines",
    "Calibration",
    "Comparison",
    "Evaluation",
    "Faithfulness",
    "Falsification",
    "HeadSets",
    "Localisation",
    "Recovery",
    "RetentionCurve",
    "ScalingCurve",
    "SparsityPath",
    "Suites",
    "TextCorrection",
    "TextEvaluation",
    "Transfer",
    "Tuned",
    "answer_texts",
    "benchmark",
    "calibrate",
    "compare",
    "compare_baselines",
    "evaluate",
    "evaluate_many",
    "evaluate_scaled",
    "evaluate_text",
    "faithfulness",
    "falsify",
    "fit_text_correction",
    "localise",
    "pope_metrics",
    "recover",
    "relative_gain",
    "require_disjoint",
    "retention_curve",
    "scaling_curve",
    "score_answers",
    "score_text",
    "sparsity_path",
    "spatialeval_accuracy",
    "transfer",
    "transfer_table",
    "tune_adaptvis",
    "tune_scaling",
    "vsr_accuracy",
    "whatsup_accuracy",
]
