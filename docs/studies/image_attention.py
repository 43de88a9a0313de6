"""docs/image_attention.md and .json, measured again on the embedded model: python -m docs.studies.image_attention"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scale_interp as si
from scale_interp import viz
from scale_interp.attribution.attention.auroc import auroc
from scale_interp.attribution.attention.grid import patch_grid
from scale_interp.attribution.attention.last_token import read_attention
from scale_interp.attribution.attention.localization import localization_heads
from scale_interp.attribution.attention.objects import ObjectAttention, object_attention
from scale_interp.core.files import write_bytes, write_json
from scale_interp.core.statistics import bootstrap_interval

from .tables import p_value, span, table

HERE = Path(__file__).parent
DOCS = HERE.parent
TRAIN, TEST = 200, 600
SHOWN = 6


def main() -> None:
    vlm = si.load("demo")
    train, test = (si.load_questions("scenes/relation", split, n=n) for split, n in (("train", TRAIN), ("test", TEST)))
    located = localization_heads(vlm, train)
    chosen = object_attention(vlm, train).box.top(1)[0]
    found = object_attention(vlm, test)
    second = object_attention(vlm, [replace(q, about=q.about[1:]) for q in test])
    content = measured(found, second) | {
        "localization": {"heads": located.heads, "above_elbow": len(located.above), "questions": len(train), "split": "train"},
        "image": {"head": chosen, "chosen_on": "train, most attention on the boxes", "question": test[0].id},
        "provenance": found.provenance,
    }
    write_json(HERE / "image_attention.json", content)
    (weights,) = read_attention(vlm, test[0])
    figure = viz.attention_over_picture(test[0], weights, patch_grid(vlm, test[0]), *chosen)
    figure.write_image(DOCS / "images" / "attention_over_picture.png", scale=1)
    viz.auroc_heatmap(found.auroc()).write_image(DOCS / "images" / "attention_auroc.png", scale=2)
    write_bytes(DOCS / "image_attention.md", (GUIDE + page(content)).encode())


def measured(found: ObjectAttention, second: ObjectAttention) -> dict[str, Any]:
    groups = found.groups.numpy()
    mass = found.image_mass.mean((1, 2)).numpy()
    low, high = bootstrap_interval(mass, groups)
    horizontal = np.array([relation in ("left", "right") for relation in found.relations])
    told = auroc(found.confidence.numpy(), horizontal, groups)
    heads, layers = found.auroc(), found.auroc(by="layer")
    lift, box = found.lift.to_frame(), found.box.to_frame().sort_values("score", ascending=False)
    return {
        "accuracy": float(found.correct.mean()),
        "questions": len(found.ids),
        "image_share_of_tokens": float(found.image_share.mean()),
        "image_share_of_attention": {"mean": float(mass.mean()), "low": float(low), "high": float(high)},
        "box_share_of_image_tokens": float(found.area.mean()),
        "by_layer": found.by_layer().to_dict("records"),
        "box_heads": box.head(SHOWN).to_dict("records"),
        "lift_heads_above_0": int(((lift["p"] < 0.05) & (lift["score"] > 0)).sum()),
        "lift_heads_below_0": int(((lift["p"] < 0.05) & (lift["score"] < 0)).sum()),
        "auroc_by_head": heads.to_dict("records"),
        "auroc_by_head_above": int(((heads["p"] < 0.05) & (heads["auroc"] > 0.5)).sum()),
        "auroc_by_head_below": int(((heads["p"] < 0.05) & (heads["auroc"] < 0.5)).sum()),
        "auroc_by_layer": layers.to_dict("records"),
        "auroc_by_layer_lift": found.auroc(of="lift", by="layer").to_dict("records"),
        "auroc_by_layer_image": found.auroc(of="image", by="layer").to_dict("records"),
        "auroc_by_layer_reference_object": second.auroc(by="layer").to_dict("records"),
        "confidence_auroc": found.confidence_auroc(),
        "by_relation": found.by_relation().to_dict("records"),
        "left_right_more_confident_auroc": dict(zip(("auroc", "low", "high", "p"), map(float, told), strict=True)),
    }


GUIDE = """# Attention to the image

Which heads of the prompt's last token look at the image, which at the object that is asked about, and whether looking is associated with
right answers (arXiv 2503.01773, section 4).

```python
import scale_interp as si

vlm = si.load("demo")
train, questions = (si.load_questions("scenes/relation", split, n=24) for split in ("train", "test"))  # with .about and .boxes

found = si.object_attention(vlm, questions)
found.box, found.image, found.focus, found.lift, found.entropy  # HeadMaps
found.auroc(), found.auroc(si.evaluate(vlm, questions), of="lift", by="layer")  # against right answers
found.by_layer(), found.by_relation(), found.confidence_auroc()
si.localization_heads(vlm, train).heads
(weights,) = si.read_attention(vlm, questions[0])  # [L, H, T]
si.viz.attention_over_picture(questions[0], weights, si.patch_grid(vlm, questions[0]), layer=3, head=4)
```

`scale-interp attention MODEL --data SET` does all of this and writes a page.

## What is read

The weights of the last token over the prompt, itself included; each head's weights sum to 1. They are read by the packed path
(the prompt read once) and equal transformers' eager attention to 1e-6 on every family, in windows, with soft caps and left padding;
PaliGemma is read by whole passes.

| family | patch grid |
|---|---|
| LLaVA-1.5 | shorter edge resized, middle cropped (or padded to a square first): the margins are not seen |
| LLaVA-NeXT, LLaVA-OneVision | the whole image squeezed, then tiles without padding; the new line after each row shows nothing |
| LLaVA-OneVision, several images | each padded to a square, seen once |
| Qwen2-VL, Qwen2.5-VL, Qwen3-VL | merged patches, the grid of the image's own shape |
| InternVL | tiles, and the whole image after them |
| Idefics3, SmolVLM | tiles in rows and columns, and the whole image; markers show nothing |
| Gemma 3 | the whole image squeezed to a square; with pan and scan, crops along its longer side |
| PaliGemma | the whole image squeezed to a square |
| any other | ModelError: attention can be read, but not located in the image |

Tested by paint: in a copy of the model whose vision blocks add nothing, a spot in the middle of a token's box must change that token's
features and none of those elsewhere. A trained vision tower mixes its patches, so a box says where a token's patch is,
not everything that the token contains.

## Definitions

- **image**: attention on tokens that show a part of an image (new lines between patches are not among them: ours).
- **box**: attention on the union of the asked objects' boxes; a token counts by the share of its patch that is inside (ours).
- **focus** = box / image. **lift** = focus minus the focus of attention that is even over the image tokens; 0 if a head ignores the box.
- **entropy**: of the connected parts that exceed twice the map's mean, weighted by their excess (arXiv 2503.06287; the factor 2 and the
  weights as in its release). A map in which nothing stands out has the logarithm of its number of patches (ours). Taken on each image's
  finest view.
- **AUROC** of a measure against correctness, per head, or of a layer's mean over its heads. Interval: bootstrap over images. p:
  Mann-Whitney's test where each question has its own image, else the bootstrap's standard error; Holm over all rows of its table.
- **confidence**: the probability of the choice that is given, among the choices.
- **localization heads**: image attention above the elbow, then the least entropy, both means over training questions; three of them (ours).
- **elbow**: the point farthest from the chord of the sorted values. A bend below the chord is not counted among the high values, one above
  it is; a straight line keeps all (ours).

"""


def page(c: dict[str, Any]) -> str:
    share, sure, told = c["image_share_of_attention"], c["confidence_auroc"], c["left_right_more_confident_auroc"]
    layers = pd.DataFrame(c["by_layer"])
    columns = {"layer": layers["layer"]}
    columns |= {f"on the {of}" if of != "lift" else of: spans(layers, of, "+" if of == "lift" else "") for of in ("image", "box", "lift")}
    named = {"box": "auroc_by_layer", "image": "auroc_by_layer_image", "lift": "auroc_by_layer_lift", "second object's box": REFERENCE}
    against = {"layer": layers["layer"]} | {name: scored(c[key]) for name, key in named.items()}
    most = pd.DataFrame(c["box_heads"])
    top = {"head": [f"({r.layer}, {r.head})" for r in most.itertuples()], "on the box": spans(most, "score", "", "low", "high")}
    heads = pd.DataFrame(c["auroc_by_head"])
    best = heads.reindex((heads["auroc"] - 0.5).abs().sort_values(ascending=False).index).head(SHOWN)
    far = {"head": [f"({r.layer}, {r.head})" for r in best.itertuples()], "AUROC": spans(best, "auroc", "", "low", "high")}
    relations = pd.DataFrame(c["by_relation"])
    by = {"relation": relations["relation"], "n": relations["n"]} | {of: spans(relations, of) for of in ("confidence", "accuracy")}
    chosen = ", ".join(str(tuple(head)) for head in c["localization"]["heads"])
    return f"""## Measured on `demo`

    python -m docs.studies.image_attention

{c["questions"]} test questions of scenes/relation, accuracy {c["accuracy"]:.3f}; the asked boxes are {c["box_share_of_image_tokens"]:.1%}
of the image tokens. All numbers are in [image_attention.json](studies/image_attention.json), what they say
of the paper's claims in [claims](claims.md).

**How much.** Image tokens are {c["image_share_of_tokens"]:.1%} of the prompt and draw {span(share["mean"], share["low"], share["high"])}
of the attention (mean over heads). The paper: about 90 % of the tokens, about 10 % of the attention, on LLaVA-1.5.

Means over each layer's heads:

{table(pd.DataFrame(columns))}

**Where.** {c["lift_heads_above_0"]} of {len(heads)} heads look at the asked boxes more than an even attention would,
{c["lift_heads_below_0"]} less (Holm, 0.05). Most attention on them:

{table(pd.DataFrame(top))}

![a head's attention over an image](images/attention_over_picture.png)

*The head with most attention on the boxes of training questions, {tuple(c["image"]["head"])}, on the first test question.*

**Is looking associated with right answers?** AUROC of a layer's mean attention against correctness, with interval and corrected p:

{table(pd.DataFrame(against))}

By head, {c["auroc_by_head_above"]} of {len(heads)} look more at the boxes when the answer is right, {c["auroc_by_head_below"]} less
(Holm, 0.05). Farthest from 0.5:

{table(pd.DataFrame(far | {"p, Holm": [p_value(p) for p in best["p"]]}))}

![AUROC by layer and head](images/attention_auroc.png)

**Confidence.** It tells right from wrong with an AUROC of {span(sure["auroc"], sure["low"], sure["high"])}, p {p_value(sure["p"])}.

{table(pd.DataFrame(by))}

A left/right question has more confidence than an above/below one with an AUROC of {span(told["auroc"], told["low"], told["high"])},
p {p_value(told["p"])} (0.5: no difference). Its training scenes were drawn alike in all directions, so no relation is less familiar by
construction.

**Localization heads** ({c["localization"]["questions"]} training questions): {chosen};
{c["localization"]["above_elbow"]} of {len(heads)} heads are above the elbow of image attention.
"""


REFERENCE = "auroc_by_layer_reference_object"


def spans(frame: pd.DataFrame, of: str, sign: str = "", low: str = "", high: str = "") -> list[str]:
    parts = frame[of], frame[low or f"{of}_low"], frame[high or f"{of}_high"]
    return [span(*row, sign) for row in zip(*parts, strict=True)]


def scored(rows: list[dict[str, float]]) -> list[str]:
    return [f"{span(r['auroc'], r['low'], r['high'])}, {p_value(r['p'])}" for r in rows]


if __name__ == "__main__":
    main()
