"""Pages that are kept while a document is being read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import journal
from .page import Page

__all__ = ["Journal", "key_of", "was_written"]

VERSION = 1


def key_of(digests: Iterable[str], options: Any, model: Any) -> str:
    """What pages must have in common to be kept for each other: content, options (as JSON), and the model."""
    what = [VERSION, list(digests), options, journal.content_of(model)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()  # fields are asked for in their order


def path_of(target: Path) -> Path:
    """Where the pages of a target are kept."""
    return target.with_name(f".{target.name}.pages")


def was_written(target: Path) -> bool:
    """Whether a run wrote this target and was ended before it had written its others. Raises OSError."""
    path = path_of(target)
    return path.is_file() and path.read_bytes().rstrip().rpartition(b"\n")[2].startswith(b'{"written"')


class Journal:
    """The pages of a target that are finished; see `glmlite.journal`.

    pages: those that are kept, by (document, number). stale: there was a journal of another key, which is replaced.
    written: the target is, and its run has others to write; failed: a page of it has an error.
    Raises OSError.
    """

    def __init__(self, target: Path, key: str):
        self.path = path_of(target)
        self.pages: dict[tuple[int, int], Page] = {}
        self.stale = self.written = self.failed = False
        try:
            self._kept = journal.Journal(self.path, {"key": key}, self._take, every=True)
        except journal.Other:
            self.stale = True
            self._kept = journal.Journal(self.path, {"key": key}, self._take, every=True, restart=True)

    def add(self, page: Page) -> None:
        """Keeps a page, on the disk when this returns."""
        self.pages[page.document, page.number] = page  # Ctrl-C is heard after the disk has it
        try:
            self._kept.add([page.as_dict()])
        except OSError:
            del self.pages[page.document, page.number]
            raise

    def end(self, failed: bool) -> None:
        """Keeps that the target is written, just before it is: then nobody else's file has its name."""
        self._kept.add([{"written": True, "failed": failed}])
        self.written = True

    def close(self) -> None:
        self._kept.close()

    def remove(self) -> None:
        self._kept.remove()

    def _take(self, record: dict[str, Any], _: int) -> None:
        if "written" in record:
            self.written, self.failed = True, bool(record["failed"])
            return
        page = Page.of_dict(record)
        self.pages[page.document, page.number] = page
