"""A tokenizer as data: what csrc/text/tokenizer.h reads from a file's metadata to do the same without Python.

    tables(gguf.metadata)  ->  {"tokenizer.ggml.tokens": [...], "glmlite.text.model": "byte_bpe", ...}

Each value goes into the metadata under its name: str, bool, a list of str, or an array of uint8, int32, uint32 or
float32. What is empty is left out.

    tokenizer.ggml.tokens, .merges   as they are
    glmlite.text.model               "byte_bpe", "bpe" or "unigram": tokenizer.ggml.model is gpt2, llama or t5
    glmlite.text.types               uint8, a TokenType of each token
    glmlite.text.whole_words         byte_bpe: a word that is a token is that token, whatever the merges make of it
    glmlite.text.classes, .words     byte_bpe: where text is cut into words, see automata.py
    glmlite.text.scores              bpe, unigram: float32, of each token
    glmlite.text.characters          bpe, unigram: uint8, the precompiled character map
    glmlite.text.space_prefix        bpe, unigram: a blank is put before a text
    glmlite.text.remove_extra_space  bpe, unigram: blanks at both ends go, and of several all but one
    glmlite.text.blank_tokens        bpe, unigram: newlines, tabs and runs of blanks are tokens (ChatGLM-6B)
    glmlite.text.special_texts       the special tokens that are found in text, with their .special_ids, and
                                     .special_rules: bit 0: only behind a mask token; bit 1: in plain text, too
    glmlite.text.ends, .prefix       ids that end an answer; what a prompt begins with
    glmlite.text.begins              ids that a prompt may have in place of its prefix
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .tokenizer import Tokenizer
from .vocabulary import Metadata

_MODELS = {"gpt2": "byte_bpe", "llama": "bpe", "t5": "unigram"}
_AFTER_MASK, _IN_PLAIN_TEXT = 1, 2


def tables(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of the tokenizer that a file's metadata describes. Raises FormatError as Tokenizer does."""
    return of(Tokenizer.from_metadata(metadata), Metadata(metadata))


def of(tokenizer: Tokenizer, metadata: Metadata) -> dict[str, Any]:
    """The tables of a tokenizer, and of the metadata that it was made from."""
    model = metadata.text("tokenizer.ggml.model")
    vocabulary = tokenizer._vocabulary
    found: dict[str, Any] = {
        "model": _MODELS[model],
        "types": np.array(vocabulary.types, np.uint8),
        "ends": _ids(sorted(tokenizer.eos_ids)),
        "prefix": _ids(tokenizer.prefix_ids),
        "begins": _ids(sorted(i for i in tokenizer._begins if i is not None)),
    }
    special, plain = (tokenizer._splitters[special].ids for special in (True, False))
    found["special_texts"] = list(special)
    found["special_ids"] = _ids(special.values())
    found["special_rules"] = np.array(
        [_AFTER_MASK * text.isalnum() | _IN_PLAIN_TEXT * (text in plain) for text in special], np.uint8
    )
    if model == "gpt2":
        from .automata import tables as automata
        from .bpe import IGNORE_MERGES, patterns, pre_of

        pre = pre_of(metadata, vocabulary)
        found["whole_words"] = pre in IGNORE_MERGES
        found["classes"], found["words"] = automata(patterns(pre))
    else:
        from .spm import settings

        space_prefix, remove_extra_space, characters, scores = settings(metadata, vocabulary)
        found["space_prefix"], found["remove_extra_space"] = space_prefix, remove_extra_space
        found["characters"] = np.frombuffer(characters, np.uint8)
        found["scores"] = scores
        found["blank_tokens"] = model == "t5" and metadata.text("tokenizer.ggml.pre", "default") == "chatglm1"
    written: dict[str, Any] = {"tokenizer.ggml.tokens": vocabulary.tokens}
    if model == "gpt2":
        written["tokenizer.ggml.merges"] = metadata.strings("tokenizer.ggml.merges")
    written |= {f"glmlite.text.{name}": value for name, value in found.items()}
    return {name: value for name, value in written.items() if isinstance(value, bool) or len(value) > 0}


def _ids(ids: Collection[int]) -> np.ndarray:
    return np.array(list(ids), np.int32)
