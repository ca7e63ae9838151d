"""What comes of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Doing", "Page", "Part", "Seconds"]


@dataclass
class Seconds:
    """What a page took, by part. The blocks of a page are read and written beside each other, and beside those of other
    pages, so `read` and `write`, which are added up over the blocks, may be more than has passed."""

    render: float = 0.0  # the file to an image
    cut: float = 0.0  # finding its blocks
    prepare: float = 0.0  # images to patches
    read: float = 0.0  # tower and prompt
    write: float = 0.0


@dataclass
class Part:
    """A block of a page. box: (left, top, right, bottom) in pixels of the page as it was rendered, and turned upright;
    kind: "text", "table", "formula" or "fields"."""

    text: str
    kind: str
    box: tuple[int, int, int, int]
    tokens: int = 0


@dataclass
class Page:
    """A page that has been read, or could not be.

    source: the document's name. document: which of the sources it is, from 0. number: from 1; 0 where the document
    could not be opened. pages: of the document. text: Markdown, tables as HTML, formulas as LaTeX; "" with an error.
    fields: the object asked for. error: why there is no text. notes: what else is to be known of it, such as a loop
    that was stopped. characters: of text that the page has in its file. layer: the text is that one.
    """

    source: str
    document: int
    number: int
    pages: int
    text: str = ""
    blocks: list[Part] = field(default_factory=list)
    fields: Any = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    characters: int = 0
    layer: bool = False
    turned: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def tokens(self) -> int:
        """How many the model wrote."""
        return sum(part.tokens for part in self.blocks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `of_dict` makes the page again."""
        return asdict(self)

    @classmethod
    def of_dict(cls, data: Mapping[str, Any]) -> Page:
        """Raises TypeError and KeyError for what `as_dict` has not made."""
        blocks = [Part(**{**part, "box": tuple(part["box"])}) for part in data["blocks"]]
        return cls(**{**data, "blocks": blocks, "seconds": Seconds(**data["seconds"])})


@dataclass(frozen=True)
class Doing:
    """What is being done: "reading" or "writing" the page `number` of `pages`; fraction: of its reading, 0 to 1. done,
    total: pages of the document that are finished, and that were asked for."""

    source: str
    number: int
    pages: int
    doing: str
    fraction: float
    done: int
    total: int

    def __str__(self) -> str:
        """page 3 of 12, reading 40 %"""
        part = f" {self.fraction:.0%}".replace("%", " %") if self.doing == "reading" else ""
        return f"page {self.number} of {self.pages}, {self.doing}{part}"
