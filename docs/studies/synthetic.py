"""Results of any model shape, drawn with a seed and not measured, to look at figures with: what has a size is [layers, heads]."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import scale_interp as si
from scale_interp.attribution import HeadMap, Rescaling
from scale_interp.attribution.attention.grid import Raster
from scale_interp.bench.result import Benchmark, read_benchmarks
from scale_interp.evaluation import Evaluation
from scale_interp.evaluation.falsification.calibration import Calibration
from scale_interp.evaluation.ground_truth.faithfulness import Faithfulness
from scale_interp.evaluation.ground_truth.localisation import Localisation
from scale_interp.interventions.edit import Head

HERE = Path(__file__).parent
Q = 60
FUNCTIONS = ("vision knowledge", "spatial perception", "relational reasoning", "counting", "semantic recall", "decision", "math")


def random(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(s * 1009**i for i, s in enumerate(seed)))


def effects(L: int, H: int, seed: int, share: float = 0.06) -> Tensor:
    """Most heads near 0, a few of the middle and late layers far from it [L, H]."""
    draw = random(seed, L, H)
    size = torch.rand(L, H, generator=draw)
    depth = torch.exp(-(((torch.arange(L) / max(1, L - 1) - 0.65) / 0.22) ** 2))[:, None]
    few = (torch.rand(L, H, generator=draw) < share * (0.3 + depth)) * (0.15 + size) * (0.3 + depth)
    few[int(0.65 * (L - 1)), H // 3] = 1.2
    sign = torch.where(torch.rand(L, H, generator=draw) < 0.3, -0.6, 1.0)
    return 0.3 * few * sign + 0.006 * torch.randn(L, H, generator=draw)


def head_map(L: int, H: int, method: str = "patching, clean into corrupt", unit: str = "recovered fraction", seed: int = 0) -> HeadMap:
    noise = 0.05 * torch.randn(Q, L, H, generator=random(seed + 1, L, H))
    return HeadMap(method, unit, effects(L, H, seed) + noise, torch.arange(Q))


def head_maps(L: int, H: int) -> list[HeadMap]:
    named = (("patch", "recovered fraction"), ("attribution patching", "recovered fraction, first order"), ("zero ablation", "logit_diff"))
    named += (("amplification x2", "logit_diff"), ("gradient", "d logit_diff / d scale"))
    return [head_map(L, H, method, unit, i * (i > 1)) for i, (method, unit) in enumerate(named)]


def scale(L: int, H: int, every: bool = True) -> si.ScAle:
    scalars = 1 + (2.2 * effects(L, H, 0) + 0.05 * torch.randn(L, H, generator=random(3, L))).clamp(-1, 1)
    heads = [(layer, head) for layer in range(L) for head in range(H)] if every else head_map(L, H).top(min(8, L * H))
    kept = torch.ones(L, H)
    for at in heads:
        kept[at] = scalars[at]
    mlp = 1 + 0.12 * torch.randn(L, generator=random(4, L)) if every else torch.ones(L)
    falls = [
        {"epoch": i, "train_loss": 0.5 + 0.7 * 0.7**i, "validation_loss": 0.55 + 0.6 * 0.72**i + 0.01 * max(0, i - 9)} for i in range(15)
    ]
    history = tuple(row | {"retain_kl": 0.04 * (1 - 0.8 ** row["epoch"])} for row in falls)
    return si.ScAle(kept, mlp, len(heads) + L * every, tuple(heads), settings={"mlp": every, "best_epoch": 9}, history=history)


def epochs() -> pd.DataFrame:
    rows = [
        {"part": part, "epoch": i, "train_accuracy": 0.9 - 0.6 * rate**i, "test_accuracy": 0.8 - 0.55 * rate**i, "untrained_accuracy": top}
        for part, rate in (("heads", 0.6), ("mlps", 0.8), ("both", 0.5))
        for i, top in enumerate(0.75 - 0.5 * rate**n for n in range(11))
    ]
    return pd.DataFrame(rows)


def flow_maps(L: int, n: int = 3) -> list[si.FlowMap]:
    relations = tuple(("left", "above", "behind")[i % 3] for i in range(Q))
    return [
        si.FlowMap(
            f"knockout last -> {target}",
            "logit diff",
            3 * effects(L, 1, i) + 0.3 * torch.randn(Q, L, 1, generator=random(11 + i, L)),
            torch.arange(Q),
            relations,
            "layer",
        )
        for i, target in enumerate(("image", "subject", "object", "question")[:n])
    ]


def position_maps(L: int, n: int = 2) -> list[si.PositionMap]:
    places = ("image", "subject", "object", "question", "last")
    noise = [0.05 * torch.randn(Q, L, len(places), generator=random(15 + i, L)) for i in range(n)]
    maps = [2 * effects(L, len(places), i) + noise[i] for i in range(n)]
    return [
        si.PositionMap("patching", "recovered fraction", component, places, one, torch.arange(Q), ("left",) * Q)
        for component, one in zip(("resid", "mlp"), maps, strict=False)
    ]


def lens(at: str = "last") -> tuple[si.VLM, list[si.Question], si.LogitLens]:
    """Of `demo`, as no seed draws what an image shows."""
    vlm, questions = si.load("demo"), si.load_questions("scenes/relation", n=8)
    return vlm, questions, si.logit_lens(vlm, questions, at=at)


def auroc(L: int, H: int) -> Any:
    frame = head_map(L, H).to_frame()
    return frame.assign(auroc=0.5 + frame["score"], low=0.5 + frame["low"], high=0.5 + frame["high"])


def head_sets(L: int, H: int) -> si.HeadSets:
    names = ("patching", "zero ablation", "gradient", "functional: relational reasoning", "latent", "localization", "ScAle, |s - 1|")
    k = max(1, min(8, L * H // 2))
    sets = {
        name: tuple(head_map(L, H, seed=i // 3 * 3).top(k + i, "abs")[i // 2 :]) if L * H > 20 else ((0, 0),)
        for i, name in enumerate(names)
    }
    return si.HeadSets(L, H, sets)


def functional(L: int, H: int) -> si.FunctionalHeads:
    codes = torch.arange(Q * 3) % len(FUNCTIONS)
    mean = torch.stack([effects(L, H, f).abs() for f in range(len(FUNCTIONS))])
    importance = mean[codes] + 0.03 * torch.randn(len(codes), L, H, generator=random(5, L))
    null = 0.02 * torch.randn(9, len(FUNCTIONS), L, H, generator=random(6, L)).abs()
    return si.FunctionalHeads(FUNCTIONS, importance, codes, codes, torch.arange(len(codes)) // 7, null, torch.full((9,), 0.2), ())


def removal(L: int, H: int, seed: int = 0) -> si.RemovalCurve:
    half = max(1, L * H // 2)
    ks = tuple(k for k in (1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2560) if k <= half)
    lost = torch.tensor([[1 - 0.5 ** (k / 6), 0.35 * k / (half + 9), 0.1 * k / half, 0.5] for k in ks])
    right = (torch.rand(200, len(ks), 4, generator=random(7, seed)) < 0.85 - 0.6 * lost).float()
    base = (torch.rand(200, generator=random(8, seed)) < 0.85).float()
    return si.RemovalCurve(ks, "accuracy", right, right[:, :, 1].mean(0)[:, None].repeat(1, 20), base, torch.arange(200))


def emphasis(seed: int = 0, gain: float = 0.05, direction: bool = True) -> si.Interventions:
    names = ["gain 1.5", "gain 2", "gain 4", *(["alpha 1", "alpha 2", "alpha 5", "alpha 10"] if direction else [])]
    base = (torch.rand(200, generator=random(8, seed)) < 0.6).float()
    moved = torch.stack([torch.rand(200, generator=random(9, seed, i)) < abs(gain) * (1 + i % 4) for i in range(len(names))], 1)
    return si.Interventions(
        tuple(names),
        FUNCTIONS[:2],
        "accuracy",
        torch.where(moved, float(gain > 0), base[:, None]),
        base,
        torch.arange(200) % 2,
        torch.arange(200),
    )


def matrix() -> si.Interventions:
    F, n = len(FUNCTIONS), 40
    codes = torch.arange(F).repeat_interleave(n)
    base = torch.ones(F * n)
    lost = torch.rand(F * n, F, generator=random(10)) < torch.where(torch.eye(F).bool(), 0.75, 0.06)[codes]
    return si.Interventions(FUNCTIONS, FUNCTIONS, "accuracy", base[:, None] - lost.float(), base, codes, torch.arange(F * n) % n)


def faithful(L: int, H: int) -> dict[str, Faithfulness]:
    ks = sorted({round(x) for x in np.geomspace(1, L * H, 24)} | {0, L * H})
    out = {}
    for i, (name, rate) in enumerate({"patching": 8.0, "gradient": 5.0, "random": 1.0}.items()):
        rise = torch.tensor([1 - np.exp(-rate * k / (L * H) * 3) for k in ks]) / (1 - np.exp(-3 * rate))
        noise = [torch.randn(Q, 1, generator=random(11, i, j)) for j in range(2)]
        out[name] = Faithfulness(tuple(ks), "logit_diff", 2 + 4 * rise + noise[0], 6 - 4 * rise + noise[1], torch.arange(Q))
    return out


def rescaling(units: int, unit: Any = "layer") -> Rescaling:
    factors = (0.0, 0.5, 1.5, 2.0, 4.0)
    move = torch.tensor([f - 1 for f in factors])[:, None] * effects(units, 1, 5, 0.3).T * 0.6
    return Rescaling(
        unit,
        tuple(map(str, range(units))),
        factors,
        "accuracy",
        move + 0.1 * torch.randn(Q, 5, units, generator=random(12)),
        torch.arange(Q),
        {},
    )


def localisation(L: int, H: int) -> Localisation:
    known: tuple[Head, ...] = tuple(head_map(L, H).top(max(1, min(3, L * H // 2))))
    methods = ("patch", "attribution patching", "zero ablation", "gradient", "integrated gradients", "probe")
    scores = torch.stack(
        [torch.stack([effects(L, H, 0) + 0.1 * m * torch.randn(L, H, generator=random(13, m, s)) for s in range(5)]) for m in range(6)]
    )
    empty = torch.full((6, 5), torch.nan)
    return Localisation(methods, known, scores, empty, empty)


def evaluations(relations: int = 4, fits: int = 3) -> dict[str, Evaluation]:
    words = ("left", "right", "above", "below", "in front of", "behind", "inside", "near", "between", "far from", "touching", "under")[
        :relations
    ]
    questions = [si.Question("Where?", ("a", "b", "c", "d"), 0, id=str(i), relation=words[i % len(words)]) for i in range(40 * len(words))]
    names = ("base", "ScAle, all heads and MLPs", "ScAle, top heads", "ScAle with other answers retained")[:fits]
    return {
        n: Evaluation(questions, torch.randn(len(questions), 4, generator=random(14, i)) + torch.tensor([0.9 + i, 0, 0, 0]))
        for i, n in enumerate(names)
    }


def falsification() -> si.Falsification:
    gains = {
        "frozen at 1": 0.0,
        "random scalars": -0.02,
        "permuted scalars": 0.01,
        "shuffled labels": -0.01,
        "heads only": 0.19,
        "MLPs only": 0.08,
    }
    gains |= {"output bias": 0.03, "text-only correction": 0.05, "no image": -0.35, "another image": -0.31, "ScAle": 0.22}
    less = {"full_minus": 0.2, "full_minus_p_corrected": 0.004}
    rows = [
        {"control": n, "accuracy": 0.6 + g, "gain": g, "low": g - 0.05 * (g != 0), "high": g + 0.04, "p": 0.001, "p_corrected": 0.01} | less
        for n, g in gains.items()
    ]
    return si.Falsification(0.6, tuple(rows), 0, 0, "ab12cd34ef56ab12", {}, {})


def retained() -> list[dict[str, Any]]:
    tasks, fits = (
        ("colour", "count", "exists", "shape", "all"),
        ("ScAle, all heads and MLPs", "ScAle, top heads", "ScAle with other answers retained"),
    )
    change = {(t, f): -0.02 * (i + 1) * (1 - j / 2) for i, t in enumerate(tasks) for j, f in enumerate(fits)}
    return [{"task": t, "fit": f, "change": c, "low": c - 0.03, "high": c + 0.025} for (t, f), c in change.items()]


def comparison(others: bool = True) -> si.Comparison:
    methods = ("base", "ScalingVis", "AdaptVis", "PASTA, asked boxes", "ITI", "CogVSR emphasis", "latent heads", "ScAle")
    right = (torch.rand(300, 8, generator=random(15)) < torch.tensor([0.6, 0.61, 0.64, 0.58, 0.66, 0.6, 0.55, 0.82])).float()
    elsewhere = (torch.rand(400 * others, 8, generator=random(16)) < torch.linspace(0.9, 0.84, 8)).float()
    tuned = {name: {"setting": {"weight": 1.2}, "parameters": 8, "passes": 1.0, "grid": []} for name in methods}
    tasks = tuple("colour" for _ in elsewhere)
    return si.Comparison(methods, right, torch.arange(300), elsewhere, torch.arange(len(elsewhere)), tasks, tuned, head_sets(6, 8))


def measured(kind: Any, part: str) -> Any:
    """A table that docs/baselines.py measured."""
    found = json.loads((HERE / "baselines.json").read_text())[part]
    return kind(tuple(found["rows"]), found["about"], found["provenance"])


def run_rows() -> list[dict[str, Any]]:
    """The rows of `ComparedRuns.answers`."""
    rows: list[dict[str, Any]] = []
    for i, fit in enumerate(("base", "ScAle, all heads and MLPs", "ScAle, top heads", "ScAle with other answers retained")):
        row: dict[str, Any] = {"fit": fit}
        for run, base in ((1, 0.75), (2, 0.62)):
            gain = np.nan if i == 0 else 0.25 - 0.05 * i + 0.03 * run
            row |= {
                f"accuracy_{run}": base + (gain if i else 0.0),
                f"gain_{run}": gain,
                f"low_{run}": gain - 0.04,
                f"high_{run}": gain + 0.05,
            }
        rows.append(
            row | {"difference": -0.13 + 0.03 * i, "difference_low": -0.18 + 0.03 * i, "difference_high": -0.09 + 0.03 * i, "p": 0.001}
        )
    return rows


def benchmarks() -> list[Benchmark]:
    return read_benchmarks(HERE / "bench-realistic.json")


def suites() -> Calibration:
    return Calibration.load(HERE / "calibration.json")


def scaling(n: int = 3) -> dict[str, si.ScalingCurve]:
    weights, out = (0.25, 0.5, 0.8, 1.2, 2.0, 4.0), {}
    for i, name in enumerate(("relation", "position", "exists", "count", "colour", "shape")[:n]):
        base = (torch.rand(200, generator=random(17, i)) < 0.7).float()
        moved = torch.stack([torch.rand(200, generator=random(18, i, j)) < 0.1 * abs(np.log2(w)) for j, w in enumerate(weights)], 1)
        right = torch.where(moved, torch.tensor([0.0, 0, 1, 1, 1, 0])[None], base[:, None])
        out[name] = si.ScalingCurve(weights, right, base, torch.rand(200, generator=random(19)), torch.arange(200))
    return out


def tuned(adaptive: bool = True) -> si.Tuned:
    grid: list[dict[str, float]] = [{"weight": w, "accuracy": 0.6 + 0.05 * np.sin(w)} for w in (0.5, 0.8, 1.2, 1.5, 2.0)]
    method: Any = si.AttentionScale(1.5)
    if adaptive:
        pairs = [(0.5, 1.2), (0.5, 1.5), (0.8, 1.5), (0.8, 2.0), (0.5, 2.0)]
        grid = [
            {"weight_low": a, "weight_high": b, "threshold": t, "accuracy": 0.6 + 0.1 * np.sin(3 * t + 7 * a + b)}
            for a, b in pairs
            for t in (0.3, 0.5, 0.7)
        ]
        best = max(grid, key=lambda row: row["accuracy"])
        method = si.AdaptVis(best["weight_low"], best["weight_high"], best["threshold"])
    return si.Tuned(method, tuple(grid), 0.6, 10, (), {"n": 100})


def looked_at(side: int = 24) -> tuple[si.Question, Tensor, si.PatchGrid, int, int]:
    """A question, attention weights on a grid of side x side patches, the grid, and a head."""
    picture = Image.new("RGB", (448, 336), "#b8c4d0")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((60, 190, 160, 290), fill="#7a4b2a")
    draw.ellipse((280, 60, 380, 160), fill="#3a7d44")
    boxes = {"box": (60.0, 190.0, 160.0, 290.0), "ball": (280.0, 60.0, 380.0, 160.0)}
    question = si.Question(
        "Where is the ball in relation to the box?", ("left", "right"), 1, picture=picture, about=("ball", "box"), boxes=boxes
    )
    x, y = (torch.stack([e[:-1], e[1:]], 1).double() for e in (torch.linspace(0, 448, side + 1), torch.linspace(0, 336, side + 1)))
    grid = si.PatchGrid(side * side + 4, ((448, 336),), (Raster(0, torch.arange(side * side).view(side, side), x, y),))
    far = ((x.mean(1)[None] - 330) ** 2 + (y.mean(1)[:, None] - 110) ** 2) / 4000
    weights = torch.rand(side * side, generator=random(20)) * 0.3 + 3 * torch.exp(-far).flatten()
    return question, torch.cat([weights / weights.sum() * 0.6, torch.full((4,), 0.1)])[None, None], grid, 0, 0
