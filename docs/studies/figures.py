"""The images of docs/figures.md: python -m docs.studies.figures. With a FOLDER: every figure at four sizes, light and dark."""

import sys
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image

import scale_interp as si
from scale_interp import viz

from . import synthetic as made

IMAGES = Path(__file__).parents[1] / "images"
SIZES = ((1, 1), (12, 8), (32, 32), (80, 64))
Draw = Callable[[bool], go.Figure]


def sized(L: int, H: int) -> dict[str, Draw]:
    """Figures that grow with the model; each takes `dark`."""
    m, marks = made.head_map(L, H), made.head_map(L, H).top(min(8, L * H))
    two = {"relational reasoning": made.removal(L, H), "spatial perception": made.removal(L, H, 1)}
    found = {
        "head_heatmap": lambda dark: viz.head_heatmap(m, marks=marks, dark=dark),
        "head_heatmaps": lambda dark: viz.head_heatmaps(made.head_maps(L, H), marks=marks, dark=dark),
        "scalar_heatmap": lambda dark: viz.scalar_heatmap(made.scale(L, H), dark=dark),
        "scalar_heatmap-top": lambda dark: viz.scalar_heatmap(made.scale(L, H, every=False), dark=dark),
        "coefficients_vs_attribution": lambda dark: viz.coefficients_vs_attribution(made.scale(L, H), m, dark=dark),
        "auroc_heatmap": lambda dark: viz.auroc_heatmap(made.auroc(L, H), dark=dark),
        "head_marks": lambda dark: viz.head_marks(made.head_sets(L, H), dark=dark),
        "head_overlap": lambda dark: viz.head_overlap(made.head_sets(L, H), dark=dark),
        "layer_histogram": lambda dark: viz.layer_histogram(made.functional(L, H), dark=dark),
        "removal_curves": lambda dark: viz.removal_curves(made.removal(L, H), dark=dark),
        "removal_curves-two": lambda dark: viz.removal_curves(two, dark=dark),
        "faithfulness_curves": lambda dark: viz.faithfulness_curves(made.faithful(L, H), dark=dark),
        "rescaling": lambda dark: viz.rescaling(made.rescaling(L), dark=dark),
        "maps_of_runs": lambda dark: viz.maps_of_runs([(m, made.head_maps(L, H)[0])], ("first", "second"), marks=(marks, marks), dark=dark),
    }
    if L > 1:
        found["flow_curves"] = lambda dark: viz.flow_curves(made.flow_maps(L), dark=dark)
        found["position_heatmap"] = lambda dark: viz.position_heatmap(made.position_maps(L)[0], dark=dark)
        found["position_heatmaps"] = lambda dark: viz.position_heatmaps(made.position_maps(L), dark=dark)
    if L * H > 1:
        found["localisation"] = lambda dark: viz.localisation({f"{L} x {H}": made.localisation(L, H)}, dark=dark)
    return found


def lens_over_image(dark: bool) -> go.Figure:
    vlm, questions, lens = made.lens("image")
    return viz.lens_over_image(lens, questions[0], si.patch_grid(vlm, questions[0]), dark=dark)


def image_maps(dark: bool) -> go.Figure:
    vlm, questions, _ = made.lens()
    maps = [si.knockout_image(vlm, questions[:1], source) for source in ("last", ("subject", "object"))]
    return viz.image_maps(
        maps, questions[0], si.patch_grid(vlm, questions[0]), ["hidden from the last token", "hidden from the words"], dark=dark
    )


def token_groups(dark: bool) -> go.Figure:
    vlm, questions, _ = made.lens()
    return viz.token_groups(vlm, questions[0], dark=dark)


EMPHASIS = {"above the elbow": (0, 0.05), "latent": (1, -0.04), "random": (2, 0.01)}
FIXED: dict[str, Draw] = {
    "accuracy_by": lambda dark: viz.accuracy_by(made.evaluations(4, 3), "relation", dark=dark),
    "accuracy_by-12": lambda dark: viz.accuracy_by(made.evaluations(12, 4), "relation", dark=dark),
    "attention_over_picture": lambda dark: viz.attention_over_picture(*made.looked_at(), dark=dark),
    "baselines": lambda dark: viz.baselines(made.measured(si.Baselines, "baselines"), dark=dark),
    "calibration": lambda dark: viz.calibration(made.suites(), dark=dark),
    "comparison": lambda dark: viz.comparison(made.comparison(), dark=dark),
    "controls": lambda dark: viz.controls(made.falsification(), dark=dark),
    "emphasis_curves": lambda dark: viz.emphasis_curves({n: made.emphasis(*given) for n, given in EMPHASIS.items()}, dark=dark),
    "epoch_accuracy": lambda dark: viz.epoch_accuracy(made.epochs(), dark=dark),
    "flow_curves-relations": lambda dark: viz.flow_curves(made.flow_maps(8, 2), by_relation=True, dark=dark),
    "function_heatmap": lambda dark: viz.function_heatmap(made.matrix(), dark=dark),
    "gains_of_runs": lambda dark: viz.gains_of_runs(made.run_rows(), ("first", "second"), dark=dark),
    "image_maps": image_maps,
    "lens_curves": lambda dark: viz.lens_curves([made.lens()[2], made.lens("image")[2]], dark=dark),
    "lens_over_image": lens_over_image,
    "retention": lambda dark: viz.retention(made.retained(), dark=dark),
    "retention_curve": lambda dark: viz.retention_curve(made.measured(si.RetentionCurve, "retention"), dark=dark),
    "scaling_curves": lambda dark: viz.scaling_curves(made.scaling(), dark=dark),
    "sparsity_path": lambda dark: viz.sparsity_path(made.measured(si.SparsityPath, "sparsity"), dark=dark),
    "speed": lambda dark: viz.speed(made.benchmarks(), dark=dark),
    "token_groups": token_groups,
    "training_curve": lambda dark: viz.training_curve(made.scale(6, 8), dark=dark),
    "transfer_heatmap": lambda dark: viz.transfer_heatmap(made.measured(si.Transfer, "transfer"), dark=dark),
    "tuning_grid": lambda dark: viz.tuning_grid(made.tuned(), dark=dark),
    "tuning_grid-one": lambda dark: viz.tuning_grid(made.tuned(False), dark=dark),
}


def every(sizes: tuple[tuple[int, int], ...] = SIZES, only: frozenset[str] = frozenset()) -> dict[str, Draw]:
    """Every figure by name; only: names of functions, all by default."""
    found = {f"{name}-{L}x{H}": draw for L, H in sizes for name, draw in sized(L, H).items()} | FIXED
    return {name: draw for name, draw in found.items() if not only or name.split("-")[0] in only}


def write(figures: dict[Path, go.Figure], scale: int = 1) -> None:
    """All at once, as Chrome is started only once."""
    drawn = list(figures.values())
    sizes = {"width": [f.layout.width for f in drawn], "height": [f.layout.height for f in drawn]}
    pio.write_images(drawn, list(figures), scale=scale, **sizes)


def sheet(path: Path, rows: list[list[go.Figure]], ground: str = "#ffffff") -> None:
    """Figures beside and below each other in one image."""
    parts = {path.with_name(f".{path.stem}-{i}-{j}.png"): figure for i, row in enumerate(rows) for j, figure in enumerate(row)}
    write(parts)
    images = iter([Image.open(part).convert("RGB") for part in parts])
    lines = [[next(images) for _ in row] for row in rows]
    out = Image.new("RGB", (max(sum(i.width for i in line) for line in lines), sum(max(i.height for i in line) for line in lines)), ground)
    top = 0
    for line in lines:
        left = 0
        for image in line:
            out.paste(image, (left, top))
            left += image.width
        top += max(image.height for image in line)
    out.save(path, optimize=True)
    for part in parts:
        part.unlink()


def images() -> None:
    """Needs kaleido and Chrome: pip install "scale-interp[notebook]"."""
    small, middle, large = (sized(*size) for size in SIZES[1:])
    both = (False, True)
    sheet(IMAGES / "figures_sizes.png", [[one["head_heatmap"](dark) for dark in both] for one in (small, middle, large)])
    sheet(IMAGES / "figures_methods.png", [[small["head_heatmaps"](False)]])
    sheet(IMAGES / "figures_coefficients.png", [[middle["coefficients_vs_attribution"](False)]])
    curves = [FIXED["emphasis_curves"], small["removal_curves-two"]]
    sheet(IMAGES / "figures_curves.png", [[draw(False)] for draw in curves])
    sheet(IMAGES / "figures_dark.png", [[FIXED["accuracy_by"](True), FIXED["attention_over_picture"](True)]], viz.theme.DARK.paper)


def main(folder: Path | None) -> None:
    if folder is None:
        images()
        return
    folder.mkdir(parents=True, exist_ok=True)
    modes = {"light": False, "dark": True}
    write({folder / f"{name}-{mode}.png": draw(dark) for name, draw in every().items() for mode, dark in modes.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
