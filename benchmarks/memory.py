"""How much memory a model takes, whether close() gives it back, and whether it grows with use.

    python benchmarks/memory.py peak model.gguf ...
    python benchmarks/memory.py load model.gguf ...
    python benchmarks/memory.py cycles model.gguf --count 1000
    python benchmarks/memory.py generations model.gguf --count 10000

Each file has a fresh process. Exit status 1 if a bound is broken:

peak         the process's peak from its start over load, a prompt of 512 tokens and 64 more, at a context of 4096:
             at most 1.1 x file + KV cache + 200 MB. After close() and `del model`, what it held before the load
             and 50 MB: the libraries that a load imports, and what the allocators keep for the next one.
load         GB of the file per second over a whole load, its file in the page cache: the first in the process, whose
             memory the system may have to fetch, and the median of the next five, who get the memory of the one
             before. At least 1 GB/s then.
cycles       load, a few tokens, close.
generations  short ones from four threads: awaited, streamed, abandoned after a piece, cancelled, failing.
             Both: memory is sampled 60 times; the median of the last third is within 2 MB of the first third's,
             after a tenth of the rounds to warm up.

Needs psutil. MB are 10^6 bytes.
"""

import argparse
import gc
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import psutil

import glmlite

CONTEXT, PROMPT, ANSWER = 4096, 512, 64
GIVEN_BACK = 50e6
GROWTH = 2e6
SAMPLES = 60


def resident():
    """Bytes of this process in memory now."""
    gc.collect()
    return psutil.Process().memory_info().rss


def highest():
    """The most that this process ever had in memory, bytes."""
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak(path):
    before = resident()
    begin = time.perf_counter()
    model = glmlite.load(path, context=CONTEXT)
    seconds = time.perf_counter() - begin
    after_load = highest()
    prompt = [random.Random(0).randrange(256) for _ in range(PROMPT)]
    model.generate(prompt, max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    most, memory = highest(), model.memory()
    model.close()
    closed = resident()
    del model
    return {
        "file": os.path.getsize(path),
        "weights": memory["weights"],
        "kv": memory["kv"],
        "load_seconds": seconds,
        "before": before,
        "after_load": after_load,
        "peak": most,
        "closed": closed,
        "left": resident(),
    }


def load(path):
    """(seconds of a process's first load, of each of five more, of what precedes packing in those)"""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    loads, before = [], []
    for _ in range(6):
        packing = []
        begin = time.perf_counter()
        model = glmlite.load(path, context=CONTEXT, progress=lambda done, at=packing: at.append(time.perf_counter()))
        loads.append(time.perf_counter() - begin)
        before.append(packing[0] - begin)
        model.close()
        del model
    return loads[0], loads[1:], before[1:]


def cycles(path, count):
    samples = []
    for i in range(count):
        with glmlite.load(path, context=256) as model:
            model.generate([1, 2, 3], max_tokens=2, ignore_eos=True)
        del model
        _sample(samples, i, count)
    return samples


def generations(path, count, threads=4):
    samples, done = [], iter(range(count))
    turn = threading.Lock()
    with glmlite.load(path, context=256, kv_tokens=1024) as model:

        def work():
            while True:
                with turn:
                    i = next(done, None)
                    if i is None:
                        return
                    _sample(samples, i, count)
                generate(model, i)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return samples


def generate(model, i):
    """The i-th of many generations, each of another kind than the one before."""
    rng = random.Random(i)
    prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 40))]
    arguments = {"max_tokens": rng.randrange(1, 12), "temperature": 1.0, "seed": i, "ignore_eos": True}
    kind = i % 7
    if kind == 0:
        model.generate(prompt, **arguments)
    elif kind == 1:
        model.generate(prompt, **arguments, logprobs=3, stop=["\n", "the end"], repetition_penalty=1.1)
    elif kind == 2:
        for _ in model.stream(prompt, **arguments):
            pass
    elif kind == 3:  # left after its first piece
        for _ in model.stream(prompt, **{**arguments, "max_tokens": 64}):
            break
    elif kind == 4:  # never looked at
        model.stream(prompt, **arguments)
    elif kind == 5:
        generation = model.stream(prompt, **{**arguments, "max_tokens": 64})
        next(generation, None)
        generation.cancel()
        generation.result()
    else:
        try:
            model.generate([model.vocab_size], **arguments)
        except ValueError:
            model.logits(prompt)


def growth(samples):
    """(bytes of the first third, bytes of the last third) of samples, the first tenth of which was to warm up."""
    warm = samples[len(samples) // 10 :]
    third = len(warm) // 3
    return statistics.median(warm[:third]), statistics.median(warm[-third:])


def _sample(samples, i, count):
    if i % max(1, count // SAMPLES) == 0:
        samples.append(resident())


def _fresh(function, *arguments):
    """The function's result from a process of its own."""
    # An executor, not a Pool: that one waits for ever if the process is killed for want of memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peaks(paths):
    good = True
    row = "{:<24} {:>7} {:>8} {:>5} {:>10} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7}"
    print(row.format("MB", "file", "weights", "KV", "load GB/s", "before", "loaded", "peak", "bound", "closed", "left"))
    for path in paths:
        r = _fresh(peak, path)
        bound = 1.1 * r["file"] + r["kv"] + 200e6
        columns = (r["before"], r["after_load"], r["peak"], bound, r["closed"], r["left"])
        speed = r["file"] / r["load_seconds"] / 1e9
        sizes = [f"{r[name] / 1e6:.0f}" for name in ("file", "weights", "kv")]
        print(row.format(os.path.basename(path)[-24:], *sizes, f"{speed:.2f}", *(f"{x / 1e6:.0f}" for x in columns)))
        good &= r["peak"] <= bound and r["left"] <= r["before"] + GIVEN_BACK
    return good


def _loads(paths):
    good = True
    row = "{:<24} {:>7} {:>11} {:>11} {:>18}"
    print(row.format("MB", "file", "first, GB/s", "later, GB/s", "before packing, ms"))
    for path in paths:
        first, later, before = _fresh(load, path)
        size, later = os.path.getsize(path) / 1e9, statistics.median(later)
        columns = (
            f"{1e3 * size:.0f}",
            f"{size / first:.2f}",
            f"{size / later:.2f}",
            f"{1e3 * statistics.median(before):.0f}",
        )
        print(row.format(os.path.basename(path)[-24:], *columns))
        good &= size / later >= 1
    return good


def _grows(function, paths, count):
    good = True
    for path in paths:
        begin = time.perf_counter()
        first, last = growth(_fresh(function, path, count))
        print(
            f"{os.path.basename(path)}: {count} {function.__name__} in {time.perf_counter() - begin:.0f} s, "
            f"{first / 1e6:.2f} MB in the first third, {last / 1e6:.2f} MB in the last: {(last - first) / 1e6:+.2f} MB"
        )
        good &= last - first <= GROWTH
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peak", "load", "cycles", "generations"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=1000, help="rounds of cycles or generations")
    arguments = parser.parse_args()
    if arguments.what == "peak":
        good = _peaks(arguments.files)
    elif arguments.what == "load":
        good = _loads(arguments.files)
    else:
        function = cycles if arguments.what == "cycles" else generations
        good = _grows(function, arguments.files, arguments.count)
    sys.exit(not good)
