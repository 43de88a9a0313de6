"""Where the time of one step of a fit goes: the model's own layers, its attention to the prompts, and everything that is not the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..adapters.scale.fit import Fit, FitSettings, Learner, prompts_to_fit
from ..core.progress import track
from ..data.question import Question
from ..interventions.edit import Edit
from ..interventions.packed import run_edited
from ..interventions.prefix import Prefix
from ..interventions.rows import attention
from ..interventions.storage import now
from ..vlm.vlm import VLM

BLIND = "scale_interp_blind"


@dataclass(frozen=True)
class FitStep:
    """Seconds of one step of the optimiser on prompts that were read, forward and backward, at its fastest in all repeats.

    Attributes:
        modules: the decoder's layers over the rows of all fits, heads scaled, with no attention.
        attention: what the rows' attention to their prompts and to themselves adds.
        edits: what the engine adds around it: which rows join where, the edits, reading the choices.
        rest: what the step adds: losses, the optimiser, checks.
        rows: rows that run side by side: one for each fit, of each question.
        layers: how many layers the decoder has.
    """

    modules: float
    attention: float
    edits: float
    rest: float
    rows: int
    layers: int

    @property
    def whole(self) -> float:
        """Seconds of the step."""
        return self.modules + self.attention + self.edits + self.rest

    @property
    def beside_the_model(self) -> float:
        """The share of the step that is not the model: neither its layers nor its attention."""
        return (self.edits + self.rest) / self.whole

    def of_layers(self, fewer: FitStep, layers: int) -> FitStep:
        """The same step with more layers, as this one and one with fewer layers let expect: each part grows by as much for each layer."""
        apart = self.layers - fewer.layers

        def grown(name: str) -> float:
            found, before = getattr(self, name), getattr(fewer, name)
            return found + (found - before) / apart * (layers - self.layers)

        return FitStep(**{name: grown(name) for name in ("modules", "attention", "edits", "rest")}, rows=self.rows, layers=layers)

    def content(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return asdict(self) | {"whole": self.whole, "beside_the_model": self.beside_the_model}


def measure_fit_step(vlm: VLM, questions: Sequence[Question], fits: int = 1, repeats: int = 5) -> FitStep:
    """Time a step of all heads and MLPs on these questions in one batch, and what is in it, in alternation.

    Args:
        vlm: the model.
        questions: the questions of the step.
        fits: how many fits run side by side.
        repeats: how often each part is timed.
    """
    n, options = len(questions), FitSettings(batch_size=len(questions), micro_batch=len(questions))
    prompts = prompts_to_fit(vlm, questions, fits, options)
    learner = Learner(vlm, questions, [Fit(f"seed {seed}", seed=seed) for seed in range(fits)], options, None)
    prefix = prompts[0]
    scale = torch.ones(fits, vlm.n_layers, vlm.n_heads, requires_grad=True)
    mlp_scale = torch.ones(fits, vlm.n_layers, requires_grad=True)

    def packed() -> None:
        scores = run_edited(vlm, prefix, Edit(scale=scale, mlp_scale=mlp_scale))
        torch.autograd.grad(scores.clamp(min=-1e4).sum(), [scale, mlp_scale])

    parts: dict[str, Callable[[], object]] = {
        "modules": lambda: _pass(vlm, prefix, fits, BLIND),
        "attention": lambda: _pass(vlm, prefix, fits),
        "edits": packed,
        "rest": lambda: learner.step(prompts, prompts.steps[0], None, 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in track(range(repeats + 1), "timing a step", repeats + 1):
        for name, run in parts.items():
            took = seconds_of(vlm, run)
            if repeat:  # the first one loads kernels
                seconds[name].append(took)
    # Each part is a small difference of two times, and whatever else the machine does only adds to one of them.
    fastest = [min(times) for times in seconds.values()]
    added = [b - a for a, b in zip([0.0, *fastest], fastest, strict=False)]
    return FitStep(**dict(zip(parts, added, strict=True)), rows=n * fits, layers=len(vlm.all_layers))


def _pass(vlm: VLM, prefix: Prefix, fits: int, kind: str | None = None) -> None:
    """The decoder alone, forward and backward, over the rows of all fits, with a factor on every head from the first layer on."""
    factors = [torch.ones(vlm.n_heads * block.head_dim, device=vlm.device, requires_grad=True) for block in vlm.head_layers]
    with attention(vlm.decoder, *([] if kind is None else [kind])), _scaled(vlm, factors):
        hidden = vlm.decoder(**prefix.inputs(fits, apart=vlm.parts.keys_as_cached)).last_hidden_state
    torch.autograd.grad(hidden.float().sum(), factors)


@contextmanager
def _scaled(vlm: VLM, factors: Sequence[Tensor]) -> Iterator[None]:
    def scaled(factor: Tensor) -> Callable[[nn.Module, tuple], tuple]:
        return lambda module, args: (args[0] * factor.to(args[0].dtype), *args[1:])

    with ExitStack() as stack:
        for block, factor in zip(vlm.head_layers, factors, strict=True):
            stack.callback(block.output().register_forward_pre_hook(scaled(factor)).remove)
        yield


def _blind(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
    """In place of attention: every row's own query, which costs nothing and hands the gradient on."""
    return query.transpose(1, 2)[..., : value.shape[-1]].contiguous(), None


AttentionInterface.register(BLIND, _blind)


def seconds_of(vlm: VLM, work: Callable[[], object]) -> float:
    """How long the model's device takes for some work."""
    started = now(vlm.device)
    work()
    return now(vlm.device) - started
