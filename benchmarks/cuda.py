"""Everything to do on a machine with an NVIDIA GPU, in one command and under 8 minutes, without a network:

    python benchmarks/cuda.py --json cuda.json

Builds the module for the GPU at hand, runs all tests of CUDA, a tiny model under compute-sanitizer (memcheck and
racecheck), and measures models of random weights beside the GPU's copy bandwidth and bf16 rate, measured in the same
run, and what each op of a written token takes. Prints tables. Needs the CUDA toolkit, a C++ compiler, cmake, ninja and,
for this Python, numpy, pybind11 and pytest; the package need not be installed. `--only` picks steps. Steps that fail
are named in the end, and the exit status is then 1. Without a GPU it builds, for CUDAARCHS or an H100, and says that
there is none.

    python benchmarks/cuda.py --rehearse

does the same on the emulator (tests/cuda_module.py) with tiny models, but for the build and the sanitizer: it shows
that the script works, and measures nothing.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402

STEPS = ("build", "tests", "memcheck", "racecheck", "benchmarks")
CHUNK = 512  # tokens of a prompt in one step


class Case(NamedTuple):
    """prompt: tokens read in one go; or `generate` tokens by each of `batch` sequences, `depth` tokens in."""

    shape: str
    format: str
    batch: int = 1
    depth: int = 0
    generate: int = 0
    prompt: int = 0

    @property
    def name(self) -> str:
        if self.prompt:
            return f"{self.shape} {self.format}, read {self.prompt}"
        return f"{self.shape} {self.format}, write {self.generate} x {self.batch}, {self.depth} tokens in"


CASES = [
    Case("glm-4-9b", "Q4_0", prompt=2048),
    Case("glm-4-9b", "Q4_0", batch=1, generate=128),
    Case("glm-4-9b", "Q4_0", batch=8, generate=64),
    Case("glm-4-9b", "Q4_0", batch=1, depth=8192, generate=64),
    Case("glm-4-9b", "Q4_0", batch=8, depth=8192, generate=32),
    Case("glm-edge-1.5b", "Q4_0", prompt=2048),
    Case("glm-edge-1.5b", "Q4_0", batch=1, generate=256),
]
REHEARSAL = [
    Case("tiny", "Q4_0", prompt=40),
    Case("tiny", "Q4_0", batch=1, generate=4),
    Case("tiny", "Q4_0", batch=2, depth=20, generate=3),
]
REPEAT = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--only", metavar="STEPS", default=",".join(STEPS), help="some of: %(default)s")
    parser.add_argument("--rehearse", action="store_true", help="on the emulator")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # what runs under compute-sanitizer
    arguments = parser.parse_args()
    if arguments.tiny:
        return tiny_run(arguments.rehearse)
    steps = arguments.only.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"--only {', '.join(unknown)}: should be some of {', '.join(STEPS)}")
    results: dict = {"commit": commit(), "python": platform.python_version(), "host": platform.platform()}
    done = results["steps"] = {}
    actions = {
        "build": lambda: None if arguments.rehearse else build(),
        "tests": tests,
        "memcheck": lambda: sanitize("memcheck", arguments.rehearse),
        "racecheck": lambda: sanitize("racecheck", arguments.rehearse),
        "benchmarks": lambda: results.update(benchmarks(arguments.rehearse)),
    }
    for step in steps:
        print(f"== {step}", flush=True)
        begin = time.perf_counter()
        try:
            if step != "build" and not arguments.rehearse:
                module(False).devices()  # without a GPU, an error that says why there is none
            said = actions[step]() or "ok"
        except Exception as error:  # the other steps still have something to say
            said = f"FAILED: {type(error).__name__}: {error}"
        done[step] = {"result": said, "seconds": round(time.perf_counter() - begin, 1)}
        print(f"== {step}: {said}, {done[step]['seconds']} s", flush=True)
    print(table(results))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return any(step["result"].startswith("FAILED") for step in done.values())


def run(*command, limit: float, **settings) -> subprocess.CompletedProcess:
    """Output is shown, and an error if it fails or takes more than `limit` seconds."""
    return subprocess.run([str(part) for part in command], check=True, timeout=limit, cwd=ROOT, **settings)


def commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def architecture() -> str:
    """The architecture of the GPU at hand, as CMake names it; without one, of CUDAARCHS, or an H100's."""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        capability = subprocess.run(asked, capture_output=True, text=True).stdout.replace(".", "").split()
        if capability and capability[0].isdigit():
            return f"{capability[0]}{'a' if capability[0] == '90' else ''}-real"
    return os.environ.get("CUDAARCHS", "90a-real")


def build() -> str:
    """Both modules, for this Python and one architecture, into the package's folder."""
    import pybind11

    target = architecture()
    folder = ROOT / "build-gpu"
    run(
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGLMLITE_CUDA=ON"),
        f"-DCMAKE_CUDA_ARCHITECTURES={target}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        limit=60,
    )
    run("ninja", "-C", folder, limit=300)  # not by cmake, which would leave it behind if that is too long
    for module in folder.glob("_*.so"):
        (ROOT / "glmlite" / module.name).unlink(missing_ok=True)  # never write into one that is mapped
        shutil.copy(module, ROOT / "glmlite")
    return f"for sm_{target.removesuffix('-real')}"


def tests() -> str:
    """The last line of pytest, which counts."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ROOT.glob("tests/test_cuda*.py")]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment()
    )
    print(done.stdout[-6000:], done.stderr[-2000:], sep="")
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode:
        raise RuntimeError(last)
    return last


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def sanitize(tool: str, rehearse: bool) -> str:
    """A tiny model's prompt, captured and replayed steps and a batch, under a tool of compute-sanitizer."""
    me = [sys.executable, str(Path(__file__).resolve()), "--tiny"]
    if rehearse:
        run(*me, "--rehearse", limit=60, env=environment())
        return "without compute-sanitizer"
    options = ["--tool", tool, "--error-exitcode", "3"]
    if shutil.which("compute-sanitizer") is None:
        return "skipped: there is no compute-sanitizer"
    done = subprocess.run(
        ["compute-sanitizer", *options, *me], capture_output=True, text=True, timeout=100, env=environment(), cwd=ROOT
    )
    print(done.stdout[-4000:], done.stderr[-2000:], sep="")
    if "Device not supported" in done.stdout + done.stderr:
        return "skipped: compute-sanitizer does not support this machine"
    if done.returncode:
        raise RuntimeError(f"compute-sanitizer ended with {done.returncode}")
    return "no errors"


# ---- models


def module(rehearse: bool):
    """glmlite._cuda, or the emulator's."""
    if rehearse:
        import cuda_module

        found, why = cuda_module.load()
        if found is None:
            raise RuntimeError(why)
        return found
    from glmlite import _cuda

    return _cuda


def write_model(path: Path, shape: str, format: str, **sizes) -> Path:
    """Random weights: matrices in `format`, where their rows are whole blocks of it, otherwise in Q8_0."""
    import plain_gguf
    import twins
    from shapes import SHAPES, tensors

    s = SHAPES[shape]._replace(**sizes)
    a = s.architecture
    metadata = {
        "general.architecture": a,
        f"{a}.block_count": s.layers,
        f"{a}.context_length": 131072,
        f"{a}.embedding_length": s.dim,
        f"{a}.feed_forward_length": s.ffn,
        f"{a}.attention.head_count": s.heads,
        f"{a}.attention.head_count_kv": s.kv_heads,
        f"{a}.attention.key_length": s.head_dim,
        f"{a}.attention.value_length": s.head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": s.rope_dim,
        f"{a}.rope.freq_base": 10000.0,
    }
    rng = np.random.default_rng(0)

    def entry(name, shape):
        if len(shape) == 1:
            return name, np.ones(shape) if "norm" in name else rng.standard_normal(shape) * 0.1
        return name, shape, format if shape[-1] % twins.FORMATS[format][0] == 0 else "Q8_0"

    return plain_gguf.write(path, metadata, [entry(*t) for t in tensors(s)])


def opened(cuda, path: Path):
    """A file and its program, as recorded and as an engine takes it."""
    from glmlite import models
    from glmlite.placement import native_ops

    gguf = cuda.Gguf(str(path))
    recording = models.record(gguf.metadata, {name: tuple(t.shape) for name, t in gguf.tensors.items()})
    return gguf, recording, native_ops(recording.ops, gguf.dequantize)


def time_step(cuda, path: Path, context: int) -> dict:
    """Where the time of one token goes: all of it as a graph, and the ops of all layers by what they are."""
    gguf, recording, ops = opened(cuda, path)
    times = cuda.measure_step(gguf, ops, context=context)
    parts: dict[str, dict] = {}
    for op, (_, us) in zip(recording.ops, times["ops"]):
        names = op.weights.get("w", ())
        name = " ".join([op.kind, *(re.sub(r"^blk\.\d+\.|\.weight$", "", n) for n in names)])
        part = parts.setdefault(name, {"name": name, "count": 0, "us": 0.0, "bytes": 0})
        part["count"] += 1
        part["us"] += us
        part["bytes"] += sum(gguf.tensors[n].nbytes for n in names)
    gguf.close()
    return {"context": context, "ahead_us": times["ahead"], "in_turn_us": times["in_turn"], "parts": [*parts.values()]}


class Model:
    """A file's engine on the first GPU."""

    def __init__(self, cuda, path: Path, kv_tokens: int, device: int = 0):
        from glmlite.placement import kv_bytes_per_token

        self.cuda = cuda
        gguf, recording, ops = opened(cuda, path)
        shapes = {name: tuple(t.shape) for name, t in gguf.tensors.items()}
        linears = [w for op in recording.ops if op.kind == "linear" for w in op.weights["w"]]
        self.weight_bytes = sum(gguf.tensors[w].nbytes for w in linears)  # that a step reads
        # That a prompt's tokens are multiplied with; the logits' matrix is for the last one alone.
        self.weights = sum(math.prod(shapes[w]) for w in linears if w not in ("output.weight", "token_embd.weight"))
        self.kv_bytes = kv_bytes_per_token(recording.ops)
        begin = time.perf_counter()
        self.engine = cuda.Engine(gguf, ops, kv_tokens=kv_tokens, device=device)
        self.load_seconds = time.perf_counter() - begin
        gguf.close()

    def read(self, sequence: int, start: int, count: int) -> None:
        from glmlite.models.layout import in_order

        for begin in range(start, start + count, CHUNK):
            index = np.arange(begin, min(begin + CHUNK, start + count), dtype=np.int32)
            ids = 1 + index % (self.engine.vocab - 1)
            self.engine.run([self.cuda.Work(sequence, ids, in_order(begin, len(index)))])

    def write(self, sequences: list[int], start: int, count: int) -> list[list[int]]:
        """The likeliest token, `count` times, for each sequence."""
        from glmlite.models.layout import everywhere, in_order

        sampler = [self.cuda.Sampler() for _ in sequences]
        works = [
            self.cuda.Work(
                *(sequence, np.array([1 + i], np.int32), in_order(start, 1)),
                sampler=sampler[i],
                budget=count,
                next_position=everywhere(start + 1),
            )
            for i, sequence in enumerate(sequences)
        ]
        samples = self.engine.run(works, max_ms=math.inf)
        if any(len(s) != count for s in samples):
            raise RuntimeError(f"{[len(s) for s in samples]} tokens were written, should be {count} each")
        return [[s.token for s in of_one] for of_one in samples]


def tiny_run(rehearse: bool) -> int:
    """What compute-sanitizer looks at: every kind of step, checked against the CPU."""
    cuda = module(rehearse)
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "tiny.gguf", "tiny", "Q4_0", vocab=512)
        tokens = []
        for device in (0, -1):
            model = Model(cuda, path, 512, device)
            sequences = [model.engine.new_sequence() for _ in range(3)]
            for i, sequence in enumerate(sequences):
                model.read(sequence, 0, 20 + 50 * i)
                model.engine.truncate(sequence, 20)
            tokens.append(model.write(sequences, 20, 3 if rehearse else 6))
            model.engine.close()
    if tokens[0] != tokens[1]:
        print(f"the GPU wrote {tokens[0]}, the CPU {tokens[1]}")
        return 1
    return 0


def benchmarks(rehearse: bool) -> dict:
    """Facts of the GPU, and per case tokens per second and the fraction of a limit."""
    cuda = module(rehearse)
    device = cuda.devices()[0]
    results: dict = {"device": {**device, "capability": ".".join(map(str, device["capability"]))}}
    bandwidth, rate = (0.0, 0.0) if rehearse else (cuda.machine_bandwidth(0), cuda.machine_bf16_rate(0))
    results |= {"copy_gb_s": bandwidth, "bf16_gflops": rate, "cases": [], "tokens": []}
    cases = REHEARSAL if rehearse else CASES
    with tempfile.TemporaryDirectory() as folder:
        for shape, format in dict.fromkeys((c.shape, c.format) for c in cases):
            of_model = [c for c in cases if (c.shape, c.format) == (shape, format)]
            path = write_model(Path(folder) / "model.gguf", shape, format, **({"vocab": 512} if rehearse else {}))
            for depth in sorted({c.depth for c in of_model if c.batch == 1 and c.generate}):
                results["tokens"].append({"shape": shape, "format": format, **time_step(cuda, path, depth + 1)})
            need = max(c.batch * (c.depth + c.generate + c.prompt + 64) for c in of_model)
            model = Model(cuda, path, need)
            file_bytes = path.stat().st_size
            path.unlink()
            for case in of_model:
                item = measure(model, case, bandwidth, rate)
                results["cases"].append({**item, "load_s": model.load_seconds, "file_bytes": file_bytes})
                print(f"{case.name}: {item['tokens_per_s']:.1f} tokens/s", flush=True)
            model.engine.close()
    return results


def measure(model: Model, case: Case, bandwidth: float, rate: float) -> dict:
    engine = model.engine
    sequences = [engine.new_sequence() for _ in range(case.batch)]
    for sequence in sequences:  # each its own pages: shared ones would be read once
        model.read(sequence, 0, case.depth)
    seconds, tokens = [], []
    for _ in range(REPEAT + 1):  # the first warms up
        for sequence in sequences:
            engine.truncate(sequence, case.depth)
        begin = time.perf_counter()
        if case.prompt:
            model.read(sequences[0], 0, case.prompt)
        else:
            tokens.append(model.write(sequences, case.depth, case.generate))
        seconds.append(time.perf_counter() - begin)
    if any(t != tokens[0] for t in tokens):
        raise RuntimeError(f"{case.name}: two runs wrote different tokens")
    for sequence in sequences:
        engine.free(sequence)
    median = statistics.median(seconds[1:])
    item = {**case._asdict(), "name": case.name, "seconds": median, "least": min(seconds[1:]), "most": max(seconds[1:])}
    item["tokens_per_s"] = (case.prompt or case.batch * case.generate) / median
    if case.prompt and rate:
        item["of_bf16_rate"] = 2 * model.weights * case.prompt / median / (rate * 1e9)
    elif bandwidth and not case.prompt:
        context = case.batch * (case.depth + case.generate / 2) * model.kv_bytes
        item["of_copy_bandwidth"] = (model.weight_bytes + context) * case.generate / median / (bandwidth * 1e9)
    return item


def table(results: dict) -> str:
    lines = ["", f"commit {results['commit']}, Python {results['python']}, {results['host']}"]
    lines += [f"{step}: {item['result']} ({item['seconds']} s)" for step, item in results["steps"].items()]
    if "device" in results:
        d = results["device"]
        lines.append(
            f"{d['name']}, compute capability {d['capability']}, {d['total'] / 1e9:.0f} GB; "
            f"copy {results['copy_gb_s']:.0f} GB/s (read + written), "
            f"bf16 mma.sync {results['bf16_gflops'] / 1e3:.0f} TFLOPS"
        )
        rows = ["", "| | tokens/s | of what the GPU can |", "|---|---|---|"]
        for item in results["cases"]:
            share = ""
            if "of_bf16_rate" in item:
                share = f"{item['of_bf16_rate']:.0%} of the bf16 rate"
            elif "of_copy_bandwidth" in item:
                share = f"{item['of_copy_bandwidth']:.0%} of the copy's bandwidth"
            rows.append(f"| {item['name']} | {item['tokens_per_s']:.1f} | {share} |")
        lines += rows
        for token in results["tokens"]:
            lines += [
                "",
                f"{token['shape']} {token['format']}, one token, the {token['context']}th: {token['ahead_us']:.0f} us, "
                f"{token['in_turn_us']:.0f} us if no kernel starts before others have ended; each op on its own:",
                "",
                "| | us | ops | GB/s |",
                "|---|---|---|---|",
            ]
            for part in token["parts"]:
                rate = f"{part['bytes'] / part['us'] / 1e3:.0f}" if part["bytes"] > 1e6 and part["us"] else ""
                lines.append(f"| {part['name']} | {part['us']:.0f} | {part['count']} | {rate} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
