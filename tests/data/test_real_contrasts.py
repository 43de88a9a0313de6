import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

import scale_interp as si
from scale_interp import Question, contrasts
from scale_interp.data.image_controls import with_noise
from scale_interp.data.partners import exchange, side
from scale_interp.errors import DataError

PLACES = ("left", "right", "on", "under")


def picture(seed=0, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def photo(tmp_path):
    picture().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def place(answer, choices=PLACES, **fields):
    fields = {"id": f"q/{answer}", "about": ("mug", "table"), "relation": answer, "picture": picture()} | fields
    return si.Question("Where is the mug in relation to the table?", choices, choices.index(answer), **fields)


def claim(relation, answer="yes", caption=None, **fields):
    caption = caption or f"The cat is {relation} the dog."
    fields = {"id": f"v/{relation}/{answer}", "about": ("cat", "dog"), "relation": relation, "picture": picture()} | fields
    return si.Question(f"Is it so? {caption}", ("yes", "no"), ("yes", "no").index(answer), meta={"caption": caption}, **fields)


def members(name="mug|table", relations=PLACES, orders=None):
    """A What'sUp set: a picture a relation, options in an order of each question's own."""
    out = []
    for i, relation in enumerate(relations):
        choices = tuple(np.roll(PLACES, i)) if orders is None else orders[i]
        subject, other = name.split("|")
        text = f"Where is the {subject} in relation to the {other}? Answer with {', '.join(choices)}."
        meta = {"set": name, "captions": [relation]}
        about = (subject, other)
        key = f"whatsup/{subject}_{relation}_{other}"
        out.append(
            si.Question(
                text,
                choices,
                choices.index(relation),
                picture(i),
                key + "!",
                key,
                "whatsup/a",
                relation,
                about,
                {"mug": (i, 0, 9, 9)},
                meta,
            )
        )
    return out


def only(question, change, **kwargs):
    (pair,) = si.contrasts([question], change, **kwargs)
    return pair


def reason(question, change, *others):
    with pytest.raises(DataError) as error:
        si.contrasts([question, *others], change)
    return str(error.value)


def test_mirrored_picture_is_mirrored_and_nothing_else_changes(photo):
    question = place("left", picture=photo, boxes={"mug": (3, 4, 10, 12)}, meta={"captions": ["A mug to the left of a table"], "note": 1})
    pair = only(question, "mirror")
    assert pair.clean is question
    assert np.array_equal(np.asarray(pair.corrupt.image), np.asarray(pair.clean.image)[:, ::-1])
    assert pair.corrupt.answer_text == pair.corrupt.relation == "right"
    assert pair.corrupt.boxes == {"mug": (30, 4, 37, 12)} and pair.corrupt.meta == {"note": 1}
    same = ("text", "choices", "group", "task", "about")
    assert [getattr(pair.corrupt, f) for f in same] == [getattr(question, f) for f in same] and pair.corrupt.id != question.id


def test_mirrored_box_holds_what_the_box_held(photo):
    """The same pixels in the mirrored box as in the box."""
    pair = only(place("right", picture=photo, boxes={"mug": (3, 4, 10, 12)}), "mirror")
    clean = pair.clean.image.crop(pair.clean.boxes["mug"])
    assert np.array_equal(np.asarray(ImageOps.mirror(clean)), np.asarray(pair.corrupt.image.crop(pair.corrupt.boxes["mug"])))


@pytest.mark.parametrize("answer", ["left", "right"])
def test_mirrored_twice_is_where_it_was(answer):
    question = place(answer, boxes={"mug": (3, 4, 10, 12)})
    again = only(only(question, "mirror").corrupt, "mirror").corrupt
    assert (again.answer, again.relation, again.boxes) == (question.answer, question.relation, question.boxes)
    assert np.array_equal(np.asarray(again.image), np.asarray(question.image))


def test_no_picture_is_opened_until_it_is_asked_for(tmp_path):
    opened = []

    def open_it():
        opened.append(1)
        return picture()

    questions = [place("left", picture=open_it), place("right", picture=tmp_path / "not there.png", id="gone")]
    with_boxes = replace(questions[0], id="boxes", boxes={"mug": (0, 0, 4, 4)}, meta={"size": [40, 30]})
    pairs = si.contrasts([*questions, with_boxes])
    assert not opened and len(pairs) == 3 and pairs[2].corrupt.boxes == {"mug": (36, 0, 40, 4)}
    assert pairs[0].corrupt.image is not None and opened
    with pytest.raises(DataError, match=r"no image at .*not there"):
        _ = pairs[1].corrupt.image


def test_questions_on_one_picture_share_its_mirror_image(photo):
    a, b = si.contrasts([place("left", picture=photo), place("right", picture=photo)])
    assert hash(a.corrupt.picture) == hash(b.corrupt.picture) and a.corrupt.picture == b.corrupt.picture
    c = only(place("left", picture=picture()), "mirror")
    assert a.corrupt.picture != c.corrupt.picture


@pytest.mark.parametrize(
    "relation", ["left of", "right of", "at the left side of", "at the right side of", "to the left of", "to the right of", "left"]
)
def test_a_true_left_or_right_is_false_in_the_mirror(relation):
    pair = only(claim(relation), "mirror")
    assert pair.corrupt.answer_text == "no" and pair.corrupt.relation == relation and pair.corrupt.text == pair.clean.text


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (claim("left of", "no"), "that it is not 'left of' does not make it so"),
        (claim("on"), "does not reverse what is asked"),
        (claim("in front of"), "does not reverse what is asked"),
        (claim("facing"), "does not reverse"),
        (claim("left of", caption="The left cat is left of the dog."), "left or right of something else"),
        (replace(claim("left of"), relation=None), "no relation"),
        (place("on"), "leaves the answer 'on'"),
        (place("front", ("front", "behind", "left", "right")), "leaves the answer 'front'"),
        (place("left", ("left", "on")), "no single opposite of 'left'"),
        (replace(place("left"), text="Where is the mug in relation to the right table?"), "left or right of something else"),
        (replace(place("left"), picture=None), "one image"),
        (replace(place("left"), picture=[picture(), picture(1)]), "one image"),
        (place("left", meta={"form": "vtqa", "kind": "map"}), "holds writing"),
        (place("left", meta={"form": "vqa", "kind": "maze"}), "holds writing"),
    ],
)
def test_what_the_mirror_leaves_is_skipped_with_the_reason(question, message):
    assert message in reason(question, "mirror")
    pairs = si.contrasts([question, place("right", id="good")])
    assert [p.clean.id for p in pairs] == ["good"] and message in pairs.skipped[question.id]


def test_photographs_of_a_spatial_set_can_be_mirrored():
    assert only(place("left", meta={"form": "vqa", "kind": "real"}), "mirror").corrupt.answer_text == "right"


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("left", PLACES, "right"),
        ("right", PLACES, "left"),
        ("on", PLACES, "under"),
        ("under", PLACES, "on"),
        ("front", ("left", "right", "front", "behind"), "behind"),
        ("behind", ("left", "right", "front", "behind"), "front"),
        ("above", ("left", "right", "above", "below"), "below"),
        ("To the left of", ("To the left of", "To the right of"), "To the right of"),
    ],
)
def test_swapped_words_have_the_opposite_relation(answer, choices, expected):
    pair = only(place(answer, choices), "swap")
    assert pair.corrupt.answer_text == pair.corrupt.relation == expected and pair.corrupt.choices == choices
    assert pair.corrupt.text == "Where is the table in relation to the mug?" and pair.corrupt.about == ("table", "mug")
    assert pair.corrupt.picture is pair.clean.picture and pair.corrupt.group == pair.clean.group
    again = only(pair.corrupt, "swap").corrupt
    assert (again.text, again.answer, again.about) == (pair.clean.text, pair.clean.answer, pair.clean.about)


@pytest.mark.parametrize("relation", ["left of", "at the right side of", "above", "on top of", "beneath", "under", "over"])
def test_a_true_relation_is_false_with_the_words_swapped(relation):
    pair = only(claim(relation), "swap")
    assert pair.corrupt.answer_text == "no" and f"The dog is {relation} the cat." in pair.corrupt.text and not pair.corrupt.meta


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (claim("above", "no"), "that it is not 'above'"),
        (claim("in front of"), "does not reverse"),
        (claim("touching"), "does not reverse"),
        (claim("near"), "does not reverse"),
        (claim("above", about=("cat",)), "nothing to swap"),
        (claim("above", about=("cat", "Cat")), "same name"),
        (claim("above", about=("at", "dog")), "do not name each"),
        (place("left", about=("mug", "table"), choices=("left", "up")), "no single opposite"),
        (place("under", ("on", "above", "under", "left")), "no single opposite"),
        (replace(place("left"), text="The mug stands by the table. Where is the mug in relation to the table?"), "do not name each"),
    ],
)
def test_what_swapping_leaves_is_skipped_with_the_reason(question, message):
    assert message in reason(question, "swap")


@pytest.mark.parametrize(
    ("text", "first", "second", "expected"),
    [
        ("A mug on an apple", "mug", "apple", "An apple on a mug"),
        ("Is an umbrella left of a dog?", "umbrella", "dog", "Is a dog left of an umbrella?"),
        ("The TV is left of the dog.", "tv", "dog", "The dog is left of the tv."),
        ("Dog left of cat", "dog", "cat", "Cat left of dog"),
        ("The table is left of the dining table", "table", "dining table", "The dining table is left of the table"),
        ("Der Hund ist über der Tür", "hund", "tür", "Der tür ist über der hund"),
        ("The handbag is on the cat", "andbag", "cat", None),
        ("The cat is on the cat", "dog", "cat", None),
    ],
)
def test_words_are_exchanged_whole_and_with_their_articles(text, first, second, expected):
    assert exchange(text, first, second) == expected


def test_names_of_relations():
    left, on, behind = (0, 0), (1, 0), (2, 1)
    assert {side(p) for p in ("left", "Left of", "to the left of", "on the left", "at the left side of")} == {left}
    assert {side(p) for p in ("on", "on top of", "above", "over", " on ")} == {on}
    assert {side(p) for p in ("behind", "at the back of")} == {behind} and side("in front of") == (2, 0) == side("front")
    assert {side(p) for p in ("near", "top", "left above", "alone", "facing", "")} == {None}


def test_the_other_picture_of_a_set_answers_the_same_words():
    questions = members()
    pairs = si.contrasts(questions, "set")
    assert not pairs.skipped
    assert {p.clean.relation: p.corrupt.relation for p in pairs} == {"left": "right", "right": "left", "on": "under", "under": "on"}
    by_relation = {q.relation: q for q in questions}
    for pair in pairs:
        other = by_relation[pair.corrupt.relation]
        assert (pair.corrupt.text, pair.corrupt.choices) == (pair.clean.text, pair.clean.choices)
        assert pair.corrupt.answer_text == other.answer_text
        assert (pair.corrupt.picture, pair.corrupt.group, pair.corrupt.boxes) == (other.picture, other.group, other.boxes)
    assert len({p.corrupt.id for p in pairs}) == 4


def test_a_broken_set_pairs_what_is_there():
    pairs = si.contrasts([*members(relations=("left", "on")), *members("dog|bed", ("left",)), place("left")], "set")
    assert {p.clean.relation: p.corrupt.relation for p in pairs} == {"left": "on", "on": "left"}
    assert Counter(pairs.skipped.values()) == {
        "no other image of its set is among the questions": 1,
        "it belongs to no set of images": 1,
    }


def test_sets_of_different_things_do_not_mix():
    pairs = si.contrasts([*members("mug|table"), *members("dog|bed")], "set")
    assert len(pairs) == 8 and all(pair.corrupt.group.split("_")[-1] == pair.clean.group.split("_")[-1] for pair in pairs)


def test_pairs_of_unequal_length_are_left_out_and_told(vlm):
    even = si.Question("Where is the red circle?", PLACES[:2], 0, picture(), "even", about=("red circle",), relation="left")
    uneven = si.Question("Where is the red thing relative to the cross?", PLACES[:2], 0, picture(), "uneven", about=("red thing", "cross"))

    class Counts:
        """Four tokens for each picture that was mirrored, one for each word."""

        def encode(self, question):
            mirrored = question.id.endswith("~mirror") and question.id.startswith("uneven")
            return {"input_ids": np.zeros((1, len(question.text.split()) + 4 * mirrored))}

    pairs = si.contrasts([even, uneven], "mirror", Counts())
    assert [p.clean.id for p in pairs] == ["even"] and pairs.skipped == {"uneven": "its prompt has 9 tokens, its partner's 13"}
    assert len(si.contrasts([even, uneven], "mirror")) == 2
    assert len(si.contrasts(si.load_questions("scenes/relation", n=6), "swap", vlm)) == 6


def test_lengths_are_those_of_the_model(vlm):
    """The partner's longer name is seen by the model's own tokenizer."""
    question = si.Question("Where is the red circle relative to the cross?", PLACES[:2], 0, picture(), about=("red circle", "cross"))
    pair = only(question, "swap", vlm=vlm)
    assert vlm.encode(pair.clean)["input_ids"].shape == vlm.encode(pair.corrupt)["input_ids"].shape


def test_patching_needs_no_equal_lengths(vlm):
    """z of the last token has no position in it: pairs of different lengths give what whole forward passes give."""
    short, long = si.load_questions("scenes/relation", n=2)
    other = replace(long, text="In the picture, " + long.text, answer=(long.answer + 1) % 4)
    pairs = [si.Contrast(short, replace(other, answer=(short.answer + 1) % 4)), si.Contrast(other, long)]
    assert vlm.encode(pairs[0].clean)["input_ids"].shape != vlm.encode(pairs[0].corrupt)["input_ids"].shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed, reference = (si.patch(vlm, pairs, path=path) for path in ("packed", "reference"))
    assert np.allclose(packed.per_question, reference.per_question, atol=1e-4)


def test_scenes_are_as_before_and_no_member_of_a_set():
    questions = si.load_questions("scenes/relation", n=4)
    assert all(p.clean.text == p.corrupt.text for p in si.contrasts(questions, "swap"))
    assert "no set of images" in reason(questions[0], "set")
    mixed = si.contrasts([questions[0], place("left")])
    assert [p.corrupt.meta.get("scene") is None for p in mixed] == [False, True]


def test_reasons_are_counted_where_no_contrast_is_left():
    message = reason(place("on", id="a"), "mirror", place("on", id="b"), claim("near"))
    assert "from 3 questions" in message and "(2 questions)" in message and "(1 questions)" in message


def test_controls_have_no_contrast():
    noise = with_noise([Question("Where is the cat?", ("left", "right"), 0, picture=Image.new("RGB", (8, 8)), relation="left")])
    with pytest.raises(DataError, match="its image is a control"):
        contrasts(noise)
