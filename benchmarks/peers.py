"""Prompt and generation speed against llama.cpp, both in one run, taking turns.

    python benchmarks/peers.py edge-q4_0.gguf edge-q8_0.gguf --prompt 512 --generate 64 --repeat 5

Files of random weights come from benchmarks/random_model.py. Needs llama-cpp-python, built from its source package so
that it uses this machine's instructions. Prints medians and ratios, and the bandwidth and the int8 peak measured in
the same run. Results of a machine that does other work meanwhile mean nothing: look at the spread.
"""

import argparse
import json
import statistics
import time

import numpy as np

from glmlite import _native, models
from glmlite.engine import native_ops


class Ours:
    name = "glmlite"

    def __init__(self, path, threads, context):
        gguf = _native.Gguf(path)
        recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
        self.engine = _native.Engine(
            gguf, native_ops(recording.ops, gguf.dequantize), kv_tokens=context, threads=threads
        )
        self.bytes = self.engine.weight_bytes
        self.sequence = None

    def _work(self, ids, start, **more):
        positions = np.stack([np.arange(start, start + len(ids)), np.zeros(len(ids))], 1).astype(np.int32)
        return _native.Work(self.sequence, ids, positions, **more)

    def read(self, ids, at=0):
        """Enters ids after the first `at` tokens of the sequence."""
        if self.sequence is None:
            self.sequence = self.engine.new_sequence()
        self.engine.truncate(self.sequence, at)
        for i in range(0, len(ids), 512):
            part = ids[i : i + 512]
            last = [len(part) - 1] if i + 512 >= len(ids) else []
            self.engine.step([self._work(part, at + i)], last)

    def generate(self, n, at):
        work = self._work([1], at, sampler=_native.Sampler(), budget=n, next_position=(at + 1, 0))
        (samples,) = self.engine.run([work], max_ms=1e9)
        assert len(samples) == n


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, path, threads, context):
        import llama_cpp

        self.model = llama_cpp.Llama(
            path, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
        )

    def read(self, ids, at=0):
        if at == 0:
            self.model.reset()
        self.model.n_tokens = at
        self.model.eval(ids)

    def generate(self, n, at):
        self.model.n_tokens = at
        for _ in range(n):
            self.model.eval([1])


def measure(engine, prompt, generate, depth, rng):
    """Seconds of reading `prompt` tokens and of generating `generate`, both after `depth` tokens."""
    ids = [int(i) for i in rng.integers(300, 2000, depth + prompt)]
    if depth:
        engine.read(ids[:depth])
    start = time.perf_counter()
    engine.read(ids[depth:], depth)
    read = time.perf_counter() - start
    start = time.perf_counter()
    engine.generate(generate, depth + prompt)
    return read, time.perf_counter() - start


def compare(path, arguments):
    """Rows of the table for one file: engine, tokens/s read and generated: medians and spread, ratios of medians."""
    context = arguments.depth + arguments.prompt + arguments.generate + 64
    engines = [kind(path, arguments.threads, context) for kind in (Ours, LlamaCpp)]
    times = {engine.name: [] for engine in engines}
    rng = np.random.default_rng(0)
    for repeat in range(arguments.repeat + 1):
        for engine in engines:
            seconds = measure(engine, arguments.prompt, arguments.generate, arguments.depth, rng)
            if repeat:  # the first is to warm up
                times[engine.name].append(seconds)
    result = {"file": path, "bytes": engines[0].bytes}
    for name, rows in times.items():
        for key, n, column in (("prompt", arguments.prompt, 0), ("generate", arguments.generate, 1)):
            speeds = sorted(n / row[column] for row in rows)
            result[f"{name} {key}"] = {"median": statistics.median(speeds), "min": speeds[0], "max": speeds[-1]}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bandwidth = _native.machine_bandwidth(arguments.threads)
    peak = _native.machine_int8_peak(arguments.threads)
    if not arguments.json:
        print(f"{arguments.threads} threads, {bandwidth:.1f} GB/s, {peak:.0f} GOPS int8 ({_native.default_isa()})")
    for path in arguments.files:
        result = compare(path, arguments) | {"bandwidth": bandwidth, "int8_peak": peak}
        if arguments.json:
            print(json.dumps(result))
            continue
        print(path)
        for key in ("prompt", "generate"):
            ours, theirs = result[f"glmlite {key}"], result[f"llama.cpp {key}"]
            for name, speed in (("glmlite", ours), ("llama.cpp", theirs)):
                print(f"  {key:9}{name:10}{speed['median']:8.1f} tokens/s  ({speed['min']:.1f} to {speed['max']:.1f})")
            print(f"  {key:9}ratio     {ours['median'] / theirs['median']:8.2f}")
        used = result["glmlite generate"]["median"] * result["bytes"] / 1e9
        print(f"  weights read while generating: {used:.1f} GB/s, {used / bandwidth:.0%} of the bandwidth")


if __name__ == "__main__":
    main()
