"""Every saved result and adapter: missing, damaged, foreign, of another version, of parts that do not fit together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import scale_interp as si
from scale_interp.bench.result import read_benchmarks
from scale_interp.errors import FileError
from scale_interp.evaluation.comparison.tuning import Chosen
from scale_interp.evaluation.falsification.calibration import Calibration
from scale_interp.evaluation.reproduction.adaptvis import AdaptVisRun
from scale_interp.evaluation.reproduction.scale import ScaleRun
from tests.bad_input.kind import Kind

LOADED: list[str] = []
"""What a pickle that was read would have written here."""


class Boom:
    """A pickle that does something when it is read."""

    def __reduce__(self) -> Any:
        return (LOADED.append, ("a pickle was read",))


@dataclass(frozen=True)
class Saved:
    """A kind of result: its file (inside the folder of an adapter), its loader, its tensors' axes and its metadata's wrong values."""

    name: str
    load: Callable[[Path], Any]
    tensors: Mapping[str, int]
    meta: Mapping[str, Any]
    file: str = ""

    def path(self, room: Any) -> Path:
        """A copy of the room's saved result, to be spoiled."""
        place = room.copied(self.name)
        return place / self.file if self.file else place

    def opened(self, path: Path) -> Any:
        return self.load(path.parent if self.file else path)


TENSORS = (
    Saved("HeadMap", si.HeadMap.load, {"per_question": 3, "groups": 1}, {"method": 3, "unit": None, "provenance": "x"}),
    Saved("ProbeMap", si.ProbeMap.load, {"per_question": 3, "groups": 1, "p": 2}, {"classes": "left", "chance": "x", "provenance": 3}),
    Saved(
        "PositionMap",
        si.PositionMap.load,
        {"per_question": 3, "groups": 1},
        {"positions": "ab", "relations": [1], "component": 3, "provenance": "x"},
    ),
    Saved(
        "FlowMap",
        si.FlowMap.load,
        {"effects": 3, "groups": 1},
        {"method": 3, "unit": None, "relations": [1], "by": "token", "window": "2", "provenance": "x"},
    ),
    Saved(
        "ImageMap",
        si.ImageMap.load,
        {"effects": 2, "tokens": 2, "inside": 3, "lengths": 1, "groups": 1},
        {"method": 3, "unit": None, "ids": "abc", "provenance": "x"},
    ),
    Saved(
        "LogitLens",
        si.LogitLens.load,
        {"logits": 4, "log_total": 3, "top": 4, "top_probs": 4, "tokens": 2, "lengths": 1, "answers": 1, "given": 1, "groups": 1},
        {"ids": "abc", "relations": [1], "words": [1], "at": 3, "provenance": "x"},
    ),
    Saved(
        "ObjectAttention",
        si.ObjectAttention.load,
        {"image_mass": 3, "box_mass": 3, "area": 1, "groups": 1},
        {"ids": "abc", "relations": [1], "skipped": [], "provenance": None},
    ),
    Saved(
        "FunctionalHeads",
        si.FunctionalHeads.load,
        {"importance": 3, "codes": 1, "null": 4, "null_accuracy": 1},
        {"functions": "abcdefg", "pictures": [1], "provenance": []},
    ),
    Saved(
        "RemovalCurve",
        si.RemovalCurve.load,
        {"per_question": 3, "random": 2, "base": 1, "groups": 1},
        {"ks": ["1"], "metric": 1, "provenance": 2},
    ),
    Saved("Faithfulness", si.Faithfulness.load, {"keep": 2, "remove": 2, "groups": 1}, {"ks": 4, "metric": [], "provenance": 2}),
    Saved("ScalingCurve", si.ScalingCurve.load, {"per_question": 2, "base": 1, "groups": 1}, {"weights": ["1"], "provenance": None}),
    Saved("Localisation", si.Localisation.load, {"scores": 4}, {"methods": "ab", "known": [[1]], "provenance": 1}),
    Saved(
        "Interventions",
        si.Interventions.load,
        {"per_question": 2, "base": 1, "codes": 1, "groups": 1},
        {"names": "a", "functions": [1], "metric": None, "provenance": 1},
    ),
    Saved("AnswerDirection", si.AnswerDirection.load, {"unit": 3, "sigma": 2}, {"pictures": "abc", "provenance": 0}),
    Saved(
        "Comparison",
        si.Comparison.load,
        {"right": 2, "groups": 1, "others": 2},
        {"methods": "ab", "others_tasks": 1, "tuned": [], "heads": 1, "left_out": [], "provenance": 1},
    ),
    Saved(
        "Chosen", Chosen.load, {"scale": 3}, {"name": 1, "setting": [], "parameters": "x", "grid": 1, "heads": 1, "about": 1, "method": 1}
    ),
    Saved(
        "ScaleRun",
        ScaleRun.load,
        {"right": 3, "loss": 2, "letters": 2, "trained": 1},
        {"chosen_epochs": "a", "history": 1, "provenance": 1},
    ),
    Saved(
        "AdaptVisRun",
        AdaptVisRun.load,
        {"right": 2, "strict": 2, "confidence": 1, "tuning": 1},
        {"weights": "a", "texts": 1, "provenance": 1},
    ),
    Saved("Trajectory", si.Trajectory.load, {"scalars": 3, "mlp_scalars": 2}, {"scope": 3}),
    Saved("ScAle's scalars", si.ScAle.from_pretrained, {"scalars": 2, "mlp_scalars": 1}, {}, "scale.safetensors"),
    Saved("Steering's directions", si.Steering.from_pretrained, {"directions": 3, "sigma": 2}, {}, "steering.safetensors"),
)
SAYS = {"known": "pairs", "heads": "heads|not iterable", "method": "method|not iterable"}
"""What is said of metadata whose name is not in the message."""
WHOLE = ("groups", "codes", "verdicts", "trained", "tuning", "top", "tokens", "lengths", "inside", "answers", "given")


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in sorted(file.keys())}, json.loads(file.metadata()["scale_interp"])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Another program's hand: the file changed and its checksum taken out, so that only the content speaks."""
    tensors, header = parts(path)
    header.pop("sha256")
    change(tensors, header)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"scale_interp": json.dumps(header)})


def flip(path: Path, at: float) -> None:
    """One bit of the byte at a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def with_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Boom()))


def with_torch_pickle(path: Path) -> None:
    torch.save({"per_question": Boom()}, path)


def without(path: Path) -> None:
    path.unlink()


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, path)


def of_other_kind(path: Path) -> None:
    rewrite(path, lambda tensors, header: header.update(kind="Shard"))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def with_header(text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors, _ = parts(path)
        save_file(tensors, path, {"scale_interp": text})

    return change


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "the file is missing": (without, "no file"),
    "the file is a folder": (to_folder, "no file"),
    "the file is empty": (lambda path: path.write_bytes(b""), "damaged or not a safetensors file"),
    "the file is cut in half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
    "the last byte is missing": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
    "bytes are added at the end": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "damaged"),
    "a bit of the last tensor has changed": (lambda path: flip(path, 1.0), "checksum|not finite|damaged"),
    "the header claims 2^62 bytes": (huge_header, "damaged"),
    "a pickle stands in its place": (with_pickle, "not a safetensors file"),
    "a pickle of torch.save stands in its place": (with_torch_pickle, "not a safetensors file"),
    "a file of numpy stands in its place": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"),
        "not a safetensors file",
    ),
    "a foreign safetensors file": (foreign, "a foreign file"),
    "a result of another kind": (of_other_kind, "but 'Shard'"),
    "of a newer format": (lambda path: rewrite(path, lambda tensors, header: header.update(format=99)), "format 99"),
    "of no format": (lambda path: rewrite(path, lambda tensors, header: header.pop("format")), "format None"),
    "the metadata are no JSON": (with_header("{"), "metadata cannot be read"),
    "the metadata are a list": (with_header("[1]"), "metadata cannot be read"),
    "the metadata have a key twice": (with_header('{"kind": "HeadMap", "kind": "HeadMap"}'), "twice"),
    "the metadata are nested without end": (with_header("[" * 100_000), "nested too deep"),
    "the metadata were changed": (lambda path: reworded(path), "checksum"),
}


def reworded(path: Path) -> None:
    tensors, header = parts(path)
    header["meta"]["more"] = 1
    save_file(tensors, path, {"scale_interp": json.dumps(header)})


def spoiled(saved: Saved) -> Iterable[Kind]:
    for mistake, (change, says) in SPOILED.items():
        yield Kind(f"{saved.name}", mistake, FileError, says, _after(saved, change))
    for name, ndim in saved.tensors.items():
        yield Kind(saved.name, f"tensor {name} is missing", FileError, f"no tensor '{name}'|fit|is missing", _tensor(saved, name, None))
        yield Kind(saved.name, f"tensor {name} has another axis", FileError, f"{ndim + 1} axes", _tensor(saved, name, lambda t: t[None]))
        yield Kind(saved.name, f"tensor {name} holds truth values", FileError, "must hold", _tensor(saved, name, lambda t: t > 0))
        if name in WHOLE:
            yield Kind(saved.name, f"tensor {name} holds fractions", FileError, "whole numbers", _tensor(saved, name, lambda t: t + 0.5))
            yield Kind(saved.name, f"tensor {name} is negative", FileError, "from 0", _tensor(saved, name, lambda t: t - 10))
        else:
            yield Kind(saved.name, f"tensor {name} holds whole numbers", FileError, "floating", _tensor(saved, name, lambda t: t.long()))
            yield Kind(saved.name, f"tensor {name} holds nan", FileError, "not finite", _tensor(saved, name, lambda t: t * float("nan")))
        if saved.name != "Chosen":
            other = f"tensor {name} is of other length"
            yield Kind(saved.name, other, FileError, "fit|for|not of|list|MLPs|other scalars", _tensor(saved, name, lambda t: t[:-1]))
    for name, value in saved.meta.items():
        yield Kind(saved.name, f"{name} is missing from the metadata", FileError, name, _meta(saved, name, None))
        yield Kind(saved.name, f"{name} is of a wrong type", FileError, SAYS.get(name, name), _meta(saved, name, lambda _, v=value: v))


def _after(saved: Saved, change: Callable[[Path], Any]) -> Callable[[Any], Any]:
    def call(room: Any) -> Any:
        path = saved.path(room)
        change(path)
        return saved.opened(path)

    return call


def _tensor(saved: Saved, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Any], Any]:
    def write(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        old = tensors.pop(name)
        if change is not None:
            tensors[name] = change(old)
        elif not tensors:
            tensors["other"] = old

    return _after(saved, lambda path: rewrite(path, write))


def _meta(saved: Saved, name: str, change: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def write(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        old = header["meta"].pop(name)
        if change is not None:
            header["meta"][name] = change(old)

    return _after(saved, lambda path: rewrite(path, write))


JSONS = (
    Saved(
        "Falsification",
        si.Falsification.load,
        {},
        {"rows": {}, "base_accuracy": "x", "frozen_changed": 0.5, "registered": 1, "left_out": []},
    ),
    Saved("Tuned", si.Tuned.load, {}, {"method": "PASTA", "settings": [], "grid": [1], "base": None, "passes": "x", "groups": "abc"}),
    Saved("HeadSets", si.HeadSets.load, {}, {"n_layers": "6", "n_heads": 0, "sets": {}, "left_out": []}),
    *(
        Saved(kind.__name__, kind.load, {}, {"kind": "HeadMap", "rows": [1], "about": [], "provenance": 3})
        for kind in (si.Transfer, si.Baselines, si.RetentionCurve, si.SparsityPath)
    ),
    Saved("Calibration", Calibration.load, {}, {"method": "x", "rows": [{}], "about": 1}),
    Saved(
        "ScAle's configuration",
        si.ScAle.from_pretrained,
        {},
        {
            "method": "x",
            "n_parameters": -1,
            "scope": "first",
            "settings": 1,
            "heads": [[9, 9]],
            "provenance": 1,
            "history": 1,
            "largest": [],
        },
        "scale_config.json",
    ),
    Saved(
        "Steering's configuration",
        si.Steering.from_pretrained,
        {},
        {"method": "x", "settings": {"alpha": "2"}, "provenance": []},
        "steering_config.json",
    ),
    Saved(
        "AttentionScale", si.AttentionScale.from_pretrained, {}, {"method": "PASTA", "settings": {"weight": -1}}, "attention_config.json"
    ),
    Saved("AdaptVis", si.AdaptVis.from_pretrained, {}, {"method": "PASTA", "settings": {"wieght": 1}}, "attention_config.json"),
    Saved("PASTA", si.PASTA.from_pretrained, {}, {"method": "AdaptVis", "settings": {"heads": "all"}}, "attention_config.json"),
    Saved("benchmarks", read_benchmarks, {}, {"benchmarks": [1]}),
)
OPTIONAL = ("largest", "about", "provenance")
"""Entries that may be missing somewhere: what an older version did not write."""


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A file's JSON changed, and its checksum taken out."""

    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        content.pop("sha256", None)
        change(content)
        path.write_text(json.dumps(content))

    return write


def one_digit(path: Path) -> None:
    """A digit of a number in the file, changed; the file is JSON as before."""
    text = path.read_text()
    end = text.index('"sha256"')
    at = max(i for i, c in enumerate(text[:end]) if c.isdigit())
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


SPOILED_JSON: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the file is missing": (without, "no file"),
    "the file is a folder": (to_folder, "damaged or no JSON"),
    "the file is empty": (lambda path: path.write_bytes(b""), "no JSON"),
    "the file is cut in half": (lambda path: path.write_text(path.read_text()[: path.stat().st_size // 2]), "no JSON"),
    "it holds a list": (lambda path: path.write_text("[]"), "but a list"),
    "it holds a number": (lambda path: path.write_text("1e999"), "but a float"),
    "it holds an empty object": (lambda path: path.write_text("{}"), "no |not a saved|lack|missing|describes"),
    "it is not UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "no JSON"),
    "it holds null bytes": (lambda path: path.write_bytes(b"\x00" * 100), "no JSON"),
    "it is nested without end": (lambda path: path.write_text("[" * 100_000), "nested too deep"),
    "a key is there twice": (lambda path: path.write_text('{"a": 1, "a": 2}'), "twice"),
    "a number is NaN": (lambda path: path.write_text('{"a": NaN}'), "NaN is not a number"),
    "a pickle stands in its place": (with_pickle, "no JSON"),
    "a digit has changed": (one_digit, "checksum"),
}


def spoiled_json(saved: Saved) -> Iterable[Kind]:
    for mistake, (change, says) in SPOILED_JSON.items():
        if not (saved.name == "benchmarks" and mistake == "a digit has changed"):
            yield Kind(saved.name, mistake, FileError, says, _after(saved, change))
    for name, value in saved.meta.items():
        if name not in OPTIONAL:
            yield Kind(saved.name, f"{name} is missing", FileError, "", _after(saved, edited(lambda c, name=name: c.pop(name))))
        yield Kind(saved.name, f"{name} is wrong", FileError, "", _after(saved, edited(lambda c, name=name, v=value: c.update({name: v}))))


def _tensors_json(target: str, mistake: str, says: str, change: Callable[[dict[str, Any]], Any]) -> Kind:
    saved = next(s for s in JSONS if s.name == target)
    return Kind(target, mistake, FileError, says, _after(saved, edited(change)))


def _other_weights(room: Any) -> Any:
    """The configuration of one ScAle beside the scalars of another."""
    path = room.copied("ScAle's configuration")
    si.ScAle(torch.full((6, 8), 1.5), torch.ones(6), 2, ((2, 1), (3, 0))).save_pretrained(room.folder / "other")
    (room.folder / "other/scale.safetensors").rename(path / "scale.safetensors")
    return si.ScAle.from_pretrained(path)


def _out_of_bounds(room: Any) -> Any:
    made = si.ScAle(torch.full((6, 8), 3.5), torch.ones(6), 2, ((2, 1), (3, 0)), settings={"bound": "tanh", "radius": 1.0})
    made.save_pretrained(room.folder / "wide")
    return si.ScAle.from_pretrained(room.folder / "wide")


def _named(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _tensors_apart(target: str, mistake: str, says: str, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Kind:
    saved = next(s for s in TENSORS if s.name == target)
    return Kind(target, mistake, FileError, says, _tensor(saved, name, change))


SINGLE = (
    _tensors_apart("FlowMap", "heads where layers are cut", "8 columns, by layer", "effects", lambda t: t.expand(-1, -1, 8)),
    _tensors_apart("ImageMap", "more patches than there are", "lengths and patches do not fit", "lengths", lambda t: t + 1),
    _tensors_apart("LogitLens", "a word beyond its words", "words or tokens do not fit", "top", lambda t: t + 7),
    _tensors_apart("LogitLens", "a prompt of no tokens", "words or tokens do not fit", "lengths", lambda t: t * 0),
    _tensors_apart("LogitLens", "more tokens than there are", "words or tokens do not fit", "lengths", lambda t: t + 1),
    _tensors_apart("LogitLens", "an answer beyond its choices", "answers and choices do not fit", "answers", lambda t: t + 4),
    _tensors_apart("LogitLens", "a given choice beyond its choices", "answers and choices do not fit", "given", lambda t: t + 4),
    Kind("ScAle's configuration", "beside another's scalars", FileError, "describes other scalars", _other_weights),
    Kind("ScAle's scalars", "a scalar is out of its fit's bounds", FileError, "outside 0 to 2", _out_of_bounds),
    _tensors_json("ScAle's configuration", "a head is there twice", "twice", lambda c: c.update(heads=[[2, 1], [2, 1]])),
    _tensors_json("ScAle's configuration", "a head is a fraction", "no list of .layer", lambda c: c.update(heads=[[2.5, 1]])),
    _tensors_json("ScAle's configuration", "an unknown bound", "'bound'", lambda c: c["settings"].update(bound="relu")),
    _tensors_json("ScAle's configuration", "a bound without a radius", "radius", lambda c: c["settings"].update(radius="1")),
    _tensors_json("ScAle's configuration", "tokens that are a number", "'at' is '3', not a text", lambda c: c.update(at=3)),
    _tensors_json("ScAle's configuration", "fitted at other tokens", "fitted at 'image'", lambda c: c["settings"].update(at="image")),
    _tensors_json("ScAle's configuration", "more parameters than scalars", "n_parameters 999", lambda c: c.update(n_parameters=999)),
    _tensors_json("Steering's configuration", "a head is out of range", "out of range", lambda c: c["settings"].update(heads=[[9, 9]])),
    _tensors_json("Steering's configuration", "a steered head is left out", "not those of", lambda c: c["settings"].update(heads=[])),
    _tensors_json("Steering's configuration", "alpha is infinite", "Infinity is not a number", lambda c: c["settings"].update(alpha=1e999)),
    _tensors_json("Steering's configuration", "an unknown scope", "scope", lambda c: c["settings"].update(scope="all")),
    _tensors_json("AttentionScale", "layers are texts", "layers", lambda c: c["settings"].update(layers="all")),
    _tensors_json("AttentionScale", "an unknown setting", "wieght", lambda c: c["settings"].update(wieght=2.0)),
    _tensors_json("AttentionScale", "an unknown row", "rows", lambda c: c["settings"].update(rows="first")),
    _tensors_json("AdaptVis", "a threshold below 0", "threshold", lambda c: c["settings"].update(threshold=-1)),
    _tensors_json("AdaptVis", "a weight is a text", "weight_low", lambda c: c["settings"].update(weight_low="x")),
    _tensors_json("PASTA", "alpha is 0", "alpha", lambda c: c["settings"].update(alpha=0)),
    _tensors_json("PASTA", "a head is no pair", "pair", lambda c: c["settings"].update(heads=[[1]])),
    _tensors_json("Falsification", "no row of ScAle", "fit together", lambda c: c.update(rows=c["rows"][1:])),
    _tensors_json("Falsification", "a row has no gain", "fit together", lambda c: c["rows"][1].pop("gain")),
    _tensors_json("Falsification", "a gain is a text", "fit together", lambda c: c["rows"][0].update(gain="high")),
    _tensors_json("Falsification", "no rows", "fit together", lambda c: c.update(rows=[])),
    _tensors_json("Tuned", "an empty grid", "fit together", lambda c: c.update(grid=[])),
    _tensors_json("Tuned", "an accuracy is a text", "fit together", lambda c: c["grid"][0].update(accuracy="x")),
    _tensors_json("HeadSets", "a head is out of range", "out of range", lambda c: c["sets"][0].update(heads=[[6, 0]])),
    _tensors_json("HeadSets", "a set is there twice", "fit together", lambda c: c["sets"].append(c["sets"][0])),
    _tensors_json("Transfer", "no rows", "no rows", lambda c: c.update(rows=[])),
    _tensors_json("Transfer", "the last row lacks a column", "lack", lambda c: c["rows"][-1].clear()),
    _tensors_json("Calibration", "a p-value is a text", "'p'", lambda c: c["rows"][0].update(p="small")),
    _tensors_json("Calibration", "an unknown kind of suite", "'kind'", lambda c: c["rows"][0].update(kind="other")),
)
KINDS = [
    *(kind for saved in TENSORS for kind in spoiled(saved)),
    *(kind for saved in JSONS for kind in spoiled_json(saved)),
    *SINGLE,
]
