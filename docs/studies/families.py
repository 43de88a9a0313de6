"""What works on each family's tiny model: the table of docs/families.md.

    python -m docs.studies.families [NAME ...]     (with names, those rows alone are made again)

Every analysis is run on two small questions. What it refuses, it refuses with a reason, which is kept in families.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import scale_interp as si
from scale_interp.models import zoo

PAGE = Path(__file__).parents[1] / "families.md"
ROWS = Path(__file__).with_suffix(".json")
BEGIN, END = "<!-- made by python -m docs.studies.families -->", "<!-- end -->"


def pair() -> si.Contrast:
    red, blue = (Image.linear_gradient("L").resize((64, 48)).rotate(angle).convert("RGB") for angle in (0, 180))
    clean = si.Question("Where is the red circle?", ("left", "right"), 0, picture=red, id="clean")
    clean = replace(clean, boxes={"red circle": (8.0, 8.0, 40.0, 40.0)})
    return si.Contrast(clean, replace(clean, answer=1, picture=blue, id="corrupt", group="corrupt"))


def analyses(vlm: Any) -> dict[str, Callable[[], Any]]:
    """Each analysis of the table, by its name in the table."""
    one = pair()
    asked = [one.clean, one.corrupt]
    scale = si.ScAle(torch.full((vlm.n_layers, vlm.n_heads), 0.5), torch.ones(vlm.n_layers), 1, ())

    def attached() -> None:
        with scale.attached(vlm):
            vlm.generate(one.clean, max_new_tokens=2)

    return {
        "capture": lambda: si.capture(vlm, asked),
        "ablate": lambda: si.ablate(vlm, asked),
        "patch": lambda: si.patch(vlm, [one]),
        "attribute": lambda: si.attribute(vlm, asked),
        "logit_attribution": lambda: si.logit_attribution(vlm, asked),
        "attention": lambda: si.read_attention(vlm, asked),
        "patch grid": lambda: si.patch_grid(vlm, one.clean),
        "knockout": lambda: si.knockout(vlm, asked),
        "logit_lens": lambda: si.logit_lens(vlm, asked),
        "fit_scale": lambda: si.fit_scale(vlm, asked, epochs=1),
        "attached": attached,
    }


def row(name: str) -> dict[str, Any]:
    """One family: its heads, path and agreement, and what each analysis did ("" or its refusal)."""
    vlm = si.load(zoo.PREFIX + name, check=True)
    report, refused = vlm.report, {}
    for kind, run in analyses(vlm).items():
        try:
            run()
            refused[kind] = ""
        except si.errors.ScaleInterpError as error:
            refused[kind] = str(error)
    away = max(report.packed_reference, report.clean) if report.path == "packed" else report.nnsight
    return {
        "family": vlm.family,
        "heads": f"{vlm.n_layers} of {len(vlm.all_layers)}",
        "path": report.path,
        "agreement": f"{away:.0e}",
        "refused": refused,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    kinds = list(next(iter(rows.values()))["refused"])
    lines = [f"| tiny model | layers with heads | path | agreement | {' | '.join(kinds)} |", "|---" * (4 + len(kinds)) + "|"]
    for name, found in rows.items():
        marks = " | ".join("no" if found["refused"][kind] else "yes" for kind in kinds)
        lines.append(f"| `{name}` | {found['heads']} | {found['path']} | {found['agreement']} | {marks} |")
    return "\n".join(lines)


def main() -> None:
    rows = json.loads(ROWS.read_text()) if ROWS.is_file() else {}
    for name in sys.argv[1:] or zoo.NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows[name] = row(name)
        print(
            name, {k: v for k, v in rows[name].items() if k != "refused"}, {k: v for k, v in rows[name]["refused"].items() if v}, flush=True
        )
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    ordered = {name: rows[name] for name in zoo.NAMES if name in rows}
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(ordered)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
