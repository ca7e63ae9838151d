"""The types of GGUF tensors that can be written, and f32 rows in their bytes."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import numpy as np

from ..errors import FormatError
from ..formats import STORAGE
from ..quantize import FAMILIES, quantize

__all__ = ["TYPES", "can_quantize", "encode", "tensor_bytes"]

TYPES = {name.upper(): STORAGE[name.upper()] for name in FAMILIES}
_LARGEST_F16 = 65504


def tensor_bytes(shape: tuple[int, ...], type: str) -> int:
    """Bytes of a tensor whose rows are whole blocks of `type`."""
    return math.prod(shape) // TYPES[type].values * TYPES[type].nbytes


def encode(x: np.ndarray, type: str, where: str, importance: np.ndarray | None = None) -> np.ndarray:
    """f32 x (n, k) or (n,) as the file stores it, uint8.

    importance: (k,) weights of the columns, for the types that can use them.
    Raises FormatError, naming `where`, for NaN, Inf and what is too large for f16.
    """
    if type == "F32":
        _check(x, type, where)
        return np.ascontiguousarray(x, "<f4").view(np.uint8)
    if type == "F16":
        _check(x, type, where)
        return x.astype("<f2").view(np.uint8)
    if type == "BF16":
        _check(x, type, where)
        return _bf16(x).view(np.uint8)
    if type == "Q8_0" and not can_quantize():
        _check(x, type, where)
        return _q8_0(x)
    try:
        return quantize(np.ascontiguousarray(x, np.float32), type.lower(), importance, threads=1)
    except ValueError as error:
        _check(x, type, where)
        raise FormatError(f"{where}: {error}") from None  # an importance of another width


def _check(x: np.ndarray, type: str, where: str) -> None:
    if not np.isfinite(x).all():
        count = int(x.size - np.isfinite(x).sum())
        raise FormatError(f"{where}: {count} values are NaN or infinite, expected finite weights")
    if type not in ("F32", "BF16") and x.size and (largest := float(np.abs(x).max())) > _LARGEST_F16:
        raise FormatError(f"{where}: {largest:.6g} is too large for {type.lower()}; convert to bf16 or f32")


@cache
def can_quantize() -> bool:
    """Whether numba is there; without it f32, f16, bf16 and a plain q8_0 can be written."""
    return find_spec("numba") is not None


def _bf16(x: np.ndarray) -> np.ndarray:
    """The upper halves of the floats, rounded to nearest even."""
    bits = np.ascontiguousarray(x, "<f4").view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def _q8_0(x: np.ndarray) -> np.ndarray:
    """Blocks of 32: a f16 scale, the largest value's / 127, and 32 int8."""
    blocks = x.reshape(-1, 32)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(d > 0, blocks / d, 0)
    q = np.trunc(q + np.copysign(np.float32(0.5), q)).astype(np.int8)
    out = np.concatenate([d.astype("<f2").view(np.uint8), q.view(np.uint8)], axis=1)
    return out.reshape(x.shape[0], -1)
