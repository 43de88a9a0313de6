"""The heads that different methods select: how far they agree, and whether chance would agree as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy import stats

from ...core import statistics
from ...core.figures import draw
from ...core.result import APART, Misfit, Result, entries
from ...errors import DataError
from ...interventions.edit import Head, check_heads

PART = {"name": str, "heads": tuple[Head, ...], "about": str}
"""What a file says about each set."""


@dataclass(frozen=True, eq=False)
class HeadSets(Result):
    """Named sets of heads of one model.

    Args:
        n_layers: the model's number of layers.
        n_heads: its heads per layer.
        sets: name -> (layer, head) pairs, the most important first.
        about: name -> how they were found.
        left_out: name -> why there are none.

    Raises:
        EditError: for a head that the model does not have.

    >>> HeadSets(2, 4, {"patching": ((0, 1), (1, 2)), "gradient": ((1, 2), (1, 3))}).overlap()["jaccard"].round(2).tolist()
    [0.33]
    """

    n_layers: int
    n_heads: int
    sets: Mapping[str, tuple[Head, ...]]
    about: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    file = "json"
    other_kind = "holds no head sets but {found!r}; give the file of {kind}"

    def __post_init__(self) -> None:
        checked = {name: tuple(check_heads(heads, self.n_layers, self.n_heads)) for name, heads in self.sets.items()}
        object.__setattr__(self, "sets", checked)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(heads)}" for name, heads in self.sets.items())
        return f"<HeadSets of {self.n_layers} layers x {self.n_heads} heads: {counts or 'none'}>"

    def _notebook_rows(self) -> Iterable[Mapping[str, Any]]:
        found = self.sets.items()
        return ({"set": name, "heads": len(heads), "first": ", ".join(map(str, heads[:4]))} for name, heads in found)

    @staticmethod
    def join(parts: list[HeadSets]) -> HeadSets:
        """All sets of several HeadSets together.

        Args:
            parts: HeadSets of models with the same numbers of layers and heads; of equal names the last set wins.

        Returns:
            One HeadSets.

        Raises:
            DataError: for no part, and for models of different shape.
        """
        if not parts:
            raise DataError("no head sets: give at least one")
        if len({(p.n_layers, p.n_heads) for p in parts}) > 1:
            raise DataError("these head sets are of models of different shape: give sets of one model")
        merged: list[dict[str, Any]] = [{}, {}, {}]
        for part in parts:
            for into, own in zip(merged, (part.sets, part.about, part.left_out), strict=True):
                into.update(own)
        return HeadSets(parts[0].n_layers, parts[0].n_heads, *merged)

    def counts(self) -> Int[np.ndarray, "layers heads"]:
        """How many sets contain each head [L, H]."""
        out = np.zeros((self.n_layers, self.n_heads), dtype=int)
        for heads in self.sets.values():
            for head in heads:
                out[head] += 1
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row per head: layer, head, the number of sets that contain it, and one column of booleans per set."""
        every = [(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]
        columns = {name: [head in heads for head in every] for name, heads in self.sets.items()}
        layers, heads = zip(*every, strict=True)
        return pd.DataFrame({"layer": layers, "head": heads, "sets": self.counts().ravel()} | columns)

    def overlap(self) -> pd.DataFrame:
        """How far every two sets agree.

        Two sets that exclude each other by construction, such as functional and latent heads, share none.

        Returns:
            One row per pair of sets:

            - a, b: their names.
            - shared, by_chance: how many heads they share, and how many are expected by chance.
            - jaccard: shared heads divided by the heads in either.
            - p, p_holm: the probability that two random sets of these sizes share at least as many (one-sided hypergeometric, the exact
                permutation test), and its correction over all pairs.
        """
        U = self.n_layers * self.n_heads
        rows = []
        for a, b in combinations(self.sets, 2):
            one, two = set(self.sets[a]), set(self.sets[b])
            shared = len(one & two)
            row = {"a": a, "b": b, "shared": shared, "by_chance": len(one) * len(two) / U, "jaccard": shared / max(1, len(one | two))}
            rows.append(row | {"p": float(stats.hypergeom.sf(shared - 1, U, len(one), len(two)))})
        frame = pd.DataFrame(rows, columns=["a", "b", "shared", "by_chance", "jaccard", "p"])
        return frame.assign(p_holm=statistics.holm(frame["p"].to_numpy(float)))

    def matrix(self) -> pd.DataFrame:
        """Jaccard overlap of every set with every other, as a matrix with 1 on the diagonal."""
        names = list(self.sets)
        out = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
        for row in self.overlap().itertuples():
            out.loc[row.a, row.b] = out.loc[row.b, row.a] = row.jaccard
        return out

    def plot(self, **options: Any) -> Any:
        """A plotly heatmap of the overlap matrix (see viz.head_overlap; viz.head_marks shows the heads themselves)."""
        return draw("head_overlap", self, **options)

    def _parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # A list, as sorted keys would lose the order of figures and tables.
        sets = [{"name": name, "heads": heads, "about": self.about.get(name, "")} for name, heads in self.sets.items()]
        return {}, {"n_layers": self.n_layers, "n_heads": self.n_heads, "sets": sets, "left_out": self.left_out}

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        hints = {"n_layers": int, "n_heads": int, "sets": list[dict[str, Any]], "left_out": dict[str, str]}
        found = entries(path, meta, hints)
        parts = [entries(path, part, PART) for part in found["sets"]]
        sets, about = ({part["name"]: part[value] for part in parts} for value in ("heads", "about"))
        if len(sets) < len(parts):
            raise Misfit(f"{APART}: a set is there twice")
        return found | {"sets": sets, "about": about}

    def _validate(self, meta: Mapping[str, Any]) -> None:
        if min(self.n_layers, self.n_heads) < 1:
            raise Misfit(f"{APART}: a model of {self.n_layers} layers x {self.n_heads} heads has no heads")
