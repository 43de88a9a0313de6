"""docs/positions.md and .json, measured again: python -m docs.studies.positions [speed | circuits | demo]"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import scale_interp as si
from scale_interp import viz
from scale_interp.bench.realistic import open_model
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions
from scale_interp.vlm.token_groups import positions_at

from .tables import span, table

HERE = Path(__file__).parent
DOCS = HERE.parent
MODEL = "realistic/8x8x512"
GROUPS = ("image", "question", "subject", "object", "options", "last")
REPEATS = 3
OPTIONS = " Answer with left, right, above or below."
"""Puts the words of the object about 20 tokens before the end."""
CIRCUITS = ("one-head", "three-heads", "relay")
ON_CIRCUITS, ON_DEMO, BY_GRADIENT = 40, 60, 16
AXES = {"left or right": ("left", "right"), "above or below": ("above", "below")}
ON_AXES = {"left or right": ("left", "right"), "top or bottom": ("top", "bottom")}
PARTS = ("speed", "circuits", "demo")
EXPECTED = {
    "one-head": "image 1 before layers 0 and 1 (the listed head is in layer 1); the words and the last token 0 everywhere",
    "three-heads": "image 1 before layers 0 to 2, and before layer 3 only for top and bottom, whose heads are in layer 3; the last token "
    "0 before layers 0 to 2, and before layer 3 only left and right, whose head is in layer 2; the words 0 everywhere",
    "relay": "image 1 before layer 0; the last token 0 before layers 0 to 4, and before layer 5 only left and right, whose head is in "
    "layer 4; the relay 1 for left and right before layer 4, whose head reads nothing else, and for top and bottom before layer 5; words 0",
}
"""What the construction says (`models/testbeds/build.py`), written down before anything was measured: the words stand before the
image, and a listed head sees at the last token the image alone, or the relay alone, which is the token before the last."""


def main(parts: list[str]) -> None:
    path = HERE / "positions.json"
    for part in parts or PARTS:
        found = {"speed": speed, "circuits": circuits, "demo": demo}[part]()
        content = read_json(path) if path.is_file() else {}
        write_json(path, content | {part: found, "versions": versions()})
    content = read_json(path)
    if all(part in content for part in PARTS):
        write_bytes(DOCS / "positions.md", page(content).encode())


# --- speed, against one hooked pass for each edit


def hooked(vlm: si.VLM, inputs: dict[str, Any], module: Any, act: Callable[[torch.Tensor], torch.Tensor], ids: list[int]) -> torch.Tensor:
    """A whole pass in which a plain hook changes what a module is given."""

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return (
            ((act(args[0].clone()), *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": act(kwargs["hidden_states"].clone())})
        )

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        return vlm.hf_model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1, ids]
    finally:
        handle.remove()


@torch.no_grad()
def speed() -> dict[str, Any]:
    vlm = open_model(MODEL)
    pair = si.contrasts(si.load_questions("scenes/relation", "test", n=1))[0]
    pair = si.Contrast(*(replace(q, text=q.text + OPTIONS) for q in (pair.clean, pair.corrupt)))
    ids = [tokens[0] for tokens in vlm.choice_ids(pair.clean)]
    layers, D = [block.module for block in vlm.head_layers], vlm.head_dim
    a, b = pair.clean.answer, pair.corrupt.answer

    # the clean run that plain hooks need as well is not counted for them
    streams: list[torch.Tensor] = []
    keep = lambda _, args, kwargs: streams.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    vlm.hf_model(**vlm.encode(pair.clean), use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    groups = vlm.token_groups(pair.clean), vlm.token_groups(pair.corrupt)

    def difference(scores: torch.Tensor) -> torch.Tensor:
        return scores[..., a] - scores[..., b]

    def patching_plain() -> torch.Tensor:
        out = []
        for number, layer in enumerate(layers):
            for name in GROUPS:
                at = sorted({*groups[0][name], *groups[1][name]})

                def act(x: torch.Tensor, at: list[int] = at, number: int = number) -> torch.Tensor:
                    x[0, at] = streams[number][0, at]
                    return x

                out.append(hooked(vlm, dict(vlm.encode(pair.corrupt)), layer, act, ids))
        return difference(torch.stack(out)) - corrupt

    def patching_ours() -> torch.Tensor:
        found = si.patch_positions(vlm, [pair], groups=GROUPS, path="packed")
        return (found.per_question[0] * found.provenance["gap"]).flatten()

    def heads_plain() -> torch.Tensor:
        at = positions_at(vlm, pair.clean, "object")
        out = []
        for block in vlm.head_layers:
            for head in range(vlm.n_heads):

                def act(z: torch.Tensor, head: int = head) -> torch.Tensor:
                    z[0, at, head * D : (head + 1) * D] = 0
                    return z

                out.append(hooked(vlm, dict(vlm.encode(pair.clean)), block.output(), act, ids))
        return torch.stack(out)

    def heads_ours() -> torch.Tensor:
        return si.run_edits(vlm, pair.clean, si.HeadSweep.all(vlm.n_layers, vlm.n_heads, 0.0, at="object"), "packed")[0]

    def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        start = time.process_time()  # the time of other programs on the machine does not count
        found = run()
        return time.process_time() - start, found

    corrupt = difference(hooked(vlm, dict(vlm.encode(pair.corrupt)), layers[0], lambda x: x, ids))
    torch.set_num_threads(1)
    heads_ours()
    tokens = vlm.encode(pair.clean)["input_ids"].shape[1]
    out: dict[str, Any] = {"model": MODEL, "tokens": tokens, "threads": torch.get_num_threads()}
    out["from_the_end"] = tokens - min(positions_at(vlm, pair.clean, "object"))
    for name, plain, ours in (
        ("residual stream, every layer x 6 groups", patching_plain, patching_ours),
        ("all heads at the object's words, zero", heads_plain, heads_ours),
    ):
        first, _ = timed(ours)
        by_hooks, expected = timed(plain)
        again = [timed(ours) for _ in range(REPEATS - 1)]
        took = [first, *(seconds for seconds, _ in again)]
        out[name] = {
            "variants": len(expected),
            "seconds": {"plain": by_hooks, "ours": statistics.median(took)},
            "ours": took,
            "ratio": by_hooks / statistics.median(took),
            "largest_difference": float((again[-1][1] - expected).abs().max()),
            "largest_effect": float((expected - expected.mean(0)).abs().max()),
        }
    return out


# --- circuits that are known


def circuits() -> dict[str, Any]:
    return {name: one_circuit(name) for name in CIRCUITS}


def one_circuit(name: str) -> dict[str, Any]:
    vlm = si.load(f"testbed/{name}")
    questions = [replace(q, meta=q.meta | {"spans": {"relay": [-2]}}) for q in si.load_questions("scenes/position", "test", n=ON_CIRCUITS)]
    groups = ("image", "question", *(["relay"] if name == "relay" else []), "last")
    pm = si.patch_positions(vlm, si.contrasts(questions), groups=groups)
    return {
        "positions": list(groups),
        "heads": [list(head) for head in si.testbeds.circuit(name).heads],
        "scores": {axis: pm.only(*relations).scores.tolist() for axis, relations in ON_AXES.items()},
        "questions": len(pm.per_question),
    }


# --- the shipped model


def demo() -> dict[str, Any]:
    vlm = si.load("demo")
    pairs = si.contrasts(si.load_questions("scenes/relation", "test", n=ON_DEMO))
    pm = si.patch_positions(vlm, pairs)
    out: dict[str, Any] = {"questions": len(pm.per_question), "positions": list(pm.positions)}
    for axis, relations in AXES.items():
        part = pm.only(*relations)
        low, high = part.interval()
        out[axis] = {"n": len(part.per_question), "scores": part.scores.tolist(), "low": low.tolist(), "high": high.tolist()}
    figure = viz.position_heatmaps([pm.only(*relations) for relations in AXES.values()], list(AXES))
    viz.save_figure(figure, DOCS / "images" / "positions_demo.png")
    viz.save_figure(viz.token_groups(vlm, pairs[0].clean), DOCS / "images" / "token_groups.png")
    gradient = si.patch_positions(vlm, pairs[:BY_GRADIENT], gradient=True)
    exact = pm.per_question[:BY_GRADIENT].mean(0).flatten()
    out["gradient_correlation"] = float(torch.corrcoef(torch.stack([gradient.scores.flatten(), exact.double()]))[0, 1])
    out["heads"] = {axis: si.patch(vlm, [p for p in pairs if p.clean.relation in relations]).top(3) for axis, relations in AXES.items()}
    return out


# --- the page


def page(content: dict[str, Any]) -> str:
    fast, known, model = content["speed"], content["circuits"], content["demo"]
    rows = []
    for name, row in fast.items():
        if isinstance(row, dict):
            plain, ours = (f"{row['seconds'][which]:.2f}" for which in ("plain", "ours"))
            sizes = (f"{row[which]:.1g}" for which in ("largest_difference", "largest_effect"))
            rows.append([name, row["variants"], plain, ours, f"{row['ratio']:.1f}", *sizes])
    columns = ["edits", "how many", "plain hooks, s", "here, s", "times faster", "largest difference", "largest effect"]
    parts = [
        "# Where in the prompt the answer is computed",
        "    python -m docs.studies.positions",
        "measures this page. [Trace an answer through the prompt](how_to/trace.md) says how to do the same on your model.",
        "## `demo`",
        f"Residual patching on {model['questions']} contrast pairs of scenes/relation (test): the share of the logit difference that the "
        "clean run's residual stream before a layer brings back in the corrupt run, at one group of tokens. The pairs differ in the image "
        "alone.",
        "![layer by token group](images/positions_demo.png)",
        *(_demo_table(axis, model) for axis in AXES),
        _in_words(model),
        f"The gradient version, one backward pass, correlates with these scores by {model['gradient_correlation']:.2f} "
        f"({BY_GRADIENT} pairs): at the image of early layers it is far too small, as the effect of a whole image is no small step.",
        "## Known circuits",
        "In a [test-bed](testbeds.md) the construction decides which tokens feed the listed heads. Written down before measuring, and "
        "measured:",
        *(_circuit_table(name, found) for name, found in known.items()),
        "## Speed",
        f"`{fast['model']}`, one question of {fast['tokens']} tokens, float32; CPU seconds of one thread, image preparation and reading "
        f"the prompts counted, median of {REPEATS}. Against one whole pass with a plain torch hook for each edit, all of them timed. The "
        f"object's words begin {fast['from_the_end']} tokens before the end.",
        table(pd.DataFrame(rows, columns=columns)),
    ]
    return "\n\n".join(parts) + "\n"


def _demo_table(axis: str, model: dict[str, Any]) -> str:
    found = model[axis]
    rows = [
        [layer, *(span(s, lo, hi) for s, lo, hi in zip(*values, strict=True))]
        for layer, values in enumerate(zip(found["scores"], found["low"], found["high"], strict=True))
    ]
    return f"**{axis}** ({found['n']} pairs)\n\n" + table(pd.DataFrame(rows, columns=["before layer", *model["positions"]]))


def _in_words(model: dict[str, Any]) -> str:
    said = []
    for axis in AXES:
        scores, names = torch.tensor(model[axis]["scores"]), model["positions"]
        image, last, question = (scores[:, names.index(name)] for name in ("image", "last", "question"))
        words = max(float(scores[:, names.index(name)].max()) for name in ("subject", "object"))
        out = (image < 0.5).nonzero()[:1, 0].tolist()
        into = (last > 0.5).nonzero()[:1, 0].tolist()
        heads = ", ".join(f"({layer}, {head})" for layer, head in model["heads"][axis])
        said.append(
            f"**{axis.capitalize()}**: before layer {out[0] if out else '-'} the image tokens hold less than half for the first time, and "
            f"before layer {into[0] if into else '-'} the last token more; the question's tokens hold at most {float(question.max()):.2f}, "
            f"the words of subject and object at most {words:.2f}. The heads that recover most at the last token: {heads}."
        )
    return "\n\n".join(said)


def _circuit_table(name: str, found: dict[str, Any]) -> str:
    heads = ", ".join(f"({layer}, {head})" for layer, head in found["heads"])
    rows = [
        [axis, layer, *(f"{value:.3f}" for value in values)]
        for axis, scores in found["scores"].items()
        for layer, values in enumerate(scores)
    ]
    said = f"**`testbed/{name}`**, listed heads {heads}, {found['questions']} pairs. Expected: {EXPECTED[name]}."
    return f"{said}\n\n{table(pd.DataFrame(rows, columns=['pairs', 'before layer', *found['positions']]))}"


if __name__ == "__main__":
    main(sys.argv[1:])
