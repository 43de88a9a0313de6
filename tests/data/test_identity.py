"""One image is one image, whatever its files are called: splits, leaks, groups of intervals."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scale_interp as si
from scale_interp.data import identity
from scale_interp.data.identity import PIXELS, Families, count_images, image_names
from scale_interp.data.items import groups, require_disjoint
from scale_interp.data.splits import split_of
from scale_interp.errors import LeakError

FIELD = Path(__file__).parent / "field"
SPLITS = ("train", "validation", "test")


def picture(kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, kind)
    return buffer.getvalue()


def noise(seed, size=(12, 9)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def asked(image, name, **fields):
    return si.Question("Where is it?", ("left", "right"), 0, image=image, id=name, **fields)


def lines(folder, images, **fields):
    records = [{"image": name, "question": "Where?", "choices": ["a", "b"], "answer": "a"} | fields for name in images]
    (folder / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"jsonl:{folder}/own.jsonl"


def sizes(name, seed=0):
    """How many questions are in each split that is not empty."""
    found = []
    for split in SPLITS:
        with contextlib.suppress(si.errors.DataError):
            found.append(len(si.load_questions(name, split, seed=seed)))
    return found


def copies(folder, photographs=60):
    """Photographs, each as a PNG, as a BMP and as a turned TIFF, with names that share nothing."""
    names = []
    for i in range(photographs):
        image = noise(i)
        exif = Image.Exif()
        exif[0x0112] = 3
        for name, shown, options in (
            (f"{i}.png", image, {}),
            (f"copy of {(7 * i) % photographs}x.bmp", image, {}),
            (f"z{photographs - i}.png", image.transpose(Image.Transpose.ROTATE_180), {"exif": exif}),
        ):
            shown.save(folder / name, **options)
            names.append(name)
    return names


# Splits.


def test_field_twins():
    name = f"jsonl:{FIELD}/twins.jsonl"
    for seed in range(12):
        assert sizes(name, seed) == [2]
    both = si.load_questions(name)
    assert len(set(groups(both))) == 1
    with pytest.raises(LeakError, match=r"twin_a\.png.*twin_b\.png"):
        require_disjoint(both[:1], both[1:])


@pytest.mark.parametrize("seed", [0, 1])
def test_copies_under_other_names_and_formats_are_in_one_split(tmp_path, seed):
    name = lines(tmp_path, copies(tmp_path))
    parts = {split: si.load_questions(name, split, seed=seed) for split in SPLITS}
    assert sum(map(len, parts.values())) == 180 and all(len(part) % 3 == 0 for part in parts.values())
    shown = {split: {q.image.tobytes() for q in part} for split, part in parts.items()}
    assert sum(map(len, shown.values())) == 60 and len(set.union(*shown.values())) == 60
    require_disjoint(parts["train"], [*parts["validation"], *parts["test"]])


def test_images_without_copies_stay_in_the_split_of_their_name(tmp_path):
    for i in range(30):
        noise(i).save(tmp_path / f"{i}.png")
    name = lines(tmp_path, [f"{i}.png" for i in range(30)])
    assert {q.group for q in si.load_questions(name, "test")} == {
        g for g in (f"jsonl/{i}.png" for i in range(30)) if split_of(g, 0) == "test"
    }


def test_a_data_uri_and_a_file_of_the_same_pixels_are_one_image(tmp_path):
    import base64

    for seed in range(8):
        noise(5).save(tmp_path / "a.png")
        buffer = io.BytesIO()
        noise(5).save(buffer, "BMP")
        name = lines(tmp_path, ["a.png", f"data:image/bmp;base64,{base64.b64encode(buffer.getvalue()).decode()}"])
        assert sizes(name, seed) == [2]


def test_groups_that_the_user_gives_rule_splits_without_opening_an_image(tmp_path, monkeypatch):
    noise(0).save(tmp_path / "a.png")
    name = lines(tmp_path, ["a.png"] * 3, group="mine")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    si.load_questions(name, split_of("mine", 0))


def test_a_file_is_opened_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    noise(0).save(tmp_path / "a.png")
    opened, decode = [], identity.decode
    monkeypatch.setattr(identity, "decode", lambda *args: opened.append(args[0]) or decode(*args))
    first = [asked(tmp_path / "a.png", str(i)).pixel_keys for i in range(3)]
    assert len(set(first)) == 1 and len(opened) == 1
    noise(1).save(tmp_path / "a.bmp")
    shutil.move(tmp_path / "a.bmp", tmp_path / "a.png")
    assert asked(tmp_path / "a.png", "new").pixel_keys != first[0] and len(opened) == 2


def test_whatsup_pairs_that_share_an_image_are_in_one_split(tmp_path):
    said = ["A {} on a {}", "A {} under a {}", "A {} to the left of a {}", "A {} to the right of a {}"]
    folder = tmp_path / "whatsup/controlled_images"
    folder.mkdir(parents=True)
    pairs = [(f"mug{i}", f"table{i}") for i in range(20)]
    records = []
    for i, pair in enumerate(pairs):
        for word, seed in (("on", i), ("under", 100 + i // 2)):  # every two pairs share one photograph
            noise(seed).save(folder / f"{pair[0]}_{word}_{pair[1]}.png")
            first = said[0 if word == "on" else 1]
            captions = [first, *(s for s in said if s != first)]
            records.append(
                {
                    "image_path": f"data/controlled_images/{pair[0]}_{word}_{pair[1]}.png",
                    "caption_options": [s.format(*pair) for s in captions],
                }
            )
    (tmp_path / "whatsup/controlled_images_dataset.json").write_text(json.dumps(records))
    parts = {split: si.load_questions("whatsup/controlled_a", split, root=tmp_path) for split in ("train", "test")}
    assert all(len(part) % 4 == 0 for part in parts.values()) and min(map(len, parts.values())) > 0
    require_disjoint(parts["train"], parts["test"])


def test_photographs_with_boxes_under_two_names_are_in_one_split(tmp_path):
    images, annotations = [], []
    for i in range(24):
        noise(i // 2, (100, 80)).save(tmp_path / f"{(i * 7) % 24}.png")
        images.append({"id": i, "file_name": f"{(i * 7) % 24}.png", "width": 100, "height": 80})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [2, 30, 20, 20]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    parts = [si.load_questions(f"boxes/place:{tmp_path}/boxes.json", split) for split in ("train", "test")]
    assert all(len(part) and len(part) % 2 == 0 for part in parts)
    require_disjoint(*parts)


def test_mirrored_boxes_go_by_the_image_and_not_by_what_a_line_calls_size(tmp_path):
    noise(0, (20, 10)).save(tmp_path / "a.png")
    boxes = {"cup": [2, 1, 6, 5], "dog": [10, 1, 14, 5]}
    about = {"about": ["cup", "dog"], "relation": "left", "boxes": boxes, "size": [500, 400]}
    name = lines(tmp_path, ["a.png"], question="Where is the cup relative to the dog?", choices=["left", "right"], answer="left", **about)
    (pair,) = si.contrasts(si.load_questions(name, template="{question}"))
    assert pair.corrupt.boxes == {"cup": (14, 1, 18, 5), "dog": (6, 1, 10, 5)}


# Leaks.


@pytest.mark.parametrize("way", ["another file", "PIL and file", "function and file", "another format", "turned by EXIF", "hub bytes"])
def test_a_copy_is_a_leak(tmp_path, way):
    image = noise(3)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    exif = Image.Exif()
    exif[0x0112] = 3
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "c.png", exif=exif)
    shutil.copy(tmp_path / "a.png", tmp_path / "d.png")
    copy = {
        "another file": tmp_path / "d.png",
        "PIL and file": image,
        "function and file": lambda: Image.open(tmp_path / "b.bmp"),
        "another format": tmp_path / "b.bmp",
        "turned by EXIF": tmp_path / "c.png",
        "hub bytes": {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
    }[way]
    train, test = [asked(tmp_path / "a.png", "a"), asked(noise(4), "x")], [asked(noise(5), "y"), asked(copy, "b")]
    with pytest.raises(LeakError, match="'a' and 'b' show the same pixels"):
        require_disjoint(train, test)
    with pytest.raises(LeakError, match="'b' show the same pixels"):
        require_disjoint(image_names(train), test)
    require_disjoint(train, test[:1])
    require_disjoint(image_names(train), test[:1])


def test_images_that_differ_in_one_pixel_or_in_shape_are_two():
    a, b = noise(0), noise(0)
    b.putpixel((0, 0), (1, 2, 3))
    require_disjoint([asked(a, "a")], [asked(b, "b")])
    flat = Image.new("RGB", (2, 6), "red"), Image.new("RGB", (6, 2), "red")
    require_disjoint([asked(flat[0], "a")], [asked(flat[1], "b")])


def test_a_missing_image_is_compared_by_name(tmp_path):
    require_disjoint([asked(tmp_path / "a.png", "a")], [asked(tmp_path / "b.png", "b")])
    with pytest.raises(LeakError, match="1 image"):
        require_disjoint([asked(tmp_path / "a.png", "a", group="g")], [asked(tmp_path / "b.png", "b", group="g")])


def test_several_images_count_together_and_alone_where_one_is_alone():
    a, b, c = noise(0), noise(1), noise(2)
    require_disjoint([asked([a, b], "p")], [asked([a, c], "q")])
    for train, test in (([a, b], [b, a]), ([a, b], [b]), ([a], [c, a])):
        with pytest.raises(LeakError, match="'p' and 'q'"):
            require_disjoint([asked(train, "p")], [asked(test, "q")])
    assert len(set(groups([asked([a, b], "p"), asked([a, c], "q")]))) == 2
    assert len(set(groups([asked([a, b], "p"), asked([a, c], "q"), asked(a, "r")]))) == 1


def test_falsify_and_compare_refuse_a_copy(vlm, tmp_path):
    train, test = si.load_questions("scenes/relation", "train", n=6), si.load_questions("scenes/relation", n=6)
    train[0].image.save(tmp_path / "a.png")
    leaking = [*test, replace(train[0], image_sources=(tmp_path / "a.png",), id="copy", group="copy")]
    saved = [replace(train[0], image_sources=(train[0].image,), id="kept", group="kept"), *train[1:]]
    with pytest.raises(LeakError, match="'kept' and 'copy' show the same pixels"):
        si.falsify(vlm, saved, leaking, heads=[(0, 0)], seeds=1)


# Groups.


def test_groups_merge_copies_and_keep_their_numbers():
    questions = [asked(noise(0), "c"), asked(noise(1), "b"), asked(noise(0), "a"), asked(noise(2), "d", group="b")]
    assert groups(questions).tolist() == [0, 1, 0, 1]
    assert (
        groups(si.load_questions("scenes/relation", n=20)).tolist()
        == np.unique([q.group for q in si.load_questions("scenes/relation", n=20)], return_inverse=True)[1].tolist()
    )


def test_an_interval_counts_a_copied_image_once(vlm):
    one = si.load_questions("scenes/relation", n=4)
    again = [replace(q, id=f"{q.id}/{i}", group=f"{q.id}/{i}", image_sources=(q.image,)) for q in one for i in range(5)]
    assert len(set(si.evaluate(vlm, again).groups)) == 4


def test_contrasts_and_decomposed_questions_are_compared_too(tmp_path):
    photo = noise(0)
    fields = {"about": ("cat", "dog"), "relation": "left"}
    pairs = si.contrasts([si.Question("Where is the cat relative to the dog?", ("left", "right"), 0, image=photo, id="p", **fields)])
    with pytest.raises(LeakError, match="'p' and 'q'"):
        require_disjoint(pairs, [asked(noise(0), "q")])


def test_scenes_are_not_drawn_to_be_told_apart(monkeypatch):
    train, test = si.load_questions("scenes/relation", "train", n=30), si.load_questions("scenes/relation", n=30)
    monkeypatch.setattr(type(train[0].meta["scene"]), "pixels", lambda self: pytest.fail("a scene was drawn"))
    require_disjoint(train, test)
    groups([*train, *test])
    with pytest.raises(LeakError, match="show the same pixels"):
        require_disjoint(train, [replace(train[0], id="again", group="again")])
    assert image_names(train) == tuple(sorted({q.group for q in train}))


def test_families_and_names():
    families = Families()
    for name, key in (("c", 1), ("b", 2), ("a", 2), ("b", 1), ("d", 3)):
        families.add(name, key)
    assert [families.of(name) for name in "abcde"] == ["a", "a", "a", "d", "e"]
    names = image_names([asked(noise(0), "a"), asked(noise(0), "b")])
    assert names[:2] == ("a", "b") and len(names) == 3 and names[2].startswith(PIXELS) and count_images(names) == 2


def test_a_damaged_image_is_split_by_its_name(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "a.png").write_bytes(picture())
    name = lines(tmp_path, ["broken.png", "a.png"])
    assert sum(sizes(name)) == 2
