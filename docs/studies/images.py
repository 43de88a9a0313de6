"""The images of README and docs, from a run folder: python -m docs.studies.images runs/demo-scenes-relation"""

import sys
from pathlib import Path

from scale_interp import viz
from scale_interp.jobs.run.page import FITS
from scale_interp.jobs.run.run import Run

IMAGES = Path(__file__).parents[1] / "images"


def main(folder: Path) -> None:
    """Write one PNG a figure (needs kaleido and Chrome: pip install "scale-interp[notebook]")."""
    run = Run.existing(folder)
    maps, scales, suites, answers = run.locate(), run.fit(), run.falsify(), run.evaluate()
    figures = {
        "heads": viz.head_heatmap(maps["patch"], marks=run.top_heads),
        "methods": viz.head_heatmaps(list(maps.values()), marks=run.top_heads),
        "coefficients": viz.coefficients_vs_attribution(scales["all"], maps["patch"]),
        "controls": viz.controls(suites["all"]),
        "controls-top": viz.controls(suites["top"]),
        "relations": viz.accuracy_by({"base": answers["asked"]["base"], "ScAle": answers["asked"]["all"]}, "relation"),
        "retention": viz.retention([row | {"fit": FITS[row["fit"]]} for row in run.retention()]),
    }
    for name, figure in figures.items():
        figure.write_image(IMAGES / f"{name}.png", scale=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
