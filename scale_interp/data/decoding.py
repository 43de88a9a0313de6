"""Images as a person sees them: one decoder for every way in (docs/decoding.md says what it does and why)."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ..errors import DataError, DataWarning
from .wording import short

ImageSource = Image.Image | str | Path | Callable[[], Any]
"""An image, or where to find it: what `Question` keeps until its image is asked for."""
DECODER = b"2"
"""The version of what `decode` shows of a file: kept results of files that were shown otherwise are not used again."""
LARGEST = 100_000_000
"""Pixels of the largest image that is opened, which no model reads a tenth of.

PIL has a limit of its own, 2 * PIL.Image.MAX_IMAGE_PIXELS: 179 million.
"""
LIMIT = "scale_interp.data.question.LARGEST"
"""What a user sets to open larger ones."""
DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, MemoryError, OverflowError)
"""What PIL's readers raise for a file that they cannot read."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""Formats that are opened; PIL knows more, some of which (EPS) run another program."""
PAPER = (255, 255, 255, 255)
"""What transparent pixels are laid on: white, as a page or a viewer shows them."""
DIRECT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
"""Modes whose 8-bit values have one meaning: PIL's own conversion to RGB is used."""
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP_FILES = ("PNG", "PPM", "JPEG2000")
"""Formats whose mode I holds 16 bits; elsewhere it holds 32, of which nobody says which value is white."""
SEVERAL = ("GIF", "WEBP", "PNG", "TIFF")
"""Formats whose further frames are images of their own; those of a camera's JPEG (MPO) are previews of the first."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, for each EXIF orientation but 1, which is upright."""
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.I)
"""The start of http://, https:// (or https:/, as a Path writes it), s3:// and the like; "C:/" has one letter."""
DATA_URI = re.compile(r"\s*data:", re.I)
BASE64 = re.compile(r"[A-Za-z0-9+/]{200}[A-Za-z0-9+/]*=*\s*$")
_whole = RLock()


@dataclass(frozen=True)
class Encoded:
    """An image file's bytes that are not in a file; equal for equal bytes."""

    content: bytes = field(repr=False)
    name: str = field(default="the image's bytes", compare=False)

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> Image.Image:
        return open_embedded(self.content)


def image_source(given: Any, where: str) -> ImageSource:
    """What was given as an image, in one of the forms that `decode` opens; nothing is opened.

    Args:
        given: A PIL image, a path, a function that returns a PIL image, a data URI, or a {"bytes": ..., "path": ...} as data
            sets on the hub have.
        where: What the image belongs to, for messages.

    Raises:
        DataError: For anything else, and for an address on the web: nothing is fetched.
    """
    if isinstance(given, str | Path):
        return _from_text(given, where)
    if isinstance(given, Mapping) and {"bytes", "path"} & set(given):
        if given.get("bytes") is not None:
            return Encoded(bytes(given["bytes"]), f"the bytes of {short(given['path'])}" if given.get("path") else "the image's bytes")
        if given.get("path"):
            return image_source(given["path"], where)
        raise DataError(f"{where}: its image has neither bytes nor a path; fetch the record again")
    if isinstance(given, Image.Image) or callable(given):
        return given
    raise DataError(f"{where}: its image is a {type(given).__name__}; give a PIL image, a path, or a function to open one")


def decode(source: ImageSource, where: str, largest: int = LARGEST) -> Image.Image:
    """The image as a viewer shows it: upright, on white, 8-bit RGB.

    Args:
        source: As `image_source` gives it.
        where: What the image belongs to, for messages.
        largest: The most pixels that are opened.

    Raises:
        DataError: Where it is missing, damaged, not an image, above `largest`, or in a mode without a known meaning.

    >>> glass = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    >>> decode(glass, "an example").getpixel((0, 0))
    (255, 255, 255)
    """
    with explained(source, where, largest):
        if isinstance(source, str | Path):
            with _opened(source) as opened:
                return _as_seen(opened, source, where, largest)
        if isinstance(source, Image.Image):
            return _as_seen(source, source, where, largest)
        made = source()
        if not isinstance(made, Image.Image):
            raise DataError(f"{where}: its image's function returned a {type(made).__name__}; return a PIL image")
        return _as_seen(made, source, where, largest)


def open_size(path: str | Path, where: str) -> tuple[int, int]:
    """Width and height of an image as `decode` shows it, read without its pixels."""
    with explained(path, where), _opened(path) as opened:
        width, height = opened.size
        # PIL gives a TIFF's size as it will be once the image was turned.
        turned = opened.format != "TIFF" and _orientation(opened, path, where) >= 5
        return (height, width) if turned else (width, height)


def stored_orientation(path: str | Path, where: str) -> int:
    """The EXIF orientation of an image's file, 1 to 8; 1 is upright."""
    with explained(path, where), _opened(path) as opened:
        return _orientation(opened, path, where)


def open_embedded(content: bytes) -> Image.Image:
    """An image from the bytes of its file."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def plain_file(path: str | Path) -> Path:
    """The path of a file, or of nothing; OSError for a pipe, which would be waited for without end, or a device."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is not a plain file")
    return Path(path)


def _from_text(given: str | Path, where: str) -> ImageSource:
    text = str(given)
    if DATA_URI.match(text):
        return _from_data_uri(text.strip(), where)
    if ADDRESS.match(text):
        raise DataError(
            f"{where}: no image at {short(text)}: that is an address, and nothing is fetched; download it and give the file's path"
        )
    return given


def _from_data_uri(uri: str, where: str) -> Encoded:
    head, comma, body = uri.partition(",")
    if not comma:
        raise DataError(f"{where}: its image {short(uri)} is a data URI without a comma; write data:image/png;base64,...")
    try:
        content = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            content = base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: its image {short(uri)} is not base64 ({error}); encode the file again") from error
    return Encoded(content, short(uri, 40))


def _opened(path: str | Path) -> Image.Image:
    return Image.open(plain_file(path), formats=FORMATS)


def _as_seen(image: Image.Image, source: ImageSource, where: str, largest: int) -> Image.Image:
    width, height = image.size
    if width * height > largest:
        raise DataError(
            f"{where}: {_name(source)} has {width:,} x {height:,} pixels, more than {largest:,}; scale it down, or set {LIMIT} to open it"
        )
    if width * height == 0:
        raise DataError(f"{where}: {_name(source)} has {width} x {height} pixels: there is nothing to show; give another image")
    if image.format in SEVERAL and image.tell() == 0 and (frames := getattr(image, "n_frames", 1)) > 1:
        _warn(f"{where}: {_name(source)} has {frames} frames; the first is shown")
    with _whole_files():
        image.load()
    shown = _rgb(image, source, where)
    turn = TURNS.get(_orientation(image, source, where))
    return shown if turn is None else shown.transpose(turn)


def _rgb(image: Image.Image, source: ImageSource, where: str) -> Image.Image:
    deep = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in DEEP_FILES)
    if deep:
        return _from_sixteen_bits(image, source, where)
    if image.mode not in (*DIRECT, *ALPHA):
        kinds = {"F": "fractions", "I": "32-bit whole numbers", "LAB": "CIELAB colours"}
        raise DataError(
            f"{where}: {_name(source)} holds {kinds.get(image.mode, 'values')} (mode {image.mode}), for which it is not agreed what is "
            "black and what is white; scale it to 0 to 255 and save it as 8-bit grey or RGB"
        )
    if image.mode in ALPHA or "transparency" in image.info:
        whole = image.convert("LA") if image.mode == "La" else image
        whole = whole.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, PAPER), whole).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image, source: ImageSource, where: str) -> Image.Image:
    """Grey of 16 bits in 8: 65535 is white, as in every format that stores it."""
    values = np.asarray(image).astype(np.int64)
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
        values = 65535 - values  # this file counts from white
    grey = ((values * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    elif 0 < values.max() < 4096:
        _warn(
            f"{where}: {_name(source)} has 16 bits, but no value above {values.max()} of 65535, and so is nearly black; "
            "if its values have fewer bits, scale them up and save it again"
        )
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image, source: ImageSource, where: str) -> int:
    try:
        said = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGED as error:
        _warn(f"{where}: the EXIF data of {_name(source)} cannot be read ({error}); it is shown as it is stored")
        return 1
    return said if said in TURNS else 1


@contextmanager
def _whole_files() -> Iterator[None]:
    """Have PIL refuse files that are cut, whatever another package has set: it would fill what is missing with grey."""
    with _whole:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=2)


def _name(source: ImageSource) -> str:
    return str(source) if len(str(source)) <= 200 else short(str(source))


@contextmanager
def explained(source: ImageSource, where: str, largest: int = LARGEST) -> Iterator[None]:
    """Whatever keeps an image from being opened, as a DataError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is a little higher
            yield
    except DataError:
        raise
    except FileNotFoundError as error:
        mend = "it looks like base64: write data:image/png;base64, before it" if BASE64.search(str(source)) else "check the data folder"
        raise DataError(f"{where}: no image at {_name(source)}; {mend}") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: {_name(source)} has more than {largest:,} pixels ({error}); scale it down, or set {LIMIT} and PIL's own limit"
        ) from error
    except DAMAGED as error:
        said = re.sub(r"image file <_io.BytesIO .*>", "its format", str(error))
        raise DataError(f"{where}: {_name(source)} is damaged or not an image ({said}); fetch it again") from error
