"""Speed beside other programs: so many busy processes, and glmlite and llama.cpp taking turns beside them.

    python benchmarks/neighbour.py model.gguf --busy 6 --llama-bench llama.cpp/build/bin/llama-bench
    python benchmarks/neighbour.py model.gguf --busy 0 --repeat 9 --fixed

Loaded models take turns, and the order is turned round each time: `default`; `one`, a single thread; and, with --fixed,
all of its threads, always, as a team without a pace has them. Prints tokens of all turns over their time, the least and
the most of a turn, and the ratios of `default` to the others. With --busy 0 the one to `fixed` is what looking out for
others costs on a quiet machine. The busy processes have the priority of this one.

Give it many turns: seven threads on two cores are four on one of them and three on the other, and a thread gets a
quarter or a third of a core for as long as the system leaves it there.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import time

from machine import cpu

import glmlite
from glmlite.cli.bench import read, write

KEYS = ("generate", "read")


def spin(ready):
    ready.wait()
    while True:
        pass


class Ours:
    def __init__(self, name, path, arguments, **options):
        self.name, self.arguments = name, arguments
        self.model = glmlite.load(path, device="cpu", context=max(arguments.read, arguments.generate) + 64, **options)
        self.native, self.engine = self.model.debug
        self.sequence = self.engine.new_sequence()

    def speeds(self):
        return {"generate": self._rate(write, self.arguments.generate), "read": self._rate(read, self.arguments.read)}

    def _rate(self, run, count):
        self.engine.truncate(self.sequence, 0)
        begin = time.perf_counter()
        run(self.engine, self.native, self.sequence, 0, count)
        return count / (time.perf_counter() - begin)


class LlamaBench:
    name = "llama.cpp"

    def __init__(self, command, path, arguments):
        sizes = {"-p": arguments.read, "-n": arguments.generate, "-r": 1, "-m": path, "-o": "json"}
        self.command = [*shlex.split(command), "--no-warmup", *(str(part) for item in sizes.items() for part in item)]

    def speeds(self):
        rows = json.loads(subprocess.run(self.command, check=True, capture_output=True).stdout)
        return {key: next(r["avg_ts"] for r in rows if r[of] > 0) for key, of in zip(KEYS, ("n_gen", "n_prompt"))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--busy", type=int, default=6, metavar="N", help="processes beside it")
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--read", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--fixed", action="store_true", help="measure all threads, always, too")
    parser.add_argument("--llama-bench", metavar="COMMAND", help="measure this, too, with its default threads")
    arguments = parser.parse_args()
    path = arguments.model
    runners = [Ours("default", path, arguments), Ours("one", path, arguments, threads=1)]
    if arguments.fixed:
        runners.append(Ours("fixed", path, arguments, adaptive=False))
    if arguments.llama_bench:
        runners.append(LlamaBench(arguments.llama_bench, path, arguments))
    ready = multiprocessing.Event()
    busy = [multiprocessing.Process(target=spin, args=(ready,), daemon=True) for _ in range(arguments.busy)]
    turns = {runner.name: [] for runner in runners}
    try:
        for process in busy:
            process.start()
        ready.set()
        for repeat in range(arguments.repeat + 1):  # the first is to warm up
            for runner in runners if repeat % 2 else reversed(runners):
                speeds = runner.speeds()
                if repeat:
                    turns[runner.name].append(speeds)
    finally:
        for process in busy:
            process.kill()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    print(f"{cpu()}, {cores} CPUs, {arguments.busy} busy processes, {load}; {os.path.basename(path)}")
    for key in KEYS:
        for name, rows in turns.items():
            values = [row[key] for row in rows]
            speed = statistics.harmonic_mean(values)
            ratio = statistics.harmonic_mean([row[key] for row in turns["default"]]) / speed
            print(
                f"  {key:9}{name:10}{speed:8.1f} tokens/s ({min(values):.1f} to {max(values):.1f})"
                f"   default is {ratio:5.3f} x that"
            )


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
