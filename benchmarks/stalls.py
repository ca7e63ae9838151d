"""How long a model holds up the other threads of its process: the longest lateness of a 10 ms timer, by phase.

    python benchmarks/random_model.py glm-4-9b Q4_0 9b.gguf --layers 8 --tokenizer glm-4-9b-chat
    python benchmarks/stalls.py 9b.gguf

A timer in a process of its own, which nothing here can hold up, shows what the machine itself does meanwhile.
"""

import argparse
import multiprocessing
import platform
import threading
import time
from itertools import pairwise

from machine import cpu

import glmlite

TICK = 0.01
SAMPLE = "The quick brown fox jumps over the lazy dog, 17 times; then 敏捷的棕色狐狸跳过了懒狗。\n"


class Timer:
    """Wakes every 10 ms and keeps the longest lateness, and when it was."""

    def __init__(self):
        self.worst, self.ticks, self._stop = 0.0, 0, threading.Event()

    def run(self, stopped=None):
        due = time.perf_counter() + TICK
        while not (self._stop.is_set() if stopped is None else stopped.is_set()):
            time.sleep(max(due - time.perf_counter(), 0))
            now = time.perf_counter()
            self.worst = max(self.worst, now - due)
            self.ticks += 1
            due = now + TICK

    def stop(self):
        self._stop.set()


def sibling(stopped, ready, worst):
    timer = Timer()
    ready.set()
    timer.run(stopped)
    worst.value = timer.worst


def measure(phase, work):
    """Runs the work beside both timers, prints a line, returns what it returned."""
    stopped, ready, worst = multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Value("d", 0.0)
    process = multiprocessing.Process(target=sibling, args=(stopped, ready, worst), daemon=True)
    process.start()
    ready.wait()
    timer = Timer()
    thread = threading.Thread(target=timer.run, daemon=True)
    thread.start()
    begin = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begin
    time.sleep(2 * TICK)
    timer.stop()
    stopped.set()
    thread.join()
    process.join()
    print(f"{phase:<28} {seconds:8.2f} s {timer.worst * 1e3:8.1f} ms {worst.value * 1e3:14.1f} ms", flush=True)
    return result


def cancel_latency(path):
    """Seconds from a cancel to the load's end, the longest of ten moments."""
    latest = 0.0
    for moment in range(10):
        cancel, at = glmlite.Cancel(), [0.0]

        def end(cancel=cancel, at=at):
            at[0] = time.perf_counter()
            cancel.cancel()

        timer = threading.Timer(0.02 + 0.15 * moment, end)
        timer.start()
        try:
            glmlite.load(path, cancel=cancel).close()
            timer.cancel()
        except glmlite.Cancelled:
            latest = max(latest, time.perf_counter() - at[0])
    return latest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    path = parser.parse_args().model
    print(f"{cpu()}, glmlite {glmlite.__version__}, Python {platform.python_version()}")
    print(f"{'phase':<28} {'time':>10} {'longest stall':>11} {'in a process apart':>17}")
    measure("nothing", lambda: time.sleep(0.5))
    told = []

    def load():
        begin = time.perf_counter()
        return glmlite.load(path, progress=lambda done: told.append((time.perf_counter() - begin, done)))

    model = measure("load", load)
    text = (SAMPLE * (1_000_000 // len(SAMPLE) + 1))[:1_000_000]
    ids = measure("tokenize 1 MB", lambda: model.tokenize(text))
    measure("detokenize", lambda: model.detokenize(ids))
    prompt = ids[: min(512, model.context // 2)]
    measure(f"read {len(prompt)} tokens", lambda: model.generate(prompt, max_tokens=1))
    measure("write 32 tokens", lambda: model.generate(prompt[:8], max_tokens=32, ignore_eos=True))

    def cancelled():
        stop = glmlite.Cancel()
        threading.Timer(0.1, stop.cancel).start()
        assert model.generate(prompt[::-1], cancel=stop).finish_reason == "cancelled"

    measure("cancelled after 0.1 s", cancelled)
    measure("close", model.close)
    silence, where = max((b - a, done) for (a, done), (b, _) in pairwise(told))
    print(f"first progress after {told[0][0] * 1e3:.0f} ms, longest silence {silence * 1e3:.0f} ms, at {where:.3f}")
    print(f"a cancel ends a load within {cancel_latency(path) * 1e3:.0f} ms")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
