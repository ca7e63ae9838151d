"""Pages that are kept while a document is being read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import journal
from .page import Page

__all__ = ["Journal", "key_of"]

VERSION = 1


def key_of(digests: Iterable[str], options: Any, model: Path) -> str:
    """What pages must have in common to be kept for each other: content, options (as JSON), and the model's file."""
    what = [VERSION, list(digests), options, journal.content_of(model)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class Journal:
    """The pages of a target that are finished; see `glmlite.journal`.

    pages: those that are kept, by (document, number). stale: there was a journal of another key, which is replaced.
    Raises OSError.
    """

    def __init__(self, target: Path, key: str):
        self.path = target.with_name(f".{target.name}.pages")
        self.pages: dict[tuple[int, int], Page] = {}
        self.stale = False
        try:
            self._kept = journal.Journal(self.path, {"key": key}, self._take, every=True)
        except journal.Other:
            self.stale = True
            self._kept = journal.Journal(self.path, {"key": key}, self._take, every=True, restart=True)

    def add(self, page: Page) -> None:
        """Keeps a page, on the disk when this returns."""
        self._kept.add([page.as_dict()])
        self.pages[page.document, page.number] = page

    def close(self) -> None:
        self._kept.close()

    def remove(self) -> None:
        self._kept.remove()

    def _take(self, record: dict[str, Any], _: int) -> None:
        page = Page.of_dict(record)
        self.pages[page.document, page.number] = page
