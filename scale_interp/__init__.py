"""Which attention heads of a vision-language model carry spatial reasoning, can scalars repair it, and is that gain real?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "adapters": ("Fit", "FitSettings", "ScAle", "fit_scale", "fit_scales"),
    "attribution": ("HeadMap", "Rescaling", "ablate", "amplify", "attribute", "logit_attribution", "patch", "path_patch", "rescale"),
    "data": ("Contrast", "Contrasts", "Question", "Questions", "contrasts", "load_questions"),
    "evaluation": (
        "Evaluation",
        "Falsification",
        "TextEvaluation",
        "answer_texts",
        "benchmark",
        "evaluate",
        "evaluate_many",
        "evaluate_text",
        "falsify",
        "score_answers",
        "score_text",
    ),
    "interventions": ("Activations", "Edit", "HeadSweep", "capture", "run_edits"),
    "models": ("VLM", "load"),
}
_ROOM = {name: room for room, names in _WHERE.items() for name in names}

__all__ = [*sorted(_ROOM), "errors", "viz"]

if TYPE_CHECKING:
    from . import errors as errors
    from . import viz as viz
    from .adapters import Fit, FitSettings, ScAle, fit_scale, fit_scales
    from .attribution import HeadMap, Rescaling, ablate, amplify, attribute, logit_attribution, patch, path_patch, rescale
    from .data import Contrast, Contrasts, Question, Questions, contrasts, load_questions
    from .evaluation import (
        Evaluation,
        Falsification,
        TextEvaluation,
        answer_texts,
        benchmark,
        evaluate,
        evaluate_many,
        evaluate_text,
        falsify,
        score_answers,
        score_text,
    )
    from .interventions import Activations, Edit, HeadSweep, capture, run_edits
    from .models import VLM, load


def __getattr__(name: str) -> Any:
    # Imported when first used: `scale-interp --help` and a bare import do not wait for torch and transformers.
    if name in ("errors", "viz"):
        return import_module(f".{name}", __name__)
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOM[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
