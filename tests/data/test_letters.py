"""Options by letter: listed in the set's own order, the letters as choices, and pairs that still go by what the letters stand for."""

import io
import json

import datasets
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.boxes.questions import box_questions
from scale_interp.errors import DataError
from tests.data.test_boxes import scattered
from tests.support.official_sets import write_controlled

ASKED = "Answer with the option's letter from the given choices directly."


def lines(folder, *records):
    rows = [{"image": None, "question": "Where is it?", "choices": ["right", "left"], "answer": "left"} | r for r in records]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder}/own.jsonl"


def test_json_lines_keep_their_order_and_their_own_letters(tmp_path):
    name = lines(tmp_path, {}, {"choices": {"1": "left", "2": "on top"}, "answer": "2"}, {"choices": ["a", "b", "c"], "answer": 2})
    given, own, index = si.load_questions(name, options="letters")
    assert given.text == f"Where is it?\nA. right\nB. left\n{ASKED}"
    assert (given.choices, given.answer_text, given.answer_words) == (("A", "B"), "B", "left")
    assert (own.choices, own.answer_text, own.answer_words) == (("1", "2"), "2", "on top") and "\n2. on top\n" in own.text
    assert index.answer_text == "C" and index.choice_words == ("a", "b", "c")


def test_a_template_says_where_the_options_stand(tmp_path):
    (q,) = si.load_questions(lines(tmp_path, {}), options="letters", template="{question} {options}!")
    assert q.text == "Where is it? A. right\nB. left!"
    (q,) = si.load_questions(lines(tmp_path, {"question": "Left (A) or right (B)?"}), options="letters", template="{question}")
    assert q.text == "Left (A) or right (B)?" and q.choices == ("A", "B")


def test_more_options_than_letters(tmp_path):
    many = lines(tmp_path, {"choices": [f"place {i}" for i in range(27)], "answer": "place 3"})
    assert len(si.load_questions(many)[0].choices) == 27
    with pytest.raises(DataError, match=r"27 choices .* have no letter each; ask for them in words"):
        si.load_questions(many, options="letters")


def test_meta_of_ones_own_stands_for_no_letters(tmp_path):
    (q,) = si.load_questions(lines(tmp_path, {"meta": {"lettered": "yes"}}))
    assert q.choice_words == q.choices


def test_whatsup_has_one_letter_per_relation_and_its_pairs(tmp_path):
    write_controlled(tmp_path, "controlled_clevr")
    words = si.load_questions("whatsup/controlled_b", root=tmp_path, n=24)
    letters = si.load_questions("whatsup/controlled_b", root=tmp_path, n=24, options="letters")
    assert [q.id for q in words] == [q.id for q in letters] and [q.answer_text for q in words] == [q.answer_words for q in letters]
    assert {(q.answer_text, q.answer_words) for q in letters} == {("A", "left"), ("B", "right"), ("C", "front"), ("D", "behind")}
    assert len({q.choices for q in words}) > 4 and {q.choices for q in letters} == {("A", "B", "C", "D")}
    for change in ("mirror", "swap", "set"):
        a, b = si.contrasts(words, change), si.contrasts(letters, change)
        assert a.skipped == b.skipped and len(a) == len(b) > 4
        assert [p.corrupt.answer_text for p in a] == [p.corrupt.answer_words for p in b]
        assert all(p.clean.answer_text != p.corrupt.answer_text for p in b)
        assert [p.corrupt.relation for p in a] == [p.corrupt.relation for p in b]


@pytest.mark.parametrize("task", ["relation", "relation-yesno", "position"])
def test_scenes_and_their_pairs(task):
    words, letters = (si.load_questions(f"scenes/{task}", n=16, options=options) for options in ("words", "letters"))
    assert [q.answer_text for q in words] == [q.answer_words for q in letters]
    assert all(q.text.startswith(f"{w.text}\nA. {w.choices[0]}\nB. ") for w, q in zip(words, letters, strict=True))
    pairs = [si.contrasts(qs) for qs in (words, letters)]
    assert [p.corrupt.answer_text for p in pairs[0]] == [p.corrupt.answer_words for p in pairs[1]]
    assert [p.corrupt.relation for p in pairs[0]] == [p.corrupt.relation for p in pairs[1]]


def test_generated_sets_say_the_options_once():
    words, letters = (si.load_questions("generated/tqa/map", n=8, options=options) for options in ("words", "letters"))
    for w, q in zip(words, letters, strict=True):
        assert q.choice_words == w.choices and q.answer == w.answer and q.text.endswith(f"\nD. {w.choices[3]}\n{ASKED}")
        assert "Answer with" not in q.text.removesuffix(ASKED)


def test_boxes(tmp_path):
    path = scattered(tmp_path)
    for form, known in (
        ("place", ("left", "right", "top", "bottom")),
        ("relation", ("left", "right", "above", "below")),
        ("pope", ("yes", "no")),
    ):
        words, letters = (box_questions(path, form, options=options) for options in ("words", "letters"))
        assert [q.answer_text for q in words] == [q.answer_words for q in letters] and {q.choice_words for q in letters} == {known}


def test_spatialeval_keeps_the_order_that_its_text_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    rows = [
        {
            "id": f"spatialmap.vqa.{i}.0",
            "text": f"Map {i}. Where is A relative to B? Available options: A. North {i}, B. East, C. South, D. West.",
            "oracle_answer": "East",
            "oracle_option": "B",
            "oracle_full_answer": "B. East",
            "image": {"bytes": buffer.getvalue(), "path": None},
        }
        for i in range(4)
    ]
    (tmp_path / "spatialeval/vqa").mkdir(parents=True)
    table = datasets.Dataset.from_list(
        rows, features=datasets.Features({n: datasets.Value("string") for n in list(rows[0])[:5]} | {"image": datasets.Image()})
    )
    table.to_parquet(tmp_path / "spatialeval/vqa/test-00000-of-00001.parquet")
    letters = si.load_questions("spatialeval/vqa/map", root=tmp_path, options="letters")
    assert [q.choice_words for q in letters] == [(f"North {i}", "East", "South", "West") for i in range(4)]
    assert {q.answer_text for q in letters} == {"B"} and letters[0].text.endswith(f"\nD. West\n{ASKED}")
    words = si.load_questions("spatialeval/vqa/map", root=tmp_path)
    assert [q.choice_words for q in words] == [q.choices for q in words]
