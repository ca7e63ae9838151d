"""Pages that are kept while a document is being read, so that the next run goes on where this one was ended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .page import Page

__all__ = ["Journal", "key_of"]

VERSION = 1


def key_of(digests: Iterable[str], options: Any, model: Path) -> str:
    """What pages must have in common to be kept for each other: content, options (as JSON), and the model's file."""
    found = hashlib.sha256(json.dumps([VERSION, list(digests), options], sort_keys=True).encode())
    with open(model, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found.update(f"{size} ".encode() + file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        found.update(file.read(1 << 20))
    return found.hexdigest()


class Journal:
    """A file beside the target: a line with the key, then one for each page, written when it is finished.

    pages: those that are kept, by (document, number). stale: there was a journal of another key, which is replaced.
    Raises OSError.
    """

    def __init__(self, target: Path, key: str):
        self.path = target.with_name(f".{target.name}.pages")
        self.pages: dict[tuple[int, int], Page] = {}
        self.stale = False
        whole = self._read(key)
        self._file = open(self.path, "r+b" if whole else "wb")  # noqa: SIM115  open until `close`
        self._file.seek(whole)
        self._file.truncate()  # of a line that was being written when the process ended
        if not whole:
            self._write({"key": key})

    def add(self, page: Page) -> None:
        """Keeps a page, on the disk when this returns."""
        self.pages[page.document, page.number] = page
        self._write(page.as_dict())

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, key: str) -> int:
        """Takes the pages; returns the length of what is whole, 0 without any."""
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            whole = 0
            for number, line in enumerate(file):
                try:
                    data = json.loads(line)
                    if not line.endswith(b"\n"):
                        break
                    if number:
                        page = Page.of_dict(data)
                        self.pages[page.document, page.number] = page
                    elif data != {"key": key}:
                        self.stale = True
                        break
                except (ValueError, TypeError, KeyError, RecursionError):
                    break
                whole += len(line)
            return whole
        return 0
