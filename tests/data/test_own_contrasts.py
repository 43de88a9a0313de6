"""Contrast pairs that a file of JSON lines brings along: another line, or another image of the same words."""

import json

import numpy as np
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.contrast import own_partners
from scale_interp.errors import DataError


def photo(folder, name, seed):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    return name


def lines(folder, *records, **options):
    for i, name in enumerate("abcd"):
        photo(folder, f"{name}.png", i)
    base = {"image": "a.png", "question": "Where is it?", "choices": ["left", "right"], "answer": "left", "id": "q"}
    rows = [{name: value for name, value in (base | record).items() if value is not ...} for record in records]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return si.load_questions(f"jsonl:{folder}/own.jsonl", **options)


@pytest.mark.parametrize("options", ["words", "letters"])
def test_another_line_is_the_contrast(tmp_path, options):
    other = {"id": "r", "contrast_of": "q", "image": "b.png", "choices": ["right", "left"], "answer": "right", "question": "And where?"}
    found = lines(tmp_path, {}, other, {"id": "s", "image": "c.png", "choices": ["a cup", "a dog"], "answer": 0}, options=options)
    assert [q.id for q in found] == ["q", "s"]  # the contrast is asked in its pair alone
    pairs = si.contrasts(found)
    (pair,) = pairs
    assert (pair.clean.answer_words, pair.corrupt.answer_words, pair.corrupt.id) == ("left", "right", "r")
    assert pair.clean.choices == pair.corrupt.choices and pair.clean.choice_words == pair.corrupt.choice_words
    assert pair.corrupt.text.startswith("And where?") and pair.corrupt.image_sources[0].name == "b.png"
    assert set(pairs.skipped) == {"s"} and own_partners(found) == [pair.corrupt] and pair.corrupt.group == pair.clean.group


def test_another_image_of_the_same_words(tmp_path):
    two = {"contrast_image": "b.png"}
    more = {"id": "r", "choices": ["left", "right", "on"], "answer": 2, "contrast_image": "c.png", "contrast_answer": 0}
    found = lines(tmp_path, two, more)
    a, b = si.contrasts(found)
    assert (a.corrupt.answer_text, a.corrupt.text, a.corrupt.image_sources[0].name) == ("right", found[0].text, "b.png")
    assert (b.clean.answer_text, b.corrupt.answer_text) == ("on", "left") and b.corrupt.choices == b.clean.choices
    assert "own pairs" in si.contrasts(found).source


def test_answers_that_are_filled_in_are_not_read_as_the_file_s(tmp_path):
    (q,) = lines(tmp_path, {"choices": ["1", "2"], "answer": 1, "contrast_image": "b.png"}, answers="index")
    assert (q.answer_text, q.meta["contrast"].answer_text) == ("2", "1")


def test_a_contrast_goes_where_its_question_goes(tmp_path):
    """Two lines, each the other's contrast by its image, are in one split; so is a line whose image is only another's contrast."""
    rows = []
    for i in range(60):
        mine, other = photo(tmp_path, f"{i}.png", i), photo(tmp_path, f"{i}-other.png", 100 + i)
        rows += [
            {"id": f"m{i}", "image": mine, "contrast_image": other, "answer": "left"},
            {"id": f"o{i}", "image": other, "answer": "right"},
        ]
    splits = {split: {q.id for q in lines(tmp_path, *rows, split=split)} for split in ("train", "validation", "test")}
    for i in range(60):
        assert len({split for split, ids in splits.items() if {f"m{i}", f"o{i}"} & ids}) == 1
    assert all(len(ids) > 4 for ids in splits.values())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (({"id": "r", "contrast_of": "nobody"},), r"line 2: 'contrast_of' names 'nobody', which is the id of no line that is asked"),
        (({"id": "r", "contrast_of": "q"}, {"id": "s", "contrast_of": "r"}), "which must not be a contrast itself"),
        (({"id": "r", "contrast_of": "q"}, {"id": "s", "contrast_of": "q"}), "line 2 is the contrast of 'q' already"),
        (({"id": "r", "contrast_of": "q"},), "the right answer of a contrast is 'left', as that of"),
        (({"id": "r", "contrast_of": "q", "choices": ["left", "on"], "answer": "on"},), "give both the same"),
        (({"id": "r", "contrast_of": 3},), "'contrast_of' is 3; give text"),
        (({"id": "r", "contrast_of": "q", "answer": "up"},), "answer 'up' is none of the choices"),
        (({"id": "r", "choices": ["a", "b", "c"], "answer": "a", "contrast_image": "b.png"},), "as 'contrast_answer'"),
        (({"id": "r", "contrast_answer": "left"},), "'contrast_answer' without 'contrast_image'"),
        (({"id": "r", "contrast_image": "../b.png"},), "b.png"),
        (({"id": "r", "contrast_image": 3},), "give a path"),
        (({"id": "r", "contrastof": "q"},), "did you mean 'contrast_of'"),
    ],
)
def test_contrasts_that_do_not_fit_are_refused(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        lines(tmp_path, {}, *records)


def test_missing_images_of_contrasts_are_said(tmp_path):
    with pytest.warns(si.errors.DataWarning, match=r"1 of 1 questions have no image on disk.*none\.png"):
        lines(tmp_path, {"contrast_image": "none.png"})
