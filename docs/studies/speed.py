"""docs/speed.md and speed.json: python -m docs.studies.speed [locate evaluate memory] [--questions 64]; without a name, the page alone.

locate: seven methods on 64 questions, each prompt read once, against the methods one by one. evaluate: 64 questions against the plain
forward passes of their prompts. memory: the peak of a fit in micro-batches against a sweep's.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import scale_interp as si
from scale_interp.bench.memory import measure_fit_memory, measure_sweep_memory
from scale_interp.bench.realistic import open_model
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.interventions.prefix import PrefixStore

HERE = Path(__file__).parent
NUMBERS = HERE / "speed.json"
MODEL = "realistic/8x8x512"
QUESTIONS, MICRO = 64, 4


def locate(n: int = QUESTIONS, model: str = MODEL) -> dict[str, Any]:
    """Seconds of seven methods together and one by one, in one run, and how far their maps differ."""
    vlm, asked = _model(model), si.load_questions("scenes/relation", "train", n=n)
    pairs = si.contrasts(asked)
    alone: dict[str, Callable[[], si.HeadMap]] = {
        "patch": lambda: si.patch(vlm, pairs),
        "attribution_patching": lambda: si.attribute(vlm, pairs),
        "zero": lambda: si.ablate(vlm, asked, "zero"),
        "mean": lambda: si.ablate(vlm, asked, "mean"),
        "resample": lambda: si.ablate(vlm, asked, "resample"),
        "amplify": lambda: si.amplify(vlm, asked),
        "gradient": lambda: si.attribute(vlm, asked),
    }
    together, seconds = _timed(lambda: si.head_maps(vlm, asked, pairs))
    each = {name: _timed(make) for name, make in alone.items()}
    away = max(float((together[name].per_question - m.per_question).abs().max()) for name, (m, _) in each.items())
    one_by_one = {name: took for name, (_, took) in each.items()}
    whole = {clock: sum(took[clock] for took in one_by_one.values()) for clock in seconds}
    return _about(vlm, n) | {
        "together": seconds,
        "one_by_one": one_by_one,
        "ratio": {clock: whole[clock] / seconds[clock] for clock in seconds},
        "largest_difference": away,
    }


@torch.no_grad()
def evaluate(n: int = QUESTIONS, model: str = MODEL, repeats: int = 3) -> dict[str, Any]:
    """Seconds of `evaluate` and of plain forward passes of the same prompts in the same batches, whose images and tokens are ready."""
    vlm, asked = _model(model), si.load_questions("scenes/relation", "test", n=n)
    size = PrefixStore(vlm, asked).batch_size
    ready = [vlm.encode(asked[i : i + size]) for i in range(0, n, size)]

    def plain() -> None:
        for inputs in ready:
            vlm.hf_model(**inputs, use_cache=False, logits_to_keep=1)

    si.evaluate(vlm, asked[:size])
    times = [(_timed(lambda: si.evaluate(vlm, asked))[1], _timed(plain)[1]) for _ in range(repeats)]
    middle = {clock: sorted((a[clock] / b[clock], i) for i, (a, b) in enumerate(times))[repeats // 2] for clock in ("wall", "cpu")}
    ours, forward = times[middle["wall"][1]]
    ratio = {clock: value for clock, (value, _) in middle.items()}
    return _about(vlm, n) | {"evaluate": ours, "forward": forward, "ratio": ratio, "repeats": repeats}


def memory(n: int = QUESTIONS, model: str = MODEL, micro: int = MICRO) -> dict[str, Any]:
    """Peak bytes of fresh processes: sweeps over all heads of n questions and of `micro`, and fits with prompts kept and read again."""
    (loaded, sweep), (_, few) = (measure_sweep_memory(model, size) for size in (n, micro))
    kept, again = (measure_fit_memory(model, n, micro, place) for place in ("memory", "recompute"))
    return {
        "batch": n,
        "micro_batch": micro,
        "loaded": loaded,
        "sweep": sweep,
        "sweep_of_few": few,
        "fit": kept,
        "fit_reading_again": again,
        "ratio": kept / sweep,
        "ratio_reading_again": again / few,
    }


def _model(name: str) -> si.VLM:
    vlm = open_model(name)
    si.evaluate(vlm, si.load_questions("scenes/relation", n=1))  # checks the paths
    return vlm


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and seconds by the clock and of this process' CPU time, which does not depend on what else the machine does."""
    started, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def _about(vlm: si.VLM, n: int) -> dict[str, Any]:
    return {"model": vlm.name, "questions": n, "threads": torch.get_num_threads(), "versions": versions()}


PAGE = """# What a run costs on a CPU

    python -m docs.studies.speed evaluate memory
    python -m docs.studies.speed locate --questions {n}

`{model}` with random weights: a LLaVA of 64 heads, prompts of 595 tokens. {threads} thread(s). The machine did
other work meanwhile, so CPU seconds are what counts.

**Locating heads.** Seven methods on {n} questions with `si.head_maps`, which reads each prompt once, against the same methods one by one,
in one run. The maps differ by at most {away:.0e}.

| | seconds | CPU seconds |
|---|---|---|
| together | {together[wall]:.1f} | {together[cpu]:.1f} |
{methods}
| one by one, all | {alone[wall]:.1f} | {alone[cpu]:.1f} |
| ratio | **{locate[wall]:.1f}** | **{locate[cpu]:.1f}** |

**Answering.** `si.evaluate` of {answered} questions, images and tokens included, against plain forward passes of their prompts in the same
batches, images and tokens ready; the median of {repeats} repeats. It can be below 1, as the last layer's MLP runs for the last token alone.

| | seconds | CPU seconds |
|---|---|---|
| `si.evaluate` | {evaluate[wall]:.1f} | {evaluate[cpu]:.1f} |
| forward passes | {forward[wall]:.1f} | {forward[cpu]:.1f} |
| ratio | **{share[wall]:.2f}** | **{share[cpu]:.2f}** |

**Memory of a fit.** One batch of {batch} questions in micro-batches of {micro}, all heads and MLPs, peak of the process:

| | GB | sweep | GB | ratio |
|---|---|---|---|---|
| prompts kept in memory | {fit:.2f} | all heads, {batch} questions at once | {sweep:.2f} | **{memory:.2f}** |
| prompts read again | {again:.2f} | all heads, {micro} questions at once | {few:.2f} | **{memory_again:.2f}** |

The model alone takes {loaded:.2f} GB.

On a GPU none of this was measured yet: `python -m docs.studies.gpu` does it.
"""


def page(found: dict[str, Any]) -> str:
    locate, evaluate, memory = (found[name] for name in ("locate", "evaluate", "memory"))
    gb = {name: memory[key] / 1e9 for name, key in (("fit", "fit"), ("sweep", "sweep"), ("few", "sweep_of_few"), ("loaded", "loaded"))}
    return PAGE.format(
        model=locate["model"],
        threads=locate["threads"],
        n=locate["questions"],
        together=locate["together"],
        alone={clock: sum(took[clock] for took in locate["one_by_one"].values()) for clock in locate["together"]},
        locate=locate["ratio"],
        away=locate["largest_difference"],
        methods="\n".join(f"| {name} | {took['wall']:.1f} | {took['cpu']:.1f} |" for name, took in locate["one_by_one"].items()),
        evaluate=evaluate["evaluate"],
        forward=evaluate["forward"],
        repeats=evaluate["repeats"],
        share=evaluate["ratio"],
        answered=evaluate["questions"],
        batch=memory["batch"],
        micro=memory["micro_batch"],
        memory=memory["ratio"],
        memory_again=memory["ratio_reading_again"],
        again=memory["fit_reading_again"] / 1e9,
        **gb,
    )


def main(arguments: list[str]) -> None:
    n = int(arguments[arguments.index("--questions") + 1]) if "--questions" in arguments else QUESTIONS
    for name in (a for a in arguments if a in ("locate", "evaluate", "memory")):
        measured = {"locate": locate, "evaluate": evaluate, "memory": memory}[name](n)
        print(name, measured, flush=True)
        write_json(NUMBERS, (read_json(NUMBERS) if NUMBERS.exists() else {}) | {name: measured})
    found = read_json(NUMBERS)
    if {"locate", "evaluate", "memory"} <= found.keys():
        write_bytes(HERE.parent / "speed.md", page(found).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
