"""What the quantizers of glmlite.quantize must compute, in numpy on all blocks at once, written for reading.

Every step is f32 in the same order, so scales and codes are equal, not close. A twin returns what twins.fields does:
w (n, groups), codes (n, groups, size), m (n, groups) or None; a value is w * code + m.

Arrays of a format's groups are (groups, blocks); a group's values lie along the first axis: t (size, groups, blocks).
"""

import numpy as np
from twins import IQ4_VALUES

F = np.float32
MIDS = ((IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2).astype(F)
TINY = F(2.0**-26)


def nearest(v, low, high):
    """Rounded to an integer in [low, high], ties to even; IQ4's nearest level, the lower of two, if low = high."""
    if low == high:
        return IQ4_VALUES[np.searchsorted(MIDS, v, side="left")].astype(F)
    return np.clip(np.rint(v), F(low), F(high))


def half(v):
    return np.clip(v, F(-65504), F(65504)).astype(np.float16).astype(F)


def over(one, v):
    """one / v, 0 where v is 0."""
    return np.where(v == 0, F(0), one / np.where(v == 0, F(1), v))


def total(terms):
    """The sum along the first axis, in order."""
    result = np.zeros_like(terms[0])
    for term in terms:
        result = result + term
    return result


def scale_sums(t, w, inverse, low, high):
    c = nearest(t * inverse, low, high)
    return total(w * c * t), total(w * c * c)


def affine_sums(t, w, inverse, offset, high):
    c = nearest((t + offset) * inverse, 0, high)
    return total(w * c), total(w * c * t), total(w * c * c)


def search_scale(t, w, grid, refits, low, high):
    least, most = t.min(0), t.max(0)
    top = np.where(-least > most, least, most)
    scale, best = np.zeros_like(top), np.zeros_like(top)
    for n in range(len(grid) + refits):
        first = n < len(grid)
        inverse = np.where(np.abs(top) >= TINY, over(grid[n], top), F(0)) if first else over(F(1), scale)
        cx, cc = scale_sums(t, w, inverse, low, high)
        d = cx / cc
        better = cx * d > best
        best, scale = np.where(better, cx * d, best), np.where(better, d, scale)
    return scale


def search_affine(t, w, trims, high, signed):
    w1, wx = total(w), total(w * t)
    least, most = t.min(0), t.max(0)
    if not signed:
        least = np.minimum(least, F(0))
    scale, minimum = np.zeros_like(w1), -wx / w1
    if not signed:
        minimum = np.maximum(minimum, F(0))
    best = -minimum * wx
    for n in range(len(trims) + 3):
        if n < len(trims):
            below, above = trims[n]
            span = most - least
            offset = -least - below * span
            span = span * (F(1) - below - above)
            inverse = np.where(span >= TINY, over(F(high), span), F(0))
        else:
            offset, inverse = minimum, over(F(1), scale)
        c1, cx, cc = affine_sums(t, w, inverse, offset, high)
        determinant = w1 * cc - c1 * c1
        d = (w1 * cx - c1 * wx) / determinant
        m = (c1 * cx - cc * wx) / determinant
        if not signed:
            d, m = np.where(m < 0, cx / cc, d), np.where(m < 0, F(0), m)
        gain = d * cx - m * wx
        better = (d > 0) & (gain > best)
        scale, minimum, best = np.where(better, d, scale), np.where(better, m, minimum), np.where(better, gain, best)
    return scale, minimum, w1, wx


def near(value, unit, low, high, shift):
    s = np.where(unit == 0, F(0), np.clip(np.rint(over(value, unit)), F(low), F(high)))
    return np.clip(s + F(shift), F(low), F(high))


def keep_best(candidates):
    """The best of tuples that begin with a gain: at each place the values of the first one with the largest gain."""
    best = [a.copy() for a in candidates[0]]
    for candidate in candidates[1:]:
        better = candidate[0] > best[0]
        best = [np.where(better, new, old) for new, old in zip(candidate, best)]
    return best


def tiles(x, importance, groups, size):
    """x (n, k) -> t and w (size, groups, blocks)."""
    blocks = x.reshape(-1, groups, size)
    w = np.ones(x.shape[1], F) if importance is None else importance
    w = np.broadcast_to(w, x.shape).reshape(blocks.shape)
    return np.ascontiguousarray(blocks.transpose(2, 1, 0)), np.ascontiguousarray(w.transpose(2, 1, 0))


def result(n, w, c, m=None):
    """(groups, blocks) and (size, groups, blocks) -> as twins.fields gives them."""
    codes = c.transpose(2, 1, 0).astype(np.int32)
    return w.T.reshape(n, -1), codes.reshape(n, -1, len(c)), None if m is None else m.T.reshape(n, -1)


def scaled(x, importance, grid, refits, low, high, _high_bits):
    t, w = tiles(x, importance, 1, 32)
    d = half(search_scale(t, w, grid, refits, low, high))
    return result(len(x), d, nearest(t * over(F(1), d), low, high))


def affine(x, importance, trims, high):
    t, w = tiles(x, importance, 1, 32)
    d, m, _, _ = search_affine(t, w, trims, high, True)
    d, m = half(d), half(-m)
    return result(len(x), d, nearest((t - m) * over(F(1), d), 0, high), m)


def k_scaled(x, importance, grid, units, groups, top, low, high):
    t, w = tiles(x, importance, groups, 256 // groups)
    scale = search_scale(t, w, grid, 2, low, high)
    extreme = np.take_along_axis(scale, np.abs(scale).argmax(0)[None], 0)[0]

    def choose(d):
        """d (blocks,) -> the sum of gains, d, and each group's s, cx, cc."""
        d, candidates = half(d), []
        for shift in (-1, 0, 1):
            s = near(scale, d, -top, top - 1, shift)
            cx, cc = scale_sums(t, w, over(F(1), s * d), low, high)
            p = s * d
            candidates.append((p * (F(2) * cx - p * cc), s, cx, cc))
        gain, s, cx, cc = keep_best(candidates)
        return total(gain), d, s, cx, cc

    best = keep_best([choose(extreme / unit) for unit in units])
    for _ in range(2):
        _, d, s, cx, cc = best
        best = keep_best([best, choose(np.where(total(s * s * cc) > 0, total(s * cx) / total(s * s * cc), d))])
    _, d, s, _, _ = best
    return result(len(x), d * s, nearest(t * over(F(1), d * s), low, high))


def k_affine(x, importance, trims, groups, top, high):
    t, w = tiles(x, importance, groups, 256 // groups)
    scale, minimum, w1, wx = search_affine(t, w, trims, high, False)

    def choose(d, e):
        d, e, candidates = half(d), half(e), []
        for shift in (-1, 0, 1):
            for shift_m in (-1, 0, 1):
                s, m = near(scale, d, 0, top, shift), near(minimum, e, 0, top, shift_m)
                p, q = s * d, m * e
                c1, cx, cc = affine_sums(t, w, over(F(1), p), q, high)
                gain = p * (F(2) * cx - p * cc + F(2) * q * c1) - q * (F(2) * wx + q * w1)
                candidates.append((gain, s, m, c1, cx, cc))
        gain, *rest = keep_best(candidates)
        return total(gain), d, e, *rest

    def refit(d, e, s, m, c1, cx, cc):
        ss, sm, mm = total(s * s * cc), total(s * m * c1), total(m * m * w1)
        sx, mx = total(s * cx), total(m * wx)
        determinant = ss * mm - sm * sm
        both, one = determinant > 0, (determinant <= 0) & (ss > 0)
        fitted = np.maximum((sx * mm - sm * mx) / determinant, F(0))
        return (
            np.where(both, fitted, np.where(one, np.maximum(sx / ss, F(0)), d)),
            np.where(both, np.maximum((sx * sm - ss * mx) / determinant, F(0)), e),
        )

    best = choose(scale.max(0) / top, minimum.max(0) / top)
    for _ in range(2):
        best = keep_best([best, choose(*refit(*best[1:]))])
    _, d, e, s, m, *_ = best
    p, q = d * s, e * m
    return result(len(x), p, nearest((t + q) * over(F(1), p), 0, high), -q)


def fields(family, arguments, x, importance):
    """The twin of family's kernel with these arguments; importance as the kernel gets it, or None."""
    with np.errstate(all="ignore"):
        return {"scaled": scaled, "affine": affine, "k_scaled": k_scaled, "k_affine": k_affine}[family](
            x, importance, *arguments
        )
