"""F32, F16, BF16: rounded to the nearest, ties to even. numpy does it in whole rows.

A writer takes x (n, k) f32 and out (n, bytes) uint8 and returns the first row that it refuses, or -1.
"""

import numpy as np
from numpy.typing import NDArray

_BF16_MAX = np.float32(float.fromhex("0x1.fep127"))


def _first_beyond(x: NDArray[np.float32], limit: np.float32) -> int:
    good = (np.abs(x) <= limit).all(1)  # NaN is not
    return -1 if good.all() else int(np.argmin(good))


def _f32(x: NDArray[np.float32], out: NDArray[np.uint8]) -> int:
    out.view(np.float32)[:] = x
    return _first_beyond(x, np.finfo(np.float32).max)


def _f16(x: NDArray[np.float32], out: NDArray[np.uint8]) -> int:
    refused = _first_beyond(x, np.float32(65504))
    if refused < 0:
        out.view(np.float16)[:] = x
    return refused


def _bf16(x: NDArray[np.float32], out: NDArray[np.uint8]) -> int:
    bits = x.view(np.uint32)
    out.view(np.uint16)[:] = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # the upper half, after adding half a unit
    return _first_beyond(x, _BF16_MAX)


WRITERS = {"f32": _f32, "f16": _f16, "bf16": _bf16}
