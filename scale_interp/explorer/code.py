"""The current edit as Python that anybody can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from ..adapters.scale.scale import ScAle
from ..data.load import load_questions
from ..data.question import Question
from ..errors import ScaleInterpError
from ..interventions.edit import Scope
from ..models import demo
from ..models.placement import default_device
from ..models.testbeds import circuits
from ..vlm.vlm import VLM

TINY = "tiny-random/"


class Explored(Protocol):
    """What the code is written from; an Explorer has it."""

    @property
    def vlm(self) -> VLM: ...
    @property
    def loading(self) -> str | None: ...
    @property
    def index(self) -> int: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def at(self) -> str: ...
    @property
    def factors(self) -> Mapping[tuple[int, int | None], float]: ...
    @property
    def blind(self) -> Sequence[tuple[int, int]]: ...
    @property
    def own(self) -> Question | None: ...
    @property
    def scale(self) -> ScAle | None: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def strength(self) -> float: ...


def code(explorer: Explored) -> str:
    """Write the current edit as Python: imports, model, question, edit and run.

    What this package cannot load by name is taken from names that the reader has. All text from outside is written with repr and all
    numbers exactly, so running the code reproduces the same bits.
    """
    own = explorer.own
    model, asked = _model(explorer), explorer.loading if own is None else ""
    missing = [name for name, line in (("vlm", model), ("questions", asked)) if line is None]
    lines = ["import torch", "", "import scale_interp as si", ""]
    if missing:
        lines.append(f"# {' and '.join(missing)}: as given to si.viz.explore")
    lines += [line for line in (model, asked) if line]
    lines += [f"question = questions[{explorer.index}]" if own is None else _question(own), "", *_edit(explorer), *_blind(explorer), ""]
    return "\n".join([*lines, "probabilities = si.run_edits(vlm, question, edit)[0, 0].softmax(-1)", ""])


def _model(explorer: Explored) -> str | None:
    vlm = explorer.vlm
    known = vlm.name in demo.NAMES or vlm.name.startswith((TINY, circuits.PREFIX)) or vlm.revision or Path(vlm.name).is_dir()
    if not known:
        return None
    given = {"revision": vlm.revision, "prompt": vlm.prompt}
    if vlm.dtype != torch.float32 or vlm.device.type != "cpu" or default_device().type != "cpu":
        given |= {"dtype": str(vlm.dtype).removeprefix("torch."), "device": str(vlm.device)}
    quantised = getattr(vlm.reopen, "keywords", {}).get("quantization_config")
    if quantised is not None and not isinstance(quantised, str):
        return None  # a configuration of the caller's own
    given |= {"quantization_config": quantised}
    return f"vlm = si.load({vlm.name!r}{''.join(f', {k}={v!r}' for k, v in given.items() if v is not None)})"


def loading(questions: Sequence[Question]) -> str | None:
    """Write the line that loads these questions and no others.

    Returns:
        The line, or None where no such line exists.
    """
    source, split, seed = (getattr(questions, name, None) for name in ("source", "split", "seed"))
    if not source or source == "given" or seed is None:
        return None
    given = {"split": split or None, "n": len(questions), "seed": seed}
    try:
        again = load_questions(source, **given)
    except ScaleInterpError:
        return None
    if [q.id for q in again] != [q.id for q in questions]:
        return None
    return f"questions = si.load_questions({source!r}{''.join(f', {k}={v!r}' for k, v in given.items() if v is not None)})"


def _question(own: Question) -> str:
    """A question of one's own; an image has to be named by the reader unless it came from a path."""
    asked = f"question = si.Question({own.text!r}, {own.choices!r}, {own.answer!r}"
    if not own.pictures:
        return f"{asked})"
    path = own.picture if isinstance(own.picture, str | Path) else None
    return f"{asked}, image={str(path)!r})" if path else f"{asked}, image='image.png')  # the image as it was uploaded"


def _blind(explorer: Explored) -> list[str]:
    if not explorer.blind:
        return []
    marked = [f"blind[0, {layer}, {head}] = True" for layer, head in explorer.blind]
    made = "blind = torch.zeros(1, vlm.n_layers, vlm.n_heads, dtype=torch.bool)"
    return [made, *marked, "edit = si.AttentionEdit(blind, beside=edit)  # the last token sees no image in these heads"]


def _edit(explorer: Explored) -> list[str]:
    scope = "" if explorer.scope == "last" else f", scope={explorer.scope!r}"
    scope += "" if explorer.at == "last" else f", at={explorer.at!r}"
    lines = ["scale = torch.ones(1, vlm.n_layers, vlm.n_heads)", "mlp_scale = torch.ones(1, vlm.n_layers)"]
    for (layer, head), factor in explorer.factors.items():
        lines.append(f"mlp_scale[0, {layer}] = {factor!r}" if head is None else f"scale[0, {layer}, {head}] = {factor!r}")
    lines.append(f"edit = si.Edit(scale=scale, mlp_scale=mlp_scale{scope})")
    fitted = explorer.scale
    if fitted is None:
        return lines
    if explorer.folder is not None:
        faded = f"si.ScAle.from_pretrained({explorer.folder!r}).edit({explorer.strength!r})"
        return [*lines, f"edit = {faded}.compose(edit)  # s(t) = 1 + t (s - 1)"]
    part = fitted.edit(explorer.strength)
    values = [f"{name}=torch.tensor({getattr(part, name).tolist()})" for name in ("scale", "mlp_scale")]
    return [*lines, f"faded = si.Edit({', '.join(values)}{scope})", "edit = faded.compose(edit)"]
