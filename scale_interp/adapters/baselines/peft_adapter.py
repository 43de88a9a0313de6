"""LoRA and IA3 through peft, trained as ScAle is.

The training questions, batches, epochs, patience and the images held out for early stopping are those of fit_scale. Each method's learning
rate is the one of a few with the lowest held-out loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from ...attribution.ablation import provenance
from ...core.arguments import Seed, checked
from ...core.files import write_json
from ...core.notebook import NotebookView
from ...core.tensors import write_tensors
from ...data.question import Question
from ...errors import EditError, ModelError
from ...execution.batches import checkpoints_of
from ...interventions.engine import Path
from ...interventions.packed import run_packed
from ...interventions.prefix import Prefix, prompt_inputs, run_prompts
from ...interventions.vision import image_features, in_pixels_place, takes_features
from ...vlm.lock import changed
from ...vlm.vlm import VLM
from .training import FREE_RATES, Fitted, in_steps, prepare_training, train_parameters, try_rates

KEYS = ("k_proj", "v_proj")
"""The modules whose outputs IA3 rescales; it also rescales the input of FEED_FORWARD (Liu et al. 2022, section 3.3)."""
FEED_FORWARD = "down_proj"
LORA_RATES = (3e-3, 1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class PeftAdapter(NotebookView):
    """A LoRA or IA3 adapter of a VLM's text decoder.

    Args:
        name: the method's name.
        config: peft's configuration.
        weights: peft's weights, by name.
        settings: how it was fitted: the chosen learning rate, all that were tried, and the seconds.
        provenance: model, data and versions.
        history: one row per epoch of the fit.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=16)
    >>> adapter = si.fit_lora(vlm, train, rank=1, epochs=1, learning_rates=[1e-3])
    >>> with adapter.attached(vlm):
    ...     found = si.evaluate(vlm, train[:4])
    """

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()

    def __repr__(self) -> str:
        return f"<{self.name} of {self.n_parameters:,} parameters>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        return ({"setting": name, "value": str(value)} for name, value in self.settings.items() if name != "tried")

    @property
    def n_parameters(self) -> int:
        """How many numbers were trained."""
        return sum(weight.numel() for weight in self.weights.values())

    @contextmanager
    def attached(self, vlm: VLM) -> Iterator[None]:
        """The model with the adapter in place, for every analysis and for generate; its own modules are back at the end."""
        with _injected(vlm, self.config, self.weights):
            yield

    def save_pretrained(self, folder: str | FilePath) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which peft's own PeftModel.from_pretrained loads."""
        folder = FilePath(folder)
        weights = {f"base_model.model.{name}": weight for name, weight in self.weights.items()}
        write_tensors(folder / "adapter_model.safetensors", self.name, weights, {"settings": dict(self.settings)})
        write_json(folder / "adapter_config.json", self.config)


@checked
def fit_lora(
    vlm: VLM,
    train: Sequence[Question],
    rank: int = 4,
    *,
    learning_rates: Sequence[float] = LORA_RATES,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> PeftAdapter:
    """Fit LoRA on every linear layer of the text decoder (Hu et al. 2022, arXiv 2106.09685), with alpha = rank and no dropout.

    Args:
        vlm: the model, from `si.load`.
        train: training questions.
        rank: the rank of every update, at least 1.
        learning_rates: rates to try; the one with the lowest held-out loss is kept.
        seed: for the initial weights and the held-out images.
        path: "auto" or "packed"; there is no reference path.
        **settings: epochs, batch_size, validation, patience and scope of FitSettings.

    Returns:
        A PeftAdapter.

    Raises:
        EditError: for a model or path that is not packed, and for a setting out of its range.
        ModelError: without peft.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", split="train", n=16)
    >>> fit_lora(vlm, train, rank=1, epochs=1, learning_rates=[1e-3])
    <LoRA r=1 of 13,056 parameters>
    """
    if rank < 1:
        raise EditError(f"rank={rank}: give 1 or more")
    config = _peft().LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=_name_pattern(vlm, _linear_names(vlm)), bias="none"
    )
    return _fit_peft(vlm, train, f"LoRA r={rank}", config, learning_rates, seed, path, settings)


@checked
def fit_ia3(
    vlm: VLM,
    train: Sequence[Question],
    *,
    learning_rates: Sequence[float] = FREE_RATES,
    seed: Seed = 0,
    path: Path = "auto",
    **settings: Any,
) -> PeftAdapter:
    """Fit IA3 on the keys, values and feed-forward layers of the text decoder (Liu et al. 2022, arXiv 2205.05638, section 3.3).

    Args:
        vlm: the model, from `si.load`.
        train: training questions.
        learning_rates: rates to try; the one with the lowest held-out loss is kept.
        seed: for the held-out images.
        path: "auto" or "packed"; there is no reference path.
        **settings: epochs, batch_size, validation, patience and scope of FitSettings.

    Returns:
        A PeftAdapter.

    Raises:
        EditError: for a model or path that is not packed, and for a setting out of its range.
        ModelError: without peft, and for a decoder without k_proj, v_proj and down_proj.

    >>> import scale_interp as si
    >>> vlm, train = si.load("demo"), si.load_questions("scenes/relation", "train", n=16)
    >>> fit_ia3(vlm, train, epochs=1, learning_rates=[1e-2]).name
    'IA3'
    """
    names = _linear_names(vlm)
    ends = {*KEYS, FEED_FORWARD}
    if missing := ends - {name.rpartition(".")[2] for name in names}:
        raise ModelError(f"{vlm.name}: no {', '.join(sorted(missing))} in the text decoder's layers, which IA3 rescales; use fit_lora")
    chosen = [name for name in names if name.rpartition(".")[2] in ends]
    inner = [name for name in chosen if name.endswith(FEED_FORWARD)]
    config = _peft().IA3Config(target_modules=_name_pattern(vlm, chosen), feedforward_modules=_name_pattern(vlm, inner))
    return _fit_peft(vlm, train, "IA3", config, learning_rates, seed, path, settings)


def _fit_peft(
    vlm: VLM,
    train: Sequence[Question],
    name: str,
    config: Any,
    rates: Sequence[float],
    seed: int,
    path: Path,
    settings: Mapping[str, Any],
) -> PeftAdapter:
    train, options = prepare_training(vlm, train, path, settings)
    training = in_steps(vlm, train, options, seed, whole_prompt=True, keep=False)
    names: list[str] = []
    # Only the vision tower's features are kept; the weights change, so prompts are run again at every step.
    given: dict[tuple[int, int], dict[str, Any]] = {}
    read = lru_cache(None)(lambda i: replace(training.prompts[i], layers=()))
    checkpoints = checkpoints_of(vlm, name, train, options, seed, _plain_json(config.to_dict()))

    def scores(prefix: Prefix) -> Tensor:
        rows = prefix.rows.start, prefix.rows.stop
        if rows not in given:
            given[rows] = _inputs(vlm, prefix.questions)
        layers, _ = run_prompts(vlm, given[rows])
        return run_packed(vlm, replace(prefix, layers=layers), None)[0]

    def trial(rate: float) -> Fitted:
        with _injected(vlm, config.to_dict(), None, seed) as weights:
            names[:] = weights
            return train_parameters(list(weights.values()), scores, training, read, options, rate, checkpoints)

    best, info = try_rates(trial, rates, options, seed)
    made = provenance(vlm, train, path="packed")
    return PeftAdapter(name, _plain_json(config.to_dict()), dict(zip(names, best.state, strict=True)), info, made, best.history)


@torch.no_grad()
def _inputs(vlm: VLM, questions: Sequence[Question]) -> dict[str, Any]:
    """Encoded prompts; the features of the frozen vision tower replace the images where the model accepts them."""
    inputs = vlm.encode(questions)
    if not takes_features(vlm) or not any(q.pictures for q in questions):
        return prompt_inputs(vlm, inputs)
    return prompt_inputs(vlm, inputs, in_pixels_place(vlm, inputs, image_features(vlm, inputs)))


@contextmanager
def _injected(
    vlm: VLM, config: Mapping[str, Any], weights: Mapping[str, Tensor] | None, seed: int = 0
) -> Iterator[dict[str, nn.Parameter]]:
    """Put peft's modules in place of the model's own. Yields the adapter's parameters by name.

    The model's own modules are put back at the end, so that its answers are again the same bit for bit. Other threads' runs of the model
    are refused until then.
    """
    if not isinstance(vlm, VLM):
        raise ModelError(f"cannot attach to a {type(vlm).__name__}: give a VLM, as si.load returns it")
    with changed(vlm.decoder):
        yield from _with_modules_of_peft(vlm, config, weights, seed)


def _with_modules_of_peft(
    vlm: VLM, config: Mapping[str, Any], weights: Mapping[str, Tensor] | None, seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    peft, model = _peft(), vlm.hf_model
    if hasattr(model, "peft_config"):
        raise ModelError(f"{vlm.name} already has an adapter in place: leave its `with` block before attaching another")
    try:
        made = peft.get_peft_config(dict(config))
    except (KeyError, TypeError, ValueError) as error:
        raise EditError(f"the adapter's configuration is not one of peft's ({error!r}): give the one that it was saved with") from error
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    owners = [(parent, child, module) for parent in model.modules() for child, module in parent.named_children()]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(made, model)
        model.eval()
        own = {_peft_name(name): p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in own.values():
            parameter.data = parameter.data.float()
        if weights is not None:
            if {k: w.shape for k, w in weights.items()} != {k: p.shape for k, p in own.items()}:
                raise EditError(f"the adapter was trained on a model with other modules than {vlm.name}: attach it to that model")
            for name, weight in weights.items():
                own[name].data.copy_(weight)
        yield own
    finally:
        for parent, child, module in owners:
            if getattr(parent, child) is not module:
                setattr(parent, child, module)
        if hasattr(model, "peft_config"):
            del model.peft_config
        for name, p in model.named_parameters():
            p.requires_grad_(needed[name])


def _peft_name(name: str) -> str:
    """A parameter's name in a file of peft's, without the name of the adapter."""
    return name.removesuffix(".default") if name.endswith(".default") else name.replace(".default.", ".")


def _linear_names(vlm: VLM) -> list[str]:
    """Full names of the linear modules in the text decoder's layers, never of the vision tower."""
    inside = {id(m) for layer in vlm.all_layers for m in layer.modules() if isinstance(m, nn.Linear)}
    return [name for name, module in vlm.hf_model.named_modules() if id(module) in inside]


def _name_pattern(vlm: VLM, names: Sequence[str]) -> str:
    """A regular expression that matches these full names: a bare suffix would adapt the vision tower too."""
    layers = next(name for name, module in vlm.hf_model.named_modules() if module is vlm.all_layers)
    inner = sorted({name[len(layers) :].split(".", 2)[2] for name in names})
    return rf"{re.escape(layers)}\.\d+\.({'|'.join(map(re.escape, inner))})"


def _plain_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """A peft configuration in the types of JSON."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, set | frozenset):
            out[key] = sorted(value)
        elif value is None or isinstance(value, str | int | float | bool | list | tuple | dict):
            out[key] = getattr(value, "value", value)
    return out


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA and IA3 need peft: run pip install 'scale-interp[peft]'") from error
    return peft
