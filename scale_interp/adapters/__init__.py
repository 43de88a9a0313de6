"""Learned and tuned edits, and how they are attached to a plain model: ScAle, attention scaling, steering and emphasis."""

from .attention_scaling.adaptvis import AdaptVis as AdaptVis
from .attention_scaling.pasta import PASTA as PASTA
from .attention_scaling.scalingvis import AttentionScale as AttentionScale
from .baselines.last_token_bias import LastTokenBias as LastTokenBias
from .baselines.last_token_bias import fit_bias as fit_bias
from .baselines.peft_adapter import PeftAdapter as PeftAdapter
from .baselines.peft_adapter import fit_ia3 as fit_ia3
from .baselines.peft_adapter import fit_lora as fit_lora
from .scale.fit import Fit as Fit
from .scale.fit import FitSettings as FitSettings
from .scale.fit import fit_scale as fit_scale
from .scale.fit import fit_scales as fit_scales
from .scale.scale import ScAle as ScAle
from .scale.trajectory import Trajectory as Trajectory
from .steering.direction import AnswerDirection as AnswerDirection
from .steering.direction import answer_direction as answer_direction
from .steering.direction import answer_directions as answer_directions
from .steering.emphasis import Interventions as Interventions
from .steering.emphasis import emphasise as emphasise
from .steering.emphasis import function_matrix as function_matrix
from .steering.emphasis import intervene as intervene
from .steering.fit import fit_steering as fit_steering
from .steering.steering import Steering as Steering
