"""The last section of docs/runs.md, measured in fresh processes on this machine: python -m docs.studies.cold_start"""

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scale_interp.core.files import write_bytes
from scale_interp.jobs.info import SETTINGS

PAGE = Path(__file__).parents[1] / "runs.md"
HEADING = "## Cold start\n"
ROUNDS = 11
SHELL = str(Path(sys.executable).parent / "scale-interp")
PYTHON = {
    "an empty Python": "pass",
    "`import torch`": "import torch",
    "`import scale_interp`": "import scale_interp",
    "torch, nnsight, and the two classes of transformers that open a model": (
        "import torch, nnsight; from transformers import AutoModelForImageTextToText, AutoProcessor"
    ),
    "`import scale_interp; scale_interp.load`": "import scale_interp; scale_interp.load",
    "`dir(scale_interp.viz)`": "import scale_interp; dir(scale_interp.viz)",
}
COMMANDS = {"`scale-interp --help`": ["--help"], "`scale-interp runs`": ["runs"], "`scale-interp show`, a finished run": ["show"]}


def main() -> None:
    """Time every start once a round, by turns, and write the section."""
    folder = next((path.parent for path in Path("runs").glob(f"*/{SETTINGS}")), None)
    if folder is None:
        sys.exit("no run in runs/ to list and to show: make one with `scale-interp run --quick`")
    starts = {name: [sys.executable, "-c", code] for name, code in PYTHON.items()}
    starts |= {name: [SHELL, *words, *([str(folder)] if words == ["show"] else [])] for name, words in COMMANDS.items()}
    taken: dict[str, list[float]] = {name: [] for name in starts}
    for round_ in range(ROUNDS + 1):
        for name, words in starts.items():
            started = time.perf_counter()
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
            if round_:  # the first fills the disk's cache
                taken[name].append(time.perf_counter() - started)
    text = PAGE.read_text()
    write_bytes(PAGE, (text[: text.index(HEADING)] + section(taken)).encode())


def section(taken: dict[str, list[float]]) -> str:
    middle = {name: statistics.median(times) for name, times in taken.items()}
    rows = "\n".join(f"| {name} | {middle[name]:.2f} | {min(times):.2f} to {max(times):.2f} |" for name, times in taken.items())
    bare, full = (middle["`import scale_interp`"] / middle["`import torch`"], middle["`import scale_interp; scale_interp.load`"])
    heavy = middle["torch, nnsight, and the two classes of transformers that open a model"]
    return f"""{HEADING}
    python -m docs.studies.cold_start

Seconds of whole fresh processes, {ROUNDS} of each by turns, Python {platform.python_version()}, files in the disk's cache:

| | median | range |
|---|---|---|
{rows}

A bare import takes {bare:.2f} of the time of `import torch`; `load`, with which work begins, {full / heavy:.2f} of the time of the
libraries that it opens. A public name is opened when it is first used: neither the import, nor `--help`, nor `runs` and `show`, nor Tab
behind `si.` in a notebook waits for torch, and Tab behind `si.viz.` waits for pandas and plotly only. The shell completes commands and
options once `scale-interp --install-completion` has run.
"""


if __name__ == "__main__":
    main()
