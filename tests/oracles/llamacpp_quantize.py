"""Stores the errors of llama.cpp's quantizers on random matrices: tests/data/llamacpp_quantize.json.

Run with an interpreter that has llama_cpp (llama-cpp-python) and gguf: `python tests/oracles/llamacpp_quantize.py`.
The matrices are made again by the test, from the same seeds.
"""

import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[1] / "data" / "llamacpp_quantize.json"
TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
CASES = ("normal", "heavy tails", "normal, importance", "heavy tails, importance")


def matrix(case):
    """x (128, 2048) f32 and importance (2048,) f32 or None. Heavy tails: Student's t with 3 degrees of freedom."""
    rng = np.random.default_rng(CASES.index(case))
    x = rng.standard_normal((128, 2048)) if case.startswith("normal") else rng.standard_t(3, (128, 2048))
    importance = np.exp(rng.standard_normal(2048)).astype(np.float32) if "importance" in case else None
    return x.astype(np.float32), importance


def library():
    """llama.cpp's ggml-base, where llama_cpp has it. The package itself is not imported."""
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    names = "libggml-base.so", "libggml-base.dylib", "ggml-base.dll"
    lib = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return lib


def quantize(x, type, importance=None):
    """x (n, k) f32 -> (n, bytes) uint8 by ggml_quantize_chunk."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[type.upper()]
    values, size = GGML_QUANT_SIZES[kind]
    n, k = x.shape
    out = np.empty((n, k // values * size), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, n, k, weights)
    if written != out.nbytes:
        raise RuntimeError(f"ggml_quantize_chunk: {type}: {written} bytes, expected {out.nbytes}")
    return out


def main():
    from gguf import GGMLQuantizationType, quants

    errors = {}
    for type in TYPES:
        for case in CASES:
            x, importance = matrix(case)
            stored = quants.dequantize(quantize(x, type, importance), GGMLQuantizationType[type.upper()])
            error = np.square(x - stored, dtype=np.float64).mean(0)
            errors.setdefault(type, {})[case] = float(np.sqrt(np.average(error, weights=importance)))
    lines = ",\n".join(f"{json.dumps(type)}: {json.dumps(row)}" for type, row in errors.items())
    OUT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
