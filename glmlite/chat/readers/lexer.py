"""Text that comes in parts, cut at the marks that stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


class Lexer:
    """Finds marks wherever the text is cut: what may be the beginning of one waits for more.

    marks: how each is spelled in the text -> the mark. Time is linear in the text: at most a mark's length is looked
    at twice.
    """

    def __init__(self, marks: Mapping[str, str]):
        self._marks = marks
        self._mark = re.compile("|".join(map(re.escape, marks)))
        self._beginnings = frozenset(mark[:n] for mark in marks for n in range(1, len(mark)))
        self._most = max(map(len, self._beginnings))
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is a mark) of what is certain; no part is empty."""
        text = self._held + text
        at = 0
        for match in self._mark.finditer(text):
            if at < match.start():
                yield text[at : match.start()], False
            yield self._marks[match[0]], True
            at = match.end()
        longest = min(self._most, len(text) - at)
        held = next((n for n in range(longest, 0, -1) if text[len(text) - n :] in self._beginnings), 0)
        self._held = text[len(text) - held :]
        if at < len(text) - held:
            yield text[at : len(text) - held], False

    def finish(self) -> str:
        """What waited, at the end of the text."""
        held, self._held = self._held, ""
        return held
