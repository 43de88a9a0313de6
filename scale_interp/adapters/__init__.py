"""Learned and tuned edits: ScAle, attention scaling, steering and emphasis, and how they are attached to a plain model."""

from .attention_scaling.adaptvis import AdaptVis
from .attention_scaling.pasta import PASTA
from .attention_scaling.scalingvis import AttentionScale
from .baselines.baselines import LastTokenBias, PeftAdapter, fit_bias, fit_ia3, fit_lora
from .scale.fit import Fit, FitSettings, fit_scale, fit_scales
from .scale.scale import ScAle
from .steering.direction import AnswerDirection, answer_direction, answer_directions
from .steering.emphasis import Interventions, emphasise, function_matrix, intervene
from .steering.steering import Steering, fit_steering

__all__ = [
    "PASTA",
    "AdaptVis",
    "AnswerDirection",
    "AttentionScale",
    "Fit",
    "FitSettings",
    "Interventions",
    "LastTokenBias",
    "PeftAdapter",
    "ScAle",
    "Steering",
    "answer_direction",
    "answer_directions",
    "emphasise",
    "fit_bias",
    "fit_ia3",
    "fit_lora",
    "fit_scale",
    "fit_scales",
    "fit_steering",
    "function_matrix",
    "intervene",
]
