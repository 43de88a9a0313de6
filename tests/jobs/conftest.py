import os
import shutil

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from scale_interp import cli
from tests.support.small_run import FLAGS


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """A run's folder, an untouched copy of it, and what its command said: one run for all of pytest's processes."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "first_run"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            result = CliRunner().invoke(cli.app, ["run", "demo", "--out", str(place / "runs/demo"), *FLAGS])
            assert result.exit_code == 0, result.output
            (place / "output.txt").write_text(result.output)
            shutil.copytree(place / "runs/demo", place / "copy")
    return place / "runs/demo", place / "copy", (place / "output.txt").read_text()
