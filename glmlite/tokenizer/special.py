"""Find special tokens written in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_MASKS = ("[MASK]", "[gMASK]", "[sMASK]")


class SpecialSplitter:
    """Splits a text at special tokens: the leftmost first, of those that begin there the longest.

    A token of letters only (ChatGLM3's `sop`, `eop`) counts only right after a mask token: `[gMASK]sop` holds two
    tokens, `isopropyl` none.

    Time is O(text * distinct token lengths), however many tokens a file has.
    """

    def __init__(self, ids: Mapping[str, int]):
        self.ids = dict(ids)
        lengths: dict[str, set[int]] = {}
        for text in self.ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of `text` in order: plain text as str (never empty), special tokens as their id."""
        begin = at = 0
        while self._first is not None and (match := self._first.search(text, at)):
            at = match.start()
            found = self._match(text, at)
            if found is None:
                at += 1
                continue
            if begin < at:
                yield text[begin:at]
            yield self.ids[found]
            begin = at = at + len(found)
        if begin < len(text):
            yield text[begin:]

    def _match(self, text: str, at: int) -> str | None:
        for length in self._lengths[text[at]]:
            token = text[at : at + length]
            if token in self.ids and (not token.isalnum() or text.endswith(_MASKS, 0, at)):
                return token
        return None
