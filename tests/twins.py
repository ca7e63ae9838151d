"""What each kernel must compute, in numpy, one function per kernel, written for reading.

Where a kernel's arithmetic is exact, so is its twin; else the twin returns (value, bound): f64, and how far f32
sums in the kernel's order may fall from it.
"""

from __future__ import annotations

import numpy as np

# Format -> values per block, bytes per block, offsets of its f16 fields.
FORMATS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "F32": (1, 4, ()),
    "F16": (1, 2, ()),
    "BF16": (1, 2, ()),
    "Q8_0": (32, 34, (0,)),
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q2_K": (256, 84, (80, 82)),
    "Q3_K": (256, 110, (108,)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)),
    "IQ4_XS": (256, 136, (0,)),
}
FLOATS = ("F32", "F16", "BF16")
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


def float_weights(format: str, rows: np.ndarray) -> np.ndarray:
    """(n, bytes) of a float format as f32 (n, k)."""
    if format == "F32":
        return rows.view(np.float32)
    if format == "F16":
        return rows.view(np.float16).astype(np.float32)
    return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """(..., b) bytes -> (..., 2 b) integers: the low nibbles, then the high ones."""
    return np.concatenate([q & 15, q >> 4], -1).astype(np.int32)


def _bits(h: np.ndarray, count: int) -> np.ndarray:
    """(..., b) bytes -> (..., 8 / count * b): of each byte the lowest `count` bits first, byte by byte in each run."""
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    return (h[..., None, :] >> shifts & ((1 << count) - 1)).astype(np.int32)


def fields(format: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Quantized rows (n, bytes) -> w (n, g), integers (n, g, group), m (n, g) or None.

    A value is w * integer + m, in f32.
    """
    _, size, halves = FORMATS[format]
    n = len(rows)
    b = rows.reshape(n, -1, size)
    f16 = [np.ascontiguousarray(b[..., at : at + 2]).view(np.float16).astype(np.float32) for at in halves]
    d, low = f16[0], f16[-1]  # (n, blocks, 1)

    def fifth(h: np.ndarray) -> np.ndarray:
        return np.unpackbits(h, axis=-1, bitorder="little").astype(np.int32) << 4

    def scales_k4() -> tuple[np.ndarray, np.ndarray]:
        s = b[..., 4:16]
        first, second, rest = s[..., :4], s[..., 4:8], s[..., 8:]
        scale = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], -1)
        minimum = np.concatenate([second & 63, (rest >> 4) | (second >> 6) << 4], -1)
        return d * scale.astype(np.float32), -(low * minimum.astype(np.float32))

    def nibbles_k(q: np.ndarray) -> np.ndarray:
        return _nibbles(q.reshape(n, -1, 4, 32)).reshape(n, -1, 8, 32)

    def runs(q: np.ndarray, count: int) -> np.ndarray:  # (.., bytes) in pieces of 32 -> (.., 8, 32)
        return _bits(q.reshape(n, b.shape[1], -1, 32), count).reshape(n, b.shape[1], 8, 32)

    m = None
    if format == "Q8_0":
        w, q = d, b[..., 2:].view(np.int8).astype(np.int32)
    elif format == "Q4_0":
        w, q = d, _nibbles(b[..., 2:]) - 8
    elif format == "Q4_1":
        w, q, m = d, _nibbles(b[..., 4:]), low
    elif format == "Q5_0":
        w, q = d, (_nibbles(b[..., 6:]) | fifth(b[..., 2:6])) - 16
    elif format == "Q5_1":
        w, q, m = d, _nibbles(b[..., 8:]) | fifth(b[..., 4:8]), low
    elif format == "IQ4_NL":
        w, q = d, IQ4_VALUES[_nibbles(b[..., 2:])]
    elif format == "Q2_K":
        w = d * (b[..., :16] & 15).astype(np.float32)
        m = -(low * (b[..., :16] >> 4).astype(np.float32))
        q = runs(b[..., 16:80], 2)
    elif format == "Q3_K":
        s = b[..., 96:108]
        scale = _nibbles(s[..., :8]) | _bits(s[..., 8:], 2).reshape(n, -1, 16) << 4
        w = d * (scale - 32).astype(np.float32)
        q = (runs(b[..., 32:96], 2) | runs(b[..., :32], 1) << 2) - 4
    elif format == "Q4_K":
        w, m = scales_k4()
        q = nibbles_k(b[..., 16:])
    elif format == "Q5_K":
        w, m = scales_k4()
        q = nibbles_k(b[..., 48:]) | runs(b[..., 16:48], 1) << 4
    elif format == "Q6_K":
        w = d * b[..., 192:208].view(np.int8).astype(np.float32)
        q = (_nibbles(b[..., :128].reshape(n, -1, 2, 64)).reshape(n, -1, 8, 32) | runs(b[..., 128:192], 2) << 4) - 32
    elif format == "IQ4_XS":
        high = np.ascontiguousarray(b[..., 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
        scale = _bits(b[..., 4:8, None], 4).reshape(n, -1, 8) | high.astype(np.int32) << 4
        w = d * (scale - 32).astype(np.float32)
        q = IQ4_VALUES[_nibbles(b[..., 8:].reshape(n, -1, 8, 16))]
    else:
        raise ValueError(format)
    w = w.reshape(n, -1)
    return w, q.reshape(n, w.shape[1], -1), None if m is None else m.reshape(n, -1)


def weights(format: str, rows: np.ndarray) -> np.ndarray:
    """Any rows (n, bytes) as f32 (n, k)."""
    if format in FLOATS:
        return float_weights(format, rows)
    w, q, m = fields(format, rows)
    x = w[..., None] * q.astype(np.float32)
    return (x if m is None else x + m[..., None]).reshape(len(rows), -1)


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, k) -> q (T, k) int8, d (T, k/32) f32, sums of 16 (T, k/16) int32. Exact."""
    b = x.reshape(len(x), -1, 32)
    top = np.abs(b).max(-1, keepdims=True)
    finite = top < np.float32(2.0**96)  # false for NaN
    live = finite & (top >= np.float32(2.0**-90))
    d = np.where(live, top, np.float32(127)) / np.float32(127)
    last = 1 << 19  # of the 23 bits of a mantissa, the last that a scale has: 4 of them, rounded up
    d = ((d.view(np.uint32) + np.uint32(last - 1)) & ~np.uint32(last - 1)).view(np.float32)
    r = np.where(live, b, np.float32(0)) * (np.float32(1) / d)
    whole = np.trunc(r)
    q = whole + np.where(np.abs(r - whole) >= 0.5, np.copysign(np.float32(1), r), np.float32(0))  # half away from zero
    q = q.astype(np.int8)
    d = np.where(finite, d, np.float32(np.nan))[..., 0]
    return q.reshape(x.shape), d, q.reshape(len(x), -1, 16).astype(np.int32).sum(-1, dtype=np.int32)


def linear(format: str, rows: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, bytes), (T, k) -> y (T, n) and its bound.

    A sum of N terms in f32, each added by one fma: N roundings of partial sums, one of each factor w * d, so
    (N + 1) u (1 + O(N u)) sum|term|; results and factors below 2^-126 have an absolute error of 2^-150, the factors'
    scaled by an integer of up to 2^20.
    """
    u = 2.0**-24
    if format in FLOATS:
        w = float_weights(format, rows).astype(np.float64)
        y, size, terms, tiny = x @ w.T, np.abs(x) @ np.abs(w).T, w.shape[1], 2.0**-149
        return y, (terms + 1) * (u * size * (1 + 2 * terms * u) + tiny)
    w, q, m = fields(format, rows)
    _, groups, group = q.shape
    xq, xd, _ = quantize(x)
    a = xq.reshape(len(x), groups, group).astype(np.float64)
    xd = np.repeat(xd.astype(np.float64), groups // xd.shape[1], axis=1)
    y, size = np.zeros((2, len(x), len(rows)))
    for t in range(len(x)):
        product = w * xd[t] * np.einsum("ngi,gi->ng", q, a[t])
        least = 0 if m is None else m * xd[t] * a[t].sum(-1)
        y[t], size[t] = (product + least).sum(-1), (np.abs(product) + np.abs(least)).sum(-1)
    terms = groups * (1 if m is None else 2)
    return y, (terms + 1) * (u * size * (1 + 2 * terms * u) + 2.0**-129)
