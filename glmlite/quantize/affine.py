"""Q4_1, Q5_1: blocks of 32 with a scale and a minimum, x = d c + m, d and m f16, c from 0 to 15 or 31."""

import numpy as np
from numba import float32, uint16

from .tiles import (
    LANES,
    ZERO,
    affine_inverse,
    codes,
    fifth_bits,
    jit_kernel,
    load,
    load_weights,
    new_lanes,
    nibbles,
    ranges,
    round_half,
    search_affine,
    store_words,
    trims,
)

STEP = LANES  # blocks
UNIT = np.uint16  # of out
_WHOLE_4 = trims(0), np.float32(15)
_4 = trims(-0.02, 0.02, 0.06, 0.12), np.float32(15)
_5 = trims(-0.012, 0.012, 0.036, 0.07), np.float32(31)
ARGUMENTS = {"q4_1": (_WHOLE_4, _4), "q5_1": (_5, _5)}  # kernel's, without and with importance


@jit_kernel(uint16, float32[:, ::1], float32)
def kernel(x, importance, out, begin, end, trims, high):
    """high: of codes, 15 or 31."""
    t = np.empty((32, LANES), np.float32)
    w = np.ones((32, LANES), np.float32)
    c = np.empty((32, LANES), np.uint8)
    f = new_lanes()
    scale_bits, minimum_bits = np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    words = np.empty((out.shape[1], LANES), np.uint16)
    for first in range(begin, end, LANES):
        blocks = min(LANES, end - first)
        load(x, first, blocks, 1, t)
        if importance.size:
            load_weights(importance, first, blocks, 1, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused
        search_affine(t, w, f, trims, high, True)
        round_half(f.scale, scale_bits)
        round_half(f.minimum, minimum_bits)
        affine_inverse(f)
        codes(t, f, ZERO, high, c)
        for b in range(LANES):
            words[0, b] = scale_bits[b]
            words[1, b] = minimum_bits[b] ^ 0x8000  # stored with the other sign
        if high > np.float32(15):
            fifth_bits(c, words[2:])
        nibbles(c, words[-8:])
        store_words(words, first, blocks, out)
    return -1
