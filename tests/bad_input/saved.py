"""One small result of every kind that can be saved, made of drawn numbers: nothing is run for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import scale_interp as si
from scale_interp.attribution.removal import KINDS
from scale_interp.evaluation.comparison.tuning import Chosen
from scale_interp.evaluation.falsification.calibration import NULL, Calibration

ABOUT = {"model": "demo", "data": "scenes/relation", "n": 6}
FIVE, SIX = torch.arange(5), torch.arange(6)


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def object_attention(path: Path) -> None:
    masses = {name: drawn(5, 6, 8) for name in ("image_mass", "box_mass", "spatial_entropy")}
    each = {name: drawn(5) for name in ("area", "image_share", "correct", "confidence")}
    ids = tuple(map(str, range(5)))
    si.ObjectAttention(**masses, **each, groups=FIVE, ids=ids, relations=("left",) * 5, skipped={}, provenance=ABOUT).save(path)


def functional_heads(path: Path) -> None:
    codes = SIX % 2
    si.FunctionalHeads(("a", "b"), drawn(6, 6, 8), codes, codes, SIX, drawn(3, 2, 6, 8), drawn(3), ("p",), ABOUT).save(path)


def removal_curve(path: Path) -> None:
    si.RemovalCurve((1, 2), "accuracy", drawn(5, 2, len(KINDS)), drawn(2, 4), drawn(5), FIVE, ABOUT).save(path)


def comparison(path: Path) -> None:
    sets = si.HeadSets(6, 8, {"patching": ((0, 1), (1, 2))})
    tuned = {"ScAle": {"setting": {"heads": 8}, "parameters": 8, "passes": 1.0, "grid": [{"heads": 8, "accuracy": 0.5}]}}
    right, others = drawn(5, 2).round(), drawn(6, 2).round()
    si.Comparison(("base", "ScAle"), right, FIVE, others, SIX, ("count",) * 6, tuned, sets, {}, ABOUT).save(path)


def steering(path: Path) -> None:
    directions, sigma = torch.zeros(6, 8, 16), torch.zeros(6, 8)
    directions[2, 1, 0] = directions[3, 0, 1] = 1.0
    sigma[2, 1] = sigma[3, 0] = 0.5
    si.Steering(directions, sigma, 2.0, ((2, 1), (3, 0)), settings={"direction": "mean"}, provenance=ABOUT).save_pretrained(path)


def scale(path: Path) -> None:
    scalars = torch.ones(6, 8)
    scalars[2, 1], scalars[3, 0] = 1.25, 0.5
    settings = {"bound": "tanh", "radius": 1.0, "mlp": False}
    si.ScAle(scalars, torch.ones(6), 2, ((2, 1), (3, 0)), settings=settings, provenance=ABOUT, history=({"epoch": 0.0},)).save_pretrained(
        path
    )


def falsification(path: Path) -> None:
    row = {"gain": 0.1, "low": -0.1, "high": 0.3, "p": 0.2, "p_corrected": 0.4, "accuracy": 0.6, "base_accuracy": 0.5}
    against = {"full_minus": 0.1, "full_minus_p_corrected": 0.3}
    rows = ({"control": "ScAle"} | row, {"control": "frozen at 1"} | row | against, {"control": "output bias"} | row | against)
    si.Falsification(0.5, rows, 0, 0, "0" * 64, {"heads": []}, ABOUT).save(path)


def calibration(path: Path) -> None:
    row = {
        "kind": NULL,
        "number": 0,
        "p": 0.2,
        "p_corrected": 0.4,
        "low": -0.1,
        "high": 0.3,
        "gain": 0.1,
        "gains": False,
        "survives": False,
    }
    Calibration((row, row | {"number": 1}), ABOUT).save(path)


def table(kind: Any) -> Callable[[Path], None]:
    """A result that is a table: two rows of its own columns."""
    row = dict.fromkeys(kind.columns, 0.5)
    return lambda path: kind((row, row | {kind.columns[0]: "other"}), {}, ABOUT).save(path)


def benchmarks(path: Path) -> None:
    row = {"way": "packed", "seconds": 1.0, "ratio": 1.0, "heads_timed": 48, "repeats": 3, "largest_difference": None}
    path.write_text(json.dumps({"benchmarks": [{"rows": [row], "about": {}, "left_out": {}, "memory": None}]}))


def probe_map(path: Path) -> None:
    found = si.ProbeMap("probe", "held-out accuracy", drawn(5, 6, 8), FIVE, ABOUT, p=drawn(6, 8), classes=("left", "right"), chance=0.5)
    found.save(path)


def chosen(path: Path) -> None:
    Chosen("ScAle", si.Edit.identity(6, 8), {"heads": 2}, 2, ({"heads": 2, "accuracy": 0.5},), ((2, 1),), "given").save(path)


SAVERS: Mapping[str, Callable[[Path], None]] = {
    "HeadMap": lambda path: si.HeadMap("patch", "recovered fraction", drawn(5, 6, 8), FIVE, ABOUT).save(path),
    "ProbeMap": probe_map,
    "ObjectAttention": object_attention,
    "FunctionalHeads": functional_heads,
    "RemovalCurve": removal_curve,
    "Faithfulness": lambda path: si.Faithfulness((0, 8, 48), "logit_diff", drawn(5, 3), drawn(5, 3), FIVE, ABOUT).save(path),
    "ScalingCurve": lambda path: si.ScalingCurve((0.5, 2.0), drawn(5, 2).round(), drawn(5).round(), drawn(5), FIVE, ABOUT).save(path),
    "Localisation": lambda path: si.Localisation(
        ("a", "b"), ((0, 1), (1, 2)), drawn(2, 3, 6, 8), drawn(2, 3).double(), drawn(2, 3).double(), ABOUT
    ).save(path),
    "Interventions": lambda path: si.Interventions(
        ("gain 2", "a"), ("a", "b"), "accuracy", drawn(6, 2).round(), drawn(6).round(), SIX % 2, SIX, ABOUT
    ).save(path),
    "AnswerDirection": lambda path: si.AnswerDirection(drawn(6, 8, 16), drawn(6, 8), ("p",), ABOUT).save(path),
    "Comparison": comparison,
    "Chosen": chosen,
    "ScAle's scalars": scale,
    "ScAle's configuration": scale,
    "Steering's directions": steering,
    "Steering's configuration": steering,
    "Falsification": falsification,
    "Tuned": lambda path: si.Tuned(si.AttentionScale(2.0), ({"weight": 2.0, "accuracy": 0.5},), 0.4, 6, ("p",), ABOUT).save(path),
    "HeadSets": lambda path: si.HeadSets(6, 8, {"patching": ((0, 1), (1, 2)), "gradient": ((1, 2),)}).save(path),
    "Transfer": table(si.Transfer),
    "Baselines": table(si.Baselines),
    "RetentionCurve": table(si.RetentionCurve),
    "SparsityPath": table(si.SparsityPath),
    "Calibration": calibration,
    "AttentionScale": lambda path: si.AttentionScale(2.0, layers=(1, 2)).save_pretrained(path),
    "AdaptVis": lambda path: si.AdaptVis(0.5, 1.5, 0.35).save_pretrained(path),
    "PASTA": lambda path: si.PASTA(((2, 1),), 0.01).save_pretrained(path),
    "benchmarks": benchmarks,
}
