"""Q8_0, Q4_0, Q5_0, IQ4_NL: blocks of 32 with a scale, x = d c, d f16, c an integer in [low, high] or an IQ4 level."""

import numpy as np

from .tiles import (
    LANES,
    ONE,
    ZERO,
    jit,
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


@jit
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
