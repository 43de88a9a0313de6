"""Learned and tuned edits: ScAle, attention scaling, steering and emphasis, and how they are attached to a plain model."""

from .adaptvis import AdaptVis
from .attention_scale import AttentionScale
from .baselines import LastTokenBias, PeftAdapter, fit_bias, fit_ia3, fit_lora
from .direction import AnswerDirection, answer_direction, answer_directions
from .emphasis import Interventions, emphasise, function_matrix, intervene
from .fit import Fit, FitSettings, fit_scale, fit_scales
from .pasta import PASTA
from .scale import ScAle
from .steering import Steering, fit_steering

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
