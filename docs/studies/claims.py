"""docs/claims.md, what two abstracts say and what the embedded models show, from this folder's JSON files: python -m docs.studies.claims"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scale_interp.core.files import read_json, write_bytes

from .tables import span, table

HERE = Path(__file__).parent
DOCS = HERE.parent
FUNCTIONAL, SCALING = "python -m docs.studies.functional_heads", "python -m docs.studies.attention_scaling"
IMAGE, COMPARE = "python -m docs.studies.image_attention", "scale-interp compare"
AS, NOT, CONTRARY = "as claimed", "not found", "**the contrary**"
Found = Mapping[str, Any]
Row = tuple[str, str, str, str, str]
"""Claim, model, what was measured with its interval, verdict, command."""


def main() -> None:
    functional, scaling, image, compared = (
        read_json(HERE / f"{name}.json") for name in ("functional_heads", "attention_scaling", "image_attention", "comparison")
    )
    rows = [row for model, found in functional["models"].items() for row in in_space(model, found, functional["claims"])]
    rows += of_comparison(compared, {"CogVSR emphasis": EMPHASIS, "latent heads": LATENT})
    claims = list(dict.fromkeys(claim for claim, *_ in rows))
    text = HEAD + "\n".join(
        [
            SPACE,
            shown(sorted(rows, key=lambda row: claims.index(row[0]))),
            VISION,
            shown([*looking(image), *adapting(scaling, compared)]),
            "\n## What the embedded models cannot speak to\n\n| claim | why |\n|---|---|",
            *(f"| {claim} | {' '.join(why)} |" for claim, *why in SILENT),
            "",
        ]
    )
    write_bytes(DOCS / "claims.md", text.encode())


HEAD = f"""# The claims of two abstracts, on the embedded models

    {FUNCTIONAL} && {SCALING} && {IMAGE}
    {COMPARE} && python -m docs.studies.comparison runs/compare-demo-scenes-relation
    python -m docs.studies.claims

The last command writes this page from the numbers that the others write. The embedded models are small, were trained on rendered
scenes, and (`demo`) have a shortfall that was taught: what they show neither proves nor refutes anything about large models. But every
claim can be tested on them by one procedure, with a test split on which nothing was chosen. "{AS}" and "the contrary": the 95% interval
excludes 0 (0.5 of an AUROC) and p < 0.05, corrected within its family where its page says so; "{NOT}": neither. Differences of
accuracy are paired. Every figure is explained on the page that its command writes.
"""

SPACE = """
## Attention in Space (arXiv 2603.20662)
"""

VISION = """
## AdaptVis (arXiv 2503.01773)

On scenes/relation.
"""

EMPHASIS = "emphasising the heads of a function improves: change of accuracy, value tuned on validation"
LATENT = "latent spatial heads can be activated: change of accuracy, value tuned on validation"

SILENT: tuple[tuple[str, ...], ...] = (
    (
        "AdaptVis: up to 50 points on What'sUp and VSR",
        "the size is that of LLaVA on photographs; neither weights nor images are available here. Where they are, `scale-interp compare",
        "--model llava-hf/llava-1.5-7b-hf --data whatsup/controlled_a --others pope/random` measures it",
    ),
    (
        "AdaptVis: vision-language models struggle with the relation of two objects",
        "a claim about many models; ours were trained, and one of them was taught to struggle",
    ),
    (
        'AdaptVis: unfamiliar relations ("under", "behind") are the ones that fail',
        "what is familiar comes from captions of the web; our training scenes hold every relation equally often, so none is",
        "unfamiliar. Left and right against above and below is tested above all the same",
    ),
    (
        "Attention in Space: subquestions and tags as people decompose questions",
        "ours are generated from scenes, with a fixed chain and tags of ours",
    ),
    (
        "Attention in Space: inference, and steps that build on earlier ones",
        "the models were trained on single questions and never saw a context; without it, inference has the form of relational reasoning",
    ),
    ("Attention in Space: the same across families of models", "two models of one family and size, one trained from the other"),
    (
        "both: other tasks on photographs stay as they are",
        "the other tasks here are those of scenes; their change is in [comparison](comparison.md)",
    ),
)


def in_space(model: str, found: Found, claims: Found) -> list[Row]:
    """The claims of Attention in Space, as far as one model goes."""
    probe, sparse, layers = found["probe"], found["sparsity"], found["layers"]
    rows: list[Row] = []

    def add(claim: str, told: str, says: str) -> None:
        rows.append((claim, model, told, says, FUNCTIONAL))

    told = f"the joint probe names the function of {probe['accuracy']:.3f} of {probe['held_out']} held-out questions; on permuted labels "
    told += f"{probe['null_accuracy']:.3f}, p = {probe['p']:.2g}. A function is asked in words of its own, so words alone may do it"
    add("a probe finds heads by function", told, AS if probe["p"] < 0.05 else NOT)
    own = [v for k, v in claims.items() if k.startswith(f"{model}/specific/")]
    what = "removing a function's heads hurts it more than the other functions (change of own minus of others)"
    add(f"heads are specialised: {what}", each(own), tally(own, -1))
    few = claims[f"{model}/sparse"]["functions_sparser_than_chance"]
    counts = ", ".join(f"{r['function']} {r['heads']} [{r['heads_low']:.0f}, {r['heads_high']:.0f}]" for r in sparse)
    told = f"of {found['n_heads']} heads above the elbow: {counts}; "
    told += f"Gini above that of permuted labels for {', '.join(few) or 'no function'}"
    add("functional heads are sparse", told, AS if len(few) == len(sparse) else f"{len(few)} of {len(sparse)}")
    apart = disjoint([(r["function"], r["heads_low"], r["heads_high"]) for r in sparse])
    told = f"intervals of the numbers above do not meet for: {'; '.join(apart) or 'no pair'}"
    add("functions differ in the number of heads", told, AS if apart else NOT)
    by_layer = [
        f"layer {layer}: {pair}"
        for layer in sorted({r["layer"] for r in layers})
        for pair in disjoint([(r["function"], r["low"], r["high"]) for r in layers if r["layer"] == layer])
    ]
    every = len(layers) * (len(sparse) - 1) // 2
    told = f"intervals of the numbers in a layer do not meet for {len(by_layer)} of {every} pairs of functions, no correction "
    told += f"for so many made ({'; '.join(by_layer[:3]) or 'none'}"
    add("functions differ in the layers of their heads", told + ("; ...)" if len(by_layer) > 3 else ")"), AS if by_layer else NOT)
    fewer = found["spatial_minus_other_heads"]
    told = f"mean number of heads of the two spatial functions minus the others' {fewer['difference']:+.1f} "
    told += f"[{fewer['low']:+.1f}, {fewer['high']:+.1f}], p = {fewer['p']:.2g} that permuted labels give as few"
    says = AS if fewer["p"] < 0.05 and fewer["high"] < 0 else f"{NOT}, rather more" if fewer["low"] > 0 else NOT
    add("spatial heads are the fewest", told, says)
    for ranking in ("joint probe", "zero ablation"):
        key = f"{model}/removing heads degrades/"
        cut = [v | {"function": k.removeprefix(key).partition(",")[0]} for k, v in claims.items() if k.startswith(key) and ranking in k]
        what = f"removing functional heads degrades: the first k by {ranking} minus k random others, mean over k"
        add(what, each(cut), tally(cut, -1))
    for kind, claim in (("emphasis", EMPHASIS), ("latent", LATENT)):
        key = f"{model}/{kind}/"
        raised = [v | {"function": k.removeprefix(key)} for k, v in claims.items() if k.startswith(key)]
        if raised:
            add(claim, each(raised), tally(raised, 1))
    return rows


def of_comparison(compared: Found, claims: Mapping[str, str]) -> list[Row]:
    """What the comparison of all methods says of a claim."""
    out = []
    for method, claim in claims.items():
        row = row_of(compared["methods"], "method", method)
        if row["tuned"] == "do nothing":
            grid = compared["tuned"][method]["grid"]
            tried = max((r for r in grid if len(r) > 1), key=lambda r: r["accuracy"])
            setting = ", ".join(f"{k} {v:g}" for k, v in tried.items() if k != "accuracy")
            told = f"on validation questions no setting beats doing nothing ({grid[0]['accuracy']:.3f}; the best other, {setting}: "
            told += f"{tried['accuracy']:.3f}), so on test nothing changes (relations, all methods beside each other)"
            out.append((claim, "demo", told, NOT, COMPARE))
        else:
            d = difference(row)
            out.append((claim, "demo", f"{row['tuned']}: {change(d)}, p = {d['p']:.2g}", verdict(d, 1), COMPARE))
    return out


def looking(image: Found) -> list[Row]:
    """The claims of AdaptVis on attention."""
    rows: list[Row] = []

    def add(claim: str, told: str, says: str) -> None:
        rows.append((claim, "demo", told, says, IMAGE))

    mass, share = image["image_share_of_attention"], image["image_share_of_tokens"]
    told = f"image tokens are {share:.0%} of the prompt and draw {mass['mean']:.1%} "
    told += f"[{mass['low']:.1%}, {mass['high']:.1%}] of the attention"
    says = "in part: less than even" if mass["high"] < share else CONTRARY if mass["low"] > share else NOT
    add("image tokens are about 90% of the sequence and draw about 10% of the attention", told, says)
    layers = image["auroc_by_layer"]
    told = "AUROC of attention on the asked box against right answers, by layer: "
    told += "; ".join(f"{r['layer']}: {r['auroc']:.2f} [{r['low']:.2f}, {r['high']:.2f}]{'*' if r['p'] < 0.05 else ''}" for r in layers)
    above, below = ([r["layer"] for r in layers if r["p"] < 0.05 and (r["auroc"] > 0.5) == side] for side in (True, False))
    middle = range(len(layers) // 3, len(layers) - len(layers) // 3)
    says = f"{AS} in layer {', '.join(map(str, above))}" if above else NOT
    if above and not set(above) & set(middle):
        says += ", which is not in the middle"
    says += f"; {CONTRARY} in layer {', '.join(map(str, below))}" if below else ""
    heads = len(image["auroc_by_head"])
    told += f". Of {heads} heads {image['auroc_by_head_above']} have more attention there when right, {image['auroc_by_head_below']} less"
    add("right answers go with attention on the objects' places, in the middle layers", told, says)
    sure = image["confidence_auroc"]
    told = f"AUROC of confidence against right answers {sure['auroc']:.3f} [{sure['low']:.3f}, {sure['high']:.3f}], p = {sure['p']:.2g}"
    add("confidence tells right from wrong answers", told, verdict(centred(sure), 1))
    pair = image["left_right_more_confident_auroc"]
    means = ", ".join(f"{r['relation']} {r['confidence']:.2f} / {r['accuracy']:.2f}" for r in image["by_relation"])
    told = f"confidence / accuracy: {means}; AUROC of confidence for left and right against above and below {pair['auroc']:.3f} "
    told += f"[{pair['low']:.3f}, {pair['high']:.3f}], p = {pair['p']:.2g}"
    add("familiar relations (left, right) are answered with more confidence", told, verdict(centred(pair), 1))
    return rows


def adapting(scaling: Found, compared: Found) -> list[Row]:
    """The claims of AdaptVis on its remedy."""
    rows: list[Row] = []

    def add(claim: str, told: str, says: str, command: str = SCALING) -> None:
        rows.append((claim, "demo", told, says, command))

    for method, claim in (
        ("ScalingVis", "one weight on the attention to the image improves (ScalingVis)"),
        ("AdaptVis", "AdaptVis improves"),
    ):
        row = row_of(compared["methods"], "method", method)
        d = difference(row)
        add(claim, f"{row['tuned']}: {change(d)}, p = {d['p']:.2g}", verdict(d, 1), COMPARE)
    between = scaling["methods"]["adaptvis_minus_scalingvis"]
    told = f"AdaptVis minus ScalingVis, both tuned: {change(between)}; {between['answers_that_differ']} of {between['n']} answers differ"
    add("gating by confidence improves on one weight for all", told, verdict(between, 1))
    parts = scaling["by_confidence"]
    for part, name, weights, claim in (
        (1, "least sure", (0.5, 0.8), "smoothing helps where the model is unsure"),
        (max(r["part"] for r in parts), "surest", (1.2, 1.5, 2.0), "sharpening helps where it is sure"),
    ):
        mine = [r | {"p": r["p_holm"]} for r in parts if r["part"] == part and r["weight"] in weights]
        told = f"the {name} quarter, base {mine[0]['base']:.3f}, at the paper's weights: "
        add(claim, told + "; ".join(f"{r['weight']:g}: {change(r)}" for r in mine), strongest(mine))
    turned = scaling["reversed"]
    told = f"tuned the other way round ({turned['setting']}), on {turned['n']} fresh questions: "
    told += f"{change(turned['minus_base'])} against base, "
    told += f"{change(turned['minus_scalingvis'])} against ScalingVis"
    add("(claimed by nobody) sharpening helps where the model is unsure", told, says_of(turned["minus_base"]))
    away = [r | {"p": r["p_holm"]} for r in scaling["transfer"] if r["tuned_on"].partition(",")[0] != r["tested_on"]]
    better, worse = ([r for r in away if verdict(r, 1) == word] for word in (AS, CONTRARY))
    told = f"of {len(away)} settings taken to another set {len(better)} improve it and {len(worse)} lower it"
    told += "".join(f"; {r['tuned_on']}, on {r['tested_on']}: {change(r)}" for r in [*better, *worse])
    add("settings tuned on one set do not serve another (the limit that the paper names)", told, NOT if better else AS)
    ada, base = (row_of(compared["methods"], "method", name) for name in ("AdaptVis", "base"))
    told = f"{ada['passes']:g} forward passes an answer instead of {base['passes']:g}, {ada['parameters']} numbers, no training. "
    told += f"But other tasks change by {ada['others_change']:+.3f} [{ada['others_low']:+.3f}, {ada['others_high']:+.3f}]"
    add("it needs no training and costs next to nothing", told, f"{AS}, in passes of the last token", COMPARE)
    return rows


def row_of(rows: Sequence[Found], key: str, value: str) -> Found:
    return next(row for row in rows if row[key] == value)


def difference(row: Found) -> Found:
    return {"difference": row["difference"], "low": row["difference_low"], "high": row["difference_high"], "p": row["p_holm"]}


def centred(found: Found) -> Found:
    """An AUROC as a difference from 0.5."""
    return {"difference": found["auroc"] - 0.5, "low": found["low"] - 0.5, "high": found["high"] - 0.5, "p": found["p"]}


def change(d: Found) -> str:
    return span(d["difference"], d["low"], d["high"], "+")


def each(rows: Sequence[Found]) -> str:
    return "; ".join(f"{row['function']} {change(row)}" for row in rows)


def verdict(d: Found, sign: int) -> str:
    """By interval and p both."""
    if d["p"] >= 0.05 or d["low"] <= 0 <= d["high"]:
        return NOT
    return AS if d["difference"] * sign > 0 else CONTRARY


def tally(rows: Sequence[Found], sign: int) -> str:
    """The verdicts of several rows: one word where they agree, else how many of each."""
    said = [verdict(row, sign) for row in rows]
    counts = [(word, said.count(word)) for word in (AS, NOT, CONTRARY) if word in said]
    return counts[0][0] if len(counts) == 1 else "; ".join(f"{word}: {n} of {len(said)}" for word, n in counts)


def says_of(d: Found) -> str:
    return {AS: "helps", CONTRARY: "hurts", NOT: NOT}[verdict(d, 1)]


def strongest(rows: Sequence[Found]) -> str:
    """A help at any weight counts; a harm only where none helps."""
    said = {verdict(row, 1) for row in rows}
    return AS if AS in said else CONTRARY if CONTRARY in said else NOT


def disjoint(spans: Sequence[tuple[str, float, float]]) -> list[str]:
    """Pairs of names whose intervals do not meet, the one with less first."""
    return [f"{a} < {b}" for a, _, high in spans for b, low, _ in spans if high < low]


def shown(rows: Sequence[Row]) -> str:
    marked = [(claim, f"`{model}`", told, says, f"`{command}`") for claim, model, told, says, command in rows]
    return table(pd.DataFrame(marked, columns=["claim", "model", "measured", "found", "command"]))


if __name__ == "__main__":
    main()
