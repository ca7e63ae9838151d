"""Where a checkpoint's tensors are, whatever form its files have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from .files import short

__all__ = ["DTYPES", "Stored", "check_name", "check_shape", "is_count"]

# As safetensors names them -> how numpy reads them, little-endian. numpy has no bfloat16: its bits are read.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    # Read as their bits, to be told by name.
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
_MAX_DIMS = 8
_MAX_NAME = 512  # characters of a tensor's name; the longest in use have some 100


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are: `offset` from the beginning of the file; strides in elements, None if C order."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None


def check_name(path: Path, name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise FormatError(f"{path}: a tensor's name is {short(name)}, expected 1 to {_MAX_NAME} characters")


def check_shape(where: str, shape: Any) -> None:
    if not isinstance(shape, (list, tuple)) or len(shape) > _MAX_DIMS or not all(is_count(n) for n in shape):
        raise FormatError(f"{where}: shape {short(shape)}, expected at most {_MAX_DIMS} sizes")


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48
