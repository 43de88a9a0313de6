"""What the kinds need, each made once, and a world without the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.interventions.prefix import PrefixStore
from tests.bad_input import saved


class Room:
    """A model, questions and saved results; `folder` is the running test's own."""

    folder: Path

    def __init__(self, root: Path, vlm: si.VLM):
        self.root, self.vlm = root, vlm
        self.qs = si.load_questions("scenes/relation", n=6)
        self.train = si.load_questions("scenes/relation", "train", n=6)
        self.validation = si.load_questions("scenes/relation", "validation", n=6)
        self.other = si.load_questions("scenes/count", n=4)
        self.pairs = si.contrasts(self.qs)
        self.cogs = si.cog_questions("train", n=2)
        self.every = [(layer, head) for layer in range(6) for head in range(8)]

    def copied(self, name: str) -> Path:
        """A saved result, or the folder of one, in the running test's own folder."""
        made, mine = self.root / name, self.folder / name
        if not made.exists():
            saved.SAVERS[name](made)
        (shutil.copytree if made.is_dir() else shutil.copyfile)(made, mine)
        return mine

    @cached_property
    def steps(self):
        return si.subquestions(si.cog_questions("test", n=4))

    @cached_property
    def cogs_few(self):
        return si.subquestions(si.cog_questions("test", n=1))

    @cached_property
    def many(self):
        return si.load_questions("scenes/relation", "train", n=24)

    @cached_property
    def bare(self):
        return [replace(q, boxes={}, about=()) for q in self.qs]

    @cached_property
    def blind(self):
        return [si.Question("Where is the red circle?", ("left", "right"), 0)]

    @cached_property
    def unknown(self):
        return si.Question("Where is the red circle?", ("zebra", "giraffe"), 0, picture=Image.new("RGB", (56, 56)))

    @cached_property
    def placeholder(self):
        return si.Question("Where is <image> the cat?", ("left", "right"), 0, picture=Image.new("RGB", (56, 56)))

    @cached_property
    def prompts(self):
        return PrefixStore(self.vlm, self.qs)

    @cached_property
    def evaluation(self):
        return si.evaluate(self.vlm, self.qs)

    @cached_property
    def planted(self):
        return si.testbeds.plant(self.vlm, [(2, 4)], -0.5)

    @cached_property
    def functional(self):
        return si.functional_heads(self.vlm, si.subquestions(si.cog_questions("train", n=12)), epochs=1, permutations=1)

    @cached_property
    def tuned(self):
        return si.tune_scaling(self.vlm, self.train, [1.0])


@contextmanager
def offline(cache: Path) -> Iterator[None]:
    """Nothing is asked of the network, and tables leave nothing in the user's own cache."""
    real = datasets.load_dataset

    def local(name: str, *args: Any, **options: Any) -> Any:
        if name != "parquet":
            raise ConnectionError("no hub in tests")
        return real(name, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets, "load_dataset", local)
        yield
