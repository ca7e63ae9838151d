"""The GGUF reader against files of the `gguf` package, its reader, and files made by hand, whole and broken."""

import errno
import gc
import os
import re
import struct
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from glmlite._native import Gguf
from glmlite.errors import FormatError

UINT8, BOOL, UINT16, INT32, UINT32, STRING, ARRAY, UINT64 = 0, 7, 2, 5, 4, 8, 9, 10
F32, Q4_0 = 0, 2
OURS = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
OURS |= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}


def text(s: bytes | str) -> bytes:
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: bytes | str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """dims in GGUF's order, the reverse of numpy's."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_bytes(values: list[bytes] = (), tensors: list[bytes] = (), data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


SAMPLE = file_bytes(
    [
        entry("general.alignment", UINT32, struct.pack("<I", 32)),
        entry("words", ARRAY, array(STRING, 3, text("你好") + text(b"\xff\xfe") + text(""))),
        entry("nested", ARRAY, array(ARRAY, 2, array(UINT8, 2, b"\1\2") + array(STRING, 1, text("x")))),
        entry("raw", STRING, text(b"\xc3(")),
        entry("flags", ARRAY, array(BOOL, 3, b"\1\0\1")),
    ],
    [tensor("a", (2, 3), F32, 0), tensor("b", (32, 2), Q4_0, 32), tensor("c", (7,), 4242, 96)],
    np.arange(6, dtype="<f4").tobytes() + bytes(8) + bytes(range(36)) + bytes(28) + b"odd type",
)


@pytest.fixture
def save(tmp_path):
    def save(data: bytes, name: str | bytes = "m.gguf") -> Path:
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(data)
        return path

    return save


def attempt(path: Path) -> bool:
    """Loads and touches everything; False if the file was refused. Anything else than a refusal passes through."""
    try:
        g = Gguf(path)
    except (FormatError, OSError) as e:
        assert str(path) in str(e)
        return False
    assert isinstance(g.metadata, dict)
    for name, info in g.tensors.items():
        assert g.data(name).nbytes == info.nbytes
        int(g.data(name).astype(np.int64).sum())
    g.close()
    return True


# ---- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_file_by_hand(save, version):
    data = SAMPLE[:4] + struct.pack("<I", version) + SAMPLE[8:]
    g = Gguf(save(data))
    assert (g.version, g.nbytes) == (version, len(data))
    assert list(g.metadata) == ["general.alignment", "words", "nested", "raw", "flags"]
    assert g.metadata["words"] == ["你好", b"\xff\xfe", ""]
    assert g.metadata["nested"][0].tolist() == [1, 2] and g.metadata["nested"][1] == ["x"]
    assert g.metadata["raw"] == b"\xc3("
    assert g.metadata["flags"].dtype == bool and g.metadata["flags"].tolist() == [True, False, True]
    assert g.metadata is g.metadata and g.tensors is g.tensors

    a, b, c = g.tensors.values()
    assert (a.name, a.type, a.shape, a.nbytes, a.supported) == ("a", "F32", (3, 2), 24, True)
    assert (b.name, b.type, b.shape, b.nbytes, b.supported) == ("b", "Q4_0", (2, 32), 36, True)
    assert (c.name, c.type, c.shape, c.nbytes, c.supported) == ("c", "type 4242", (7,), 8, False)
    assert [a.path, b.offset - a.offset] == [g.paths[0], 32]
    assert data[a.offset : a.offset + 24] == g.data("a").tobytes()
    assert g.data("a").shape == (3, 8) and g.data("b").shape == (2, 18) and g.data("c").shape == (8,)
    assert g.data("b").ravel().tolist() == list(range(36))
    assert g.dequantize("a").tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("kind", gguf.GGML_QUANT_SIZES, ids=lambda kind: kind.name)
def test_names_and_sizes_of_types(save, kind):
    values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    g = Gguf(save(file_bytes([], [tensor("t", (2 * values, 3), kind, 0)], bytes(6 * block_bytes))))
    info = g.tensors["t"]
    assert (info.type, info.shape, info.nbytes) == (kind.name, (3, 2 * values), 6 * block_bytes)
    assert g.data("t").shape == (3, 2 * block_bytes)
    assert info.supported == (kind.name in OURS)


def same_as_reader(path: Path) -> None:
    ours, theirs = Gguf(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        want, got = field.contents(), ours.metadata[key]
        assert (got.tolist() if isinstance(got, np.ndarray) else got) == want, key
        assert type(got) is type(want) or isinstance(got, np.ndarray), key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for want in theirs.tensors:
        info = ours.tensors[want.name]
        assert (info.type, info.shape) == (want.tensor_type.name, tuple(want.shape[::-1].tolist()))
        assert (info.nbytes, info.offset) == (want.n_bytes, want.data_offset)
        assert ours.data(want.name).tobytes() == want.data.tobytes()


def write(path: Path, tensors: int = 3, **split) -> None:
    w = gguf.GGUFWriter(path, "chatglm", **split)
    for bits in (8, 16, 32, 64):
        getattr(w, f"add_uint{bits}")(f"u{bits}", 2**bits - 1)
        getattr(w, f"add_int{bits}")(f"i{bits}", -(2 ** (bits - 1)))
    w.add_float32("f32", 0.1)
    w.add_float64("f64", 0.1)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "你好 🙂\0")
    w.add_array("ints", [-1, 2, 3])
    w.add_array("floats", [0.5, 1.5])
    w.add_array("bools", [True, False])
    w.add_array("tokens", ["a", "的", ""])
    rng = np.random.default_rng(0)
    for i in range(tensors):
        w.add_tensor(f"blk.{i}.weight", rng.standard_normal((2, 3 + i, 5)).astype((np.float32, np.float16)[i % 2]))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def test_same_as_gguf_package(tmp_path):
    write(tmp_path / "m.gguf")
    same_as_reader(tmp_path / "m.gguf")
    g = Gguf(str(tmp_path / "m.gguf"))
    assert g.metadata["ints"].dtype == np.int32 and g.metadata["floats"].dtype == np.float32
    assert g.metadata["u64"] == 2**64 - 1 and g.metadata["i64"] == -(2**63)
    want = g.data("blk.1.weight").view(np.float16).reshape(2, 4, 5).astype(np.float32)
    assert np.array_equal(g.dequantize("blk.1.weight"), want)


def test_same_as_gguf_package_on_a_real_file():
    path = os.environ.get("GLMLITE_TEST_GGUF")
    if not path:
        pytest.skip("GLMLITE_TEST_GGUF does not name a GGUF file")
    same_as_reader(Path(path))


def test_large_vocabulary_is_quick(save):
    n = 150_000
    words = b"".join(text(f"token {i} 词") for i in range(n))
    path = save(
        file_bytes(
            [
                entry("tokens", ARRAY, array(STRING, n, words)),
                entry("scores", ARRAY, array(UINT32, n, np.arange(n, dtype="<u4").tobytes())),
            ]
        )
    )
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        metadata = Gguf(path).metadata
        seconds.append(time.process_time() - begin)
    assert metadata["tokens"][-1] == f"token {n - 1} 词" and metadata["scores"][-1] == n - 1
    # CPU seconds, so that a busy machine does not matter.
    assert min(seconds) < 0.2


# ---- lifetime and threads -------------------------------------------------------------------------------------------


def test_arrays_outlive_the_file(save):
    g = Gguf(save(SAMPLE))
    data = g.data("b")
    assert data.flags.owndata
    g.close()
    del g
    gc.collect()
    assert data.ravel().tolist() == list(range(36))


def test_use_after_close(save):
    path = save(SAMPLE)
    g = Gguf(path)
    assert g.metadata
    g.close()
    g.close()
    for use in (
        lambda: g.metadata,
        lambda: g.tensors,
        lambda: g.paths,
        lambda: g.version,
        lambda: g.nbytes,
        lambda: g.data("a"),
        lambda: g.dequantize("a"),
    ):
        with pytest.raises(ValueError, match="the file is closed"):
            use()


def test_unknown_tensor_and_unsupported_type(save):
    g = Gguf(save(SAMPLE))
    with pytest.raises(ValueError, match="there is no tensor 'x'"):
        g.data("x")
    with pytest.raises(FormatError, match="tensor 'c' is of type 4242, which there are no kernels for"):
        g.dequantize("c")


def test_parts_of_tensors(save):
    x = np.arange(4 * 3 * 32, dtype="<f4").reshape(4, 3, 32)
    q = bytes(range(2, 2 + 36)) * 2
    g = Gguf(
        save(
            file_bytes(
                [],
                [tensor("x", (32, 3, 4), F32, 0), tensor("q", (64, 2), Q4_0, 1536), tensor("v", (64,), Q4_0, 1632)],
                x.tobytes() + q + bytes(24) + q[:36],
            )
        )
    )
    assert np.array_equal(g.dequantize("x", 1, 3), x[1:3]) and np.array_equal(g.dequantize("x", 3), x[3:])
    assert g.dequantize("x", 2, 2).shape == (0, 3, 32)
    assert np.array_equal(g.data("x", 2, 5), x.reshape(12, 32)[2:5].view(np.uint8))
    assert np.array_equal(g.dequantize("q", 1, 2), g.dequantize("q")[1:])
    assert np.array_equal(g.dequantize("v", 32, 64), g.dequantize("v")[32:])
    assert g.data("v", 2, 5).tolist() == list(q[2:5])
    for begin, end in ((-1, 2), (3, 2), (0, 5), (5, None)):
        with pytest.raises(ValueError, match=r"x: .* expected a part of 0 to 4"):
            g.dequantize("x", begin, end)
    with pytest.raises(ValueError, match="v: 16 to 64, expected multiples of 32, the values of a block"):
        g.dequantize("v", 16)


def test_a_large_tensor_is_read_in_pieces(save):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 1000)).astype("<f4")
    g = Gguf(save(file_bytes([], [tensor("x", (1000, 1500), F32, 0)], x.tobytes())))
    assert np.array_equal(g.dequantize("x"), x) and np.array_equal(g.dequantize("x", 7, 1499), x[7:1499])


def test_threads(save):
    path = save(SAMPLE)
    shared, failures = Gguf(path), []

    def read():
        try:
            for _ in range(200):
                assert shared.dequantize("a")[2, 1] == 5
                assert shared.tensors["b"].nbytes == 36 and Gguf(path).metadata["raw"] == b"\xc3("
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


# ---- paths and files that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["模型 ü.gguf", "🙂.gguf", "a b%20'\".gguf", "x" * 100])
def test_any_path(save, name):
    if os.name == "nt" and '"' in name:
        pytest.skip("Windows has no quotes in file names")
    path = save(SAMPLE, name)
    assert Gguf(path).paths == [str(path)]
    assert Gguf(str(path)).tensors["a"].path == str(path)
    assert Gguf(os.fsencode(path)).paths == [str(path)]


def test_path_that_is_not_utf8(save):
    name = b"\xff\xfe.gguf"
    try:
        path = save(SAMPLE, name)
    except (OSError, UnicodeError):
        pytest.skip("this file system wants UTF-8 names")
    assert os.fsencode(Gguf(path).paths[0]) == os.fsencode(path)
    with pytest.raises(FormatError, match=r"\\xff\\xfe.gguf: the header is cut short"):
        Gguf(save(b"GGUF", name))
    with pytest.raises(FileNotFoundError) as e:
        Gguf(b"\xff\xff.gguf")
    assert os.fsencode(e.value.filename) == b"\xff\xff.gguf"


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        Gguf(tmp_path / "没有.gguf")
    assert e.value.filename == str(tmp_path / "没有.gguf") and "没有.gguf" in str(e.value)


def test_directory(tmp_path):
    with pytest.raises(IsADirectoryError):
        Gguf(tmp_path)


def test_empty_file(save):
    with pytest.raises(FormatError, match="the file is empty, expected a GGUF file"):
        Gguf(save(b""))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Not a regular file"):
        Gguf(tmp_path / "fifo")


def test_unreadable_file(save):
    path = save(SAMPLE)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError):
        Gguf(path)


@pytest.mark.parametrize("path", [3, None, 1.5, object()])
def test_not_a_path(path):
    with pytest.raises(TypeError):
        Gguf(path)


def test_null_in_path():
    with pytest.raises(ValueError, match="null"):
        Gguf("a\0b")


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody shorten a file that is open here")
def test_file_cut_short_while_open(save):
    path = save(SAMPLE)
    g = Gguf(path)
    os.truncate(path, 100)
    for use in (g.data, g.dequantize):
        with pytest.raises(OSError, match=f"ends at byte {g.tensors['a'].offset} and had {len(SAMPLE)} bytes") as e:
            use("a")
        assert e.value.errno == errno.EIO and e.value.filename == str(path)


def test_file_replaced_while_open(save, tmp_path):
    path = save(SAMPLE)
    g = Gguf(path)
    os.replace(save(b"other", "other"), path)
    assert g.dequantize("a")[2, 1] == 5


# ---- split files ----------------------------------------------------------------------------------------------------


def test_split_by_gguf_package(tmp_path):
    write(tmp_path / "m.gguf", tensors=5, split_max_tensors=2)
    write(tmp_path / "whole.gguf", tensors=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = Gguf(tmp_path / "whole.gguf")
    for part in parts:
        g = Gguf(part)
        assert g.paths == [str(p) for p in parts] and g.nbytes == sum(p.stat().st_size for p in parts)
        assert g.metadata["text"] == whole.metadata["text"] and g.metadata["split.count"] == 3
        assert list(g.tensors) == list(whole.tensors)
        assert [g.tensors[f"blk.{i}.weight"].path for i in (0, 2, 4)] == g.paths
        for name in whole.tensors:
            assert np.array_equal(g.data(name), whole.data(name))
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        with pytest.raises(FileNotFoundError) as e:
            Gguf(part)
        assert e.value.filename == str(parts[1])


def split_part(no: int, count: int, tensors: list[str], total: int) -> bytes:
    values = [
        entry("split.no", UINT16, struct.pack("<H", no)),
        entry("split.count", UINT16, struct.pack("<H", count)),
        entry("split.tensors.count", INT32, struct.pack("<i", total)),
    ]
    infos = [tensor(name, (8,), F32, 32 * i) for i, name in enumerate(tensors)]
    return file_bytes(values, infos, bytes(32 * len(tensors)))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            split_part(0, 2, ["a"], 3),
            split_part(1, 2, ["b"], 3),
            "have 2 tensors, 'split.tensors.count' is 3",
        ),
        (split_part(0, 2, ["a"], 2), split_part(1, 2, ["a"], 2), "tensor 'a' is in another part"),
        (split_part(0, 2, ["a"], 2), split_part(0, 2, ["b"], 2), "'split.no' is 0 of 'split.count' 2, expected 1 of 2"),
        (split_part(0, 2, ["a"], 2), split_part(1, 3, ["b"], 2), "'split.no' is 1 of 'split.count' 3, expected 1 of 2"),
        (split_part(0, 2, ["a"], 2), SAMPLE, "'split.no' is 0 of 'split.count' 1, expected 1 of 2"),
        (split_part(0, 2, ["a"], 2), b"GGUF", "m-00002-of-00002.gguf: the header is cut short"),
        (split_part(1, 2, ["a"], 2), split_part(1, 2, ["b"], 2), "ends in '-00002-of-00002.gguf'"),
        (split_part(2, 2, ["a"], 2), split_part(1, 2, ["b"], 2), "'split.no' is 2 of 'split.count' 2"),
    ],
)
def test_broken_split(save, first, second, message):
    save(second, "m-00002-of-00002.gguf")
    with pytest.raises(FormatError) as e:
        Gguf(save(first, "m-00001-of-00002.gguf"))
    assert message in str(e.value)


def test_empty_part_of_a_split(save):
    save(split_part(1, 2, ["a"], 1), "m-00002-of-00002.gguf")
    assert list(Gguf(save(split_part(0, 2, [], 1), "m-00001-of-00002.gguf")).tensors) == ["a"]


# ---- broken files ---------------------------------------------------------------------------------------------------


def with_tensor(*args, data: bytes = bytes(64)) -> bytes:
    return file_bytes([], [tensor(*args)], data)


def with_value(*args) -> bytes:
    return file_bytes([entry(*args)])


BROKEN = {
    "no GGUF": (b"PK\3\4", "begins with 'PK\\x03\\x04', expected 'GGUF'"),
    "version 1": (file_bytes(version=1), "of GGUF version 1, expected 2 or 3"),
    "version 0": (file_bytes(version=0), "of GGUF version 0, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian, expected a little-endian GGUF file"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "counts 1152921504606846976 tensors"),
    "value count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "counts 18446744073709551615 metadata values"),
    "key length": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + b"12345678",
        "metadata value 0 counts 9223372036854775808 bytes of text",
    ),
    "key not UTF-8": (with_value(b"\xffkey", UINT8, b"\0"), "has the key '\\xffkey', expected UTF-8"),
    "key twice": (file_bytes([entry("k", UINT8, b"\0")] * 2), "metadata 'k' is there twice"),
    "value type": (with_value("k", 13, bytes(8)), "metadata 'k' has the value type 13, expected 0 to 12"),
    "string length": (
        with_value("k", STRING, struct.pack("<Q", 2**60)),
        "'k' counts 1152921504606846976 bytes",
    ),
    "array length": (with_value("k", ARRAY, array(UINT64, 2**61, bytes(8))), "counts 2305843009213693952 numbers"),
    "strings": (with_value("k", ARRAY, array(STRING, 2**60, b"")), "counts 1152921504606846976 strings"),
    "arrays": (with_value("k", ARRAY, array(ARRAY, 2**60, b"")), "counts 1152921504606846976 arrays"),
    "nesting": (with_value("k", ARRAY, array(ARRAY, 1, b"") * 5000), "nests arrays more than 4 deep"),
    "bool": (with_value("k", BOOL, b"\2"), "holds a bool of byte 2, expected 0 or 1"),
    "alignment 0": (
        with_value("general.alignment", UINT32, bytes(4)),
        "is 0, expected a power of two",
    ),
    "alignment 33": (with_value("general.alignment", UINT32, b"\x21\0\0\0"), "is 33, expected a power of two"),
    "alignment type": (with_value("general.alignment", STRING, text("32")), "is of another type than uint32"),
    "no dimensions": (with_tensor("t", (), F32, 0), "tensor 't' has 0 dimensions, expected 1 to 4"),
    "many dimensions": (with_tensor("t", (1,) * 5, F32, 0), "has 5 dimensions"),
    "empty": (with_tensor("t", (4, 0), F32, 0), "has a dimension of 0, expected 1 to"),
    "product overflows": (
        with_tensor("t", (2**32, 2**32), F32, 0),
        "(4294967296, 4294967296) of F32, more than",
    ),
    "bytes overflow": (with_tensor("t", (2**62,), F32, 0), "(4611686018427387904) of F32, more than the whole file"),
    "half a block": (with_tensor("t", (48, 2), Q4_0, 0), "(2, 48) of Q4_0, expected rows of a multiple of 32 values"),
    "unaligned": (with_tensor("t", (1,), F32, 8), "has the offset 8, expected a multiple of 32"),
    "outside": (with_tensor("t", (1,), F32, 64), "has 4 bytes at offset 64"),
    "far outside": (with_tensor("t", (1,), F32, 2**64 - 32), "has 4 bytes at offset 18446744073709551584"),
    "longer than the file": (with_tensor("t", (17,), F32, 0), "tensor 't' has 68 bytes at offset 0"),
    "overlap": (
        file_bytes([], [tensor("a", (9,), F32, 0), tensor("b", (1,), F32, 32)], bytes(64)),
        "tensor 'a' overlaps tensor 'b' at byte",
    ),
    "tensor twice": (
        file_bytes([], [tensor("a", (1,), F32, 0), tensor("a", (1,), F32, 32)], bytes(64)),
        "tensor 'a' is there twice",
    ),
    "name not UTF-8": (with_tensor(b"\xe4\xbd", (1,), F32, 0), "has the name '\\xe4\\xbd', expected UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file(save, kind):
    data, message = BROKEN[kind]
    path = save(data)
    with pytest.raises(FormatError) as e:
        Gguf(path)
    assert str(e.value).startswith(f"{path}: ") and message in str(e.value)


FOREIGN = {
    "an HTML page": (b"<!DOCTYPE html><html lang='en'>", "a page of HTML, not the file: the download went wrong"),
    "another": (b"\xef\xbb\xbf\n <html>", "a page of HTML, not the file"),
    "XML": (b"<?xml version='1.0'?><Error>", "an XML text, not the file"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a Git LFS pointer, not the file",
    ),
    "zip": (b"PK\3\4" + bytes(26) + b"model.gguf", "a zip archive"),
    "PyTorch": (
        b"PK\3\4" + bytes(26) + b"archive/data.pkl",
        "a PyTorch checkpoint; `glmlite convert` makes a GGUF file",
    ),
    "pickle": (b"\x80\x02ccollections", "a PyTorch checkpoint; `glmlite convert` makes"),
    "safetensors": (struct.pack("<Q", 16) + b'{"a":{}}        ', "a safetensors file; `glmlite convert` makes a GGUF"),
    "gzip": (b"\x1f\x8b\x08\0", "compressed by gzip; unpack it"),
    "xz": (b"\xfd7zXZ\0", "compressed by xz; unpack it"),
    "tar": (b"model.gguf".ljust(257, b"\0") + b"ustar\0", "a tar archive; unpack it"),
    "ggml": (b"tjgg\1\0\0\0", "a ggml file from before GGUF"),
    "an unfinished download": (bytes(4096), "zeros where a file begins: the download has not ended"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_of_another_kind(save, kind):
    data, message = FOREIGN[kind]
    path = save(data)
    with pytest.raises(FormatError, match="expected 'GGUF': it is " + re.escape(message)) as e:
        Gguf(path)
    assert str(e.value).startswith(f"{path}: ")


def test_part_of_another_kind(save):
    save(b"<html>", "m-00002-of-00002.gguf")
    with pytest.raises(FormatError, match=r"m-00002-of-00002.gguf: the header .* a page of HTML"):
        Gguf(save(split_part(0, 2, ["a"], 2), "m-00001-of-00002.gguf"))


def test_cut_anywhere(save):
    # Only the last tensor, whose type and so size is unknown, can do with less.
    loaded = [size for size in range(len(SAMPLE)) if attempt(save(SAMPLE[:size]))]
    assert loaded == list(range(len(SAMPLE) - 7, len(SAMPLE)))


def test_any_byte_changed(save):
    loaded = set()
    for at in range(len(SAMPLE)):
        for flip in (0xFF, 0x01):
            data = bytearray(SAMPLE)
            data[at] ^= flip
            if attempt(save(bytes(data))):
                loaded.add(at)
    assert set(range(len(SAMPLE) - 104, len(SAMPLE))) <= loaded
    # The magic and the version; byte 4 turns 3 into 2.
    assert {0, 1, 2, 3, 5, 6, 7}.isdisjoint(loaded)


def test_every_field_of_the_header_extreme(save):
    head = len(SAMPLE) - 104
    for size, pattern in ((4, "<I"), (8, "<Q")):
        for number in (2 ** (8 * size - 4), 2 ** (8 * size) - 1):
            for at in range(4, head - size):
                attempt(save(SAMPLE[:at] + struct.pack(pattern, number) + SAMPLE[at + size :]))


@pytest.mark.skipif(os.name == "nt", reason="Windows does not make files sparse unasked")
def test_sparse_file_of_a_terabyte(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(with_value("k", ARRAY, array(UINT8, 2**39, b"")))
    try:
        os.truncate(path, 2**40)
    except OSError:
        pytest.skip("no sparse files here")
    with pytest.raises(FormatError, match="counts 549755813888 numbers, there is room for at most"):
        Gguf(path)
