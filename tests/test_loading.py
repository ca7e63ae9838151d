"""What happens to a file while it is loaded, and to the process that loads it: never more than an exception."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import glmlite

MOMENTS = 20
CHILD = """
    import os, sys, glmlite
    path, other, how = sys.argv[1:4]
    at = float(sys.argv[4])

    def change():
        size = os.path.getsize(path)
        if how == "cut":
            os.truncate(path, size // 8)
        elif how == "cut to nothing":
            os.truncate(path, 0)
        elif how == "remove":
            os.unlink(path)
        elif how == "replace":
            os.replace(other, path)
        else:
            with open(path, "r+b") as file:
                file.seek(size // 2)
                file.write(b"\\xff" * (size // 2))

    done = []

    def progress(fraction):
        if fraction >= at and not done:
            done.append(fraction)
            change()

    try:
        with glmlite.load(path, threads=2, progress=progress) as model:
            try:
                print("answer", model.generate([1, 2, 3], max_tokens=3, temperature=0, ignore_eos=True).tokens)
            except RuntimeError as error:
                print("error", type(error).__name__, error)
    except (OSError, ValueError) as error:
        print("error", type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of some MB, whose packing takes several pieces, and what it answers."""
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    tiny.write(path, tiny.model("glm4", layers=4, dim=256, heads=8, ffn=512, vocab=4000), "Q8_0")
    with glmlite.load(path) as model:
        return path, model.generate([1, 2, 3], max_tokens=3, temperature=0, ignore_eos=True).tokens


def load_in_a_child(tmp_path, file, how, at):
    path, other = tmp_path / "模型.gguf", tmp_path / "other.gguf"
    shutil.copy(file, path)
    other.write_bytes(b"GGUF" + bytes(1000))
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(path), str(other), how, str(at)]
    environment = os.environ | {"PYTHONPATH": str(Path(glmlite.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=60)
    assert done.returncode == 0, f"{how} at {at}: exit code {done.returncode}: {done.stderr}"
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cuts and removes no file that is open")
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_file_that_is_cut_while_it_is_loaded(tmp_path, large, moment):
    """By another program, in place: a download that begins again, a share that is gone. SIGBUS, if it were mapped."""
    path, answer = large
    for how in ("cut", "cut to nothing"):
        said = load_in_a_child(tmp_path, path, how, moment / MOMENTS)
        assert said.startswith("error") or said == f"answer {answer}", said
        if moment < MOMENTS - 5:
            assert said.startswith(("error OSError", "error FormatError")), said
            assert "模型.gguf" in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no file that is open")
@pytest.mark.parametrize("moment", range(0, MOMENTS, 3))
def test_a_file_that_is_removed_replaced_or_overwritten_while_it_is_loaded(tmp_path, large, moment):
    path, answer = large
    for how in ("remove", "replace"):
        said = load_in_a_child(tmp_path, path, how, moment / MOMENTS)
        # The open file is the old one, whatever its name means now.
        assert said == f"answer {answer}" or (moment == 0 and said.startswith("error")), said
    assert load_in_a_child(tmp_path, path, "overwrite", moment / MOMENTS).startswith(("error", "answer"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A small model with a vocabulary of GLM-4's size: 151,552 tokens and 318,088 merges."""
    model = tiny.model("glm4", vocab=384)
    tokens = [tiny.byte_symbol(b) for b in range(256)]
    merges = [f"{left} {right}" for left in tokens for right in tokens]
    words = [*tokens, *(merge.replace(" ", "") for merge in merges)]
    for left in words[256:]:
        if len(words) < 151_000:
            words.append(left + tokens[0])
            merges.append(f"{left} {tokens[0]}")
    while len(merges) < 318_088:
        merges += merges[: 318_088 - len(merges)]
    specials = tiny.SPECIALS["glm4"]
    padding = [f"[PAD{i}]" for i in range(151_552 - len(words) - len(specials))]
    every = [*words, *specials, *padding]
    types = [1] * len(words) + [3] * len(specials) + [5] * len(padding)
    metadata = model.metadata | {
        "tokenizer.ggml.tokens": every,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(words),
        "tokenizer.ggml.eot_token_id": every.index("<|user|>"),
    }
    shapes = {"token_embd.weight": (len(every), 64), "output.weight": (len(every), 64)}
    tensors = model.tensors | {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("vocabulary") / "m.gguf"
    return tiny.write(path, tiny.Tiny(metadata, tensors), "Q4_0")


def test_progress_begins_at_once_and_comes_often(vocabulary):
    told = []
    begin = time.monotonic()
    with glmlite.load(vocabulary, progress=lambda done: told.append((time.monotonic() - begin, done))):
        pass
    assert told[0][1] == 0.0
    assert told[-1][1] == 1.0
    fractions = [done for _, done in told]
    assert fractions == sorted(fractions)
    assert len(told) >= 8
    assert told[0][0] < 1  # before anything is read; the bar of 50 ms is measured by benchmarks/stalls.py


@pytest.mark.parametrize("at", [0.0, 0.02, 0.05, 0.08, 0.1, 0.5])
def test_a_cancel_ends_a_load_in_every_phase(vocabulary, at):
    cancel = glmlite.Cancel()
    seen = []

    def progress(done):
        seen.append(done)
        if done >= at:
            cancel.cancel()

    with pytest.raises(glmlite.Cancelled):
        glmlite.load(vocabulary, progress=progress, cancel=cancel)
    assert len([done for done in seen if done >= at]) == 1

    with pytest.raises(ZeroDivisionError):
        glmlite.load(vocabulary, progress=lambda done: 1 / 0 if done >= at else None)


def test_a_cancel_from_another_thread_ends_a_load(vocabulary):
    cancel = glmlite.Cancel()
    threading.Timer(0.05, cancel.cancel).start()
    begin = time.monotonic()
    with pytest.raises(glmlite.Cancelled):
        while True:
            glmlite.load(vocabulary, cancel=cancel).close()
    assert time.monotonic() - begin < 10


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the address space")
@pytest.mark.parametrize("megabytes", range(20, 260, 20))
def test_too_little_memory_is_a_memory_error(vocabulary, megabytes):
    """Wherever it runs out: in metadata, the tokenizer, the weights, the cache."""
    script = """
        import resource, sys
        import numpy, tokenizers, glmlite
        from glmlite import _native
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 1_000_000,) * 2)
        try:
            glmlite.load(sys.argv[1], context=64, threads=1).close()
            print("loaded")
        except MemoryError:
            print("MemoryError")
        glmlite.load(context=64, threads=1).close() if len(sys.argv) > 3 else None
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    command = [sys.executable, "-c", textwrap.dedent(script), str(vocabulary), str(megabytes)]
    environment = os.environ | {"PYTHONPATH": str(Path(glmlite.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() in ("loaded", "MemoryError")


def test_the_vocabulary_is_as_large_as_glm_4_s(vocabulary):
    gguf = glmlite.placement.backend("cpu").Gguf(vocabulary)
    assert len(gguf.metadata["tokenizer.ggml.tokens"]) == 151_552
    assert len(gguf.metadata["tokenizer.ggml.merges"]) == 318_088
    gguf.close()
