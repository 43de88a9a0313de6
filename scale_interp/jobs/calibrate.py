"""The calibration of the falsification suite in a run's folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..evaluation.falsification import calibration
from ..evaluation.falsification.calibration import Calibration, calibrate
from ..models.load import load
from .folder import RunFolder, Say
from .info import FINDINGS
from .job import Job, command

SUITES = "suites"
"""The folder of the suites, one file for each with its seconds; a stopped calibration continues from there."""


def run_calibration(suites: int, power: int, folder: Path, say: Say = lambda _: None, device: str | None = None) -> Calibration:
    """Run null and planted suites in a run's folder, and write calibration.json. Each suite is stored as soon as it is done.

    Args:
        suites: suites on answers without signal.
        power: suites on planted shortfalls.
        folder: the run's folder.
        say: called with a line about the step.
        device: where the models run; another one continues a stopped calibration.
    """
    of, path = calibration.Suites(), folder / "calibration.json"

    def make() -> None:
        found = calibrate(suites, power, journal=run_folder.journal.inside(SUITES), of=of, device=device)
        found.save(path)
        run_folder.write_findings("; ".join(f"{name} {share}" for name, share in headline(found).items()), lines(found))

    again = command("calibrate", suites=suites, power=power, device=device)
    job = Job("calibrate", again, {"suites": suites, "power": power} | asdict(of), {"calibrate": ("calibration.json", FINDINGS)})
    run_folder = RunFolder(folder, job, lambda: (load(of.null_model, device=device), {}), say)
    with run_folder.working():
        return run_folder.run_step(
            "calibrate", make, lambda: Calibration.load(path), f"{suites} suites without signal, {power} planted ones"
        )


def headline(found: Calibration) -> dict[str, str]:
    """The two shares that a calibration measures, as far as there are suites of the kind."""
    kinds = {"false rejections": (calibration.NULL, "false_rejections"), "power": (calibration.PLANTED, "power")}
    return {name: str(getattr(found, share)) for name, (kind, share) in kinds.items() if found.of(kind)}


def lines(found: Calibration) -> list[str]:
    """All shares, one line each."""
    return [f"{name}: {share}" for name, share in found.shares().items()]
