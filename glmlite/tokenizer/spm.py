"""Vocabularies of sentencepiece: `llama` (BPE with byte fallback) and `t5` (unigram).

The sentencepiece library does the work. Its model is a protobuf message (sentencepiece_model.proto), written here
from the file's metadata:

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece   2 score (float)   3 type (as tokenizer.ggml.token_type)
    TrainerSpec      3 model_type (1 unigram, 2 bpe)   4 vocab_size   35 byte_fallback
    NormalizerSpec   1 name   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces
"""

from __future__ import annotations

import re
import struct

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from ..errors import FormatError
from .stream import Decoding
from .vocabulary import Metadata, TokenType, Vocabulary

_UNIGRAM, _BPE = 1, 2
_BLANK = "\u2581"  # stands for a space in pieces
# The library's double-array trie recurses once for every byte of a piece: 100,000 overflow a stack of 8 MiB.
_MAX_PIECE_BYTES = 1024
_UNKNOWN = " \u2047 "  # what sentencepiece decodes the unknown token to


class SentencePiece:
    """Plain text to ids by the sentencepiece library. Control tokens in the text are plain text to it."""

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary):
        model = metadata.text("tokenizer.ggml.model")
        unigram = model == "t5"
        dummy_prefix, extra_whitespaces, charsmap, scores = settings(metadata, vocabulary)
        _check(vocabulary)

        normalizer = (
            _field(1, b"precompiled" if charsmap else b"identity")
            + _field(2, charsmap)
            + _number(3, dummy_prefix)
            + _number(4, extra_whitespaces)
        )
        trainer = (
            _number(3, _UNIGRAM if unigram else _BPE)
            + _number(4, len(vocabulary.tokens))
            + _number(35, TokenType.BYTE in vocabulary.types)
        )
        pieces = enumerate(zip(vocabulary.tokens, scores.tolist(), vocabulary.types))
        proto = b"".join(_piece(i, *piece) for i, piece in pieces) + _field(2, trainer) + _field(3, normalizer)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError) as error:
            raise FormatError(f"tokenizer.ggml.tokens: sentencepiece refuses the vocabulary: {error}") from None

        self.decoding = Decoding(
            pieces=[_bytes(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types)],
            special=frozenset(vocabulary.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN)),
            unknown=vocabulary.ids_of_type(TokenType.UNKNOWN)[0],
            blank=frozenset(
                i
                for i in vocabulary.ids_of_type(TokenType.NORMAL, TokenType.USER_DEFINED)
                if vocabulary.tokens[i].startswith(_BLANK) and (dummy_prefix or extra_whitespaces)
            ),
            drop_blanks=extra_whitespaces,
            replacement="glmlite.replace_each_byte",
        )

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)


def settings(metadata: Metadata, vocabulary: Vocabulary) -> tuple[bool, bool, bytes, NDArray[np.float32]]:
    """(a blank is put before a text, extra blanks are removed, the character map or b"", the score of each token).

    Raises FormatError, naming the key.
    """
    unigram = metadata.text("tokenizer.ggml.model") == "t5"
    dummy_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    extra_whitespaces = metadata.flag("tokenizer.ggml.remove_extra_whitespaces", unigram)
    charsmap = metadata.data("tokenizer.ggml.precompiled_charsmap")
    check_charsmap(charsmap)
    numbers = metadata.numbers("tokenizer.ggml.scores", "fiu", len(vocabulary.tokens))
    if numbers is None:
        raise FormatError("tokenizer.ggml.scores: missing, expected a number for each token")
    with np.errstate(over="ignore"):
        scores = numbers.astype(np.float32)
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise FormatError(f"tokenizer.ggml.scores: value {at} is {scores[at]}, expected a finite number")
    return dummy_prefix, extra_whitespaces, charsmap, scores


def check_charsmap(data: bytes) -> None:
    """Checks that no lookup in a precompiled character map can leave it. Raises FormatError.

    data: u32 size of a trie, the trie (darts-clone: u32 units), then the replacements, each ended by NUL.
    A walk goes from unit p to unit p ^ offset(p) ^ byte; the unit reached gives the position of a replacement.
    sentencepiece up to 0.2.0 walks without looking at the size.
    """
    if not data:
        return

    def require(ok: bool, what: str) -> None:
        if not ok:
            raise FormatError(f"tokenizer.ggml.precompiled_charsmap: {what}")

    require(len(data) > 4, f"{len(data)} bytes, expected a size and a trie")
    size = int.from_bytes(data[:4], "little")
    require(
        size >= 1024 and size % 1024 == 0 and size + 4 < len(data),
        f"a trie of {size} bytes in {len(data)}, expected whole blocks of 1024",
    )
    units = np.frombuffer(data, "<u4", size // 4, 4)
    replacements = data[4 + size :]
    require(replacements.endswith(b"\0"), "the replacements do not end with NUL")
    try:
        longest = max(map(len, replacements.decode().split("\0")))
    except UnicodeDecodeError:
        longest = -1
    require(longest >= 0, "the replacements are not UTF-8")
    require(longest <= 1024, f"a replacement of {longest} characters, expected at most 1024")

    leaf = units >> 31 == 1
    require(bool((units[leaf] & 0x7FFFFFFF < len(replacements)).all()), "the trie points behind the replacements")
    offsets = (units >> 10) << np.where(units & 0x200, 8, 0).astype(np.uint32)
    reached = (np.arange(len(units), dtype=np.uint32) ^ offsets) | 0xFF
    require(bool((reached[~leaf] < len(units)).all()), "the trie points behind its end")


def _check(vocabulary: Vocabulary) -> None:
    """What sentencepiece would refuse, crash on or take silently, in words."""
    key = "tokenizer.ggml.tokens"
    unknown = vocabulary.ids_of_type(TokenType.UNKNOWN)
    if len(unknown) != 1:
        raise FormatError(f"tokenizer.ggml.token_type: {len(unknown)} unknown tokens (type 2), expected one")
    text: dict[str, int] = {}
    values: dict[int, int] = {}
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types)):
        if kind == TokenType.BYTE:
            match = re.fullmatch("<0x([0-9A-F]{2})>", token)
            if not match:
                raise FormatError(f"{key}: token {i} has the type of a byte, expected '<0x00>' to '<0xFF>'")
            if values.setdefault(int(match[1], 16), i) != i:
                raise FormatError(f"{key}: token {i} is the second '{token}'")
        elif kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
            if not token or "\0" in token:
                raise FormatError(f"{key}: token {i} is {'empty' if not token else 'text with a NUL'}")
            if (size := len(token.encode())) > _MAX_PIECE_BYTES:
                raise FormatError(f"{key}: token {i} has {size} bytes, expected at most {_MAX_PIECE_BYTES}")
            if (first := text.setdefault(token, i)) != i:
                raise FormatError(f"{key}: token {i} is the same text as token {first}")
    if len(values) not in (0, 256):
        raise FormatError(f"{key}: {len(values)} byte tokens, expected 256 or none")
    if not text:
        raise FormatError(f"{key}: no ordinary token")


def _piece(i: int, text: str, score: float, kind: int) -> bytes:
    if kind in (TokenType.CONTROL, TokenType.UNUSED):
        # Never found in text by the library; the name only has to be different from all others.
        text, kind = f"\x01{i}", TokenType.CONTROL
    return _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))


def _bytes(text: str, kind: int) -> bytes:
    if kind == TokenType.BYTE:
        return bytes([int(text[3:5], 16)])
    if kind == TokenType.UNUSED:
        return b""
    if kind == TokenType.UNKNOWN:
        return _UNKNOWN.encode()
    if kind == TokenType.CONTROL:
        return text.encode()
    return text.replace(_BLANK, " ").encode()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))
