"""Q4_K, Q5_K, Q2_K: blocks of 256 in groups, x = d s c - e m: d and e f16 of the block, s and m integers of the group.

Q4_K and Q5_K: 8 groups of 32, s and m of 6 bits, c of 4 or 5. Q2_K: 16 groups of 16, s and m of 4 bits, c of 2.
"""

import numpy as np

from .tiles import (
    ONE,
    TWO,
    ZERO,
    affine_sums,
    fill,
    jit,
    load,
    load_weights,
    nearest,
    new_lanes,
    ranges,
    round_half,
    search_affine,
    store_half,
)

SLOTS = 8  # blocks of a tile


@jit
def store_4_5(row, d, e, s, m, c, slot, fifth):
    """One Q4_K or Q5_K block; s and m of its groups at g * SLOTS + slot, c (32, 8 * SLOTS)."""
    store_half(row, 0, d)
    store_half(row, 2, e)
    for g in range(4):
        b, after = g * SLOTS + slot, (g + 4) * SLOTS + slot
        row[4 + g] = s[b] | (s[after] >> 4) << 6
        row[8 + g] = m[b] | (m[after] >> 4) << 6
        row[12 + g] = s[after] & 15 | (m[after] & 15) << 4
    at = 16
    if fifth:
        for i in range(32):
            bits = 0
            for g in range(8):
                bits |= (c[i, g * SLOTS + slot] >> 4) << g
            row[16 + i] = bits
        at = 48
    for g in range(4):
        b, after = 2 * g * SLOTS + slot, (2 * g + 1) * SLOTS + slot
        for i in range(32):
            row[at + 32 * g + i] = c[i, b] & 15 | (c[i, after] & 15) << 4


@jit
def store_2(row, d, e, s, m, c, slot):
    """One Q2_K block; s and m of its groups at g * SLOTS + slot, c (16, 16 * SLOTS)."""
    for g in range(16):
        row[g] = s[g * SLOTS + slot] | m[g * SLOTS + slot] << 4
    for half in range(2):
        for i in range(32):
            bits = 0
            for pair in range(4):
                g = 8 * half + 2 * pair + i // 16
                bits |= c[i % 16, g * SLOTS + slot] << 2 * pair
            row[16 + 32 * half + i] = bits
    store_half(row, 80, d)
    store_half(row, 82, e)


@jit
def units(t, w, f, d, e, top):
    """First d and e of each block: the largest scale and minimum of its groups become `top`."""
    fill(d, ZERO)
    fill(e, ZERO)
    for b in range(f.scale.size):
        d[b % SLOTS] = max(d[b % SLOTS], f.scale[b] / top)
        e[b % SLOTS] = max(e[b % SLOTS], f.minimum[b] / top)


@jit
def choose(t, w, f, d, e, top, high, s, m, best):
    """Given d and e of each block: s and m of each group, the best of 9 around f.scale / d and f.minimum / e.

    best (4, lanes): for those, the gain and the sums c1, cx, cc.
    """
    fill(best[0], np.float32(-np.inf))
    for trial in range(9):
        for b in range(s.size):
            unit_s, unit_m = d[b % SLOTS], e[b % SLOTS]
            at_s = nearest(f.scale[b] / unit_s, ZERO, top) if unit_s > ZERO else ZERO
            at_m = nearest(f.minimum[b] / unit_m, ZERO, top) if unit_m > ZERO else ZERO
            at_s = min(max(at_s + np.float32(trial // 3 - 1), ZERO), top) * unit_s
            f.inverse[b] = ONE / at_s if at_s > ZERO else ZERO
            f.offset[b] = min(max(at_m + np.float32(trial % 3 - 1), ZERO), top) * unit_m
        affine_sums(t, w, f, high)
        for b in range(s.size):
            unit_s, unit_m = d[b % SLOTS], e[b % SLOTS]
            at_s = nearest(f.scale[b] / unit_s, ZERO, top) if unit_s > ZERO else ZERO
            at_m = nearest(f.minimum[b] / unit_m, ZERO, top) if unit_m > ZERO else ZERO
            at_s = min(max(at_s + np.float32(trial // 3 - 1), ZERO), top)
            at_m = min(max(at_m + np.float32(trial % 3 - 1), ZERO), top)
            p, q = at_s * unit_s, at_m * unit_m
            gain = p * (TWO * f.cx[b] - p * f.cc[b] + TWO * q * f.c1[b]) - q * (TWO * f.wx[b] + q * f.w1[b])
            if gain > best[0, b]:
                best[0, b] = gain
                best[1, b] = f.c1[b]
                best[2, b] = f.cx[b]
                best[3, b] = f.cc[b]
                s[b] = at_s
                m[b] = at_m


@jit
def refit(f, s, m, best, d, e):
    """d and e of each block by least squares, given s, m and the codes' sums."""
    for k in range(SLOTS):
        ss = sm = mm = sx = mx = ZERO
        for b in range(k, s.size, SLOTS):
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


@jit
def kernel(x, importance, out, begin, end, trims, groups, top, high, rounds):
    """top: of s and m; high: of codes; rounds: how often d and e are chosen."""
    size = 256 // groups
    lanes = SLOTS * groups
    t = np.empty((size, lanes), np.float32)
    w = np.ones((size, lanes), np.float32)
    c = np.empty((size, lanes), np.uint8)
    f = new_lanes(lanes)
    unit = np.zeros((6, SLOTS), np.float32)
    d, e, total, best_d, best_e, best_total = unit[0], unit[1], unit[2], unit[3], unit[4], unit[5]
    bits = np.zeros((4, SLOTS), np.int32)
    sums = np.zeros((4, lanes), np.float32)
    s = np.zeros(lanes, np.float32)
    m = np.zeros(lanes, np.float32)
    best_s = np.zeros(lanes, np.int32)
    best_m = np.zeros(lanes, np.int32)
    for first in range(begin, end, SLOTS):
        blocks = min(SLOTS, end - first)
        load(x, first, blocks, groups, t)
        if importance.size:
            load_weights(importance, first, blocks, groups, w)
        refused = ranges(t, f)
        if refused >= 0:
            return first + refused % SLOTS
        search_affine(t, w, f, trims, high, False)
        units(t, w, f, d, e, top)
        fill(best_total, np.float32(-np.inf))
        for n in range(rounds):
            if n > 0:
                refit(f, s, m, sums, d, e)
            round_half(d, bits[0])
            round_half(e, bits[1])
            choose(t, w, f, d, e, top, high, s, m, sums)
            fill(total, ZERO)
            for b in range(lanes):
                total[b % SLOTS] += sums[0, b]
            for b in range(lanes):
                if total[b % SLOTS] > best_total[b % SLOTS]:
                    best_s[b] = np.int32(s[b])
                    best_m[b] = np.int32(m[b])
            for k in range(SLOTS):
                if total[k] > best_total[k]:
                    best_total[k], best_d[k], best_e[k] = total[k], d[k], e[k]
                    bits[2, k], bits[3, k] = bits[0, k], bits[1, k]
        for b in range(lanes):
            p = best_d[b % SLOTS] * np.float32(best_s[b])
            f.inverse[b] = ONE / p if p > ZERO else ZERO
            f.offset[b] = best_e[b % SLOTS] * np.float32(best_m[b])
        for i in range(size):
            for b in range(lanes):
                c[i, b] = np.int32(nearest((t[i, b] + f.offset[b]) * f.inverse[b], ZERO, high))
        for k in range(blocks):
            if groups == 16:
                store_2(out[first + k], bits[2, k], bits[3, k], best_s, best_m, c, k)
            else:
                store_4_5(out[first + k], bits[2, k], bits[3, k], best_s, best_m, c, k, high > np.float32(15))
    return -1
