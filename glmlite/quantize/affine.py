"""Q4_1, Q5_1: blocks of 32 with a scale and a minimum, x = d c + m, d and m f16, c from 0 to 15 or 31."""

import numpy as np
from numba import float32

from .tiles import (
    LANES,
    ONE,
    ZERO,
    jit,
    jit_kernel,
    load,
    load_weights,
    nearest,
    new_lanes,
    ranges,
    round_half,
    search_affine,
    store_half,
    trims,
)

STEP = LANES  # blocks
_4 = trims(-0.02, 0.02, 0.06, 0.12), np.float32(15)
_5 = trims(-0.012, 0.012, 0.036, 0.07), np.float32(31)
ARGUMENTS = {"q4_1": (_4, _4), "q5_1": (_5, _5)}  # kernel's, without and with importance


@jit
def store(row, scale, minimum, c, b, fifth):
    """One block from lane b of the codes c (32, lanes) uint8; fifth: whether codes have a fifth bit."""
    store_half(row, 0, scale)
    store_half(row, 2, minimum)
    at = 4
    if fifth:
        bits = 0
        for i in range(32):
            bits |= (c[i, b] >> 4) << i
        for i in range(4):
            row[4 + i] = bits >> 8 * i & 255
        at = 8
    for i in range(16):
        row[at + i] = c[i, b] & 15 | (c[i + 16, b] & 15) << 4


@jit_kernel(float32[:, ::1], float32)
def kernel(x, importance, out, begin, end, trims, high):
    t = np.empty((32, LANES), np.float32)
    w = np.ones((32, LANES), np.float32)
    c = np.empty((32, LANES), np.uint8)
    f = new_lanes(LANES)
    scale_bits = np.empty(LANES, np.int32)
    minimum_bits = np.empty(LANES, np.int32)
    for first in range(begin, end, LANES):
        blocks = min(LANES, end - first)
        load(x, first, blocks, 1, t)
        if importance.size:
            load_weights(importance, first, blocks, 1, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused
        search_affine(t, w, f, trims, high, True)
        for b in range(LANES):
            f.minimum[b] = -f.minimum[b]
        round_half(f.scale, scale_bits)
        round_half(f.minimum, minimum_bits)
        for b in range(LANES):
            f.inverse[b] = ONE / f.scale[b] if f.scale[b] != ZERO else ZERO
        for i in range(32):
            for b in range(LANES):
                c[i, b] = np.int32(nearest((t[i, b] - f.minimum[b]) * f.inverse[b], ZERO, high))
        for b in range(blocks):
            store(out[first + b], scale_bits[b], minimum_bits[b], c, b, high > np.float32(15))
    return -1
