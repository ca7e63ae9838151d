"""Where the tensors of a safetensors file are. Only its header is read."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..files import kind_of
from .files import MAX_SMALL, parse_json, short, unfinished
from .stored import DTYPES, Stored, check_name, check_shape, is_count

__all__ = ["read"]


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a file: eight bytes, the length of a JSON header; the header; the data. Raises FormatError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_SMALL):
            kind = kind_of(path, binary=True)
            what = f"but {kind}" if kind else f"or cut off: a header of {length} bytes in a file of {size}"
            raise FormatError(f"{path}: not safetensors, {what}{unfinished(path)}")
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
        if isinstance(dtype, str) and dtype.startswith(("F8", "F6", "F4")):
            raise FormatError(f"{where} is quantized ({dtype}); expected the checkpoint that it was made from")
        raise FormatError(f"{where}: dtype {short(dtype)}, expected one of {', '.join(DTYPES)}")
    check_shape(where, shape)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_count(n) for n in offsets)):
        raise FormatError(f"{where}: data_offsets {short(offsets)}, expected a begin and an end")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise FormatError(f"{where}: {end - begin} bytes, expected {nbytes} for {dtype} of shape {tuple(shape)}")
    if data + end > size:
        raise FormatError(f"{where}: ends at byte {data + end}, the file is cut off at {size}{unfinished(path)}")
    return Stored(path, dtype, tuple(shape), data + begin)
