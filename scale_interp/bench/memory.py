"""Peak memory of a plain forward pass and of a sweep over all heads, each in a fresh process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from ..data.load import load_questions
from ..errors import ModelError
from ..interventions.paths import packed_batch
from ..interventions.prefix import read_prefix
from ..interventions.sweep import HeadSweep
from ..vlm.vlm import VLM
from .realistic import open_model
from .result import Memory

DATA = "scenes/relation"


def measure_memory(name: str, n_questions: int, device: str | None = None, dtype: str | None = None) -> Memory:
    """Measure the peak memory of loading, of one forward pass and of a sweep, each in a fresh process.

    Args:
        name: a name that `open_model` takes.
        n_questions: questions in the batch.
        device: where the model runs; by default as in `load`.
        dtype: float32, bfloat16 or float16; None for the model's own.

    Returns:
        Peak resident bytes, or on a GPU the peak of allocated bytes.

    Raises:
        ModelError: a process failed.
    """
    forward, sweep = (_child(kind, name, str(n_questions), device or "", dtype or "") for kind in ("forward", "sweep"))
    return Memory(forward["loaded"], forward["peak"], sweep["peak"])


def _child(*arguments: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-m", __name__, *arguments], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"the memory of {arguments[1]} was not measured: {why}")
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def _main(kind: str, name: str, n_questions: str, device: str, dtype: str) -> None:
    questions = load_questions(DATA, n=int(n_questions))
    vlm = open_model(name, device or None, dtype or None)
    loaded = _peak(vlm)
    if kind == "forward":
        vlm.hf_model(**vlm.encode(questions), use_cache=False, logits_to_keep=1)
    else:
        packed_batch(vlm, read_prefix(vlm, questions), HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0))
    print(json.dumps({"loaded": loaded, "peak": _peak(vlm)}))


def _peak(vlm: VLM) -> int:
    if vlm.device.type == "cuda":
        return torch.cuda.max_memory_allocated(vlm.device)
    # On Linux ru_maxrss counts what the process was forked from; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _main(*sys.argv[1:])
