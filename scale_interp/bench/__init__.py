"""How much the packed sweep saves: all heads zero-ablated in every usual way, in one run."""

from .result import BRIDGE as BRIDGE
from .result import COPIED as COPIED
from .result import LIMIT as LIMIT
from .result import OURS as OURS
from .result import PER_HEAD as PER_HEAD
from .result import TRACED as TRACED
from .result import Benchmark as Benchmark
from .result import Memory as Memory
from .result import Row as Row
from .result import read_benchmarks as read_benchmarks
from .result import write_benchmarks as write_benchmarks
from .timing import bench as bench
