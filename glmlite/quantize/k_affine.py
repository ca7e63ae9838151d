"""Q4_K, Q5_K, Q2_K: blocks of 256 in groups, x = d s c - e m: d and e f16 of the block, s and m integers of the group.

Q4_K and Q5_K: 8 groups of 32, s and m of 6 bits, c of 4 or 5. Q2_K: 16 groups of 16, s and m of 4 bits, c of 2.
"""

import numpy as np
from numba import float32, intp, uint8

from .tiles import (
    LANES,
    ONE,
    TWO,
    ZERO,
    affine_sums,
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
    search_affine,
    spread,
    store_half,
    trims,
)

STEP = 32  # blocks
UNIT = np.uint8  # of out
_8, _16 = LANES // 8, LANES // 16  # blocks of a tile, by their groups
_2 = trims(-0.02, 0.02, 0.06, 0.12), 16, np.float32(15), np.float32(3)
_4 = trims(-0.02, 0.02, 0.06, 0.12), 8, np.float32(63), np.float32(15)
_5 = trims(-0.012, 0.012, 0.036, 0.07), 8, np.float32(63), np.float32(31)
ARGUMENTS = {"q2_k": (_2, _2), "q4_k": (_4, _4), "q5_k": (_5, _5)}  # kernel's, without and with importance


@jit
def store_4_5(row, d, e, s, m, c, slot, fifth):
    """One Q4_K or Q5_K block; s and m of its groups at lane g * _8 + slot."""
    store_half(row, 0, d)
    store_half(row, 2, e)
    for g in range(4):
        b, after = g * _8 + slot, (g + 4) * _8 + slot
        row[4 + g] = s[b] | (s[after] >> 4) << 6
        row[8 + g] = m[b] | (m[after] >> 4) << 6
        row[12 + g] = s[after] & 15 | (m[after] & 15) << 4
    at = 16
    if fifth:
        for i in range(32):
            bits = 0
            for g in range(8):
                bits |= (c[i, g * _8 + slot] >> 4) << g
            row[16 + i] = bits
        at = 48
    for g in range(4):
        b, after = 2 * g * _8 + slot, (2 * g + 1) * _8 + slot
        for i in range(32):
            row[at + 32 * g + i] = c[i, b] & 15 | (c[i, after] & 15) << 4


@jit
def store_2(row, d, e, s, m, c, slot):
    """One Q2_K block; s and m of its groups at lane g * _16 + slot."""
    for g in range(16):
        row[g] = s[g * _16 + slot] | m[g * _16 + slot] << 4
    for half in range(2):
        for i in range(32):
            bits = 0
            for pair in range(4):
                g = 8 * half + 2 * pair + i // 16
                bits |= c[i % 16, g * _16 + slot] << 2 * pair
            row[16 + 32 * half + i] = bits
    store_half(row, 80, d)
    store_half(row, 82, e)


@jit
def largest(values, top, unit):
    """unit: of each block, what makes its groups' largest value `top`."""
    fill(unit, ZERO)
    for b in range(LANES):
        k = b % len(unit)
        unit[k] = max(unit[k], values[b] / top)


@jit
def near(value, unit, top, shift):
    """`shift` from the integer nearest to value / unit, in [0, top]."""
    s = nearest(value / unit, ZERO, top) if unit > ZERO else ZERO
    return min(max(s + shift, ZERO), top)


@jit
def choose(t, w, f, d, e, top, high, s, m, best):
    """Given d and e of each lane's block: s and m of each lane, the best of 9 around f.scale / d and f.minimum / e.

    best (4, lanes): for those, the gain and the sums c1, cx, cc.
    """
    gains, c1, cx, cc = best[0], best[1], best[2], best[3]
    fill(gains, np.float32(-np.inf))
    for trial in range(9):
        shift_s, shift_m = np.float32(trial // 3 - 1), np.float32(trial % 3 - 1)
        for b in range(LANES):
            p = near(f.scale[b], d[b], top, shift_s) * d[b]
            f.inverse[b] = ONE / p if p > ZERO else ZERO
            f.offset[b] = near(f.minimum[b], e[b], top, shift_m) * e[b]
        affine_sums(t, w, f, high)
        for b in range(LANES):
            this_s = near(f.scale[b], d[b], top, shift_s)
            this_m = near(f.minimum[b], e[b], top, shift_m)
            p, q = this_s * d[b], f.offset[b]
            gain = p * (TWO * f.cx[b] - p * f.cc[b] + TWO * q * f.c1[b]) - q * (TWO * f.wx[b] + q * f.w1[b])
            better = gain > gains[b]
            gains[b] = gain if better else gains[b]
            c1[b] = f.c1[b] if better else c1[b]
            cx[b] = f.cx[b] if better else cx[b]
            cc[b] = f.cc[b] if better else cc[b]
            s[b] = this_s if better else s[b]
            m[b] = this_m if better else m[b]


@jit
def refit(f, s, m, best, d, e):
    """d and e of each block by least squares, given s, m and the codes' sums."""
    for k in range(len(d)):
        ss = sm = mm = sx = mx = ZERO
        for b in range(k, LANES, len(d)):
            ss += s[b] * s[b] * best[3, b]
            sm += s[b] * m[b] * best[1, b]
            mm += m[b] * m[b] * f.w1[b]
            sx += s[b] * best[2, b]
            mx += m[b] * f.wx[b]
        determinant = ss * mm - sm * sm
        if determinant > ZERO:
            d[k] = max((sx * mm - sm * mx) / determinant, ZERO)
            e[k] = max((sx * sm - ss * mx) / determinant, ZERO)
        elif ss > ZERO:
            d[k] = max(sx / ss, ZERO)


@jit_kernel(uint8, float32[:, ::1], intp, float32, float32)
def kernel(x, importance, out, begin, end, trims, groups, top, high):
    """s and m are in [0, top], c in [0, high]. d and e are chosen three times: first from the groups' largest."""
    size = 256 // groups
    slots = LANES // groups
    t = np.empty((size, LANES), np.float32)
    w = np.ones((size, LANES), np.float32)
    c = np.empty((size, LANES), np.uint8)
    f = new_lanes()
    per_block = np.zeros((6, slots), np.float32)
    d, e, total = per_block[0], per_block[1], per_block[2]
    best_d, best_e, best_total = per_block[3], per_block[4], per_block[5]
    d_bits, e_bits = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    best_d_bits, best_e_bits = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    sums, best_sums = np.zeros((4, LANES), np.float32), np.zeros((4, LANES), np.float32)
    unit_s, unit_m = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    s, m = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    best_s, best_m = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    whole_s, whole_m = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    for first in range(begin, end, slots):
        blocks = min(slots, end - first)
        load(x, first, blocks, groups, t)
        if importance.size:
            load_weights(importance, first, blocks, groups, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused % slots
        search_affine(t, w, f, trims, high, False)
        largest(f.scale, top, d)
        largest(f.minimum, top, e)
        fill(best_total, np.float32(-np.inf))
        for n in range(3):
            if n > 0:
                refit(f, best_s, best_m, best_sums, d, e)
            round_half(d, d_bits)
            round_half(e, e_bits)
            spread(d, unit_s)
            spread(e, unit_m)
            choose(t, w, f, unit_s, unit_m, top, high, s, m, sums)
            fill(total, ZERO)
            for b in range(LANES):
                total[b % slots] += sums[0, b]
            for b in range(LANES):
                if total[b % slots] > best_total[b % slots]:
                    best_s[b], best_m[b] = s[b], m[b]
                    for i in range(1, 4):
                        best_sums[i, b] = sums[i, b]
            for k in range(slots):
                if total[k] > best_total[k]:
                    best_total[k], best_d[k], best_e[k] = total[k], d[k], e[k]
                    best_d_bits[k], best_e_bits[k] = d_bits[k], e_bits[k]
        for b in range(LANES):
            p = best_d[b % slots] * best_s[b]
            f.inverse[b] = ONE / p if p > ZERO else ZERO
            f.offset[b] = best_e[b % slots] * best_m[b]
            whole_s[b], whole_m[b] = np.int32(best_s[b]), np.int32(best_m[b])
        codes(t, f, ZERO, high, c)
        for k in range(blocks):
            if groups == 16:
                store_2(out[first + k], best_d_bits[k], best_e_bits[k], whole_s, whole_m, c, k)
            else:
                fifth = high > np.float32(15)
                store_4_5(out[first + k], best_d_bits[k], best_e_bits[k], whole_s, whole_m, c, k, fifth)
    return -1
