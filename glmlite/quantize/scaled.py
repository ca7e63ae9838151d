"""Q8_0, Q4_0, Q5_0, IQ4_NL: blocks of 32 with a scale, x = d c, d f16, c an integer in [low, high] or an IQ4 level."""

import numpy as np
from numba import float32, intp, uint16

from .tiles import (
    LANES,
    codes,
    fifth_bits,
    jit,
    jit_kernel,
    load,
    load_weights,
    new_lanes,
    nibbles,
    ranges,
    round_half,
    scale_inverse,
    search_scale,
    store_words,
)

STEP = LANES  # blocks
UNIT = np.uint16  # of out


def _arguments(plain, refits, weighted, low, high, high_bits):
    """(kernel's arguments without importance, with it). The grids: codes that the largest value may become.

    With importance more are tried: the largest value may matter little.
    """
    rest = np.float32(low), np.float32(high), high_bits
    return (np.array(plain, np.float32), refits, *rest), (np.array(weighted, np.float32), 2, *rest)


ARGUMENTS = {
    "q8_0": _arguments([-127, -126.4, -125.8, 127.3], 2, np.linspace(-131, -119, 16), -127, 127, 4),
    "q4_0": _arguments([-8], 0, [*np.linspace(-13, -6, 12), *np.linspace(12, 6, 10)], -8, 7, 0),
    "q5_0": _arguments(
        [-16.3, -15.6, -15, -14.4], 2, [*np.linspace(-21, -13, 12), *np.linspace(20, 13, 9)], -16, 15, 1
    ),
    "iq4_nl": _arguments(
        [-135, -127, -121, -115, -110, -105, -98, 98, 105, 113, 119],
        2,
        [*np.linspace(-190, -94, 14), *np.linspace(180, 90, 12)],
        0,
        0,
        0,
    ),
}


@jit
def words_8(c, words):
    """16 words of each lane from 32 codes of 8 bits that were stored from 0: back to -127 to 127."""
    for j in range(16):
        for b in range(LANES):
            words[j, b] = (c[2 * j, b] - 127) & 255 | ((c[2 * j + 1, b] - 127) & 255) << 8


@jit_kernel(uint16, float32[::1], intp, float32, float32, intp)
def kernel(x, importance, out, begin, end, grid, refits, low, high, high_bits):
    """high_bits: of a code beyond its nibble. low = high: IQ4 levels."""
    t = np.empty((32, LANES), np.float32)
    w = np.ones((32, LANES), np.float32)
    c = np.empty((32, LANES), np.uint8)
    f = new_lanes()
    bits = np.empty(LANES, np.int32)
    words = np.empty((out.shape[1], LANES), np.uint16)
    for first in range(begin, end, LANES):
        blocks = min(LANES, end - first)
        load(x, first, blocks, 1, t)
        if importance.size:
            load_weights(importance, first, blocks, 1, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused
        search_scale(t, w, f, grid, refits, low, high, importance.size > 0)
        round_half(f.scale, bits)
        scale_inverse(f)
        codes(t, f, low, high, c)
        for b in range(LANES):
            words[0, b] = bits[b]
        if high_bits == 4:
            words_8(c, words[1:])
        elif high_bits == 1:
            fifth_bits(c, words[1:])
            nibbles(c, words[3:])
        else:
            nibbles(c, words[1:])
        store_words(words, first, blocks, out)
    return -1
