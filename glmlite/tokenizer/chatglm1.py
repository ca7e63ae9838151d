"""ChatGLM-6B: a unigram vocabulary with tokens for white space. Metadata: model `t5`, pre `chatglm1`.

Before encoding, a newline becomes `<n>`, a tab `<|tab|>`, and a run of n spaces `<|blank_n|>` (n from 80 down to 2),
all of them user-defined pieces of the vocabulary; after decoding they are white space again.
"""

from __future__ import annotations

import re

from ..errors import FormatError
from .spm import SentencePiece
from .vocabulary import Metadata, TokenType, Vocabulary

_LONGEST_RUN = 80
_SPACES = {"<n>": "\n", "<|tab|>": "\t"} | {f"<|blank_{n}|>": " " * n for n in range(2, _LONGEST_RUN + 1)}


class ChatGLM1(SentencePiece):
    """sentencepiece between two rewritings of white space."""

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary):
        super().__init__(metadata, vocabulary)
        for text, spaces in _SPACES.items():
            i = vocabulary.ids.get(text)
            if i is None or vocabulary.types[i] != TokenType.USER_DEFINED:
                raise FormatError(f"tokenizer.ggml.tokens: '{text}' is no user-defined token, chatglm1 needs it")
            self.decoding.pieces[i] = spaces.encode()

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        return super().encode(re.sub(f" {{2,{_LONGEST_RUN}}}", _blank, text))


def _blank(run: re.Match[str]) -> str:
    return f"<|blank_{len(run[0])}|>"
