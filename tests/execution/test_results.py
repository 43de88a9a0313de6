"""Every class that can be saved, by one matrix: it survives the disk, and a file that is damaged, changed or another's is refused."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scale_interp
import scale_interp as si
from scale_interp.core.result import Adapter, Result, declared
from scale_interp.errors import FileError
from tests.bad_input.results import parts, rewrite
from tests.bad_input.saved import INSTANCES

MEND = re.compile("; (save|write) it again|; give the |: save it again|; give a whole saved folder")
FLIPPED = 24
"""Bytes of each file that are changed, one by one."""


def every_class() -> list[type]:
    """All dataclasses that inherit from Result or Adapter, from every module of the layers that hold results."""
    for layer in ("attribution", "adapters", "evaluation"):
        package = import_module(f"scale_interp.{layer}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    found, todo = [], [Result, Adapter]
    while todo:
        own = [kind for kind in todo.pop().__subclasses__() if kind.__module__.startswith(scale_interp.__name__)]
        found += own
        todo += own
    return [kind for kind in found if is_dataclass(kind)]


def saved(kind: type, place: Path) -> Any:
    """One result of the class, saved."""
    made = INSTANCES[kind]()
    made.save(place) if isinstance(made, Result) else made.save_pretrained(place)
    return made


def loaded(kind: type, place: Path) -> Any:
    return kind.load(place) if issubclass(kind, Result) else kind.from_pretrained(place)


def names(kind: type) -> list[str]:
    """The files of a result of the class; the empty name is the place itself."""
    return [""] if issubclass(kind, Result) else [name for name in (kind.config_file, kind.weights_file) if name]


def is_json(kind: type, name: str) -> bool:
    return name.endswith(".json") if name else kind.file == "json"


def refused(kind: type, place: Path, name: str = "", says: str = "") -> None:
    with pytest.raises(FileError) as caught:
        loaded(kind, place)
    said = str(caught.value)
    assert str(place / name if name else place) in said and re.search(says, said), said
    assert MEND.search(said), said


KINDS = sorted(every_class(), key=lambda kind: kind.__name__)
FILES = [pytest.param(kind, name, id=f"{kind.__name__}-{name or 'file'}") for kind in KINDS for name in names(kind)]
of_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
of_file = pytest.mark.parametrize(("kind", "name"), FILES)


def test_every_class_has_an_instance():
    assert set(KINDS) == set(INSTANCES) and len(KINDS) >= 25
    assert len({(kind.kind_key, kind.kind) for kind in KINDS}) == len(KINDS)


def test_every_tensor_and_axis_is_declared():
    for kind in KINDS:
        held = {name for name, value in vars(INSTANCES[kind]()).items() if isinstance(value, torch.Tensor)}
        assert held & {field.name for field in fields(kind)} == declared(kind).axes.keys(), kind


@of_kind
def test_it_survives_the_disk(kind, tmp_path):
    made = saved(kind, tmp_path / "a" / "deep" / "place")
    again = loaded(kind, tmp_path / "a" / "deep" / "place")
    assert type(again) is kind and repr(again) == repr(made) and again._repr_html_() == made._repr_html_()
    for field in fields(kind):
        mine, theirs = getattr(made, field.name), getattr(again, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, field.name
        else:
            assert type(mine) is type(theirs) and (repr(mine) == repr(theirs) if is_dataclass(mine) else mine == theirs), field.name
    again.save(tmp_path / "b") if isinstance(again, Result) else again.save_pretrained(tmp_path / "b")
    for name in names(kind):
        assert (tmp_path / "a/deep/place" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@of_file
@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "half", "last byte"])
def test_a_file_that_is_not_whole_is_refused(kind, name, damage, tmp_path):
    place = tmp_path / "result"
    saved(kind, place)
    path = place / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        # JSON ends with a line's end that it does not need.
        path.write_bytes(content[: {"empty": 0, "half": len(content) // 2, "last byte": len(content.rstrip()) - 1}[damage]])
    refused(kind, place, name, "no file|damaged")


@of_file
def test_a_changed_byte_is_refused_wherever_it_is(kind, name, tmp_path):
    place = tmp_path / "result"
    saved(kind, place)
    content = (place / name).read_bytes()
    last = len(content.rstrip()) - 1 if is_json(kind, name) else len(content) - 1
    for step in range(FLIPPED):
        changed = bytearray(content)
        changed[step * last // (FLIPPED - 1)] ^= 1
        (place / name).write_bytes(changed)
        refused(kind, place, name)


def json_changes(content: dict[str, Any], kind: type, needed: set[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """A JSON file's content with one thing changed each, and what is said of it."""
    yield content | {kind.kind_key: "Other"}, "'Other'"
    yield {k: v for k, v in content.items() if k != kind.kind_key}, "foreign file"
    yield content | {"format": 99}, "format 99"
    yield content | {"more": 1}, "unknown 'more'"
    for name in needed:
        yield {k: v for k, v in content.items() if k != name}, name
        yield content | {name: {"an": "object"} if isinstance(content[name], list | str | int | float) else "a text"}, ""


@of_file
def test_json_that_was_changed_is_refused(kind, name, tmp_path):
    if not is_json(kind, name):
        return header_that_was_changed_is_refused(kind, name, tmp_path / "result")
    place = tmp_path / "result"
    made = saved(kind, place)
    whole = json.loads((place / name).read_text())
    (place / name).write_text(json.dumps(whole | {kind.kind_key: f"{whole[kind.kind_key]}!"}))
    refused(kind, place, name, "checksum")
    whole.pop("sha256")
    (place / name).write_text(json.dumps(whole))
    assert repr(loaded(kind, place)) == repr(made)
    needed = whole.keys() - made._summary().keys() - {kind.kind_key, "format"}
    for content, says in json_changes(whole, kind, needed):
        (place / name).write_text(json.dumps(content))
        refused(kind, place, name, says)


def header_that_was_changed_is_refused(kind: type, name: str, place: Path) -> None:
    """The same of the JSON in a safetensors file's header; an adapter's metadata are in its configuration."""
    saved(kind, place)
    tensors, whole = parts(place / name)

    def write(**changed: Any) -> None:
        save_file(tensors, place / name, {"scale_interp": json.dumps(whole | changed)})

    for changed in ({"meta": whole["meta"] | {"more": 1}}, {"more": 1}):
        write(**changed)
        refused(kind, place, name, "checksum|unknown 'more'")
    whole.pop("sha256")
    write()
    loaded(kind, place)
    for changed, says in (({"kind": "Other"}, "'Other'"), ({"format": 99}, "format 99"), ({"format": None}, "format None")):
        write(**changed)
        refused(kind, place, name, says)
    if issubclass(kind, Adapter):
        return
    write(meta=whole["meta"] | {"more": 1})
    refused(kind, place, name, "unknown 'more'")
    for key, value in whole["meta"].items():
        write(meta={k: v for k, v in whole["meta"].items() if k != key})
        refused(kind, place, name, key)
        write(meta=whole["meta"] | {key: {"an": "object"} if isinstance(value, list | str | int | float) else "a text"})
        refused(kind, place, name, key)


def tensor_changes(kind: type, name: str) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], str]]:
    """What may be wrong with a tensor, and what is said of it."""
    found = declared(kind)
    yield lambda t: t[None], f"{len(found.axes[name]) + 1} axes"
    yield lambda t: t > 0, "must hold"
    if found.whole[name]:
        yield lambda t: t + 0.5, "whole numbers"
        yield lambda t: t - 10, "from 0"
    else:
        yield lambda t: t.long(), "floating"
        for value in ("nan", "inf", "-inf"):
            yield partial(first, value=float(value)), "not finite"
    every = [axis for axes in found.axes.values() for axis in axes] + list(found.along.values())
    for number, axis in enumerate(found.axes[name]):
        if axis.isdigit() or every.count(axis) > 1:
            yield partial(shorter, axis=number), f"fit together.*{name}|fit together.*{axis}"
        if axis not in kind.may_be_empty:
            yield partial(emptied, axis=number), "fit together"


def first(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


def shorter(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.narrow(axis, 0, tensor.shape[axis] - 1)


def emptied(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.narrow(axis, 0, 0)


TENSORS = [pytest.param(kind, tensor, id=f"{kind.__name__}-{tensor}") for kind in KINDS for tensor in declared(kind).axes]


@pytest.mark.parametrize(("kind", "tensor"), TENSORS)
def test_a_tensor_that_was_changed_is_refused(kind, tensor, tmp_path):
    place, name = tmp_path / "result", names(kind)[-1]
    saved(kind, place)
    content = (place / name).read_bytes()

    def changed(change: Callable[[dict[str, torch.Tensor]], Any], says: str) -> None:
        (place / name).write_bytes(content)
        rewrite(place / name, lambda tensors, header: change(tensors))
        refused(kind, place, says=says)

    changed(lambda tensors: tensors.update(other=torch.ones(2)), "unknown tensor 'other'")
    changed(lambda tensors: tensors.update(other=tensors.pop(tensor)), f"no tensor '{tensor}'")
    for change, says in tensor_changes(kind, tensor):
        changed(lambda tensors, change=change: tensors.update({tensor: change(tensors[tensor])}), says)


def test_numbers_of_numpy_are_numbers(vlm, tmp_path):
    """They come out of a data frame or a loop over np.arange, and are found out when a result is saved, after all the work."""
    four, integer = si.load_questions("scenes/relation", "train", n=np.int64(4)), np.int64
    with si.resumable(tmp_path / "kept"):
        for i, found in enumerate(
            (
                si.ablate(vlm, four, "resample", seed=integer(3), at=[integer(-1)]),
                si.amplify(vlm, four, np.float32(1.5)),
                si.integrated_gradients(vlm, four, steps=integer(2)),
                si.logit_lens(vlm, four, top=integer(2)),
            )
        ):
            found.save(tmp_path / f"{i}.safetensors")
    assert torch.equal(si.HeadMap.load(tmp_path / "1.safetensors").per_question, si.amplify(vlm, four, 1.5).per_question)
    assert si.rescale(vlm, four, np.array([0.0, 2.0]), unit="layer").change.shape == (2, 6)
    given = {"epochs": integer(1), "batch_size": np.int32(2), "micro_batch": integer(1), "seed": integer(1), "lr": np.float64(0.1)}
    scale = si.fit_scale(vlm, four, layers=torch.tensor([2, 3]), **given)
    scale.save_pretrained(tmp_path / "scale")
    again = si.fit_scale(vlm, four, layers=[2, 3], epochs=1, batch_size=2, seed=1, lr=0.1)
    assert torch.allclose(si.ScAle.from_pretrained(tmp_path / "scale").scalars, again.scalars, atol=1e-6)
