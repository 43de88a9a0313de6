"""What several tests use: places, plain hooks to compare with, models, data sets in their published forms, servers."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
SAMPLES = Path(os.environ.get("SCALE_INTERP_DATA") or ROOT.parent / "shared/data")
"""Samples of genuine data sets, which are not part of the repository."""
