"""Questions by name."""

from __future__ import annotations

import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.arguments import checked
from ..core.progress import track
from ..errors import DataError, DataWarning
from .contrast import own_partners
from .decoding import ImageSource
from .identity import Families, pixel_key
from .items import Questions
from .prompts import PRESETS, TEMPLATES, Ask, Options, ask_preset, check_template, digest, with_letters
from .question import LARGEST, Question
from .readers.answers import Answers, check_answers
from .readers.captions import Captions
from .readers.catalog import find_entry
from .readers.cocoqa import CocoQA
from .readers.jsonl import JsonL
from .readers.pope import POPE
from .readers.records import Key, LooksAtImages, Reader, walked
from .readers.source import Source
from .readers.spatialeval import SpatialEval
from .readers.vsr import VSR
from .readers.whatsup import WhatsUp
from .scale_protocol import SplitProtocol, scale_part, scale_questions
from .scenes.questions import scene_questions
from .splits import SHARES, split_of
from .wording import short

READERS: dict[str, Callable[..., Reader]] = {
    "whatsup": WhatsUp,
    "coco_qa": Captions,
    "vg_qa": Captions,
    "vsr": VSR,
    "spatialeval": SpatialEval,
    "cocoqa": CocoQA,
    "pope": POPE,
}
RENDERED, MOST_RENDERED = 200, 1_000_000
"""Questions of a rendered set where no number is asked for, and the most: scenes that differ run out."""


@checked
def load_questions(
    name: str,
    split: str | None = None,
    n: int | None = None,
    seed: int = 0,
    *,
    root: str | Path | None = None,
    template: str | None = None,
    answers: Answers | None = None,
    options: Options = "words",
    protocol: SplitProtocol = "ours",
) -> Questions:
    """Questions of a data set by name: "scenes/relation", "whatsup/controlled_a", "vsr/zeroshot", "jsonl:PATH", ...

    `scale-interp data` lists all names. The same arguments give the same questions, and splits share no image unless
    their authors' do. Images are opened when a question's image is asked for (for our own splits of JSON lines once at
    loading, docs/decoding.md); a missing one is a DataWarning here and an error there.

    Args:
        name: The set; JSON lines as "jsonl:PATH", COCO detection files as "boxes:PATH".
        split: "train", "validation" or "test": those of the authors, or 50, 10 and 40 of 100 images drawn by the seed. None or
            "all" is the authors' whole file, or their test split where they publish several. Rendered sets default to "test".
        n: How many questions, a seeded sample. None is all questions in the file's order, or 200 of a rendered set.
        seed: Draws the sample, our splits and the order of options in words.
        root: The folder that holds the sets; default $SCALE_INTERP_DATA, else ./data; the hub is asked for what is not there.
        template: Words in place of ours, with places in braces (docs/data.md lists them), or "vlmevalkit" or "lmms-eval" to ask as
            these harnesses do; "vlmevalkit" asks for SpatialEval's options by letter.
        answers: How JSON lines give their answers: "index" (from 0), "index1" (from 1), "text" or "letter". None takes words,
            letters and indices from 0, and refuses what could be read in two ways.
        options: Whether an option is answered by its "words" or by its letter: "letters" lists them as "A. left" and so on, one a line,
            in the set's own order, and makes the letters the choices (`choice_words` says what they stand for).
        protocol: "scale" gives the task and the split of ScAle's code (arXiv 2606.29579), on "spatialeval/vqa/map", "maze" and "grid": the
            set's own texts, the letters A to D, 20% to train on, drawn by question with the seed (0, 1 and 2 are the release's); n takes
            the first. Train and test share images (`si.falsify(..., allow_leak=True)`). Of "generated/vqa/..." n questions are split alike.

    Returns:
        The questions, with the name, split and seed that they came from.

    Raises:
        DataError: For an unknown name or split, a missing file, a record that is not in the set's form.

    >>> load_questions("scenes/relation", split="train", n=4)
    <4 questions of scenes/relation train>
    >>> load_questions("scenes/relation", n=4, options="letters")[0].choices
    ('A', 'B', 'C', 'D')
    """
    if n is not None and n < 1:
        raise DataError(f"n={n}: ask for at least one question")
    if seed < 0:
        raise DataError(f"seed={seed}: give 0 or more")
    check_answers(answers)
    if answers is not None and not name.startswith("jsonl:"):
        raise DataError(f"answers={answers!r} is for JSON lines; {name} has answers of one form: leave it out")
    if protocol == "scale":
        return _by_scale(name, split, n, seed, root, template)
    if name.partition("/")[0] in ("scenes", "generated"):
        if root is not None or template is not None:
            raise DataError(f"{name} is rendered, in words of its own: root= and template= are for sets on disk; leave them out")
        return _rendered(name, split or "test", RENDERED if n is None else n, seed, options)
    if name.startswith(("boxes:", "boxes/")):
        if template is not None:
            raise DataError(f"{name} is asked in words of its own: template= is for sets that have questions")
        return _of_boxes(name, split, n, seed, root, options)
    if name.startswith("jsonl:"):
        split, ask = _split(name, split, ()), _ask(name, "question", template, seed, options)
        path = Path(root or "", name.removeprefix("jsonl:"))
        return _questions(name, JsonL(name, path, answers), split, n, ask, f"put them into {path.parent}", ours=True)
    entry = find_entry(name)
    split, ask = _split(name, split, entry.splits), _ask(name, entry.template, template, seed, options)
    reader = READERS[entry.family](entry, Source(root), split if entry.splits else "all")
    return _questions(name, reader, split, n, ask, f"get them from {entry.pictures}", ours=not entry.splits)


def _by_scale(name: str, split: str | None, n: int | None, seed: int, root: str | Path | None, template: str | None) -> Questions:
    if template is not None:
        raise DataError("protocol='scale' asks in the set's own words: leave template= out")
    if not name.startswith("generated/vqa/"):
        return scale_questions(name, split, n, seed, Source(root))
    if root is not None:
        raise DataError(f"{name} is rendered: root= is for sets on disk; leave it out")
    return scale_part(_rendered(name, "test", RENDERED if n is None else n, 0, "letters"), split, seed)


def _questions(name: str, reader: Reader, split: str, n: int | None, ask: Ask, fetch: str, ours: bool) -> Questions:
    chosen = _choose(name, reader, split if ours and split != "all" else None, ask.seed)
    if not len(reader.records):
        raise DataError(f"{name} is empty, with no questions in it; give a file that has some")
    if not chosen:
        raise DataError(f"{name}: the split {split!r} of {len(reader.records)} records is empty; use another split or seed, or more data")
    if n is None:
        wanted = set(chosen)
        with walked(reader.records) as records:
            questions = [reader.question(i, record, ask) for i, record in enumerate(records) if i in wanted]
    else:
        questions = [reader.question(i, reader.records[i], ask) for i in _sample(name, split, chosen, n, ask.seed)]
    _warn_of_missing_images(name, questions, fetch)
    return Questions(questions, name, split, ask.seed)


def _ask(name: str, kind: str, template: str | None, seed: int, options: Options) -> Ask:
    if template in PRESETS:
        template, options = ask_preset(template, kind, name)
    words = TEMPLATES[kind]
    return Ask(check_template(words.asked_by(options) if template is None else template, words.fields), seed, options)


def _rendered(name: str, split: str, n: int, seed: int, options: Options) -> Questions:
    if n > MOST_RENDERED:
        raise DataError(f"n={n:,}: rendered sets have at most {MOST_RENDERED:,} questions; ask for fewer")
    room, _, task = name.partition("/")
    if room == "scenes":
        questions = scene_questions(task, split, n, seed)
        return questions if options == "words" else Questions(map(with_letters, questions), name, split, seed)
    from .synthetic import generated_questions

    form, _, kind = task.partition("/")
    return generated_questions(form, kind, split, n, seed, options)


def _of_boxes(name: str, split: str | None, n: int | None, seed: int, root: str | Path | None, options: Options) -> Questions:
    from .boxes.questions import box_questions

    asked, _, path = name.partition(":")
    if not path:
        raise DataError(f"{name}: give the path of a COCO detection JSON, as in {asked}:instances.json")
    _, form, kind = (*asked.split("/"), "", "")[:3]
    place, form, kind = Path(root or "", path), form or "pope", kind or "random"
    return box_questions(place, form, kind, split or "all", n, seed, options=options)  # type: ignore[arg-type]


def _split(name: str, split: str | None, authors: tuple[str, ...]) -> str:
    known = authors or tuple(SHARES)
    if split in (None, "all"):
        return "test" if authors else "all"
    if split not in known:
        raise DataError(
            f"unknown split {split!r} of {name}: choose from {', '.join(known)}{' (its authors publish no other)' if authors else ''}"
        )
    return split


def _choose(name: str, reader: Reader, split: str | None, seed: int) -> array[int]:
    """The places of the records in one of our splits, or of all; every record's form is checked, and that no id comes twice."""
    chosen, places, ids = array("L"), array("L"), array("Q")
    looked_at: list[tuple[int, str]] = []
    families = Families()
    looks = split is not None and isinstance(reader, LooksAtImages)
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}
    with walked(reader.records) as records:
        for i, record in enumerate(track(records, "comparing images", len(reader.records)) if looks else records):
            key = reader.key(i, record)
            if isinstance(key, str):
                skipped[key] += 1
                first.setdefault(key, reader.records.where(i))
                continue
            places.append(i)
            ids.append(digest(key.id))
            if looks and isinstance(reader, LooksAtImages) and not reader.own_group(record):
                # Which split an image is in is known once all its copies are.
                looked_at.append((i, key.part))
                for sources in _image_sets(reader, i, record):
                    keys = [pixel_key(source, reader.records.where(i), LARGEST) for source in sources]
                    if keys and None not in keys:
                        families.add(key.part, tuple(keys))
            elif split is None or split_of(key.part, seed) == split:
                chosen.append(i)
    if looked_at:
        chosen = array("L", sorted([*chosen, *(i for i, part in looked_at if split_of(families.of(part), seed) == split)]))
    if isinstance(reader, JsonL):
        reader.finish()
    _require_unique(reader, places, ids)
    for why, count in skipped.items():
        text = f"{name}: {count} of {len(reader.records)} records are left out, {why}; the first is {first[why]}"
        warnings.warn(text, DataWarning, stacklevel=4)
    return chosen


def _image_sets(reader: LooksAtImages, i: int, record: object) -> list[list[ImageSource]]:
    """The images of a record, and those of the contrast partner that it brings along, which goes where it goes."""
    own = reader.image_sources(i, record)
    return [own, reader.partner_sources(i, record)] if isinstance(reader, JsonL) else [own]


def _require_unique(reader: Reader, places: array[int], ids: array[int]) -> None:
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(np.asarray(ids)[order]) == 0)
    if len(same):
        i, j = (places[order[same[0] + k]] for k in (0, 1))
        key = reader.key(i, reader.records[i])
        name = key.id if isinstance(key, Key) else key
        raise DataError(
            f"{reader.records.where(j)}: the id {name!r} is that of {reader.records.where(i)} too; give each record an id of its own"
        )


def _sample(name: str, split: str, places: array[int], n: int, seed: int) -> array[int]:
    if n > len(places):
        warnings.warn(f"{name} {split} has {len(places)} questions, not {n}; all are taken", DataWarning, stacklevel=4)
    order = np.random.default_rng([seed, digest(f"{name}|{split}")]).permutation(len(places))
    return array("L", (places[i] for i in order[:n]))


def _warn_of_missing_images(name: str, questions: list[Question], fetch: str) -> None:
    shown = [[*q.image_sources, *(p for partner in own_partners([q]) for p in partner.image_sources)] for q in questions]
    missing = [p for images in shown for p in images if _is_missing(p)]
    if missing:
        count = sum(any(map(_is_missing, images)) for images in shown)
        expected = short(str(missing[0]), 300)
        text = f"{name}: {count} of {len(questions)} questions have no image on disk, the first should be {expected}; {fetch}"
        warnings.warn(text, DataWarning, stacklevel=4)


def _is_missing(image: object) -> bool:
    # os.path, as Path.exists raises OSError for a name that is too long
    return isinstance(image, Path) and not os.path.exists(image)
