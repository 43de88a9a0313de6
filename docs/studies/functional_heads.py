"""functional_heads.json, its page and its images, measured again on the embedded models: python -m docs.studies.functional_heads"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scale_interp as si
from scale_interp import viz
from scale_interp.adapters.steering.emphasis import ALPHAS, GAINS
from scale_interp.core import statistics
from scale_interp.core.files import read_json, write_bytes, write_json
from scale_interp.data.decomposed import TAXONOMY
from scale_interp.data.items import Questions, require_disjoint
from scale_interp.interventions.edit import Head

HERE = Path(__file__).parent
DOCS = HERE.parent
COMMAND = "python -m docs.studies.functional_heads"
MODELS = ("demo", "demo-healthy")
SPATIAL = ("relational reasoning", "spatial perception")
WITHOUT_CONTEXT = {kind: function for kind, function in TAXONOMY.items() if kind != "inverse"}
N = {"train": 100, "validation": 100, "test": 400}
PERMUTATIONS = 39
RANDOM_SETS = 5
RANKINGS = ("joint probe", "zero ablation")
Found = dict[str, Any]


def main() -> None:
    data = {split: si.subquestions(si.cog_questions(split, n, taxonomy=WITHOUT_CONTEXT)) for split, n in N.items()}
    require_disjoint([*data["train"], *data["validation"]], data["test"])
    models = {}
    for name in MODELS:
        vlm = si.load(name)
        models[name], objects = study(vlm, data)
        if name == "demo":
            directions = si.answer_directions(vlm, data["train"])
            models[name] |= {"emphasis": emphasis(vlm, objects, directions, data), "context": context(vlm)}
            models[name]["matrix"] |= emphasised(vlm, objects["heads"], directions, data["test"])
            draw("matrix", objects["matrix"].plot(title="demo: each function's heads removed, every function asked"))
            curves = {f"{function}, by {ranking}": c for (function, ranking), c in objects["removal"].items()}
            draw("removal", viz.removal_curves(curves, title="demo: heads removed"))
            draw("sparsity", objects["heads"].plot(title="demo: heads above the elbow of the joint probe's importance"))
    content = {"command": COMMAND, "chains": N, "models": models, "claims": claims(models)}
    write_json(HERE / "functional_heads.json", content)
    write_bytes(DOCS / "functional_heads.md", page(read_json(HERE / "functional_heads.json")).encode())


def draw(name: str, figure: Any) -> None:
    """Needs kaleido and Chrome: pip install "scale-interp[notebook]"."""
    figure.write_image(DOCS / "images" / f"functional_{name}.png", scale=2)


def of(questions: Questions, function: str) -> list[si.Question]:
    return [q for q in questions if q.meta["function"] == function]


def rows(frame: pd.DataFrame) -> list[Found]:
    return frame.to_dict("records")


def told(d: statistics.Difference) -> Found:
    return {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p}


def study(vlm: si.VLM, data: dict[str, Questions]) -> tuple[Found, Found]:
    """What is measured on every model: as plain numbers, and the result objects."""
    train, test = data["train"], data["test"]
    heads = si.functional_heads(vlm, train, permutations=PERMUTATIONS)
    alone = si.probe(vlm, train, "function", folds=3)
    maps = {f: si.ablate(vlm, of(train, f)) for f in heads.functions}
    every = vlm.n_layers * vlm.n_heads
    removal = {}
    for function in SPATIAL:
        for ranking, order in zip(RANKINGS, (heads.ranking(function), maps[function].top(every)), strict=True):
            removal[function, ranking] = si.remove_heads_curve(vlm, of(test, function), order, chosen_on=heads.pictures)
    matrix = si.function_matrix(vlm, test, heads)
    best = alone.top(1)[0]
    found = {
        "probe": {
            "accuracy": heads.accuracy,
            "p": heads.accuracy_p,
            "null_accuracy": float(heads.null_accuracy.mean()),
            "held_out": len(heads.codes),
        },
        "probe_per_head": {
            "best": list(best),
            "best_accuracy": float(alone.scores[best]),
            "worst_accuracy": float(alone.scores.min()),
            "significant": int(alone.significant().sum()),
            "chance": alone.chance,
            "agreement": alone.compare(heads.mean.abs().mean(0)),
        },
        "n_heads": every,
        "sparsity": rows(heads.to_frame()),
        "spatial_minus_other_heads": told(heads.fewer(SPATIAL)),
        "layers": rows(heads.layers()),
        "overlap": rows(heads.overlap()),
        "by_ablation": [
            {"function": f} | m.sparsity() | {"agreement": m.compare(heads.mean[i].abs())} for i, (f, m) in enumerate(maps.items())
        ],
        "removal": [
            {"function": f, "ranking": r, "base": float(c.base.mean()), "curve": rows(c.to_frame())}
            | {"top_minus_random": rows(c.differences()), "top_minus_random_over_all_k": told(c.area())}
            for (f, r), c in removal.items()
        ],
        "matrix": {"remove": effects(matrix)},
    }
    return found, {"heads": heads, "maps": maps, "removal": removal, "matrix": matrix}


def effects(matrix: si.Interventions) -> Found:
    return {"cells": rows(matrix.to_frame()), "specificity": rows(matrix.specificity())}


def emphasised(vlm: si.VLM, heads: si.FunctionalHeads, directions: dict[str, si.AnswerDirection], test: Questions) -> Found:
    """The matrix of emphasis, by a gain of 2 and by the release's alpha of 5."""
    pushed = si.function_matrix(vlm, test, heads, "direction", directions=directions)
    without = {"without_direction": pushed.provenance["without_direction"]}
    return {"gain": effects(si.function_matrix(vlm, test, heads, "gain")), "direction": effects(pushed) | without}


def emphasis(vlm: si.VLM, objects: Found, directions: dict[str, si.AnswerDirection], data: dict[str, Questions]) -> list[Found]:
    """What heads of a spatial function do when emphasised: values from validation questions, effects on test questions."""
    out = []
    for function in SPATIAL:
        above, latent = objects["heads"].heads(function), objects["heads"].latent(function)
        first = objects["maps"][function].top(len(above))
        sets = {"above the elbow": [above], "latent": [latent], "first by ablation": [first]}
        sets["random"] = random_sets(vlm, [*above, *latent, *first], len(above))
        validation, test = (tried(vlm, of(data[split], function), sets, directions.get(function)) for split in ("validation", "test"))
        base, group = test.base.numpy(), test.groups.numpy()
        found = []
        for kind in ("gain", "alpha") if function in directions else ("gain",):
            right, chosen = {}, {}
            for name, parts in sets.items():
                best = [validation.best(f"{name} {i} {kind}") for i in range(len(parts))]
                chosen[name] = [edit.removeprefix(f"{name} {i} ") for i, edit in enumerate(best)]
                right[name] = np.mean([test.per_question[:, test.names.index(edit)].numpy() for edit in best], 0)
            for name, value in right.items():
                row = {"heads": name, "number": len(sets[name][0]), "how": kind, "chosen": chosen[name], "accuracy": float(value.mean())}
                other = None if name == "random" else told(statistics.paired_difference(value, right["random"], group))
                found.append(row | told(statistics.paired_difference(value, base, group)) | {"minus_random": other})
        for row, p in zip(found, statistics.holm(np.array([row["p"] for row in found])), strict=True):
            row["p"] = float(p)
        out.append({"function": function, "base": float(base.mean()), "has_direction": function in directions, "rows": found})
    return out


def random_sets(vlm: si.VLM, used: Sequence[Head], count: int) -> list[list[Head]]:
    rest = [(layer, head) for layer in range(vlm.n_layers) for head in range(vlm.n_heads) if (layer, head) not in used]
    rng = np.random.default_rng(0)
    return [[rest[i] for i in rng.choice(len(rest), min(count, len(rest)), replace=False)] for _ in range(RANDOM_SETS)]


def tried(
    vlm: si.VLM, questions: list[si.Question], sets: dict[str, list[list[Head]]], direction: si.AnswerDirection | None
) -> si.Interventions:
    """Every set with every gain and alpha of `emphasise`, all in one reading of the prompts; edits are named "SET NUMBER gain 2"."""
    edits = {}
    for name, parts in sets.items():
        for i, heads in enumerate(parts):
            edits |= {f"{name} {i} gain {gain:g}": si.Edit.scaling(heads, gain, vlm.n_layers, vlm.n_heads) for gain in GAINS}
            if direction is not None:
                edits |= {f"{name} {i} alpha {alpha:g}": direction.edit(heads, alpha, "last") for alpha in ALPHAS}
    return si.intervene(vlm, questions, edits)


def context(vlm: si.VLM) -> list[Found]:
    cogs = si.cog_questions("test", 60)
    plain, given = (si.evaluate(vlm, si.subquestions(cogs, context=c)).by("function").set_index("function") for c in (False, True))
    return [{"function": f, "without": plain.loc[f].to_dict(), "with": given.loc[f].to_dict()} for f in plain.index]


def claims(models: Found) -> Found:
    """What the paper's abstract says, and what each model shows: one entry a figure, with its interval or p."""
    out: Found = {}
    for name, found in models.items():
        sparse = found["sparsity"]
        few = [row["function"] for row in sparse if row["p_sparse"] < 0.05]
        out[f"{name}/sparse"] = {
            "claim": "heads of a function are sparse: Gini of the importance above that under permuted labels",
            "functions": len(sparse),
            "functions_sparser_than_chance": few,
            "heads": {row["function"]: [row["heads"], row["heads_low"], row["heads_high"]] for row in sparse},
            "found": "as claimed" if len(few) == len(sparse) else "not found" if not few else "for some functions",
        }
        difference = found["spatial_minus_other_heads"]
        out[f"{name}/spatial heads are fewer"] = difference | {
            "claim": "spatial functions have fewer heads: their mean number minus the other functions'",
            "found": verdict(difference, -1),
        }
        for row in found["removal"]:
            key = f"{name}/removing heads degrades/{row['function']}, by {row['ranking']}"
            text = "removing a function's first k heads lowers its accuracy more than removing k random others (mean over k)"
            area = row["top_minus_random_over_all_k"]
            out[key] = area | {"claim": text, "found": verdict(area, -1)}
        for row in found["matrix"]["remove"]["specificity"]:
            text = "removing a function's heads hurts its own questions more than the others' (change of own minus of others)"
            out[f"{name}/specific/{row['function']}"] = row | {"claim": text, "found": verdict(row, -1)}
        for part in found.get("emphasis", []):
            for row in part["rows"]:
                if row["heads"] == "random":
                    continue
                latent = row["heads"] == "latent"
                text = "latent heads made active raise accuracy" if latent else "emphasising a function's heads raises accuracy"
                key = f"{name}/{'latent' if latent else 'emphasis'}/{part['function']}, {row['heads']}, by {row['how']}"
                out[key] = row | {"claim": text, "found": verdict(row, 1), "found_against_random": verdict(row["minus_random"], 1)}
    return {key: {"command": COMMAND} | entry for key, entry in out.items()}


def verdict(d: Found, sign: int) -> str:
    """By interval and p both."""
    if d["p"] >= 0.05 or d["low"] <= 0 <= d["high"]:
        return "not found"
    return "as claimed" if d["difference"] * sign > 0 else "the contrary"


def page(content: Found) -> str:
    parts = [HEAD, USE, OURS, *(model(name, found) for name, found in content["models"].items()), listed(content["claims"])]
    return "\n".join(parts)


HEAD = f"""# Functional heads of the embedded models

    {COMMAND}

writes this page, `functional_heads.json` (every figure here, and more) and the images.

Attention in Space (arXiv 2603.20662) claims: heads specialise by cognitive function, they are sparse, spatial ones are the fewest, removing
them degrades, emphasising them improves, and latent ones can be activated. This page is what the embedded models show, as found. Chains
are rendered (`cog_questions`): {N["train"]} train, {N["validation"]} validation and {N["test"]} test scenes, each with one step for each
of six functions, asked without context. The tags are ours. The models' vocabulary allows all seven default functions; "inference" asks for
the inverse relation, which without context has the same form as "relational reasoning", so it is left out here.

A warning that applies to the method, not only to these models: each function is asked in its own words, so a probe may tell functions
apart by the words. Importance for the probe does not prove that a head serves the function; removal does. Intervals are 95%, over images;
p is Holm-corrected within its table unless a line says otherwise. Heads, directions and rankings come from training scenes, tuned values
from validation scenes, every accuracy from test scenes. Intervals of head counts are over held-out images, for one trained probe.
"""


USE = """## How

```python
import scale_interp as si

vlm = si.load("demo")
train, test = (si.subquestions(si.cog_questions(split, 8)) for split in ("train", "test"))  # or si.read_cog("chains.jsonl")
heads = si.functional_heads(vlm, train, permutations=1)  # joint probe: .to_frame(), .layers(), .overlap(), .fewer(["counting"]), .plot()
# instead, one logistic probe a head: si.probe(vlm, train, label="function").top(8); label="relation" for any other field
heads.heads("counting"), heads.latent("counting")

own = [q for q in test if q.meta["function"] == "counting"]
si.remove_heads_curve(vlm, own, heads.ranking("counting"), chosen_on=heads.pictures).plot()
si.emphasise(vlm, own, heads.heads("counting"), chosen_on=heads.pictures).to_frame()
si.function_matrix(vlm, test, heads, "remove").plot()  # "gain"; "direction" with directions=si.answer_directions(vlm, train)
```

`read_cog` reads one JSON object per line, or one list:
`{"question", "answer", "image", "subquestions": [{"question", "answer", "function"}]}`, with "choices" beside any answer; or CogQA's
`"generated": [{"subquestion", "answer", "cognitive_skill"}]`. Functions are the file's own words. `cog_questions(taxonomy=...)` takes
another map from kinds of steps to functions. `subquestions(context=True)` prepends the earlier steps with their right answers;
`balanced=True` (the default) asks every function as often as the rarest.
"""

OURS = f"""## Release and ours

The release is that of Cognitive Mirrors (github.com/sihuo-design/CognitiveMirrors), the same group's text-only predecessor.

| what | CogQA's release | ours |
|---|---|---|
| scored on | its test split | training images that the probe did not learn from |
| directions | of training and test questions | of training questions only; none where (nearly) all answers are right |
| probe | 100 epochs, question by question | 20 epochs in batches of 64, activations divided by their deviation; or `recipe="release"` |
| removed | multiplied by 1e-4 | by 0; `factor=1e-4` for the release's |
| random heads | one draw outside the top | the mean of 20 draws, and each draw for itself |
| positions | answer tokens that a language model picked | the answer's first token, its last, or all |
| alpha | 5 | a grid, the value from validation questions |
| latent heads (Attention in Space) | no number stated | as many as are above the elbow, ranked just below it |
| chance | not stated | permuted labels ({PERMUTATIONS} times), paired intervals, Holm |
"""


def table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    return "\n".join(["| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *lines)])


def span(d: Found, key: str = "difference") -> str:
    return f"{d[key]:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"


def model(name: str, found: Found) -> str:
    parts = [f"## `{name}`\n", sparsity(name, found), layers(found), overlap(found), removal(name, found), matrix(name, found["matrix"])]
    if "emphasis" in found:
        parts += [EMPHASIS, *map(emphasis_table, found["emphasis"]), context_table(found["context"])]
    else:
        parts.append(f"Emphasis is not tried on `{name}`: it answers nearly everything right, so there is nothing to gain.\n")
    return "\n".join(parts)


def sparsity(name: str, found: Found) -> str:
    probe, alone, fewer, every = (found[k] for k in ("probe", "probe_per_head", "spatial_minus_other_heads", "n_heads"))
    lines = [
        [
            r["function"],
            f"{r['heads']} [{r['heads_low']:.0f}, {r['heads_high']:.0f}]",
            f"{r['share']:.0%}",
            f"{r['p_few']:.2g}",
            f"{r['gini']:.2f} [{r['gini_low']:.2f}, {r['gini_high']:.2f}]",
            f"{r['p_sparse']:.2g}",
            f"{r['recall']:.2f}",
            f"{a['significant']}, {a['heads_to_half']}, {a['gini']:.2f}",
            f"{a['agreement']['spearman']:+.2f}",
        ]
        for r, a in zip(found["sparsity"], found["by_ablation"], strict=True)
    ]
    header = ["function", "heads", "share", "as few by chance, p", "Gini", "as sparse by chance, p", "recall"]
    header += ["by ablation: significant, to half, Gini", "Spearman"]
    first = found["sparsity"][0]
    image = "![layers](images/functional_sparsity.png)\n" if name == "demo" else ""
    return f"""### Sparsity

The joint probe names the function of {probe["accuracy"]:.3f} of {probe["held_out"]} held-out questions (p = {probe["p"]:.2g}; on permuted
labels {probe["null_accuracy"]:.3f}). Under permuted labels a function has {first["null_heads"]:.0f} of {every} heads above the elbow and a
Gini of {first["null_gini"]:.2f} (medians). Beside it, zero ablation of one head at a time on the same training questions: heads whose
effect differs from 0, heads that hold half of it, Gini; and the rank correlation of its scores with |importance|.

{table(header, lines)}

Spatial functions ({", ".join(SPATIAL)}) minus the others, in heads: {span(fewer)}; permuted labels give as few with p = {fewer["p"]:.2g}.

One logistic probe a head (`si.probe(vlm, train, "function")`) names the function on {alone["best_accuracy"]:.2f} of the questions from the
best head ({alone["best"][0]}, {alone["best"][1]}), on {alone["worst_accuracy"]:.2f} from the worst; chance is {alone["chance"]:.2f}, and
{alone["significant"]} of {every} heads are above it. Rank correlation with the joint probe's mean |importance|:
{alone["agreement"]["spearman"]:+.2f} (p = {alone["agreement"]["p"]:.2g}).

{image}"""


def layers(found: Found) -> str:
    count = max(r["layer"] for r in found["layers"]) + 1
    names = list(dict.fromkeys(r["function"] for r in found["layers"]))
    at = {(r["function"], r["layer"]): f"{r['heads']} [{r['low']:.0f}, {r['high']:.0f}]" for r in found["layers"]}
    chance = [f"{r['null']:.1f}" for r in found["layers"][:count]]
    lines = [*([name, *(at[name, layer] for layer in range(count))] for name in names), ["permuted labels, mean", *chance]]
    return f"### Heads above the elbow by layer\n\n{table(['function', *range(count)], lines)}\n"  # type: ignore[list-item]


def overlap(found: Found) -> str:
    lines = [[f"{r['a']}, {r['b']}", f"{r['jaccard']:.2f} [{r['low']:.2f}, {r['high']:.2f}]", f"{r['null']:.2f}"] for r in found["overlap"]]
    return f"### Overlap of functions\n\n{table(['functions', 'Jaccard', 'permuted labels, median'], lines)}\n"


def removal(name: str, found: Found) -> str:
    parts = [REMOVAL]
    if name == "demo":
        parts.append("![removal](images/functional_removal.png)\n")
    for part in found["removal"]:
        at = {(r["k"], r["heads"]): f"{r['accuracy']:.3f}" for r in part["curve"]}
        lines = [
            [d["k"], *(at[d["k"], kind] for kind in ("top", "random", "low", "keep")), span(d), f"{d['p']:.2g}", f"{d['p_draws']:.2g}"]
            for d in part["top_minus_random"]
        ]
        area = part["top_minus_random_over_all_k"]
        header = ["k", "top", "random", "low", "keep", "top minus random", "p", "p, draws"]
        parts.append(f"""**{part["function"]}, ranked by {part["ranking"]}**; base accuracy {part["base"]:.3f}. Top minus random,
mean over all k: {span(area)}, p = {area["p"]:.2g}.

{table(header, lines)}
""")
    return "\n".join(parts)


REMOVAL = f"""### Removal

Heads are zeroed at the prompt's last token; "keep" leaves only the first k. "random" is the mean of twenty draws outside the first k;
"p, draws" is the share of draws (the first k counted in) that hurt as much, and cannot be below 0.048. Rankings:
{RANKINGS[0]} (|importance| for the function) and, as a yardstick, {RANKINGS[1]} (mean effect on the function's training questions).
"""


def matrix(name: str, found: Found) -> str:
    titles = {
        "remove": "Each function's heads (above the elbow) are zeroed",
        "gain": "Each function's heads are multiplied by 2",
        "direction": "Each function's heads are pushed by alpha = 5 along their direction of right answers",
    }
    parts = ["### Function by function\n"]
    if name == "demo":
        parts.append("![matrix](images/functional_matrix.png)\n")
    for how, title in titles.items():
        if how not in found:
            continue
        cells = found[how]["cells"]
        names = list(dict.fromkeys(r["function"] for r in cells))
        edits = list(dict.fromkeys(r["edit"] for r in cells))
        at = {(r["edit"], r["function"]): r for r in cells}
        lines = [[e, *(span(at[e, f], "change") + "*" * (at[e, f]["p"] < 0.05) for f in names)] for e in edits]
        lines.append(["no edit: accuracy", *(f"{at[edits[0], f]['base']:.3f}" for f in names)])
        own = [[r["function"], f"{r['own']:+.3f}", f"{r['others']:+.3f}", span(r), f"{r['p']:.2g}"] for r in found[how]["specificity"]]
        missing = found[how].get("without_direction")
        no = f" Without a direction, as (nearly) all training answers are right: {', '.join(missing)}." if missing else ""
        parts.append(f"""{title}: change of accuracy on every function's test questions. `*`: p < 0.05 over the whole matrix.{no}

{table(["heads of", *names], lines)}

{table(["heads of", "own", "all others", "own minus others", "p"], own)}
""")
    return "\n".join(parts)


EMPHASIS = f"""### Emphasis and latent heads

A gain, or alpha * sigma along the direction of right answers (training questions of the function), on the heads above the elbow, on as
many just below it ("latent"), on as many that zero ablation ranks first, and on as many others ("random": the mean of {RANDOM_SETS} sets,
each tuned separately). The value is the best on validation questions; the change is on test questions.
"""


def emphasis_table(part: Found) -> str:
    lines = []
    for r in part["rows"]:
        other = r["minus_random"]
        against = "" if other is None else f"{span(other)}, p = {other['p']:.2g}"
        lines.append([r["heads"], r["number"], ", ".join(r["chosen"]), span(r), f"{r['p']:.2g}", against])
    none = "" if part["has_direction"] else " (Nearly) all training answers are right, so there is no direction of right answers."
    header = ["heads", "number", "chosen", "change of accuracy", "p", "minus random (p not corrected)"]
    return f"**{part['function']}**; base accuracy {part['base']:.3f}.{none}\n\n{table(header, lines)}\n"


def context_table(found: list[Found]) -> str:
    lines = [
        [r["function"], *(f"{r[k]['accuracy']:.3f} [{r[k]['low']:.3f}, {r[k]['high']:.3f}]" for k in ("without", "with"))] for r in found
    ]
    mean = np.mean([r["with"]["accuracy"] - r["without"]["accuracy"] for r in found])
    return f"""### Context

Accuracy with the steps before and their right answers in the prompt, on 60 test chains of all seven functions. The model was trained on
single questions and has never seen a context; mean change {mean:+.3f}.

{table(["function", "without", "with context"], lines)}
"""


def listed(found: Found) -> str:
    lines = []
    for key, entry in found.items():
        if "difference" in entry:
            measured = f"{span(entry)}, p = {entry['p']:.2g}"
        else:
            measured = f"sparser than chance: {len(entry['functions_sparser_than_chance'])} of {entry['functions']} functions"
        against = f"; against random heads: {entry['found_against_random']}" if "found_against_random" in entry else ""
        lines.append([key, measured, entry["found"] + against])
    return f"""## The abstract's claims

"As claimed" and "the contrary" need an interval that excludes 0 and p < 0.05; everything else is "not found". Keys are those of `claims` in
`functional_heads.json`.

{table(["claim", "measured", "found"], lines)}
"""


if __name__ == "__main__":
    main()
