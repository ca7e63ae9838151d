"""What the quantizers share: tiles, sums over codes, f16. All of it numba; scalars and arrays are f32.

A tile holds the values of many groups (a group shares a scale): t[i, b] is value i of group b. Loops run along b, so
that each is one vector instruction per 16 groups, and a group's sums are taken in order of i, whatever the machine's
vectors: the bytes depend on neither the machine nor the number of threads. No fastmath, no fused multiply-add.

A family's kernel is `kernel(x, importance, out, begin, end, ...)`: x the values of all blocks, importance (k,) or
(0,) for none, out (blocks, units) uint8 or uint16; it writes blocks [begin, end) and returns the
first block that it refuses (a value is not finite or beyond LIMIT), or -1.
"""

import hashlib
from collections import namedtuple
from pathlib import Path

import numba
import numpy as np

LANES = 256
LIMIT = np.float32(65504)  # the largest f16
TINY = np.float32(2.0**-26)  # a group of smaller values is zero: no f16 scale is that small
# Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even: f32 has no bits for fractions there.
ROUND = np.float32(12582912)
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


_HASH = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

# Part of a kernel, compiled with it. Not kept on disk: numba would join old code and new if only some of it changed.
jit = numba.njit(nogil=True, error_model="numpy")


def jit_kernel(unit, *arguments):
    """Compiles a kernel when its module is imported, for arrays that may be read-only (mapped files); unit: out's.

    The machine code is kept on disk where some folder can be written; NUMBA_CACHE_DIR names one. numba sees changes of
    the kernel's own file only, therefore the name under which it is kept has a hash of this one.
    """
    read_only = numba.types.Array(numba.float32, 1, "C", readonly=True)
    signature = numba.intp(read_only, read_only, unit[:, ::1], numba.intp, numba.intp, *arguments)

    def compile(function):
        function.__qualname__ += f"-{_HASH}"
        try:
            return numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # no such folder
            return numba.njit(signature, nogil=True, error_model="numpy")(function)

    return compile


# One f32 per lane: the range of its values; sum w and sum w x; scale d and minimum m of x = d c - m; how far the error
# sum w (x - (d c - m))^2 is below sum w x^2; what codes are made with; sums of w c, w c x and w c^2.
Lanes = namedtuple("Lanes", "least most w1 wx scale minimum gain inverse offset c1 cx cc")


@jit
def new_lanes():
    f = np.zeros((12, LANES), np.float32)
    return Lanes(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11])


def trims(*shares):
    """For `search_affine`: every pair of shares, (n, 2)."""
    return np.array([(a, b) for a in shares for b in shares], np.float32)


@jit
def fill(a, value):
    for b in range(a.size):
        a[b] = value


@jit
def load(x, first, blocks, groups, t):
    """Blocks of x from `first` on to t (size, lanes): group g of block s is lane g * slots + s. Missing ones are 0."""
    size = len(t)
    slots = LANES // groups
    # Two values of two blocks at a time, which takes half the loads and stores; x begins at a multiple of 8 bytes.
    x_pairs, t_pairs = x.view(np.uint64), t.view(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    paired = blocks // 2 * 2
    for g in range(groups):
        for s in range(0, paired, 2):
            at = ((first + s) * groups + g) * size // 2
            after = at + groups * size // 2
            lane = (g * slots + s) // 2
            for i in range(size // 2):
                a, b = x_pairs[at + i], x_pairs[after + i]
                t_pairs[2 * i, lane] = a & low | b << np.uint64(32)
                t_pairs[2 * i + 1, lane] = a >> np.uint64(32) | b & ~low
        for s in range(paired, slots):
            if s < blocks:
                at = ((first + s) * groups + g) * size
                for i in range(size):
                    t[i, g * slots + s] = x[at + i]
            else:
                for i in range(size):
                    t[i, g * slots + s] = ZERO


@jit
def load_weights(importance, first, blocks, groups, w):
    """The importance of each value that `load` puts into its tile; 1 where there is none."""
    size = len(w)
    slots = LANES // groups
    for g in range(groups):
        for s in range(slots):
            if importance.size == 0 or s >= blocks:
                for i in range(size):
                    w[i, g * slots + s] = ONE
            else:
                at = ((first + s) * groups + g) * size % importance.size
                for i in range(size):
                    w[i, g * slots + s] = importance[at + i]


@jit
def ranges(t, f):
    """The least and the largest value of each lane. Returns the first lane that must be refused, or -1."""
    good = True
    for b in range(LANES):
        f.least[b] = t[0, b]
        f.most[b] = t[0, b]
    for begin in range(0, len(t), 8):
        for b in range(LANES):
            least, most = f.least[b], f.most[b]
            for i in range(8):
                v = t[begin + i, b]
                least = v if v < least else least
                most = v if v > most else most
                good &= abs(v) <= LIMIT  # NaN is not
            f.least[b] = least
            f.most[b] = most
    if not good:
        for b in range(LANES):
            for i in range(len(t)):
                if not abs(t[i, b]) <= LIMIT:
                    return b
    return -1


@jit
def nearest(v, low, high):
    """The integer nearest to v in [low, high]."""
    v = v if v > low else low
    v = v if v < high else high
    return (v + ROUND) - ROUND


@jit
def nearest_level(v):
    """The nearest of IQ4's sixteen levels: -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113."""
    # Each line adds the distance to the next level where v is beyond the middle between the two.
    c = np.float32(-127)
    c += np.float32(23) if v > np.float32(-115.5) else ZERO
    c += np.float32(21) if v > np.float32(-93.5) else ZERO
    c += np.float32(18) if v > np.float32(-74.0) else ZERO
    c += np.float32(16) if v > np.float32(-57.0) else ZERO
    c += np.float32(14) if v > np.float32(-42.0) else ZERO
    c += np.float32(13) if v > np.float32(-28.5) else ZERO
    c += np.float32(12) if v > np.float32(-16.0) else ZERO
    c += np.float32(11) if v > np.float32(-4.5) else ZERO
    c += np.float32(12) if v > np.float32(7.0) else ZERO
    c += np.float32(12) if v > np.float32(19.0) else ZERO
    c += np.float32(13) if v > np.float32(31.5) else ZERO
    c += np.float32(15) if v > np.float32(45.5) else ZERO
    c += np.float32(16) if v > np.float32(61.0) else ZERO
    c += np.float32(20) if v > np.float32(79.0) else ZERO
    c += np.float32(24) if v > np.float32(101.0) else ZERO
    return c


@jit
def level_index(v):
    """Which level `nearest_level` takes, 0 to 15."""
    c = 0
    c += v > np.float32(-115.5)
    c += v > np.float32(-93.5)
    c += v > np.float32(-74.0)
    c += v > np.float32(-57.0)
    c += v > np.float32(-42.0)
    c += v > np.float32(-28.5)
    c += v > np.float32(-16.0)
    c += v > np.float32(-4.5)
    c += v > np.float32(7.0)
    c += v > np.float32(19.0)
    c += v > np.float32(31.5)
    c += v > np.float32(45.5)
    c += v > np.float32(61.0)
    c += v > np.float32(79.0)
    c += v > np.float32(101.0)
    return c


@jit
def _sums(t, f, low, high):
    for begin in range(0, len(t), 8):
        for b in range(LANES):
            cx, cc, inverse = f.cx[b], f.cc[b], f.inverse[b]
            for i in range(8):
                v = t[begin + i, b]
                c = nearest(v * inverse, low, high)
                cx += c * v
                cc += c * c
            f.cx[b] = cx
            f.cc[b] = cc


@jit
def _weighted_sums(t, w, f, low, high):
    for begin in range(0, len(t), 8):
        for b in range(LANES):
            cx, cc, inverse = f.cx[b], f.cc[b], f.inverse[b]
            for i in range(8):
                v = t[begin + i, b]
                c = nearest(v * inverse, low, high)
                wc = w[begin + i, b] * c
                cx += wc * v
                cc += wc * c
            f.cx[b] = cx
            f.cc[b] = cc


@jit
def _level_sums(t, w, f):
    for i in range(len(t)):
        for b in range(LANES):
            v = t[i, b]
            c = nearest_level(v * f.inverse[b])
            wc = w[i, b] * c
            f.cx[b] += wc * v
            f.cc[b] += wc * c


@jit
def scale_sums(t, w, f, low, high, weighted):
    """f.cx = sum w c x and f.cc = sum w c^2, c the code nearest to x * f.inverse. low = high: IQ4's levels.

    Without weights (all are 1) it takes less time.
    """
    fill(f.cx, ZERO)
    fill(f.cc, ZERO)
    if low == high:
        _level_sums(t, w, f)
    elif weighted:
        _weighted_sums(t, w, f, low, high)
    else:
        _sums(t, f, low, high)


@jit
def grid_inverse(f, code):
    """f.inverse: maps the value of the largest magnitude to `code`."""
    for b in range(LANES):
        top = f.least[b] if -f.least[b] > f.most[b] else f.most[b]
        f.inverse[b] = code / top if abs(top) >= TINY else ZERO


@jit
def scale_inverse(f):
    for b in range(LANES):
        f.inverse[b] = ONE / f.scale[b] if f.scale[b] != ZERO else ZERO


@jit
def keep_scale(f):
    """Takes the best scale of the sums' codes, if it lowers the error more than f.scale does."""
    for b in range(LANES):
        old, best = f.scale[b], f.gain[b]
        d = f.cx[b] / f.cc[b]
        gain = f.cx[b] * d
        f.scale[b] = d if gain > best else old  # not where cc is 0: d is NaN
        f.gain[b] = gain if gain > best else best


@jit
def search_scale(t, w, f, grid, refits, low, high, weighted):
    """The scale d of each lane that makes sum w (x - d c)^2 small.

    Tries the scales that map the value of the largest magnitude to each number of `grid`; the codes' best scale,
    cx / cc, lowers the error by cx^2 / cc. The best one is refitted to the codes it gives, `refits` times.
    """
    fill(f.scale, ZERO)
    fill(f.gain, ZERO)
    for n in range(len(grid) + refits):
        if n < len(grid):
            grid_inverse(f, grid[n])
        else:
            scale_inverse(f)
        scale_sums(t, w, f, low, high, weighted)
        keep_scale(f)


@jit
def weight_sums(t, w, f):
    """f.w1 = sum w and f.wx = sum w x."""
    fill(f.w1, ZERO)
    fill(f.wx, ZERO)
    for i in range(len(t)):
        for b in range(LANES):
            f.w1[b] += w[i, b]
            f.wx[b] += w[i, b] * t[i, b]


@jit
def affine_sums(t, w, f, high):
    """f.c1 = sum w c, f.cx = sum w c x, f.cc = sum w c^2, c in [0, high] nearest to (x + f.offset) * f.inverse."""
    fill(f.c1, ZERO)
    fill(f.cx, ZERO)
    fill(f.cc, ZERO)
    for begin in range(0, len(t), 8):
        for b in range(LANES):
            c1, cx, cc, inverse, offset = f.c1[b], f.cx[b], f.cc[b], f.inverse[b], f.offset[b]
            for i in range(8):
                v = t[begin + i, b]
                c = nearest((v + offset) * inverse, ZERO, high)
                wc = w[begin + i, b] * c
                c1 += wc
                cx += wc * v
                cc += wc * c
            f.c1[b] = c1
            f.cx[b] = cx
            f.cc[b] = cc


@jit
def trim_range(f, high, below, above):
    """f.inverse and f.offset: map the range less its shares `below` and `above` to [0, high]."""
    for b in range(LANES):
        span = f.most[b] - f.least[b]
        f.offset[b] = -f.least[b] - below * span
        span *= ONE - below - above
        f.inverse[b] = high / span if span >= TINY else ZERO


@jit
def affine_inverse(f):
    for b in range(LANES):
        f.offset[b] = f.minimum[b]
        f.inverse[b] = ONE / f.scale[b] if f.scale[b] > ZERO else ZERO


@jit
def solve_affine(f, signed):
    """Leaves in f.inverse, f.offset and f.c1 the best scale and minimum of the sums' codes, and their gain."""
    # In steps: the compiler vectorises no loop that writes three of so many arrays.
    for b in range(LANES):
        f.inverse[b] = f.w1[b] * f.cc[b] - f.c1[b] * f.c1[b]
    for b in range(LANES):
        f.offset[b] = (f.c1[b] * f.cx[b] - f.cc[b] * f.wx[b]) / f.inverse[b]
    if signed:
        for b in range(LANES):
            f.inverse[b] = (f.w1[b] * f.cx[b] - f.c1[b] * f.wx[b]) / f.inverse[b]
    else:
        for b in range(LANES):
            d = (f.w1[b] * f.cx[b] - f.c1[b] * f.wx[b]) / f.inverse[b]
            f.inverse[b] = f.cx[b] / f.cc[b] if f.offset[b] < ZERO else d
        for b in range(LANES):
            f.offset[b] = ZERO if f.offset[b] < ZERO else f.offset[b]
    for b in range(LANES):
        f.c1[b] = f.inverse[b] * f.cx[b] - f.offset[b] * f.wx[b]


@jit
def keep_affine(f):
    """Takes the scale and minimum that `solve_affine` left, if they lower the error more."""
    for b in range(LANES):
        d, gain, best = f.inverse[b], f.c1[b], f.gain[b]
        f.c1[b] = gain if (d > ZERO) & (gain > best) else best  # not where they are NaN: all codes are equal
    for b in range(LANES):
        d, old = f.inverse[b], f.scale[b]
        f.scale[b] = d if f.c1[b] > f.gain[b] else old
    for b in range(LANES):
        m, old = f.offset[b], f.minimum[b]
        f.minimum[b] = m if f.c1[b] > f.gain[b] else old
    for b in range(LANES):
        f.gain[b] = f.c1[b]


@jit
def search_affine(t, w, f, trims, high, signed):
    """The scale d and minimum m of each lane that make sum w (x - (d c - m))^2 small; m >= 0 unless `signed`.

    Tries the ranges of values that are left when the shares `trims` (n, 2) of the range are taken off at its ends;
    each gives codes, and those a best d and m by least squares. The best one is refitted three times to its codes.
    """
    weight_sums(t, w, f)
    for b in range(LANES):
        if not signed:
            f.least[b] = min(f.least[b], ZERO)
        m = -f.wx[b] / f.w1[b]
        f.scale[b] = ZERO
        f.minimum[b] = m if signed or m > ZERO else ZERO
        f.gain[b] = -f.minimum[b] * f.wx[b]
    for n in range(len(trims) + 3):
        if n < len(trims):
            trim_range(f, high, trims[n, 0], trims[n, 1])
        else:
            affine_inverse(f)
        affine_sums(t, w, f, high)
        solve_affine(f, signed)
        keep_affine(f)


@jit
def round_half(v, bits):
    """Rounds v to f16 in place (ties to even, at most LIMIT in magnitude); bits: the f16 themselves."""
    raw = v.view(np.int32)
    for b in range(v.size):
        v[b] = min(max(v[b], -LIMIT), LIMIT)
        a = abs(v[b])
        sign = raw[b] & 0x80000000
        magnitude = raw[b] & 0x7FFFFFFF
        # f16 has 13 bits less; below 2^-14 it counts in 2^-24.
        whole = (magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13
        count = (a * np.float32(2.0**24) + ROUND) - ROUND
        small = magnitude < 0x38800000
        bits[b] = sign >> 16 | (int(count) if small else whole - (112 << 10))
        if small:
            v[b] = count * np.float32(2.0**-24) if sign == 0 else -count * np.float32(2.0**-24)
        else:
            raw[b] = sign | whole << 13


@jit
def codes(t, f, low, high, c):
    """c: the codes nearest to (x + f.offset) * f.inverse, from 0. low = high: indices of IQ4's levels."""
    for i in range(len(t)):
        if low == high:
            for b in range(LANES):
                c[i, b] = level_index((t[i, b] + f.offset[b]) * f.inverse[b])
        else:
            for b in range(LANES):
                c[i, b] = np.int32(nearest((t[i, b] + f.offset[b]) * f.inverse[b], low, high) - low)


@jit
def nibbles(c, words):
    """Eight 16-bit words of each lane from 32 codes: byte i has the low 4 bits of code i and above them of i + 16."""
    for j in range(8):
        for b in range(LANES):
            words[j, b] = (c[2 * j, b] & 15) | (c[2 * j + 16, b] & 15) << 4
            words[j, b] |= (c[2 * j + 1, b] & 15) << 8 | (c[2 * j + 17, b] & 15) << 12


@jit
def fifth_bits(c, words):
    """Two 16-bit words of each lane from 32 codes: bit i is the fifth bit of code i."""
    for j in range(2):
        for b in range(LANES):
            words[j, b] = 0
        for i in range(16):
            for b in range(LANES):
                words[j, b] |= (c[16 * j + i, b] >> 4 & 1) << i


@jit
def store_words(words, first, blocks, out):
    """Lane b of words (n, lanes) is block first + b of out (blocks, n)."""
    for j in range(len(words)):
        for b in range(blocks):
            out[first + b, j] = words[j, b]


@jit
def store_half(out, at, bits):
    out[at] = bits & 255
    out[at + 1] = bits >> 8


@jit
def spread(per_block, per_lane):
    """Each lane gets its block's value."""
    for b in range(per_lane.size):
        per_lane[b] = per_block[b % per_block.size]
