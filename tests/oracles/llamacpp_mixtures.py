"""How far mixtures of experts are from exact arithmetic, in our engine and in llama.cpp's, with the same files.

    python tests/oracles/llamacpp_mixtures.py FOLDER_OF_A_BYTE_LEVEL_TOKENIZER

Writes random models of benchmarks/random_model.py, small but with the real vocabulary of the folder, in F32, Q8_0 and
Q4_K_M, and prints the KL divergence of both engines' predictions from those of the numpy executor with the same
weights: mean and median over the tokens of a random text. f16 keys and values in both. Exits with 1 where our mean is
larger. Needs llama-cpp-python, gguf and the built module.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "oracles")]
from llamacpp import LlamaCpp, Ours, divergence  # noqa: E402

TOKENS = 256
EXPERTS = ["--layers", "3", "--dim", "512", "--heads", "8", "--ffn", "1024"]
EXPERTS += ["--experts", "16", "--used", "4", "--expert-ffn", "256"]
SHAPES = {
    "glm-4.5-air": [*EXPERTS, "--kv-heads", "2", "--head-dim", "64", "--rope-dim", "32"],
    "glm-4.7-flash": [*EXPERTS, "--q-rank", "256"],
}


def main():
    tokenizer = sys.argv[1]
    random = np.random.default_rng(5)
    worse = False
    with tempfile.TemporaryDirectory() as folder:
        for shape, sizes in SHAPES.items():
            for format in ("F32", "Q8_0", "Q4_K_M"):
                path = Path(folder) / f"{shape}-{format}.gguf"
                writer = [sys.executable, TESTS.parent / "benchmarks" / "random_model.py", shape, format, path, *sizes]
                subprocess.run([*map(str, writer), "--tokenizer", tokenizer], check=True, stdout=subprocess.DEVNULL)
                ids = [int(i) for i in random.integers(1000, 150_000, TOKENS)]
                ours, theirs = Ours(path), LlamaCpp(path, 2 * TOKENS)
                (exact,) = ours.exact_logits([ids])
                a, b = divergence(exact, ours.logits(ids)), divergence(exact, theirs.logits(ids))
                theirs.close()
                path.unlink()
                worse |= a.mean() > b.mean()
                print(
                    f"{shape} {format}: mean {a.mean():.3g}, llama.cpp {b.mean():.3g}: {a.mean() / b.mean():.2f}; "
                    f"median {np.median(a):.3g}, {np.median(b):.3g}",
                    flush=True,
                )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
