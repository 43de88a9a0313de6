"""The result of a benchmark, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import read_json, write_json
from ..errors import FileError

PER_HEAD = "one nnsight trace a head"
BRIDGE = "TransformerLens bridge, one run a head"
COPIED = "copied cache, batch repeat"
TRACED = "packed in an nnsight trace"
OURS = "packed (ours)"
LIMIT = "one plain forward over as many tokens"


@dataclass(frozen=True)
class Row:
    """One way of sweeping over all heads.

    Attributes:
        way: its name.
        seconds: median over the repeats, scaled up where only `heads_timed` of the heads were timed.
        ratio: median over the repeats of its time divided by that of the packed sweep.
        heads_timed: how many heads were timed.
        repeats: in how many repeats it was timed.
        largest_difference: of a score to the packed sweep's, on the timed heads; None for the limit, which has no scores.
    """

    way: str
    seconds: float
    ratio: float
    heads_timed: int
    repeats: int
    largest_difference: float | None


@dataclass(frozen=True)
class Memory:
    """Peak bytes of fresh processes: after loading the model, after one plain forward pass, after a sweep over all heads."""

    loaded: int
    forward: int
    sweep: int

    @property
    def ratio(self) -> float:
        """The sweep's peak divided by the forward pass's."""
        return self.sweep / self.forward


@dataclass(frozen=True)
class Benchmark:
    """Every way's time on one model. left_out: way -> why it was not run."""

    rows: tuple[Row, ...]
    about: dict[str, Any]
    left_out: dict[str, str]
    memory: Memory | None = None

    def ratio(self, name: str) -> float:
        """How many times longer this way takes than the packed sweep."""
        return next(row.ratio for row in self.rows if row.way == name)

    @property
    def nnsight_share(self) -> float:
        """The share of its time that nnsight takes of the same sweep in a trace; ours is without one."""
        return 1 - 1 / self.ratio(TRACED)

    @property
    def over_limit(self) -> float:
        """The packed sweep's time divided by that of one plain forward pass of the decoder over as many tokens."""
        return 1 / self.ratio(LIMIT)

    def sampled(self, row: Row) -> str:
        """How many heads were timed in place of all, or that a way was timed once; empty where all were timed in every repeat."""
        if row.heads_timed < self.about["variants"]:
            return f"{row.heads_timed:,} of {self.about['variants']:,} heads timed"
        return "timed once" if row.repeats < self.about["repeats"] else ""


def write_benchmarks(path: Path, found: Sequence[Benchmark]) -> None:
    """Write benchmarks as one JSON file, one entry per model."""
    derived = [{"nnsight_share": b.nnsight_share, "over_limit": b.over_limit} for b in found]
    write_json(path, {"benchmarks": [asdict(b) | more for b, more in zip(found, derived, strict=True)]})


def read_benchmarks(path: Path) -> list[Benchmark]:
    """Read what `write_benchmarks` wrote.

    Raises:
        FileError: the file does not hold that.
    """
    try:
        return [
            Benchmark(
                tuple(Row(**row) for row in found["rows"]),
                found["about"],
                found["left_out"],
                found["memory"] and Memory(**found["memory"]),
            )
            for found in read_json(path)["benchmarks"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} holds no benchmarks ({error!r}); measure again with `scale-interp bench --out`") from error
