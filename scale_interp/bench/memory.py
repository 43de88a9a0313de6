"""Peak memory of a plain forward pass, of a sweep over all heads and of a fit, each in a fresh process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from ..adapters.scale.fit import fit_scale
from ..data.load import load_questions
from ..errors import ModelError
from ..interventions.paths import packed_batch
from ..interventions.prefix import read_prefix
from ..interventions.sweep import HeadSweep
from ..vlm.vlm import VLM, check_cache
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


def measure_fit_memory(
    name: str, batch_size: int, micro_batch: int, prefix_cache: str = "auto", device: str = "cpu", dtype: str | None = None
) -> int:
    """Measure the peak memory of a fit of all heads and MLPs on one batch of questions, one epoch, in a fresh process.

    Args:
        name: a name that `open_model` takes.
        batch_size: questions in the batch.
        micro_batch: how many of them are run at once.
        prefix_cache: where their prompts are kept.
        device: where the model runs.
        dtype: float32, bfloat16 or float16; None for the model's own.

    Returns:
        Peak bytes, as in `measure_memory`.

    Raises:
        ModelError: the process failed.
    """
    return _child("fit", name, str(batch_size), device, dtype or "", str(micro_batch), prefix_cache)["peak"]


def measure_sweep_memory(name: str, n_questions: int, device: str = "cpu", dtype: str | None = None) -> tuple[int, int]:
    """The peak bytes of loading, and of loading and a sweep over all heads, as in `measure_memory`."""
    found = _child("sweep", name, str(n_questions), device, dtype or "")
    return found["loaded"], found["peak"]


def _child(*arguments: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-m", __name__, *arguments], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"the memory of {arguments[1]} was not measured: {why}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(kind: str, name: str, n_questions: str, device: str, dtype: str, micro_batch: str = "", prefix_cache: str = "") -> None:
    questions = load_questions(DATA, n=int(n_questions))
    vlm = open_model(name, device or None, dtype or None)
    loaded = _peak(vlm)
    if kind == "fit":
        vlm.prefix_cache = check_cache(prefix_cache)
        fit_scale(vlm, questions, epochs=1, batch_size=len(questions), micro_batch=int(micro_batch), path="packed")
    elif kind == "forward":
        with torch.no_grad():
            vlm.hf_model(**vlm.encode(questions), use_cache=False, logits_to_keep=1)
    else:
        with torch.no_grad():
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
