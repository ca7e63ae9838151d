"""Two processes on one packed file: what the second adds to memory, and how soon it answers.

    python benchmarks/shared.py model.gguf

Packs the model's weights if they are not, then starts one process, and beside it another, both with `packed=True`, and
prints of each the seconds of a load and to the first token (the start of Python apart), and its private memory
(Private_Clean and Private_Dirty) with glmlite imported, loaded, after the first token of a prompt of 4, and after a
prompt of 256 and 32 more; beside it that of the KV cache. Exit status 1 if the second one, cache apart, adds 100 MB or
more to what it had before the load, or its load takes a second or more. Linux only. MB are 10^6 bytes.
"""

import argparse
import multiprocessing
import re
import sys
import time

CONTEXT, PROMPT, ANSWER = 4096, 256, 32
ADDED_BYTES, LOAD_SECONDS = 100e6, 1.0
HUGE_PAGE = 2 << 20


def private(kv=0):
    """Bytes of memory that this process alone has, and those of its cache, a mapping of `kv` bytes in whole pages."""
    found, cache, inside = 0, 0, False
    with open("/proc/self/smaps", encoding="ascii") as lines:
        for line in lines:
            if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) .*", line):
                inside = 0 < kv <= int(mapping[2], 16) - int(mapping[1], 16) < kv + HUGE_PAGE and "/" not in line
            elif line.startswith(("Private_Clean", "Private_Dirty")):
                size = int(line.split()[1]) * 1024
                found, cache = (found, cache + size) if inside else (found + size, cache)
    return found, cache


def process(path, pipe):
    import glmlite

    found = {"imported": private()}
    begin = time.perf_counter()
    model = glmlite.load(path, context=CONTEXT, packed=True, device="cpu")
    load = time.perf_counter() - begin
    kv = model.memory()["kv"]
    found["loaded"] = private(kv)
    begin = time.perf_counter()
    model.generate([5, 6, 7, 8], max_tokens=1)
    first = load + time.perf_counter() - begin
    found["first"] = private(kv)
    prompt = [1 + i * 7919 % 250 for i in range(PROMPT)]
    model.generate(prompt, max_tokens=ANSWER, ignore_eos=True)
    found["answered"] = private(kv)
    pipe.send((load, first, found))
    pipe.recv()
    model.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    started = []
    for number in ("packs, if need be", "first", "second"):
        here, there = context.Pipe()
        started.append((context.Process(target=process, args=(arguments.model, there)), here))
        started[-1][0].start()
        there.close()
        load, first, found = here.recv()
        memory = ", ".join(f"{name} {own / 1e6:.1f} (+ {cache / 1e6:.1f})" for name, (own, cache) in found.items())
        print(f"{number}: load {load:.3f} s, first token after {first:.3f} s; private MB (+ of the cache): {memory}")
        if len(started) == 1:
            started[0][1].send("end")
            started[0][0].join()
    for each, pipe in started[1:]:
        pipe.send("end")
        each.join()
    sys.exit(found["answered"][0] - found["imported"][0] >= ADDED_BYTES or load >= LOAD_SECONDS)


if __name__ == "__main__":
    main()
