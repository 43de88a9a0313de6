from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.items import describe, groups, shuffled_answers
from scale_interp.data.scenes.scene import COLOURS, SIZE, Scene, Thing, scenes
from scale_interp.data.scenes.task import TASKS, direction, place
from scale_interp.errors import DataError

CHOICES = ("left", "right")


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced_and_repeatable(task):
    a, b = (si.load_questions(f"scenes/{task}", n=80, seed=3) for _ in range(2))
    assert [q.id for q in a] == [q.id for q in b] and len(a) == 80
    assert [q.id for q in a] != [q.id for q in si.load_questions(f"scenes/{task}", n=80, seed=4)]
    counts = Counter(q.answer_text for q in a)
    if task != "count-shape":
        assert set(counts) == set(a[0].choices) and max(counts.values()) == min(counts.values())


def test_splits_share_no_set_of_things():
    seen = {}
    for split in ("train", "validation", "test"):
        stream = scenes(split, np.random.default_rng(0))
        seen[split] = {tuple(sorted(t.name for t in next(stream).things)) for _ in range(2000)}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"] and not seen["validation"] & seen["test"]


def test_changed_scenes_stay_in_their_split():
    for q in si.load_questions("scenes/relation", n=40):
        scene = q.meta["scene"]
        assert scene.mirrored("x").split == scene.mirrored("y").split == scene.swapped(*q.about).split == "test"


def test_answers_are_right_by_the_pixels():
    """Read places and colours back from the picture itself."""
    for q in si.load_questions("scenes/relation", n=60):
        pixels = np.asarray(q.image).astype(int)
        centre = {}
        for name in q.about:
            found = np.abs(pixels - COLOURS[name.split()[0]]).sum(-1) == 0
            centre[name] = np.argwhere(found).mean(0)
        (y0, x0), (y1, x1) = (centre[n] for n in q.about)
        assert {"left": x0 < x1, "right": x0 > x1, "above": y0 < y1, "below": y0 > y1}[q.answer_text]
        assert max(abs(x0 - x1), abs(y0 - y1)) >= 1.8 * min(abs(x0 - x1), abs(y0 - y1))


def test_boxes_hold_their_things():
    for q in si.load_questions("scenes/exists", n=20):
        pixels = np.asarray(q.image).astype(int)
        for name, (left, top, right, bottom) in q.boxes.items():
            found = np.argwhere(np.abs(pixels - COLOURS[name.split()[0]]).sum(-1) == 0)
            assert found.min(0)[0] >= top and found.max(0)[0] < bottom and found.min(0)[1] >= left and found.max(0)[1] < right


@pytest.mark.parametrize(
    ("task", "change"), [("relation", "mirror"), ("relation", "swap"), ("position", "mirror"), ("relation-yesno", "swap")]
)
def test_contrasts_keep_the_words_and_change_the_answer(vlm, task, change):
    questions = si.load_questions(f"scenes/{task}", n=40)
    pairs = si.contrasts(questions, change)
    assert len(pairs) + len(pairs.skipped) == 40
    for pair in pairs:
        assert pair.clean.text == pair.corrupt.text and pair.clean.answer != pair.corrupt.answer
        assert vlm.encode(pair.clean)["input_ids"].shape == vlm.encode(pair.corrupt)["input_ids"].shape
        assert not np.array_equal(np.asarray(pair.clean.image), np.asarray(pair.corrupt.image))


def test_mirrored_scene_is_mirrored():
    scene = Scene((Thing("red", "circle", 6, 20), Thing("blue", "cross", 40, 30)))
    assert scene.mirrored("x").things[0].x == SIZE - 1 - 6 and scene.mirrored("x").mirrored("x") == scene
    assert scene.swapped("red circle", "blue cross").things[0] == Thing("red", "circle", 40, 30)


def test_direction_and_place():
    assert [direction(*d) for d in [(-20, 3), (20, 3), (3, -20), (3, 20), (20, 15)]] == ["left", "right", "above", "below", None]
    assert [place(Thing("red", "circle", x, y)) for x, y in [(6, 27), (48, 27), (27, 6), (27, 48)]] == ["left", "right", "above", "below"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " "}, "text is empty"),
        ({"choices": ("left",)}, "at least two"),
        ({"choices": ("left", "left")}, "all different"),
        ({"choices": ("left", "")}, "without text"),
        ({"answer": 2}, "no index"),
    ],
)
def test_wrong_questions_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        si.Question(**({"text": "Where?", "choices": CHOICES, "answer": 0} | fields))


def test_pictures_from_anywhere(tmp_path):
    image = Image.new("RGBA", (9, 7), (255, 0, 0, 10))
    image.save(tmp_path / "a.png")
    for picture in (image, str(tmp_path / "a.png"), tmp_path / "a.png", lambda: image):
        assert si.Question("Where?", CHOICES, 0, picture=picture).image.mode == "RGB"
    assert si.Question("Where?", CHOICES, 0).image is None
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name, message in (("b.png", "damaged or not an image"), ("none.png", "no image at")):
        with pytest.raises(DataError, match=message):
            _ = si.Question("Where?", CHOICES, 0, picture=tmp_path / name).image


def test_questions_keep_their_source_when_sliced():
    qs = si.load_questions("scenes/relation", "train", n=6, seed=2)
    assert repr(qs[:3]) == "<3 questions of scenes/relation train>" and qs[:3].seed == 2
    assert describe(qs[:3])["data_hash"] != describe(qs[3:])["data_hash"]


def test_shuffled_answers_keep_counts_and_lose_signal():
    qs = si.load_questions("scenes/relation", n=100)
    shuffled = shuffled_answers(qs, 0)
    assert Counter(q.answer for q in qs) == Counter(q.answer for q in shuffled)
    assert 10 <= sum(a.answer == b.answer for a, b in zip(qs, shuffled, strict=True)) <= 45


def test_groups_number_shared_pictures():
    qs = si.load_questions("scenes/relation", n=3)
    assert len(set(groups([*qs, replace(qs[0], id="again")]))) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: si.load_questions("scenes/nothing"), "unknown scene task"),
        (lambda: si.load_questions("nothing"), "unknown data set"),
        (lambda: si.load_questions("scenes/relation", split="dev"), "unknown split"),
        (lambda: si.load_questions("scenes/relation", n=0), "at least one"),
        (lambda: si.contrasts([]), "empty set"),
        (lambda: si.contrasts(si.load_questions("scenes/colour", n=3)), "asks for no place"),
        (lambda: si.contrasts(si.load_questions("scenes/position", n=3), "swap"), "nothing to swap"),
        (lambda: si.contrasts(si.load_questions("scenes/relation", n=3), "rotate"), "choose 'mirror'"),
    ],
)
def test_wrong_requests_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
