"""docs/gpu.md and gpu.json: python -m docs.studies.gpu [exactness sweep evaluate fit capped job]; all of them by default, on one GPU.

Random weights in the shapes of LLaVA-1.5-7B and Qwen2.5-VL-7B are made on the card, so no network is needed. With --tiny everything runs
on the CPU in a minute, to try the script; its numbers are printed and not kept.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

import scale_interp as si
from scale_interp.adapters.scale.fit import Fit, fit_scales, prompts_to_fit
from scale_interp.bench.fit_step import measure_fit_step
from scale_interp.bench.timing import bench
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.execution.memory import graph_budget, micro_batch, prompt_bytes, working_bytes
from scale_interp.interventions import kernels
from scale_interp.interventions.check import check
from scale_interp.interventions.paths import packed_batch
from scale_interp.interventions.placement import measure_places, placement
from scale_interp.interventions.prefix import PrefixStore, read_prefix
from scale_interp.interventions.sweep import HeadSweep
from scale_interp.jobs.run import run as main_job
from scale_interp.jobs.run.settings import Settings
from scale_interp.models.zoo import draw, families
from scale_interp.vlm.vlm import VLM

from .tables import table

HERE = Path(__file__).parent
NUMBERS = HERE / "gpu.json"
CAP = 24 * 10**9
"""Bytes of the card that is played under a cap: the memory of a common one."""
SIDE, PATCH = 336, 14


@dataclass(frozen=True)
class Shape:
    """A family with a decoder of this shape, and how much is asked of it."""

    family: str
    layers: int
    heads: int
    kv_heads: int
    width: int
    inner: int
    vocabulary: int
    vision_layers: int
    vision_width: int


LLAVA = Shape("llava", 32, 32, 32, 4096, 11008, 32064, 24, 1024)
QWEN = Shape("qwen2_5_vl", 28, 28, 4, 3584, 18944, 152064, 32, 1280)
TINY = Shape("llava", 2, 4, 4, 64, 128, 2048, 2, 80)
TINY_QWEN = Shape("qwen2_5_vl", 2, 4, 2, 64, 128, 2048, 2, 80)


@dataclass(frozen=True)
class Scale:
    """What is measured: the shapes, the device and dtype, and numbers of questions."""

    shapes: tuple[Shape, ...]
    device: str
    dtype: torch.dtype
    sweeps: tuple[int, ...]
    evaluated: int
    fitted: int
    repeats: int
    job: tuple[int, int, int, int, int]
    """Questions to train on, locate on, test on and retain, and seeds of the suite."""


FULL = Scale((LLAVA, QWEN), "cuda", torch.bfloat16, (1, 8), 64, 64, 3, (500, 120, 400, 100, 3))
SMOKE = Scale((TINY, TINY_QWEN), "cpu", torch.float32, (1, 2), 4, 8, 2, (16, 8, 8, 4, 1))


def build(shape: Shape, scale: Scale, dtype: torch.dtype | None = None) -> VLM:
    """A model of this shape with random weights, made on the device in its dtype."""
    tiny, processor = families.BUILDERS[shape.family]()
    config: Any = tiny.config
    text = config.text_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = shape.layers, shape.width, shape.inner
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = shape.heads, shape.kv_heads, shape.vocabulary
    text.head_dim, text.max_position_embeddings = shape.width // shape.heads, 32768
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * shape.layers
    if shape.family == "llava":
        config.vision_config = CLIPVisionConfig(
            hidden_size=shape.vision_width,
            intermediate_size=4 * shape.vision_width,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=max(1, shape.vision_width // 64),
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=shape.vision_width,
        )
        config.image_seq_length = (SIDE // PATCH) ** 2
        processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    else:
        half = shape.width // shape.heads // 2
        text.rope_parameters = text.rope_parameters | {"mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}
        config.vision_config.out_hidden_size = shape.width
        config.vision_config.depth, config.vision_config.hidden_size = shape.vision_layers, shape.vision_width
        config.vision_config.intermediate_size = 4 * shape.vision_width
        config.vision_config.num_heads = max(1, shape.vision_width // 80)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or scale.dtype)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(scale.device):
            torch.manual_seed(0)
            model = type(tiny)(config)
            draw(model)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    return VLM(model, processor, f"realistic/{shape.family} {shape.layers}x{shape.heads}x{shape.width}")


def exactness(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """How the paths agree in this dtype, and how the fused kernels agree with the attention written out."""
    report = check(vlm, si.load_questions("scenes/relation", n=1)[0])
    fused = {}
    for masked in (False, True):
        chosen = kernels._chosen(scale.device, vlm.dtype, vlm.head_dim, masked)
        fused["masked" if masked else "whole"] = None if chosen is None else chosen.__name__
    return {"path": report.path, "packed_reference": report.packed_reference, "allowed": report.allowed, "kernels": fused}


@torch.no_grad()
def attention(vlm: VLM, scale: Scale) -> dict[str, float]:
    """Milliseconds of one layer's attention of all heads' variants over one prompt: written out, and by the best kernel."""
    prefix = read_prefix(vlm, si.load_questions("scenes/relation", n=1))
    layer, M = prefix.layers[0], vlm.n_layers * vlm.n_heads
    query = torch.randn(1, vlm.n_heads, M, vlm.head_dim, device=vlm.device, dtype=vlm.dtype)
    query = query.reshape(1, vlm.n_kv_heads, -1, vlm.head_dim)
    found = {}
    for name, run in (("written_out", kernels.written_out), ("fused", kernels.run)):
        run(query, layer.keys, layer.values, None, 0.1, None)
        found[name] = 1e3 * statistics.median(seconds(scale, lambda run=run: run(query, layer.keys, layer.values, None, 0.1, None)))
    return found


def sweep(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """Sweeps of all heads, prompt reading counted, against the plain forward over as many tokens; peak memory and launches."""
    found: dict[str, Any] = {"attention_ms": attention(vlm, scale)}
    for n in scale.sweeps:
        asked = si.load_questions("scenes/relation", n=n)
        _reset(scale)
        timed = bench(vlm, asked, repeats=scale.repeats, sample=4)
        rows = {row.way: row.seconds for row in timed.rows}
        found[str(n)] = {"seconds": rows, "over_limit": timed.over_limit, "peak": _peak(scale)}
    with torch.no_grad():
        prefix = read_prefix(vlm, si.load_questions("scenes/relation", n=1))
        edit = HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0)
        with torch.profiler.profile() as profile:
            packed_batch(vlm, prefix, edit)
            _wait(scale)
    on_card = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)
    return found | {"kernel_seconds_of_one": on_card, "launches_of_one": launches}


@torch.no_grad()
def evaluate(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """`evaluate` against the forward passes of its prompts alone: images and tokens are ready, batches the same."""
    asked = si.load_questions("scenes/relation", "test", n=scale.evaluated)
    store = PrefixStore(vlm, asked, keep=False)
    ready = [vlm.encode(asked[rows]) for rows in store.slices]

    def plain() -> None:
        for inputs in ready:
            vlm.hf_model(**inputs, use_cache=True, logits_to_keep=1)

    plain()
    forward = statistics.median(seconds(scale, plain, scale.repeats))
    whole = statistics.median(seconds(scale, lambda: si.evaluate(vlm, asked), scale.repeats))
    return {"questions": len(asked), "batch": store.batch_size, "seconds": whole, "forward": forward, "share": forward / whole}


def fit(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """A fit of one epoch after the prompts were read: seconds per packed pass, and their share in the whole."""
    train = si.load_questions("scenes/relation", "train", n=scale.fitted)
    options = si.FitSettings(epochs=2, patience=2)
    prompts = prompts_to_fit(vlm, train, 1, options)
    fit_scales(vlm, train, [Fit()], prompts=prompts, epochs=1)
    _reset(scale)
    took = seconds(scale, lambda: fit_scales(vlm, train, [Fit()], prompts=prompts, epochs=2, patience=2))[0]
    return {
        "seconds_of_two_epochs": took,
        "micro_batch": prompts.batch_size,
        "places": sorted(set(prompts.places.values())),
        "peak": _peak(scale),
        "step": measure_fit_step(vlm, train[: min(16, len(train))], repeats=scale.repeats).content(),
    }


def plan(vlm: VLM, tokens: int, n: int) -> dict[str, Any]:
    """What the toolkit expects of this card: budgets, micro-batch, and where prompts are kept by measured costs."""
    places = measure_places(vlm, si.load_questions("scenes/relation", n=1)[0])
    return {
        "prompt_bytes": prompt_bytes(vlm, tokens),
        "working_bytes": working_bytes(vlm),
        "graph_budget": graph_budget(vlm),
        "micro_batch": micro_batch(vlm, tokens, 1, 64),
        "seconds_per_gigabyte": {place.name: place.seconds for place in places},
        "placement": placement(vlm, places, tokens, n),
    }


def capped(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """Sweep, fit, gradients and suite under a cap of 24 GB: what was halved, and the peak."""
    with _cap(scale), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _reset(scale)
        asked, train = (si.load_questions("scenes/relation", split, n=scale.fitted) for split in ("test", "train"))
        found = {"plan": plan(vlm, int(vlm.encode(asked[0])["input_ids"].shape[1]), scale.job[0])}
        works: dict[str, Callable[[], Any]] = {
            "ablate": lambda: si.ablate(vlm, asked[:8]),
            "attribute": lambda: si.attribute(vlm, asked),
            "integrated_gradients": lambda: si.integrated_gradients(vlm, asked[:8]),
            "fit": lambda: si.fit_scale(vlm, train, epochs=1),
            "suite": lambda: si.falsify(vlm, train, asked, seeds=1, epochs=1),
        }
        found["seconds"] = {name: seconds(scale, work)[0] for name, work in works.items()}
        found["peak"] = _peak(scale)
    memory = [str(one.message) for one in said if issubclass(one.category, si.errors.MemoryWarning)]
    return found | {"memory_warnings": memory}


def job(vlm: VLM, scale: Scale) -> dict[str, Any]:
    """The main job as `scale-interp run` does it, on a model that is loaded: seconds of each step."""
    n_train, n_locate, n_test, n_retain, seeds = scale.job
    settings = Settings("demo", "scenes/relation", n_train=n_train, n_locate=n_locate, n_test=n_test, n_retain=n_retain, seeds=seeds)
    times: list[tuple[float, str]] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = main_job.Run(Path(folder), settings, lambda text: times.append((time.perf_counter() - started, text)), vlm)
        run.everything()
    whole = time.perf_counter() - started
    ends = [*(at for at, _ in times[1:]), whole]
    steps = {text: end - at for (at, text), end in zip(times, ends, strict=True)}
    return {"seconds": whole, "steps": steps, "settings": dict(zip(("train", "locate", "test", "retain", "seeds"), scale.job, strict=True))}


PARTS: dict[str, Callable[[VLM, Scale], dict[str, Any]]] = {
    "exactness": exactness,
    "sweep": sweep,
    "evaluate": evaluate,
    "fit": fit,
    "capped": capped,
    "job": job,
}
FIRST_ONLY = ("capped", "job")
"""Parts that are measured on the first shape alone."""


def seconds(scale: Scale, work: Callable[[], Any], repeats: int = 1) -> list[float]:
    found = []
    for _ in range(repeats):
        _wait(scale)
        started = time.perf_counter()
        work()
        _wait(scale)
        found.append(time.perf_counter() - started)
    return found


@contextmanager
def _cap(scale: Scale) -> Iterator[None]:
    """A card of 24 GB: the allocator refuses more."""
    if scale.device != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / torch.cuda.get_device_properties(0).total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _wait(scale: Scale) -> None:
    if scale.device == "cuda":
        torch.cuda.synchronize()


def _reset(scale: Scale) -> None:
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(scale: Scale) -> int:
    return torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0


def measure(names: list[str], scale: Scale) -> dict[str, Any]:
    """Every part on every shape."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if scale.device == "cuda" else scale.device,
        "dtype": str(scale.dtype).removeprefix("torch."),
        "versions": versions(),
        "models": {},
    }
    for number, shape in enumerate(scale.shapes):
        started = time.perf_counter()
        vlm = build(shape, scale)
        about: dict[str, Any] = {"model": vlm.name, "bytes": vlm.n_bytes, "built_in": time.perf_counter() - started}
        found["models"][shape.family] = about
        for name in names:
            if number and name in FIRST_ONLY:
                continue
            about[name] = PARTS[name](vlm, scale)
            print(vlm.name, name, about[name], flush=True)
        del vlm
        if scale.device == "cuda":
            torch.cuda.empty_cache()
    return found


LINES = (
    ("1,024 heads, 8 questions, of the plain forward's time", "llava", ("sweep", "8", "over_limit"), 0.8),
    ("1,024 heads, 1 question, of the plain forward's time", "llava", ("sweep", "1", "over_limit"), 1.6),
    ("evaluate: share of its time in forward passes", "llava", ("evaluate", "share"), 0.8),
    ("the whole main job, seconds", "llava", ("job", "seconds"), 900),
    ("a step of a fit: the share that is not the model", "llava", ("fit", "step", "beside_the_model"), 0.1),
    ("the fit under a cap of 24 GB, seconds", "llava", ("capped", "seconds", "fit"), None),
    ("the suite under a cap of 24 GB, seconds", "llava", ("capped", "seconds", "suite"), None),
)
"""What is to be shown: a number of the measurement and the one it should reach."""


def page(found: dict[str, Any]) -> str:
    rows = []
    for what, family, keys, aim in LINES:
        value: Any = found["models"].get(family, {})
        for key in keys:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        number = f"{value:.3g}" if isinstance(value, float | int) else "not measured"
        rows.append({"": what, "measured": number, "aim": "" if aim is None else f"{aim:g}"})
    title = f"One {found['device']}, {found['dtype']}, random weights in LLaVA-1.5-7B's shape."
    return f"# On a GPU\n\n    python -m docs.studies.gpu\n\n{title}\n\n{table(pd.DataFrame(rows))}\n"


def main(arguments: list[str]) -> dict[str, Any]:
    tiny = "--tiny" in arguments
    names = [name for name in arguments if not name.startswith("--")] or list(PARTS)
    if tiny:
        return measure(names, SMOKE)
    if not torch.cuda.is_available():
        sys.exit("no GPU here: run this on one, or with --tiny to try the script on the CPU")
    found = measure(names, FULL)
    if NUMBERS.exists():  # parts may be measured in several calls
        before = read_json(NUMBERS)
        for family, about in found["models"].items():
            found["models"][family] = before["models"].get(family, {}) | about
    write_json(NUMBERS, found)
    write_bytes(HERE.parent / "gpu.md", page(found).encode())
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
