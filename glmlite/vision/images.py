"""From whatever a user calls an image to pixels that a model may be shown: RGB, upright, on white."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["MOST_FRAMES", "MOST_PIXELS", "frame_count", "open_frame", "open_image"]

# Above this Pillow warns of a decompression bomb; RGB of it takes 360 MB.
MOST_PIXELS = 89_478_485
MOST_FRAMES = 10_000  # of a TIFF file: Pillow compares the place of each with those of all before it
MOST_URL = 100_000_000  # characters of a data URL
# Formats that Pillow reads by itself, without another program, and that people have pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")

_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_START = 1000  # bytes that tell what a file is
# What people take for an image, too, by how a file of it begins.
_OTHERS = {
    "a PDF file": re.compile(rb"%PDF-"),
    "an HEIC image": re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.S),
    "an AVIF image": re.compile(rb".{4}ftypavi[fs]", re.S),
    "a JPEG XL image": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ", re.S),
    "an SVG drawing": re.compile(rb"\s*<(\?xml\b.*<)?svg\b", re.S),
}
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<parameters>(;[\w.+-]+=[^;,]*)*);base64,", re.I)


def open_image(source: Any, where: str = "image") -> Image.Image:
    """RGB, of a path, the bytes of a file, a data URL (`data:image/png;base64,...`), a Pillow image or an array.

    EXIF's orientation is applied, and what is transparent becomes white. An array is (height, width) or (height, width,
    1, 3 or 4): uint8, uint16, bool, or floats from 0 to 1. Of the pictures of a photo (MPO) the first is taken.
    where: what a message calls the image. Raises ValueError (not an image, damaged, several frames, more than
    MOST_PIXELS), TypeError (nothing of the above), OSError (a path that cannot be read).
    """
    if isinstance(source, np.ndarray):
        return _of_array(source, where)
    with _opened(source, where) as image:
        if _has_frames(image, where):
            raise ValueError(f"{where}: {image.format} of several frames, expected one: give them one by one")
        return _rgb(image, where)


def open_frame(source: Any, number: int, where: str = "image") -> Image.Image:
    """As `open_image`, of one frame of a TIFF file, from 0."""
    with _opened(source, where) as image:
        at = image.tell()
        try:
            with _damage(where):
                image.seek(number)
            _check_size(image, where)
            return _rgb(image, where)
        finally:
            with suppress(Exception):  # a damaged file, whose error is told
                image.seek(at)


def frame_count(source: Any, where: str = "image") -> int:
    """How many pages a TIFF file has; 1 for all other images, which are one or refused by `open_image`. Raises as that,
    and for more than MOST_FRAMES."""
    if isinstance(source, np.ndarray):
        return 1
    with _opened(source, where) as image:
        if image.format != "TIFF" or not _has_frames(image, where):
            return 1
        at = image.tell()
        with _damage(where):
            for number in range(MOST_FRAMES + 1):
                try:
                    image.seek(number)
                except EOFError:
                    image.seek(at)
                    return number
        raise ValueError(f"{where}: more than {MOST_FRAMES} pages, expected at most so many")


def _has_frames(image: Image.Image, where: str) -> bool:
    """Whether there is more than one. How many is not asked: a small file may have a million."""
    with _damage(where):
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))


@contextmanager
def _opened(source: Any, where: str) -> Iterator[Image.Image]:
    """A Pillow image whose size is checked, and whose pixels may not be read yet."""
    if isinstance(source, Image.Image):
        _check_size(source, where)
        yield source
        return
    if isinstance(source, str) and source[:5].lower() == "data:":
        source = _of_url(source, where)
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source, re.I):
        raise ValueError(f"{where}: is a web address, expected a file or a data URL")
    if isinstance(source, bytes | bytearray | memoryview):
        file: Any = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        file = open(source, "rb")  # noqa: SIM115  closed below
    else:
        raise TypeError(
            f"{where}: {type(source).__name__}, expected a path, bytes, a data URL, a Pillow image or an array"
        )
    with file:
        if not (start := file.read(_START)):
            raise ValueError(f"{where}: is empty, expected an image")
        if other := next((kind for kind, begins in _OTHERS.items() if begins.match(start)), None):
            raise ValueError(f"{where}: is {other}, expected one of {', '.join(FORMATS)}")
        file.seek(0)
        with _damage(where):
            image = Image.open(file, formats=FORMATS)
        with image:
            _check_size(image, where)
            yield image


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """What Pillow raises for a file that is not what it should be, which may be anything, as ValueError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{where}: more than {MOST_PIXELS} pixels, expected at most so many") from None
    except UnidentifiedImageError:
        raise ValueError(f"{where}: not an image, expected one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"{where}: a damaged image ({said}), expected a whole one") from error


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise ValueError(f"{where}: {width} x {height} pixels, expected at least one")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{where}: {width} x {height} pixels, expected at most {MOST_PIXELS} in all")


def _of_url(url: str, where: str) -> bytes:
    if len(url) > MOST_URL:
        raise ValueError(f"{where}: a data URL of {len(url)} characters, expected at most {MOST_URL}")
    head = _DATA_URL.match(url[:1000])
    if head is None:
        raise ValueError(f"{where}: {url[:40]!r}, expected data:image/...;base64,...")
    if head["type"] and not head["type"].lower().startswith("image/"):
        raise ValueError(f"{where}: a data URL of {head['type']}, expected one of an image")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}: a data URL that is not base64 ({error})") from None


def _of_array(array: np.ndarray[Any, Any], where: str) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"{where}: an array of shape {shape}, expected (height, width) or (height, width, 1, 3 or 4)")
    if not 0 < array.shape[0] * array.shape[1] <= MOST_PIXELS:
        raise ValueError(f"{where}: an array of shape {shape}, expected 1 to {MOST_PIXELS} pixels")
    return _on_white(Image.fromarray(_bytes(array, where)))


def _bytes(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Grey levels of 0 to 255, of those that a type has."""
    if array.dtype == bool:
        grey: np.ndarray[Any, Any] = array.astype(np.uint8) * np.uint8(255)
        return grey
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        levels: np.ndarray[Any, Any] = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return levels
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{where}: values from {array.min()} to {array.max()}, expected floats from 0 to 1")
        return (array * 255 + 0.5).astype(np.uint8)
    raise ValueError(f"{where}: an array of {array.dtype}, expected uint8, uint16, bool, or floats from 0 to 1")


def _rgb(image: Image.Image, where: str) -> Image.Image:
    with _damage(where):
        image.load()
        orientation = None
        with suppress(Exception):  # a photo whose EXIF is damaged is a photo
            orientation = image.getexif().get(_ORIENTATION)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _of_deep_grey(image, where)
    with _damage(where):
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        return _on_white(image)


def _of_deep_grey(image: Image.Image, where: str) -> Image.Image:
    """16 bits of grey are 65535 levels, which `convert` cuts off at 255 in some versions of Pillow."""
    levels = np.asarray(image)
    if image.mode == "I" and levels.min() >= 0 and levels.max() <= 65535:
        levels = levels.astype(np.uint16)
    return Image.fromarray(_bytes(levels, where))


def _on_white(image: Image.Image) -> Image.Image:
    transparent = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if not transparent:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
