"""Stores logits of tiny random GGUF files as computed by llama.cpp: tests/data/llama-cpp-<case>.npz.

Run with an interpreter that has llama_cpp (llama-cpp-python) and gguf: `python tests/oracles/llama_cpp_logits.py`.
Shows that a file means to us what it means there: metadata keys, tensor names, RoPE conventions. llama.cpp's keys and
values are kept in f32.
"""

import json
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

YARN = {"glm4.rope.scaling.type": "yarn", "glm4.rope.scaling.factor": 4.0}
YARN |= {"glm4.rope.scaling.original_context_length": 32}

# name -> architecture, arguments of tiny.model, tokens. llama.cpp wants chatglm heads as wide together as dim.
CASES = {
    "chatglm": ("chatglm", {"layers": 3, "kv_heads": 1}, 24),
    "chatglm-edge": ("chatglm", {"rope_dim": 32, "bias": False, "tied": True}, 24),
    "glm4": ("glm4", {"bias": True, "kv_heads": 1, "fused": False}, 24),
    "glm4-yarn": ("glm4", {}, 64),
    "glm4-sections": ("glm4", {}, 24),
    "glm4moe": ("glm4moe", {"layers": 3, "head_norms": True, "drafting": True}, 24),
    "deepseek2": (
        "deepseek2",
        {"layers": 3, "experts": 16, "used": 4, "head_dim": 96, "rope_dim": 32, "latent": 128, "drafting": True},
        24,
    ),
    "llama": ("llama", {"layers": 3}, 24),
    "llama-factors": ("llama", {"factors": [1.0 + i / 4 for i in range(16)]}, 64),
    "llama-linear": ("llama", {}, 24),
}
METADATA = {
    "glm4-yarn": YARN,
    "glm4-sections": {"glm4.rope.dimension_sections": [2, 3, 3, 0]},
    "llama-linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
}


def main():
    for case, (architecture, sizes, length) in CASES.items():
        recipe = {"architecture": architecture, "sizes": {"dim": 128, **sizes, "metadata": METADATA.get(case, {})}}
        model = tiny.model(architecture, **recipe["sizes"])
        tokens = np.random.RandomState(1).randint(0, 256, length)
        with tempfile.TemporaryDirectory() as folder:
            path = tiny.write(str(Path(folder) / "tiny.gguf"), model)
            logits = evaluate(path, tokens.tolist())
        np.savez_compressed(
            TESTS / "data" / f"llama-cpp-{case}.npz",
            recipe=json.dumps(recipe),
            checksum=tiny.checksum(model),
            tokens=tokens.astype(np.int32),
            logits=logits,
        )
        print(f"{case}: {logits.shape}, largest {np.abs(logits).max():.3f}")


def evaluate(path, tokens):
    """Logits (T, vocab) of all tokens."""
    f32 = 0  # ggml's type number
    theirs = llama_cpp.Llama(path, n_ctx=128, logits_all=True, type_k=f32, type_v=f32, n_threads=1, verbose=False)
    theirs.eval(tokens)
    logits = np.array(theirs.scores[: len(tokens)], np.float32)
    theirs.close()
    return logits


if __name__ == "__main__":
    main()
