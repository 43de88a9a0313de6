"""docs/calibration.md and its image, from a calibration's folder and this folder's bench-fits.json.

python -m docs.studies.calibration runs/calibration
"""

import json
import shutil
import sys
from pathlib import Path

from scale_interp import viz
from scale_interp.bench.fits import FitsBenchmark, read_fits
from scale_interp.core.files import write_bytes
from scale_interp.evaluation.falsification.calibration import NULL, PLANTED, Calibration, Share
from scale_interp.evaluation.falsification.verdict import ALPHA

HERE = Path(__file__).parent
DOCS = HERE.parent


def main(folder: Path | None) -> None:
    """Write the page; from a folder, its numbers and log are copied here first."""
    if folder is not None:
        shutil.copyfile(folder / "calibration.json", HERE / "calibration.json")
        about = json.dumps({"suites": json.loads((folder / "suites" / "settings.json").read_text())})
        suites = [path.read_text().strip() for path in sorted((folder / "suites").glob("*-*.json"))]
        write_bytes(HERE / "calibration.jsonl", "\n".join([about, *suites, ""]).encode())
    found, fits = Calibration.load(HERE / "calibration.json"), read_fits(HERE / "bench-fits.json")
    log = (json.loads(line) for line in (HERE / "calibration.jsonl").read_text().splitlines()[1:])
    seconds = sum(row["seconds"] for row in log)
    write_bytes(DOCS / "calibration.md", "\n".join([errors(found, seconds), side_by_side(fits)]).encode())
    viz.calibration(found).write_image(DOCS / "images" / "calibration.png", scale=2)


def errors(found: Calibration, seconds: float) -> str:
    about, frame = found.about, found.to_frame()
    null, planted = (frame[frame["kind"] == kind] for kind in (NULL, PLANTED))
    rows = "\n".join(f"| {name} | {s.count} of {s.n} | {s.share:.1%} | {s.low:.1%} to {s.high:.1%} |" for name, s in found.shares().items())
    models = "\n".join(
        f"| {name} | {len(part)} | {part['base_accuracy'].mean():.3f} | {part['gain'].mean():+.3f} | {Share.of(list(part['survives']))} |"
        for name, part in planted.groupby("model", sort=False)
    )
    tests = ", ".join(f"{name} in {n}" for name, n in null["test"].value_counts().items())
    missed = sorted({control for row in found.of(PLANTED) for control in row["not_beaten"]})
    why = f" Controls that were not beaten in one that does not: {', '.join(missed)}." if missed else ""
    return f"""# How often the falsification suite is wrong

    scale-interp calibrate --suites {len(null)} --power {len(planted)} --out runs/calibration
    python -m docs.studies.calibration runs/calibration

The first command runs the suites, {seconds / 60:.0f} minutes on one CPU thread, and resumes where it was stopped
(one file per suite in `suites/`, here the lines of `docs/studies/calibration.jsonl`); the second writes this page from the results.
Every suite is `falsify` as users call it, on all heads and MLPs, with
{about["seeds"]} seeds, {about["epochs"]} epochs, {about["n_train"]} training and
{about["n_test"]} test questions of `{about["data"]}`, with its own questions and seeds. Shortfalls were chosen on validation questions,
sizes on other seeds.
The machine's two cores were shared with other work, so the time is longer than on an idle machine.

- **{NULL}**: `{about["null_model"]}` is asked questions whose right answers are drawn evenly among the options, independent of image
  and words, for training and test alike. Any gain that is found is an error.
- **{PLANTED}**: heads of `{about["planted_model"]}` are damaged (their output weights multiplied by a factor, `si.testbeds.plant`), and the
  questions have their true answers. A gain that is not found is a miss.

| what | suites | share | exact 95% interval |
|---|---|---|---|
{rows}

![p-values](images/calibration.png)

The primary test, ScAle against the base model, uncorrected, rejects in {found.false_rejections} of the null suites: {_compatible(found)}
The share of questions whose outcome ScAle changes is {null["changed"].mean():.1%} on average; in {int((null["p"] == 1).sum())} of
{len(null)} suites p is 1. Tests used: {tests}. The exact McNemar test (one seed) and the sign-flip test (several seeds) are of sums that
take few values, and count ties in full, which makes both conservative: the curve tends to lie below the diagonal. The sign-flip test
assumes that a question's difference is as likely up as down, which need not hold for a mean over seeds.
A suite says *survives* only where the corrected p-value is small and every control is beaten.

Frozen at 1, in all {len(frame)} suites together: {int(frame["frozen_changed"].sum())} answers and
{int(frame["frozen_bits_changed"].sum())} logits changed in any bit.

| planted shortfall | suites | base accuracy | gain | survives |
|---|---|---|---|---|
{models}

Power: {found.power} of the planted suites survive.{why} This is the power for gains of the size in the table; smaller gains, or fewer
test questions, are missed more often.
"""


def _compatible(found: Calibration) -> str:
    share = found.false_rejections
    if found.calibrated:
        return f"{ALPHA:.0%} is in the interval."
    return f"{ALPHA:.0%} is outside the interval; the test is {'conservative' if share.share < ALPHA else 'too liberal'} here."


def side_by_side(found: FitsBenchmark) -> str:
    about = found.about
    return f"""# Fits side by side

    scale-interp bench --fits --repeats {about["repeats"]} --out runs/bench-fits
    cp runs/bench-fits/fits.json docs/studies/bench-fits.json

`{about["model"]}` ({about["n_layers"]} layers x {about["n_heads"]} heads, random weights), {about["questions"]} questions of
{about["tokens"]} tokens in batches of {about["batch"]}, {about["epochs"]} epochs without early stopping, all {about["parameters"]}
scalars, threads: {about["threads"]}; medians of {about["repeats"]} repeats, the ratio within a repeat.

| | seconds | times one fit |
|---|---|---|
| reading the prompts | {found.reading:.1f} | {found.reading / found.one:.2f} |
| one fit, prompts read | {found.one:.1f} | 1.00 |
| {found.fits} fits side by side, prompts read | {found.together:.1f} | {found.ratio:.2f} |

Largest difference of any scalar between a fit side by side and the same fit alone: {found.largest_difference:.1e}, where the scalars
move by up to {about["moved"]:.2f}.
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
