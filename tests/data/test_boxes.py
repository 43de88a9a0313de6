import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data.article import with_article
from scale_interp.data.boxes.detection import read_boxes
from scale_interp.data.boxes.questions import KINDS, box_questions, place_questions, pope_questions, relation_questions
from scale_interp.errors import DataError, DataWarning
from tests.support import SAMPLES

SAMPLE = SAMPLES / "photos_with_boxes/instances.json"
needs_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason=f"no photographs with boxes at {SAMPLE}: set SCALE_INTERP_DATA")
CLASSES = ("apple", "bus", "cat", "dog", "umbrella", "zebra", "owl", "kite")


def write(folder, pictures, classes=CLASSES, crowds=(), size=(100, 80)):
    """A COCO JSON of pictures {name: [(class, x, y, w, h), ...]}; crowds: (name, class)."""
    (folder / "images").mkdir(exist_ok=True)
    ids = {name: i + 1 for i, name in enumerate(pictures)}
    for name in pictures:
        image = Image.new("RGB", size)
        image.putdata([(c, c, c) for c in name.encode()])  # copies would be one image
        image.save(folder / "images" / name)
    boxes = [(ids[name], c, list(box), 0) for name, things in pictures.items() for c, *box in things]
    boxes += [(ids[name], c, [0, 0, 50, 50], 1) for name, c in crowds]
    content = {
        "images": [{"id": i, "file_name": name, "width": size[0], "height": size[1]} for name, i in ids.items()],
        "categories": [{"id": 10 + i, "name": c} for i, c in enumerate(classes)],
        "annotations": [
            {"id": 100 + i, "image_id": image, "category_id": 10 + classes.index(c), "bbox": box, "iscrowd": crowd}
            for i, (image, c, box, crowd) in enumerate(boxes)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def at(*names):
    return [(name, 5 * i, 0, 4, 4) for i, name in enumerate(names)]


@pytest.fixture
def many(tmp_path):
    """Forty pictures of one to five of eight classes, the earlier classes more often."""
    rng = np.random.default_rng(0)
    share = np.linspace(8, 1, 8) / np.linspace(8, 1, 8).sum()
    pictures = {f"{i:03d}.png": at(*rng.choice(CLASSES, rng.integers(1, 6), replace=False, p=share)) for i in range(40)}
    return write(tmp_path, pictures)


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        yield


def shown(path):
    """file name -> classes, straight from the JSON."""
    content = json.loads(Path(path).read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    out = {file: set() for file in files.values()}
    for a in content["annotations"]:
        out[files[a["image_id"]]].add(names[a["category_id"]])
    return out


def test_boxes_are_read_in_corners_and_crowds_counted(tmp_path):
    path = write(tmp_path, {"a.png": [("cat", 10, 20, 30, 40), ("cat", 0, 0, 60, 60), ("dog", 1, 2, 3, 4)]}, crowds=[("a.png", "dog")])
    boxes = read_boxes(path)
    (photo,) = boxes.photos
    assert photo.boxes == {"cat": (0, 0, 60, 60), "cat 2": (10, 20, 40, 60), "dog": (1, 2, 4, 6)}
    assert boxes.crowds == 1 and photo.crowds == {"dog"} and photo.alone == ()
    assert (photo.file, photo.width, photo.height) == (tmp_path / "images/a.png", 100, 80) and boxes.classes == CLASSES
    assert repr(boxes) == f"<3 boxes of 8 classes in 1 photographs of {path}>"


def test_pictures_lie_in_images_beside_the_file_or_where_told(tmp_path):
    path = write(tmp_path, {"a.png": at("cat")})
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert read_boxes(path, tmp_path / "elsewhere").photos[0].file == tmp_path / "elsewhere/a.png"
    assert read_boxes(path).photos[0].file == tmp_path / "a.png"
    with pytest.warns(DataWarning, match=r"1 of 1 images .* missing, .*a\.png first"):
        place_questions(read_boxes(write(tmp_path, {"a.png": [("cat", 2, 35, 10, 10)]}), tmp_path / "elsewhere" / ".."))


def test_coco_pictures_meet_those_of_other_sets(tmp_path):
    names = ["COCO_val2014_000000310196.jpg", "000000000007.jpg", "7.jpg", "train/7.jpg"]
    (tmp_path / "images/train").mkdir(parents=True)
    boxes = read_boxes(write(tmp_path, {name: at("cat") for name in names}))
    assert [p.group for p in boxes.photos][:2] == ["coco/000000310196", "coco/000000000007"]
    assert [p.group for p in boxes.photos][2:] == [f"{tmp_path.name}/7", f"{tmp_path.name}/train/7"]


def test_a_rounding_pixel_over_the_edge_is_cut(tmp_path):
    path = write(tmp_path, {"a.png": [("cat", -1, -0.5, 102, 81.5)]})
    assert read_boxes(path).photos[0].boxes == {"cat": (0, 0, 100, 80)}


def changed(field, value, part="annotations", i=0):
    def change(content):
        content[part][i][field] = value

    return change


def doubled(part):
    def change(content):
        content[part].append(content[part][0] | {"name": "other", "file_name": "other.png"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("image_id", 77), "annotation 100 of .*image_id 77 is no id"),
        (changed("image_id", [1]), "image_id"),
        (changed("category_id", 77), "annotation 100 of .*category_id 77 is no id"),
        (changed("bbox", [0, 0, 0, 5]), "no size"),
        (changed("bbox", [0, 0, 5, -5]), "no size"),
        (changed("bbox", [-3, 0, 5, 5]), "outside its image of 100 x 80"),
        (changed("bbox", [90, 0, 12, 5]), "outside"),
        (changed("bbox", [0, 75, 5, 7]), "outside"),
        (changed("bbox", [100, 0, 1, 5]), "outside"),
        (changed("bbox", [0, 0, 5]), "no \\[x, y, width, height\\]"),
        (changed("bbox", [0, 0, 5, "5"]), "no \\[x, y"),
        (changed("bbox", [0, 0, 5, float("nan")]), "NaN is not a number"),
        (changed("bbox", None), "no \\[x, y"),
        (doubled("images"), "image id 1 is there 2 times"),
        (doubled("annotations"), "annotation id 100 is there 2 times"),
        (doubled("categories"), "category id 10 is there 2 times"),
        (lambda c: c["images"].append({"id": 9, "file_name": "a.jpg", "width": 5, "height": 5}), "image name 'a' is there 2 times"),
        (lambda c: c["categories"].append({"id": 9, "name": "cat"}), "category name 'cat' is there 2 times"),
        (changed("id", None), "id is None"),
        (changed("name", " ", "categories"), "'name' is ' '"),
        (changed("width", "100", "images"), "width '100'"),
        (changed("height", 0, "images"), "height 0"),
        (changed("file_name", "../../etc/passwd", "images"), "leads out of the image folder"),
        (changed("file_name", "/etc/passwd", "images"), "leads out of the image folder"),
        (changed("file_name", 5, "images"), "'file_name' is 5"),
        (lambda c: c.pop("annotations"), 'no list "annotations"'),
        (lambda c: c.update(images={}), 'no list "images"'),
        (lambda c: c["images"].insert(0, "a.png"), "not a JSON object"),
        (lambda c: c.update(images=[], annotations=[]), "lists no images"),
    ],
)
def test_wrong_boxes_are_refused_by_name(tmp_path, change, message):
    path = write(tmp_path, {"a.png": at("cat", "dog")})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_boxes(path)


def test_wrong_files_are_refused_by_name(tmp_path):
    path = write(tmp_path, {"a.png": at("cat")})
    for wrong, message in ((b'{"images": [],\n "x": }', "line 2: no JSON"), (b"[1]", 'no list "images"'), (b'"\xff"', "no JSON in UTF-8")):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=message):
            read_boxes(path)
    with pytest.raises(DataError, match="no file"):
        read_boxes(tmp_path / "none.json")
    with pytest.raises(DataError, match="is no folder"):
        read_boxes(path, tmp_path / "none")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = write(tmp_path, {"a.png": at("cat")})
    (tmp_path / "images/a.png").rename(tmp_path / "secret.png")
    (tmp_path / "images/a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leads out"):
        read_boxes(path)


@pytest.mark.parametrize("kind", KINDS)
def test_pope_is_balanced_in_every_picture_and_true(many, kind):
    boxes, truth = read_boxes(many), shown(many)
    with pytest.warns(DataWarning):
        questions = pope_questions(boxes, kind)
    for photo in boxes.photos:
        mine = [q for q in questions if q.picture == photo.file]
        answers = Counter(q.answer_text for q in mine)
        there = truth[photo.file.name]
        assert answers == {"yes": min(3, len(there)), "no": min(3, len(there))}
        assert len({q.about for q in mine}) == len(mine)
        for q in mine:
            (name,) = q.about
            assert (name in there) == (q.answer_text == "yes") == (name in q.boxes)
            assert f"Is there {with_article(name)} in the picture?" in q.text and q.choices == ("yes", "no")
            assert (q.meta["kind"], q.task, q.group) == (kind, f"boxes/pope/{kind}", photo.group)
    assert len({q.id for q in questions}) == len(questions)


@pytest.mark.parametrize("kind", ["popular", "adversarial"])
def test_absent_things_are_the_commonest_by_a_plain_count(many, kind):
    boxes, truth = read_boxes(many), shown(many)
    with pytest.warns(DataWarning):
        questions = pope_questions(boxes, kind)

    def count(name, there):
        return sum(name in other for other in truth.values()), sum(name in other for s in there for other in truth.values() if s in other)

    for photo in boxes.photos:
        there = truth[photo.file.name]
        asked = [q.about[0] for q in questions if q.picture == photo.file and q.answer_text == "no"]
        left_out = [c for c in CLASSES if c not in there and c not in asked]
        key = (lambda c, t=there: count(c, t)) if kind == "popular" else (lambda c, t=there: count(c, t)[::-1])
        key = (lambda c, t=there: count(c, t)[0]) if kind == "popular" else key
        assert min(map(key, asked)) >= max(map(key, left_out), default=min(map(key, asked)))


def test_known_popularity_and_company(tmp_path):
    """Apple is the commonest; whoever meets a cat meets an owl."""
    pictures = {f"{i}.png": at("apple") for i in range(4)}
    pictures |= {f"co{i}.png": at("cat", "owl") for i in range(2)} | {"z.png": at("cat")}
    boxes = read_boxes(write(tmp_path, pictures))

    def absent(kind):
        return [q.about[0] for q in pope_questions(boxes, kind, per_image=2) if q.picture.name == "z.png" and q.answer_text == "no"]

    assert absent("popular") == ["apple"] and absent("adversarial") == ["owl"]


def test_a_crowd_is_in_the_picture_but_has_no_box(tmp_path):
    classes = ("cat", "dog", "owl")
    boxes = read_boxes(write(tmp_path, {"a.png": [("cat", 2, 30, 10, 10)]}, classes, crowds=[("a.png", "dog")]))
    for kind in KINDS:
        assert {q.about[0]: q.answer_text for q in pope_questions(boxes, kind, per_image=2)} == {"cat": "yes", "owl": "no"}
    crowded = read_boxes(write(tmp_path, {"a.png": [("cat", 2, 30, 10, 10)]}, classes, crowds=[("a.png", "cat")]))
    with pytest.raises(DataError, match=r"not the only one of its class \(1\)"):
        place_questions(crowded)


def test_pope_says_when_classes_are_too_few(tmp_path):
    boxes = read_boxes(write(tmp_path, {"a.png": at("cat"), "b.png": at("cat", "dog", "owl"), "c.png": []}))
    with pytest.warns(DataWarning, match="2 of 3 images show or lack fewer than 3 classes: 8 questions instead of 18"):
        assert len(pope_questions(boxes)) == 8
    assert len(pope_questions(boxes, n=4)) == 4
    with pytest.warns(DataWarning, match="instead of 100"):
        pope_questions(boxes, n=100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_balanced_repeatable_and_part_of_the_whole(many, kind):
    boxes = read_boxes(many)
    with pytest.warns(DataWarning):
        whole = {q.id: q for q in pope_questions(boxes, kind, seed=5)}
    for n in (2, 30):
        some = pope_questions(boxes, kind, n=n, seed=5)
        assert Counter(q.answer_text for q in some) == {"yes": n // 2, "no": n // 2}
        assert all(whole[q.id] == q for q in some)
        assert [q.id for q in some] == [q.id for q in pope_questions(boxes, kind, n=n, seed=5)]
    assert [q.id for q in some] != [q.id for q in pope_questions(boxes, kind, n=n, seed=6)]


@pytest.mark.parametrize(
    ("box", "answer"),
    [
        ((5, 30, 20, 20), "left"),
        ((75, 30, 20, 20), "right"),
        ((40, 2, 20, 20), "top"),
        ((40, 58, 20, 20), "bottom"),
        ((2, 2, 20, 16), "lies in a corner"),
        ((5, 8, 20, 20), "lies in a corner"),
        ((0, 0, 40, 80), "fills more than 25% of the image"),
        ((20, 30, 31, 20), "reaches over the middle"),
        ((45, 35, 10, 10), "reaches over the middle"),
        ((36, 30, 12, 20), "lies near the middle"),
        ((20, 0, 20, 45), "lies towards a corner"),
        ((5, 38, 5, 5), "fills less than 0.5% of the image"),
        ((0, 20, 9, 40), "is cut off by the image's edge"),
        ((0, 20, 10, 40), "left"),
        ((30, 73, 40, 7), "is cut off by the image's edge"),
        ((40, 45, 20, 34), "bottom"),
    ],
)
def test_places_of_known_boxes(tmp_path, box, answer):
    boxes = read_boxes(write(tmp_path, {"a.png": [("cat", *box)]}))
    if answer not in ("left", "right", "top", "bottom"):
        with pytest.raises(DataError, match=f"{answer} \\(1\\)"):
            place_questions(boxes)
        return
    (question,) = place_questions(boxes)
    assert question.answer_text == question.relation == answer and sorted(question.choices) == ["bottom", "left", "right", "top"]
    assert question.about == ("cat",) and "the cat" in question.text and question.boxes["cat"][:2] == box[:2]
    assert question.image.size == (100, 80) and all(c in question.text for c in question.choices)


@pytest.mark.parametrize(
    ("cat", "dog", "relation"),
    [
        ((5, 30, 20, 20), (60, 32, 20, 20), "left"),
        ((60, 32, 20, 20), (5, 30, 20, 20), "right"),
        ((40, 5, 20, 20), (42, 55, 20, 20), "above"),
        ((40, 55, 20, 20), (42, 5, 20, 20), "below"),
        ((5, 5, 20, 20), (60, 50, 20, 20), "neither beside nor above"),
        ((5, 30, 40, 20), (37, 30, 40, 20), "left"),
        ((5, 30, 40, 20), (36, 30, 40, 20), "overlap"),
        ((5, 30, 20, 20), (60, 32, 5, 5), "one of them fills less than"),
        ((0, 30, 5, 20), (60, 32, 20, 20), "one of them is cut off"),
        ((5, 5, 80, 70), (35, 35, 10, 10), "overlap|neither"),
    ],
)
def test_relations_of_known_boxes(tmp_path, cat, dog, relation):
    boxes = read_boxes(write(tmp_path, {"a.png": [("cat", *cat), ("dog", *dog)]}))
    if relation not in ("left", "right", "above", "below"):
        with pytest.raises(DataError, match=relation):
            relation_questions(boxes)
        return
    (question,) = relation_questions(boxes)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    expected = relation if question.about == ("cat", "dog") else opposite[relation]
    assert question.answer_text == question.relation == expected and sorted(question.choices) == ["above", "below", "left", "right"]
    assert question.text.index(question.about[0]) < question.text.index(question.about[1]) and set(question.boxes) == {"cat", "dog"}


def test_one_of_two_cats_is_not_the_cat(tmp_path):
    boxes = read_boxes(write(tmp_path, {"a.png": [("cat", 2, 30, 10, 10), ("cat", 80, 30, 10, 10), ("dog", 45, 2, 10, 10)]}))
    (question,) = place_questions(boxes)
    assert question.about == ("dog",) and place_questions(boxes).skipped == {"not the only one of its class": 2}
    with pytest.raises(DataError, match=r"not the only ones of their classes \(1\)"):
        relation_questions(boxes)


def scattered(folder, n=150):
    rng = np.random.default_rng(1)

    def box():
        return int(rng.integers(0, 85)), int(rng.integers(0, 65)), 15, 15

    return write(folder, {f"{i}.png": [(c, *box()) for c in rng.choice(CLASSES, 3, replace=False)] for i in range(n)})


@pytest.mark.parametrize("ask", ["place", "relation"])
def test_options_and_subjects_are_shuffled(tmp_path, ask):
    questions = box_questions(scattered(tmp_path), ask)
    assert len(questions) > 60 and questions.skipped
    positions = Counter(q.answer for q in questions)
    assert min(positions.values()) > 0.15 * len(questions)
    if ask == "relation":
        first = sum(q.about[0] < q.about[1] for q in questions)
        assert 0.35 < first / len(questions) < 0.65


def test_a_question_hangs_on_its_own_picture_alone(tmp_path):
    path = scattered(tmp_path, 40)
    whole = {q.id: q for q in box_questions(path, "relation", seed=3)}
    content = json.loads(path.read_text())
    content["images"] = content["images"][::-2]
    kept = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept][::-1]
    path.write_text(json.dumps(content))
    fewer = box_questions(path, "relation", seed=3)
    assert len(fewer) > 5 and all(whole[q.id] == q for q in fewer)


@pytest.mark.parametrize("ask", ["pope", "place", "relation"])
@pytest.mark.filterwarnings("ignore::scale_interp.errors.DataWarning")
def test_splits_share_no_picture(tmp_path, ask):
    path = scattered(tmp_path, 60)
    parts = [box_questions(path, ask, split=split) for split in ("train", "validation", "test")]
    groups = [{q.group for q in part} for part in parts]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert {q.id for part in parts for q in part} == {q.id for q in box_questions(path, ask)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: box_questions(p, "shape"), "ask='shape'"),
        (lambda p: box_questions(p, kind="common"), "kind 'common'"),
        (lambda p: box_questions(p, split="dev"), "unknown split 'dev'"),
        (lambda p: box_questions(p, n=3), "n=3: yes and no come in pairs"),
        (lambda p: box_questions(p, n=0), "n=0"),
        (lambda p: box_questions(p, "place", n=0), "n=0"),
        (lambda p: pope_questions(read_boxes(p), per_image=5), "per_image=5"),
        (lambda p: box_questions(p, split="validation"), "no image of this split"),
        (lambda p: box_questions(p, "relation", split="validation"), "no image of this split"),
    ],
)
@pytest.mark.filterwarnings("ignore::scale_interp.errors.DataWarning")
def test_wrong_requests_are_refused(tmp_path, call, message):
    path = write(tmp_path, {"000000000001.jpg": at("cat", "dog")})
    with pytest.raises(DataError, match=message):
        call(path)


def test_articles():
    names = ("apple", "hour", "honest dog", "umbrella", "unicorn", "uniform", "unimportant dog", "used car", "euro", "one-way sign", "ox")
    assert [with_article(n).split()[0] for n in names] == ["an", "an", "an", "an", "a", "a", "an", "a", "a", "a", "an"]


def test_box_questions_can_be_mirrored(tmp_path):
    questions = box_questions(scattered(tmp_path, 40), "relation")
    pairs = si.contrasts(questions)
    assert {p.clean.answer_text for p in pairs} == {"left", "right"}
    for pair in pairs:
        left = pair.corrupt.boxes[pair.corrupt.about[0]][0] < pair.corrupt.boxes[pair.corrupt.about[1]][0]
        assert left == (pair.corrupt.answer_text == "left")
    assert len(pairs) + len(pairs.skipped) == len(questions)


@needs_sample
def test_the_genuine_photographs_give_questions_of_every_form():
    boxes, truth = read_boxes(SAMPLE), shown(SAMPLE)
    assert len(boxes.photos) == 60 and sum(len(p.instances) for p in boxes.photos) == 152 and len(boxes.classes) == 20
    for kind in KINDS:
        with pytest.warns(DataWarning, match="fewer than 3 classes"):
            questions = pope_questions(boxes, kind)
        assert Counter(q.answer_text for q in questions) == {"yes": len(questions) // 2, "no": len(questions) // 2}
        assert all((q.about[0] in truth[q.picture.name]) == (q.answer_text == "yes") for q in questions)
    places, relations = place_questions(boxes), relation_questions(boxes)
    assert len(places) >= 5 and len(relations) >= 2
    for question in (*places, *relations):
        assert question.image.size == tuple(question.meta["size"])
