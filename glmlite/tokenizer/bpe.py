"""Byte-level BPE vocabularies: model `gpt2`. The tokenizers library cuts text into words, the engine merges them.

`tokenizer.ggml.pre` names how text is cut into words before merging; merges never cross a cut.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split

from ..cancel import check_thread
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
# Letters of two cases as DeepSeek's files list them, which is not all that Unicode has. To them, Hanzi are all from
# Samaritan on.
_DEEPSEEK_LETTERS = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_HANZI = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _DEEPSEEK_HANZI,
    r"\p{N}",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HANZI, r"\p{N}")
_SEED_CODER = _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_VIKING = (" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", r"\p{N}")

# pre -> patterns, applied one after another: every match, and what lies between two, is a word.
PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "glm4": (_LLAMA3,),
    "chatglm-bpe": (_LLAMA3,),
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "mellum": (_GPT2,),
    "trillion": (_GPT2,),
    "granite-docling": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "pixtral": (_LLAMA3,),
    "midm-2.0": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "stablelm2": (_QWEN2,),
    "megrez": (_QWEN2,),
    "seed-coder": (_SEED_CODER,),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    "minerva-7b": _DIGITS_APART,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "viking": _VIKING,
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
}
# Finds the same in a time that grows with the text: as the files spell it, it is tried at each blank of a run.
_FASTER = {r"\s+$": r"(?<!\s)\s++$"}
# A word that is a token as a whole is that token, whatever the merges would make of it. So do tiktoken, which the GLM-4
# models were trained with, and transformers; 893 of GLM-4's tokens (" 王", " Begriff") cannot be had by merges.
IGNORE_MERGES = frozenset(
    {"glm4", "chatglm-bpe", "llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "tekken"}
)


def _byte_alphabet() -> dict[int, str]:
    """Byte -> the character that stands for it in tokens: itself if printable, else the next of U+0100, U+0101, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


ALPHABET = _byte_alphabet()

# Characters that are cut into words at once. The library holds the GIL meanwhile, and its result has two tuples a word:
# so few of them die before Python's collector looks through all that lives.
_SLICE = 1024
# A word is certain if it ends so many characters before a slice does: patterns look no further behind a word, unless it
# belongs to a run (of white space, of letters) that reaches the slice's end, and then it is the last word; or is
# followed by such a run of white space, which `$` takes for the last of the text, and then it is the last but one.
_MARGIN = 16


def pre_of(metadata: Metadata, vocabulary: Vocabulary) -> str:
    """How the vocabulary's text is cut into words: a key of PATTERNS. Raises FormatError for another."""
    pre = metadata.text("tokenizer.ggml.pre", "glm4" if vocabulary.is_glm else "default")
    if pre not in PATTERNS:
        raise FormatError(f"tokenizer.ggml.pre: {pre[:40]!r} is not known; known: {', '.join(sorted(PATTERNS))}")
    return pre


def patterns(pre: str) -> list[str]:
    """PATTERNS as they are searched for."""
    return [_FASTER.get(pattern, pattern) for pattern in PATTERNS[pre]]


class ByteBPE:
    """Plain text to ids: the tokenizers library cuts it into words, the engine merges their bytes.

    The library can do both, but making its merges of GLM-4's 318,088 holds the GIL for 0.2 to 0.4 s, and so does
    encoding a long text. Special tokens in the text are plain text here.
    """

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary):
        from .. import _native

        pre = pre_of(metadata, vocabulary)
        types = np.array(vocabulary.types)
        kinds = np.where(np.isin(types, (TokenType.NORMAL, TokenType.BYTE)), 0, 1 + (types == TokenType.UNUSED))
        merges = metadata.strings("tokenizer.ggml.merges")
        whole = pre in IGNORE_MERGES
        self._bpe = _native.Bpe(
            vocabulary.tokens, kinds.astype(np.uint8), merges, whole_words=whole, check=metadata.check
        )
        self._words = Sequence([Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns(pre)])
        self._long_words = tokenizers.Tokenizer(WordLevel({"": 0}, unk_token=""))
        self._long_words.pre_tokenizer = self._words
        self.decoding = Decoding(
            pieces=self._bpe.pieces(),
            special=frozenset(vocabulary.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN)),
        )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            check_thread("tokenize")
            ends = self._cut(text, begin)
            end = begin + int(ends[-1])
            ids += self._bpe.encode(text[begin:end], ends).tolist()
            begin = end
        return ids

    def _cut(self, text: str, begin: int) -> NDArray[np.int32]:
        """Where the next words end, counted from `begin`."""
        size = _SLICE
        while True:
            part = text[begin : begin + size]
            if size <= 2 * _SLICE:
                words = [end for _, (_, end) in self._words.pre_tokenize_str(part)]
            else:  # a word this long is cut without the GIL, for which the library wants a batch
                (encoding,) = self._long_words.encode_batch([part], add_special_tokens=False)
                words = [end for _, end in encoding.offsets]
            # Not numpy's comparison: of more than 500 numbers it gives up the GIL for a moment each time, which keeps
            # threads that wait for it from asking.
            if begin + size < len(text):
                words = words[: max(0, min(len(words) - 2, bisect_right(words, size - _MARGIN)))]
            if words:
                return np.array(words, np.int32)
            size *= 2
