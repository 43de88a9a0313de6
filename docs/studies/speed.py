"""docs/speed.md, speed.json: python -m docs.studies.speed [locate evaluate memory step] [--questions 64]; without a name, the page alone.

locate: seven methods on 64 questions, each prompt read once, against the methods one by one. evaluate: 64 questions against the plain
forward passes of their prompts, and 256 on `demo`. memory: the peak of a fit in micro-batches against a sweep's. step: where the time of a
step of a fit goes, on `demo` and in one and two layers of LLaVA-1.5-7B's shape.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import scale_interp as si
from scale_interp.bench.fit_step import measure_fit_step
from scale_interp.bench.memory import measure_fit_memory, measure_sweep_memory
from scale_interp.bench.realistic import open_model
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.interventions.prefix import PrefixStore

HERE = Path(__file__).parent
NUMBERS = HERE / "speed.json"
MODEL = "realistic/8x8x512"
QUESTIONS, MICRO = 64, 4
SEVEN_B = "realistic/{}x32x4096"
"""A decoder of LLaVA-1.5-7B's width, heads and MLPs, with so many of its 32 layers."""
LAYERS, PROMPTS = 32, 16


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
    """Seconds of `evaluate`, of plain forward passes of the same prompts in the same batches, and of their images and tokens."""
    vlm, asked = _model(model), si.load_questions("scenes/relation", "test", n=n)
    size = PrefixStore(vlm, asked).batch_size
    batches = [asked[i : i + size] for i in range(0, n, size)]
    ready = [vlm.encode(part) for part in batches]

    def plain() -> None:
        for inputs in ready:
            vlm.hf_model(**inputs, use_cache=False, logits_to_keep=1)

    work = {"evaluate": lambda: si.evaluate(vlm, asked), "forward": plain, "encoding": lambda: [vlm.process(part) for part in batches]}
    si.evaluate(vlm, asked[:size])
    times = [{name: _timed(run)[1] for name, run in work.items()} for _ in range(repeats)]
    clocks = ("wall", "cpu")
    ratios = {clock: [t["evaluate"][clock] / t["forward"][clock] for t in times] for clock in clocks}
    encoded = {clock: [t["evaluate"][clock] / (t["forward"][clock] + t["encoding"][clock]) for t in times] for clock in clocks}
    ratio, with_encoding = ({clock: statistics.median(found[clock]) for clock in clocks} for found in (ratios, encoded))
    seconds = {name: {clock: statistics.median(t[name][clock] for t in times) for clock in clocks} for name in work}
    return _about(vlm, n) | seconds | {"ratio": ratio, "ratio_with_encoding": with_encoding, "repeats": repeats}


def step(n: int = PROMPTS, shape: str = SEVEN_B, small: str = "demo", repeats: int = 15) -> dict[str, Any]:
    """What is in a step of one fit: on `demo` with its usual batch, and on n prompts in one layer, two, and by these in all 32."""
    demo = _model(small)
    asked = si.load_questions("scenes/relation", "train", n=max(QUESTIONS, n))
    few, more = (measure_fit_step(open_model(shape.format(layers)), asked[:n], repeats=repeats) for layers in (1, 2))
    steps = {
        "small": measure_fit_step(demo, asked[:QUESTIONS], repeats=repeats),
        "one": few,
        "two": more,
        "all": more.of_layers(few, LAYERS),
    }
    return _about(demo, n) | {"repeats": repeats} | {name: found.content() for name, found in steps.items()}


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

    python -m docs.studies.speed locate evaluate memory step

`{model}` with random weights: a LLaVA of 64 heads, prompts of 595 tokens. {threads} thread(s), on a machine with
nothing else to do.

**Locating heads.** Seven methods on {n} questions with `si.head_maps`, which reads each prompt once, against the same methods one by one,
in one run. The maps differ by at most {away:.0e}.

| | seconds | CPU seconds |
|---|---|---|
| together | {together[wall]:.1f} | {together[cpu]:.1f} |
{methods}
| one by one, all | {alone[wall]:.1f} | {alone[cpu]:.1f} |
| ratio | **{locate[wall]:.1f}** | **{locate[cpu]:.1f}** |

**Answering.** `si.evaluate`, images and tokens included, against plain forward passes of the same prompts in the same batches; medians of
{repeats} repeats. It can be below 1, as the last layer's MLP runs for the last token alone.

{answering}

**Memory of a fit.** One batch of {batch} questions in micro-batches of {micro}, all heads and MLPs, peak of the process:

| | GB | sweep | GB | ratio |
|---|---|---|---|---|
| prompts kept in memory | {fit:.2f} | all heads, {batch} questions at once | {sweep:.2f} | **{memory:.2f}** |
| prompts read again | {again:.2f} | all heads, {micro} questions at once | {few:.2f} | **{memory_again:.2f}** |

The model alone takes {loaded:.2f} GB.

{step}

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
        answering=answering([evaluate, found["evaluate_demo"]]),
        repeats=evaluate["repeats"],
        step=steps(found["step"]),
        batch=memory["batch"],
        micro=memory["micro_batch"],
        memory=memory["ratio"],
        memory_again=memory["ratio_reading_again"],
        again=memory["fit_reading_again"] / 1e9,
        **gb,
    )


def answering(found: list[dict[str, Any]]) -> str:
    """The table of `evaluate` on several models."""
    rows = [
        f"| {about['questions']} on `{about['model']}` | {about['evaluate']['wall']:.2f} | {about['forward']['wall']:.2f} "
        f"| {about['encoding']['wall']:.2f} | **{about['ratio']['wall']:.2f}** | {about['ratio_with_encoding']['wall']:.2f} |"
        for about in found
    ]
    head = "| questions | `si.evaluate`, seconds | forward passes | images and tokens | evaluate / forward | / forward, images and tokens |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def steps(found: dict[str, Any]) -> str:
    """What is in a step of a fit, in milliseconds."""
    columns = {"small": found["model"], "one": "one layer", "two": "two layers", "all": f"all {found['all']['layers']}"}
    parts = {
        "modules": "layers, over the rows of the fit",
        "attention": "attention to the prompts",
        "edits": "edits, rows side by side, reading choices",
        "rest": "losses, checks, optimiser",
        "whole": "the step",
    }
    rows = [f"| {said} | " + " | ".join(f"{1000 * found[c][name]:.1f}" for c in columns) + " |" for name, said in parts.items()]
    shares = " | ".join(f"**{found[c]['beside_the_model']:.1%}**" for c in columns)
    return f"""**A step of a fit.** One fit of all heads and MLPs, forward and backward, behind prompts that were read, in milliseconds: on
`{found["model"]}` with {found["small"]["rows"]} questions, and on {found["questions"]} prompts of 595 tokens in one and two layers of
LLaVA-1.5-7B's shape in float32, by which all {found["all"]["layers"]} are worked out: each further layer adds what the second did. The
first two rows are the model, the others are not; the fastest of {found["repeats"]} repeats, and what is below 0 is less than the noise.

| | {" | ".join(columns.values())} |
|---|---|---|---|---|
{chr(10).join(rows)}
| beside the model | {shares} |"""


def main(arguments: list[str]) -> None:
    n = int(arguments[arguments.index("--questions") + 1]) if "--questions" in arguments else QUESTIONS
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "locate": lambda: locate(n),
        "evaluate": lambda: evaluate(n),
        "evaluate_demo": lambda: evaluate(4 * n, "demo", repeats=5),
        "memory": lambda: memory(n),
        "step": step,
    }
    for name in (part for a in arguments for part in parts if part in (a, f"{a}_demo")):
        measured = parts[name]()
        print(name, measured, flush=True)
        write_json(NUMBERS, (read_json(NUMBERS) if NUMBERS.exists() else {}) | {name: measured})
    found = read_json(NUMBERS)
    if parts.keys() <= found.keys():
        write_bytes(HERE.parent / "speed.md", page(found).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
