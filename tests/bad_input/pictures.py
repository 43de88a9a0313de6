"""Pictures that are missing, damaged, too large, no pictures, or somewhere else."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import scale_interp as si
from scale_interp.errors import DataError
from tests.bad_input.kind import Kind
from tests.bad_input.results import Boom
from tests.support.official_sets import picture


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds nearly none of its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def png_with_text(size: int) -> bytes:
    """A PNG with a compressed text that is large once it is unpacked."""
    whole = picture("PNG")
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * size)) + whole[33:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
CONTENT: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "damaged or not an image"),
    "one byte": (lambda: b"\x89", "damaged or not an image"),
    "a text": (lambda: b"hello", "damaged or not an image"),
    "null bytes": (lambda: bytes(5000), "damaged or not an image"),
    "a JPEG that is cut": (lambda: picture("JPEG", (200, 200))[:500], "damaged or not an image"),
    "a PNG that is cut": (lambda: picture("PNG", (200, 200))[:60], "damaged or not an image"),
    "a PNG without pixels": (lambda: picture("PNG")[:33], "damaged or not an image"),
    "a PNG that ends early": (lambda: png_of(200, 200), "damaged or not an image"),
    "a PNG of no width": (lambda: png_of(0, 10), "damaged or not an image"),
    "a GIF that is cut": (lambda: picture("GIF", (200, 200))[:30], "damaged or not an image"),
    "a WebP that is cut": (lambda: picture("WEBP", (200, 200))[:40], "damaged or not an image"),
    "a BMP that is cut": (lambda: picture("BMP", (200, 200))[:100], "damaged or not an image"),
    "a TIFF that is cut": (lambda: picture("TIFF", (200, 200))[:200], "damaged or not an image"),
    "a bomb of 10^9 pixels": (lambda: png_of(40_000, 25_000), "more than 100,000,000 pixels"),
    "a bomb of 10^8 pixels and a row": (lambda: png_of(10_000, 10_001), "more than 100,000,000"),
    "the largest PNG of all": (lambda: png_of(2**31 - 1, 2**31 - 1), "more than 100,000,000 pixels"),
    "a text of 80 MB inside": (lambda: png_with_text(80_000_000), "damaged or not an image"),
    "PostScript, which would run Ghostscript": (lambda: EPS, "damaged or not an image"),
    "SVG with a script": (lambda: SVG, "damaged or not an image"),
    "a PDF": (lambda: b"%PDF-1.4\n", "damaged or not an image"),
    "an HTML page": (lambda: b"<html>404</html>", "damaged or not an image"),
    "a pickle": (lambda: pickle.dumps(Boom()), "damaged or not an image"),
    "an icon": (lambda: picture("ICO", (16, 16)), "damaged or not an image"),
}


def of_content(mistake: str, make: Callable[[], bytes], says: str) -> Kind:
    def call(room: Any) -> Any:
        path = room.folder / "a.png"
        path.write_bytes(make())
        return si.Question("Where?", ("a", "b"), 0, picture=path).image

    return Kind("a picture's file", mistake, DataError, says, call)


def of_place(mistake: str, says: str, make: Callable[[Path], Any]) -> Kind:
    """make: gets the folder, gives the picture."""
    return Kind(
        "a picture", mistake, DataError, says, lambda room: si.Question("Where?", ("a", "b"), 0, picture=make(room.folder), id="q").image
    )


def folder_of_pictures(folder: Path) -> Path:
    (folder / "d").mkdir()
    return folder / "d"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "p")
    return folder / "p"


def loop(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


def refused(folder: Path) -> Callable[[], Any]:
    def fails() -> Image.Image:
        raise OSError("the disk is gone")

    return fails


def large(folder: Path) -> Image.Image:
    return Image.new("1", (20_000, 10_000))


def closed(folder: Path) -> Image.Image:
    path = folder / "c.png"
    path.write_bytes(picture())
    image = Image.open(path)
    image.close()
    return image


def linked(room: Any) -> Any:
    (room.folder / "secret.png").write_bytes(picture())
    (room.folder / "set").mkdir()
    (room.folder / "set/a.png").symlink_to(room.folder / "secret.png")
    (room.folder / "set/mine.jsonl").write_text('{"image": "a.png", "question": "?", "choices": ["a", "b"], "answer": 0}\n')
    return si.load_questions(f"jsonl:{room.folder}/set/mine.jsonl")


def linked_folder(room: Any) -> Any:
    (room.folder / "away").mkdir()
    (room.folder / "away/a.png").write_bytes(picture())
    (room.folder / "set").mkdir()
    (room.folder / "set/in").symlink_to(room.folder / "away")
    (room.folder / "set/mine.jsonl").write_text('{"image": "in/a.png", "question": "?", "choices": ["a", "b"], "answer": 0}\n')
    return si.load_questions(f"jsonl:{room.folder}/set/mine.jsonl")


def boxed(content: bytes) -> Callable[[Any], Any]:
    """Boxes make the reader look at the size of a picture."""

    def call(room: Any) -> Any:
        (room.folder / "a.png").write_bytes(content)
        line = '{"image": "a.png", "question": "?", "choices": ["a", "b"], "answer": 0, "boxes": {"cat": [0, 0, 9, 9]}}\n'
        (room.folder / "mine.jsonl").write_text(line)
        return si.load_questions(f"jsonl:{room.folder}/mine.jsonl")

    return call


def long_name(room: Any) -> Any:
    """Loading only warns of a picture that is missing; opening it raises."""
    (room.folder / "mine.jsonl").write_text('{"image": "%s.png", "question": "?", "choices": ["a", "b"], "answer": 0}\n' % ("x" * 4000))
    return si.load_questions(f"jsonl:{room.folder}/mine.jsonl")[0].image


PLACES = (
    of_place("missing", "no image at", lambda folder: folder / "none.png"),
    of_place("missing, given as a text", "no image at", lambda folder: str(folder / "none.png")),
    of_place("a folder", "damaged or not an image", folder_of_pictures),
    of_place("a pipe, which would be waited for", "not a plain file", pipe),
    of_place("a device", "not a plain file", lambda folder: "/dev/zero"),
    of_place("a link to itself", "damaged or not an image|no image at", loop),
    of_place("a name with a null byte", "damaged or not an image", lambda folder: "a\0.png"),
    of_place("a name of 5,000 letters", "damaged or not an image", lambda folder: "x" * 5000),
    of_place("an address on the web", "no image at", lambda folder: "https://example.org/a.png"),
    of_place("a function that fails", "damaged or not an image .the disk is gone", refused),
    of_place("a function that returns nothing", "returned a NoneType", lambda folder: lambda: None),
    of_place("a function that returns a path", "returned a str", lambda folder: lambda: "a.png"),
    of_place("a function that returns an array", "returned a ndarray", lambda folder: lambda: np.zeros((4, 4, 3))),
    of_place("an image of 2 * 10^8 pixels", "more than 100,000,000", large),
    of_place("an image that was closed", "damaged or not an image", closed),
    of_place("bytes", "is a bytes; give", lambda folder: picture()),
    of_place("an array", "is a ndarray; give", lambda folder: np.zeros((4, 4, 3))),
    of_place("a number", "is a int; give", lambda folder: 3),
    of_place("an open file", "is a BytesIO; give", lambda folder: io.BytesIO(picture())),
    of_place("a list with a number", "is a int; give", lambda folder: [Image.new("RGB", (4, 4)), 3]),
    Kind("a record's picture", "a link out of the folder", DataError, "is a link to .*outside", linked),
    Kind("a record's picture", "in a linked folder", DataError, "is a link to .*outside", linked_folder),
    Kind("a record's picture", "with a box, and no picture", DataError, "damaged or not an image", boxed(b"hello")),
    Kind("a record's picture", "with a box outside it", DataError, "outside", boxed(picture())),
    Kind("a record's picture", "with a box, and a bomb", DataError, "more than 100,000,000 pixels", boxed(png_of(40_000, 25_000))),
    Kind("a record's picture", "a name of 4,000 letters", DataError, "damaged or not an image", long_name),
)
KINDS = [*(of_content(mistake, make, says) for mistake, (make, says) in CONTENT.items()), *PLACES]
