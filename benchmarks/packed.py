"""A model that memory does not hold: how fast it starts, reads and writes, and how much of its disk that is.

    systemd-run --user --scope -p MemoryMax=6G python benchmarks/packed.py model.gguf
    python benchmarks/packed.py model.gguf --packed

Run it where memory is limited (a control group as above, or a machine that is small enough); with --packed a model that
fits starts from its file too. Prints what the load said, the seconds of the load, tokens a second of a prompt and of an
answer, GB that each has read from the disk, and how the time that the disk alone would take for them, at the speed
measured before and after, compares with the time that passed. Linux only. GB are 10^9 bytes.
"""

import argparse
import logging
import time

import glmlite
from glmlite import _native as native


def read_bytes():
    """Bytes that this process has had read from disks so far."""
    with open("/proc/self/io", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def peak_bytes():
    """The most memory of its own, files aside, that this process had when asked."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Part:
    """Tokens, seconds and bytes of what is done in it."""

    def __init__(self, name, path, tokens):
        self.name, self.path, self.tokens = name, path, tokens

    def __enter__(self):
        self.speed = native.read_speed(self.path)
        self.bytes, self.begin = read_bytes(), time.perf_counter()

    def __exit__(self, *error):
        seconds, nbytes = time.perf_counter() - self.begin, read_bytes() - self.bytes
        speed = (self.speed + native.read_speed(self.path)) / 2
        print(
            f"{self.name}: {self.tokens} tokens in {seconds:.1f} s, {self.tokens / seconds:.2f} tokens/s; "
            f"{nbytes / 1e9:.2f} GB read, {nbytes / speed:.1f} s of a disk of {speed / 1e9:.2f} GB/s: "
            f"{nbytes / speed / seconds:.0%}; {peak_bytes() / 1e9:.2f} GB of memory",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--packed", action="store_true", help="also where the model fits")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(f"{native.available_memory() / 1e9:.2f} GB of memory are free", flush=True)
    begin = time.perf_counter()
    packed = True if arguments.packed else None
    with glmlite.load(
        arguments.model, context=arguments.context, threads=arguments.threads, device="cpu", packed=packed
    ) as model:
        print(f"load: {time.perf_counter() - begin:.2f} s, {model.memory()['weights'] / 1e9:.2f} GB of weights held")
        prompt = [1 + i * 7919 % 250 for i in range(arguments.prompt)]
        answer = {"temperature": 1.0, "seed": 1, "ignore_eos": True}
        with Part("prompt", arguments.model, len(prompt)):
            model.generate(prompt, max_tokens=1, **answer)
        for _ in range(2):
            with Part("answer", arguments.model, arguments.answer):
                model.generate(prompt, max_tokens=arguments.answer, **answer)


if __name__ == "__main__":
    main()
