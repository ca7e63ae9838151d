"""Documents and their pages: PDF files, images, TIFF files of several pages, folders of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..files import REFUSED_PICTURES, special

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..vision.pages import Pages

__all__ = ["ENDINGS", "MOST_PAGES", "Document", "Source", "sources_of"]

ENDINGS = (".pdf", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
MOST_PAGES = 10_000
_A4 = 8.27 * 11.69  # square inches
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
_RANGE = re.compile(r"(\d{1,9})?\s*(-)?\s*(\d{1,9})?")


class Source(NamedTuple):
    """A document that has not been opened. name: its path, or what messages call it. value: a path, or what
    `glmlite.vision.images.open_image` takes, or the bytes of a PDF file."""

    name: str
    value: Any

    def digest(self) -> str:
        """SHA-256 of what it holds; the same for the same content. Raises OSError, and as `open_image` does."""
        found = hashlib.sha256()
        if isinstance(self.value, Path):
            with self._file() as file:
                while part := file.read(1 << 20):
                    found.update(part)
        elif isinstance(self.value, bytes | bytearray | memoryview):
            found.update(self.value)
        else:
            from ..vision.images import open_image

            image = open_image(self.value, self.name)
            found.update(f"{image.size}".encode() + image.tobytes())
        return found.hexdigest()

    def start(self) -> bytes:
        """The first of its bytes; none of what is no file. Raises OSError and ValueError."""
        if isinstance(self.value, bytes | bytearray | memoryview):
            return bytes(self.value[:1024])
        if isinstance(self.value, Path):
            with self._file() as file:
                return file.read(1024)
        return b""

    def _file(self) -> BinaryIO:
        if (kind := special(self.value)) is not None:
            raise ValueError(f"{self.name}: is {kind}, expected a document")
        return open(self.value, "rb")

    def open(self, pages: str | Iterable[int] | None, files: Pages) -> Document:
        """files: opens PDF files. Raises OSError, and ValueError (damaged, no such page, more than MOST_PAGES)."""
        return Document(self, pages, files)


def sources_of(sources: Any) -> list[Source]:
    """The documents that a user means: one, or a sequence of them; of a folder, the files in it by name, `page2` before
    `page10`, also pictures of kinds that are not read. Raises ValueError for a folder without documents, an
    empty name, and an empty sequence."""
    several = isinstance(sources, Sequence) and not isinstance(sources, str | bytes | bytearray | memoryview | Source)
    found: list[Source] = []
    for number, value in enumerate(sources if several else [sources], 1):
        data = isinstance(value, str) and value[:5].lower() == "data:"
        if isinstance(value, Source):
            found.append(value)
            continue
        if isinstance(value, str) and _ADDRESS.match(value):
            found.append(Source(value, value))  # which is refused by name when its turn comes
            continue
        if not isinstance(value, str | os.PathLike) or data:
            found.append(Source(f"image {number}" if several else "image", value))
            continue
        if not os.fspath(value):  # which would be the folder that one is in
            raise ValueError("a document without a name, expected a path")
        path = Path(value)
        found += _in_folder(path) if path.is_dir() else [Source(str(path), path)]
    if not found:
        raise ValueError("no documents, expected at least one")
    return found


def _in_folder(folder: Path) -> list[Source]:
    pages = ENDINGS + REFUSED_PICTURES  # each of these when its turn comes
    paths = [path for path in folder.iterdir() if path.suffix.lower() in pages and not path.name.startswith(".")]
    if not any(path.suffix.lower() in ENDINGS for path in paths):
        raise ValueError(f"{folder}: a folder without documents, expected files of {', '.join(ENDINGS)}")
    return [Source(str(path), path) for path in sorted(paths, key=lambda path: _natural(path.name))]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d{1,18})", name)]


class Document:
    """An open document. pages: how many it has; numbers: those that were asked for, from 1, in order. A context
    manager, which closes it."""

    def __init__(self, source: Source, pages: str | Iterable[int] | None, files: Pages):
        from ..vision import images
        from ..vision.pdf import is_pdf

        self.name = source.name
        self._value = source.value
        self._pdf = files.open(source.value, source.name) if is_pdf(source.start()) else None
        self.pages = self._pdf.pages if self._pdf is not None else images.frame_count(source.value, source.name)
        try:
            self.numbers = page_numbers(pages, self.pages, self.name)
        except BaseException:
            self.close()
            raise

    def image(self, number: int, dpi: float) -> Image:
        """A page as RGB. A picture is taken for a page of A4: with more pixels than that has at `dpi`, it is reduced.

        Raises ValueError for a damaged page.
        """
        from PIL.Image import Resampling

        from ..vision.images import open_frame, open_image

        if self._pdf is not None:
            return self._pdf.render(number, dpi)
        if self.pages == 1:
            image = open_image(self._value, self.name)
        else:
            image = open_frame(self._value, number - 1, f"{self.name}, page {number}")
        scale = (_A4 * dpi**2 / (image.width * image.height)) ** 0.5
        if scale >= 1:
            return image
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.resize(size, Resampling.BICUBIC, reducing_gap=3.0)

    def characters(self, number: int) -> int:
        """How many a page has as text, in a PDF. Raises ValueError for a damaged page."""
        return 0 if self._pdf is None else self._pdf.characters(number)

    def text(self, number: int) -> str:
        """The text that a page of a PDF has. Raises ValueError for a damaged page."""
        return "" if self._pdf is None else self._pdf.text(number)

    def close(self) -> None:
        if self._pdf is not None:
            self._pdf.close()

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def page_numbers(pages: str | Iterable[int] | None, count: int, where: str) -> list[int]:
    """The numbers, from 1, that "3-7", "1,4,9-" or a sequence means of `count` pages. Raises ValueError."""
    if count < 1:
        raise ValueError(f"{where}: has no pages, expected at least one")
    if pages is None:
        parts = [(1, count)]
    elif isinstance(pages, str):
        parts = [_part(part.strip(), count) for part in pages.split(",")]
    else:
        parts = [(int(number), int(number)) for number in pages]
    wanted = sum(last - first + 1 for first, last in parts)
    if wanted > MOST_PAGES:
        raise ValueError(f"{where}: {wanted} pages, expected at most {MOST_PAGES} at a time: say which")
    for first, last in parts:
        if not 1 <= first <= last <= count:
            said = f"page {first}" if first == last else f"pages {first} to {last}"
            raise ValueError(f"{where}: {said} asked for, expected some of its {count}")
    return sorted({number for first, last in parts for number in range(first, last + 1)})


def _part(text: str, count: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[3]) or (match[3] and not match[2]):
        raise ValueError(f"pages: {text!r}, expected numbers and ranges such as 3, 5-7, 12-")
    first = int(match[1] or 1)
    return first, int(match[3]) if match[3] else count if match[2] else first
