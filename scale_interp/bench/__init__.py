"""How much the packed sweep saves: all heads zero-ablated in every usual way, in one run."""

from .result import BARE, BRIDGE, COPIED, LIMIT, OURS, PER_HEAD, Benchmark, Memory, Row, read_benchmarks, write_benchmarks
from .timing import bench

__all__ = [
    "BARE",
    "BRIDGE",
    "COPIED",
    "LIMIT",
    "OURS",
    "PER_HEAD",
    "Benchmark",
    "Memory",
    "Row",
    "bench",
    "read_benchmarks",
    "write_benchmarks",
]
