"""What a model takes is given back, and does not grow with use. benchmarks/memory.py does the same at length."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny

import glmlite

# What the median of the last third of the samples may exceed the first's by. A leak of one 4 KB page a round, or of
# the tiny file's metadata (some 50 KB) every tenth, exceeds it.
GROWTH = 300_000

SOAK = """
    import gc, statistics, sys, psutil, glmlite

    def load():
        return glmlite.load(sys.argv[1], context=256, threads=1)

    def generate(model, i):
        prompt = [(i * 7 + k) % 256 for k in range(1 + i % 30)]
        arguments = {"max_tokens": 1 + i % 8, "temperature": 1.0, "seed": i, "ignore_eos": True}
        kind = i % 5
        if kind == 0:
            model.generate(prompt, **arguments, logprobs=2, stop=["the end"])
        elif kind == 1:
            for _ in model.stream(prompt, **arguments):
                break
        elif kind == 2:
            model.stream(prompt, **arguments)
        elif kind == 3:
            with model.stream(prompt, **{**arguments, "max_tokens": 60}) as generation:
                next(generation)
                generation.cancel()
                generation.result()
        else:
            model.logits(prompt)

    def cycle(i):
        with load() as model:
            model.generate([1, 2, 3], max_tokens=2, ignore_eos=True)

    def anonymous():
        memory = psutil.Process().memory_info()  # without pages of files: the first cancel that is thrown reads 91
        return memory.rss - getattr(memory, "shared", 0)

    def grown(function, rounds):
        samples = []
        for i in range(rounds):
            function(i)
            if i % 5 == 0:
                gc.collect()
                samples.append(anonymous())
        warm = samples[len(samples) // 4 :]
        third = len(warm) // 3
        print(int(statistics.median(warm[-third:]) - statistics.median(warm[:third])))
"""


def run(path, code):
    """The numbers that a fresh process prints."""
    program = textwrap.dedent(SOAK) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(glmlite.__file__).parents[1],  # else a checkout hides the installed package
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_load_and_close_do_not_grow(tiny_file):
    (growth,) = run(tiny_file(), "grown(cycle, 200)")
    assert growth <= GROWTH


def test_generations_do_not_grow(tiny_file):
    code = """
        with load() as model:
            grown(lambda i: generate(model, i), 500)
    """
    (growth,) = run(tiny_file(), code)
    assert growth <= GROWTH


def test_close_gives_back_weights_and_cache(tiny_file):
    code = """
        cycle(0)
        gc.collect()
        before = psutil.Process().memory_info().rss
        model = glmlite.load(sys.argv[1], context=256, kv_tokens=250_000)
        model.generate(list(range(200)), max_tokens=2)
        held = sum(model.memory().values())
        model.close()
        gc.collect()
        print(held, psutil.Process().memory_info().rss - before)
    """
    held, left = run(tiny_file(vocab=60_000), code)
    assert held > 50e6
    assert left < 20e6


def test_merges_are_let_go_once_a_tokenizer_is_made(tmp_path):
    """GLM-4's 318,088 take 30 MB in Python; what stays with a loaded model is the engine's table."""
    count, left, right = 4000, "a" * 4000, "b" * 4000
    metadata = tiny.tokenizer("chatglm", 384)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens[-3:], types[-3:] = [left, right, left + right], [1, 1, 1]
    few = tiny.write(tmp_path / "few.gguf", tiny.model("chatglm", metadata=metadata))
    # One merge again and again is as long as many.
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], *[f"{left} {right}"] * count]
    many = tiny.write(tmp_path / "many.gguf", tiny.model("chatglm", metadata=metadata))
    code = """
        model = load()
        gc.collect()
        print(psutil.Process().memory_info().rss)
    """
    (with_few,), (with_many,) = run(few, code), run(many, code)
    assert with_many - with_few < 0.3 * count * len(f"{left} {right}")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_too_little_memory_is_an_error_and_the_process_lives_on(tiny_file):
    code = """
        import resource
        cycle(0)
        for megabytes in (0, 4, 50):  # none for the file, none for the weights, none for the cache
            with open("/proc/self/statm", encoding="ascii") as sizes:
                used = int(sizes.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_000_000, resource.RLIM_INFINITY))
            try:
                glmlite.load(sys.argv[1], context=256, threads=1, kv_tokens=500_000)
            except MemoryError:
                print(megabytes)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        cycle(1)
    """
    assert run(tiny_file(vocab=60_000), code) == [0, 4, 50]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_step_without_memory_fails_its_request_alone(tiny_file):
    # More room each time, so that each of a step's buffers is once the one that fails.
    code = """
        import resource
        model = load()
        failed = 0
        while True:
            with open("/proc/self/statm", encoding="ascii") as sizes:
                used = int(sizes.read().split()[0]) * resource.getpagesize()
            room = 200_000 * (1 + failed)
            resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
            try:
                model.generate(list(range(200)), max_tokens=2)
                break
            except MemoryError:
                failed += 1
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            model.generate([1, 2, 3], max_tokens=2, ignore_eos=True)
        print(failed)
    """
    (failed,) = run(tiny_file(dim=512, ffn=2048), code)
    assert failed > 2
