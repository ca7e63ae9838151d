"""Writes tests/data/tiny.glmlite, the model that test_capi.cpp and fuzz_exported.cpp run:

PYTHONPATH=.:tests python tests/native/make_exported.py
"""

import tempfile
from pathlib import Path

import tiny

from glmlite.convert.export import export

SIZES = {"dim": 32, "heads": 2, "kv_heads": 1, "ffn": 32, "vocab": 320, "context": 512}

with tempfile.TemporaryDirectory() as folder:
    model = tiny.write(Path(folder) / "tiny.gguf", tiny.model("llama", **SIZES), "Q4_0")
    print(export(model, Path(__file__).parents[1] / "data" / "tiny.glmlite").path)
