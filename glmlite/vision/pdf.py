"""Pages of PDF files, rendered by PDFium one at a time.

PDFium must not be called by two threads at once, whatever the documents, so all calls stand under one lock.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["LONGEST", "Pdf", "is_pdf"]

LONGEST = 3500  # pixels of a page's long side; the models see less
_MOST_NOTES = 10_000  # of a page, that are looked at
_NOTHING = 2  # bytes of an empty text, UTF-16 with its end
_pdfium = threading.Lock()


def is_pdf(start: bytes) -> bool:
    """Whether a file that begins so is a PDF: its header may stand somewhat later."""
    return b"%PDF-" in start[:1024]


def _opens(source: bytes | Path) -> bool:
    """Whether PDFium takes it for a document, whatever is in it."""
    import pypdfium2.raw as c

    if isinstance(source, bytes):
        document = c.FPDF_LoadMemDocument64(source, len(source), None)
    else:
        document = c.FPDF_LoadDocument(os.fsencode(source) + b"\0", None)
    c.FPDF_CloseDocument(document)
    return bool(document)


class Pdf:
    """A PDF file: a path or its bytes. Pages are counted from 1. A context manager, which closes it.

    Raises ValueError (damaged, encrypted) and OSError.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview, where: str = "PDF"):
        self.where = where
        if isinstance(source, bytes | bytearray | memoryview):
            source = bytes(source)
        else:
            with open(source, "rb"):  # an error of the system's, not PDFium's
                source = Path(source)
        import pypdfium2 as pdfium

        self._error = pdfium.PdfiumError
        with _pdfium:
            try:
                self._document = pdfium.PdfDocument(source)
                self.pages = len(self._document)
            except pdfium.PdfiumError as error:
                if _opens(source):  # so the error is an older one's
                    raise ValueError(f"{where}: has no pages, expected at least one") from None
                if "password" in str(error).lower():
                    raise ValueError(f"{where}: is encrypted, expected a PDF without a password") from None
                raise ValueError(f"{where}: a damaged PDF ({error}), expected a whole one") from None
            if self.pages:
                self._document.init_forms()

    def render(self, number: int, dpi: float) -> Image.Image:
        """A page as RGB on white, its long side at most LONGEST pixels. Raises ValueError for a damaged page."""
        with self._page(number) as page:
            width, height = page.get_size()
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise ValueError(f"{self._of(number)}: {width:g} x {height:g} points, expected a page with an area")
            scale = min(dpi / 72, LONGEST / max(width, height))
            with closing(page.render(scale=scale, fill_color=(255, 255, 255, 255))) as bitmap:
                image: Image.Image = bitmap.to_pil().convert("RGB").copy()
                return image

    def characters(self, number: int) -> int:
        """How many characters a page has as text; 0 for a scan, and where more stands on it than that text: what is
        written in the fields of a form, or in notes. Raises ValueError for a damaged page."""
        with self._page(number) as page, closing(page.get_textpage()) as text:
            return 0 if self._has_notes(page) else int(text.count_chars())

    def text(self, number: int) -> str:
        """The text that a page has without reading it from its picture. Raises ValueError for a damaged page."""
        with self._page(number) as page, closing(page.get_textpage()) as text:
            found = str(text.get_text_bounded())
        lines = found.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "").split("\n")
        return "\n".join(line.rstrip() for line in lines).strip()

    def _has_notes(self, page: Any) -> bool:
        import pypdfium2.raw as c

        for index in range(min(c.FPDFPage_GetAnnotCount(page), _MOST_NOTES)):
            note = c.FPDFPage_GetAnnot(page, index)
            if not note:
                continue
            kind, length = c.FPDFAnnot_GetSubtype(note), 0
            if kind == c.FPDF_ANNOT_WIDGET and self._document.formenv is not None:
                length = c.FPDFAnnot_GetFormFieldValue(self._document.formenv, note, None, 0)
            elif kind == c.FPDF_ANNOT_FREETEXT:
                length = c.FPDFAnnot_GetStringValue(note, b"Contents", None, 0)
            c.FPDFPage_CloseAnnot(note)
            if length > _NOTHING:
                return True
        return False

    def close(self) -> None:
        with _pdfium:
            self._document.close()

    def __enter__(self) -> Pdf:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _of(self, number: int) -> str:
        return f"{self.where}, page {number}"

    @contextmanager
    def _page(self, number: int) -> Iterator[Any]:
        if not 1 <= number <= self.pages:
            raise ValueError(f"{self._of(number)}: there is no such page, expected 1 to {self.pages}")
        with _pdfium:
            try:
                with closing(self._document[number - 1]) as page:
                    yield page
            except self._error as error:
                raise ValueError(f"{self._of(number)}: is damaged ({error})") from None
