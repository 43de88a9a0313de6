"""Figures (plotly), question cards and the HTML report; every figure function takes `dark`.

>>> import scale_interp as si
>>> m = si.attribute(si.load("demo"), si.load_questions("scenes/relation", n=4))
>>> figure = si.viz.head_heatmap(m, dark=True)
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..core.names import public_names
from ..data.question_card import question_card as question_card
from .attention_map import attention_over_picture as attention_over_picture
from .auroc import auroc_heatmap as auroc_heatmap
from .bars import accuracy_by as accuracy_by
from .bars import controls as controls
from .bars import retention as retention
from .calibration import calibration as calibration
from .coefficients import coefficients_vs_attribution as coefficients_vs_attribution
from .comparison import comparison as comparison
from .comparison import head_marks as head_marks
from .comparison import head_overlap as head_overlap
from .curves import epoch_accuracy as epoch_accuracy
from .curves import rescaling as rescaling
from .curves import training_curve as training_curve
from .emphasis import emphasis_curves as emphasis_curves
from .flow import flow_curves as flow_curves
from .functional import function_heatmap as function_heatmap
from .functional import layer_histogram as layer_histogram
from .functional import removal_curves as removal_curves
from .heatmap import head_heatmap as head_heatmap
from .heatmap import head_heatmaps as head_heatmaps
from .heatmap import scalar_heatmap as scalar_heatmap
from .image_map import image_maps as image_maps
from .lens import lens_curves as lens_curves
from .lens import lens_over_image as lens_over_image
from .localisation import faithfulness_curves as faithfulness_curves
from .localisation import localisation as localisation
from .positions import position_heatmap as position_heatmap
from .positions import position_heatmaps as position_heatmaps
from .positions import token_groups as token_groups
from .report import Section as Section
from .report import write_report as write_report
from .runs import gains_of_runs as gains_of_runs
from .runs import maps_of_runs as maps_of_runs
from .save import save_figure as save_figure
from .speed import speed as speed
from .tradeoff import baselines as baselines
from .tradeoff import retention_curve as retention_curve
from .tradeoff import sparsity_path as sparsity_path
from .transfer import transfer_heatmap as transfer_heatmap
from .weight_curves import scaling_curves as scaling_curves
from .weight_curves import tuning_grid as tuning_grid

__all__ = [*public_names(__file__), "explore"]
explore: Callable[..., Any]
"""The explorer, a layer above, under the name that users know it by: found by name when first used, as nothing here needs it."""

if not TYPE_CHECKING:  # a checker that sees __getattr__ takes every name for known

    def __getattr__(name: str) -> Any:
        if name == "explore":
            return import_module("scale_interp.explorer").explore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
