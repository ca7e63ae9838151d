"""Error and speed of the quantizers against llama.cpp's, both in one run, taking turns.

    python benchmarks/quantize.py --rows 2048 --threads 2

Needs llama-cpp-python, whose ggml library is called through ctypes. Errors are the root of the mean of (x - stored)^2
over random matrices, weighted where there is an importance; speeds are those of the fastest of several turns, of
quantizing f32 that lies in memory. Results of a machine that does other work meanwhile mean little.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from glmlite import quantize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "oracles"))
import llamacpp_quantize as llamacpp

# llama.cpp's mix for a model of GLM-4-9B's shape: shares of its values in each type.
Q4_K_M = {"q4_k": 0.79, "q6_k": 0.21}


def theirs(x, type, importance, threads):
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(
            list(pool.map(lambda p: llamacpp.quantize(p, type, importance), np.array_split(x, threads)))
        )


def seconds(turns, *calls):
    """The least time of several turns."""
    best = [np.inf] * len(calls)
    for _ in range(turns):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=llamacpp.TYPES)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {}
    for type in arguments.types:
        row = results[type] = {}
        for case in llamacpp.CASES:
            x, importance = llamacpp.matrix(case)
            got = [quantize.quantize(x, type, importance), llamacpp.quantize(x, type, importance)]
            row[case] = [quantize.rms_error(x, rows, type, importance) for rows in got]
        x = np.random.default_rng(0).standard_normal((arguments.rows, 2048), np.float32)
        for name, importance in (("plain", None), ("importance", llamacpp.matrix("normal, importance")[1])):
            row[name] = seconds(
                arguments.turns,
                lambda: quantize.quantize(x, type, importance, threads=arguments.threads),  # noqa: B023
                lambda: theirs(x, type, importance, arguments.threads),  # noqa: B023
            )
        if arguments.json:
            continue
        errors = "  ".join(f"{row[c][0]:.6f} {row[c][0] / row[c][1]:.4f}" for c in llamacpp.CASES)
        speeds = "  ".join(
            f"{x.size / row[c][0] / 1e6:6.0f} M/s {row[c][1] / row[c][0]:5.2f}" for c in ("plain", "importance")
        )
        print(f"{type:7}{errors}  {speeds}", flush=True)
    if all(t in results for t in Q4_K_M):
        ours, others = (sum(share * results[t]["plain"][i] for t, share in Q4_K_M.items()) for i in (0, 1))
        results["q4_k_m"] = [ours, others]
        if not arguments.json:
            print(f"q4_k_m's mix: {x.size / ours / 1e6:.0f} M/s, {others / ours:.2f} times llama.cpp's")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
