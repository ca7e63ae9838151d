"""The token list of a GGUF file, read from its metadata and checked once: what is wrong is named by its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from ..errors import FormatError
from ..families import GLM_SPECIALS

# The longest token of any vocabulary in use has fewer than 1,024 characters, the longest special one fewer than 64.
MAX_TOKEN_CHARS = 8192
MAX_SPECIAL_CHARS = 256
CHECKED = 8192  # strings between two calls of Metadata.check, looked at without a chance for other threads to run

_SENTENCEPIECE = ("llama", "t5")  # values of tokenizer.ggml.model


class TokenType(IntEnum):
    """Values of tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Metadata:
    """Typed reading of the metadata of a file. Every method raises FormatError, naming the key.

    check: called every few milliseconds while lists are read; what it raises ends that. Whoever goes through such a
    list does likewise.
    """

    def __init__(self, values: Mapping[str, Any], check: Callable[[], object] = lambda: None):
        self._values = values
        self.check = check

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise FormatError(f"{key}: missing, expected a string")
            return default
        if not isinstance(value, str):
            raise FormatError(f"{key}: {_kind(value)}, expected a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{key}: {_kind(value)}, expected a bool")
        return bool(value)

    def ids(self, key: str, count: int) -> tuple[int, ...]:
        """A token id, or an array of them; () when the key is missing. Each is checked to be below `count`."""
        value = self._values.get(key)
        if value is None:
            return ()
        array = np.atleast_1d(self._array(key, value, "iu", "token ids"))
        outside = array[(array < 0) | (array >= count)]
        if outside.size:
            raise FormatError(f"{key}: token id {outside[0]}, expected 0 to {count - 1}")
        return tuple(array.tolist())

    def id(self, key: str, count: int) -> int | None:
        ids = self.ids(key, count)
        if len(ids) > 1:
            raise FormatError(f"{key}: {len(ids)} token ids, expected one")
        return ids[0] if ids else None

    def numbers(self, key: str, kinds: str, count: int) -> np.ndarray | None:
        """A one-dimensional array of `count` numbers of the numpy `kinds`; None when the key is missing."""
        if key not in self:
            return None
        array = self._array(key, self._values[key], kinds, "numbers")
        if array.shape != (count,):
            raise FormatError(f"{key}: shape {array.shape}, expected ({count},), a value for each token")
        return array

    def data(self, key: str) -> bytes:
        """An array of bytes; b"" when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return b""
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        array = self._array(key, value, "iu", "bytes")
        if array.ndim != 1 or ((array < -128) | (array > 255)).any():
            raise FormatError(f"{key}: shape {array.shape}, expected a list of bytes")
        return array.astype(np.uint8).tobytes()

    def strings(self, key: str) -> list[str]:
        value = self._values.get(key)
        if value is None:
            raise FormatError(f"{key}: missing, expected strings")
        if not isinstance(value, (list, tuple)):
            raise FormatError(f"{key}: {_kind(value)}, expected strings")
        for begin in range(0, len(value), CHECKED):
            self.check()
            part = value[begin : begin + CHECKED]
            if set(map(type, part)) == {str} and max(map(len, part)) <= MAX_TOKEN_CHARS and _is_text("".join(part)):
                continue
            for i, item in enumerate(part, begin):
                if not isinstance(item, str):
                    what = "not UTF-8" if isinstance(item, bytes) else _kind(item)
                    raise FormatError(f"{key}: string {i} is {what}, expected UTF-8 text")
                if len(item) > MAX_TOKEN_CHARS:
                    most = MAX_TOKEN_CHARS
                    raise FormatError(f"{key}: string {i} has {len(item)} characters, expected at most {most}")
                if not _is_text(item):
                    raise FormatError(f"{key}: a string holds a lone surrogate, expected UTF-8 text")
        return list(value)

    def _array(self, key: str, value: Any, kinds: str, what: str) -> np.ndarray:
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError):
            raise FormatError(f"{key}: {_kind(value)}, expected {what}") from None
        if array.dtype.kind not in kinds or array.ndim > 1:
            raise FormatError(f"{key}: {_kind(value)} of {array.dtype}, expected {what}")
        return array


class Vocabulary:
    """The tokens of a file with their types.

    tokens: as the file spells them. types: a TokenType each. ids: spelling -> id, special tokens first, then the
    lowest id. is_glm: the vocabulary has GLM's `[gMASK]`.
    """

    def __init__(self, metadata: Metadata):
        key = "tokenizer.ggml.tokens"
        self.tokens = metadata.strings(key)
        if not self.tokens:
            raise FormatError(f"{key}: empty, expected tokens")
        self.types = self._read_types(metadata)
        glm = [i for i, text in enumerate(self.tokens) if text in GLM_SPECIALS]
        mask = [self.types[i] for i in glm if self.tokens[i] == "[gMASK]"]
        starts = any(self.tokens[i] == "<sop>" for i in glm)
        self.is_glm = bool(mask) and (starts or any(kind != TokenType.NORMAL for kind in mask))
        for i in glm if self.is_glm else ():
            # GLM-4 has a word `sop` besides.
            if self.types[i] != TokenType.NORMAL or not self.tokens[i].isalpha():
                self.types[i] = TokenType.CONTROL
        self._one_unknown(metadata)
        metadata.check()
        marked = self.ids_of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        for i in marked:
            if not 0 < len(self.tokens[i]) <= MAX_SPECIAL_CHARS:
                raise FormatError(
                    f"{key}: special token {i} has {len(self.tokens[i])} characters, expected 1 to {MAX_SPECIAL_CHARS}"
                )
        self.ids = {self.tokens[i]: i for i in range(len(self.tokens) - 1, -1, -1)}
        self.ids.update((self.tokens[i], i) for i in reversed(marked))

    def ids_of_type(self, *kinds: TokenType) -> list[int]:
        found: list[int] = np.flatnonzero(np.isin(self.types, kinds)).tolist()
        return found

    def _read_types(self, metadata: Metadata) -> list[int]:
        key = "tokenizer.ggml.token_type"
        array = metadata.numbers(key, "iu", len(self.tokens))
        if array is None:
            return self._guess_types(metadata)
        wrong = array[(array < 0) | (array > max(TokenType))]
        if wrong.size:
            raise FormatError(f"{key}: type {wrong[0]}, expected 1 to {max(TokenType):d}")
        types: list[int] = np.maximum(array, TokenType.NORMAL).tolist()  # 0 is "undefined": an ordinary token
        return types

    def _guess_types(self, metadata: Metadata) -> list[int]:
        """A type for each token by its text, and by the keys that name tokens."""
        named = self._named(metadata)
        control = GLM_SPECIALS if "[gMASK]" in self.tokens else frozenset[str]()
        types: list[int] = [
            TokenType.CONTROL if i in named or text in control else TokenType.NORMAL
            for i, text in enumerate(self.tokens)
        ]
        if metadata.text("tokenizer.ggml.model", "") in _SENTENCEPIECE:
            spelled = {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
            spelled = spelled if spelled.keys() <= set(self.tokens) else {}
            spelled |= {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
            types = [spelled.get(text, kind) for text, kind in zip(self.tokens, types)]
        return types

    def _one_unknown(self, metadata: Metadata) -> None:
        """Sentencepiece has one unknown token: the one that the file names, else `<unk>`, else the first. What else is
        marked so, padding as a rule, is unused."""
        unknown = self.ids_of_type(TokenType.UNKNOWN)
        if len(unknown) < 2 or metadata.text("tokenizer.ggml.model", "") not in _SENTENCEPIECE:
            return
        chosen = metadata.id("tokenizer.ggml.unknown_token_id", len(self.tokens))
        if chosen is None:
            chosen = next((i for i in unknown if self.tokens[i] == "<unk>"), unknown[0])
        named = self._named(metadata)
        for i in unknown:
            self.types[i] = TokenType.CONTROL if i in named else TokenType.UNUSED
        self.types[chosen] = TokenType.UNKNOWN

    def _named(self, metadata: Metadata) -> set[int]:
        """The special tokens that keys of the file name."""
        kinds = ("bos", "eos", "eot", "eom", "padding", "cls", "mask")
        return {i for kind in kinds for i in metadata.ids(f"tokenizer.ggml.{kind}_token_id", len(self.tokens))}


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return type(value).__name__
