"""Real tokenizer files for tests, and the GGUF metadata made from them.

The files are looked for in $GLMLITE_TOKENIZERS, else in shared/tokenizers beside the repository.
"""

import functools
import os
from pathlib import Path

import pytest

from glmlite.convert import vocab

ROOT = Path(os.environ.get("GLMLITE_TOKENIZERS") or Path(__file__).parents[2] / "shared" / "tokenizers")
VOCAB_SIZES = {"chatglm-6b": 130528, "chatglm3-6b": 65024, "glm-4-9b-chat": 151552, "glm-4-9b-chat-hf": 151552}
IDS = {
    "chatglm-6b": {"bos": 130004, "eos": 130005, "padding": 3},
    "chatglm3-6b": {"bos": 1, "eos": 2, "padding": 0},
    "glm-4-9b-chat": {"eos": 151329, "eot": 151336, "padding": 151329},
    "glm-4-9b-chat-hf": {"eos": 151329, "eot": 151336, "padding": 151329},
}


def folder(name: str) -> Path:
    """The folder of real tokenizer files `name`; skips the test when it is missing."""
    path = ROOT / name
    if not path.is_dir():
        pytest.skip(f"no tokenizer files in {path}; set GLMLITE_TOKENIZERS")
    return path


@functools.cache
def metadata(name: str) -> dict:
    """The metadata of a GGUF file with the real vocabulary `name`."""
    ids = {f"tokenizer.ggml.{key}_token_id": i for key, i in IDS[name].items()}
    return vocab.from_folder(folder(name), vocab_size=VOCAB_SIZES[name]) | ids
