"""Pages to text: documents are rendered, cut into blocks, read by a vision model, several blocks at once."""

from __future__ import annotations

from .documents import Document, Source, sources_of
from .journal import Journal, key_of, was_written
from .page import Doing, Page, Part, Seconds
from .reading import read
from .tasks import TASKS

__all__ = [
    "TASKS",
    "Document",
    "Doing",
    "Journal",
    "Page",
    "Part",
    "Seconds",
    "Source",
    "key_of",
    "read",
    "sources_of",
    "was_written",
]
