"""Writes a GGUF file of any size in the memory of a few rows. The same input gives the same bytes."""

from __future__ import annotations

import errno
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..files import replacing_all
from .formats import TYPES, tensor_bytes

__all__ = ["Entry", "File", "head", "put", "write", "write_all"]

_ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64, _F64 = 4, 6, 7, 8, 9, 10, 11, 12
_ARRAYS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}


class Entry(NamedTuple):
    """A tensor: its name, shape (numpy order), type ("Q4_K"), and its bytes in any number of pieces.

    stored: GGUF's number of the type and the bytes in all, of tensors that are copied: their type may be any.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    pieces: Callable[[], Iterable[np.ndarray]]
    stored: tuple[int, int] | None = None

    @property
    def type_id(self) -> int:
        """GGUF's number of the type."""
        return self.stored[0] if self.stored else TYPES[self.type].id

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return self.stored[1] if self.stored else tensor_bytes(self.shape, self.type)


class File(NamedTuple):
    """A file to be written."""

    path: Path
    metadata: Mapping[str, Any]
    entries: Sequence[Entry]


def write(
    path: Path,
    metadata: Mapping[str, Any],
    entries: Sequence[Entry],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """The bytes written. The file stands under its name only when it is whole; whatever goes wrong leaves none.

    progress: called with bytes written and bytes in all; what it raises ends the work.
    Raises OSError (a full disk: before the work begins, as far as the system tells).
    """
    return write_all([File(Path(path), metadata, entries)], progress)


def write_all(files: Sequence[File], progress: Callable[[int, int], None] | None = None) -> int:
    """As `write`, of files in one folder: they stand there when all are whole, or none does."""
    starts = [head(file.metadata, file.entries) for file in files]
    sizes = [_padded(entry.nbytes) for file in files for entry in file.entries]
    total = sum(map(len, starts)) + sum(sizes)
    free = shutil.disk_usage(files[0].path.absolute().parent).free
    if free < total:
        raise OSError(errno.ENOSPC, f"the disk has {free} bytes free, {_need(files)} {total}", str(files[0].path))
    done = 0
    with replacing_all([file.path for file in files], buffering=0) as targets:
        for (path, _, entries), start, target in zip(files, starts, targets):
            put(target, start, path)
            done += len(start)
            for entry in entries:
                size, written = entry.nbytes, 0
                for piece in entry.pieces():
                    put(target, np.ascontiguousarray(piece), path)
                    written += piece.nbytes
                    if progress:
                        progress(done + written, total)
                if written != size:
                    raise ValueError(f"{entry.name}: {written} bytes, expected {size} for {entry.type} {entry.shape}")
                put(target, bytes(_padded(size) - size), path)
                done += _padded(size)
    return total


def _need(files: Sequence[File]) -> str:
    return "the file needs" if len(files) == 1 else f"{len(files)} files need"


def put(file: BinaryIO, data: bytes | np.ndarray, path: Path) -> None:
    """All of the data. Raises OSError in the name of `path`, which the file is to get."""
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; nothing is left of it", str(path)) from None


def _padded(size: int, alignment: int = _ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


def head(metadata: Mapping[str, Any], entries: Sequence[Entry], alignment: int = _ALIGNMENT) -> bytes:
    """Header, metadata and the table of tensors, up to the first tensor. alignment: of tensors; another than usual
    stands in the metadata as `general.alignment`."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(key, value)
    offset = 0
    for entry in entries:
        dims = entry.shape[::-1]
        out += _string(entry.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", entry.type_id, offset)
        offset += _padded(entry.nbytes, alignment)
    return bytes(out) + bytes(_padded(len(out), alignment) - len(out))


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """Integers are uint32 and floats float32 where they fit, as llama.cpp expects; arrays keep their numpy type."""
    if isinstance(value, (bool, np.bool_)):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, (int, np.integer)):
        if 0 <= value < 2**32:
            return struct.pack("<II", _U32, value)
        return struct.pack("<IQ", _U64, value) if value > 0 else struct.pack("<Iq", _I64, value)
    if isinstance(value, (float, np.floating)):
        try:
            return struct.pack("<If", _F32, value)
        except OverflowError:
            return struct.pack("<Id", _F64, value)
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        kind = _ARRAYS[value.dtype.kind + str(value.dtype.itemsize)]
        data = value.astype(value.dtype.newbyteorder("<")).tobytes()
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + data
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, bytes)) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    raise TypeError(f"metadata: {key!r} is a {type(value).__name__}, which GGUF has no type for")
