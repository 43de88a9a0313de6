"""Every reader: files that are missing, damaged, too large or not in the set's form, records that are wrong, pictures that leave it."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import scale_interp as si
from scale_interp.core import strict_json
from scale_interp.errors import DataError
from tests.bad_input.kind import Kind
from tests.bad_input.results import Boom

CAPTIONS = ["A mug on a table", "A mug under a table", "A mug to the left of a table", "A mug to the right of a table"]
LEAVING = ("../a.jpg", "/etc/passwd", "a/../../b.jpg", "..\\a.jpg", "C:/a.jpg", "a\0.jpg")
STEP = {"question": "Is there a cat?", "answer": "yes", "function": "reception"}


@dataclass(frozen=True)
class Set:
    """A set with two records in its authors' form: its file (below the root), how the file is written, its picture's field."""

    name: str
    file: str
    form: str
    records: Any
    picture: str = ""
    asked: str = ""

    def write(self, root: Path, records: Any = None) -> Path:
        path = root / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(self.records if records is None else records))
        return path

    def text(self, records: Any) -> str:
        return "".join(json.dumps(r) + "\n" for r in records) if self.form == "lines" else json.dumps(records)

    def load(self, root: Path) -> Any:
        if self.name.startswith("cog"):
            return si.read_cog(root / self.file)
        return si.load_questions(self.asked or self.name, root=root)


def own(i: int, **changed: Any) -> dict[str, Any]:
    return {"image": f"{i}.png", "question": "Where is it?", "choices": ["left", "right"], "answer": "left", "id": str(i)} | changed


SETS = (
    Set(
        "whatsup/controlled_a",
        "whatsup/controlled_images_dataset.json",
        "list",
        [{"image_path": f"data/controlled_images/mug_{r}_table.jpeg", "caption_options": CAPTIONS} for r in ("on", "under")],
        "image_path",
    ),
    Set(
        "coco_qa/one",
        "whatsup/coco_qa_one_obj.json",
        "list",
        [[i, "A photo of a cat on the left", "A photo of a cat on the right"] for i in (1, 2)],
    ),
    Set(
        "vg_qa/two",
        "whatsup/vg_qa_two_obj.json",
        "list",
        [[i, "A cat to the left of a dog", "A cat to the right of a dog"] for i in (1, 2)],
    ),
    Set(
        "vsr/zeroshot",
        "vsr/zeroshot/test.jsonl",
        "lines",
        [{"image": f"{i:012d}.jpg", "caption": "The cat is left of the dog.", "label": 1, "relation": "left of"} for i in (1, 2)],
        "image",
    ),
    Set(
        "pope/random",
        "pope/coco_pope_random.json",
        "lines",
        [{"question_id": i, "image": f"{i}.jpg", "text": "Is there a cat in the image?", "label": "yes"} for i in (1, 2)],
        "image",
    ),
    Set("jsonl", "mine.jsonl", "lines", [own(1), own(2)], "image", "jsonl:mine.jsonl"),
    Set(
        "cog (lines)",
        "cog.jsonl",
        "lines",
        [{"question": "Is it left?", "answer": "no", "image": f"{i}.jpg", "subquestions": [STEP]} for i in (1, 2)],
        "image",
    ),
    Set(
        "cog (list)",
        "cog.json",
        "list",
        [{"question": "Is it left?", "answer": "no", "generated": [{"subquestion": "A cat?", "answer": "yes", "cognitive_skill": "see"}]}]
        * 2,
    ),
    Set(
        "boxes",
        "instances.json",
        "object",
        {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 80}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        },
        "",
        "boxes:instances.json",
    ),
)
BY_NAME = {s.name: s for s in SETS}


def wide(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[:1] + " " * 3000 + text[1:])


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def emptied(path: Path) -> None:
    path.write_text("[]" if path.suffix == ".json" and "pope" not in path.name else "")


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the file is missing": (lambda path: path.unlink(), "no file"),
    "a folder stands in its place": (lambda path: (path.unlink(), path.mkdir()), "no file"),
    "a pipe stands in its place": (piped, "no file"),
    "the file has no byte": (lambda path: path.write_bytes(b""), "empty|no JSON|no questions"),
    "there are no records": (emptied, "empty|no list|no questions|no JSON"),
    "the file is cut in the middle": (lambda path: path.write_text(path.read_text()[:-9]), "no JSON"),
    "the file is cut inside a character": (lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xc3"), "UTF-8|no JSON"),
    "the file is in Latin-1": (lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"\xe4")), "UTF-8"),
    "the file is in UTF-16": (lambda path: path.write_text(path.read_text(), encoding="utf-16"), "UTF-8"),
    "the file holds null bytes": (lambda path: path.write_bytes(b"\0" * 200), "no JSON"),
    "a pickle stands in its place": (lambda path: path.write_bytes(pickle.dumps(Boom())), "UTF-8|no JSON"),
    "it holds a number": (lambda path: path.write_text("3"), "a int|an int|no list"),
    "it holds a text": (lambda path: path.write_text('"cat"'), "a str|no list"),
    "it holds null": (lambda path: path.write_text("null"), "NoneType|no list"),
    "it is nested without end": (lambda path: path.write_text("[" * 100_000), "nested too deep"),
    "a number is NaN": (
        lambda path: path.write_text('{"label": NaN}' if "[" not in path.read_text()[:1] else "[NaN]"),
        "NaN is not a number",
    ),
    "a number has 5,000 digits": (lambda path: path.write_text("9" * 5000), "digits"),
    "half a character": (lambda path: path.write_text('["\\ud800"]'), "surrogates"),
    "two values on one line": (lambda path: path.write_text("{} {}"), "no JSON"),
}


def spoiled(s: Set, change: Callable[[Path], Any]) -> Callable[[Any], Any]:
    def call(room: Any) -> Any:
        change(s.write(room.folder))
        return s.load(room.folder)

    return call


def limited(s: Set, name: str) -> Callable[[Any], Any]:
    """The set read with a limit of 1,000 bytes."""

    def call(room: Any) -> Any:
        wide(s.write(room.folder))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strict_json, name, 1000)
            return s.load(room.folder)

    return call


def twice(s: Set) -> Callable[[Path], None]:
    """The first key of the file, once more."""

    def change(path: Path) -> None:
        text = path.read_text()
        start = text.index('{"')
        key = text[start + 1 : text.index(":", start)]
        path.write_text(f"{text[: start + 1]}{key}: 1, {text[start + 1 :]}")

    return change


def of_file(s: Set) -> Iterable[Kind]:
    for mistake, (change, says) in FILES.items():
        yield Kind(s.name, mistake, DataError, says, spoiled(s, change))
    if s.form == "lines":
        yield Kind(s.name, "a line is too long", DataError, "line 1: more than 1,000 bytes.*LARGEST_LINE", limited(s, "LARGEST_LINE"))
    else:
        yield Kind(s.name, "the file is too large", DataError, "more than 1,000 bytes.*LARGEST_FILE", limited(s, "LARGEST_FILE"))
    if not isinstance(s.records[0] if isinstance(s.records, list) else {}, list):
        yield Kind(s.name, "a key is there twice", DataError, "is there twice", spoiled(s, twice(s)))
    if isinstance(s.records, list):
        for what, value in (("a number", 3), ("a text", "cat"), ("null", None), ("a truth value", True)):
            records = [s.records[0], value]
            yield Kind(
                s.name,
                f"record 2 is {what}",
                DataError,
                "(record|line) 2",
                lambda room, s=s, r=records: s.load(s.write(room.folder, r) and room.folder),
            )
    if s.picture:
        for place in LEAVING:
            records = [s.records[0], s.records[1] | {s.picture: place}]
            mistake = f"a picture at {place!r}"
            yield Kind(
                s.name, mistake, DataError, "leaves the set", lambda room, s=s, r=records: s.load(s.write(room.folder, r) and room.folder)
            )


def record(name: str, mistake: str, says: str, change: Callable[[Any], Any], error: type[Exception] = DataError) -> Kind:
    """A kind whose second (or only) record is changed."""
    s = BY_NAME[name]

    def call(room: Any) -> Any:
        records = copy.deepcopy(s.records)
        change(records if isinstance(records, dict) else records[1])
        s.write(room.folder, records)
        return s.load(room.folder)

    return Kind(name, mistake, error, says, call)


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r.update(values)


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r.pop(name)


def at(i: int, value: Any) -> Callable[[list[Any]], None]:
    return lambda r: r.__setitem__(i, value)


def part(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r[name][0].update(values)


def step(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r.update(subquestions=[STEP | values])


RECORDS = (
    record("whatsup/controlled_a", "no image_path", "'image_path' is None", drop("image_path")),
    record("whatsup/controlled_a", "image_path is a number", "'image_path' is 3", put(image_path=3)),
    record("whatsup/controlled_a", "image_path is blank", "'image_path' is", put(image_path="  ")),
    record("whatsup/controlled_a", "no captions", "'caption_options' is None", drop("caption_options")),
    record("whatsup/controlled_a", "captions are a text", "give a list", put(caption_options="on")),
    record("whatsup/controlled_a", "three captions", "3 captions", put(caption_options=CAPTIONS[:3])),
    record("whatsup/controlled_a", "a caption twice", "3 captions", put(caption_options=[*CAPTIONS[:3], CAPTIONS[0]])),
    record("whatsup/controlled_a", "a caption is a number", "give a list", put(caption_options=[*CAPTIONS[:3], 3])),
    record("whatsup/controlled_a", "an id twice", "record 2: the id", put(image_path="data/controlled_images/mug_on_table.jpeg")),
    record("coco_qa/one", "two entries", "2 entries", lambda r: r.pop()),
    record("coco_qa/one", "four entries", "4 entries", lambda r: r.append("x")),
    record("coco_qa/one", "a picture number of words", "no image number", at(0, "one")),
    record("coco_qa/one", "a negative picture number", "no image number", at(0, -1)),
    record("coco_qa/one", "a fraction for a picture number", "no image number", at(0, 1.5)),
    record("coco_qa/one", "a truth value for a picture number", "no image number", at(0, True)),
    record("coco_qa/one", "a picture number of 4,000 digits", "no image number", at(0, "1" * 4000)),
    record("coco_qa/one", "a picture number in other digits", "no image number", at(0, "١٢")),
    record("coco_qa/one", "an empty caption", "give two texts", at(1, "")),
    record("coco_qa/one", "a caption is null", "give two texts", at(2, None)),
    record("vg_qa/two", "a picture number is a path", "no image number", at(0, "../1")),
    record("vg_qa/two", "a caption is a list", "give two texts", at(1, ["a"])),
    record("vsr/zeroshot", "no caption", "'caption' is None", drop("caption")),
    record("vsr/zeroshot", "no image", "'image' is None", drop("image")),
    record("vsr/zeroshot", "no relation", "'relation' is None", drop("relation")),
    record("vsr/zeroshot", "no label", "label None", drop("label")),
    record("vsr/zeroshot", "an unknown label", "label 2", put(label=2)),
    record("vsr/zeroshot", "a label that is a truth value", "label True", put(label=True)),
    record("vsr/zeroshot", "a label that is a text", "label 'yes'", put(label="yes")),
    record("vsr/zeroshot", "a caption is a number", "'caption' is 3", put(caption=3)),
    record("pope/random", "no text", "'text' is None", drop("text")),
    record("pope/random", "an unknown label", "label 'maybe'", put(label="maybe")),
    record("pope/random", "a label in capitals", "label 'YES'", put(label="YES")),
    record("pope/random", "no question_id", "question_id None", drop("question_id")),
    record("pope/random", "question_id is a fraction", "question_id 1.5", put(question_id=1.5)),
    record("pope/random", "an id twice", "is that of", put(question_id=1)),
    record("pope/random", "image is a list", "'image' is", put(image=["1.jpg"])),
    record("jsonl", "no question", "'question' is None", drop("question")),
    record("jsonl", "question is blank", "'question' is", put(question=" ")),
    record("jsonl", "no choices", "'choices' is None", drop("choices")),
    record("jsonl", "choices are a text", "'choices' is", put(choices="left")),
    record("jsonl", "one choice", "at least two", put(choices=["left"])),
    record("jsonl", "a choice twice", "all different", put(choices=["left", "left"])),
    record("jsonl", "a choice is a number", "give a list", put(choices=["left", 2])),
    record("jsonl", "an answer that is no choice", "none of the choices", put(answer="up")),
    record("jsonl", "an answer's index out of range", "answer 4 is none", put(answer=4)),
    record("jsonl", "a negative index", "answer -1 is none", put(answer=-1)),
    record("jsonl", "a fraction for an index", "answer 0.0 is none", put(answer=0.0)),
    record("jsonl", "an answer that is null", "answer None", put(answer=None)),
    record("jsonl", "an image is a number", "'image' is 3", put(image=3)),
    record("jsonl", "an image is empty", "'image' is ''", put(image="")),
    record("jsonl", "a list of images with a number", "'image' is", put(image=["1.png", 2])),
    record("jsonl", "an id twice", "give each record an id of its own", put(id="1")),
    record("jsonl", "an id is a number", "'id' is 7", put(id=7)),
    record("jsonl", "the contrast of no line", "is the id of no line that is asked", put(contrast_of="nobody")),
    record("jsonl", "the contrast of itself", "is the id of no line that is asked", put(id="2", contrast_of="2")),
    record("jsonl", "contrast_of is a number", "'contrast_of' is 3", put(contrast_of=3)),
    record("jsonl", "a contrast image that is a number", "'image' is 3", put(contrast_image=3)),
    record("jsonl", "a contrast image with three choices", "contrast_answer", put(contrast_image="1.png", choices=["left", "right", "on"])),
    record("jsonl", "a contrast answer without its image", "without 'contrast_image'", put(contrast_answer="left")),
    record(
        "jsonl", "a contrast with the same answer", "the right answer of a contrast", put(contrast_image="1.png", contrast_answer="left")
    ),
    record("jsonl", "an id is empty", "'id' is ''", put(id="")),
    record("jsonl", "a group is a list", "'group' is", put(group=["a"])),
    record("jsonl", "a task is a number", "'task' is 3", put(task=3)),
    record("jsonl", "a relation is a number", "'relation' is 3", put(relation=3)),
    record("jsonl", "about is a text", "'about' is", put(about="cat")),
    record("jsonl", "about is null", "'about' is None", put(about=None)),
    record("jsonl", "meta is a list", "'meta' is", put(meta=[])),
    record("jsonl", "boxes are a list", "'boxes' is", put(boxes=[])),
    record("jsonl", "a box of three numbers", "box 'cat'", put(boxes={"cat": [1, 2, 3]})),
    record("jsonl", "a box with a text", "box 'cat'", put(boxes={"cat": [1, 2, 3, "4"]})),
    record("jsonl", "a box without width", "box 'cat'", put(boxes={"cat": [5, 0, 5, 6]})),
    record("jsonl", "a box upside down", "box 'cat'", put(boxes={"cat": [0, 6, 5, 1]})),
    record("jsonl", "a box that begins outside", "box 'cat'", put(boxes={"cat": [-1, 0, 5, 6]})),
    record("jsonl", "a box of infinite size", "box 'cat'", put(boxes={"cat": [0, 0, 10**400, 6]})),
    record("jsonl", "boxes without an image", "boxes but no image", put(image=None, boxes={"cat": [0, 0, 2, 6]})),
    record("cog (lines)", "no question", "'question' is None", drop("question")),
    record("cog (lines)", "no answer", "'answer' is None", drop("answer")),
    record("cog (lines)", "an answer is a list", "'answer' is", put(answer=["no"])),
    record("cog (lines)", "an answer is a truth value", "'answer' is True", put(answer=True)),
    record("cog (lines)", "no subquestions", "'subquestions' is None", drop("subquestions")),
    record("cog (lines)", "subquestions are empty", "at least one", put(subquestions=[])),
    record("cog (lines)", "subquestions are an object", "give a list", put(subquestions={})),
    record("cog (lines)", "a step is a text", "subquestion 1: a str", put(subquestions=["x"])),
    record(
        "cog (lines)",
        "a step without a function",
        "'function' is None",
        lambda r: r.update(subquestions=[{"question": "a", "answer": "b"}]),
    ),
    record("cog (lines)", "a step's function is blank", "'function' is", step(function=" ")),
    record("cog (lines)", "a step's choices without its answer", "none of the choices", step(choices=["no", "maybe"])),
    record("cog (lines)", "a step's choices are a text", "'choices' is", step(choices="yes")),
    record("cog (lines)", "no other answer to offer", "no other answer", step(answer="blue", function="colour")),
    record("cog (lines)", "an image is a number", "'image' is 3", put(image=3)),
    record("cog (list)", "an unknown form", "'subquestions' is None", drop("generated")),
    record("cog (list)", "a step without a skill", "'function' is None", lambda r: r["generated"][0].pop("cognitive_skill")),
    record("boxes", "no images", 'no list "images"', drop("images")),
    record("boxes", "no categories", 'no list "categories"', drop("categories")),
    record("boxes", "annotations are an object", 'no list "annotations"', put(annotations={})),
    record("boxes", "images are empty", "no id in|no images", put(images=[])),
    record("boxes", "an image is a text", "record 1: a str", put(images=["x"])),
    record("boxes", "an image has no id", "id is None", lambda r: r["images"][0].pop("id")),
    record("boxes", "an id is a truth value", "id is True", part("images", id=True)),
    record("boxes", "an id is a fraction", "id is 1.5", part("images", id=1.5)),
    record(
        "boxes", "an image's id twice", "image id 1 is there 2 times", lambda r: r["images"].append(r["images"][0] | {"file_name": "2.jpg"})
    ),
    record("boxes", "a picture twice", "image name '1' is there 2", lambda r: r["images"].append(r["images"][0] | {"id": 2})),
    record("boxes", "no file_name", "'file_name' is None", lambda r: r["images"][0].pop("file_name")),
    record("boxes", "a width of 0", "width 0", part("images", width=0)),
    record("boxes", "a width that is a fraction", "width 1.5", part("images", width=1.5)),
    record("boxes", "a width that is a truth value", "width True", part("images", width=True)),
    record("boxes", "a height that is missing", "height None", lambda r: r["images"][0].pop("height")),
    record("boxes", "a category twice", "category id 1 is there 2", lambda r: r["categories"].append({"id": 1, "name": "cow"})),
    record(
        "boxes", "a category's name twice", "category name 'cat' is there 2", lambda r: r["categories"].append({"id": 3, "name": "cat"})
    ),
    record("boxes", "a category without a name", "'name' is None", lambda r: r["categories"][0].pop("name")),
    record("boxes", "an annotation of an unknown image", "image_id 9", part("annotations", image_id=9)),
    record("boxes", "an annotation of a list of images", "image_id", part("annotations", image_id=[1])),
    record("boxes", "an annotation of an unknown category", "category_id 9", part("annotations", category_id=9)),
    record("boxes", "an annotation's id twice", "annotation id 1", lambda r: r["annotations"].append(r["annotations"][0])),
    record("boxes", "no bbox", "bbox None", lambda r: r["annotations"][0].pop("bbox")),
    record("boxes", "a bbox of three numbers", "no .x, y, width, height", part("annotations", bbox=[1, 2, 3])),
    record("boxes", "a bbox with a text", "no .x, y, width, height", part("annotations", bbox=[1, 2, 3, "4"])),
    record("boxes", "a bbox with a truth value", "no .x, y, width, height", part("annotations", bbox=[1, 2, 3, True])),
    record("boxes", "a bbox without size", "has no size", part("annotations", bbox=[1, 2, 0, 4])),
    record("boxes", "a bbox outside its image", "outside its image", part("annotations", bbox=[90, 2, 30, 4])),
    record("boxes", "a bbox with a number of 400 digits", "no .x, y, width, height", part("annotations", bbox=[1, 2, 10**400, 4])),
    record("boxes", "iscrowd is a text", "iscrowd is '0'", part("annotations", iscrowd="0")),
    record("boxes", "a picture above the folder", "leads out", part("images", file_name="../1.jpg")),
    record("boxes", "a picture by its absolute path", "leads out", part("images", file_name="/etc/passwd")),
    record("boxes", "a picture's name with a null byte", "no name of a file", part("images", file_name="a\0.jpg")),
)


def raw(name: str, mistake: str, says: str, text: str) -> Kind:
    """A kind whose file is this text, for what json.dumps does not write."""
    s = BY_NAME[name]
    return Kind(name, mistake, DataError, says, spoiled(s, lambda path: path.write_text(text)))


RAW = (
    raw(
        "boxes",
        "a bbox of 1e999",
        "no .x, y, width, height",
        json.dumps(BY_NAME["boxes"].records).replace("[1, 2, 30, 40]", "[1, 2, 1e999, 4]"),
    ),
    raw(
        "vsr/zeroshot",
        "a label of 1e999",
        "label inf",
        json.dumps(BY_NAME["vsr/zeroshot"].records[0]).replace('"label": 1', '"label": 1e999'),
    ),
    raw("jsonl", "an answer of 1e999", "answer inf", json.dumps(own(1)).replace('"answer": "left"', '"answer": 1e999')),
    raw("jsonl", "a box of 1e999", "box 'cat'", json.dumps(own(1, boxes={"cat": [0, 0, 7, 6]})).replace("7", "1e999")),
    raw("cog (lines)", "an answer of 1e999", "'answer' is inf", json.dumps(BY_NAME["cog (lines)"].records[0]).replace('"no"', "1e999")),
)


def cocoqa(mistake: str, says: str, **changed: str | None) -> Kind:
    def call(room: Any) -> Any:
        lines = {"questions": "what is it ?\nwhat is that ?\n", "answers": "cat\ndog\n", "img_ids": "1\n2\n", "types": "0\n0\n"}
        folder = room.folder / "cocoqa/test"
        folder.mkdir(parents=True)
        for name, text in (lines | changed).items():
            if text is not None:
                (folder / f"{name}.txt").write_bytes(text.encode("latin-1"))
        return si.load_questions("cocoqa", "test", root=room.folder)

    return Kind("cocoqa", mistake, DataError, says, call)


COCOQA = (
    cocoqa("the questions are missing", "no file", questions=None),
    cocoqa("the answers are missing", "answers.txt is missing", answers=None),
    cocoqa("the types are missing", "types.txt is missing", types=None),
    cocoqa("a file is shorter", "do not match", answers="cat\n"),
    cocoqa("a file is longer", "do not match", img_ids="1\n2\n3\n"),
    cocoqa("an empty answer", "do not match", answers="cat\n \n"),
    cocoqa("all files are empty", "is empty", questions="", answers="", img_ids="", types=""),
    cocoqa("a picture of words", "a number and 0 to 3", img_ids="1\nx\n"),
    cocoqa("a picture above the folder", "a number and 0 to 3", img_ids="1\n../2\n"),
    cocoqa("a picture number of 5,000 digits", "a number and 0 to 3", img_ids="1\n" + "2" * 5000 + "\n"),
    cocoqa("an unknown type", "a number and 0 to 3", types="0\n4\n"),
    cocoqa("a type of words", "a number and 0 to 3", types="0\nobject\n"),
    cocoqa("only one answer of a type", "only answer of type", types="0\n1\n"),
    cocoqa("questions in Latin-1", "not UTF-8", questions="what is it ?\nwo ist die T\xfcr ?\n"),
)


def spatialeval(
    mistake: str, says: str, change: Callable[[list[dict[str, Any]]], Any] | None = None, after: Callable[[Path], Any] | None = None
) -> Kind:
    def call(room: Any) -> Any:
        from datasets import Dataset

        rows = [
            {
                "id": f"spatialmap.tqa.{i}.0",
                "text": "Where is it? Available options: A. North, B. South.",
                "oracle_answer": "North",
                "oracle_option": "A",
            }
            for i in (1, 2)
        ]
        if change is not None:
            change(rows)
        path = room.folder / "spatialeval/tqa/test.parquet"
        path.parent.mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(path)
        if after is not None:
            after(path)
        return si.load_questions("spatialeval/tqa/map", root=room.folder)

    return Kind("spatialeval/tqa/map", mistake, DataError, says, call)


SPATIALEVAL = (
    spatialeval("the file is missing", "no file", after=lambda path: path.unlink()),
    spatialeval("the file is cut", "no table", after=lambda path: path.write_bytes(path.read_bytes()[:-20])),
    spatialeval("the file is no table", "no table", after=lambda path: path.write_bytes(b"hello")),
    spatialeval("a pickle stands in its place", "no table", after=lambda path: path.write_bytes(pickle.dumps(Boom()))),
    spatialeval("a part is missing", "1 of 2 parts", after=lambda path: path.rename(path.parent / "test-00000-of-00002.parquet")),
    spatialeval("no column of ids", "'id' is None", lambda rows: [row.pop("id") for row in rows]),
    spatialeval("no column of texts", "'text' is None", lambda rows: [row.pop("text") for row in rows]),
    spatialeval("ids are numbers", "'id' is 3", lambda rows: [row.update(id=3) for row in rows]),
    spatialeval("an id without parts", "in the form task.form.scene.question|empty", lambda rows: rows[0].update(id="spatialmap.1")),
    spatialeval("an id twice", "give each record an id of its own", lambda rows: rows[0].update(id="spatialmap.tqa.2.0")),
    spatialeval("no row of the task", "is empty", lambda rows: [row.update(id="mazenav.tqa.1.0") for row in rows]),
    spatialeval("no row has options", "is empty", lambda rows: [row.update(text="Where is it?") for row in rows]),
)


def asked(mistake: str, says: str, *args: Any, error: type[Exception] = DataError, **options: Any) -> Kind:
    return Kind("si.load_questions", mistake, error, says, lambda room: si.load_questions(*args, **{"root": room.folder} | options))


REQUESTS = (
    asked("an unknown set", "unknown data set 'whatsup/controled_a'.*did you mean 'whatsup/controlled_a'", "whatsup/controled_a"),
    asked("an empty name", "unknown data set ''", ""),
    asked("a room without a set", "unknown data set", "whatsup"),
    asked("an unknown scene task", "did you mean 'relation'", "scenes/realtion", root=None),
    asked("a room of scenes without a task", "unknown scene task ''", "scenes", root=None),
    asked("an unknown split of a rendered set", "unknown split 'tset'", "scenes/relation", "tset", root=None),
    asked("a split that the authors do not publish", "unknown split 'train'", "spatialeval/tqa/map", "train"),
    asked("a root for a rendered set", "is rendered", "scenes/relation"),
    asked("a template for a rendered set", "is rendered", "scenes/relation", root=None, template="{question}"),
    asked("more than rendered sets have", "at most 1,000,000", "scenes/relation", n=10**9, root=None),
    asked("no question", "at least one", "scenes/relation", n=0, root=None),
    asked("an unknown form of generated sets", "unknown form 'vqaa'", "generated/vqaa/map", root=None),
    asked("an unknown kind of generated sets", "unknown kind 'mapp'", "generated/vqa/mapp", root=None),
    asked("a template with an unknown place", "asks for {quetsion}", "jsonl:mine.jsonl", template="{quetsion}"),
    asked("a template with an open brace", "cannot be read", "jsonl:mine.jsonl", template="{question"),
    asked("a template that reaches into an object", "asks for {question.__class__}", "jsonl:mine.jsonl", template="{question.__class__}"),
    asked("a template that pads without end", "write its name alone", "jsonl:mine.jsonl", template="{question:>999999999}"),
    asked("a template that converts", "write its name alone", "jsonl:mine.jsonl", template="{question!r}"),
    asked("the task and split of ScAle on another set", "trains on spatialeval/vqa/map", "pope/random", protocol="scale"),
    asked("a split that ScAle does not have", "choose from train, test", "generated/vqa/map", "validation", root=None, protocol="scale"),
    asked("ScAle's task in other words", "the set's own words", "spatialeval/vqa/map", template="{text}", protocol="scale"),
    asked("too few questions for ScAle's split", "fifth of 4 questions is none", "generated/vqa/map", n=4, root=None, protocol="scale"),
    asked("a seed beyond RandomState", "give 0 to 4294967295", "generated/vqa/map", seed=2**32, root=None, protocol="scale"),
    asked("an unknown protocol", "choose 'ours' or 'scale'", "spatialeval/vqa/map", protocol="paper"),
    asked("boxes without a path", "give the path", "boxes:"),
    asked("boxes of an unknown form", "choose 'pope'", "boxes/where:mine.json"),
    asked("JSON lines without a path", "no file", "jsonl:"),
    asked("a path with a null byte", "no file", "jsonl:a\0b"),
    asked("a root of an unknown user", "write the folder out", "vsr/zeroshot", root="~nobody-of-that-name/x"),
    asked("a root with a null byte", "no file", "whatsup/controlled_a", root="a\0b"),
    asked("a root that is a file", "no file", "whatsup/controlled_a", root=__file__),
)
KINDS = [*(kind for s in SETS for kind in of_file(s)), *RECORDS, *RAW, *COCOQA, *SPATIALEVAL, *REQUESTS]
