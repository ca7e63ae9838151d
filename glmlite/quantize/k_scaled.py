"""Q6_K, Q3_K, IQ4_XS: blocks of 256 in groups, x = d s c: d f16 of the block, s an integer of the group.

Q6_K: 16 groups of 16, s of 8 bits, c of 6. Q3_K: 16 groups of 16, s of 6 bits, c of 3. Both signed.
IQ4_XS: 8 groups of 32, s of 6 bits and signed, c an IQ4 level.
"""

import numpy as np
from numba import float32, intp, uint8

from .tiles import (
    LANES,
    ONE,
    TWO,
    ZERO,
    codes,
    fill,
    jit,
    jit_kernel,
    load,
    load_weights,
    nearest,
    new_lanes,
    ranges,
    round_half,
    scale_sums,
    search_scale,
    spread,
    store_half,
)

STEP = 32  # blocks
UNIT = np.uint8  # of out
_8, _16 = LANES // 8, LANES // 16  # blocks of a tile, by their groups


def _arguments(plain, weighted, units, groups, top, low, high):
    """(kernel's arguments without importance, with it). The grids: codes that a group's largest value may become.

    With importance more are tried: the largest value may matter little.
    """
    rest = np.array(units, np.float32), groups, np.float32(top), np.float32(low), np.float32(high)
    return (np.array(plain, np.float32), *rest), (np.array(weighted, np.float32), *rest)


ARGUMENTS = {
    "q6_k": _arguments(
        [-32.3, -31.6, -31, -30.4, -29.8, 31.4, 30.6],
        [*np.linspace(-38, -28, 10), *np.linspace(37, 28, 8)],
        [-128, -120],
        16,
        128,
        -32,
        31,
    ),
    "q3_k": _arguments(
        [-4.3, -4, -3.7, -3.3, -3, 3.3, 2.9, 2.5],
        [*np.linspace(-7.5, -2.8, 12), *np.linspace(7, 2.3, 10)],
        [-32, -31, -29],
        16,
        32,
        -4,
        3,
    ),
    "iq4_xs": _arguments(
        [-135, -127, -121, -115, -110, -105, -98, 98, 105, 113, 119],
        [*np.linspace(-190, -94, 14), *np.linspace(180, 90, 12)],
        [-32, -31, -29],
        8,
        32,
        0,
        0,
    ),
}


@jit
def store_6(row, d, s, c, slot):
    """One Q6_K block; s of its groups at lane g * _16 + slot, c from 0."""
    for half in range(2):
        for i in range(32):
            b = (8 * half + i // 16) * _16 + slot  # runs of 32 are two groups apart
            first, second = c[i % 16, b], c[i % 16, b + 2 * _16]
            third, fourth = c[i % 16, b + 4 * _16], c[i % 16, b + 6 * _16]
            row[64 * half + i] = first & 15 | (third & 15) << 4
            row[64 * half + 32 + i] = second & 15 | (fourth & 15) << 4
            row[128 + 32 * half + i] = first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6
    for g in range(16):
        row[192 + g] = s[g * _16 + slot] & 255
    store_half(row, 208, d)


@jit
def store_3(row, d, s, c, slot):
    """One Q3_K block; s of its groups at lane g * _16 + slot, c from 0."""
    for i in range(32):
        high = 0
        for run in range(8):
            high |= (c[i % 16, (2 * run + i // 16) * _16 + slot] >> 2) << run
        row[i] = high
        for half in range(2):
            low = 0
            for run in range(4):
                low |= (c[i % 16, (8 * half + 2 * run + i // 16) * _16 + slot] & 3) << 2 * run
            row[32 + 32 * half + i] = low
    for g in range(8):
        row[96 + g] = (s[g * _16 + slot] + 32) & 15 | ((s[(g + 8) * _16 + slot] + 32) & 15) << 4
    for g in range(4):
        high = 0
        for part in range(4):
            high |= (s[(4 * part + g) * _16 + slot] + 32) >> 4 << 2 * part
        row[104 + g] = high
    store_half(row, 108, d)


@jit
def store_iq4(row, d, s, c, slot):
    """One IQ4_XS block; s of its groups at lane g * _8 + slot, c from 0."""
    store_half(row, 0, d)
    high = 0
    for g in range(8):
        high |= (s[g * _8 + slot] + 32) >> 4 << 2 * g
    store_half(row, 2, high)
    for g in range(0, 8, 2):
        row[4 + g // 2] = (s[g * _8 + slot] + 32) & 15 | ((s[(g + 1) * _8 + slot] + 32) & 15) << 4
    for g in range(8):
        for i in range(16):
            row[8 + 16 * g + i] = c[i, g * _8 + slot] | c[i + 16, g * _8 + slot] << 4


@jit
def largest(values, d):
    """d: the value of the largest magnitude of each block's groups."""
    fill(d, ZERO)
    for b in range(LANES):
        k = b % len(d)
        d[k] = values[b] if abs(values[b]) > abs(d[k]) else d[k]


@jit
def near(value, unit, top, shift):
    """`shift` from the integer nearest to value / unit, in [-top, top - 1]."""
    s = nearest(value / unit, -top, top - ONE) if unit != ZERO else ZERO
    return min(max(s + shift, -top), top - ONE)


@jit
def choose(t, w, f, d, top, low, high, weighted, s, best):
    """Given d of each lane's block: s of each lane, the best of 3 around f.scale / d.

    best (3, lanes): for that, the gain and the sums cx, cc.
    """
    gains, cx, cc = best[0], best[1], best[2]
    fill(gains, np.float32(-np.inf))
    for trial in range(3):
        shift = np.float32(trial - 1)
        for b in range(LANES):
            p = near(f.scale[b], d[b], top, shift) * d[b]
            f.inverse[b] = ONE / p if p != ZERO else ZERO
        scale_sums(t, w, f, low, high, weighted)
        for b in range(LANES):
            this = near(f.scale[b], d[b], top, shift)
            p = this * d[b]
            gain = p * (TWO * f.cx[b] - p * f.cc[b])
            better = gain > gains[b]
            gains[b] = gain if better else gains[b]
            cx[b] = f.cx[b] if better else cx[b]
            cc[b] = f.cc[b] if better else cc[b]
            s[b] = this if better else s[b]


@jit
def refit(s, best, d):
    """d of each block by least squares, given s and the codes' sums."""
    for k in range(len(d)):
        sx = ss = ZERO
        for b in range(k, LANES, len(d)):
            sx += s[b] * best[1, b]
            ss += s[b] * s[b] * best[2, b]
        if ss > ZERO:
            d[k] = sx / ss


@jit_kernel(uint8, float32[::1], float32[::1], intp, float32, float32, float32)
def kernel(x, importance, out, begin, end, grid, unit_grid, groups, top, low, high):
    """s is in [-top, top - 1], c in [low, high]; low = high: IQ4 levels.

    unit_grid: what the largest scale of a block may become; the best d is refitted twice.
    """
    weighted = importance.size > 0
    size = 256 // groups
    slots = LANES // groups
    t = np.empty((size, LANES), np.float32)
    w = np.ones((size, LANES), np.float32)
    c = np.empty((size, LANES), np.uint8)
    f = new_lanes()
    per_block = np.zeros((5, slots), np.float32)
    extreme, d, total, best_d, best_total = per_block[0], per_block[1], per_block[2], per_block[3], per_block[4]
    bits = np.zeros(slots, np.int32)
    best_bits = np.zeros(slots, np.int32)
    sums = np.zeros((3, LANES), np.float32)
    best_sums = np.zeros((3, LANES), np.float32)
    unit = np.zeros(LANES, np.float32)
    s = np.zeros(LANES, np.float32)
    best_s = np.zeros(LANES, np.float32)
    whole_s = np.zeros(LANES, np.int32)
    for first in range(begin, end, slots):
        blocks = min(slots, end - first)
        load(x, first, blocks, groups, t)
        if weighted:
            load_weights(importance, first, blocks, groups, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused % slots
        search_scale(t, w, f, grid, 2, low, high, weighted)
        largest(f.scale, extreme)
        fill(best_total, np.float32(-np.inf))
        for n in range(len(unit_grid) + 2):
            if n < len(unit_grid):
                for k in range(slots):
                    d[k] = extreme[k] / unit_grid[n]
            else:
                refit(best_s, best_sums, d)
            round_half(d, bits)
            spread(d, unit)
            choose(t, w, f, unit, top, low, high, weighted, s, sums)
            fill(total, ZERO)
            for b in range(LANES):
                total[b % slots] += sums[0, b]
            for b in range(LANES):
                if total[b % slots] > best_total[b % slots]:
                    best_s[b] = s[b]
                    best_sums[1, b] = sums[1, b]
                    best_sums[2, b] = sums[2, b]
            for k in range(slots):
                if total[k] > best_total[k]:
                    best_total[k], best_d[k], best_bits[k] = total[k], d[k], bits[k]
        for b in range(LANES):
            p = best_d[b % slots] * best_s[b]
            f.inverse[b] = ONE / p if p != ZERO else ZERO
            whole_s[b] = np.int32(best_s[b])
        codes(t, f, low, high, c)
        for k in range(blocks):
            if low == high:
                store_iq4(out[first + k], best_bits[k], whole_s, c, k)
            elif high > np.float32(3):
                store_6(out[first + k], best_bits[k], whole_s, c, k)
            else:
                store_3(out[first + k], best_bits[k], whole_s, c, k)
    return -1
