"""docs/knockout.md and .json, measured again: python -m docs.studies.knockout [speed | circuits | demo]"""

import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import scale_interp as si
from scale_interp import viz
from scale_interp.bench.realistic import open_model
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.core.versions import versions

HERE = Path(__file__).parent
DOCS = HERE.parent
MODEL, REPEATS = "realistic/8x8x512", 3
CIRCUITS, ON_CIRCUITS = ("one-head", "three-heads", "relay"), 60
TEST, WHOLE, WINDOW = 400, 100, 3
PARTS = ("speed", "circuits", "demo")


def main(parts: list[str]) -> None:
    path = HERE / "knockout.json"
    content = read_json(path) if path.is_file() else {}
    for part in parts or PARTS:
        content[part] = {"speed": speed, "circuits": circuits, "demo": demo}[part]()
    write_json(path, content | {"versions": versions()})
    if all(part in content for part in PARTS):
        write_bytes(DOCS / "knockout.md", page(content).encode())


# --- speed: every head's last token cut off from the image


@contextmanager
def masked(vlm: si.VLM, layer: int, head: int, image: torch.Tensor) -> Any:
    """A plain hook: one head of one layer gets a mask of its own, in which the last row does not see the image."""

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        T = len(image)
        mask = torch.full((T, T), float("-inf")).triu(1).expand(1, vlm.n_heads, T, T).clone()
        mask[0, head, -1, image] = float("-inf")
        return args, kwargs | {"attention_mask": mask}

    handle = vlm.decoder.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def speed() -> dict[str, Any]:
    vlm = open_model(MODEL)
    question = si.load_questions("scenes/relation", "test", n=1)[0]
    image = vlm.encode(question)["input_ids"][0] == vlm.image_token_id
    ids = [tokens[0] for tokens in vlm.choice_ids(question)]
    heads = [(layer, head) for layer in range(vlm.n_layers) for head in range(vlm.n_heads)]
    edit = si.AttentionEdit(torch.eye(len(heads), dtype=torch.bool).view(len(heads), vlm.n_layers, vlm.n_heads))

    def plain() -> torch.Tensor:
        out = []
        for layer, head in heads:
            with masked(vlm, layer, head, image):
                out.append(vlm.hf_model(**vlm.encode(question), use_cache=False, logits_to_keep=1).logits[0, -1, ids])
        return torch.stack(out)

    def ours() -> torch.Tensor:
        return si.run_edits(vlm, question, edit, path="packed")[0]

    ours()
    took: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(REPEATS):
        for name, run in (("plain", plain), ("ours", ours)):
            start = time.perf_counter()
            scores = run()
            took[name].append(time.perf_counter() - start)
            if name == "plain":
                expected = scores
    ratios = [a / b for a, b in zip(took["plain"], took["ours"], strict=True)]
    return {
        "model": MODEL,
        "tokens": len(image),
        "image_tokens": int(image.sum()),
        "variants": len(heads),
        "seconds": {name: statistics.median(times) for name, times in took.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference": float((scores - expected).abs().max()),
        "largest_effect": float((expected - expected.mean(0)).abs().max()),
        "threads": torch.get_num_threads(),
    }


# --- circuits that are known: what the construction says, and what is found


def circuits() -> dict[str, Any]:
    return {name: one_circuit(name) for name in CIRCUITS}


def one_circuit(name: str) -> dict[str, Any]:
    vlm, circuit = si.load(f"testbed/{name}"), si.testbeds.circuit(name)
    questions = si.load_questions("scenes/position", "test", n=ON_CIRCUITS)
    targets: dict[str, Any] = {"image": "image"} | ({"token before": [-2]} if circuit.relay else {})
    found = {}
    for label, target in targets.items():
        by_metric = {metric: si.knockout(vlm, questions, target=target, by="head", metric=metric) for metric in ("logit_diff", "accuracy")}
        largest = {metric: fm.per_question.abs().amax(0) for metric, fm in by_metric.items()}
        kinds: dict[str, list[tuple[int, int]]] = {}
        for layer in range(vlm.n_layers):
            for head in range(vlm.n_heads):
                kinds.setdefault(circuit.kind((layer, head)), []).append((layer, head))
        found[label] = {
            kind: {"heads": len(heads)} | {metric: max(float(size[head]) for head in heads) for metric, size in largest.items()}
            for kind, heads in kinds.items()
        }
        falls = by_metric["accuracy"].scores
        found[label]["accuracy without one listed head"] = {str(head): float(-falls[head]) for head in circuit.heads}
    return found


# --- demo: the flow by layer


def demo() -> dict[str, Any]:
    vlm = si.load("demo")
    questions = si.load_questions("scenes/relation", "test", n=TEST)
    image, words = (si.knockout(vlm, questions, target=target, window=WINDOW) for target in ("image", "question"))
    heads = si.knockout(vlm, questions, by="head")
    into = [
        si.knockout(vlm, questions[:WHOLE], source=source, target=target, window=WINDOW)
        for source, target in (("subject", "image"), ("object", "image"), ("last", "subject"), ("last", "object"))
    ]
    flows = [image, words, *into]
    lens, at_image = si.logit_lens(vlm, questions), si.logit_lens(vlm, questions[:WHOLE], at="image")
    vision = si.ablate_vision(vlm, questions[:WHOLE])
    example = questions[0]
    figures = {
        "knockout_layers": viz.flow_curves(flows),
        "knockout_relations": viz.flow_curves([image], by_relation=True),
        "knockout_heads": viz.head_heatmap(heads.heads, marks=heads.heads.top(4)),
        "lens_layers": viz.lens_curves([lens, at_image]),
        "lens_image": viz.lens_over_image(at_image, example, si.patch_grid(vlm, example)),
        "vision_heads": viz.head_heatmap(vision),
    }
    for name, figure in figures.items():
        figure.write_image(DOCS / "images" / f"{name}.png", scale=2)
    return {
        "questions": {"last": len(questions), "others": WHOLE},
        "window": WINDOW,
        "flows": {flow.method: flow.to_frame().to_dict("records") for flow in flows},
        "relations": {name: part.to_frame().to_dict("records") for name, part in image.by_relation().items()},
        "heads": heads.heads.to_frame().sort_values("score", ascending=False)[:6].to_dict("records"),
        "heads_significant": int(heads.significant().sum()),
        "ablation_spearman": heads.heads.compare(si.ablate(vlm, questions, mode="mean")),
        "lens": lens.to_frame().to_dict("records"),
        "lens_at_image": at_image.to_frame().to_dict("records"),
        "appears": lens.appears.tolist(),
        "vision": vision.to_frame().to_dict("records"),
        "provenance": dict(image.provenance),
    }


def page(c: dict[str, Any]) -> str:
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
