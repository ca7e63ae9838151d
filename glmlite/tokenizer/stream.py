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
    drop_blank: whether a text loses the blank that encoding put before it; drop_blanks: of every piece that
    comes before the text's first other character (sentencepiece's remove_extra_whitespaces).
    replacement: the codec error handler that errors="replace" means.
    """

    pieces: list[bytes]
    special: frozenset[int]
    unknown: int | None = None
    drop_blank: bool = False
    drop_blanks: bool = False
    replacement: str = "replace"


class StreamDecoder:
    """The text of one stream of ids. What `push` and `finish` return, joined, is what `Tokenizer.decode` returns."""

    def __init__(self, decoding: Decoding, *, skip_special: bool = False, errors: str = "replace"):
        self._decoding = decoding
        self._skip_special = skip_special
        handler = decoding.replacement if errors == "replace" else errors
        self._utf8 = codecs.getincrementaldecoder("utf-8")(handler)
        self._at_start = True

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete: whole characters only.

        Bytes that can no longer become a character are replaced here, once that is certain; a character's first
        bytes wait for the next push. Raises ValueError for an id outside the vocabulary.
        """
        d = self._decoding
        pieces = d.pieces
        out = []
        for i in ids:
            if not 0 <= i < len(pieces):
                raise ValueError(f"decode: token id {i}, expected 0 to {len(pieces) - 1}")
            if i in d.special:
                self._at_start = i != d.unknown
                if not self._skip_special:
                    out.append(pieces[i])
                continue
            piece = pieces[i]
            if self._at_start:
                dropped = piece[1:] if d.drop_blank and piece.startswith(b" ") else piece
                self._at_start = not dropped and (not piece or d.drop_blanks)
                piece = dropped
            out.append(piece)
        return self._utf8.decode(b"".join(out))

    def finish(self) -> str:
        """What is left at the end of the stream: the replacement of an incomplete character, or nothing."""
        self._at_start = True
        return self._utf8.decode(b"", final=True)
