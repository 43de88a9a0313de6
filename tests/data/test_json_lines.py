"""JSON lines: keys that nearly fit, answers of two meanings, white space, placeholders, lines without their image."""

import io
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.readers.answers import readings
from scale_interp.errors import DataError, DataWarning

FIELD = Path(__file__).parent / "field"
NUMBERS = ["1", "2", "3", "4"]


def picture(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def lines(folder, *records, **options):
    (folder / "a.png").write_bytes(picture())
    base = {"image": "a.png", "question": "Where is it?", "choices": ["left", "right"], "answer": "left"}
    kept = [{name: value for name, value in (base | record).items() if value is not ...} for record in records]
    (folder / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    return si.load_questions(f"jsonl:{folder}/own.jsonl", **options)


def right(folder, answer, choices, **options):
    return lines(folder, {"answer": answer, "choices": choices}, **options)[0].answer_text


# Keys.


def test_field_images_key_is_read():
    (question,) = si.load_questions(f"jsonl:{FIELD}/images_key.jsonl")
    assert len(question.images) == 1 and question.image.size == si.Question("?", ("a", "b"), 0, image=FIELD / "upright.jpg").image.size


@pytest.mark.parametrize(
    "key",
    [
        "image_path",
        "img",
        "Image",
        "picture_path",
        "picture",
        "IMAGE",
        "imgs",
        "photo",
        "image_file",
        "filename",
        "image_id",
        "imgage",
        " image",
        "media",
        "visual_input",
        "src",
    ],
)
def test_a_key_that_nearly_says_image_is_refused(tmp_path, key):
    with pytest.raises(DataError, match=rf"own\.jsonl, line 1: the key '{key}' is not read; did you mean 'image'"):
        lines(tmp_path, {"image": ..., key: "a.png"})


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("options", "choices", ["left", "right"]),
        ("Choices", "choices", ["left", "right"]),
        ("candidates", "choices", ["left", "right"]),
        ("label", "answer", "left"),
        ("correct_answer", "answer", "left"),
        ("anwser", "answer", "left"),
        ("prompt", "question", "Where is it?"),
        ("Question", "question", "Where is it?"),
    ],
)
def test_keys_that_nearly_say_another_are_refused(tmp_path, key, name, value):
    with pytest.raises(DataError, match=rf"line 1: the key '{key}' is not read; did you mean '{name}'"):
        lines(tmp_path, {name: ..., key: value})


@pytest.mark.parametrize("key", ["bbox", "bounding_boxes", "boxs"])
def test_boxes_by_another_name_are_refused(tmp_path, key):
    with pytest.raises(DataError, match=rf"'{key}' is not read; did you mean 'boxes'"):
        lines(tmp_path, {key: {"disc": [0, 0, 2, 2]}})


def test_an_image_under_any_key_is_not_passed_over(tmp_path):
    for value in (["a.png"], f"data:image/png;base64,{'A' * 9000}", "photos/IMG_1.JPEG "):
        with pytest.raises(DataError, match="the key 'shown' is not read; did you mean 'image'"):
            lines(tmp_path, {"image": ..., "shown": value})
    assert lines(tmp_path, {"image": None, "shown": "a.png"}, {"shown": "a.png"})[1].meta == {"shown": "a.png"}


def test_what_a_line_holds_beside_is_kept(tmp_path):
    beside = {"label": 3, "image_id": 7, "difficulty": "hard", "source": "web", "split": "dev", "question_type": "where"}
    (question,) = lines(tmp_path, beside)
    assert dict(question.meta) == beside


def test_image_and_images_must_agree(tmp_path):
    assert len(lines(tmp_path, {"images": ["a.png"]})[0].images) == 1
    assert len(lines(tmp_path, {"image": ..., "images": ["a.png", "a.png"]})[0].images) == 2
    with pytest.raises(DataError, match="'image' and 'images' differ"):
        lines(tmp_path, {"images": ["b.png"]})


def test_a_line_without_its_image_among_others_is_said(tmp_path):
    with pytest.warns(DataWarning, match=r"1 of 3 questions have no 'image', and the others have one; the first is .*line 2"):
        lines(tmp_path, {}, {"image": ...}, {})
    with pytest.warns(DataWarning, match=r"1 of 2 questions have no 'image'.*line 1"):
        lines(tmp_path, {"image": []}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines(tmp_path, {}, {"image": None})
        lines(tmp_path, {"image": ...}, {"image": ...})


# Answers.


def test_field_counting():
    name = f"jsonl:{FIELD}/counting.jsonl"
    with pytest.raises(DataError, match=r"counting\.jsonl, line 1: answer 2 may be '2' .* or '3' .*answers='text' or answers='index'"):
        si.load_questions(name)
    said = {answers: si.load_questions(name, answers=answers)[0].answer_text for answers in ("text", "index", "index1")}
    assert said == {"text": "2", "index": "3", "index1": "2"}


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        (1, NUMBERS, "may be '1' .* or '2'"),
        (1, ["0", "1", "2", "10"][::-1], r"may be '1' .* or '2'"),
        (4, ["4", "3", "2", "1"], "may be '4' .* or '1'"),
        ("A", ["B", "A", "C"], "may be 'A' .* or 'B'"),
        ("B", {"A": "B", "B": "A"}, "may be 'B' .* or 'A'"),
    ],
)
def test_an_answer_of_two_meanings_is_refused(tmp_path, answer, choices, message):
    with pytest.raises(DataError, match=rf"own\.jsonl, line 1: answer .*{message}.*say answers="):
        right(tmp_path, answer, choices)


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("2", NUMBERS, "2"),
        (0, ["0", "1", "2"], "0"),
        (7, ["5", "6", "7"], "7"),
        (1, ["left", "right"], "right"),
        ("B", ["left", "right"], "right"),
        ("A", ["A", "B"], "A"),
        ("right", {"A": "left", "B": "right"}, "right"),
        ("C", {"A": "left", "C": "right"}, "right"),
        (1, {"1": "left", "2": "right"}, "left"),
        ("2", {"1": "left", "2": "right"}, "right"),
        (" B\u00a0", ["left", "right"], "right"),
        ("(B)", ["left", "right"], "right"),
    ],
)
def test_an_answer_of_one_meaning_is_taken(tmp_path, answer, choices, expected):
    assert right(tmp_path, answer, choices) == expected


@pytest.mark.parametrize(
    ("answers", "answer", "choices", "expected"),
    [
        ("index", "1", ["left", "right"], "right"),
        ("index1", 1, ["left", "right"], "left"),
        ("index1", "2", ["left", "right"], "right"),
        ("text", 2, NUMBERS[::-1], "2"),
        ("letter", "(b)", ["left", "right"], "right"),
        ("letter", "a.", ["left", "right"], "left"),
        ("letter", "A", ["B", "A"], "B"),
        ("text", "A", ["B", "A"], "A"),
    ],
)
def test_the_user_may_say_what_answers_are(tmp_path, answers, answer, choices, expected):
    assert right(tmp_path, answer, choices, answers=answers) == expected


@pytest.mark.parametrize(
    ("answers", "answer"), [("index1", 0), ("index", 2), ("index1", 3), ("text", "A"), ("letter", "C"), ("letter", 1), ("text", True)]
)
def test_an_answer_that_is_not_what_was_said_is_refused(tmp_path, answers, answer):
    with pytest.raises(DataError, match=rf"line 1: answer .* is none of the choices .* by answers='{answers}'"):
        right(tmp_path, answer, ["left", "right"], answers=answers)


def test_a_file_counted_from_1_is_refused_where_it_shows(tmp_path):
    with pytest.raises(DataError, match=r"line 2: answer 4 is none of the choices .*counted from 1, say answers='index1'"):
        lines(tmp_path, {"choices": NUMBERS_IN_WORDS, "answer": 1}, {"choices": NUMBERS_IN_WORDS, "answer": 4})
    many = [{"choices": NUMBERS_IN_WORDS, "answer": 1 + i % 3} for i in range(20)]
    with pytest.raises(DataError, match="none of 20 answers that are numbers is 0: are they counted from 1"):
        lines(tmp_path, *many)
    with pytest.warns(DataWarning, match="none of 10 answers that are numbers is 0"):
        assert lines(tmp_path, *many[:10])[0].answer_text == "two"
    assert lines(tmp_path, *many, answers="index1")[0].answer_text == "one"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lines(tmp_path, *many, answers="index")[0].answer_text == "two"
        assert lines(tmp_path, {"choices": NUMBERS_IN_WORDS, "answer": 0}, *many)[1].answer_text == "two"


NUMBERS_IN_WORDS = ["one", "two", "three", "four"]


def test_answers_is_for_json_lines_and_one_of_four():
    with pytest.raises(DataError, match="answers='indx': choose from 'index', 'index1', 'text', 'letter'"):
        si.load_questions(f"jsonl:{FIELD}/counting.jsonl", answers="indx")
    with pytest.raises(DataError, match="answers='text' is for JSON lines"):
        si.load_questions("scenes/relation", n=1, answers="text")


def test_field_letters():
    (question,) = si.load_questions(f"jsonl:{FIELD}/letters.jsonl")
    assert question.answer_text == "left" and set(question.choices) == {"left", "right"}


def test_all_readings_of_an_answer():
    assert readings(2, NUMBERS, "ABCD") == {"text": 1, "index": 2, "index1": 1}
    assert readings("B", ("A", "B"), "AB") == {"text": 1, "letter": 1} and readings(True, ("1", "2"), "AB") == {}


# White space.

SPACES = ["right ", "\u00a0right", "right\n", "ri\u200bght", "\tright", "\ufeffright", "right\u2009", "right\u200e"]


def test_field_trailing_space():
    (question,) = si.load_questions(f"jsonl:{FIELD}/trailing_space.jsonl")
    assert set(question.choices) == {"left", "right"} and question.answer_text == "left"


@pytest.mark.parametrize("word", SPACES)
def test_white_space_changes_no_choice(tmp_path, word):
    for question in (
        si.Question("Where?", ("left", word), 1),
        lines(tmp_path, {"choices": ["left", word], "answer": "right"})[0],
        lines(tmp_path, {"choices": ["left", "right"], "answer": word})[0],
        lines(tmp_path, {"choices": {"A": "left", "B": word}, "answer": "B"})[0],
    ):
        assert question.answer_text == "right" and set(question.choices) == {"left", "right"}


@pytest.mark.parametrize("word", SPACES)
def test_choices_that_read_the_same_are_refused_by_name(tmp_path, word):
    for call in (
        lambda: si.Question("Where?", ("right", word), 0),
        lambda: lines(tmp_path, {"choices": ["right", word, "left"]}),
        lambda: lines(tmp_path, {"choices": {"A": "right", "B": word}, "answer": "A"}),
    ):
        with pytest.raises(DataError, match=r"read the same.*all different") as error:
            call()
        assert repr("right") in str(error.value) and repr(word) in str(error.value)


def test_composed_and_decomposed_letters_are_one():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert si.Question("Where?", (decomposed, "bar"), 0).choices == (composed, "bar")
    with pytest.raises(DataError, match="read the same"):
        si.Question("Where?", (composed, decomposed), 0)


def test_words_between_are_spaced_once_and_joiners_stay():
    assert si.Question("Where?", ("on\u00a0 top\nof", "\u0645\u06cc\u200c\u0631\u0648\u0645"), 0).choices == (
        "on top of",
        "\u0645\u06cc\u200c\u0631\u0648\u0645",
    )


def test_lines_of_a_text_stay():
    text = "A map:\r\n  #.#\r\n\u00a0 ...\u200b\n"
    assert si.Question(text, ("a", "b"), 0).text == "A map:\n  #.#\n  ..."


def test_names_and_relations_are_as_clean_as_choices():
    question = si.Question(
        "Where?", ("left ", "right"), 0, relation="left\u00a0", about=("red disc ",), boxes={"red\u00a0disc": (0, 0, 1, 1)}
    )
    assert (question.relation, question.about, list(question.boxes)) == ("left", ("red disc",), ["red disc"])
    with pytest.raises(DataError, match=r"the boxes 'disc' and 'disc ' read the same"):
        si.Question("Where?", ("left", "right"), 0, boxes={"disc": (0, 0, 1, 1), "disc ": (0, 0, 2, 2)})


def test_only_unseen_characters_are_no_words():
    with pytest.raises(DataError, match="without text"):
        si.Question("Where?", ("left", "\u200b"), 0)
    with pytest.raises(DataError, match="text is empty"):
        si.Question("\u200b\u00a0", ("left", "right"), 0)


# Placeholders.


def test_field_placeholder():
    (question,) = si.load_questions(f"jsonl:{FIELD}/placeholder.jsonl")
    assert "<image>" not in question.text and question.text.startswith("Where is the red disc?")


@pytest.mark.parametrize("asked", ["<image> Where is it?", "Where is it?\n<image>", "<|image_pad|>Where is it?", "<IMAGE>\n\nWhere is it?"])
def test_a_placeholder_beside_the_words_is_taken_away(tmp_path, asked):
    assert lines(tmp_path, {"question": asked}, template="{question}")[0].text == "Where is it?"


def test_two_placeholders_for_two_images(tmp_path):
    asked = {"question": "<image><image>\nSame?", "image": ["a.png", "a.png"]}
    assert lines(tmp_path, asked, template="{question}")[0].text == "Same?"


@pytest.mark.parametrize(
    ("asked", "images"),
    [
        ("Where is <image> the cat?", 1),
        ("<image>\n<image>\nWhere?", 1),
        ("<image>\nWhere?", 0),
        ("<image>", 1),
        ("See <image_1> and [IMG].", 1),
    ],
)
def test_a_placeholder_that_says_a_place_is_refused(tmp_path, asked, images):
    with pytest.raises(DataError, match=r"line 1: the question holds \d image placeholder.*remove them from the question"):
        lines(tmp_path, {"question": asked, "image": ["a.png"] * images or None})


@pytest.mark.parametrize("words", ["<image>\nWhere is the cat?", "Where is <image> the cat?", "<image>"])
@pytest.mark.parametrize("n", [0, 1])
def test_the_model_says_to_remove_a_placeholder_from_the_words(vlm, words, n):
    question = si.Question(words, ("left", "right"), 0, image=[FIELD / "upright.jpg"] * n, id="q")
    with pytest.raises(DataError, match=r"question q: .*take it out of the question's text"):
        vlm.encode(question)


# Messages.


def test_long_values_are_shortened_in_messages(tmp_path):
    long = "x" * 100_000
    wrong = (
        {"choices": [long, 3]},
        {"answer": long},
        {"image": {"a": long}},
        {"boxes": [long]},
        {"question": [long]},
        {"choices": {"A": 3, "B": long}},
        {"meta": long},
    )
    for record in wrong:
        with pytest.raises(DataError) as error:
            lines(tmp_path, record)
        assert len(str(error.value)) < 700
    with pytest.raises(DataError) as error:
        si.Question(long, (long, 3), 0)
    assert len(str(error.value)) < 700
