"""Real tokenizer files for tests, and the GGUF metadata made from them; small vocabularies.

The files are looked for in $GLMLITE_TOKENIZERS and nowhere else. "trained NAME" is a vocabulary of the same form that
the tests make themselves.
"""

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import trained

from glmlite.convert import vocab
from glmlite.tokenizer.bpe import ALPHABET

VOCAB_SIZES = {"chatglm-6b": 130528, "chatglm3-6b": 65024, "glm-4-9b-chat": 151552, "glm-4-9b-chat-hf": 151552}
TRAINED = "trained "
IDS = {
    "chatglm-6b": {"bos": 130004, "eos": 130005, "padding": 3},
    "chatglm3-6b": {"bos": 1, "eos": 2, "padding": 0},
    "glm-4-9b-chat": {"eos": 151329, "eot": 151336, "padding": 151329},
    "glm-4-9b-chat-hf": {"eos": 151329, "eot": 151336, "padding": 151329},
}


def folder(name: str) -> Path:
    """The folder of real tokenizer files `name`; skips the test when it is missing."""
    if name.startswith(TRAINED):
        return trained.folder(name.removeprefix(TRAINED))
    root = os.environ.get("GLMLITE_TOKENIZERS")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"no real tokenizer files of {name}: GLMLITE_TOKENIZERS names no folder that has them")
    return Path(root) / name


@functools.cache
def metadata(name: str) -> dict:
    """The metadata of a GGUF file with the real vocabulary `name`."""
    ids = {f"tokenizer.ggml.{key}_token_id": i for key, i in IDS.get(name, {}).items()}
    return vocab.from_folder(folder(name), vocab_size=VOCAB_SIZES.get(name, 0)) | ids


# ---- small vocabularies, also for the fuzz target --------------------------------------------------------------------

CONTROL, USER_DEFINED = 3, 4
SPECIALS = ["[MASK]", "[gMASK]", "<sop>", "sop", "<|user|>", "<|endoftext|>"]


def charsmap() -> bytes:
    """A character map with one rule, A -> b: a root, its child at A, and the child's value."""
    units = np.zeros(256, np.uint32)
    units[0] = 1 << 10  # offset 1: the child for byte c is at 1 ^ c
    child = 1 ^ ord("A")
    units[child] = ord("A") | 1 << 8 | 2 << 10  # label A, has a value at child ^ 2
    units[child ^ 2] = 1 << 31  # position 0 of the replacements
    return (1024).to_bytes(4, "little") + units.tobytes() + b"b\0"


def small_sentencepiece(pre: str = "default") -> dict:
    """A BPE vocabulary with byte fallback, or with pre `chatglm1` a unigram vocabulary with white space tokens."""
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *SPECIALS, "\u2581", "a", "b", "ab", "\u2581ab", "你"]
    types = [2, *[6] * 256, *[CONTROL] * len(SPECIALS), *[1] * 6]
    if pre == "chatglm1":
        spaces = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]
        tokens += spaces
        types += [USER_DEFINED] * len(spaces)
    return {
        "tokenizer.ggml.model": "t5" if pre == "chatglm1" else "llama",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
        "tokenizer.ggml.precompiled_charsmap": np.frombuffer(charsmap(), np.uint8),
    }


def small_bytes(pre: str = "glm4") -> dict:
    """A byte-level BPE vocabulary."""
    tokens = [*ALPHABET.values(), "ab", "Ġab", "ä½", "ä½ł", *SPECIALS]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * 260 + [CONTROL] * len(SPECIALS), np.int32),
        "tokenizer.ggml.merges": ["a b", "Ġ ab", "ä ½", "ä½ ł"],
    }
