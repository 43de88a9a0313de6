"""One small result of every kind that can be saved, made of drawn numbers: nothing is run for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

import scale_interp as si
from scale_interp.adapters.attention_scaling.method import SavedSettings
from scale_interp.attribution.removal import KINDS
from scale_interp.core.result import Adapter, Result
from scale_interp.evaluation.comparison.comparison import _Answers
from scale_interp.evaluation.comparison.tuning import Chosen
from scale_interp.evaluation.falsification.calibration import NULL, Calibration
from scale_interp.evaluation.reproduction.adaptvis import WEIGHTS, AdaptVisRun
from scale_interp.evaluation.reproduction.scale import ScaleRun
from scale_interp.evaluation.table import Table

ABOUT = {"model": "demo", "data": "scenes/relation", "n": 6}
FIVE, SIX = torch.arange(5), torch.arange(6)


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def object_attention() -> si.ObjectAttention:
    masses = {name: drawn(5, 6, 8) for name in ("image_mass", "box_mass", "spatial_entropy")}
    each = {name: drawn(5) for name in ("area", "image_share", "correct", "confidence")}
    ids = tuple(map(str, range(5)))
    return si.ObjectAttention(**masses, **each, groups=FIVE, ids=ids, relations=("left",) * 5, skipped={}, provenance=ABOUT)


def comparison() -> si.Comparison:
    sets = si.HeadSets(6, 8, {"patching": ((0, 1), (1, 2))})
    tuned = {"ScAle": {"setting": {"heads": 8}, "parameters": 8, "passes": 1.0, "grid": [{"heads": 8, "accuracy": 0.5}]}}
    right, others = drawn(5, 2).round(), drawn(6, 2).round()
    return si.Comparison(("base", "ScAle"), right, FIVE, others, SIX, ("count",) * 6, tuned, sets, {}, ABOUT)


def steering() -> si.Steering:
    directions, sigma = torch.zeros(6, 8, 16), torch.zeros(6, 8)
    directions[2, 1, 0] = directions[3, 0, 1] = 1.0
    sigma[2, 1] = sigma[3, 0] = 0.5
    return si.Steering(directions, sigma, 2.0, ((2, 1), (3, 0)), settings={"direction": "mean"}, provenance=ABOUT)


def scale() -> si.ScAle:
    scalars = torch.ones(6, 8)
    scalars[2, 1], scalars[3, 0] = 1.25, 0.5
    settings = {"bound": "tanh", "radius": 1.0, "mlp": False}
    return si.ScAle(scalars, torch.ones(6), 2, ((2, 1), (3, 0)), settings=settings, provenance=ABOUT, history=({"epoch": 0.0},))


def falsification() -> si.Falsification:
    row = {"gain": 0.1, "low": -0.1, "high": 0.3, "p": 0.2, "p_corrected": 0.4, "accuracy": 0.6, "base_accuracy": 0.5}
    against = {"full_minus": 0.1, "full_minus_p_corrected": 0.3}
    rows = ({"control": "ScAle"} | row, {"control": "frozen at 1"} | row | against, {"control": "output bias"} | row | against)
    return si.Falsification(0.5, rows, 0, 0, "0" * 64, {"heads": []}, ABOUT)


def calibration() -> Calibration:
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
    return Calibration((row, row | {"number": 1}), ABOUT)


def table(kind: type[Table]) -> Table:
    row = dict.fromkeys(kind.columns, 0.5) | {"fitted_on": "relation", "tested_on": "count"}
    return kind((row, row | {"tested_on": "relation"}), {}, ABOUT)


def baselines() -> si.Baselines:
    row = dict.fromkeys(si.Baselines.columns, 0.5) | {"parameters": 54, "recovered": None, "validation_loss": 0.5}
    return si.Baselines((row | {"method": "ScAle"}, row | {"method": "LoRA r=1"}), {}, ABOUT)


def sparsity_path() -> si.SparsityPath:
    row = dict.fromkeys(si.SparsityPath.columns, 0.5) | {"path": "l1", "value": 0, "moved": 4}
    return si.SparsityPath((row,), {"heads": 48}, ABOUT)


def probe_map() -> si.ProbeMap:
    return si.ProbeMap("probe", "held-out accuracy", drawn(5, 6, 8), FIVE, ABOUT, p=drawn(6, 8), classes=("left", "right"), chance=0.5)


def functional_heads() -> si.FunctionalHeads:
    return si.FunctionalHeads(("a", "b"), drawn(6, 6, 8), SIX % 2, SIX % 2, SIX, drawn(3, 2, 6, 8), drawn(3), ("p",), ABOUT)


def image_map() -> si.ImageMap:
    """Four patches, one of them at the object."""
    tokens, inside = torch.arange(3, 7).expand(5, 4), torch.tensor([[0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]]).expand(5, 4, 3)
    return si.ImageMap("knockout", "logit diff", drawn(5, 4), tokens, inside, 4 - FIVE % 2, FIVE, tuple(map(str, range(5))), ABOUT)


def lens() -> si.LogitLens:
    """Two tokens of each of five prompts, except of the first, which has one."""
    logits, top = drawn(5, 6, 2, 4), torch.arange(5 * 6 * 2 * 3).view(5, 6, 2, 3) % 7
    places, lengths = torch.tensor([[3, 4]] * 5), torch.tensor([1, 2, 2, 2, 2])
    asked = (FIVE % 4, FIVE % 3, FIVE, tuple(map(str, range(5))), ("left",) * 5)
    return si.LogitLens(logits, 2 + drawn(5, 6, 2), top, drawn(5, 6, 2, 3) / 3, places, lengths, *asked, tuple("abcdefg"), "image", ABOUT)


def localisation() -> si.Localisation:
    areas = drawn(2, 3).double()
    return si.Localisation(("a", "b"), ((0, 1), (1, 2)), drawn(2, 3, 6, 8), areas, areas, ABOUT)


def scale_run() -> ScaleRun:
    history = (({"epoch": 0, "train_accuracy": 0.5, "train_loss": 2.0}, {"epoch": 1, "train_accuracy": 0.5, "train_loss": 1.0}),) * 3
    return ScaleRun(drawn(3, 2, 5).round(), drawn(3, 2), drawn(3, 2), FIVE % 2, FIVE, (0, 1, 1), history, ABOUT)


INSTANCES: Mapping[type[Result | Adapter], Callable[[], Result | Adapter]] = {
    si.HeadMap: lambda: si.HeadMap("patch", "recovered fraction", drawn(5, 6, 8), FIVE, ABOUT),
    si.ProbeMap: probe_map,
    si.PositionMap: lambda: si.PositionMap("patch", "fraction", "resid", ("image", "last"), drawn(5, 6, 2), FIVE, ("left",) * 5, ABOUT),
    si.FlowMap: lambda: si.FlowMap("knockout", "probability", drawn(5, 6, 1), FIVE, ("left",) * 5, "layer", 2, ABOUT),
    si.ImageMap: image_map,
    si.LogitLens: lens,
    si.ObjectAttention: object_attention,
    si.FunctionalHeads: functional_heads,
    si.RemovalCurve: lambda: si.RemovalCurve((1, 2), "accuracy", drawn(5, 2, len(KINDS)), drawn(2, 4), drawn(5), FIVE, ABOUT),
    si.Faithfulness: lambda: si.Faithfulness((0, 8, 48), "logit_diff", drawn(5, 3), drawn(5, 3), FIVE, ABOUT),
    si.ScalingCurve: lambda: si.ScalingCurve((0.5, 2.0), drawn(5, 2).round(), drawn(5).round(), drawn(5), FIVE, ABOUT),
    si.Localisation: localisation,
    si.Interventions: lambda: si.Interventions(
        ("gain 2", "a"), ("a", "b"), "accuracy", drawn(6, 2).round(), drawn(6).round(), SIX % 2, SIX, ABOUT
    ),
    si.AnswerDirection: lambda: si.AnswerDirection(drawn(6, 8, 16), drawn(6, 8), ("p",), ABOUT),
    si.Comparison: comparison,
    _Answers: lambda: _Answers(drawn(5).round(), drawn(6).round(), 2.0),
    Chosen: lambda: Chosen("ScAle", si.Edit.identity(6, 8), {"heads": 2}, 2, ({"accuracy": 0.5, "heads": 2},), ((2, 1),), "given"),
    si.Falsification: falsification,
    si.Tuned: lambda: si.Tuned(si.AttentionScale(2.0), ({"weight": 2.0, "accuracy": 0.5},), 0.4, 6, ("p",), ABOUT),
    si.HeadSets: lambda: si.HeadSets(
        6, 8, {"patching": ((0, 1), (1, 2)), "gradient": ((1, 2),)}, {"patching": "the top 2", "gradient": ""}
    ),
    Calibration: calibration,
    **{kind: partial(table, kind) for kind in (Table, si.Transfer, si.RetentionCurve)},
    si.Baselines: baselines,
    si.SparsityPath: sparsity_path,
    si.ScAle: scale,
    ScaleRun: scale_run,
    AdaptVisRun: lambda: AdaptVisRun(
        (1.0, *WEIGHTS), drawn(6, 5).round(), drawn(6, 5).round(), drawn(5), FIVE % 2, FIVE, (("left",) * 5,) * 6, ABOUT
    ),
    si.Trajectory: lambda: si.Trajectory(torch.ones(3, 6, 8), torch.ones(3, 6)),
    si.Steering: steering,
    SavedSettings: SavedSettings,
    si.AttentionScale: lambda: si.AttentionScale(2.0, layers=(1, 2)),
    si.AdaptVis: lambda: si.AdaptVis(0.5, 1.5, 0.35),
    si.PASTA: lambda: si.PASTA(((2, 1),), 0.01),
}
"""One of every class that can be saved."""


def save(kind: type[Result | Adapter], path: Path) -> None:
    made = INSTANCES[kind]()
    made.save(path) if isinstance(made, Result) else made.save_pretrained(path)


def benchmarks(path: Path) -> None:
    row = {"way": "packed", "seconds": 1.0, "ratio": 1.0, "heads_timed": 48, "repeats": 3, "largest_difference": None}
    path.write_text(json.dumps({"benchmarks": [{"rows": [row], "about": {}, "left_out": {}, "memory": None}]}))


LIKE_ANOTHER = (Table, SavedSettings, _Answers)
"""Classes whose form another one shares; test_results looks at them all."""
SAVERS: Mapping[str, Callable[[Path], None]] = {
    **{kind.__name__: partial(save, kind) for kind in INSTANCES if kind not in (si.ScAle, si.Steering, *LIKE_ANOTHER)},
    "ScAle's scalars": partial(save, si.ScAle),
    "ScAle's configuration": partial(save, si.ScAle),
    "Steering's directions": partial(save, si.Steering),
    "Steering's configuration": partial(save, si.Steering),
    "benchmarks": benchmarks,
}
