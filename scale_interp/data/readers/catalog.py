"""The public sets that can be loaded by name: what each asks, its licence, its official counts and files, and who publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ...core.suggest import near
from ...errors import DataError
from ..scenes.task import TASKS

WHATSUP = "https://github.com/amitakamath/whatsup_vlms"
VSR = "https://github.com/cambridgeltl/visual-spatial-reasoning"
SPATIALEVAL = "https://huggingface.co/datasets/MilaWang/SpatialEval"
COCOQA = "https://www.cs.toronto.edu/~mren/research/imageqa/data/cocoqa/"
POPE = "https://github.com/RUCAIBox/POPE"
COCO_PICTURES = "https://cocodataset.org/#download"
FORMS = ("vqa", "vtqa", "tqa")
KINDS = {"map": "spatialmap", "maze": "mazenav", "grid": "spatialgrid", "real": "spatialreal"}
"""Our names of SpatialEval's tasks, and its authors'."""


@dataclass(frozen=True)
class Hub:
    """A set on the hub: its id, config, its name of each split, the split's file where the hub does not know it, the picture column."""

    id: str
    config: str | None
    splits: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True)
class Entry:
    """One set. files: for each split ("all" where its authors publish none) the names looked for, patterns allowed."""

    name: str
    asks: str
    licence: str
    url: str
    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    template: str
    pictures: str
    choices: tuple[str, ...] = ()
    hub: Hub | None = None

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """The authors' splits; none where ours are used."""
        return tuple(s for s in self.files if s != "all")


def _controlled(letter: str, file: str, count: int, choices: tuple[str, ...]) -> Entry:
    return Entry(
        f"whatsup/controlled_{letter}",
        f"two objects: {', '.join(choices)}",
        "MIT",
        WHATSUP,
        ("whatsup", "whatsup_vlms"),
        {"all": (f"{file}_dataset.json",)},
        {"all": count},
        "two objects",
        WHATSUP,
        choices,
    )


def _captions(source: str, size: str, count: int, choices: tuple[str, ...]) -> Entry:
    return Entry(
        f"{source}_qa/{size}",
        f"{size} object{'s' if size == 'two' else ''}: {', '.join(choices)}",
        "MIT, without the pictures",
        WHATSUP,
        ("whatsup", "whatsup_vlms"),
        {"all": (f"{source}_qa_{size}_obj.json",)},
        {"all": count},
        "one object" if size == "one" else "two objects",
        COCO_PICTURES if source == "coco" else WHATSUP,
        choices,
    )


def _vsr(way: str, train: int, validation: int, test: int) -> Entry:
    names = {"train": "train", "validation": "dev", "test": "test"}
    return Entry(
        f"vsr/{way}",
        "is a sentence about two objects true? 66 relations",
        "Apache-2.0, without the pictures",
        VSR,
        ("vsr", "visual-spatial-reasoning"),
        {s: tuple(f"{p}{file}.jsonl" for p in (f"{way}/", f"splits/{way}/", f"vsr_{way}/")) for s, file in names.items()},
        {"train": train, "validation": validation, "test": test},
        "statement",
        COCO_PICTURES,
        ("yes", "no"),
        Hub(f"cambridgeltl/vsr_{way}", None, {s: s for s in names}, {s: f"{file}.jsonl" for s, file in names.items()}),
    )


def _spatialeval(form: str, kind: str) -> Entry:
    given = {"vqa": "the picture", "tqa": "a text in place of the picture", "vtqa": "the picture and a text"}[form]
    return Entry(
        f"spatialeval/{form}/{kind}",
        f"{kind}, from {given}",
        "none stated",
        SPATIALEVAL,
        ("spatialeval", "SpatialEval"),
        {"test": (f"{form}/test-*.parquet", f"{form}/test.parquet")},
        {"test": 135 if kind == "real" else 1500},
        "scene",
        SPATIALEVAL,
        hub=Hub("MilaWang/SpatialEval", form, {"test": "test"}, image="image"),
    )


def _pope(kind: str) -> Entry:
    return Entry(
        f"pope/{kind}",
        f"is there such a thing? absent ones: {kind}",
        "MIT, without the pictures",
        POPE,
        ("pope", "POPE"),
        {"all": tuple(f"{p}coco_pope_{kind}.json" for p in ("", "output/coco/", "coco/"))},
        {"all": 3000},
        "presence",
        f"{COCO_PICTURES} (val2014)",
        ("yes", "no"),
        Hub("lmms-lab/POPE", "Full", {"all": kind}, image="image"),
    )


_ENTRIES = (
    _controlled("a", "controlled_images", 412, ("left", "right", "on", "under")),
    _controlled("b", "controlled_clevr", 408, ("left", "right", "front", "behind")),
    _captions("coco", "one", 2247, ("left", "right", "top", "bottom")),
    _captions("coco", "two", 440, ("left", "right", "above", "below")),
    _captions("vg", "one", 1160, ("left", "right", "top", "bottom")),
    _captions("vg", "two", 291, ("left", "right", "front", "behind", "above", "below")),
    _vsr("zeroshot", 3489, 340, 1222),
    _vsr("random", 7680, 1097, 2195),
    *(_spatialeval(form, kind) for form in FORMS for kind in KINDS),
    Entry(
        "cocoqa",
        "object, number, colour or place in a word, with three wrong answers of the same type",
        "none stated",
        COCOQA,
        ("cocoqa", "cocoqa-2015-05-17"),
        {split: (f"{split}/questions.txt",) for split in ("train", "test")},
        {"train": 78736, "test": 38948},
        "question",
        f"{COCO_PICTURES} (train2014, val2014)",
    ),
    *(_pope(kind) for kind in ("random", "popular", "adversarial")),
)
CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
RENDERED = {
    f"scenes/{{{','.join(TASKS)}}}": "coloured shapes, every place known",
    f"generated/{{{','.join(FORMS)}}}/{{{','.join(k for k in KINDS if k != 'real')}}}": "SpatialEval's form, one right option proved",
}
"""Sets that are rendered, not read: their names, and what they ask."""


def find_entry(name: str) -> Entry:
    """The set of that name, or DataError."""
    if name not in CATALOG:
        raise DataError(
            f"unknown data set {name!r}: known are {', '.join((*CATALOG, *RENDERED))}, jsonl:PATH and boxes:PATH{near(name, CATALOG)}"
        )
    return CATALOG[name]
