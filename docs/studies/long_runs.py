"""docs/long_runs.md, its numbers and images: python -m docs.studies.long_runs [kills memory spill speed]; without a name, the page alone.

kills: kill -9 at random moments of a sweep and of a fit, each resumed and compared with one that was left alone.
memory: the resident memory of one sweep over 2,000 questions. spill: 500 prompts from disk against reading them again.
speed: seconds against the number of questions and of heads.
"""

import gc
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import torch
from plotly.subplots import make_subplots
from scipy import stats

import scale_interp as si
from scale_interp.bench.realistic import open_model
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.execution.batches import BatchResult
from scale_interp.interventions import paths
from scale_interp.interventions.prefix import Prefix, PrefixStore
from scale_interp.viz.theme import frame, look

from .tables import table

HERE = Path(__file__).parent
DOCS = HERE.parent
NUMBERS = HERE / "long_runs.json"
KILLS, DRAW = 50, 20261120


def sweep(vlm: si.VLM, folder: Path) -> None:
    """Patching, mean ablation and a gradient pass on 64 questions."""
    pairs = si.contrasts(si.load_questions("scenes/relation", n=64))
    questions = [p.clean for p in pairs]
    si.patch(vlm, pairs).save(folder / "patch.safetensors")
    si.ablate(vlm, questions, "mean").save(folder / "mean.safetensors")
    si.attribute(vlm, questions).save(folder / "gradient.safetensors")


def fit(vlm: si.VLM, folder: Path) -> None:
    """A fit of all heads and MLPs with retention, on 96 questions."""
    train = si.load_questions("scenes/relation", split="train", n=96)
    retain = si.load_questions("scenes/exists", split="train", n=32)
    si.fit_scale(vlm, train, retain=retain, epochs=10, batch_size=16).save_pretrained(folder / "scale")


def kills() -> dict:
    """Every attempt is a process of its own, forked from this one so that the model is loaded once."""
    torch.set_num_threads(1)
    vlm, draw, found = si.load("demo"), random.Random(DRAW), {}
    # A batch writes a part: many parts, many moments.
    vlm.memory = 2**21
    for name, work in (("sweep", sweep), ("fit", fit)):
        with tempfile.TemporaryDirectory() as start:
            whole = Path(start, "whole")
            seconds = _forked(vlm, work, whole, None)
            expected, rows = _digest(whole), []
            while len(rows) < KILLS:
                folder, moment = Path(start, str(len(rows))), draw.uniform(0, seconds)
                if _forked(vlm, work, folder, moment) is not None:
                    continue  # it was faster this time, and done before the moment came
                kept = len(list(folder.glob("parts/*/*.safetensors")))
                seconds_after = _forked(vlm, work, folder, None)
                after = _digest(folder)
                equal = after == expected
                if not equal:
                    print("differs:", [n for n in after.keys() | expected.keys() if after.get(n) != expected.get(n)], flush=True)
                rows.append({"killed_after": moment, "parts_kept": kept, "equal": equal, "seconds_after": seconds_after})
                print(name, len(rows), f"killed after {moment:.2f} s, {kept} parts kept, equal: {equal}", flush=True)
        found[name] = {"seconds": seconds, "kills": rows}
    return found


def _forked(vlm: si.VLM, work: Callable[[si.VLM, Path], None], folder: Path, moment: float | None) -> float | None:
    """Run `work` in a process of its own, killed after `moment` seconds; the seconds it took, None where it was killed."""
    folder.mkdir(exist_ok=True)
    started, child = time.perf_counter(), os.fork()
    if child == 0:
        with si.resumable(folder / "parts"):
            work(vlm, folder)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if moment is not None and time.perf_counter() - started > moment:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    return time.perf_counter() - started


def _digest(folder: Path) -> dict[str, str]:
    """What the work wrote, byte for byte."""
    # A file that was being written when the process died lies beside the others under a name with a dot.
    files = [p for p in folder.rglob("*") if p.is_file() and "parts" not in p.parts and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def memory() -> dict:
    """Resident memory after every batch of zero ablation, all heads, 2,000 questions."""
    torch.set_num_threads(1)
    vlm, questions = si.load("demo"), si.load_questions("scenes/relation", split="train", n=2000)
    process, rows, work = psutil.Process(), [], paths.packed_work

    def watched(vlm: si.VLM, prefix: Prefix, edit: si.Edit) -> BatchResult:
        found = work(vlm, prefix, edit)
        gc.collect()
        rows.append((prefix.rows.stop, process.memory_info().rss / 2**20))
        return found

    paths.packed_work = watched
    si.ablate(vlm, questions)
    paths.packed_work = work
    asked, used = np.array(rows).T
    settled = asked > WARM
    line = stats.linregress(asked[settled], used[settled])
    half = stats.t.ppf(0.975, settled.sum() - 2) * line.stderr
    noise = float(np.std(used[settled] - line.intercept - line.slope * asked[settled]))
    results = len(questions) * vlm.n_layers * vlm.n_heads * 4 * 2 * 4 / 2**20
    return {
        "questions": asked.astype(int).tolist(),
        "mib": used.round(2).tolist(),
        "slope_kib": line.slope * 1024,
        "low_kib": (line.slope - half) * 1024,
        "high_kib": (line.slope + half) * 1024,
        "noise_mib": noise,
        "peak_mib": float(used.max()),
        "scores_mib": results,
    }


WARM = 400
"""Questions after which allocators and caches have settled."""


def spill() -> dict:
    """Reading 500 prompts, writing them to disk, and taking them from there, against reading them again."""
    vlm, asked = open_model("realistic/8x8x512"), si.load_questions("scenes/relation", n=500)
    found = {"model": vlm.name, "prompts": len(asked), "threads": torch.get_num_threads()}
    found["tokens"] = vlm.encode(asked[0])["input_ids"].shape[1]
    prompts = PrefixStore(vlm, asked, cache="disk")
    found["read_and_written"] = _timed(prompts)
    found["gib"] = sum(p.stat().st_size for p in prompts._spill.folder.iterdir()) / 2**30
    found |= {"from_disk": _timed(prompts), "reads": prompts.reads, "batches": len(prompts)}
    del prompts
    found["again"] = _timed(PrefixStore(vlm, asked, cache="recompute"))
    return found


def _timed(prompts: PrefixStore) -> float:
    started = time.perf_counter()
    for _ in prompts:
        pass
    return time.perf_counter() - started


def speed() -> dict:
    """Seconds of zero ablation by the number of questions, and by the number of heads on a model of realistic shape."""
    small, wide = si.load("demo"), open_model(WIDE)
    asked = si.load_questions("scenes/relation", n=800)
    every = [(layer, head) for layer in range(wide.n_layers) for head in range(wide.n_heads)]
    rows: dict[str, list] = {"questions": [], "heads": []}
    for repeat in range(1 + REPEATS):
        for n in (50, 100, 200, 400, 800):
            started = time.perf_counter()
            si.ablate(small, asked[:n])
            rows["questions"].append((n, time.perf_counter() - started))
        for every_nth in (16, 8, 4, 2, 1):
            # Every n-th head of each layer: the same mixture of layers at every number.
            edit = si.HeadSweep(tuple(every[::every_nth]), wide.n_heads, 0.0)
            started = time.perf_counter()
            si.run_edits(wide, asked[:2], edit)
            rows["heads"].append((len(edit.heads), time.perf_counter() - started))
        if not repeat:
            rows = {name: [] for name in rows}  # the first round warms up
    return rows | {"threads": torch.get_num_threads()}


WIDE, REPEATS = "realistic/8x64x512", 5


def page() -> None:
    found = read_json(NUMBERS)
    parts = [HEAD, _kills(found), _memory(found["memory"]), _spill(found["spill"]), _speed(found["speed"]), _estimate(), TAIL]
    write_bytes(DOCS / "long_runs.md", "\n".join(parts).encode())
    _memory_figure(found["memory"]).write_image(DOCS / "images" / "long_runs_memory.png", scale=2)
    _speed_figure(found["speed"]).write_image(DOCS / "images" / "long_runs_speed.png", scale=2)


HEAD = """# Long runs

Real sweeps take hours and are interrupted: by a queue's time limit, by memory, by hand. This page says what is done about it and what was
measured. Its numbers are written by

    python -m docs.studies.long_runs kills memory spill speed

## A run that resumes

```python
import scale_interp as si

vlm = si.load("demo")
questions = si.load_questions("scenes/relation", n=32)

with si.resumable("runs/my-sweep"):
    m = si.ablate(vlm, questions)
    scale = si.fit_scale(vlm, si.load_questions("scenes/relation", split="train", n=64), epochs=3)
```

Inside the block every batch of questions is on disk as soon as it is computed, and a fit after each epoch. Run the same lines again
after a crash and they resume where they were: **the numbers are the same to the last bit**. What is stored is named by a hash of the
weights, the questions with their images, the edit and the scoring, so other work never mixes in; each file is written whole, carries a
checksum, and is computed again, with a warning, if it is damaged. A second process on the same folder is refused, with the name of the
first. Delete the folder when you are done.

All commands of `scale-interp` work in such a block already; see [run folders](runs.md).

Not stored: work on a model that carries your own hooks (its weights alone do not determine what it computes). Joint probes, LoRA and IA3
baselines start again.
"""
TAIL = """## Many machines

```python no-run
with si.cluster("ray://head:10001"):  # or "auto", or nothing: a Ray of this machine's own
    m = si.ablate(vlm, questions)
    ev = si.evaluate(vlm, test, scale)
    fr = si.falsify(vlm, train, test)
```

`pip install "scale-interp[ray]"`. One worker per GPU (or one for as many cores as torch has threads here) loads the model with the
arguments of your `si.load`, so a model that takes several GPUs does so there too, with the `device_map` you gave. Batches are distributed,
answers merged in order, and the numbers are those of one process, bit for bit on one type of device: batches and chunks are cut the same
way everywhere. A worker or a machine that dies costs the batches it was working on, which others repeat. Fits run in your own process, as
their steps depend on each other; a model in memory is refused, as no worker could load it. The commands do the same with `--ray`, or
`--ray-address ADDRESS`. Both blocks may be nested: what workers send is stored in the folder as it arrives.

Images that are paths, and the model's folder, must be readable on every machine. That two machines (two raylets on loopback) survive a
killed worker and then a killed machine, with equal numbers, is a test: `pytest -m cluster`. Several real machines, and GPUs, have not
been tried.

## When memory is short

- **Variants**: as many heads run side by side as fit; if memory still runs out, the chunk is halved, with a warning.
- **PrefixStore**: `si.load(..., prefix_cache=...)` or `vlm.prefix_cache` says where the keys and values of prompts are kept while they are
  needed again, as by a fit in every epoch: `"auto"`, `"memory"`, `"host"`
  (the machine's memory beside a GPU, pinned), `"disk"` (checksummed files under `TMPDIR`), `"recompute"`. `"auto"` takes a quarter of the
  device's free memory, and beyond it the place that gives prompts back soonest, reading them again included; the costs are measured on this
  machine. The numbers are the same in all of them. `vlm.memory` bounds one packed call in bytes.
- **Fits**: a batch is run in micro-batches that memory holds (`micro_batch=`), and memory that runs out halves them, in `attribute` and
  `integrated_gradients` too.
- A full disk gives a message, and prompts that do not fit are read again.
"""


def _kills(found: dict) -> str:
    rows = []
    for name, what in (
        ("sweep", "patching, mean ablation and gradient on 64 questions"),
        ("fit", "10 epochs on 96 questions with retention"),
    ):
        all_kills = found["kills"][name]["kills"]
        kept = sorted(row["parts_kept"] for row in all_kills)
        rows.append(
            [what, f"{sum(r['equal'] for r in all_kills)} of {len(all_kills)}", f"{kept[0]} to {kept[-1]}, median {kept[len(kept) // 2]}"]
        )
    return f"""## Killed fifty times

`kill -9` at random moments, drawn evenly over the time that the work takes undisturbed, on `demo`; then the same lines again in a new
process, and all files that they write compared byte for byte with those of a process that was not stopped.

{table(pd.DataFrame(rows, columns=["work", "equal after resuming", "parts on disk when killed"]))}
"""


def _memory(found: dict) -> str:
    scores = found["scores_mib"] * 1024 / found["questions"][-1]
    slope, low, high = (found[f"{name}_kib"] for name in ("slope", "low", "high"))
    verdict = "noise" if low <= scores <= high else "not explained by noise"
    return f"""## Memory

Zero ablation of all heads of `demo` on {found["questions"][-1]:,} questions, resident memory after every batch:

![memory](images/long_runs_memory.png)

Peak {found["peak_mib"]:.0f} MiB, torch and transformers included. From question {WARM} on the slope is {slope:.2f} KiB a question
[{low:.2f}, {high:.2f}] (95%), beside a scatter of {found["noise_mib"]:.1f} MiB. The scores that the sweep is for take {scores:.2f} KiB a
question ({found["scores_mib"]:.1f} MiB in the end); what is left, {slope - scores:+.2f} [{low - scores:+.2f}, {high - scores:+.2f}], is
{verdict}.
"""


def _spill(found: dict) -> str:
    return f"""## Prompts on disk

`{found["model"]}` (random weights), {found["prompts"]} prompts of {found["tokens"]} tokens, {
        found["gib"]:.1f} GiB of keys and values in float32,
{found["threads"]} threads:

{
        table(
            pd.DataFrame(
                [
                    [
                        "read by the model and written to disk",
                        f"{found['read_and_written']:.0f}",
                        f"{found['read_and_written'] / found['again']:.2f}",
                    ],
                    ["taken from disk, checksums and all", f"{found['from_disk']:.0f}", f"{found['from_disk'] / found['again']:.2f}"],
                    ["read by the model again", f"{found['again']:.0f}", "1.00"],
                ],
                columns=["", "seconds", "times reading again"],
            )
        )
    }

The model read each of the {found["batches"]} batches {found["reads"] / found["batches"]:.0f} time in the first two rows. The files were
fresh, so part of them came from the system's own cache.
"""


def _speed(found: dict) -> str:
    by_question, by_head = _line(found["questions"]), _line(found["heads"])
    return f"""## Linear in questions and heads

![speed](images/long_runs_speed.png)

Medians of {REPEATS} rounds, {found["threads"]} threads. Left: zero ablation of all 48 heads of `demo`,
{by_question.slope * 1000:.1f} ms a question (r² of the line {by_question.rvalue**2:.4f}). Right: two questions of `{WIDE}`,
{by_head.slope * 1000:.2f} ms a head beside {by_head.intercept:.2f} s for the prompts (r² {by_head.rvalue**2:.4f}).
"""


def _line(rows: list) -> object:
    return stats.linregress(*_medians(rows))


def _medians(rows: list) -> tuple[list, list]:
    counts = sorted({n for n, _ in rows})
    return counts, [float(np.median([s for m, s in rows if m == n])) for n in counts]


def _memory_figure(found: dict) -> go.Figure:
    fig = go.Figure(go.Scatter(x=found["questions"], y=found["mib"], mode="lines", line={"color": look(False).series[0], "width": 2}))
    fig.update_xaxes(title_text="questions done").update_yaxes(title_text="resident memory (MiB)", rangemode="tozero")
    return frame(fig, "Memory of one sweep", "Zero ablation of all heads of demo.", width=720, height=320, dark=False)


def _speed_figure(found: dict) -> go.Figure:
    fig = make_subplots(1, 2, horizontal_spacing=0.14)
    for column, name in enumerate(("questions", "heads"), 1):
        line, (counts, seconds), colour = _line(found[name]), _medians(found[name]), look(False).series[column - 1]
        ends = [0, counts[-1]]
        fig.add_scatter(
            x=ends, y=[line.intercept + line.slope * n for n in ends], mode="lines", line={"color": look(False).muted}, row=1, col=column
        )
        fig.add_scatter(x=counts, y=seconds, mode="markers", marker={"color": colour, "size": 9}, row=1, col=column)
        fig.update_xaxes(title_text=name, rangemode="tozero", row=1, col=column).update_yaxes(
            title_text="seconds", rangemode="tozero", row=1, col=column
        )
    return frame(
        fig, "Time is linear in questions and in heads", "Points: medians. Line: least squares.", width=900, height=320, dark=False
    )


PEAK, SHARES, TOKENS, A_WORKER = 989e12, (0.2, 0.5), 1000, 2
"""bfloat16 operations a second of an H200 by its maker, the shares of it to reckon with, a prompt's tokens, and a worker's GPUs."""


def _estimate() -> str:
    bench = read_json(HERE / "bench-realistic.json")["benchmarks"]
    over = {b["about"]["variants"]: _seconds(b, "packed (ours)") / _seconds(b, "one plain forward over as many tokens") for b in bench}
    layers, heads, parameters, questions = 80, 64, 72e9, 10_000
    work = 2 * parameters * (TOKENS + layers * heads) * max(over.values()) * questions
    naive = 2 * parameters * TOKENS * layers * heads * questions
    rows = []
    for gpus in (8, 64):
        fast, slow = (work / (gpus / A_WORKER * PEAK * share) / 3600 for share in reversed(SHARES))
        days = naive / (gpus / A_WORKER * PEAK * SHARES[1]) / 86400
        rows.append([str(gpus), str(gpus // A_WORKER), f"{fast:.1f} to {slow:.1f} hours", f"{days:,.0f} days"])
    columns = ["GPUs", "workers", "all heads, packed", f"one whole run a head, at {SHARES[1]:.0%}"]
    ratios, numbers = (" and ".join(f"{x:{how}}" for x in values) for values, how in ((over.values(), ".2f"), (over, ",")))
    return f"""## On paper: 72B

A sweep of all {layers * heads:,} heads of a 72B model ({layers} layers x {heads} heads) over {questions:,} questions of {TOKENS:,} tokens.
The unit cost is measured: for {numbers} heads our sweep takes {ratios} times one plain forward pass over as many tokens as prompt and heads
together (`docs/studies/bench-realistic.json`); the larger is used. A forward pass is 2 operations a parameter and token. A GPU does
{PEAK / 1e12:.0f} TFLOP/s in bfloat16 by its maker, of which {SHARES[0]:.0%} to {SHARES[1]:.0%} are assumed. The weights are
{2 * parameters / 1e9:.0f} GB, so a worker takes {A_WORKER} GPUs of 141 GB (`device_map="auto"`), of which one is busy at a time. Nothing of
this was run on a GPU.

{table(pd.DataFrame(rows, columns=columns))}
"""


def _seconds(bench: dict, way: str) -> float:
    return next(row["seconds"] for row in bench["rows"] if row["way"] == way)


def main(names: list[str]) -> None:
    found = read_json(NUMBERS) if NUMBERS.exists() else {}
    for name in names:
        found[name] = {"kills": kills, "memory": memory, "spill": spill, "speed": speed}[name]()
        write_json(NUMBERS, found | {"versions": versions()})
    if {"kills", "memory", "spill", "speed"} <= found.keys():
        page()


if __name__ == "__main__":
    main(sys.argv[1:])
