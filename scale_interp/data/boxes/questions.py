"""Questions from photographs with boxes: is a thing there (POPE's form), where is it, where is one thing relative to another."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ...core.progress import track
from ...errors import DataError, DataWarning
from ..article import with_article
from ..decoding import LARGEST as LARGEST_IMAGE
from ..decoding import open_size, stored_orientation
from ..identity import Families, pixel_key
from ..items import Questions
from ..prompts import TEMPLATES, Ask, Options, digest
from ..question import Question
from ..scenes.task import DOMINANCE, POSITIONS, RELATIONS, YES_NO, direction
from ..splits import split_of
from .detection import Boxes, Instance, Photo, read_boxes

Form = Literal["pope", "place", "relation"]
Kind = Literal["random", "popular", "adversarial"]
KINDS = ("random", "popular", "adversarial")
SPLITS = ("train", "validation", "test", "all")
LARGEST, SMALLEST = 0.25, 0.005
"""Shares of the image: above, a thing is everywhere rather than at a place; below, it is hard to make out."""
OFF_MIDDLE = 0.4
"""How far from the middle (0) towards the edge (1) the centre of a thing at a place must be."""
SLIVER = 0.1
"""Share of the image's width or height below which a thing at its edge is cut off beyond recognition."""
OVERLAP = 0.2
"""Share of the narrower box that may reach past the other's near side, along the asked direction."""
PhotoFact = tuple[Photo, tuple[str, ...], str]
"""A photograph, the names of the things asked about, the right answer."""
T = TypeVar("T")


class BoxQuestions(Questions):
    """Questions from boxes, and how many things or pairs of things gave none (`skipped`: why -> how many)."""

    def __init__(self, items: Iterable[Question], source: str, split: str, seed: int, skipped: Mapping[str, int]):
        super().__init__(items, source, split, seed)
        self.skipped = dict(skipped)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {sum(self.skipped.values())} skipped>"


def box_questions(
    path: str | Path,
    ask: Form = "pope",
    kind: Kind = "random",
    split: str = "all",
    n: int | None = None,
    seed: int = 0,
    images: str | Path | None = None,
    options: Options = "words",
) -> Questions:
    """Questions from a COCO detection JSON, as `pope_questions`, `place_questions` or `relation_questions` ask them.

    Args:
        path: The JSON file.
        ask: "pope", "place" or "relation".
        kind: How absent things are chosen, for "pope".
        split: "train", "validation", "test" or "all"; images that show the same pixels are in one split.
        n: How many questions; None is all.
        seed: Draws splits, samples and the order of options.
        images: The folder of the images; default: `images` beside the file, else the file's own folder.
        options: Whether an option is answered by its "words" or by its letter ("letters").

    Raises:
        DataError: For a file that is not in this form, an unknown form or kind, or where nothing can be asked.
    """
    if ask not in ("pope", "place", "relation"):
        raise DataError(f"ask={ask!r}: choose 'pope', 'place' or 'relation'")
    boxes = read_boxes(path, images)
    if ask == "pope":
        return pope_questions(boxes, kind, n, seed=seed, split=split, options=options)
    return (place_questions if ask == "place" else relation_questions)(boxes, n, seed, split, options)


def pope_questions(
    boxes: Boxes,
    kind: Kind = "random",
    n: int | None = None,
    per_image: int = 6,
    seed: int = 0,
    split: str = "all",
    options: Options = "words",
) -> Questions:
    """Is a thing in the image: as many questions with yes as with no about each image (Li et al. 2023).

    The things of a "no" are drawn from all classes that the image lacks ("random"), or are the ones in most images of
    the set ("popular"), or those that most often share an image with what this one shows ("adversarial"; then by
    popularity). Right only where every thing of the set's classes has a box.

    Args:
        boxes: Photographs with boxes.
        kind: How the things of a "no" are chosen: "random", "popular" or "adversarial".
        n: How many questions, an even number; None is all.
        per_image: Questions per image; fewer, with a DataWarning, where it shows or lacks too few classes.
        seed: Draws splits, things and samples.
        split: "train", "validation", "test" or "all".
        options: "words" or "letters".

    Raises:
        DataError: For an unknown kind or split, or an odd n or per_image.
    """
    if kind not in KINDS:
        raise DataError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    for name, value in (("n", n), ("per_image", per_image)):
        if value is not None and (value < 2 or value % 2):
            raise DataError(f"{name}={value}: yes and no come in pairs; give an even number from 2")
    classes = {photo.name: {*photo.counts, *photo.crowds} for photo in boxes.photos}
    popular = Counter(name for shown in classes.values() for name in shown)
    together = Counter(pair for shown in classes.values() for pair in permutations(shown, 2))
    pairs: list[tuple[Photo, str, str]] = []
    photos = _photos(boxes, split, seed)
    few = 0
    for photo in photos:
        rng = _rng(seed, photo.group)
        present = _permuted(sorted(photo.counts), rng)
        absent = _permuted(sorted(set(boxes.classes) - classes[photo.name]), rng)
        if kind != "random":
            shown = classes[photo.name] if kind == "adversarial" else set()
            absent.sort(key=lambda name: (-sum(together[s, name] for s in shown), -popular[name], name))
        k = min(per_image // 2, len(present), len(absent))
        few += k < per_image // 2
        pairs += [(photo, a, b) for a, b in zip(present[:k], absent[:k], strict=True)]
    asked = len(photos) * per_image if n is None else n
    sampled = _sample(pairs, None if n is None else n // 2, seed)
    ask = Ask(TEMPLATES["presence"].asked_by(options), seed, options)
    made = [_exists(ask, photo, kind, name, word) for photo, *names in sampled for name, word in zip(names, YES_NO, strict=True)]
    if len(made) < asked:
        warnings.warn(
            f"{boxes.source}: {few} of {len(photos)} images show or lack fewer than {per_image // 2} classes: "
            f"{len(made)} questions instead of {asked}",
            DataWarning,
            stacklevel=2,
        )
    questions = Questions(made, f"boxes/pope/{kind}", split, seed)
    _check(questions, boxes, {})
    return questions


def place_questions(boxes: Boxes, n: int | None = None, seed: int = 0, split: str = "all", options: Options = "words") -> BoxQuestions:
    """Where in the image a thing is: left, right, top or bottom, in options shuffled by seed.

    Asked only about a thing that is the only one of its class, is not `unclear`, fills at most a quarter of the image, lies wholly
    on one side of one middle line and across the other, and whose centre is 0.4 of the way or more from the first to the
    edge and at least twice as far from it as from the second (in shares of the image). `.skipped` counts the others by reason.
    """
    made: list[PhotoFact] = []
    skipped = Counter[str]()
    for photo in _photos(boxes, split, seed):
        skipped["not the only one of its class"] += len(photo.instances) - len(photo.alone)
        for thing in photo.alone:
            word = place(thing, photo)
            if word not in POSITIONS:
                skipped[word] += 1
                continue
            made.append((photo, (thing.name,), word))
    return _asked(made, boxes, "place", n, seed, split, skipped, options)


def relation_questions(boxes: Boxes, n: int | None = None, seed: int = 0, split: str = "all", options: Options = "words") -> BoxQuestions:
    """Where one of two things of different classes is relative to the other: left, right, above or below, options shuffled.

    Asked only about things that are the only ones of their class and not `unclear`, of which one lies beyond the other (but for
    a fifth of the narrower one at most), and whose centres are at least twice as far apart in that direction as across it.
    Each pair once, its subject drawn by seed. `.skipped` counts the other pairs by reason.
    """
    made: list[PhotoFact] = []
    skipped = Counter[str]()
    for photo in _photos(boxes, split, seed):
        pairs = list(combinations(sorted(photo.alone, key=lambda thing: thing.name), 2))
        skipped["not the only ones of their classes"] += len(list(combinations(photo.counts, 2))) - len(pairs)
        for pair in pairs:
            word = relation(*pair, photo)
            if word not in RELATIONS:
                skipped[word] += 1
                continue
            subject, other = _permuted(pair, _rng(seed, photo.group, *(thing.name for thing in pair)))
            made.append((photo, (subject.name, other.name), relation(subject, other, photo)))
    return _asked(made, boxes, "relation", n, seed, split, skipped, options)


def unclear(thing: Instance, photo: Photo) -> str | None:
    """Why a thing may not be seen for what it is: too small, or a sliver at the image's edge; else None."""
    left, top, right, bottom = thing.box
    if thing.area < SMALLEST * photo.width * photo.height:
        return f"fills less than {SMALLEST:.1%} of the image"
    for low, high, size in ((left, right, photo.width), (top, bottom, photo.height)):
        if (low < 0.01 * size or high > 0.99 * size) and high - low < SLIVER * size:
            return "is cut off by the image's edge"
    return None


def place(thing: Instance, photo: Photo) -> str:
    """One of POSITIONS, or why the place has no clear name."""
    if (why := unclear(thing, photo)) is not None:
        return why
    if thing.area > LARGEST * photo.width * photo.height:
        return f"fills more than {LARGEST:.0%} of the image"
    left, top, right, bottom = (2 * v / size - 1 for v, size in zip(thing.box, (photo.width, photo.height) * 2, strict=True))
    x, y = (left + right) / 2, (top + bottom) / 2
    beside, across = left < 0 < right, top < 0 < bottom
    if beside == across:
        return "reaches over the middle" if beside else "lies in a corner"
    if max(abs(x), abs(y)) < DOMINANCE * min(abs(x), abs(y)):
        return "lies towards a corner"
    if max(abs(x), abs(y)) < OFF_MIDDLE:
        return "lies near the middle"
    if across:
        return "left" if x < 0 else "right"
    return "top" if y < 0 else "bottom"


def relation(subject: Instance, other: Instance, photo: Photo) -> str:
    """One of RELATIONS, or why the two have no clear relation."""
    if (why := unclear(subject, photo) or unclear(other, photo)) is not None:
        return f"one of them {why}"
    x, y = subject.centre[0] - other.centre[0], subject.centre[1] - other.centre[1]
    word = direction(round(x), round(y))
    if word is None:
        return "neither beside nor above each other"
    low, high = (0, 2) if word in ("left", "right") else (1, 3)
    a, b = subject.box, other.box
    shared = min(a[high], b[high]) - max(a[low], b[low])
    return word if shared <= OVERLAP * min(a[high] - a[low], b[high] - b[low]) else "overlap in that direction"


def _photos(boxes: Boxes, split: str, seed: int) -> list[Photo]:
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    if split == "all":
        return list(boxes.photos)
    families = Families()
    for photo in track(boxes.photos, "comparing images", len(boxes.photos)):
        # COCO's numbers are one image each.
        key = None if photo.group.startswith("coco/") else pixel_key(photo.file, boxes.source, LARGEST_IMAGE)
        if key is not None:
            families.add(photo.group, key)
    return [photo for photo in boxes.photos if split_of(families.of(photo.group), seed) == split]


def _exists(ask: Ask, photo: Photo, kind: str, name: str, answer: str) -> Question:
    fields = {"question": f"Is there {with_article(name)} in the picture?", "object": name}
    return ask(fields, YES_NO, answer, **_about(photo, f"pope/{kind}", (name,), {"kind": kind}))


def _about(photo: Photo, task: str, names: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a question says of its image."""
    return {
        "image": photo.file,
        "id": "/".join(("boxes", task, photo.name, *names)).replace(" ", "-"),
        "group": photo.group,
        "task": f"boxes/{task}",
        "about": names,
        "boxes": photo.boxes,
        "meta": {**meta, "size": [photo.width, photo.height]},
    }


def _asked(
    made: list[PhotoFact], boxes: Boxes, task: str, n: int | None, seed: int, split: str, skipped: Counter[str], options: Options
) -> BoxQuestions:
    if n is not None and n < 1:
        raise DataError(f"n={n}: ask for at least one question")
    if n is not None and n > len(made):
        warnings.warn(f"{boxes.source}: {len(made)} {task} questions instead of {n}", DataWarning, stacklevel=3)
    counts = {why: times for why, times in skipped.items() if times}
    words, template = (POSITIONS, "one object") if task == "place" else (RELATIONS, "two objects")
    ask = Ask(TEMPLATES[template].asked_by(options), seed, options)
    built = [
        ask(dict(zip(("subject", "object"), names, strict=False)), words, word, relation=word, **_about(photo, task, names, {}))
        for photo, names, word in _sample(made, n, seed)
    ]
    questions = BoxQuestions(built, f"boxes/{task}", split, seed, counts)
    _check(questions, boxes, counts)
    return questions


def _check(questions: Questions, boxes: Boxes, skipped: Mapping[str, int]) -> None:
    """DataError where there is no question; a warning where images are missing."""
    if not len(questions):
        why = "; ".join(f"{reason} ({times})" for reason, times in skipped.items()) or "no image of this split shows anything"
        raise DataError(f"{boxes.source} gives no question for {questions.source}, split {questions.split!r}: {why}")
    files = dict.fromkeys(q.image_source for q in questions)
    sizes = {q.image_source: tuple(q.meta["size"]) for q in questions}
    for file, size in sizes.items():
        if isinstance(file, Path) and file.is_file():
            _require_orientation(file, size, boxes)
    missing = [file for file in files if isinstance(file, Path) and not file.is_file()]
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(files)} images of {boxes.source} are missing, {missing[0]} first: give images=FOLDER",
            DataWarning,
            stacklevel=4,
        )


def _require_orientation(file: Path, size: tuple[int, int], boxes: Boxes) -> None:
    """DataError where the boxes are those of another size than the image is shown with; a warning where nobody can tell."""
    orientation, shown = stored_orientation(file, boxes.source), open_size(file, boxes.source)
    if shown != size:
        turned = f" (EXIF orientation {orientation} turns it)" if orientation >= 5 and shown == size[::-1] else ""
        raise DataError(
            f"{file} is shown with {shown[0]} x {shown[1]} pixels{turned}, but {boxes.source} says {size[0]} x {size[1]}: its boxes are of "
            "another image; give those of the image as it is shown, or, where they are of the stored pixels, remove the file's orientation"
        )
    if orientation != 1 and (orientation < 5 or size[0] == size[1]):
        warnings.warn(
            f"{file} is turned for showing (EXIF orientation {orientation}): its boxes are taken to be those of the upright image; "
            "if they are of the stored pixels, remove the orientation from the file",
            DataWarning,
            stacklevel=6,
        )


def _sample(items: Sequence[T], n: int | None, seed: int) -> list[T]:
    """n of the items in their order, drawn by seed; all of them without n."""
    if n is None:
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:n])]


def _permuted(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]


def _rng(seed: int, *parts: str) -> np.random.Generator:
    """A generator of its own for each question, so that no question's draw depends on the others."""
    return np.random.default_rng(digest("|".join((str(seed), *parts))))
