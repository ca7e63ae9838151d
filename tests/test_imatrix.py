"""Importance matrices: what is collected, the files of both forms, hostile ones, and that `convert` uses them."""

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_perplexity import CONTEXT, TEXT, WHOLE, chunks_of, numpy_trace

import glmlite
import glmlite.convert as converting
from glmlite import _native as native
from glmlite.cli import main
from glmlite.convert import convert, imatrix, writer
from glmlite.errors import Cancelled, FormatError
from glmlite.models import record
from glmlite.models.layout import causal
from glmlite.quantize import quantize

ARCHITECTURES = ["chatglm", "glm4", "llama", "chatglm1", "glm"]


def matrix_of(**entries):
    """An ImportanceMatrix of name -> sums, each summed over 4 rows; `__` stands for a dot."""
    named = {k.replace("__", "."): imatrix.Entry(np.array([v], float), np.array([4])) for k, v in entries.items()}
    return imatrix.ImportanceMatrix(named, ["text.txt"], 2, 512)


def linears(model):
    return [op for op in record(model.metadata, model.shapes).ops if op.kind == "linear"]


# ---- what is collected -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_numpy_executor(tiny_file, architecture):
    """Every column of every matrix, the logits' too, within what the values of a whole model may differ by."""
    model = tiny.model(architecture)
    got = imatrix.collect(tiny_file(architecture), TEXT, context=CONTEXT, output=True, dataset="text")
    chunks = chunks_of(model)
    want, allowed = {}, {}
    for tokens, _, context in chunks:
        values = numpy_trace(model, tokens, context)
        for op in linears(model):
            x = np.abs(values[op.inputs["x"].id].astype(np.float64))
            off = WHOLE * x.max(axis=1, keepdims=True)
            for name in op.weights["w"]:
                # (x + d)^2 - x^2 for |d| <= off
                want[name] = want.get(name, 0) + (x**2).sum(axis=0)
                allowed[name] = allowed.get(name, 0) + (2 * x * off + off**2).sum(axis=0)
    assert set(got.entries) == set(want)
    for name, (sums, counts) in got.entries.items():
        assert counts.tolist() == [len(chunks) * CONTEXT]
        assert sums.shape == (1, *model.shapes[name][1:])
        assert (np.abs(sums[0] - want[name]) <= allowed[name]).all(), name
    assert (got.datasets, got.chunks, got.chunk_size) == (["text"], len(chunks), CONTEXT)


@pytest.mark.parametrize("format", ["F16", "Q4_0"])
def test_equals_the_values_of_the_same_engine(tmp_path, format):
    """f64 sums of the very values that enter the matrices, before they are rounded to int8."""
    model = tiny.model("llama")
    path = tiny.write(tmp_path / "m.gguf", model, format)
    got = imatrix.collect(path, TEXT, context=CONTEXT, chunks=1)
    (tokens, *_), *_ = chunks_of(model)
    with glmlite.load(path, context=CONTEXT) as loaded:
        sequence = loaded.debug.engine.new_sequence()
        positions = causal(tokens, None).positions
        values = loaded.debug.engine.trace([native.Work(sequence, tokens, positions)], [])
    for op in linears(model)[:-1]:
        want = np.square(values[op.inputs["x"].id].astype(np.float64)).sum(axis=0)
        for name in op.weights["w"]:
            # Sums of 64 squares in another order.
            assert (np.abs(got.entries[name].sums - want) <= 64 * 2**-52 * want).all(), name
    assert "output.weight" not in got.entries
    q, k, gate, up = (got.entries[f"blk.0.{n}.weight"].sums for n in ("attn_q", "attn_k", "ffn_gate", "ffn_up"))
    assert np.array_equal(q, k) and np.array_equal(gate, up) and not np.array_equal(q, gate)


@pytest.mark.parametrize("architecture", tiny.MIXTURES)
def test_an_expert_has_what_its_own_rows_bring(tmp_path, architecture):
    """Of each expert the rows that its router sent it, and what they become between its matrices."""
    model = tiny.model(architecture, layers=3)
    path = tiny.write(tmp_path / "m.gguf", model)
    got = imatrix.collect(path, TEXT, context=CONTEXT, chunks=1)
    (tokens, *_), *_ = chunks_of(model)
    with glmlite.load(path, context=CONTEXT) as loaded:
        sequence = loaded.debug.engine.new_sequence()
        positions = causal(tokens, None).positions
        values = loaded.debug.engine.trace([native.Work(sequence, tokens, positions)], [])
    mixtures = [op for op in record(model.metadata, model.shapes).ops if op.kind == "moe"]
    assert len(mixtures) == 2
    for op in mixtures:
        x = values[op.inputs["x"].id].astype(np.float64)
        chosen = values[op.inputs["routing"].id][:, : op.attrs["used"]]
        (gate, up), (down,) = (op.weights[slot] for slot in ("gate_up", "down"))
        for expert in range(len(model.tensors[down])):
            rows = x[(chosen == expert).any(axis=1)]
            before = [rows @ model.tensors[name][expert].T.astype(np.float64) for name in (gate, up)]
            inner = before[0] / (1 + np.exp(-before[0])) * before[1]
            for name, entering in ((gate, rows), (up, rows), (down, inner)):
                sums, counts = got.entries[name]
                assert counts[expert] == len(rows)
                np.testing.assert_allclose(sums[expert], np.square(entering).sum(axis=0), rtol=1e-4, atol=1e-9)
        assert got.entries[gate].counts.sum() == CONTEXT * op.attrs["used"]


def test_fused_tensors_have_their_own_names(tiny_file):
    got = imatrix.collect(tiny_file("chatglm"), TEXT, context=CONTEXT, chunks=1)
    names = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    assert set(got.entries) == {f"blk.{i}.{name}.weight" for i in range(2) for name in names}


def test_the_same_bytes_on_any_number_of_threads_and_in_any_steps(tiny_file, tmp_path, monkeypatch):
    files = []
    for threads in (1, 2):
        files.append(tmp_path / f"{threads}.gguf")
        imatrix.write(files[-1], imatrix.collect(tiny_file(), TEXT, context=CONTEXT, threads=threads))
    assert files[0].read_bytes() == files[1].read_bytes()
    whole = imatrix.collect(tiny_file(), TEXT, context=CONTEXT)
    monkeypatch.setattr(imatrix.evaluate, "STEP", 7)
    pieces = imatrix.collect(tiny_file(), TEXT, context=CONTEXT)
    for name, (sums, _) in whole.entries.items():
        assert (np.abs(pieces.entries[name].sums - sums) <= 1e-12 * sums).all()


def test_progress_and_cancel(tiny_file):
    seen = []
    imatrix.collect(tiny_file(), TEXT, context=CONTEXT, chunks=2, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen) and seen[-1] == (2 * CONTEXT, 2 * CONTEXT)
    with pytest.raises(Cancelled):
        imatrix.collect(tiny_file(), TEXT, context=CONTEXT, progress=lambda *_: False)


def test_numbers_that_are_not_finite(tmp_path):
    model = tiny.model("llama")
    model.tensors["blk.1.ffn_norm.weight"][3] = np.inf
    path = tiny.write(tmp_path / "m.gguf", model)
    with pytest.raises(RuntimeError, match=r"what enters 'blk.1.ffn_gate.weight' is not finite: the weights"):
        imatrix.collect(path, TEXT, context=CONTEXT, chunks=1)


# ---- files -------------------------------------------------------------------------------------------------------


def test_the_gguf_form(tmp_path):
    """As llama.cpp writes and reads it, seen by the gguf package."""
    from gguf import GGUFReader

    path = tmp_path / "m.gguf"
    imatrix.write(path, matrix_of(blk__1__ffn_up__weight=[1, 2, 0.5], blk__0__ffn_up__weight=[3, 4]))
    reader = GGUFReader(path)
    fields = {name: (field.types[0].name, field.contents()) for name, field in reader.fields.items()}
    assert fields["general.type"] == ("STRING", "imatrix")
    assert fields["imatrix.datasets"] == ("ARRAY", ["text.txt"])
    assert fields["imatrix.chunk_count"] == ("UINT32", 2)
    assert fields["imatrix.chunk_size"] == ("UINT32", 512)
    tensors = [(t.name, t.tensor_type.name, t.shape.tolist(), t.data.ravel().tolist()) for t in reader.tensors]
    assert tensors == [
        ("blk.0.ffn_up.weight.in_sum2", "F32", [2, 1], [3, 4]),
        ("blk.0.ffn_up.weight.counts", "F32", [1, 1], [4]),
        ("blk.1.ffn_up.weight.in_sum2", "F32", [3, 1], [1, 2, 0.5]),
        ("blk.1.ffn_up.weight.counts", "F32", [1, 1], [4]),
    ]
    got = imatrix.read(path)
    assert (got.datasets, got.chunks, got.chunk_size) == (["text.txt"], 2, 512)
    weights = got.weights()
    assert sorted(weights) == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    assert weights["blk.1.ffn_up.weight"].tolist() == [0.25, 0.5, 0.125]


def dat(entries, end=True):
    """The older form: entries of (name, chunks, values)."""
    data = struct.pack("<i", len(entries))
    for name, chunks, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", chunks, len(values))
        data += np.asarray(values, "<f4").tobytes()
    return data + (struct.pack("<ii", 9, 5) + b"a.txt") * end


@pytest.mark.parametrize("end", [True, False])
def test_the_older_form(tmp_path, end):
    path = tmp_path / "m.dat"
    path.write_bytes(dat([(b"blk.0.ffn_up.weight", 9, [9, 18]), (b"b", 2, [1])], end))
    got = imatrix.read(path)
    assert (got.datasets, got.chunks, got.chunk_size) == ((["a.txt"], 9, 0) if end else ([], 0, 0))
    assert {name: w.tolist() for name, w in got.weights().items()} == {"blk.0.ffn_up.weight": [1, 2], "b": [0.5]}


def test_experts_are_counted_apart(tmp_path):
    """As llama.cpp writes them; one that no token met counts as without a matrix."""
    from gguf import GGUFReader

    path, name = tmp_path / "m.gguf", "blk.1.ffn_down_exps.weight"
    entry = imatrix.Entry(np.array([[8.0, 4], [0, 0], [6, 3]]), np.array([4, 0, 3]))
    imatrix.write(path, imatrix.ImportanceMatrix({name: entry}, ["text.txt"], 2, 512))
    tensors = {t.name: (t.shape.tolist(), t.data.tolist()) for t in GGUFReader(path).tensors}
    assert tensors == {f"{name}.in_sum2": ([2, 3], entry.sums.tolist()), f"{name}.counts": ([1, 3], [[4], [0], [3]])}
    got = imatrix.read(path)
    assert np.array_equal(got.entries[name].sums, entry.sums) and got.entries[name].counts.tolist() == [4, 0, 3]
    assert got.weights()[name].tolist() == [[2, 1], [1, 1], [2, 1]]


def test_inputs_of_a_matrix_for_each_head():
    """Of each head's columns those behind the first pass by."""
    got = imatrix._entry(np.arange(10.0), 7, (2, 6, 3))
    assert got.sums.tolist() == [[0, 1, 2], [5, 6, 7]] and got.counts.tolist() == [7, 7]
    assert imatrix._entry(np.arange(4.0), 7, (6, 4)).sums.tolist() == [[0, 1, 2, 3]]


def write_gguf(path, tensors, **metadata):
    keys = {"general.type": "imatrix", "imatrix.datasets": [], "imatrix.chunk_count": 1, "imatrix.chunk_size": 8}
    keys = {key: value for key, value in (keys | metadata).items() if value is not None}
    entries = [
        writer.Entry(name, x.shape, "F16" if x.dtype == np.float16 else "F32", lambda x=x: [x])
        for name, x in ((name, np.atleast_2d(x)) for name, x in tensors.items())
    ]
    writer.write(path, keys, entries)


def entry(sums=(1, 2), counts=(4,), name="w"):
    return {f"{name}.in_sum2": np.float32([sums]), f"{name}.counts": np.float32([counts])}


@pytest.mark.parametrize(
    ("tensors", "metadata", "error"),
    [
        (entry((1, np.nan)), {}, "'w', column 1 is nan, expected a finite sum of squares"),
        (entry((1, np.inf)), {}, "'w', column 1 is inf"),
        (entry((-1, 2)), {}, "'w', column 0 is -1"),
        (entry(counts=(0,)), {}, "'w' was summed over 0 rows, expected at least 1"),
        (entry(counts=(-3,)), {}, r"'w.counts' is -3, expected a count"),
        (entry(counts=(np.nan,)), {}, r"'w.counts' is nan, expected a count"),
        (entry((1, 2, 3), (4, 4)), {}, r"'w' has 3 sums for 2 counts, expected as many for each"),
        (entry((1, 2, np.nan, 4), (4, 4)), {}, "'w', expert 1, column 0 is nan, expected a finite sum of squares"),
        (entry((1, 2), (0, 0)), {}, "'w' was summed over 0 rows, expected at least 1"),
        (entry((1, 2), (4, -1)), {}, "'w.counts' is -1, expected a count"),
        ({"w.in_sum2": np.float32([[1]])}, {}, r"'w.counts' is missing"),
        ({"w.counts": np.float32([[1]])}, {}, r"'w.in_sum2' is missing"),
        (entry() | {"x.weight": np.float32([[1]])}, {}, r"'x.weight' \(F32\), expected only F32 tensors named \*.in_"),
        (entry() | {"x.counts": np.float16([[1]])}, {}, r"'x.counts' \(F16\), expected only F32 tensors"),
        ({}, {}, "has no entries"),
        (entry(), {"imatrix.chunk_size": None}, "has no 'imatrix.chunk_size', expected an importance matrix"),
        (entry(), {"imatrix.chunk_count": "many"}, "'imatrix.chunk_count' is 'many', expected a count"),
        (entry(), {"imatrix.datasets": 3}, "'imatrix.datasets' is 3, expected a list"),
    ],
)
def test_hostile_gguf_files(tmp_path, tensors, metadata, error):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors, **metadata)
    with pytest.raises(FormatError, match=error) as raised:
        imatrix.read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([(b"w", 0, [1])], "'w' was summed over 0 rows"),
        ([(b"w", -1, [1])], "'w' was summed over -1 rows"),
        ([(b"w", 1, [])], "'w' has no columns"),
        ([(b"w", 1, [1, np.nan])], "'w', column 1 is nan"),
        ([(b"w", 1, [1]), (b"w", 1, [1])], "'w' comes twice"),
        ([], "has no entries"),
    ],
)
def test_hostile_files_of_the_older_form(tmp_path, entries, error):
    path = tmp_path / "m.dat"
    path.write_bytes(dat(entries))
    with pytest.raises(FormatError, match=error):
        imatrix.read(path)


def test_a_file_cut_off_anywhere(tmp_path):
    """Each is refused, but the older form without its end, which llama.cpp takes, too."""
    path = tmp_path / "m.gguf"
    write_gguf(path, entry())
    whole = path.read_bytes()
    old = dat([(b"blk.0.ffn_up.weight", 9, [9, 18])])
    end = len(dat([(b"blk.0.ffn_up.weight", 9, [9, 18])], end=False))
    last = len(whole) - 28  # after the last number come 28 bytes of padding
    for data, sizes in ((whole, range(last)), (old, set(range(len(old))) - {end})):
        for size in sizes:
            path.write_bytes(data[:size])
            with pytest.raises(FormatError, match=r"m\.gguf"):
                imatrix.read(path)


def test_files_that_are_something_else(tiny_file, tmp_path):
    with pytest.raises(FormatError, match=r"is 'chatglm' and has no 'imatrix.datasets', expected an importance matrix"):
        imatrix.read(tiny_file())
    path = tmp_path / "m.dat"
    for data in (b"\xff" * 64, b"hello, here is some text", struct.pack("<ii", 1, 2**31 - 1)):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="not an importance matrix, or cut off"):
            imatrix.read(path)
    os.truncate(path, 1 << 34)  # no more of it is read than tells that it is none
    with pytest.raises(FormatError, match="not an importance matrix, or cut off"):
        imatrix.read(path)
    for other, kind in ((tmp_path, "a folder"), (os.devnull, "no regular file")):
        with pytest.raises(FormatError, match=f"is {kind}, expected an importance matrix"):
            imatrix.read(other)
    with pytest.raises(FileNotFoundError):
        imatrix.read(tmp_path / "none")


# ---- what is quantized with it -----------------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path):
    """(model, its file, its importance matrix's file)"""
    model = tiny.wide("chatglm", layers=1)
    path = tiny.write(tmp_path / "model.gguf", model)
    imatrix.write(tmp_path / "model.imatrix.gguf", imatrix.collect(path, TEXT, context=CONTEXT))
    return model, path, tmp_path / "model.imatrix.gguf"


def test_convert_quantizes_with_it(wide, tmp_path, capsys):
    model, path, file = wide
    assert main(["convert", str(path), str(tmp_path / "q.gguf"), "--type", "q4_0", "--imatrix", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'q.gguf'}\n" and "nothing for" not in err
    weights = imatrix.read(file).weights()
    gguf = native.Gguf(tmp_path / "q.gguf")
    different = 0
    for name, x in model.tensors.items():
        if gguf.tensors[name].type == "Q4_0":
            assert np.array_equal(gguf.data(name), quantize(x, "q4_0", weights.get(name))), name
            different += not np.array_equal(gguf.data(name), quantize(x, "q4_0"))
    gguf.close()
    assert different == len(weights) == 4


@pytest.mark.parametrize("form", ["apart", "in a row", "one for all"])
def test_each_expert_is_quantized_with_its_own(tmp_path, form):
    model = tiny.wide("glm4moe", layers=2, experts=3, expert_ffn=256)
    path = tiny.write(tmp_path / "model.gguf", model)
    name = "blk.1.ffn_down_exps.weight"
    weights = np.exp(np.random.RandomState(0).randn(3, 256)).astype(np.float32)
    given = {"apart": weights, "in a row": weights.reshape(-1), "one for all": weights[0]}[form]
    convert(path, tmp_path / "q.gguf", "q4_0", importance={name: given}, threads=2)
    gguf = native.Gguf(tmp_path / "q.gguf")
    assert gguf.tensors[name].type == "Q4_0"
    own = np.broadcast_to(given.reshape(-1, 256), (3, 256))
    for got, x, w in zip(np.split(gguf.data(name), 3), model.tensors[name], own):
        assert np.array_equal(got, quantize(x, "q4_0", w)) and not np.array_equal(got, quantize(x, "q4_0"))
    gguf.close()
    with pytest.raises(ValueError, match=f"'{name}' has 512 columns, expected 768: it is another model's"):
        convert(path, tmp_path / "q.gguf", "q4_0", importance={name: weights[:2]})


def test_tensors_that_it_has_nothing_for(wide, tmp_path, capsys):
    _, path, file = wide
    entries = dict(imatrix.read(file).entries)
    del entries["blk.0.ffn_up.weight"], entries["blk.0.attn_qkv.weight"]
    imatrix.write(file, imatrix.ImportanceMatrix(entries, [], 1, 64))
    assert main(["convert", str(path), str(tmp_path / "q.gguf"), "--type", "q4_0", "--imatrix", str(file)]) == 0
    note = "has nothing for 2 of the tensors, which are quantized without it: blk.0.attn_qkv.weight, blk.0.ffn_up"
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "columns", "type", "error"),
    [
        ("blk.0.ffn_up.weight", 255, "q4_0", "'blk.0.ffn_up.weight' has 255 columns, expected 256: it is another"),
        ("blk.7.ffn_up.weight", 256, "q4_0", r"has nothing for '.*' or any other tensor: it is another model's"),
        ("blk.0.ffn_up.weight", 256, "f16", "only types that quantize have a use for it"),
    ],
)
def test_a_matrix_that_cannot_be_used(wide, tmp_path, capsys, name, columns, type, error):
    _, path, file = wide
    matrix = imatrix.ImportanceMatrix({name: imatrix.Entry(np.ones((1, columns)), np.array([1]))}, [], 1, 64)
    with pytest.raises(ValueError, match=error):
        convert(path, tmp_path / "q.gguf", type, importance=matrix.weights())
    imatrix.write(file, matrix)
    assert main(["convert", str(path), str(tmp_path / "q.gguf"), "--type", type, "--imatrix", str(file)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("glmlite: importance: ")
    assert not (tmp_path / "q.gguf").exists()


def test_what_a_file_says_of_its_matrix_is_not_passed_on(tmp_path):
    """A file that llama.cpp quantized with one names it; written again, it was quantized without."""
    keys = {"quantize.imatrix.file": "x.gguf", "quantize.imatrix.entries_count": 4}
    path = tiny.write(tmp_path / "m.gguf", tiny.model("llama", metadata=keys))
    gguf = native.Gguf(converting.convert(path, tmp_path / "q.gguf", "f16"))
    assert not [key for key in gguf.metadata if key.startswith("quantize.")]
    gguf.close()


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_file):
    """The current folder, with a text and a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    os.link(tiny_file(), tmp_path / "m.gguf")
    return tmp_path


def test_command(folder, capsys, monkeypatch):
    assert main(["imatrix", "m.gguf", "text.txt", "-c", "64"]) == 0
    out, err = capsys.readouterr()
    assert out == "m.imatrix.gguf\n" and err == "8 tensors, 3 chunks of 64 tokens\n"
    got = imatrix.read("m.imatrix.gguf")
    want = imatrix.collect("m.gguf", TEXT, context=CONTEXT)
    assert (got.datasets, got.chunks) == (["text.txt"], 3)
    assert all(np.array_equal(got.entries[n].sums, np.float32(e.sums)) for n, e in want.entries.items())
    assert main(["imatrix", "m.gguf", "text.txt", "-c", "64"]) == 1
    assert "m.imatrix.gguf: it is there already; --force writes over it" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), encoding="utf-8"))
    options = ["-c", "32", "--chunks", "1", "--process-output", "-f", "-o", "m.imatrix.gguf"]
    assert main(["imatrix", "m.gguf", "-", *options]) == 0
    got = imatrix.read("m.imatrix.gguf")
    assert "output.weight" in got.entries and got.chunk_size == 32 and got.datasets == []
    assert main(["imatrix", "m.gguf", "text.txt", "-o", "x.gguf", "-c", "256"]) == 1
    assert "a chunk 256: take a longer text, or a smaller context" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["m.gguf", "m.imatrix.gguf", "text.txt"]


def test_a_file_that_cannot_be_written_is_told_before_the_text_is_read(folder, capsys, monkeypatch):
    """And what is read is not written over, by --force either."""
    monkeypatch.setattr(imatrix.evaluate.Reader, "run", None)
    before = Path("m.gguf").read_bytes()
    for out, message in (
        ("./m.gguf", "m.gguf: is the model itself, expected another name"),
        ("text.txt", "text.txt: is the text itself, expected another name"),
        (".", ".: it is a folder, expected a file"),
        ("none/x.gguf", "x.gguf: there is no folder none"),
    ):
        assert main(["imatrix", "m.gguf", "text.txt", "-c", "64", "-f", "-o", out]) == 1
        assert message in capsys.readouterr().err.replace(os.sep, "/")
    assert Path("m.gguf").read_bytes() == before and Path("text.txt").read_text(encoding="utf-8") == TEXT


def test_command_stopped_leaves_nothing(folder, capsys, monkeypatch):
    real = imatrix.evaluate.Reader.run
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(imatrix.evaluate.Reader, "run", interrupted)
    assert main(["imatrix", "m.gguf", "text.txt", "-c", "64"]) == 130
    assert capsys.readouterr() == ("", "")
    assert sorted(os.listdir()) == ["m.gguf", "text.txt"]
