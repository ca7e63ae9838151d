"""Time of whole conversions against llama.cpp's quantizer, taking turns in one run, and our peak memory.

    python benchmarks/convert.py --folder /tmp --threads 2 --turns 3
    python benchmarks/convert.py --memory glm-4-9b-random --types q4_k_m

The first makes a GGUF file of random f16 weights in the shape of GLM-Edge-1.5B (2.9 GB; one that is there is used) and
has it quantized by `glmlite convert` and by llama.cpp's `llama_model_quantize` (through llama-cpp-python). Ours is the
time of the whole command, with the start of Python; llama.cpp's is that of the call alone. Both read the source from
the page cache (it is read once before), write to the same folder, and begin when nothing waits to be written to the
disk.

The second converts any source and prints time and memory. Memory is the peak of the resident set, as the system counts
it for the process that has ended, mapped files included.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

CHUNK = 1 << 24
THEIRS = """
import sys, time, llama_cpp
source, target, type, threads = sys.argv[1:]
llama_cpp._logger.set_verbose(False)
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type.upper()}"), int(threads)
start = time.perf_counter()
failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), params)
print(time.perf_counter() - start)
sys.exit(failed)
"""


def run(command):
    """Runs it to its end. Returns (what it printed, seconds, bytes of its largest resident set)."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return printed, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(source, target, type, threads):
    command = [sys.executable, "-m", "glmlite", "convert", source, target, "--type", type, "--threads", str(threads)]
    _, seconds, memory = run(command)
    return seconds, memory


def theirs(source, target, type, threads):
    printed, _, memory = run([sys.executable, "-c", THEIRS, source, target, type, str(threads)])
    return float(printed.split()[-1]), memory


def read(path):
    """Brings a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(CHUNK):
            pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("."), help="for the files, 5 GB")
    parser.add_argument("--types", nargs="+", default=["q4_0", "q4_k_m", "q8_0"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", metavar="SOURCE", help="only convert this, and print time and memory")
    arguments = parser.parse_args()
    target = arguments.folder / "converted.gguf"
    if arguments.memory:
        for type in arguments.types:
            seconds, memory = ours(arguments.memory, target, type, arguments.threads)
            print(
                f"{type}: {seconds:.1f} s, {memory / 1e9:.2f} GB of memory, file {target.stat().st_size / 1e9:.2f} GB"
            )
            target.unlink()
        return
    source = arguments.folder / "glm-edge-1.5b-f16.gguf"
    if not source.exists():
        import random_model

        random_model.write(source, "glm-edge-1.5b", "F16")
    read(source)
    print("| type | ours, s | llama.cpp, s | ratio | file, GB | llama.cpp's | memory, GB | llama.cpp's |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for type in arguments.types:
        times, memory, sizes = [[], []], [0, 0], [0, 0]
        for _ in range(arguments.turns):
            for i, convert in enumerate((ours, theirs)):
                os.sync()
                seconds, peak = convert(source, target, type, arguments.threads)
                times[i].append(seconds)
                memory[i] = max(memory[i], peak)
                sizes[i] = target.stat().st_size
                target.unlink()
        a, b = map(statistics.median, times)
        print(
            f"| {type} | {a:.2f} | {b:.2f} | {b / a:.2f} | {sizes[0] / 1e9:.3f} | {sizes[1] / 1e9:.3f} "
            f"| {memory[0] / 1e9:.2f} | {memory[1] / 1e9:.2f} |",
            flush=True,
        )
        print(json.dumps({type: {"ours": times[0], "llama.cpp": times[1]}}), file=sys.stderr)


if __name__ == "__main__":
    main()
