"""Quantizers: rows of f32 to the bytes of a GGUF tensor. How they search and how well: docs/quantization.md.

Needs numba (`pip install glmlite[convert]`), imported when a block format is first asked for. Nothing at run time
imports this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from ..formats import STORAGE

# The largest magnitudes; of all others 65504, the largest f16: scales are f16.
_LIMITS = {"f32": float.fromhex("0x1.fffffep127"), "bf16": float.fromhex("0x1.fep127")}


# Types, and the module that writes each.
FAMILIES = {
    **dict.fromkeys(["f32", "f16", "bf16"], "floats"),
    **dict.fromkeys(["q8_0", "q4_0", "q5_0", "iq4_nl"], "scaled"),
    **dict.fromkeys(["q4_1", "q5_1"], "affine"),
    **dict.fromkeys(["q2_k", "q4_k", "q5_k"], "k_affine"),
    **dict.fromkeys(["q3_k", "q6_k", "iq4_xs"], "k_scaled"),
}


def row_bytes(type: str, k: int) -> int:
    """Bytes of a row of k values of a type, in any case. Raises ValueError for an unknown one, and where k is not whole
    blocks."""
    type = type.lower()
    if type not in FAMILIES:
        raise ValueError(f"quantize: unknown type {type!r}; known: {', '.join(FAMILIES)}")
    storage = STORAGE[type.upper()]
    if k <= 0 or k % storage.values:
        raise ValueError(f"quantize: rows of {k} values, {type} needs a multiple of {storage.values}")
    return k // storage.values * storage.nbytes


def quantize(
    x: NDArray[np.float32],
    type: str,
    importance: NDArray[np.float32] | None = None,
    *,
    threads: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """x (n, k) f32, C-contiguous -> rows (n, row_bytes(type, k)) as GGUF stores them; written to `out` if given.

    What is made small is the sum of importance * (x - stored)^2; importance (k,): at least 0, by default 1. The bytes
    do not depend on `threads` (default: all cores this process may use). Raises ValueError naming row and column for
    NaN, infinities and values beyond what the type's f16 fields hold (65504; bf16: its own largest).
    """
    if not (isinstance(x, np.ndarray) and x.dtype == np.float32 and x.ndim == 2 and x.flags.c_contiguous):
        raise ValueError(f"quantize: x is {_describe(x)}, expected a C-contiguous float32 array (n, k)")
    n, k = x.shape
    type = type.lower()
    size = row_bytes(type, k)
    if out is None:
        out = np.empty((n, size), np.uint8)
    elif out.dtype != np.uint8 or out.shape != (n, size) or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"quantize: out is {_describe(out)}, expected a C-contiguous uint8 array {(n, size)}")
    weights = _importance(importance, k)
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"quantize: threads is {threads}, expected at least 1")
    if FAMILIES[type] == "floats":
        from . import floats

        block, step = k, 1  # in rows
        work = _float_work(floats.WRITERS[type], x, out)
    else:
        family = _family(FAMILIES[type])
        storage = STORAGE[type.upper()]
        block, step = storage.values, family.STEP
        flat = x.reshape(-1)
        if flat.ctypes.data % 8:  # kernels read two values at a time
            flat = flat.copy()
        blocks_out = out.reshape(-1, storage.nbytes).view(family.UNIT)
        if not blocks_out.flags.aligned:
            raise ValueError(f"quantize: out begins at an odd address, {type} needs an even one")
        arguments = family.ARGUMENTS[type][importance is not None]

        def work(begin: int, end: int) -> int:
            return family.kernel(flat, weights, blocks_out, begin, end, *arguments)

    total = x.size // block
    # Several pieces per thread, so that a thread that is late holds up little.
    piece = max(-(-total // (4 * threads)) // step, 1) * step
    begins = range(0, total, piece)
    if threads == 1 or len(begins) == 1:
        refused = [work(begin, min(begin + piece, total)) for begin in begins]
    else:
        with ThreadPoolExecutor(threads) as pool:
            refused = list(pool.map(lambda begin: work(begin, min(begin + piece, total)), begins))
    if bad := [at for at in refused if at >= 0]:
        _refuse(x, type, min(bad) * block, block)
    return out


def rms_error(
    x: NDArray[np.float32], rows: NDArray[np.uint8], type: str, importance: NDArray[np.float32] | None = None
) -> float:
    """How far stored rows are from x (n, k): the root of the mean of (x - stored)^2, weighted by importance (k,)."""
    from .. import _native

    error = np.square(x - _native.dequantize(type.upper(), rows), dtype=np.float64).mean(0)
    return float(np.sqrt(np.average(error, weights=importance)))


def _family(name: str):
    try:
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as e:
        if e.name != "numba":
            raise
        raise ModuleNotFoundError("quantizing needs numba: pip install 'glmlite[convert]'", name="numba") from e


def _float_work(write: Callable, x: NDArray[np.float32], out: NDArray[np.uint8]) -> Callable[[int, int], int]:
    def work(begin: int, end: int) -> int:
        row = write(x[begin:end], out[begin:end])
        return row if row < 0 else begin + row

    return work


def _importance(importance: NDArray[np.float32] | None, k: int) -> NDArray[np.float32]:
    """(k,) with a mean of 1; columns that nothing was seen of get a little, so that they are not stored as anything."""
    if importance is None:
        return np.empty(0, np.float32)
    weights = np.asarray(importance, np.float64)
    if weights.shape != (k,):
        raise ValueError(f"quantize: importance is {weights.shape}, expected {(k,)}")
    good = (weights >= 0) & (weights < np.inf)
    if not good.all():
        at = np.argmin(good)
        raise ValueError(f"quantize: importance[{at}] is {weights[at]}, expected a finite number of at least 0")
    mean = weights.mean()
    if mean == 0:
        return np.ones(k, np.float32)
    return np.maximum(weights / mean, 1e-6).astype(np.float32)


def _refuse(x: NDArray[np.float32], type: str, begin: int, count: int) -> None:
    """Raises for the first value of x's flat [begin, begin + count) that `type` cannot store."""
    part = x.reshape(-1)[begin : begin + count]
    limit = _LIMITS.get(type, 65504.0)
    at = begin + int(np.argmin(np.abs(part) <= limit))
    row, column = divmod(at, x.shape[1])
    raise ValueError(
        f"quantize: row {row}, column {column} is {x[row, column]:.6g}; "
        f"{type} stores finite values up to {limit:.6g} in magnitude"
    )


def _describe(x: object) -> str:
    if not isinstance(x, np.ndarray):
        return x.__class__.__name__
    return f"{x.dtype} {x.shape}" + ("" if x.flags.c_contiguous else ", not contiguous")
