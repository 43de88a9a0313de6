"""What a person sees is what the model is shown: every way in, every orientation, depth and kind of transparency."""

import base64
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

import scale_interp as si
from scale_interp.data.decoding import TURNS, decode, open_size
from scale_interp.errors import DataError, DataWarning

FIELD = Path(__file__).parent / "field"
SCENE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8))


def asked(image, **fields):
    return si.Question("Where is the red disc?", ("left", "right"), 0, image=image, id="q", **fields)


def pixels(image):
    return np.asarray(image).astype(int)


def written(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation):
    """The scene as a camera stores it that was held so: what undoes the turn makes it upright again."""
    undo = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
    turn = TURNS.get(orientation)
    return SCENE if turn is None else SCENE.transpose(undo.get(turn, turn))


def tagged(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return written(turned(orientation), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


def in_every_way(content, folder, name="a.png"):
    """The same file's bytes by every way that an image comes in."""
    path = folder / name
    path.write_bytes(content)
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    (folder / "one.jsonl").write_text(
        "".join(json.dumps({"image": i, "question": "?", "choices": ["a", "b"], "answer": "a"}) + "\n" for i in (name, uri))
    )
    from_lines = si.load_questions(f"jsonl:{folder}/one.jsonl")
    opened = Image.open(io.BytesIO(content))
    return {
        "path": asked(path),
        "text": asked(str(path)),
        "PIL": asked(opened),
        "function": asked(lambda: Image.open(path)),
        "hub bytes": asked({"bytes": content, "path": None}),
        "hub path": asked({"bytes": None, "path": str(path)}),
        "data URI": asked(uri),
        "JSON line": from_lines[0],
        "data URI in a JSON line": from_lines[1],
    }


# The files that people bring.


def test_field_upside_down():
    seen, upright = (pixels(asked(FIELD / name).image) for name in ("upside_down.jpg", "upright.jpg"))
    assert np.abs(seen - upright).mean() < 3
    red = (seen[..., 0] > 150) & (seen[..., 1] < 100)
    assert red.nonzero()[1].mean() < seen.shape[1] / 2


def test_field_transparent():
    seen = pixels(asked(FIELD / "transparent.png").image)
    assert (seen == 255).all(-1).mean() > 0.5 and (seen == 0).all(-1).any()


def test_field_depth16():
    seen = pixels(asked(FIELD / "depth16.png").image)
    stored = np.asarray(Image.open(FIELD / "depth16.png")).astype(int)
    assert np.abs(seen[..., 0] - stored / 257).max() <= 0.5001 and (seen.min(), seen.max()) == (0, 255)
    assert len(np.unique(seen)) == len(np.unique(stored)) == 96, "every shade of the file's 96 columns"


# Orientation.


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(tmp_path, orientation, form):
    content = tagged(orientation, form)
    for way, question in in_every_way(content, tmp_path).items():
        assert np.array_equal(pixels(question.image), pixels(SCENE)), way
    assert open_size(tmp_path / "a.png", "q") == SCENE.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_jpeg(tmp_path, orientation):
    large = SCENE.resize((90, 60))
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    stored = large if orientation == 1 else large.transpose(TURNS[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    stored.save(path, quality=100, subsampling=0, exif=exif)
    assert np.abs(pixels(asked(path).image) - pixels(large)).mean() < 3 and open_size(path, "q") == (90, 60)


def test_an_image_that_the_user_made_upright_is_not_turned_again():
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(tagged(6, "PNG"))))
    assert np.array_equal(pixels(asked(opened).image), pixels(SCENE))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Image.open(io.BytesIO(written(SCENE, exif=exif)))
    assert np.array_equal(pixels(asked(opened).image), pixels(SCENE))


def test_exif_that_cannot_be_read_is_said():
    content = written(SCENE, exif=b"Exif\0\0" + b"\xff" * 20)
    with pytest.warns(DataWarning, match="question q: the EXIF data of .* cannot be read"):
        assert np.array_equal(pixels(asked({"bytes": content, "path": None}).image), pixels(SCENE))


# Transparency: on white.


def half(mode):
    """Left: black, wholly transparent. Right: black, opaque."""
    alpha = Image.fromarray(np.array([[0, 255]], np.uint8))
    grey = Image.new("L", (2, 1), 0)
    return Image.merge("LA", (grey, alpha)) if mode == "LA" else Image.merge("RGBA", (grey, grey, grey, alpha))


def palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putdata([0, 1])
    return written(image, transparency=0)


@pytest.mark.parametrize(
    "content",
    [
        written(half("LA")),
        written(half("RGBA")),
        written(half("RGBA"), "WEBP", lossless=True, exact=True),
        palette_with_transparency(),
        written(Image.fromarray(np.array([[7, 0]], np.uint8)), transparency=7),
        written(Image.fromarray(np.array([[[9, 9, 9], [0, 0, 0]]], np.uint8)), transparency=(9, 9, 9)),
    ],
    ids=["LA", "RGBA", "WebP", "palette", "grey with a clear value", "RGB with a clear colour"],
)
def test_what_is_transparent_is_white(tmp_path, content):
    for way, question in in_every_way(content, tmp_path).items():
        assert pixels(question.image).tolist() == [[[255] * 3, [0] * 3]], way


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_premultiplied_and_palette_alpha_in_memory(mode):
    image = half("LA").convert("La") if mode == "La" else half("RGBA").convert("RGBa")
    if mode == "PA":
        image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P").convert("PA")
        image.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
        assert pixels(asked(image).image).tolist() == [[[255] * 3, [255] * 3]]
    else:
        assert pixels(asked(image).image).tolist() == [[[255] * 3, [0] * 3]]


def test_half_transparent_red_is_pink_and_opaque_is_exact():
    assert abs(pixels(asked(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).image)[0, 0] - [255, 127, 127]).max() <= 1
    opaque = SCENE.convert("RGBA")
    assert np.array_equal(pixels(asked(opaque).image), pixels(SCENE))


# Depth and colour.


RAMP = np.linspace(0, 65535, 300).astype(np.uint16)[None]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_shades(tmp_path, form):
    content = written(Image.fromarray(RAMP), form)
    for way, question in in_every_way(content, tmp_path).items():
        seen = pixels(question.image)[0, :, 0]
        assert np.abs(seen - RAMP[0] / 257).max() <= 0.5001, way
        assert (seen[0], seen[-1]) == (0, 255)


def test_sixteen_bits_of_either_byte_order_in_memory():
    little = Image.fromarray(RAMP)
    big = Image.frombytes("I;16B", little.size, RAMP.astype(">u2").tobytes())
    assert np.array_equal(pixels(asked(little).image), pixels(asked(big).image))


def test_sixteen_bits_counted_from_white():
    image = Image.fromarray(RAMP)
    content = written(image, "TIFF", tiffinfo={262: 0})
    assert pixels(asked({"bytes": content, "path": None}).image)[0, [0, -1], 0].tolist() == [255, 0]


def test_sixteen_bits_that_hold_twelve_are_said_to_be_dark():
    with pytest.warns(DataWarning, match="16 bits, but no value above 4000 of 65535"):
        _ = asked(Image.fromarray(np.array([[0, 4000]], np.uint16))).image


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(np.linspace(0, 1, 9, dtype=np.float32)[None]), "F"),
        (Image.fromarray(np.linspace(0, 255, 9, dtype=np.float32)[None]), "F"),
        (Image.fromarray(np.arange(9, dtype=np.int32)[None]), "I"),
        (Image.new("LAB", (3, 3)), "LAB"),
    ],
)
def test_values_without_an_agreed_white_are_refused_by_name(tmp_path, image, mode):
    with pytest.raises(DataError, match=rf"question q: .*\(mode {mode}\).*8-bit"):
        _ = asked(image).image
    path = tmp_path / "deep.tif"
    image.save(path)
    with pytest.raises(DataError, match=rf"question q: .*deep\.tif.*\(mode {mode}\)"):
        _ = asked(path).image


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "L", "1", "P", "RGBX"])
def test_other_colours_become_rgb(mode):
    white, black = (Image.new("RGB", (2, 2), colour).convert(mode) for colour in ("white", "black"))
    assert (pixels(asked(white).image) >= 254).all() and (pixels(asked(black).image) <= 1).all()


def test_cmyk_of_a_file(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(asked(tmp_path / "a.jpg").image)[0, 0] - [255, 0, 0]).max() <= 4


# Several frames.


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_is_shown_with_a_warning(tmp_path, form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
    with pytest.warns(DataWarning, match=r"question q: .*a\.\w+ has 2 frames; the first is shown"):
        assert pixels(asked(path).image)[0, 0].tolist() == [255, 0, 0]


def test_a_frame_that_the_user_chose_is_shown(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = Image.open(tmp_path / "a.gif")
    image.seek(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(asked(image).image)[0, 0].tolist() == [0, 0, 255]


# Files that are cut.


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_file_that_is_cut_names_itself(tmp_path, monkeypatch, form, lenient):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    content = written(noise, form)
    path = tmp_path / "cut.img"
    path.write_bytes(content[: len(content) * 6 // 10])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    with pytest.raises(DataError, match=r"question q: .*cut\.img is damaged or not an image"):
        _ = asked(path).image
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


# Addresses and data URIs.


def test_field_data_uri_is_read():
    (question,) = si.load_questions(f"jsonl:{FIELD}/data_uri.jsonl")
    content = base64.b64decode(json.loads((FIELD / "data_uri.jsonl").read_text())["image"].partition(",")[2])
    assert np.array_equal(pixels(question.image), pixels(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,####", f"data:image/png;base64,{'A' * 40_000}"])
def test_a_data_uri_that_holds_no_image_is_refused_in_few_words(tmp_path, uri):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": uri, "question": "?", "choices": ["a", "b"], "answer": 0}))
    with pytest.raises(DataError) as error:
        _ = si.load_questions(f"jsonl:{tmp_path}/a.jsonl")[0].image
    assert "data:image/png" in str(error.value) and len(str(error.value)) < 500

    assert "0x" not in str(error.value)


@pytest.mark.parametrize("before", ["", "\n"])
def test_base64_without_its_head_is_named(tmp_path, before):
    text = before + base64.b64encode(written(SCENE)).decode()
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": text, "question": "?", "choices": ["a", "b"], "answer": 0}))
    with pytest.warns(si.errors.DataWarning), pytest.raises(DataError, match="looks like base64: write data:image/png;base64, before it"):
        _ = si.load_questions(f"jsonl:{tmp_path}/a.jsonl")[0].image


def test_a_data_uri_in_percent_signs_and_one_with_line_breaks():
    content = written(SCENE)
    percent = "data:image/png," + "".join(f"%{byte:02x}" for byte in content)
    wrapped = "data:image/png;base64," + base64.encodebytes(content).decode()
    for uri in (percent, wrapped):
        assert np.array_equal(pixels(asked(uri).image), pixels(SCENE))


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "http://example.org/a.png", "s3://bucket/a.png", "HTTPS://example.org/" + "x" * 9000]
)
def test_an_address_is_refused_by_name(tmp_path, address):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": address, "question": "?", "choices": ["a", "b"], "answer": 0}))
    for call in (lambda: asked(address), lambda: asked(Path(address)), lambda: si.load_questions(f"jsonl:{tmp_path}/a.jsonl")):
        with pytest.raises(DataError, match=r"is an address.*download it") as error:
            call()
        assert len(str(error.value)) < 400


def test_field_url():
    with pytest.raises(DataError, match=r"url\.jsonl, line 1: .*https://example\.org/a\.png.* is an address"):
        si.load_questions(f"jsonl:{FIELD}/url.jsonl")


def test_a_record_of_the_hub_without_an_image_is_refused():
    with pytest.raises(DataError, match="neither bytes nor a path"):
        asked({"bytes": None, "path": None})


# Boxes.


def test_boxes_are_places_in_the_image_as_it_is_shown(tmp_path):
    (tmp_path / "a.png").write_bytes(tagged(6, "PNG"))
    line = {"image": "a.png", "question": "?", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"boxes": {"disc": [0, 0, 9, 6]}}))
    assert si.load_questions(f"jsonl:{tmp_path}/a.jsonl")[0].boxes == {"disc": (0, 0, 9, 6)}
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"boxes": {"disc": [0, 0, 6, 9]}}))
    with pytest.raises(DataError, match="9 x 6 pixels"):
        si.load_questions(f"jsonl:{tmp_path}/a.jsonl")


def coco(tmp_path, orientation, size):
    (tmp_path / "a.png").write_bytes(tagged(orientation, "PNG"))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "cross"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return f"boxes:{tmp_path}/boxes.json"


@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_of_the_upright_image_are_taken(tmp_path, orientation):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*orientation")
        warnings.filterwarnings("ignore", message=".*show or lack")
        questions = si.load_questions(coco(tmp_path, orientation, SCENE.size))
    assert questions[0].boxes == {"disc": (0, 0, 3, 3)} and questions[0].image.size == SCENE.size


@pytest.mark.parametrize("orientation", [5, 8])
@pytest.mark.filterwarnings("ignore:.*show or lack")
def test_boxes_of_the_stored_image_are_refused(tmp_path, orientation):
    with pytest.raises(
        DataError,
        match=rf"a\.png is shown with 9 x 6 pixels \(EXIF orientation {orientation} .* says 6 x 9.*remove the file",
    ):
        si.load_questions(coco(tmp_path, orientation, (6, 9)))


@pytest.mark.parametrize("orientation", [2, 3])
@pytest.mark.filterwarnings("ignore:.*show or lack")
def test_boxes_that_may_be_of_either_are_said(tmp_path, orientation):
    with pytest.warns(DataWarning, match=rf"a\.png .*EXIF orientation {orientation}.*boxes are taken to be those of the upright image"):
        si.load_questions(coco(tmp_path, orientation, SCENE.size))


def test_scenes_are_shown_as_before():
    question = si.load_questions("scenes/relation", n=1)[0]
    assert np.array_equal(pixels(question.image), pixels(question.meta["scene"].render()))
    assert decode(question.image_sources[0], "q").mode == "RGB"
