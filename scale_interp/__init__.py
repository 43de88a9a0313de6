"""Which attention heads of a vision-language model carry spatial reasoning, can scalars repair it, and is that gain real?"""

import sys
from importlib import import_module
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

_WHERE = {
    "adapters": (
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
    ),
    "attribution": (
        "FunctionalHeads",
        "HeadMap",
        "LocalizationHeads",
        "ObjectAttention",
        "PatchGrid",
        "ProbeMap",
        "RemovalCurve",
        "Rescaling",
        "ablate",
        "amplify",
        "answer_activations",
        "attribute",
        "box_tokens",
        "elbow",
        "functional_heads",
        "integrated_gradients",
        "localization_heads",
        "logit_attribution",
        "object_attention",
        "patch",
        "patch_grid",
        "path_patch",
        "probe",
        "read_attention",
        "remove_heads_curve",
        "rescale",
    ),
    "data": (
        "CogQuestion",
        "CogQuestions",
        "Contrast",
        "Contrasts",
        "Question",
        "Questions",
        "Sub",
        "cog_questions",
        "contrasts",
        "load_questions",
        "read_cog",
        "subquestions",
    ),
    "evaluation": (
        "Baselines",
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
        "TextEvaluation",
        "Transfer",
        "Tuned",
        "answer_texts",
        "benchmark",
        "compare",
        "compare_baselines",
        "evaluate",
        "evaluate_many",
        "evaluate_scaled",
        "evaluate_text",
        "faithfulness",
        "falsify",
        "localise",
        "recover",
        "retention_curve",
        "scaling_curve",
        "score_answers",
        "score_text",
        "sparsity_path",
        "transfer",
        "transfer_table",
        "tune_adaptvis",
        "tune_scaling",
    ),
    "interventions": ("Activations", "Edit", "HeadSweep", "capture", "cluster", "run_edits"),
    "execution": ("resumable",),
    "models": ("VLM", "load"),
}
_ROOM = {name: room for room, names in _WHERE.items() for name in names}

__all__ = [*sorted(_ROOM), "errors", "testbeds", "viz"]

if TYPE_CHECKING:  # `as`: without it a strict checker takes no name from here
    from . import errors as errors
    from . import viz as viz
    from .adapters import PASTA as PASTA
    from .adapters import AdaptVis as AdaptVis
    from .adapters import AnswerDirection as AnswerDirection
    from .adapters import AttentionScale as AttentionScale
    from .adapters import Fit as Fit
    from .adapters import FitSettings as FitSettings
    from .adapters import Interventions as Interventions
    from .adapters import LastTokenBias as LastTokenBias
    from .adapters import PeftAdapter as PeftAdapter
    from .adapters import ScAle as ScAle
    from .adapters import Steering as Steering
    from .adapters import answer_direction as answer_direction
    from .adapters import answer_directions as answer_directions
    from .adapters import emphasise as emphasise
    from .adapters import fit_bias as fit_bias
    from .adapters import fit_ia3 as fit_ia3
    from .adapters import fit_lora as fit_lora
    from .adapters import fit_scale as fit_scale
    from .adapters import fit_scales as fit_scales
    from .adapters import fit_steering as fit_steering
    from .adapters import function_matrix as function_matrix
    from .adapters import intervene as intervene
    from .attribution import FunctionalHeads as FunctionalHeads
    from .attribution import HeadMap as HeadMap
    from .attribution import LocalizationHeads as LocalizationHeads
    from .attribution import ObjectAttention as ObjectAttention
    from .attribution import PatchGrid as PatchGrid
    from .attribution import ProbeMap as ProbeMap
    from .attribution import RemovalCurve as RemovalCurve
    from .attribution import Rescaling as Rescaling
    from .attribution import ablate as ablate
    from .attribution import amplify as amplify
    from .attribution import answer_activations as answer_activations
    from .attribution import attribute as attribute
    from .attribution import box_tokens as box_tokens
    from .attribution import elbow as elbow
    from .attribution import functional_heads as functional_heads
    from .attribution import integrated_gradients as integrated_gradients
    from .attribution import localization_heads as localization_heads
    from .attribution import logit_attribution as logit_attribution
    from .attribution import object_attention as object_attention
    from .attribution import patch as patch
    from .attribution import patch_grid as patch_grid
    from .attribution import path_patch as path_patch
    from .attribution import probe as probe
    from .attribution import read_attention as read_attention
    from .attribution import remove_heads_curve as remove_heads_curve
    from .attribution import rescale as rescale
    from .data import CogQuestion as CogQuestion
    from .data import CogQuestions as CogQuestions
    from .data import Contrast as Contrast
    from .data import Contrasts as Contrasts
    from .data import Question as Question
    from .data import Questions as Questions
    from .data import Sub as Sub
    from .data import cog_questions as cog_questions
    from .data import contrasts as contrasts
    from .data import load_questions as load_questions
    from .data import read_cog as read_cog
    from .data import subquestions as subquestions
    from .evaluation import Baselines as Baselines
    from .evaluation import Comparison as Comparison
    from .evaluation import Evaluation as Evaluation
    from .evaluation import Faithfulness as Faithfulness
    from .evaluation import Falsification as Falsification
    from .evaluation import HeadSets as HeadSets
    from .evaluation import Localisation as Localisation
    from .evaluation import Recovery as Recovery
    from .evaluation import RetentionCurve as RetentionCurve
    from .evaluation import ScalingCurve as ScalingCurve
    from .evaluation import SparsityPath as SparsityPath
    from .evaluation import TextEvaluation as TextEvaluation
    from .evaluation import Transfer as Transfer
    from .evaluation import Tuned as Tuned
    from .evaluation import answer_texts as answer_texts
    from .evaluation import benchmark as benchmark
    from .evaluation import compare as compare
    from .evaluation import compare_baselines as compare_baselines
    from .evaluation import evaluate as evaluate
    from .evaluation import evaluate_many as evaluate_many
    from .evaluation import evaluate_scaled as evaluate_scaled
    from .evaluation import evaluate_text as evaluate_text
    from .evaluation import faithfulness as faithfulness
    from .evaluation import falsify as falsify
    from .evaluation import localise as localise
    from .evaluation import recover as recover
    from .evaluation import retention_curve as retention_curve
    from .evaluation import scaling_curve as scaling_curve
    from .evaluation import score_answers as score_answers
    from .evaluation import score_text as score_text
    from .evaluation import sparsity_path as sparsity_path
    from .evaluation import transfer as transfer
    from .evaluation import transfer_table as transfer_table
    from .evaluation import tune_adaptvis as tune_adaptvis
    from .evaluation import tune_scaling as tune_scaling
    from .execution import resumable as resumable
    from .interventions import Activations as Activations
    from .interventions import Edit as Edit
    from .interventions import HeadSweep as HeadSweep
    from .interventions import cluster as cluster
    from .interventions import run_edits as run_edits
    from .interventions.capture import capture as capture
    from .models import VLM as VLM
    from .models import testbeds as testbeds
    from .models.load import load as load


class _Name:
    """A public name, opened when first used: `scale-interp --help` and a bare import do not wait for torch and transformers.

    A module's `__getattr__` would do for that, but jedi calls it for every name that it lists, and a first Tab would open them all.
    """

    def __init__(self, name: str):
        self.name = name

    def __get__(self, package: ModuleType | None, kind: type) -> Any:
        if package is None:
            return self
        found = vars(package)[self.name] = _opened(self.name)
        return found


def _opened(name: str) -> Any:
    if name in ("errors", "viz"):
        return import_module(f".{name}", __name__)
    if name == "testbeds":
        return import_module(".models.testbeds", __name__)
    found = getattr(import_module(f".{_ROOM[name]}", __name__), name)
    return import_module(".core.arguments", __name__).checked(found) if isinstance(found, FunctionType) else found


sys.modules[__name__].__class__ = type("_Package", (ModuleType,), {name: _Name(name) for name in __all__})


def __dir__() -> list[str]:
    return sorted(__all__)
