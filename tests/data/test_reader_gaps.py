"""Readers: records that cannot be asked, templates that ask for what is not there, files that stay open."""

import base64
import io
import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.readers import records as records_module
from scale_interp.data.readers.vsr import CATEGORY
from scale_interp.errors import DataError, DataWarning

FIELD = Path(__file__).parent / "field"
MISSING = pytest.mark.filterwarnings("ignore:.*no image on disk")


def picture(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def step(answer, skill):
    return {"subquestion": f"What is {answer}?", "answer": answer, "cognitive_skill": skill}


def chain(i, *steps, **fields):
    return {"question": f"Is it {i}?", "answer": "yes", "generated": list(steps)} | fields


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


# CogQA.


def test_a_function_that_occurs_once_costs_its_record_only(tmp_path):
    records = [chain(i, step(str(i), "Counting")) for i in range(5)] + [chain(5, step("fine", "Self-Evaluation"))]
    with pytest.warns(DataWarning, match=r"1 of 6 records are left out; the first: .*line 6, subquestion 1.*'Self-Evaluation'"):
        cogs = si.read_cog(write(tmp_path / "cog.jsonl", records))
    assert [cog.id for cog in cogs] == [f"cog/{i}" for i in range(1, 6)]


def test_a_function_with_one_answer_only_and_what_depends_on_it(tmp_path):
    """Record 5 alone gives record 6 another answer; it is left out for its first step, and so is record 6."""
    records = [chain(i, step(str(i), "Counting")) for i in range(8)]
    records += [chain(8, step("x", "Once"), step("red", "Colour")), chain(9, step("blue", "Colour"))]
    with pytest.warns(DataWarning, match="2 of 10 records are left out"):
        assert len(si.read_cog(write(tmp_path / "cog.jsonl", records))) == 8
    same = [chain(i, step(str(i), "Counting")) for i in range(4)] + [chain(4, step("A", "Same"), step("a ", "Same"))]
    with pytest.warns(DataWarning, match="1 of 5 records are left out.*'Same'"):
        assert len(si.read_cog(write(tmp_path / "same.jsonl", same))) == 4


def test_a_file_of_which_half_would_be_left_out_is_refused(tmp_path):
    records = [chain(0, step("1", "A")), chain(1, step("2", "B"))]
    with pytest.raises(DataError, match="no other answer with function 'A'"):
        si.read_cog(write(tmp_path / "cog.jsonl", records))


def test_a_paragraph_is_read_before_the_question_and_its_steps(tmp_path):
    story = "Ann has a cup.\nBen has two. "
    records = [chain(i, step(str(i), "Counting"), paragraph=story) for i in range(3)]
    cog = si.read_cog(write(tmp_path / "cog.jsonl", records))[1]
    assert cog.question.text == "Ann has a cup.\nBen has two.\nIs it 1?"
    assert cog.subquestions[0].question.text == "Ann has a cup.\nBen has two.\nWhat is 1?"


def test_a_paragraph_without_steps_is_left_out_by_name(tmp_path):
    bare = {"paragraph": "Ann has a cup.", "question": "How many cups?", "answer": "1"}
    records = [chain(i, step(str(i), "Counting")) for i in range(3)]
    with pytest.warns(DataWarning, match=r"1 of 4 records are left out; the first: .*line 4: it has a paragraph and no 'generated'"):
        assert len(si.read_cog(write(tmp_path / "cog.jsonl", [*records, bare]))) == 3
    with pytest.raises(DataError, match="it has a paragraph and no 'generated' steps"):
        si.read_cog(write(tmp_path / "all.jsonl", [bare, bare]))


def test_cog_answers_are_free_of_white_space(tmp_path):
    records = [chain(i, {"question": "?", "answer": "left\u00a0", "function": "f", "choices": ["left", "right "]}) for i in range(2)]
    cog = si.read_cog(write(tmp_path / "cog.jsonl", records))[0]
    assert cog.subquestions[0].question.answer_text == "left" and set(cog.subquestions[0].question.choices) == {"left", "right"}
    records[0]["generated"][0]["choices"] = ["left", "left "]
    with pytest.raises(DataError, match=r"line 1, subquestion 1: choices 'left' and 'left ' read the same"):
        si.read_cog(write(tmp_path / "cog.jsonl", records))


@pytest.mark.parametrize("key", ["image_path", "images", "img", "Image", "picture"])
def test_cog_records_with_another_key_for_their_image_are_refused(tmp_path, key):
    records = [chain(i, step(str(i), "Counting")) for i in range(3)]
    records[2][key] = "a.png"
    with pytest.raises(DataError, match=rf"line 3: the key '{key}' is not read; did you mean 'image'"):
        si.read_cog(write(tmp_path / "cog.jsonl", records))


def test_cog_images_may_be_data_uris_and_no_addresses(tmp_path):
    uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    records = [chain(i, step(str(i), "Counting"), image=uri) for i in range(3)]
    assert si.read_cog(write(tmp_path / "cog.jsonl", records))[0].question.image.size == (8, 6)
    records[1]["image"] = "https://example.org/a.png"
    with pytest.raises(DataError, match=r"line 2: no image at 'https://example.org/a.png': that is an address"):
        si.read_cog(write(tmp_path / "cog.jsonl", records))


@pytest.mark.parametrize(("name", "file"), [("vsr/random", "vsr/random/test.jsonl"), ("pope/random", "pope/coco_pope_random.json")])
def test_addresses_in_official_sets_are_refused(tmp_path, name, file):
    record = vsr() if name.startswith("vsr") else {"question_id": 1, "text": "Is there a cat in the image?", "label": "yes"}
    write(tmp_path / file, [record | {"image": f"http://images.cocodataset.org/{'x' * 5000}.jpg"}])
    with pytest.raises(DataError, match="is an address") as error:
        si.load_questions(name, root=tmp_path)
    assert len(str(error.value)) < 500


# Templates.


def vsr(**fields):
    return {"image": "000000000001.jpg", "caption": "The cat is left of the dog.", "label": 1, "relation": "left of"} | fields


@MISSING
@pytest.mark.parametrize("place", ["subject", "object"])
@pytest.mark.parametrize("fields", [{}, {"subj": "cat"}, {"obj": "dog"}, {"subj": "cat", "obj": " "}])
def test_vsr_without_its_two_names_fills_no_template(tmp_path, place, fields):
    write(tmp_path / "vsr/random/test.jsonl", [vsr(**fields)])
    with pytest.raises(
        DataError, match=rf"vsr/random/test/0: template .* asks for {{{place}}}, which this record does not have.*{{caption}}"
    ):
        si.load_questions("vsr/random", "test", root=tmp_path, template=f"Is the {{{place}}} there?")
    assert si.load_questions("vsr/random", "test", root=tmp_path)[0].about == ()


@MISSING
def test_vsr_with_its_two_names_fills_a_template(tmp_path):
    write(tmp_path / "vsr/zeroshot/test.jsonl", [vsr(subj="cat", obj="dog")])
    assert si.load_questions("vsr/zeroshot", root=tmp_path, template="{subject}/{object}")[0].text == "cat/dog"


@MISSING
def test_pope_without_a_thing_and_captions_without_a_second_fill_no_template(tmp_path):
    line = {"question_id": 1, "image": "1.jpg", "text": "Anything else?", "label": "yes"}
    write(tmp_path / "pope/coco_pope_random.json", [line])
    with pytest.raises(DataError, match=r"asks for {object}, which this record does not have"):
        si.load_questions("pope/random", root=tmp_path, template="A {object}?")
    (tmp_path / "whatsup").mkdir()
    (tmp_path / "whatsup/coco_qa_one_obj.json").write_text(
        json.dumps([[1, "A photo of a cat on the left", "A photo of a cat on the right"]])
    )
    with pytest.raises(DataError, match=r"asks for {object}"):
        si.load_questions("coco_qa/one", root=tmp_path, template="{object}?")


def test_every_relation_of_vsr_has_a_category():
    assert CATEGORY["congruent"] == "Orientation" and Counter(CATEGORY.values())["Orientation"] == 5


# Files.


@pytest.fixture
def opened(monkeypatch):
    """Every file of records that was opened."""
    files, open_file = [], records_module._opened
    monkeypatch.setattr(records_module, "_opened", lambda path: files.append(open_file(path)) or files[-1])
    return files


@MISSING
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", ["pope", "vsr", "jsonl", "cog", "cocoqa"])
def test_no_file_stays_open(tmp_path, opened, kind, broken):
    """Also while the error, and with it every frame, is kept."""
    wrong = [{"image": 3}] if broken else []
    calls = {
        "pope": lambda: si.load_questions("pope/random", root=tmp_path),
        "vsr": lambda: si.load_questions("vsr/random", "test", root=tmp_path),
        "jsonl": lambda: si.load_questions(f"jsonl:{tmp_path}/own.jsonl"),
        "cog": lambda: si.read_cog(tmp_path / "cog.jsonl"),
        "cocoqa": lambda: si.load_questions("cocoqa", "test", root=tmp_path),
    }
    good = {"image": "1.jpg", "question": "?", "choices": ["a", "b"], "answer": "a"}
    write(tmp_path / "pope/coco_pope_random.json", [{"question_id": 1, "image": "1.jpg", "text": "A cat?", "label": "yes"}, *wrong, good])
    write(tmp_path / "vsr/random/test.jsonl", [vsr(), *wrong, vsr()])
    write(tmp_path / "own.jsonl", [good, *wrong, good])
    write(tmp_path / "cog.jsonl", [chain(i, step(str(i), "f")) for i in range(3)] + wrong + [chain(4, step("4", "f"))])
    if not broken:
        write(
            tmp_path / "pope/coco_pope_random.json", [{"question_id": i, "image": "1.jpg", "text": "A cat?", "label": "no"} for i in (1, 2)]
        )
    columns = {"questions": "what ?\nwho ?\n", "answers": "cat\ndog\n", "img_ids": "1\nx\n" if broken else "1\n2\n", "types": "0\n0\n"}
    (tmp_path / "cocoqa/test").mkdir(parents=True)
    for name, column in columns.items():
        (tmp_path / f"cocoqa/test/{name}.txt").write_text(column)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        try:
            calls[kind]()
            kept = None
        except DataError as error:
            kept = error
    assert (kept is not None) == broken and opened and all(file.closed for file in opened)


@MISSING
def test_images_of_an_official_set_are_closed(tmp_path):
    (tmp_path / "coco/val2014").mkdir(parents=True)
    (tmp_path / "coco/val2014/1.jpg").write_bytes(picture("JPEG"))
    write(tmp_path / "pope/coco_pope_random.json", [{"question_id": 1, "image": "1.jpg", "text": "A cat?", "label": "yes"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert si.load_questions("pope/random", root=tmp_path)[0].image.size == (8, 6)
