"""Token ids to text, as they come: bytes are collected until they are whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import NamedTuple


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


# sentencepiece writes one U+FFFD for every byte that is in no character, Unicode's (and Python's) usual way is one
# for every longest beginning of a character.
codecs.register_error("glmlite.replace_each_byte", _replace_each_byte)


class Decoding(NamedTuple):
    """How a vocabulary's ids become text.

    pieces: the bytes of each id. special: ids that `skip_special` leaves out; each but `unknown` begins a new text.
    blank: ids whose piece begins with the blank that encoding puts before a text; at the beginning of a text it is
    dropped, of all pieces before the text's first other character if `drop_blanks` (sentencepiece's
    remove_extra_whitespaces), else once. replacement: the codec error handler that errors="replace" means.
    """

    pieces: list[bytes]
    special: frozenset[int]
    unknown: int | None = None
    blank: frozenset[int] = frozenset()
    drop_blanks: bool = False
    replacement: str = "replace"


class StreamDecoder:
    """The text of one stream of ids. What `push` and `finish` return, joined, is what `Tokenizer.decode` returns."""

    def __init__(self, decoding: Decoding, *, skip_special: bool = False, errors: str = "replace"):
        self._decoding = decoding
        self._skip_special = skip_special
        self._errors = decoding.replacement if errors == "replace" else errors
        self._waiting = b""  # the beginning of a character
        self._at_start = True

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete: whole characters only.

        Bytes that can no longer become a character are replaced here, once that is certain; a character's first
        bytes wait for the next push. Raises ValueError for an id outside the vocabulary.
        """
        d = self._decoding
        pieces = d.pieces
        out = [self._waiting]
        for i in ids:
            if not 0 <= i < len(pieces):
                raise ValueError(f"decode: token id {i}, expected 0 to {len(pieces) - 1}")
            if i in d.special:
                self._at_start = i != d.unknown
                if not self._skip_special:
                    out.append(pieces[i])
                continue
            piece = pieces[i]
            if self._at_start and piece:
                dropped = i in d.blank
                piece = piece[dropped:]
                self._at_start = not piece and d.drop_blanks
            out.append(piece)
        data = b"".join(out)
        whole = len(data) - _beginning(data)
        self._waiting = data[whole:]
        return data[:whole].decode("utf-8", self._errors)

    def finish(self) -> str:
        """What is left at the end of the stream: the replacement of an incomplete character, or nothing."""
        self._at_start = True
        data, self._waiting = self._waiting, b""
        return data.decode("utf-8", self._errors)


def _beginning(data: bytes) -> int:
    """How many bytes at the end of `data` are no character yet, but can become one.

    As codecs' incremental decoder, but for a surrogate's first two bytes, where that one waits in vain.
    """
    for n in range(1, min(4, len(data) + 1)):
        first = data[-n]
        if 0x80 <= first < 0xC0:
            continue
        size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        if n >= size or not 0xC2 <= first <= 0xF4:
            return 0
        try:
            if n > 1:  # a good first byte alone always can; the second decides
                (data[-n:] + b"\x80" * (size - n)).decode()
        except UnicodeDecodeError:
            return 0
        return n
    return 0
