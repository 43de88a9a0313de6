"""Figures (plotly), question cards and the HTML report; every figure function takes `dark`."""

from .bars import accuracy_by, controls, retention
from .coefficients import coefficients_vs_attribution
from .curves import rescaling, training_curve
from .heatmap import head_heatmap, head_heatmaps, scalar_heatmap
from .page import question_card
from .report import Section, write_report
from .speed import speed

__all__ = [
    "Section",
    "accuracy_by",
    "coefficients_vs_attribution",
    "controls",
    "head_heatmap",
    "head_heatmaps",
    "question_card",
    "rescaling",
    "retention",
    "scalar_heatmap",
    "speed",
    "training_curve",
    "write_report",
]
