"""Q8_0, Q4_0, Q5_0, IQ4_NL: blocks of 32 with a scale, x = d c, d f16, c an integer in [low, high] or an IQ4 level."""

import numpy as np
from numba import float32, intp

from .tiles import (
    LANES,
    ONE,
    ZERO,
    jit,
    jit_kernel,
    level_index,
    load,
    load_weights,
    nearest,
    new_lanes,
    ranges,
    round_half,
    search_scale,
    store_half,
)

STEP = LANES  # blocks


def _arguments(plain, weighted, low, high, high_bits):
    """(kernel's arguments without importance, with it). The grids: codes that the largest value may become.

    With importance more are tried: the largest value may matter little.
    """
    rest = np.float32(low), np.float32(high), high_bits
    return (np.array(plain, np.float32), *rest), (np.array(weighted, np.float32), *rest)


ARGUMENTS = {
    "q8_0": _arguments([-127, -126.4, -125.8, 127.3], np.linspace(-131, -119, 16), -127, 127, 4),
    "q4_0": _arguments([-8.3, -7.7, -7.1, 7.4], [*np.linspace(-13, -6, 12), *np.linspace(12, 6, 10)], -8, 7, 0),
    "q5_0": _arguments([-16.3, -15.6, -15, -14.4], [*np.linspace(-21, -13, 12), *np.linspace(20, 13, 10)], -16, 15, 1),
    "iq4_nl": _arguments(
        [-135, -127, -121, -115, -110, -105, -98, 98, 105, 113, 119],
        [*np.linspace(-190, -94, 14), *np.linspace(180, 90, 12)],
        0,
        0,
        0,
    ),
}


@jit
def store(row, bits, c, b, high_bits):
    """One block from lane b of the codes c (32, lanes) uint8: all 8 bits, or nibbles and fifth bits."""
    store_half(row, 0, bits)
    if high_bits == 4:
        for i in range(32):
            row[2 + i] = c[i, b]
        return
    at = 2
    if high_bits == 1:
        fifth = 0
        for i in range(32):
            fifth |= (c[i, b] >> 4 & 1) << i
        for i in range(4):
            row[2 + i] = fifth >> 8 * i & 255
        at = 6
    for i in range(16):
        row[at + i] = c[i, b] & 15 | (c[i + 16, b] & 15) << 4


@jit_kernel(float32[::1], float32, float32, intp)
def kernel(x, importance, out, begin, end, grid, low, high, high_bits):
    """high_bits: of a code beyond its nibble. low = high: IQ4 levels."""
    t = np.empty((32, LANES), np.float32)
    w = np.ones((32, LANES), np.float32)
    c = np.empty((32, LANES), np.uint8)
    f = new_lanes(LANES)
    bits = np.empty(LANES, np.int32)
    zero = -low if high_bits < 4 else ZERO
    for first in range(begin, end, LANES):
        blocks = min(LANES, end - first)
        load(x, first, blocks, 1, t)
        if importance.size:
            load_weights(importance, first, blocks, 1, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused
        search_scale(t, w, f, grid, low, high)
        round_half(f.scale, bits)
        for b in range(LANES):
            f.inverse[b] = ONE / f.scale[b] if f.scale[b] != ZERO else ZERO
        for i in range(32):
            for b in range(LANES):
                v = t[i, b] * f.inverse[b]
                if low == high:
                    c[i, b] = level_index(v)
                else:
                    c[i, b] = np.int32(nearest(v, low, high) + zero)
        for b in range(blocks):
            store(out[first + b], bits[b], c, b, high_bits)
    return -1
