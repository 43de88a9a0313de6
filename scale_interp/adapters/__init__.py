"""Learned edits: ScAle, how it is fitted and how it is attached to a plain model."""

from .fit import Fit, FitSettings, fit_scale, fit_scales
from .scale import ScAle

__all__ = ["Fit", "FitSettings", "ScAle", "fit_scale", "fit_scales"]
