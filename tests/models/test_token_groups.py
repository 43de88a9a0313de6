"""Token groups: every family's tokenizer and image layout, against the words and the image tokens themselves."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import scale_interp as si
from scale_interp.errors import DataError
from scale_interp.models.zoo import NAMES
from scale_interp.vlm.token_groups import positions_at
from tests.support.zoo_models import mostly_full

TEXT = "Where is the white square relative to the black triangle? Answer with left, right, above or below."


def tiny(family):
    return si.load(f"tiny-random/{family}")


def question(**changes):
    scene = si.load_questions("scenes/relation", n=1, seed=0)[0]
    return replace(scene, **{"text": TEXT, "about": ("white square", "black triangle")} | changes)


def decoded(vlm, q, tokens):
    return vlm.tokenizer.decode(vlm.encode(q)["input_ids"][0][tokens])


@pytest.mark.parametrize("family", mostly_full(NAMES))
def test_groups_are_the_words_and_image_tokens_of_every_family(family):
    vlm = tiny(family)
    q = question()
    ids = vlm.encode(q)["input_ids"][0]
    groups = vlm.token_groups(q, spans={"first": [0], "end": [-2, -1], "how": "relative to"})
    T = len(ids)
    assert sorted([*groups["image"], *groups.get("separators", []), *groups["text"]]) == [*range(T)]
    assert sorted([*groups["question"], *groups["template"]]) == groups["text"]
    assert set(groups["image"]) <= set((ids == vlm.image_token_id).nonzero()[:, 0].tolist()) and groups["image"] == groups["image_1"]
    assert (ids == vlm.image_token_id).sum() <= len(groups["image"]) + len(groups.get("separators", []))
    for name, words in (("question", TEXT), ("subject", "white square"), ("object", "black triangle"), ("how", "relative to")):
        assert decoded(vlm, q, groups[name]).strip() == words
    assert decoded(vlm, q, groups["options"]).split() == ["left", "right", "above", "below"]
    assert groups["last"] == [T - 1] and groups["first"] == [0] and groups["end"] == [T - 2, T - 1]
    grid = si.patch_grid(vlm, q)
    for role, name in zip(("subject", "object"), q.about, strict=True):
        box = (grid.cover([q.boxes[name]]) > 1e-6).nonzero()[:, 0].tolist()
        assert groups[f"box:{role}"] == groups[f"box:{name}"] == box and set(box) <= set(groups["image"])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "gemma3", "idefics3", "paligemma"])
def test_each_of_two_images_is_a_group(family):
    vlm = tiny(family)
    q = question(image=[Image.new("RGB", (60, 40)), Image.new("RGB", (40, 90), "red")], boxes={})
    groups = vlm.token_groups(q)
    grid = si.patch_grid(vlm, q)
    for number in (0, 1):
        own = {int(t) for raster in grid.rasters if raster.picture == number for t in raster.tokens[raster.areas > 0]}
        assert set(groups[f"image_{number + 1}"]) == own
    assert sorted(groups["image_1"] + groups["image_2"]) == groups["image"] and "box:subject" not in groups
    assert decoded(vlm, q, groups["subject"]).strip() == "white square"


def test_words_of_many_tokens_and_bytes_are_whole():
    model = tiny("qwen2_vl")
    q = question(about=("zygomorphic 🌻 blossom", "triangle"))
    q = replace(q, text="Is the zygomorphic 🌻 blossom beside the triangle?", choices=("yes", "no"), answer=0, boxes={})
    groups = model.token_groups(q)
    assert decoded(model, q, groups["subject"]).strip() == "zygomorphic 🌻 blossom" and len(groups["subject"]) > 10
    assert "options" not in groups and "box:subject" not in groups


def test_a_name_inside_another_name_is_another_thing():
    model = tiny("llava")
    q = si.Question("Is the cat left of the black cat?", ("yes", "no"), 0, about=("cat", "black cat"), image=Image.new("RGB", (30, 30)))
    groups = model.token_groups(q)
    assert decoded(model, q, groups["subject"]) == " cat" and decoded(model, q, groups["object"]) == " black cat"
    assert max(groups["subject"]) < min(groups["object"])


def test_text_before_the_image_and_around_it():
    vlm = si.load("tiny-random/llava", prompt="ask {text} now {images} answer")
    q = question()
    groups = vlm.token_groups(q)
    assert decoded(vlm, q, groups["question"]).strip() == TEXT
    assert max(groups["question"]) < min(groups["image"]) < max(groups["template"])
    assert decoded(vlm, q, groups["object"]).strip() == "black triangle"


def test_lettered_options_are_not_the_article():
    model = tiny("llava")
    q = si.Question("Is a cat there? A. yes B. no", ("A", "B"), 0, image=Image.new("RGB", (30, 30)))
    assert decoded(model, q, model.token_groups(q)["options"]) == "AB"


def test_positions_by_name_names_and_number(vlm):
    q = question()
    groups, T = vlm.token_groups(q), len(vlm.encode(q)["input_ids"][0])
    assert positions_at(vlm, q, "subject") == groups["subject"]
    assert positions_at(vlm, q, ["object", "subject"]) == sorted(groups["object"] + groups["subject"])
    assert positions_at(vlm, q, [3, -1, 3]) == [3, T - 1] and positions_at(vlm, q, "last") == [T - 1]
    assert positions_at(vlm, q, torch.tensor([2, 4])) == [2, 4]
    own = replace(q, meta=q.meta | {"spans": {"how": "relative to"}})
    assert positions_at(vlm, own, "how") == vlm.token_groups(q, {"how": "relative to"})["how"]


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("verb", "no token group 'verb': it has 'image'"),
        ("box:dog", r"no box of 'dog' that the model sees \(boxes: "),
        ([75], "token 75, but its prompt has"),
        ([0.5], "0.5 is no token number"),
        (["image", 3], "3 is no group's name"),
    ],
)
def test_positions_that_are_not_there_are_refused(vlm, at, message):
    with pytest.raises(DataError, match=message):
        positions_at(vlm, question(), at)


def test_a_missing_group_says_why(vlm):
    q = question(about=("dog", "cat"))
    with pytest.raises(DataError, match="no token group 'subject': its text does not contain the words of about"):
        positions_at(vlm, q, "subject")
    with pytest.raises(DataError, match="no token group 'options': its text does not name all of its choices"):
        positions_at(vlm, replace(q, text="Where?"), "options")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"image": [0]}, "has the name of a token group"),
        ({"mine": "elephant"}, "'elephant' is not in the prompt"),
        ({"mine": [999]}, "token 999"),
    ],
)
def test_spans_that_are_not_there_are_refused(vlm, spans, message):
    with pytest.raises(DataError, match=message):
        vlm.token_groups(question(), spans)
