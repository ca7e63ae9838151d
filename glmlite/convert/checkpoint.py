"""One lazy view of the tensors of a checkpoint: safetensors or torch's zip files, in one piece or in shards.

    checkpoint = Checkpoint(folder)
    checkpoint.shape("lm_head.weight")                            # (65024, 4096)
    checkpoint.read("lm_head.weight", range(0, 1024))             # f32, (1024, 4096)

Opening reads the headers only, and `read` no more than the rows that are asked for, so a model of any size takes
the memory of a few rows. Nothing of a file is executed (see `glmlite.convert.torchfile`), and every offset is
checked against the file's size before it is used.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from .._native import dequantize
from ..errors import FormatError

__all__ = ["DTYPES", "Checkpoint", "Files", "Rows", "Stored", "load_json", "load_text", "short"]

# As safetensors names them -> how numpy reads them, little-endian. numpy has no bfloat16: its bits are read.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
_MAX_JSON = 100_000_000  # bytes; safetensors' own limit for a header
_MAX_DIMS = 8
_MAX_NAME = 512  # characters of a tensor's name; the longest in use have some 100

Rows = Sequence[int] | np.ndarray  # indices along the first dimension


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are: `offset` from the beginning of the file; strides in elements, None if C order."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None


class Files:
    """Files that several threads read pieces of. Read, not mapped: mapped pages count as memory of the process."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}
        self._lock = Lock()

    def read(self, path: Path, offset: int, out: np.ndarray) -> None:
        """Fills `out` (n,) with the bytes at `offset`. Raises FormatError where the file ends before."""
        with self._lock:
            if path not in self._files:
                self._files[path] = path.open("rb")
            file = self._files[path]
            file.seek(offset)
            count = file.readinto(out.view(np.uint8))
        if count != out.nbytes:
            raise FormatError(f"{path}: it became shorter while it was read")

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class Checkpoint:
    """The tensors of a folder (or of one file). FormatError names the file, and the tensor if it is at fault.

    A folder's index is followed where there is one; else its safetensors, else its `.bin` files are all read.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._files = Files()
        self._tensors = _open(self.path)

    @property
    def names(self) -> list[str]:
        return sorted(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """As safetensors names it: "F16"."""
        return self._tensors[name].dtype

    def where(self, name: str) -> str:
        """For messages: the file and the tensor."""
        return f"{self._tensors[name].path}: {name!r}"

    def read(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """The rows as f32 (all if None), in the order asked for. Raises FormatError if the tensor's are no floats."""
        x = self.raw(name, rows)
        dtype = self.dtype(name)
        if dtype in ("BF16", "F16"):
            flat = np.ascontiguousarray(x).reshape(-1)
            return dequantize(dtype, flat.view(np.uint8)[None]).reshape(x.shape)
        if dtype not in ("F64", "F32"):
            raise FormatError(f"{self.where(name)} is {dtype}, expected F32, F16 or BF16")
        return x.astype(np.float32, copy=False)

    def raw(self, name: str, rows: Rows | None = None) -> np.ndarray:
        """The rows as stored (BF16: its bits)."""
        t = self._tensors[name]
        if t.strides is not None:
            return self._strided(t, np.arange(t.shape[0]) if rows is None else np.asarray(rows))
        if rows is None or not t.shape:
            return self._contiguous(t, 0, t.shape[0] if t.shape else 1).reshape(t.shape)
        rows = np.asarray(rows)
        out = np.empty((len(rows), *t.shape[1:]), DTYPES[t.dtype])
        # Runs of neighbours are read at once; where they are short, the rows lie close together (the pairs of a
        # rotated head), so all from the first to the last are read.
        begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
        if len(begins) * 8 > len(rows) and len(rows):
            first = int(rows.min())
            out[:] = self._contiguous(t, first, int(rows.max()) + 1 - first)[rows - first]
            return out
        for begin, end in zip(begins, [*begins[1:], len(rows)]):
            out[begin:end] = self._contiguous(t, int(rows[begin]), int(end - begin))
        return out

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _contiguous(self, t: Stored, first: int, count: int) -> np.ndarray:
        row = math.prod(t.shape[1:])
        data = self._bytes(t, first * row, count * row)
        return data.reshape(count, *t.shape[1:])

    def _strided(self, t: Stored, rows: np.ndarray) -> np.ndarray:
        """Reads all from the first to the last element of the rows: of a transposed matrix, nearly all of it."""
        if not len(rows):
            return np.empty((0, *t.shape[1:]), DTYPES[t.dtype])
        first = int(rows.min())
        shape = (int(rows.max()) + 1 - first, *t.shape[1:])
        span = 1 + sum((n - 1) * s for n, s in zip(shape, t.strides))
        size = DTYPES[t.dtype].itemsize
        data = self._bytes(t, first * t.strides[0], span)
        return np.ndarray(shape, data.dtype, data, strides=[s * size for s in t.strides])[rows - first]

    def _bytes(self, t: Stored, first: int, count: int) -> np.ndarray:
        """`count` elements from the element `first` on."""
        out = np.empty(count, DTYPES[t.dtype])
        self._files.read(t.path, t.offset + first * out.itemsize, out)
        return out


# ---- files -------------------------------------------------------------------------------------------------------


def _open(path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.is_file():
        return _read_file(path)
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index).exists():
            return _sharded(path, path / index)
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin"):
        files = sorted(file for file in path.glob(pattern) if file.is_file())
        if files:
            return _unindexed(files)
    raise FormatError(f"{path}: neither *.safetensors nor pytorch_model*.bin in this folder")


def _sharded(folder: Path, index: Path) -> dict[str, Stored]:
    """The tensors of an index, each from the shard that it names."""
    wanted = load_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise FormatError(f"{index}: no 'weight_map', expected an object of tensor names and files")
    shards: dict[str, list[str]] = {}
    for name, file in wanted.items():
        check_name(index, name)
        if not isinstance(file, str) or not 0 < len(file.encode()) < 256 or re.search(r"[/\\:\0-\x1f]|^\.+$", file):
            raise FormatError(f"{index}: {name!r} is in {short(file)}, expected the name of a file in the same folder")
        shards.setdefault(file, []).append(name)
    tensors: dict[str, Stored] = {}
    for file, names in sorted(shards.items()):
        if not (folder / file).is_file():
            raise FormatError(
                f"{folder / file}: the shard is missing; it holds {len(names)} tensors, {names[0]!r} first"
            )
        inside = _read_file(folder / file)
        _merge(tensors, inside)
        for name in names:
            if name not in inside:
                raise FormatError(f"{folder / file}: no tensor {name!r}, which {index.name} says it holds")
    return tensors


def _unindexed(files: list[Path]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for file in files:
        if (part := re.search(r"-(\d+)-of-(\d+)\.\w+$", file.name)) and int(part[2]) != len(files):
            raise FormatError(f"{file}: one of {int(part[2])} shards, but there are {len(files)} in the folder")
        _merge(tensors, _read_file(file))
    return tensors


def _merge(tensors: dict[str, Stored], more: dict[str, Stored]) -> None:
    for name, stored in more.items():
        if name in tensors:
            raise FormatError(f"{stored.path}: {name!r} is in {tensors[name].path.name} already, expected it once")
        tensors[name] = stored


def _read_file(path: Path) -> dict[str, Stored]:
    from . import torchfile

    return _read_safetensors(path) if path.suffix == ".safetensors" else torchfile.read(path)


def _read_safetensors(path: Path) -> dict[str, Stored]:
    """Eight bytes: the length of a JSON header; the header; the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_JSON):
            raise FormatError(f"{path}: a header of {length} bytes in a file of {size}: not safetensors, or cut off")
        header = parse_json(file.read(length), path)
    data = 8 + length
    tensors: dict[str, Stored] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            check_name(path, name)
            tensors[name] = _entry(path, name, entry, data, size)
    end, before = data, None
    for name, t in sorted(tensors.items(), key=lambda item: item[1].offset):
        if t.offset < end and math.prod(t.shape):
            raise FormatError(f"{path}: {name!r} overlaps {before!r}")
        end, before = max(end, t.offset + math.prod(t.shape) * DTYPES[t.dtype].itemsize), name
    return tensors


def _entry(path: Path, name: str, entry: Any, data: int, size: int) -> Stored:
    where = f"{path}: {name!r}"
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: {short(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: dtype {short(dtype)}, expected one of {', '.join(DTYPES)}")
    check_shape(where, shape)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(n) for n in offsets)):
        raise FormatError(f"{where}: data_offsets {short(offsets)}, expected a begin and an end")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise FormatError(f"{where}: {end - begin} bytes, expected {nbytes} for {dtype} of shape {tuple(shape)}")
    if data + end > size:
        raise FormatError(f"{where}: ends at byte {data + end}, the file is cut off at {size}")
    return Stored(path, dtype, tuple(shape), data + begin)


def check_name(path: Path, name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise FormatError(f"{path}: a tensor's name is {short(name)}, expected 1 to {_MAX_NAME} characters")


def check_shape(where: str, shape: Any) -> None:
    if not isinstance(shape, (list, tuple)) or len(shape) > _MAX_DIMS or not all(_is_count(n) for n in shape):
        raise FormatError(f"{where}: shape {short(shape)}, expected at most {_MAX_DIMS} sizes")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def short(value: Any) -> str:
    """For messages: what a value looks like, in at most 60 characters."""
    text = repr(value) if isinstance(value, (str, int, float, list, tuple, type(None))) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


# ---- JSON --------------------------------------------------------------------------------------------------------


def load_text(path: Path) -> str:
    """The text in a file. Raises FormatError for what is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error}") from None


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FormatError for what is no object, no text, too large, too deep, or has a key
    twice."""
    path = Path(path)
    if path.stat().st_size > _MAX_JSON:
        raise FormatError(f"{path}: {path.stat().st_size} bytes, expected at most {_MAX_JSON}")
    return parse_json(path.read_bytes(), path)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise FormatError(f"{path}: {twice!r} is there twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # a lone one raises; a pair has become a character
    except RecursionError:
        raise FormatError(f"{path}: JSON nested too deep") from None
    except FormatError:
        raise
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise FormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value
