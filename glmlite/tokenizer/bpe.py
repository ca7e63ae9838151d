"""Byte-level BPE vocabularies: model `gpt2`. The tokenizers library does the work.

`tokenizer.ggml.pre` names how text is cut into words before merging; merges never cross a cut.
"""

from __future__ import annotations

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from ..errors import FormatError
from .stream import Decoding
from .vocabulary import Metadata, TokenType, Vocabulary

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS_APART = (r"\p{N}", _GPT2)

# pre -> patterns, applied one after another: every match, and what lies between two, is a word.
PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "glm4": (_LLAMA3,),
    "chatglm-bpe": (_LLAMA3,),
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "stablelm2": (_QWEN2,),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
}
# A word that is a token as a whole is that token, whatever the merges would make of it. So do tiktoken, which the GLM-4
# models were trained with, and transformers; 893 of GLM-4's tokens (" 王", " Begriff") cannot be had by merges.
IGNORE_MERGES = frozenset({"glm4", "chatglm-bpe", "llama-bpe", "llama3", "llama-v3", "tekken"})


def _byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in tokens: itself if printable, else the next of U+0100, U+0101, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


ALPHABET = _byte_alphabet()
# Characters that stand for no byte become one that Latin-1 lacks, so that encoding notices them.
_TO_LATIN1 = dict.fromkeys(range(256), "\uffff") | {ord(char): chr(byte) for byte, char in ALPHABET.items()}


class ByteBPE:
    """Plain text to ids by the tokenizers library. Special tokens in the text are plain text to it."""

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary):
        pre = metadata.text("tokenizer.ggml.pre", "glm4" if vocabulary.is_glm else "default")
        if pre not in PATTERNS:
            raise FormatError(f"tokenizer.ggml.pre: '{pre}' is not known; known: {', '.join(sorted(PATTERNS))}")
        marked = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN, TokenType.UNUSED}
        words: dict[str, int] = {}
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types)):
            if kind not in marked and (first := words.setdefault(token, i)) != i:
                raise FormatError(f"tokenizer.ggml.tokens: token {i} is the same text as token {first}")
        if "" in words:
            raise FormatError(f"tokenizer.ggml.tokens: token {words['']} is empty")

        merges = []
        for i, merge in enumerate(metadata.strings("tokenizer.ggml.merges")):
            halves = merge.split(" ")
            if len(halves) != 2 or not words.keys() >= {*halves, "".join(halves)}:
                raise FormatError(
                    f"tokenizer.ggml.merges: merge {i} is {merge!r}, expected two tokens that join to a third"
                )
            # The vocabulary's own strings, not copies: GLM-4 has 318,088 merges.
            merges.append(tuple(vocabulary.tokens[words[half]] for half in halves))
        self._tokenizer = tokenizers.Tokenizer(BPE(words, merges, ignore_merges=pre in IGNORE_MERGES))
        cuts = [Split(tokenizers.Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
        self._tokenizer.pre_tokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
        self.decoding = Decoding(
            pieces=[_bytes(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types)],
            special=frozenset(vocabulary.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN)),
        )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _bytes(text: str, kind: int) -> bytes:
    if kind == TokenType.UNUSED:
        return b""
    if kind in (TokenType.NORMAL, TokenType.BYTE):
        try:
            return text.translate(_TO_LATIN1).encode("latin-1")
        except UnicodeEncodeError:  # a token that is not spelled in the byte alphabet stands for itself
            pass
    return text.encode()
