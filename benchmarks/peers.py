"""Prompt and generation speed against llama.cpp, both in one run, taking turns.

    python benchmarks/peers.py edge-q4_0.gguf edge-q8_0.gguf --prompt 512 --generate 64 --repeat 5
    python benchmarks/peers.py edge-q4_0.gguf --depth 8192 --generate 32
    python benchmarks/peers.py edge-q4_0.gguf --llama-bench ik_llama.cpp/build/bin/llama-bench --plot docs/peers.png

Files of random weights come from benchmarks/random_model.py. Needs llama-cpp-python, built from its source package so
that it uses this machine's instructions; or, instead, any number of `llama-bench` programs by path. Prints medians and
ratios; the fractions of the read bandwidth and of the int8 peak, which are measured in every repetition; and how long a
step of four tokens takes, in steps of one. With --depth, all are those after so many tokens, which each engine reads
once (llama-bench: each time). Results of a machine that does other work meanwhile mean nothing: look at the spread.
--plot needs matplotlib. GLMLITE_ISA=avx2 measures another set of glmlite's kernels.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time

import machine
import numpy as np

from glmlite import _native, models
from glmlite.cli.bench import cost_per_token
from glmlite.models.layout import everywhere, in_order
from glmlite.placement import native_ops


class Ours:
    name = "glmlite"

    def __init__(self, path, threads, context, kv_type="f16"):
        gguf = _native.Gguf(path)
        recording = models.record(gguf.metadata, {n: t.shape for n, t in gguf.tensors.items()})
        self.engine = _native.Engine(
            gguf,
            native_ops(recording.ops, gguf.dequantize),
            kv_tokens=-(-context // 64) * 64,
            kv_type=kv_type,
            threads=threads,
        )
        self.cost = cost_per_token(gguf, kv_type)
        self.sequence = self.engine.new_sequence()

    def _work(self, ids, start, **more):
        return _native.Work(self.sequence, ids, in_order(start, len(ids)), **more)

    def read(self, ids, at=0):
        """Enters ids after the first `at` tokens of the sequence."""
        self.engine.truncate(self.sequence, at)
        for i in range(0, len(ids), 512):
            part = ids[i : i + 512]
            last = [len(part) - 1] if i + 512 >= len(ids) else []
            self.engine.step([self._work(part, at + i)], last)

    def seconds_per_step(self, tokens, at, steps=16):
        """Seconds of steps that enter so many tokens after the first `at` and want all their logits."""
        start = time.perf_counter()
        for _ in range(steps):
            self.engine.truncate(self.sequence, at)
            self.engine.step([self._work(list(range(1, tokens + 1)), at)], list(range(tokens)))
        return (time.perf_counter() - start) / steps

    def generate(self, n, at):
        """Generates n tokens after the first `at`."""
        self.engine.truncate(self.sequence, at)
        work = self._work([1], at, sampler=_native.Sampler(), budget=n, next_position=everywhere(at + 1))
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


class Timed:
    """An engine of this process: tokens/s of reading `prompt` and of generating `generate` tokens at `depth`."""

    def __init__(self, engine, depth, prompt, generate):
        self.name, self.engine = engine.name, engine
        self.depth, self.generate = depth, generate
        ids = [int(i) for i in np.random.default_rng(0).integers(300, 2000, depth + prompt)]
        self.prompt = ids[depth:]
        if depth:
            engine.read(ids[:depth])

    def speeds(self):
        start = time.perf_counter()
        self.engine.read(self.prompt, self.depth)
        middle = time.perf_counter()
        self.engine.generate(self.generate, self.depth)
        end = time.perf_counter()
        return len(self.prompt) / (middle - start), self.generate / (end - middle)


class LlamaBench:
    """Speeds from a llama-bench program; `command` may have options of its own."""

    def __init__(self, command, path, threads, depth, prompt, generate):
        self.name = command
        sizes = {"-p": prompt, "-n": generate, "-t": threads, "-fa": 1, "-r": 1, "-m": path, "-o": "json"}
        if depth:
            sizes["-d"] = depth
        self.command = [*shlex.split(command), *(str(part) for item in sizes.items() for part in item)]

    def speeds(self):
        rows = json.loads(subprocess.run(self.command, check=True, stdout=subprocess.PIPE).stdout)
        return tuple(next(r["avg_ts"] for r in rows if r[key] > 0) for key in ("n_prompt", "n_gen"))


def short(name):
    """A command without its folders."""
    return " ".join(os.path.basename(part) for part in name.split(" "))


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(path, arguments):
    """Speeds of all engines with one file, each as median, min and max.

    {engine: {"prompt", "generate": tokens/s}, "machine": {"bandwidth": GB/s, "int8_peak": GOPS},
    "fractions": {"prompt", "generate": of the machine's, in the same repetition},
    "four_tokens": time of such a step over that of one}
    """
    sizes = (arguments.depth, arguments.prompt, arguments.generate)
    context = arguments.depth + max(arguments.prompt, arguments.generate) + 64
    ours = Ours(path, arguments.threads, context, arguments.kv_type)
    engines = [Timed(ours, *sizes)]
    if arguments.llama_bench:
        engines += [LlamaBench(program, path, arguments.threads, *sizes) for program in arguments.llama_bench]
    else:
        engines.append(Timed(LlamaCpp(path, arguments.threads, context), *sizes))
    speeds = {engine.name: [] for engine in engines}
    machine, four = [], []
    for repeat in range(arguments.repeat + 1):
        limits = _native.machine_bandwidth(arguments.threads), _native.machine_int8_peak(arguments.threads)
        for engine in engines:
            both = engine.speeds()
            if repeat:  # the first is to warm up
                speeds[engine.name].append(both)
        one = ours.seconds_per_step(1, arguments.depth)
        if repeat:
            machine.append(limits)
            four.append(ours.seconds_per_step(4, arguments.depth) / one)
    result = {"file": path, "four_tokens": spread(four)}
    for name, rows in speeds.items():
        result[name] = {key: spread(column) for key, column in zip(("prompt", "generate"), zip(*rows))}
    result["machine"] = {key: spread(column) for key, column in zip(("bandwidth", "int8_peak"), zip(*machine))}
    nbytes = ours.cost.bytes + ours.cost.cached * (arguments.depth + arguments.generate / 2)
    rows = list(zip(speeds[ours.name], machine))
    result["fractions"] = {
        "prompt": spread([read * ours.cost.operations / 1e9 / peak for (read, _), (_, peak) in rows]),
        "generate": spread([wrote * nbytes / 1e9 / bandwidth for (_, wrote), (bandwidth, _) in rows]),
    }
    return result


def show(result, names):
    machine = result["machine"]
    print(
        f"{result['file']}: {machine['bandwidth']['median']:.1f} GB/s, {machine['int8_peak']['median']:.0f} GOPS int8; "
        f"a step of 4 tokens takes {result['four_tokens']['median']:.2f} x one of 1"
    )
    for key, limit in (("prompt", "int8 peak"), ("generate", "bandwidth, weights and cache")):
        for name in names:
            speed = result[name][key]
            if name == "glmlite":
                more = f"{result['fractions'][key]['median']:.0%} of the {limit}"
            else:
                more = f"glmlite is {result['glmlite'][key]['median'] / speed['median']:.2f} x as fast"
            print(
                f"  {key:9}{short(name):12}{speed['median']:8.1f} tokens/s"
                f"  ({speed['min']:.1f} to {speed['max']:.1f})  {more}"
            )


def plot(results, names, arguments):
    """Bars of the medians, with lines from the least to the most, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"prompt": f"reading {arguments.prompt}", "generate": f"generating {arguments.generate}"}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 1.2 + 0.35 * len(results) * len(names)), layout="constrained")
    for axis, (key, title) in zip(axes, titles.items()):
        for i, name in enumerate(names):
            speeds = [result[name][key] for result in results]
            medians = [s["median"] for s in speeds]
            arms = [[s["median"] - s["min"] for s in speeds], [s["max"] - s["median"] for s in speeds]]
            places = np.arange(len(results)) * (len(names) + 1) + i
            bars = axis.barh(places, medians, 0.9, xerr=arms, label=short(name))
            axis.bar_label(bars, fmt="%.3g", padding=14)
        axis.set_yticks(
            np.arange(len(results)) * (len(names) + 1) + (len(names) - 1) / 2,
            [os.path.basename(result["file"]) for result in results],
        )
        axis.invert_yaxis()
        axis.margins(x=0.3)
        axis.set_title(f"{title}, tokens/s" + (f", after {arguments.depth}" if arguments.depth else ""))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names))
    figure.savefig(arguments.plot, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before either")
    parser.add_argument("--kv-type", choices=["f16", "q8"], default="f16", help="of glmlite; llama.cpp's is f16")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_native.default_threads())
    parser.add_argument("--llama-bench", action="append", metavar="COMMAND", help="instead of llama-cpp-python")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE.png")
    arguments = parser.parse_args()
    if not arguments.json:
        print(*machine.describe(arguments.threads), sep="\n")
    names = ["glmlite", *(arguments.llama_bench or ["llama.cpp"])]
    results = []
    for path in arguments.files:
        results.append(compare(path, arguments))
        if arguments.json:
            print(json.dumps(results[-1]))
        else:
            show(results[-1], names)
    if arguments.plot:
        plot(results, names, arguments)


if __name__ == "__main__":
    main()
