"""Figures (plotly), question cards and the HTML report; every figure function takes `dark`.

>>> import scale_interp as si
>>> m = si.attribute(si.load("demo"), si.load_questions("scenes/relation", n=4))
>>> figure = si.viz.head_heatmap(m, dark=True)
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..data.question_card import question_card
from .attention_map import attention_over_picture
from .auroc import auroc_heatmap
from .bars import accuracy_by, controls, retention
from .calibration import calibration
from .coefficients import coefficients_vs_attribution
from .comparison import comparison, head_marks, head_overlap
from .curves import rescaling, training_curve
from .emphasis import emphasis_curves
from .functional import function_heatmap, layer_histogram, removal_curves
from .heatmap import head_heatmap, head_heatmaps, scalar_heatmap
from .localisation import faithfulness_curves, localisation
from .report import Section, write_report
from .runs import gains_of_runs, maps_of_runs
from .save import save_figure
from .speed import speed
from .tradeoff import baselines, retention_curve, sparsity_path
from .transfer import transfer_heatmap
from .weight_curves import scaling_curves, tuning_grid

__all__ = [
    "Section",
    "accuracy_by",
    "attention_over_picture",
    "auroc_heatmap",
    "baselines",
    "calibration",
    "coefficients_vs_attribution",
    "comparison",
    "controls",
    "emphasis_curves",
    "explore",
    "faithfulness_curves",
    "function_heatmap",
    "gains_of_runs",
    "head_heatmap",
    "head_heatmaps",
    "head_marks",
    "head_overlap",
    "layer_histogram",
    "localisation",
    "maps_of_runs",
    "question_card",
    "removal_curves",
    "rescaling",
    "retention",
    "retention_curve",
    "save_figure",
    "scalar_heatmap",
    "scaling_curves",
    "sparsity_path",
    "speed",
    "training_curve",
    "transfer_heatmap",
    "tuning_grid",
    "write_report",
]

explore: Callable[..., Any]
"""The explorer, a layer above, under the name that users know it by: found by name when first used, as nothing here needs it."""

if not TYPE_CHECKING:  # a checker that sees __getattr__ takes every name for known

    def __getattr__(name: str) -> Any:
        if name == "explore":
            return import_module("scale_interp.explorer").explore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
