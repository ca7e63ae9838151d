"""Weights packed in a file: the same bits wherever they lie; a file that is whole and of these weights, or not used."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny

import glmlite
from glmlite import _native as native
from glmlite import files, models, packed, placement
from glmlite.models.layout import in_order

KEY = bytes(range(32))
MIXTURES = [("glm4moe", "Q4_0"), ("deepseek2", "Q8_0"), ("glm4moe", "F32")]
FORMATS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
FORMATS += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


def program(path):
    gguf = native.Gguf(path)
    recording = models.record(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    return gguf, placement.native_ops(recording.ops, gguf.dequantize)


def pack(path, target, **options):
    """The packed weights of a model's file, and the program that they belong to."""
    gguf, ops = program(path)
    with open(target, "wb") as file:
        native.pack(gguf, ops, target, KEY, file.fileno(), **options)
    return native.PackedFile(gguf, ops, target, KEY), gguf, ops


def logits(engine, steps=(40, 1, 1, 7)):
    sequence, at, rows = engine.new_sequence(), 0, []
    for count in steps:
        tokens = np.arange(at, at + count, dtype=np.int32) * 7 % 200
        rows.append(engine.step([native.Work(sequence, tokens, in_order(at, count))], list(range(count))))
        at += count
    return np.concatenate(rows)


def left_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def model(tmp_path):
    return Path(tiny.write(tmp_path / "model.gguf", tiny.model("glm4moe", layers=4), "Q8_0"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GLMLITE_CACHE", str(folder))
    return folder


def answer(path, **options):
    with glmlite.load(path, threads=2, **options) as model:
        return model.generate([1, 2, 3], max_tokens=8, temperature=0, ignore_eos=True).tokens


@pytest.mark.parametrize(("architecture", "format"), [*MIXTURES, ("glm4", "Q4_0"), ("chatglm", "F16")])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_where_weights_lie(tmp_path, architecture, format, threads):
    sizes = {"head_dim": 64, "rope_dim": 32} if architecture == "deepseek2" else {}
    path = tiny.write(tmp_path / "m.gguf", tiny.model(architecture, layers=3, **sizes), format)
    file, gguf, ops = pack(path, tmp_path / "m.packed", threads=threads)
    want = logits(native.Engine(gguf, ops, kv_tokens=128, threads=threads))
    every, experts = native.weight_bytes(gguf, ops)
    assert (tmp_path / "m.packed").stat().st_size == 4096 + every
    mapped = native.Engine(gguf, ops, kv_tokens=128, threads=threads, packed=file)
    assert np.array_equal(logits(mapped), want)
    assert mapped.weight_bytes == every
    dense = every - experts
    for room in (0, dense // 2):
        engine = native.Engine(gguf, ops, kv_tokens=128, threads=threads, packed=file, weight_room=room)
        assert np.array_equal(logits(engine), want)
        assert engine.weight_bytes == every
    one = experts // (2 * 8)  # two mixtures of eight
    for room in (experts // 32, one, 3 * one, 9 * one, experts) if experts else ():
        engine = native.Engine(gguf, ops, kv_tokens=128, threads=threads, packed=file, weight_room=dense + room)
        for _ in range(2):
            assert np.array_equal(logits(engine), want)
        gaps = 3 * 4096  # before experts, which begin on pages
        assert dense + room - one - gaps <= engine.weight_bytes <= dense + max(room, one)


def test_packed_bytes_keep_their_version(tmp_path):
    """Whoever packs otherwise raises PackedFile::kVersion, and puts the new hash here."""
    digest = hashlib.sha256()
    for format in FORMATS:
        path = tiny.write(tmp_path / "m.gguf", tiny.wide("deepseek2", layers=2, vocab=16), format)
        _, gguf, _ = pack(path, tmp_path / "m.packed", threads=2)
        written = (tmp_path / "m.packed").read_bytes()
        assert written[:16] == b"GLMPACK\n" + (1).to_bytes(8, "little")
        assert written[32:64] == KEY
        digest.update(written[4096:])
        gguf.close()
    want = "ed1a42ba3e277f7ef5f2fdd79a2b0a038c97c5119ef55b7f667892d4e5899ecb"
    assert digest.hexdigest() == want


def test_a_second_load_takes_what_the_first_made(model):
    want = answer(model)
    assert left_in(model.parent) == ["model.gguf"]
    assert answer(model, packed=True) == want
    made = (model.parent / "model.gguf.packed").stat()
    assert answer(model, packed=True) == want
    again = (model.parent / "model.gguf.packed").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert left_in(model.parent) == ["model.gguf", "model.gguf.packed"]


DAMAGES = {
    "cut short": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "its header alone": lambda data: data[:4096],
    "of another program": lambda data: b"no header" + data[9:],
    "another version": lambda data: data[:8] + b"\2" + data[9:],
    "another layout": lambda data: data[:16] + b"\0" * 8 + data[24:],
    "another size": lambda data: data[:24] + b"\0" * 8 + data[32:],
    "another key": lambda data: data[:40] + b"\0" * 8 + data[48:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_right_is_made_anew(model, damage):
    want = answer(model, packed=True)
    path = model.parent / "model.gguf.packed"
    right = path.read_bytes()
    path.write_bytes(DAMAGES[damage](right))
    gguf, ops = program(model)
    with pytest.raises(glmlite.FormatError, match=r"model\.gguf\.packed"):
        native.PackedFile(gguf, ops, path, packed.content_key(gguf))
    gguf.close()
    assert answer(model, packed=True) == want
    assert path.read_bytes() == right


def test_the_key_is_of_the_tensors(tmp_path):
    base = tiny.model("glm4", layers=1)
    norm = base.tensors["output_norm.weight"]
    same = tiny.Tiny(base.metadata | {"general.name": "another"}, base.tensors)
    other = tiny.Tiny(
        base.metadata, base.tensors | {"output_norm.weight": norm + (np.arange(norm.size) == norm.size - 1)}
    )

    def key(model, format="Q8_0"):
        gguf = native.Gguf(tiny.write(tmp_path / "m.gguf", model, format))
        try:
            return packed.content_key(gguf)
        finally:
            gguf.close()

    assert len(key(base)) == 32
    assert key(same) == key(base)
    assert len({key(base), key(other), key(base, "F16"), key(tiny.model("glm4", layers=1, seed=1))}) == 4


def test_another_model_in_its_place(model):
    before = answer(model, packed=True)
    tiny.write(model, tiny.model("glm4moe", layers=4, seed=1), "Q8_0")
    want = answer(model)
    assert want != before
    assert answer(model, packed=True) == want


def test_a_folder_that_cannot_be_written(model, cache, monkeypatch):
    def replacing(path, buffering=-1):
        if Path(path).parent == model.parent:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return files.replacing(path, buffering)

    monkeypatch.setattr(packed, "replacing", replacing)
    want = answer(model, packed=True)
    assert left_in(model.parent) == ["model.gguf"]
    (made,) = left_in(cache)
    assert made.startswith("model-") and made.endswith(".packed")
    monkeypatch.setattr(packed, "replacing", None)  # it is found there
    assert answer(model, packed=True) == want

    monkeypatch.setattr(packed, "replacing", replacing)
    monkeypatch.setenv("GLMLITE_CACHE", str(model.parent))
    with pytest.raises(PermissionError, match="denied"):
        answer(model, packed=True)


def test_a_full_disk(model, cache):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(OSError, match=r"packed weights take 0\.00 GB.*model\.gguf\.packed"):
                answer(model, packed=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert left_in(model.parent) == ["model.gguf"]
        assert left_in(cache) == []
    assert answer(model, packed=True) == answer(model)


@pytest.mark.parametrize("at", [0.1, 0.3, 0.6, 0.9])
def test_who_ends_a_load_leaves_nothing(model, at):
    large = tiny.write(model, tiny.model("glm4", layers=4, dim=256, heads=8, ffn=512, vocab=4000), "Q8_0")
    before = left_in(model.parent)

    def cancels(done):
        return done < at

    def interrupts(done):
        if done >= at:
            signal.raise_signal(signal.SIGINT)

    def fails(done):
        return 1 / 0 if done >= at else None

    for progress, error in ((cancels, glmlite.Cancelled), (interrupts, KeyboardInterrupt), (fails, ZeroDivisionError)):
        with pytest.raises(error):
            glmlite.load(large, packed=True, progress=progress)
        if at < 0.9:
            assert left_in(model.parent) == before


def test_progress(model):
    for made in (False, True):
        told = []
        answer(model, packed=True, progress=told.append)
        assert (told[0], told[-1]) == (0.0, 1.0), made
        assert told == sorted(told)


def test_two_at_once(model):
    """Threads of a process, and processes."""
    want = answer(model)
    found = []
    threads = [threading.Thread(target=lambda: found.append(answer(model, packed=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 3
    (model.parent / "model.gguf.packed").unlink()

    script = """
        import sys, glmlite
        with glmlite.load(sys.argv[1], threads=1, packed=True) as model:
            print(model.generate([1, 2, 3], max_tokens=8, temperature=0, ignore_eos=True).tokens)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(model)]
    environment = os.environ | {"PYTHONPATH": str(Path(glmlite.__file__).parents[1])}
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert [child.communicate(timeout=60)[0].strip() for child in children] == [str(want)] * 3
    assert left_in(model.parent) == ["model.gguf", "model.gguf.packed"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cuts no file that is open")
@pytest.mark.parametrize("room", [20_000, 50_000])
def test_a_file_that_is_cut_while_experts_are_read_of_it(tmp_path, room):
    target = tmp_path / "m.packed"
    path = tiny.write(tmp_path / "m.gguf", tiny.model("glm4moe", layers=4), "Q8_0")
    file, gguf, ops = pack(path, target)
    whole = target.read_bytes()
    every, experts = native.weight_bytes(gguf, ops)
    engine = native.Engine(gguf, ops, kv_tokens=256, threads=2, packed=file, weight_room=every - experts + room)
    want = logits(engine)
    sequence = engine.new_sequence()
    work = [native.Work(sequence, np.arange(9, dtype=np.int32), in_order(0, 9))]
    for size in (5000, len(whole) // 2):
        os.truncate(target, size)
        for _ in range(2):
            with pytest.raises(OSError, match=r"m\.packed: .*cut short|cut short.*m\.packed"):
                engine.step(work, [8])
            assert engine.length(sequence) == 0
        with open(target, "r+b") as again:
            again.write(whole)
        assert np.array_equal(logits(engine), want)


def test_what_memory_does_not_hold_is_packed_by_itself(model, monkeypatch, caplog):
    want = answer(model)
    gguf, ops = program(model)
    every, experts = native.weight_bytes(gguf, ops)
    page = native.page_bytes(gguf, ops)
    assert experts > (every + page) // 4
    cases = [
        (2**40, {}, every, False),
        (every + page - 1, {}, None, True),
        (every // 4, {}, every, True),
        (every // 4, {"packed": False}, every, False),
    ]
    for free, options, held, makes in cases:
        monkeypatch.setattr(native, "available_memory", lambda free=free: free)
        caplog.clear()
        with caplog.at_level("WARNING", "glmlite"), glmlite.load(model, context=64, **options) as loaded:
            weights = loaded.memory()["weights"]
            assert loaded.generate([1, 2, 3], max_tokens=8, temperature=0, ignore_eos=True).tokens == want
        assert weights == held or (held is None and weights < every)
        assert ("do not fit into memory" in caplog.text) == makes
        assert left_in(model.parent) == ["model.gguf", *(["model.gguf.packed"] if makes else [])]
        (model.parent / "model.gguf.packed").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("budget", "fits", "room", "missed"),
    [
        ((100, 0, 10, 110), True, -1, 0),
        ((100, 0, 10, 80), False, 60, 1100 * 0.4),
        ((100, 0, 10, 0), False, 0, 1100),
        ((100, 80, 10, 80), False, 60, 100 * 0.5),
        ((100, 80, 10, 24), False, 11, 1100 * 0.89),
        ((100, 80, 10, 200), True, -1, 0),
    ],
)
def test_what_is_missed(budget, fits, room, missed):
    of = packed.Budget(*budget)
    assert (of.fits, of.room) == (fits, room)
    assert of.missed(1000, 100) == pytest.approx(missed)


def test_weights_of_a_token(tiny_file):
    gguf, _ = program(tiny_file("glm4moe", layers=2))
    recording = models.record(gguf.metadata, {name: t.shape for name, t in gguf.tensors.items()})
    dense, experts = packed.weights_per_token(recording.ops, gguf.tensors)
    of_experts = sum(t.nbytes for name, t in gguf.tensors.items() if "_exps." in name)
    assert experts == of_experts * 2 / 8
    others = sum(t.nbytes for name, t in gguf.tensors.items() if len(t.shape) == 2 and name != "token_embd.weight")
    assert dense == others


def test_what_packed_is_checked(tmp_path, model, tiny_file):
    file, gguf, ops = pack(model, tmp_path / "m.packed")
    other, other_ops = program(tiny_file("glm4"))
    with pytest.raises(ValueError, match=r"m\.packed is of another program"):
        native.Engine(other, other_ops, kv_tokens=64, packed=file)
    with pytest.raises(ValueError, match="key: 3 bytes, expected 32"):
        native.PackedFile(gguf, ops, tmp_path / "m.packed", b"key")
    with pytest.raises(FileNotFoundError, match=r"none\.packed"):
        native.PackedFile(gguf, ops, tmp_path / "none.packed", KEY)
    with pytest.raises(ValueError, match="packed weights"):
        glmlite.load(tmp_path / "m.packed")


def test_the_speed_of_a_disk(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    assert native.read_speed(path, seconds=10) > 0
    path.write_bytes(b"small")
    assert native.read_speed(path) == 0
    with pytest.raises(FileNotFoundError, match="none"):
        native.read_speed(tmp_path / "none")
