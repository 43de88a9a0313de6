"""docs/results.md from the run folders of the three embedded models and a benchmark: python -m docs.studies.results

With the folders of benchmarks, the section of speed alone and the files that it is made of: python -m docs.studies.results runs/bench-*
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scale_interp.bench import Benchmark, read_benchmarks, write_benchmarks
from scale_interp.core.files import read_json, write_bytes
from scale_interp.jobs.run.page import FITS, change

HERE = Path(__file__).parent
DOCS = HERE.parent
MODELS = ("demo", "demo-healthy", "demo-prior")


def main(folders: Sequence[str]) -> None:
    if folders:
        measure_speed([found for folder in folders for found in read_benchmarks(Path(folder) / "bench.json")])
        return
    summaries = {name: read_json(Path("runs") / f"{name}-scenes-relation" / "summary.json") for name in MODELS}
    measured = [found for name in ("realistic", "demo") for found in read_benchmarks(HERE / f"bench-{name}.json")]
    parts = [HEAD, *(model(name, found) for name, found in summaries.items()), SPEED, *map(speed, measured)]
    write_bytes(DOCS / "results.md", "\n".join(parts).encode())


def measure_speed(measured: Sequence[Benchmark]) -> None:
    """The benchmarks' files, their image, and the section of speed."""
    from scale_interp.viz import speed as draw

    of_shapes = [found for found in measured if found.about["model"] != "demo"]
    write_benchmarks(HERE / "bench-realistic.json", of_shapes)
    write_benchmarks(HERE / "bench-demo.json", [found for found in measured if found.about["model"] == "demo"])
    draw(of_shapes).write_image(DOCS / "images" / "speed.png", scale=2)
    before, *_ = (DOCS / "results.md").read_text().partition(SPEED.partition("\n")[0])
    write_bytes(DOCS / "results.md", "\n".join([before + SPEED, *map(speed, measured)]).encode())


HEAD = """# What was measured

On two CPU cores. `python -m docs.studies.results` writes this page from the runs and the benchmark that it names; `python -m
docs.studies.images runs/demo-scenes-relation` draws the images. Base and gains are on 400 balanced test questions of scenes whose set
of things is in no training scene; intervals are 95%, paired, over images; p is Holm-corrected over the whole suite, and for the rows on
format (raw prompt, bias over the vocabulary) among themselves. P(any option) is the mean probability that the answer is any of the options
([what the controls are](falsification.md)).
"""


def model(name: str, found: dict[str, Any]) -> str:
    base, spread = found["base"], found["sparsity"]["patch"]
    fits = "\n".join(
        f"| {FITS[n]} | {r['parameters']} | {r['accuracy']:.3f} | {change(r, 'gain')} | {r['non_spatial_change']:+.3f} |"
        for n, r in found["fits"].items()
    )
    ranks = "\n".join(
        f"| {m} | {s['heads_to_half']} | {s['share_top4']:.2f} | {s['significant']} | {rank(a['scalar'])} |"
        for (m, s), a in zip(found["sparsity"].items(), found["scalars_against_attribution"].values(), strict=True)
    )
    suites = "\n\n".join(suite(FITS[n], f) for n, f in found["falsification"].items())
    return f"""## `{name}`

    scale-interp run {name}

Base accuracy {base["accuracy"]:.3f} [{base["low"]:.3f}, {base["high"]:.3f}], chance {base["chance"]:.2f}.

| fit (one seed) | parameters | accuracy | gain | non-spatial change |
|---|---|---|---|---|
{fits}

Half of the recovered logit difference is in {spread["heads_to_half"]} of {spread["heads"]} heads. Each method's map, and its rank
correlation with the learned scalars:

| method | heads to half | share of top 4 | significant heads | Spearman with the scalars |
|---|---|---|---|---|
{ranks}

{suites}
"""


def rank(found: dict[str, float | None]) -> str:
    return "all scalars are 1" if found["spearman"] is None else f"{found['spearman']:+.2f} (p = {found['p']:.2g})"


def suite(title: str, found: dict[str, Any]) -> str:
    lines = [f"| base model | | | | {found['base_split']['mass']:.3f} |"]
    for name, r in found["controls"].items():
        elsewhere = f"{r['others_change']:+.3f}" if "others_change" in r else ""
        lines.append(f"| {name} | {change(r, 'gain')} | {r['p_corrected']:.2g} | {elsewhere} | {r['mass']:.3f} |")
    rows = "\n".join(lines)
    return f"""**Falsification, {title}, mean of three seeds.** {found["verdict"]} With scalars frozen at 1,
{found["frozen_changed"]} answers and {found["frozen_bits_changed"]} logits changed.

| control | gain | corrected p | non-spatial change | P(any option) |
|---|---|---|---|---|
{rows}"""


SPEED = """## Speed

    scale-interp bench realistic/8x8x512 --questions 1 --memory --repeats 3 --out runs/bench-64
    scale-interp bench realistic/32x32x1024 --questions 1 --memory --repeats 3 --sample 9 --out runs/bench-1024
    scale-interp bench demo --repeats 3 --out runs/bench-demo
    python -m docs.studies.results runs/bench-64 runs/bench-1024 runs/bench-demo

All heads zero-ablated one by one, in every way on the same questions in one run, including reading the prompts; medians over the repeats,
ratios within a repeat. Where one run per head would take more than a minute, the heads that were timed are spread over layers and repeats
and represent all; any other way that takes more than a minute is timed once. `realistic/...` is a LLaVA with random weights, 576 image
tokens, and layers x heads x width as named. Peak memory is that of fresh processes. No GPU was available.

![ratios](images/speed.png)
"""


def speed(found: Benchmark) -> str:
    about = found.about
    rows = "\n".join(
        f"| {r.way} | {r.seconds:,.3f} | {r.ratio:,.2f} | {'' if r.largest_difference is None else f'{r.largest_difference:.1e}'} "
        f"| {found.sampled(r) or 'all heads'} |"
        for r in found.rows
    )
    memory = found.memory
    peak = "" if memory is None else f" Peak memory {memory.sweep / 1e9:.2f} GB, {memory.ratio:.2f} times that of one forward pass."
    return f"""### {about["variants"]:,} heads of `{about["model"]}`

{about["questions"]} question(s) of {about["tokens"]} tokens, {about["repeats"]} repeats, {about["threads"]} threads, {about["dtype"]}.

| way | seconds | times ours | largest difference of a score | timed |
|---|---|---|---|---|
{rows}

Ours takes {found.over_limit:.2f} times a plain forward pass over as many tokens. nnsight's share of the same sweep in a trace:
{found.nnsight_share:.1%}{" (less than the noise)" if found.nnsight_share < 0 else ""}.{peak}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
