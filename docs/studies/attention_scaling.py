"""docs/attention_scaling.md and .json, measured again on the embedded model: python -m docs.studies.attention_scaling"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import scale_interp as si
from scale_interp import viz
from scale_interp.adapters.attention_scaling.adaptvis import AdaptVis
from scale_interp.adapters.attention_scaling.pasta import PASTA
from scale_interp.adapters.attention_scaling.scalingvis import AttentionScale
from scale_interp.adapters.steering.fit import fit_steering
from scale_interp.adapters.steering.steering import Steering
from scale_interp.core.files import write_bytes, write_json
from scale_interp.core.statistics import holm
from scale_interp.evaluation.attention_scaling.answers import evaluate_scaled, transfer_table, tune_adaptvis, tune_scaling
from scale_interp.evaluation.attention_scaling.weight_curve import scaling_curve
from scale_interp.interventions.prefix import PrefixStore

from .tables import p_value, span, table

HERE = Path(__file__).parent
DOCS = HERE.parent
SETS = ("relation", "position", "exists")
N = {"train": 300, "validation": 200, "test": 400}
WHOLE = 200
"""Test questions where every answer takes whole forward passes."""
LOW, HIGH = (0.25, 0.5, 0.8), (1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
ALPHAS = (0.5, 0.3, 0.1, 0.03, 0.01)
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 15.0)
HEADS = (4, 16, 48)


def main() -> None:
    vlm = si.load("demo")
    data = {name: {split: si.load_questions(f"scenes/{name}", split, n=n) for split, n in N.items() if split != "train"} for name in SETS}
    relation = data["relation"] | {"train": si.load_questions("scenes/relation", "train", n=N["train"])}
    curve = scaling_curve(vlm, relation["test"], LOW + HIGH)
    every = scaling_curve(vlm, relation["test"][:WHOLE], (0.5, 0.8, 1.2, 1.5, 2.0, 3.0), rows="all")
    other = scaling_curve(vlm, data["exists"]["test"], LOW + HIGH)
    tuned = {}
    for name in SETS:
        tuned[f"{name}, ScalingVis"] = tune_scaling(vlm, data[name]["validation"], LOW + HIGH)
        tuned[f"{name}, AdaptVis"] = tune_adaptvis(vlm, data[name]["validation"], LOW, HIGH)
    chosen = tuned["relation, ScalingVis"].method, tuned["relation, AdaptVis"].method
    content = {
        "curve": curve.to_frame().to_dict("records"),
        "curve_every_row": every.to_frame().to_dict("records"),
        "curve_exists": other.to_frame().to_dict("records"),
        "by_confidence": curve.by_confidence(4).to_dict("records"),
        "by_layer": by_layer(vlm, relation, chosen[0]),
        "methods": methods(vlm, relation, *chosen) | {"adaptvis_minus_scalingvis": between(vlm, relation["test"], *chosen)},
        "reversed": turned(vlm, relation),
        "tuned": {name: {"method": repr(one.method), "accuracy": one.accuracy, "base": one.base} for name, one in tuned.items()},
        "transfer": transfer_table(vlm, tuned, {name: data[name]["test"] for name in SETS}).to_dict("records"),
        "provenance": curve.provenance,
    }
    write_json(HERE / "attention_scaling.json", content)
    curves = {"relation, last row": curve, "relation, every row": every, "existence, last row": other}
    viz.scaling_curves(curves).write_image(DOCS / "images" / "scaling_curve.png", scale=2)
    write_bytes(DOCS / "attention_scaling.md", (GUIDE + page(content)).encode())


def by_layer(vlm: si.VLM, relation: dict[str, si.Questions], method: AttentionScale) -> list[dict[str, Any]]:
    """The tuned weight in one layer at a time, on test questions."""
    alone = [replace(method, layers=(layer,)) for layer in range(vlm.n_layers)]
    base, *found = evaluate_scaled(vlm, relation["test"], [AttentionScale(1.0), *alone])
    rows = [{"layer": layer, "weight": method.weight} | difference(one, base) for layer, one in enumerate(found)]
    return corrected(rows)


def methods(vlm: si.VLM, relation: dict[str, si.Questions], scaling: AttentionScale, adaptive: AdaptVis) -> dict[str, Any]:
    """Each method with what was tuned on validation questions, once on the first test questions of all methods."""
    test, validation = relation["test"][:WHOLE], relation["validation"][: WHOLE // 2]
    everywhere = [(layer, head) for layer in range(vlm.n_layers) for head in range(vlm.n_heads)]
    boxes = {split: si.box_tokens(vlm, questions) for split, questions in (("validation", validation), ("test", test))}
    pasta = [PASTA(everywhere, alpha) for alpha in ALPHAS]
    on_image, on_box = best(vlm, validation, pasta), best(vlm, validation, pasta, boxes["validation"])
    steering = best(vlm, relation["validation"], steerings(vlm, relation["train"]))
    base, *found = evaluate_scaled(vlm, test, [AttentionScale(1.0), scaling, adaptive, steering, on_image])
    found += evaluate_scaled(vlm, test, [on_box], selected=boxes["test"])
    names = ("ScalingVis", "AdaptVis", "ITI", "PASTA, image", "PASTA, asked boxes")
    told = (scaling, adaptive, steering, on_image, on_box)
    rows = corrected(
        [
            {"method": name, "setting": setting(one), "passes": one.passes, "parameters": one.n_parameters} | difference(answers, base)
            for name, one, answers in zip(names, told, found, strict=True)
        ]
    )
    return {"base": base.accuracy, "rows": rows}


def between(vlm: si.VLM, test: si.Questions, scaling: AttentionScale, adaptive: AdaptVis) -> dict[str, Any]:
    """AdaptVis minus ScalingVis, and how many questions its gate finds unsure."""
    one, other = evaluate_scaled(vlm, test, [scaling, adaptive])
    sure = scaling_curve(vlm, test, (scaling.weight,)).confidence
    changed = sum(a != b for a, b in zip(one.answers, other.answers, strict=True))
    counts = {"n": len(test), "answers_that_differ": changed, "below_threshold": int((sure < adaptive.threshold).sum())}
    return difference(other, one) | counts


def turned(vlm: si.VLM, relation: dict[str, si.Questions]) -> dict[str, Any]:
    """The gate the other way round: sharpened where the model is unsure, left alone or sharpened less where it is sure.

    The idea came from the test questions' curve, so other questions, on other scenes, test it.
    """
    seen = {q.group for q in relation["test"]}
    fresh = [q for q in si.load_questions("scenes/relation", "test", n=2 * N["test"], seed=1) if q.group not in seen][: N["test"]]
    tuned = tune_adaptvis(vlm, relation["validation"], HIGH, (1.0, *HIGH))
    scaling = tune_scaling(vlm, relation["validation"], LOW + HIGH).method
    base, one, other = evaluate_scaled(vlm, fresh, [AttentionScale(1.0), scaling, tuned.method])
    rows = {"minus_base": difference(other, base), "minus_scalingvis": difference(other, one)}
    return {"setting": setting(tuned.method), "n": len(fresh), "base": base.accuracy, "scalingvis": one.accuracy} | rows


def steerings(vlm: si.VLM, train: si.Questions) -> list[Steering]:
    prompts = PrefixStore(vlm, train)
    fitted = [fit_steering(vlm, train, heads=k, prompts=prompts) for k in HEADS]
    return [replace(one, alpha=alpha) for one in fitted for alpha in STRENGTHS]


def best(vlm: si.VLM, validation: si.Questions, tried: list[Any], selected: list[Any] | None = None) -> Any:
    """The method with the highest accuracy on validation questions, the first of equals."""
    found = evaluate_scaled(vlm, validation, tried, selected=selected)
    return max(zip(tried, found, strict=True), key=lambda pair: pair[1].accuracy)[0]


def setting(method: Any) -> str:
    if isinstance(method, AttentionScale):
        return f"weight {method.weight:g}"
    if isinstance(method, AdaptVis):
        return f"{method.weight_low:g} below {method.threshold:.3g}, else {method.weight_high:g}"
    return f"alpha {method.alpha:g}, {len(method.heads)} heads"


def difference(answers: si.Evaluation, base: si.Evaluation) -> dict[str, float]:
    gain = answers.compare(base)
    return {"accuracy": answers.accuracy, "difference": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p}


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return pd.DataFrame(rows).assign(p_holm=holm(pd.DataFrame(rows)["p"].to_numpy())).to_dict("records")


GUIDE = """# Attention scaled, and steering

ScalingVis and AdaptVis (arXiv 2503.01773), with PASTA (arXiv 2311.02262) and ITI (arXiv 2306.03341) as baselines.

    logits'[h, row, column] = weight[h] * logits[h, row, column] + shift[h]        after q.k / sqrt(d), before mask and softmax

| method | rows | columns | weight, shift | passes per answer |
|---|---|---|---|---|
| `AttentionScale(w)`, ScalingVis | the prompt's last | image tokens | w, 0 | 1 |
| `AdaptVis(low, high, threshold)` | the prompt's last | image tokens | low or high, by confidence; 0 | 2 |
| `PASTA(heads, alpha)` | all, and those of new tokens | all but the selected | 1, log(alpha) on the given heads | 1 |
| `fit_steering(...)`, ITI | last and new tokens | | an edit of z: `+ alpha * sigma * direction` | 1 |

The function is registered with transformers' `AttentionInterface` and set on the text decoder only; model code and the vision tower
are unchanged. Heads with weight 1 and shift 0 keep the base model's bits. A model on flash attention runs torch's own attention (or plain
attention, where logits have a cap) while something is attached.

```python
import scale_interp as si

vlm = si.load("demo")
train, validation, test = (si.load_questions("scenes/relation", split, n=12) for split in ("train", "validation", "test"))
other = si.load_questions("scenes/exists", "test", n=12)

methods = [si.AttentionScale(0.5), si.AttentionScale(2.0), si.fit_steering(vlm, train, heads=8)]
smooth, sharp, steered = si.evaluate_scaled(vlm, test, methods)
(boxed,) = si.evaluate_scaled(vlm, test, [si.PASTA(((2, 1), (3, 0)), 0.1)], selected=si.box_tokens(vlm, test))
si.scaling_curve(vlm, test, (0.5, 2.0)).by_confidence(4)
tuned = si.tune_adaptvis(vlm, validation)
with tuned.method.attached(vlm):
    vlm.generate(test[0])
si.transfer_table(vlm, {"relation": tuned}, {"relation": test, "exists": other})
```

## What it costs

With `rows="last"` only the last token's row changes, so the prompt is read once and the last token run once for each weight: a grid of
5 weights takes 6 passes of the last token per question, and AdaptVis' thresholds and pairs of weights cost nothing more. `rows="all"`,
PASTA and given tokens (`selected=`) change the prompt's keys and values, and models whose prompts attend in both directions (PaliGemma)
have no frozen prompt: there every answer is a whole forward pass, one for each choice where choices are longer than one token.

With a method attached to a plain model, the prompt must come whole and with an empty cache, and its answer token by token: whatever would
hide which token is the prompt's last (no cache, several tokens at once behind one) is an error, not another number.

## Paper and ours

| what | paper | ours |
|---|---|---|
| rows, layers, heads, steps | last row, all, all, prefill | options; the paper's are the defaults |
| confidence | largest probability over the vocabulary | option: over the choices |
| weights to tune | 0.5, 0.8 and 1.2, 1.5, 2.0 | the same |
| thresholds to tune | 0.3 to 0.4 | 0.3, 0.35, 0.4 and the deciles of the confidences on the validation questions |
| equal settings | not stated | weights nearest to 1, then the lowest threshold |
| soft caps (Gemma 2) | not covered | the capped logits are multiplied; a cap afterwards would undo a large weight |
| `legacy=True` | | the release's gate: rounded to two decimals; on VSR questions the largest logit, not its probability |
| PASTA's selection | given by the user | the image tokens, or those given: `box_tokens` selects what shows a part of the asked boxes |
| ITI's classes | given true and false answers | the model's own right and wrong answers, z of the prompt's last token |
| ITI's heads | the best K by probe accuracy | held-out balanced accuracy of one probe per head, on training images |

The release's other quirks concern the data sets: its substring scoring is `score_answers(..., scorer="legacy")`, its "F1" of VSR
`benchmark(..., legacy=True)`.

"""


def page(c: dict[str, Any]) -> str:
    found, gap, other = c["methods"], c["methods"]["adaptvis_minus_scalingvis"], c["reversed"]
    gained, beyond = (span(row["difference"], row["low"], row["high"], "+") for row in (other["minus_base"], other["minus_scalingvis"]))
    moves = pd.DataFrame(c["transfer"])
    moved = {
        "tuned on": moves["tuned_on"],
        "setting": moves["method"].map(short),
        "tested on": moves["tested_on"],
        "base": moves["base"].map("{:.3f}".format),
    }
    return f"""## Measured on `demo`

    python -m docs.studies.attention_scaling

Tuned on {N["validation"]} validation questions, tested on {N["test"]} test questions of scenes/relation ({WHOLE} where a method takes
whole forward passes). Differences from the unedited model are paired, with 95% intervals over images; p is Holm-corrected within each
table. The paper's weights end at 2.0; ours go on to {HIGH[-1]:g}. All numbers are in
[attention_scaling.json](studies/attention_scaling.json), what they say of the paper's claims in [claims](claims.md).

**Weight by weight** ({N["test"]} test questions; nothing was picked from them):

{table(shown(c["curve"], "weight"))}

![change of accuracy by weight](images/scaling_curve.png)

**Does the best weight depend on confidence, as AdaptVis assumes?** The same questions in four parts, the least confident first:

{table(parts(c["by_confidence"]))}

**One layer at a time**, at the tuned weight:

{table(shown(c["by_layer"], "layer"))}

**The methods**, each with the setting that was best on validation questions, on the same {WHOLE} test questions (base
{found["base"]:.3f}). The asked boxes are the true ones, which nobody has outside a study.

{table(shown(found["rows"], "method", "setting", "passes", "parameters"))}

AdaptVis minus ScalingVis on all {gap["n"]} test questions: {span(gap["difference"], gap["low"], gap["high"], "+")}, p {p_value(gap["p"])};
{gap["below_threshold"]} of them are below the threshold, {gap["answers_that_differ"]} answers differ.

**The reversed gate** (ours: sharpened where unsure, less or not where sure; {other["setting"]}, tuned on the same validation
questions). The table by confidence suggested it, so it is tested on {other["n"]} test questions of other scenes: base {other["base"]:.3f},
ScalingVis {other["scalingvis"]:.3f}; minus base {gained}, p {p_value(other["minus_base"]["p"])}; minus ScalingVis {beyond},
p {p_value(other["minus_scalingvis"]["p"])}.

**Transfer**: settings tuned on one set, tested on all ({N["test"]} test questions each).

{table(pd.DataFrame(moved).join(shown(c["transfer"])))}
"""


def shown(rows: list[dict[str, Any]], *keys: str) -> pd.DataFrame:
    columns = {key: [f"{row[key]:g}" if isinstance(row[key], float) else row[key] for row in rows] for key in keys}
    columns["accuracy"] = [f"{row['accuracy']:.3f}" for row in rows]
    columns["difference"] = [span(row["difference"], row["low"], row["high"], "+") for row in rows]
    return pd.DataFrame(columns | {"p, Holm": [p_value(row["p_holm"]) for row in rows]})


def parts(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a weight, a column a part of the questions; * where p < 0.05 after correction."""
    frame = pd.DataFrame(rows)
    head = {part: f"{p['confidence_from'].iloc[0]:.2f} to {p['confidence_to'].iloc[0]:.2f}" for part, p in frame.groupby("part")}
    base = {part: f"{p['base'].iloc[0]:.3f}" for part, p in frame.groupby("part")}
    cells = [f"{span(r.difference, r.low, r.high, '+')}{'*' if r.p_holm < 0.05 else ''}" for r in frame.itertuples()]
    wide = frame.assign(cell=cells).pivot(index="weight", columns="part", values="cell").rename(columns=head)
    first = pd.DataFrame([["accuracy at weight 1", *base.values()]], columns=["confidence", *wide.columns])
    return pd.concat([first, wide.rename_axis("confidence").reset_index().astype({"confidence": str})])


def short(method: str) -> str:
    """The settings of a method's repr that differ from the defaults."""
    told = dict(part.split("=") for part in method.partition("(")[2].rstrip(")").split(", "))
    if method.startswith("AdaptVis"):
        return f"AdaptVis {told['weight_low']}, {told['weight_high']}, {float(told['threshold']):.3f}"
    return f"ScalingVis {told['weight']}"


if __name__ == "__main__":
    main()
